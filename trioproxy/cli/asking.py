"""What commands about a running server share: they ask it, and do nothing where none runs."""

from __future__ import annotations

from typing import Any

import click
import trio

from trioproxy.config.model import Config
from trioproxy.control import ask


def asked(config: Config, command: str, **arguments: object) -> dict[str, Any]:
    """What the running server answers to `command`; Ctrl-C ends it as it ends other commands.

    Raises:
        ControlError: no server runs, or it refuses.
    """

    async def asking() -> dict[str, Any]:
        return await ask(config.control_socket, command, dict(arguments), lambda line: click.echo(line, err=True))

    try:
        return trio.run(asking)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise click.Abort from group
