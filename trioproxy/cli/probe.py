"""`trioproxy probe NAME`: which PROXY header the backend of a passthrough name understands.

The wrong form looks like broken TLS from outside: the backend reads a header as the beginning of a handshake, or a
handshake as a header, and closes. So each form is tried, and what the backend makes of it is told.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import attrs
import click
import trio
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trioproxy.cli.common import json_option, load_config
from trioproxy.config.model import CATCH_ALL, Config, HostPort, Passthrough
from trioproxy.errors import InvalidName
from trioproxy.names import normalise
from trioproxy.net.probe import FORMS, Trial, probe
from trioproxy.routing import RouteTable

MAX_WIDTH = 10_000
"""Columns of a table that no person reads."""


@attrs.frozen
class Backend:
    """One address of the name, and what it made of each form."""

    address: HostPort
    trials: tuple[Trial, ...]

    @property
    def accepted(self) -> frozenset[str]:
        """The forms that it takes."""
        return frozenset(trial.form for trial in self.trials if trial.accepted)

    @property
    def reached(self) -> bool:
        """Whether it answered to any connection attempt."""
        return any(trial.reached for trial in self.trials)


@attrs.frozen
class Verdict:
    """What follows from the trials.

    Attributes:
        good: What is configured works with every backend that can be reached.
        client_ip: What to write; None where nothing works for all of them.
        words: The same for a person.
    """

    good: bool
    client_ip: str | None
    words: str


@click.command("probe")
@click.argument("name", metavar="NAME")
@json_option
@click.pass_context
def command(context: click.Context, name: str, as_json: bool) -> None:
    """Try the backend of the passthrough name NAME with each PROXY header and without one, and say what to configure.

    Exits with 1 if it does not accept what is configured.
    """
    config = load_config(context)
    entry, server_name = _entry(config, name)
    backends = trio.run(_try_all, entry, server_name, config.timeouts.connect)
    found = verdict(entry.client_ip, backends)
    if as_json:
        _print_json(entry, server_name, backends, found)
    else:
        _print(entry, backends, found)
    context.exit(0 if found.good else 1)


def _entry(config: Config, name: str) -> tuple[Passthrough, str]:
    """The entry that `name` leads to, and the server name to ask its backend for ("" for none).

    `name` is one that clients would ask for, or an entry as it stands in the file: `*.apps.myname.com`, `*`.
    """
    if name == CATCH_ALL and name in config.passthrough:
        return config.passthrough[name], ""
    suffix = name.removeprefix("*.")
    try:
        server_name = normalise(f"trioproxy-probe.{suffix}" if suffix != name else name)
    except InvalidName as exc:
        raise click.UsageError(str(exc)) from exc
    routes = RouteTable.of(config)
    entry = routes.configured(server_name) or routes.catch_all()
    if entry is None:
        raise click.UsageError(f"{name} is configured nowhere")
    if not isinstance(entry, Passthrough):
        raise click.UsageError(
            f"{name} is a site: its TLS ends in trioproxy, and its backend learns the client by HTTP"
        )
    return entry, server_name


async def _try_all(entry: Passthrough, server_name: str, connect: float) -> list[Backend]:
    return [Backend(address, tuple(await probe(address, server_name, connect))) for address in entry.to]


def verdict(configured: str, backends: Sequence[Backend]) -> Verdict:
    """What follows from the trials of all backends of a name for its `client_ip`."""
    reached = [backend.accepted for backend in backends if backend.reached]
    if not reached:
        return Verdict(good=False, client_ip=None, words="It cannot be reached. Is its address right?")
    common = frozenset.intersection(*reached)
    best = next((form for form in reversed(FORMS) if form in common), None)
    works = ("none" if configured == "transparent" else configured) in common
    if best is None:
        words = (
            "Its backends agree on no form: let all of them take the same."
            if any(reached)
            else "It accepts none of them. Is it a TLS server that listens there?"
        )
        return Verdict(good=False, client_ip=None, words=words)
    if not works:
        words = f'client_ip = "{configured}" is configured, and it does not work.'
        return Verdict(good=False, client_ip=best, words=words)
    if configured == "none" and best != "none":
        words = f'client_ip = "none" works, and so does "{best}", which tells the backend the client\'s address.'
        return Verdict(good=True, client_ip=best, words=words)
    words = {
        "none": (
            'client_ip = "none" is right: it takes no PROXY header, and so it takes trioproxy for its client. To '
            'change that, let it take PROXY headers, or use client_ip = "transparent".'
        ),
        "transparent": (
            'client_ip = "transparent" is right: it takes connections without a header. What else that asks for is '
            "told by `trioproxy check`."
        ),
    }.get(configured, f'client_ip = "{configured}" is right.')
    return Verdict(good=True, client_ip=configured, words=words)


# ---- printing -----------------------------------------------------------------------------------------


def _print(entry: Passthrough, backends: Sequence[Backend], found: Verdict) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("BACKEND", "FORM", "ACCEPTED", "WHAT IT DOES"):
        table.add_column(title, overflow="fold")
    for backend in backends:
        for number, trial in enumerate(backend.trials):
            cells = (
                "" if number else str(backend.address),
                trial.form,
                "yes" if trial.accepted else "no",
                trial.answer,
            )
            table.add_row(*map(Text, cells))
    console = Console()
    if not console.is_terminal:  # what a program reads is not folded
        console.width = console.measure(table, options=console.options.update(width=MAX_WIDTH)).maximum
    console.print(table)
    click.echo(f"\n{found.words}")
    if found.client_ip not in (None, entry.client_ip):
        click.echo(f'Write:\n\n[passthrough."{entry.name}"]\nto = {_written(entry)}\nclient_ip = "{found.client_ip}"')


def _written(entry: Passthrough) -> str:
    addresses = [json.dumps(str(address)) for address in entry.to]
    return addresses[0] if len(addresses) == 1 else f"[{', '.join(addresses)}]"


def _print_json(entry: Passthrough, server_name: str, backends: Sequence[Backend], found: Verdict) -> None:
    told = {
        "name": entry.name,
        "server_name": server_name,
        "configured": entry.client_ip,
        "works": found.good,
        "client_ip": found.client_ip,
        "words": found.words,
        "backends": [
            {
                "address": str(backend.address),
                "forms": [
                    {"form": trial.form, "accepted": trial.accepted, "answer": trial.answer} for trial in backend.trials
                ],
            }
            for backend in backends
        ],
    }
    click.echo(json.dumps(told, indent=2))
