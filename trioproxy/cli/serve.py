"""`trioproxy serve`: run the proxy."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click
import trio

from trioproxy.cli.common import load_config
from trioproxy.config.load import load
from trioproxy.config.model import Config
from trioproxy.errors import ListenError
from trioproxy.logs import configure
from trioproxy.server import Server


@click.command("serve")
@click.pass_context
def command(context: click.Context) -> None:
    """Run the proxy until SIGTERM or Ctrl-C. SIGHUP reloads the configuration."""
    config = load_config(context)
    configure(config.log_level)
    run_server(config, lambda: load(config.path))


def run_server(config: Config, reload: Callable[[], Config]) -> None:
    """Run a server in this process; exit with 1 if it cannot listen."""
    try:
        trio.run(Server(config, reload).run)
    except ListenError as exc:
        sys.exit(f"trioproxy: {exc}")
