"""`trioproxy check`: every mistake, then where each name leads, then what is worth a second thought."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import attrs
import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trioproxy.certs.contexts import read_files
from trioproxy.certs.preflight import check_files, unusable_storage
from trioproxy.cli import transparent
from trioproxy.cli.common import CONFIG_WRONG, config_path, json_option, print_mistakes, read_config
from trioproxy.config.advice import warnings
from trioproxy.config.model import CATCH_ALL, LETSENCRYPT, ZEROSSL, CertificateFiles, Config, Passthrough, Route, Site
from trioproxy.errors import CertificateError, ConfigError
from trioproxy.routing import Choice, choose

EXPIRES_SOON = timedelta(days=14)
"""How long before its end a certificate of the user's own is worth a warning."""

MAX_WIDTH = 10_000
"""Columns of a table that no person reads; names and URLs have their own limits below it."""


@attrs.frozen
class Way:
    """Where a request or connection goes: `/someservice/x` to `http://10.2.3.6/x`; a passthrough's request is ""."""

    request: str
    target: str

    def __str__(self) -> str:
        return f"{self.request} -> {self.target}" if self.request else self.target


@attrs.frozen
class Row:
    """One name and what happens to it.

    Attributes:
        name: As clients send it, normalised.
        kind: "site", "passthrough", or "alias of" another site.
        routes: Where it leads.
        certificate: Where its certificate comes from.
        http: What port 80 does.
    """

    name: str
    kind: str
    routes: tuple[Way, ...]
    certificate: str
    http: str


@click.command("check")
@json_option
@click.pass_context
def command(context: click.Context, as_json: bool) -> None:
    """Say what is wrong with the configuration, where each name leads, and what is worth a second thought.

    Exits with 2 if anything is wrong.
    """
    error: ConfigError | None = None
    table: list[Row] = []
    advice: list[str] = []
    try:
        config = read_config(context)
    except ConfigError as exc:
        error = exc
    else:
        if mistakes := check_files(config):
            error = ConfigError(config.path, tuple(mistakes))
        table = rows(config)
        advice = [
            *warnings(config),
            *_certificate_warnings(config, datetime.now(UTC)),
            *_storage(config),
            *_transparency(config),
        ]
    if as_json:
        _print_json(config_path(context), error, table, advice)
    else:
        _print(error, table, advice)
    context.exit(CONFIG_WRONG if error else 0)


def rows(config: Config) -> list[Row]:
    """One row for each name, in the file's order."""
    return [*map(_passthrough_row, config.passthrough.values()), *(_site_row(config, s) for s in config.sites.values())]


def _passthrough_row(entry: Passthrough) -> Row:
    http = {
        "challenges": f"/.well-known/, /.freepbx-known/ -> {entry.http_to}; the rest: redirect to https",
        "all": f"-> {entry.http_to}",
        "off": "404",
    }[entry.http]
    ways = tuple(Way("", str(address)) for address in entry.to)
    return Row(entry.name, "passthrough", ways, "the backend's own", http)


def _site_row(config: Config, site: Site) -> Row:
    http = {"redirect": "redirect to https", "serve": "the same as https", "off": "404"}[site.http]
    kind = f"alias of {site.alias_of}" if site.alias_of else "site"
    routes = tuple(_way(site, route) for route in reversed(site.routes))
    return Row(site.name, kind, routes, _certificate(config, site), http)


def _way(site: Site, route: Route) -> Way:
    """Where an example below the route goes, as the proxy itself would decide."""
    request = route.prefix.rstrip("/") + "/x"
    choice = choose(site, request.encode())
    # A longer route may be called just like the example.
    if not isinstance(choice, Choice) or choice.route is not route:
        return Way(route.prefix, str(route.to[0]))
    return Way(request, str(attrs.evolve(route.to[0], path=choice.target.decode())))


def _certificate(config: Config, site: Site) -> str:
    if isinstance(site.tls, CertificateFiles):
        return f"{site.tls.certificate}"
    if site.tls == "internal":
        return "internal CA"
    directory = {LETSENCRYPT: "Let's Encrypt", ZEROSSL: "ZeroSSL"}.get(config.acme.directory, config.acme.directory)
    return f"{directory}, {site.key_type}"


def _certificate_warnings(config: Config, now: datetime) -> Iterator[str]:
    """What is to be said of certificates in files that can be read; those that cannot are mistakes."""
    for site in config.sites.values():
        if not isinstance(site.tls, CertificateFiles):
            continue
        try:
            leaf = read_files(site.tls).leaf
        except CertificateError:
            continue
        path = site.tls.certificate
        if site.name != CATCH_ALL and not leaf.matches(site.name):
            yield f"{site.name}: {path} is for {', '.join(leaf.names) or 'no name at all'}: clients will refuse it"
        if leaf.not_after < now:
            yield f"{site.name}: {path} expired on {leaf.not_after:%Y-%m-%d}: put a new one there"
        elif leaf.not_after < now + EXPIRES_SOON:
            yield f"{site.name}: {path} expires on {leaf.not_after:%Y-%m-%d}, and trioproxy does not renew files"


def _storage(config: Config) -> Iterator[str]:
    """What keeps certificates from being kept, for the user who asks: the server's own may be another."""
    if problem := unusable_storage(config.storage):
        yield (
            f"storage.path: keys and certificates cannot be kept in {config.storage}: {problem}. "
            "Ask as the user that trioproxy runs as, mend it, or set storage.path to another place"
        )


def _transparency(config: Config) -> list[str]:
    """What keeps transparent names from working on this machine."""
    plan = transparent.plan(config)
    return transparent.missing(plan, transparent.look(plan)) if plan.backends or plan.unresolved else []


# ---- printing -----------------------------------------------------------------------------------------


def _print(error: ConfigError | None, table: list[Row], advice: list[str]) -> None:
    if error:
        print_mistakes(error)
    if table:
        _print_table(table)
    for sentence in advice:
        click.echo(f"\nwarning: {sentence}")


def _print_table(rows: list[Row]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("NAME", "KIND", "GOES TO", "CERTIFICATE", "PORT 80"):
        table.add_column(title, overflow="fold")
    for row in rows:
        ways = "\n".join(map(str, row.routes))
        # As Text, because a name or path may look like rich's markup or one of its emoji.
        table.add_row(*(Text(cell) for cell in (row.name, row.kind, ways, row.certificate, row.http)))
    console = Console()
    if not console.is_terminal:  # what a program reads is not folded
        console.width = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    console.print(table)


def _print_json(path: Path, error: ConfigError | None, table: list[Row], advice: list[str]) -> None:
    found = {
        "file": str(path),
        "mistakes": [attrs.asdict(mistake) for mistake in error.mistakes] if error else [],
        "names": [attrs.asdict(row) for row in table],
        "warnings": advice,
    }
    click.echo(json.dumps(found, indent=2))
