"""A machine that slept: a real server is stopped, its wall clock moves on, its timers do not, and it wakes.

libfaketime moves the wall clock of that one process. The monotonic clock is left alone, and no timer runs out while the
process is stopped for a moment, so for the server it is as after a suspension.
"""

from __future__ import annotations

import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from tests.certs.making import bundle
from tests.certs.serving import NAME, configuration, eventually, port_80, stored
from tests.life.served import served
from tests.pebble import needs_pebble, own_address, running_pebble
from trioproxy.certs.store import Store

DAY = timedelta(days=1)

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

pytestmark = [
    needs_pebble,
    pytest.mark.skipif(LIBRARY is None, reason="not installed: libfaketime (make test installs it)"),
]

SITE = f'"{NAME}" = {{ "/" = {{ redirect = "https://example.com/" }} }}\n'

SLEPT = 70 * DAY

SOON = 40.0
"""Seconds; the server looks for jumps every ten, and its order takes one or two."""


async def test_what_became_due_while_the_machine_slept_is_renewed_soon_after_it_wakes(tmp_path: Path) -> None:
    # Before it falls asleep the certificate is new. It wakes to the true time, which is also the authority's.
    fell_asleep = datetime.now(UTC).replace(microsecond=0) - SLEPT
    old = bundle(NAME, not_before=fell_asleep - DAY, not_after=fell_asleep + 89 * DAY)
    clock = tmp_path / "clock"
    clock.write_text(f"-{SLEPT.days}d\n")
    environ = {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    await Store(tmp_path / "store").save(NAME, old)
    async with running_pebble(tmp_path / "ca", http_port=port_80()) as ca:
        await ca.dns.set(NAME, own_address())
        text = configuration(tmp_path, ca, SITE)
        async with served(tmp_path, text, environ=environ) as service:
            await eventually((tmp_path / "store" / "pem" / NAME).exists)  # the manager's loop has begun, and sleeps
            assert (await service.ask("certs.list"))["certificates"][0]["state"] == "good"
            os.kill(service.process.pid, signal.SIGSTOP)
            await eventually(lambda: _state(service.process.pid) == "T")
            clock.write_text("+0\n")
            assert "Added order" not in ca.said()
            os.kill(service.process.pid, signal.SIGCONT)
            with trio.fail_after(SOON):
                new = await eventually(lambda: leaf if (leaf := stored(service)) != old.leaf else None, SOON)
            assert new is not None
            assert new.not_after > datetime.now(UTC)
            assert re.search(rf"the clock has jumped by \+({SLEPT.days}|{SLEPT.days - 1}) days", service.said())
            await service.ask("certs.renew", names=[NAME], force=False)  # waits for the job to end
            assert (await service.ask("certs.list"))["certificates"][0]["state"] == "good"
            assert ca.said().count("Added order") == 1


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
