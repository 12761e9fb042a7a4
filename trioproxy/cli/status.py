"""`trioproxy status`: how the running server is."""

from __future__ import annotations

import json
from typing import Any

import click

from trioproxy.cli.asking import asked
from trioproxy.cli.common import json_option, load_config
from trioproxy.cli.tables import print_table


@click.command("status")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Show the running server: its listeners, names, certificates and connections."""
    status = asked(load_config(context), "status")
    if as_json:
        click.echo(json.dumps(status, indent=2))
        return
    click.echo(f"trioproxy {status['version']}, process {status['pid']}, up {_span(status['uptime'])}")
    click.echo(f"configuration {status['configuration']}")
    for kind in ("https", "http"):
        click.echo(f"{kind:5} on {', '.join(status[kind]) or 'no address'}")
    click.echo(f"{status['connections']} connections{_shares(status.get('workers', []))}\n")
    rows = [
        (name["name"], name["kind"], str(name["connections"]), name["certificate"], _days(name["days_left"]))
        for name in status["names"]
    ]
    print_table(("NAME", "KIND", "CONNECTIONS", "CERTIFICATE", "DAYS LEFT"), rows)
    if status["hidden_clients"]:
        click.echo(
            f"\nwarning: all clients seem to come from {status['hidden_clients']}: something on the way hides them, "
            'and then "lan" in `allow` means everyone'
        )


def _shares(workers: list[dict[str, int]]) -> str:
    """Of how many workers, and how many each has."""
    if not workers:
        return ""
    shares = ", ".join(f"{worker['connections']} (process {worker['pid']})" for worker in workers)
    return f" of {len(workers)} workers: {shares}"


def _days(left: Any) -> str:
    return "" if left is None else f"{left:.0f}" if abs(left) >= 2 else f"{left:.1f}"


def _span(seconds: float) -> str:
    """A duration, to the two units that matter."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
