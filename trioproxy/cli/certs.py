"""`trioproxy certs`: the certificates that trioproxy looks after, listed, renewed and revoked.

The running server is asked first: it knows what it is doing at this moment, and holds port 80. Where none runs, the
command does the work itself.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import attrs
import click
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trioproxy import standalone
from trioproxy.acme.signing import REASONS
from trioproxy.certs.status import day, time_of_day
from trioproxy.cli import certs_import, certs_trust
from trioproxy.cli.common import json_option, load_config
from trioproxy.config.model import Config
from trioproxy.config.values import CAS
from trioproxy.control import NoServer, ask
from trioproxy.logs import configure

MAX_WIDTH = 10_000
"""Columns of a table that no person reads."""


@click.group("certs")
def command() -> None:
    """List, renew, revoke and import certificates; trust the internal CA."""


@command.command("list")
@json_option
@click.pass_context
def list_command(context: click.Context, as_json: bool) -> None:
    """Tell of every managed certificate: issuer, days left, when it is renewed and why, and what went wrong last.

    Exits with 1 if anything needs a person.
    """
    config = load_config(context)
    configure("warning")
    certificates: list[dict[str, Any]] = _run(_list, config)["certificates"]
    if as_json:
        click.echo(json.dumps(certificates, indent=2))
    elif certificates:
        _print_table(certificates)
        for certificate in certificates:
            if said := certificate["error"] or certificate["waits_for"]:
                click.echo(f"\n{certificate['name']}: {said}{_again(certificate)}")
    else:
        click.echo("No site is configured, so there is no certificate to look after.")
    context.exit(1 if any(certificate["needs_a_person"] for certificate in certificates) else 0)


@command.command("renew")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--force", is_flag=True, help="Renew what is not due, too: all that is named, or all.")
@click.option("--dry-run", is_flag=True, help="Rehearse at acme.staging, for all that is named, or all; keep nothing.")
@click.pass_context
def renew_command(context: click.Context, names: tuple[str, ...], force: bool, dry_run: bool) -> None:
    """Renew what is due, of the NAMEs or of all sites.

    A running server does it; where none runs, this command answers port 80 meanwhile. Exits with 1 if any name did not
    get its certificate.
    """
    config = load_config(context)
    # What happens to each name is printed as it goes on; the log would only say it once more.
    configure("debug" if config.log.level == "debug" else "critical")
    if dry_run and not config.acme.staging:
        raise click.ClickException(
            "there is no staging to rehearse at: set acme.staging to the URL of a CA's for tests"
        )
    work = (_rehearse, config, names) if dry_run else (_renew, config, names, force)
    outcomes: list[dict[str, Any]] = _run(*work)["outcomes"]
    if not outcomes and dry_run:
        click.echo("No site gets its certificate by ACME, so there is nothing to rehearse.")
    elif not outcomes:
        click.echo(
            "No site gets its certificate by ACME. To renew one of the internal CA, name its site."
            if force
            else "Nothing is due. To renew all the same, name the sites and add --force."
        )
    _tell(context, outcomes)


@command.command("revoke")
@click.argument("name")
@click.option(
    "--reason",
    type=click.Choice(list(REASONS), case_sensitive=False),
    default="unspecified",
    show_default=True,
    help="Why: keyCompromise, when somebody else may have the key.",
)
@click.pass_context
def revoke_command(context: click.Context, name: str, reason: str) -> None:
    """Have the certificate of the site NAME revoked, and replace it at once.

    It is served until another one is there. Exits with 1 if there is none yet.
    """
    config = load_config(context)
    configure("debug" if config.log.level == "debug" else "critical")
    _tell(context, _run(_revoke, config, name, reason)["outcomes"])


@command.command("rollover-account")
@click.option("--directory", default="", metavar="URL", help="Which authority's: its word or URL. Default: the first.")
@click.pass_context
def rollover_command(context: click.Context, directory: str) -> None:
    """Give the account at the certificate authority a new key.

    Certificates are not touched. Orders under way are waited for.
    """
    config = load_config(context)
    configure("debug" if config.log.level == "debug" else "critical")
    click.echo(_run(_roll_over, config, CAS.get(directory, directory))["done"])


command.add_command(certs_import.command)
command.add_command(certs_trust.command)


# ---- asking -------------------------------------------------------------------------------------------


def _run(work: Callable[..., Awaitable[dict[str, Any]]], *arguments: object) -> dict[str, Any]:
    """Run `work`; Ctrl-C ends it as it ends other commands."""
    try:
        result: dict[str, Any] = trio.run(work, *arguments)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        raise click.Abort from group
    return result


async def _list(config: Config) -> dict[str, Any]:
    try:
        return await ask(config.control_socket, "certs.list", {}, _progress)
    except NoServer:
        return {"certificates": [attrs.asdict(status) for status in await standalone.listing(config)]}


async def _renew(config: Config, names: tuple[str, ...], force: bool) -> dict[str, Any]:
    try:
        return await ask(config.control_socket, "certs.renew", {"names": list(names), "force": force}, _progress)
    except NoServer:
        _progress("no server is running, so this command does it itself")
        outcomes = await standalone.renew(config, names, force, _progress)
        return {"outcomes": [attrs.asdict(outcome) for outcome in outcomes]}


async def _rehearse(config: Config, names: tuple[str, ...]) -> dict[str, Any]:
    try:
        return await ask(config.control_socket, "certs.rehearse", {"names": list(names)}, _progress)
    except NoServer:
        _progress("no server is running, so this command does it itself")
        outcomes = await standalone.rehearse(config, names, _progress)
        return {"outcomes": [attrs.asdict(outcome) for outcome in outcomes]}


async def _revoke(config: Config, name: str, reason: str) -> dict[str, Any]:
    try:
        return await ask(config.control_socket, "certs.revoke", {"name": name, "reason": reason}, _progress)
    except NoServer:
        _progress("no server is running, so this command does it itself")
        return {"outcomes": [attrs.asdict(await standalone.revoke(config, name, reason, _progress))]}


async def _roll_over(config: Config, directory: str) -> dict[str, Any]:
    try:
        return await ask(config.control_socket, "certs.rollover", {"directory": directory}, _progress)
    except NoServer:
        _progress("no server is running, so this command does it itself")
        return {"done": await standalone.roll_over(config, directory, _progress)}


def _progress(line: str) -> None:
    click.echo(line, err=True)


def _tell(context: click.Context, outcomes: list[dict[str, Any]]) -> None:
    """Say what came of each name, and end with it."""
    for outcome in outcomes:
        click.echo(f"{outcome['name']}: {outcome['result']}: {outcome['detail']}")
    context.exit(1 if any(outcome["result"] in {"failed", "waiting"} for outcome in outcomes) else 0)


# ---- printing -----------------------------------------------------------------------------------------


def _print_table(certificates: list[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("NAME", "STATE", "ISSUER", "PROVED BY", "DAYS LEFT", "RENEWS", "WHY THEN"):
        table.add_column(title, overflow="fold", justify="right" if title == "DAYS LEFT" else "left")
    for certificate in certificates:
        table.add_row(*map(Text, _row(certificate)))
    console = Console()
    if not console.is_terminal:  # what a program reads is not folded
        console.width = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    console.print(table)


def _row(certificate: dict[str, Any]) -> tuple[str, ...]:
    name, names = certificate["name"], certificate["names"]
    days, renews = certificate["days_left"], certificate["renews"]
    return (
        name if not names or list(names) == [name] else f"{name}\n(is for {', '.join(names)})",
        certificate["state"],
        certificate["issuer"],
        certificate["challenge"],
        "" if days is None else f"{days:.0f}" if abs(days) >= 2 else f"{days:.1f}",
        "" if renews is None else day(datetime.fromisoformat(renews), datetime.now(UTC)),
        certificate["why"],
    )


def _again(certificate: dict[str, Any]) -> str:
    if certificate["next_attempt"] is None:
        return ""
    return f"; next attempt at {time_of_day(datetime.fromisoformat(certificate['next_attempt']), datetime.now(UTC))}"
