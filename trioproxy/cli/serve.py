"""`trioproxy serve`: run the proxy."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click
import trio

from trioproxy.cli.common import CONFIG_WRONG, config_path, load_config, print_mistakes
from trioproxy.config.load import load
from trioproxy.config.model import Config
from trioproxy.errors import ConfigError, TrioproxyError
from trioproxy.life.circumstances import Circumstances, found
from trioproxy.life.worker import is_worker
from trioproxy.life.worker import run as run_worker
from trioproxy.logs import configure
from trioproxy.process.privileges import forbid_dumps


@click.command("serve")
@click.pass_context
def command(context: click.Context) -> None:
    """Run the proxy until SIGTERM or Ctrl-C. SIGHUP reloads the configuration."""
    forbid_dumps()
    if (descriptor := is_worker(os.environ)) is not None:
        run_worker(descriptor)
        return
    circumstances = found(os.environ)
    heir = circumstances.inheritance
    if heir is None:
        config = load_config(context)
    else:
        try:
            config = load(config_path(context))  # whose name its predecessor has printed: nobody need read it now
        except ConfigError as exc:
            print_mistakes(exc)
            heir.refuse(exc.lines())
            raise click.exceptions.Exit(CONFIG_WRONG) from exc
    configure(config.log.level, config.log.format)
    run_server(config, lambda: load(config.path), circumstances)


def run_server(config: Config, reload: Callable[[], Config], circumstances: Circumstances | None = None) -> None:
    """Run a server in this process; exit with 1 if it cannot listen, or not as the user that it should be."""
    from trioproxy.server import Server  # here, for a worker needs none of it, and is to be there soon

    try:
        trio.run(Server(config, reload, circumstances).run)
    except TrioproxyError as exc:
        if circumstances and circumstances.inheritance:
            circumstances.inheritance.refuse([str(exc)])
        sys.exit(f"trioproxy: {exc}")
