"""`trioproxy transparent-setup`: the commands that make this machine take in what transparent backends answer."""

from __future__ import annotations

import click

from trioproxy.cli.common import config_path, load_config
from trioproxy.cli.transparent import commands, plan


@click.command("transparent-setup")
@click.pass_context
def command(context: click.Context) -> None:
    r"""Print the nft and ip commands that names with client_ip = "transparent" need, for a root shell to run.

    \b
    trioproxy transparent-setup             shows them
    trioproxy transparent-setup | sudo sh   runs them

    They may be run any number of times. `trioproxy check` says what of them is missing.
    """
    wanted = plan(load_config(context))
    if not wanted.backends and not wanted.unresolved:
        click.echo('No passthrough name has client_ip = "transparent", so there is nothing to set up.', err=True)
        context.exit(1)
    click.echo(commands(wanted, str(config_path(context).absolute())), nl=False)
