"""Wall clocks that jump: by libfaketime, while the server runs. What counts seconds goes on as it did."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from tests.chaos.faults import alive, by_acme, certificate
from tests.chaos.rows import Row, Scale
from tests.life.served import NAME, Served, served
from tests.pebble import Pebble, free_ports, running_pebble
from tests.proxy.stage import HELLO, LOOPBACK, Caller, answering, backend

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

LIFETIME = timedelta(days=90)
"""Of the CA's certificates; those of the internal authority last a week."""

INTERNAL = "other.test"

DUE = 85

JUMPS = (2, -2, 10, DUE, 0)
"""Days by which the server's clock is wrong, one after the other, while the CA's is right. Only the last but one make a
renewal due; and what comes then is due at once, by that clock, so an order for each look would use up a CA's limits."""

LOOKS = 2
"""How often the certificates are looked at after each jump."""

PATIENCE = 10.0

ISSUED = "Issued certificate serial"
"""What Pebble says for each."""


async def jumps(folder: Path, scale: Scale) -> Row:
    """Nothing is renewed twice, nothing is forgotten, and no connection notices."""
    row = Row()
    expected = 1
    async with faked(folder) as (service, ca, offset):
        pid = service.process.pid
        stream = await service.visit()
        caller = Caller(stream)
        await caller.ask("GET", "/", NAME)  # a connection that has had one may wait longer for the next
        for days in JUMPS:
            offset.write_text(f"{days:+d}d\n")
            expected += days == DUE
            await service.ask("reload", dry_run=False)  # has the certificates looked at now, and not within seconds
            good = await until_valid(service, datetime.now(UTC) + timedelta(days=days))
            row.expect(good, f"{days:+d} days: the internal authority's certificate is not valid then")
            with trio.move_on_after(PATIENCE):
                while ca.said().count(ISSUED) < expected:  # noqa: ASYNC110 - another process
                    await trio.sleep(0.05)
            for _ in range(LOOKS):
                await service.ask("reload", dry_run=False)
            issued = ca.said().count(ISSUED)
            row.expect(issued == expected, f"{days:+d} days: {issued} certificates and not {expected}")
            answered = await caller.ask("GET", "/", NAME)
            row.expect(answered.body == b"hello", f"{days:+d} days: a connection noticed")
        row.figures = {"jumps": len(JUMPS), "days at most": max(JUMPS), "certificates ordered": issued}
        await trio.aclose_forcefully(stream)
        await alive(row, service, pid)
    return row


async def until_valid(service: Served, now: datetime) -> bool:
    """Whether the certificate of the internal site becomes valid at that time, before long."""
    with trio.move_on_after(PATIENCE):
        while True:
            leaf = await certificate(service, INTERNAL)
            if leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
                return True
            await trio.sleep(0.05)
    return False


@asynccontextmanager
async def faked(folder: Path) -> AsyncIterator[tuple[Served, Pebble, Path]]:
    """A server with a certificate of a Pebble and one of its own, and the file that says how wrong its clock is."""
    if LIBRARY is None:
        pytest.skip("not installed: libfaketime (make test installs it)")
    offset = folder / "offset"
    offset.write_text("+0d\n")
    environ = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    (port_80,) = free_ports(LOOPBACK, 1)
    async with (
        running_pebble(folder / "pebble", http_port=port_80, validity=int(LIFETIME.total_seconds())) as ca,
        backend(answering(HELLO)) as (port, _),
    ):
        text = by_acme(folder, port, port_80, ca)
        text += f'[sites."{INTERNAL}"]\ntls = "internal"\n"/" = "http://{LOOPBACK}:{port}"\n'
        async with served(folder, text, environ=environ) as service:
            await service.ask("certs.renew", names=[NAME], force=False)
            yield service, ca, offset
