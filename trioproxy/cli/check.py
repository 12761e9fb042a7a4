"""`trioproxy check`: every mistake, then where each name leads, then what is worth a second thought."""

from __future__ import annotations

import json
import os
import stat
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
from trioproxy.cli import capacity, transparent
from trioproxy.cli.common import CONFIG_WRONG, config_path, json_option, print_mistakes, read_config
from trioproxy.cli.network import network_warnings
from trioproxy.cli.rows import TITLES, Row, rows
from trioproxy.config.advice import warnings
from trioproxy.config.lines import Lines, dotted_key
from trioproxy.config.model import CATCH_ALL, CertificateFiles, Config, Process
from trioproxy.errors import CertificateError, ConfigError, Mistake
from trioproxy.http.alpn import spoken
from trioproxy.process.privileges import PrivilegeError, account, acting_as

EXPIRES_SOON = timedelta(days=14)
"""How long before its end a certificate of the user's own is worth a warning."""

MAX_WIDTH = 10_000
"""Columns of a table that no person reads; names and URLs have their own limits below it."""


@click.command("check")
@json_option
@click.option("--network", is_flag=True, help="Ask the name servers, too, where the names lead.")
@click.pass_context
def command(context: click.Context, as_json: bool, network: bool) -> None:
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
        if mistakes := _unknown_user(config):
            config = attrs.evolve(config, process=Process())
        with acting_as(config.process.user):  # what root can read, the server could not
            mistakes += [*_unreadable_itself(config), *check_files(config)]
            seen = [*_certificate_warnings(config, datetime.now(UTC)), *_storage(config), *_sockets(config)]
        if mistakes:
            error = ConfigError(config.path, tuple(mistakes))
        table = rows(config)
        advice = [
            *warnings(config),
            *seen,
            *_http2(config),
            *_transparency(config),
            *capacity.shortcomings(config, capacity.look()),
            *(network_warnings(config) if network else ()),
        ]
    if as_json:
        _print_json(config_path(context), error, table, advice)
    else:
        _print(error, table, advice)
    context.exit(CONFIG_WRONG if error else 0)


def _unknown_user(config: Config) -> list[Mistake]:
    """Whether there is nobody by the name of `process.user`."""
    if config.process.user:
        try:
            account(config.process.user)
        except PrivilegeError as exc:
            return [_about_user(config, str(exc).removeprefix("process.user: "))]
    return []


def _unreadable_itself(config: Config) -> list[Mistake]:
    """Whether who is to run the server cannot read its configuration, and so never again after the start."""
    if not config.process.user or os.access(config.path, os.R_OK):
        return []
    return [_about_user(config, f"{config.process.user} cannot read {config.path}, so no reload would work")]


def _about_user(config: Config, problem: str) -> Mistake:
    place = ("process", "user")
    try:
        text = config.path.read_text("utf-8-sig")
    except OSError:
        text = ""
    return Mistake(Lines(text).of(place) if text else 0, dotted_key(place), problem)


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
    if config.process.user and not config.storage.exists():  # root makes it at the start, for that user
        return
    if problem := unusable_storage(config.storage):
        yield (
            f"storage.path: keys and certificates cannot be kept in {config.storage}: {problem}. "
            "Ask as the user that trioproxy runs as, mend it, or set storage.path to another place"
        )


def _sockets(config: Config) -> Iterator[str]:
    """What keeps unix sockets from being called, by the user who asks; each is named once, whatever leads to it."""
    names: dict[str, str] = {}
    for site in config.sites.values():
        for route in site.routes:
            for to in route.to:
                if to.scheme == "unix":
                    names.setdefault(to.host, f"{site.name}{route.prefix}")
    for path, name in names.items():
        if problem := _unusable_socket(path):
            yield f"{name}: {path} {problem}"


def _http2(config: Config) -> Iterator[str]:
    """What does not work where HTTP/2 cannot be spoken."""
    _, lacking = spoken()
    if not lacking:
        return
    yield f"ngh2 does not load ({lacking}): HTTP/2 is not spoken, neither to clients nor to backends"
    for site in config.sites.values():
        for route in site.routes:
            if any(to.scheme == "h2c" for to in route.to):
                yield f"{site.name}{route.prefix}: h2c:// needs ngh2: its requests will be answered with 502"


def _unusable_socket(path: str) -> str:
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "is not there: requests get 502 until its program has made it"
    except OSError as exc:
        return (
            f"cannot be looked at: {exc.strerror}. Ask as the user that trioproxy runs as, or open its folder to that"
        )
    if not stat.S_ISSOCK(mode):
        return "is no socket: write the one that its program listens on"
    if not os.access(path, os.W_OK):
        return (
            "may not be called by the user who runs this: ask as the user that trioproxy runs as, or let that one "
            "write to the socket"
        )
    return ""


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
    for title in TITLES:
        table.add_column(title, overflow="fold")
    for row in rows:
        # As Text, because a name or path may look like rich's markup or one of its emoji.
        table.add_row(*map(Text, row.cells()))
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
