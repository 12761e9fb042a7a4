"""`trioproxy connections`: who is connected to the running server."""

from __future__ import annotations

import json

import click

from trioproxy.cli.asking import asked
from trioproxy.cli.common import json_option, load_config
from trioproxy.cli.tables import print_table


@click.group("connections", invoke_without_command=True)
@click.option("--name", default="", metavar="NAME", help="Only connections of this name.")
@json_option
@click.pass_context
def command(context: click.Context, name: str, as_json: bool) -> None:
    """List the connections on port 443, longest first; or end one of them."""
    if context.invoked_subcommand is not None:
        return
    found = asked(load_config(context), "connections", name=name)["connections"]
    found.sort(key=lambda connection: -connection["seconds"])
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [(str(c["id"]), c["client"], c["name"], c["kind"], f"{c['seconds']:.0f} s") for c in found]
    print_table(("ID", "CLIENT", "NAME", "KIND", "FOR"), rows)


@command.command("close")
@click.argument("number", metavar="ID", type=int)
@click.pass_context
def close_command(context: click.Context, number: int) -> None:
    """End one connection, whatever it is at."""
    asked(load_config(context), "connections.close", id=number)
    click.echo(f"Connection {number} was ended.")
