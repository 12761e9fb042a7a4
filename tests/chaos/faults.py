"""System calls that fail: accepting, the log, and every step of storing a certificate."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from cryptography import x509

from tests.chaos.rows import Row, Scale
from tests.chaos.tracing import failing, other_threads
from tests.life.served import NAME, Served, configuration, load, served
from tests.pebble import Pebble, free_ports, running_pebble
from tests.proxy.stage import HELLO, LOOPBACK, answering, backend
from trioproxy.certs.store import Store

VISITORS = 4

SPELL = 0.8
"""Seconds for which nothing at all can be accepted: less than those after which who waits is turned away."""

STEPS = (
    ("write,pwrite64", "ENOSPC"), ("write,pwrite64", "EIO"), ("fsync", "ENOSPC"), ("fsync", "EIO"),
    ("rename", "ENOSPC"), ("rename", "EIO"),
)  # fmt: skip
"""What may fail when something is stored."""


async def accepting(folder: Path, scale: Scale) -> Row:
    """Descriptors run out at every second connection, then for a while at all: who waits is served."""
    row = Row()
    injected = 0
    async with backend(answering(HELLO)) as (port, _), served(folder, configuration(folder, cloud=port)) as service:
        pid = service.process.pid
        async with load(service, VISITORS, lambda body: body == b"hello") as visits:
            for error, when in (("EMFILE", "1+2"), ("EMFILE", ""), ("ENFILE", "")):
                before = visits.answered
                async with failing(folder, pid, "accept4", error, when=when) as faults:
                    await trio.sleep(SPELL)
                injected += faults.count
                await service.heard("accepting connections again")
                while visits.answered < before + VISITORS and not visits.failed:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        row.figures = {"accepts that failed": injected, "requests": visits.answered, "failed": len(visits.failed)}
        row.problems = list(visits.failed)
        row.expect(injected, "nothing was injected")
        await alive(row, service, pid)
    return row


async def logging(folder: Path, scale: Scale) -> Row:
    """The disk with the log is full, or broken: what cannot be told is not told."""
    row = Row()
    injected = 0
    async with backend(answering(HELLO)) as (port, _), served(folder, configuration(folder, cloud=port)) as service:
        pid = service.process.pid
        async with load(service, VISITORS, lambda body: body == b"hello") as visits:
            for error in ("ENOSPC", "EIO"):
                async with failing(folder, pid, "write,writev", error, path=folder / "log") as faults:
                    for _ in range(3):
                        await service.ask("reload", dry_run=False)
                injected += faults.count
            await service.ask("reload", dry_run=False)
            await service.heard("nothing changes")
        row.figures = {"writes that failed": injected, "requests": visits.answered, "failed": len(visits.failed)}
        row.problems = list(visits.failed)
        row.expect(injected, "nothing was injected")
        await alive(row, service, pid)
    return row


async def storing(folder: Path, scale: Scale) -> Row:
    """Of one renewal after the other, the first, second, … write, fsync or rename fails, until there are no more.

    When the fsync of the folder fails, the new pair is in its place and only a loss of power could undo that. It counts
    as a failure all the same, and the one before is served until the certificate is looked at again.
    """
    row = Row()
    renewed = failed = 0
    async with certified(folder) as (service, store, _):
        pid = service.process.pid
        before = (await certificate(service)).serial_number
        for calls, error in STEPS:
            for number in itertools.count(1):
                async with failing(folder, other_threads(pid), calls, error, when=str(number)) as faults:
                    (outcome,) = (await service.ask("certs.renew", names=[NAME], force=True))["outcomes"]
                what = f"{calls} {number}: {error}"
                good = outcome["result"] == "renewed"
                renewed, failed = renewed + good, failed + (not good)
                kept, shown = store.load(NAME), (await certificate(service)).serial_number
                row.expect(kept is not None, f"{what}: the store has no pair")
                if kept is not None:
                    row.expect(shown in (before, kept.leaf.serial), f"{what}: neither that nor the last is served")
                    row.expect(not good or shown == kept.leaf.serial, f"{what}: the new one is not served")
                before = shown
                if not faults.count or number >= scale.steps:
                    break
            (outcome,) = (await service.ask("certs.renew", names=[NAME], force=True))["outcomes"]
            before = (await certificate(service)).serial_number
            kept = store.load(NAME)
            row.expect(outcome["result"] == "renewed", f"after {calls} {error}: {outcome}")
            row.expect(kept is not None and kept.leaf.serial == before, f"after {calls} {error}: another one is served")
        await alive(row, service, pid)
    row.figures = {"renewals that failed": failed, "renewals in spite of it": renewed}
    row.expect(failed, "nothing was injected")
    return row


@asynccontextmanager
async def certified(folder: Path, text: str = "", **more: object) -> AsyncIterator[tuple[Served, Store, Pebble]]:
    """A server whose site has a certificate of a Pebble, and its store.

    Args:
        folder: For everything.
        text: More of the configuration.
        more: For `served`.
    """
    (port_80,) = free_ports(LOOPBACK, 1)
    async with (
        running_pebble(folder / "pebble", http_port=port_80) as ca,
        backend(answering(HELLO)) as (port, _),
        served(folder, by_acme(folder, port, port_80, ca), **more) as service,  # type: ignore[arg-type]  # handed on
    ):
        (outcome,) = (await service.ask("certs.renew", names=[NAME], force=False))["outcomes"]
        assert outcome["result"] in ("renewed", "good"), outcome
        yield service, Store(folder / "store"), ca


def by_acme(folder: Path, port: int, port_80: int, ca: Pebble) -> str:
    """A configuration whose one site has its certificate from there."""
    text = configuration(folder, cloud=port).replace('tls = "internal"\n', "")
    text = text.replace(f'http = ["{LOOPBACK}:0"]', f'http = ["{LOOPBACK}:{port_80}"]')
    return f'{text}[acme]\ndirectory = "{ca.directory}"\nca_file = "{ca.ca_file}"\nemail = "me@example.com"\n'


async def certificate(service: Served, name: str = NAME) -> x509.Certificate:
    """The certificate that a client sees."""
    stream = await service.visit(name)
    der = stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)
    return x509.load_der_x509_certificate(der)


async def alive(row: Row, service: Served, pid: int) -> None:
    """Expect the very same process, without a bug in its log, and an answer."""
    row.expect((await service.ask("status"))["pid"] == pid, "it is another process")
    row.expect(await service.get() == b"hello", "it does not answer")
    row.expect("Traceback" not in service.said(), "the log has a traceback")
