"""`trioproxy certs import`: takes certificates and keys over from certbot, or from any folder of PEM files.

The command reads the folder and writes the store itself, for it may be root and the server is not. A running server is
then told to look at the store again.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import attrs
import click
import trio

from trioproxy.certs.foreign import read_folder
from trioproxy.certs.importing import Row, judge, take_over
from trioproxy.certs.store import Store
from trioproxy.cli.common import json_option, load_config
from trioproxy.cli.tables import print_table, shown
from trioproxy.config.model import Config
from trioproxy.control import NoServer, ask
from trioproxy.errors import ControlError
from trioproxy.logs import configure

NO_SERVER = "no server is running: they are served as soon as one does"


@click.command("import")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@json_option
@click.pass_context
def command(context: click.Context, folder: Path, as_json: bool) -> None:
    """Take over certificates and keys that are in DIR or below it: certbot's `live` folder, or any PEM files.

    For each site that gets its certificate from a CA, the one that is valid for longest is taken, unless trioproxy has
    one that is valid for longer. Nothing in DIR is changed. A running server serves them at once. Exits with 1 if
    anything needs a person.
    """
    config = load_config(context)
    configure("error")
    found = read_folder(folder)
    now = datetime.now(UTC)
    sites = [site.name for site in config.sites.values() if site.tls == "acme"]
    rows, best = judge(found, sites, now)
    rows = [*trio.run(take_over, Store(config.storage), best, now), *rows]
    imported = [row.site for row in rows if row.result == "imported"]
    served = trio.run(_have_served, config, imported) if imported else {}
    if as_json:
        told = {"certificates": list(map(attrs.asdict, rows)), "warnings": found.warnings, "served": served}
        click.echo(json.dumps(told, indent=2))
    else:
        _print(folder, rows, found.warnings, served)
    done = {row.site for row in rows if row.result in ("imported", "kept")}
    context.exit(1 if not rows or any(row.trouble and row.site not in done for row in rows) else 0)


async def _have_served(config: Config, names: list[str]) -> dict[str, str]:
    """Tell a running server of these names; what comes of it, by name."""
    try:
        answer = await ask(config.control_socket, "certs.look", {"names": names}, lambda _: None)
    except NoServer:
        return dict.fromkeys(names, NO_SERVER)
    except ControlError as exc:
        return dict.fromkeys(names, f"the running server did not look at it, so reload it: {exc}")
    served: dict[str, str] = answer["served"]
    return served


def _print(folder: Path, rows: list[Row], warnings: tuple[str, ...], served: dict[str, str]) -> None:
    if rows:
        titles = ("FILE", "IS FOR", "VALID TO", "SITE", "RESULT", "WHY")
        print_table(titles, [_cells(folder, row) for row in rows])
    else:
        click.echo(f"There is no certificate in {folder}, nor below it.")
    for name, words in served.items():
        click.echo(f"\n{name}: {words}")
    for warning in warnings:
        click.echo(shown(f"\nwarning: {warning}"))


def _cells(folder: Path, row: Row) -> tuple[str, ...]:
    path = Path(row.path)
    until = "" if row.not_after is None else row.not_after[:10]
    shown = path.relative_to(folder) if path.is_relative_to(folder) else path
    return str(shown), "\n".join(row.names), until, row.site, row.result, row.detail
