"""`trioproxy upgrade`: have the running server replaced by a new process."""

from __future__ import annotations

import json

import click

from trioproxy.cli.asking import asked
from trioproxy.cli.common import json_option, load_config


@click.command("upgrade")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Have the running server start a new process, with the code that is installed now, and hand over to it.

    No connection is refused meanwhile, and requests under way are finished. If the new process does not start, the old
    one goes on, and the exit code is 1.
    """
    outcome = asked(load_config(context), "upgrade")
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
    else:
        click.echo(f"Process {outcome['pid']} serves; {outcome['old_pid']} lets its connections finish, then it ends.")
