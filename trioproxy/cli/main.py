"""`trioproxy`: finds the command, and imports nothing but that one.

Half of what commands need (tables, the ACME client) would double the time that `trioproxy serve` takes to start.
"""

from __future__ import annotations

import importlib
import signal
import sys
from typing import Any

import click

import trioproxy
from trioproxy.cli.common import CONFIG_WRONG, accept_config, config_option, print_mistakes
from trioproxy.errors import ConfigError, TrioproxyError

COMMANDS = {
    "serve": "Run the proxy.",
    "demo": "Run the proxy on this machine with stand-in backends, to try it out.",
    "check": "Say what is wrong with the configuration, and where each name leads.",
    "status": "Show the running server: names, certificates, connections.",
    "reload": "Have the running server read its configuration again, and show what changes.",
    "connections": "List the running server's connections, or end one.",
    "trace": "Follow live what happens to a name.",
    "upgrade": "Have the running server replaced by a new process, without a gap.",
    "certs": "List, renew, revoke and import certificates; trust the internal CA.",
    "probe": "Try which PROXY header the backend of a passthrough name understands.",
    "install-service": "Set up user, folders and unit for systemd.",
    "transparent-setup": 'Print what names with client_ip = "transparent" need of this machine.',
}
"""What each command does. It is in the module of its name, with _ for -, where it is called `command`."""


class Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  (click's)
        """The names of all commands, in the order in which one meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  (click's)
        """The command of that name, None if there is none."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"trioproxy.cli.{cmd_name.replace('-', '_')}").command
        accept_config(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  (click's)
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what it raises of ours is a message and an exit code, no traceback."""
        try:
            return super().invoke(ctx)
        except ConfigError as exc:
            print_mistakes(exc)
            raise click.exceptions.Exit(CONFIG_WRONG) from exc
        except TrioproxyError as exc:
            click.echo(f"trioproxy: {exc}", err=True)
            raise click.exceptions.Exit(1) from exc


@click.command(cls=Commands, params=[config_option()], context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(trioproxy.__version__, message=f"trioproxy {trioproxy.__version__}")
def command() -> None:
    """One process on port 443: TLS passed through by name, sites whose TLS ends here, and their certificates."""


def main() -> None:
    """The console entry point."""
    if "serve" in sys.argv:
        # A reload, or a new log file, that is asked for while the modules are still being imported must not be the end
        # of the start: it waits until the server listens for signals, and lets it through.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGUSR1})
    command(prog_name="trioproxy")
