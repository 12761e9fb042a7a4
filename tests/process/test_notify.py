"""Messages to systemd, without a server."""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import pytest
import trio

from tests.process.managers import manager
from trioproxy.process.notify import Notifier, nobody


@pytest.mark.parametrize("abstract", [False, True])
async def test_every_message_is_one_datagram(tmp_path: Path, abstract: bool) -> None:
    address = f"@trioproxy-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with manager(address) as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": address}, os.getpid())
        notifier.ready("2 sites\nREADY=0")
        assert await systemd.message() == {"READY": "1", "STATUS": "2 sites READY=0"}
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.reloading()
        message = await systemd.message()
        assert message["RELOADING"] == "1"
        assert before <= int(message["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        notifier.status("still here")
        notifier.stopping("2 connections")
        assert await systemd.message() == {"STATUS": "still here"}
        assert await systemd.message() == {"STOPPING": "1", "STATUS": "2 connections"}


async def test_who_has_resigned_says_no_more(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with manager(address) as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, os.getpid())
        notifier.resign(4711)
        notifier.stopping("")
        with trio.fail_after(5):
            await notifier.feed_watchdog()
        assert await systemd.message() == {"MAINPID": "4711"}
        assert systemd.waiting() == 0


async def test_the_watchdog_is_fed_twice_a_period_and_not_while_the_loop_hangs(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with manager(address) as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}, os.getpid())
        assert notifier.watchdog == 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.feed_watchdog)
            for _ in range(3):
                assert await systemd.message() == {"WATCHDOG": "1"}
            time.sleep(0.5)  # noqa: ASYNC251 - the loop hangs; a thread would have sent ten
            assert systemd.waiting() <= 1
            await systemd.message()
            nursery.cancel_scope.cancel()


async def test_the_watchdog_is_not_fed_while_something_is_amiss(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    well = False
    looks = 0

    def healthy() -> bool:
        nonlocal looks
        looks += 1
        return well

    with manager(address) as systemd:
        notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000"}, os.getpid())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.feed_watchdog, healthy)
            with trio.fail_after(5):
                while looks < 3:  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert systemd.waiting() == 0
            well = True
            assert await systemd.message() == {"WATCHDOG": "1"}
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, math.inf),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "77"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "78"}, math.inf),
        ({"WATCHDOG_USEC": "soon"}, math.inf),
        ({"WATCHDOG_USEC": "0"}, math.inf),
    ],
)
def test_the_watchdogs_period(environ: dict[str, str], seconds: float) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/systemd/notify", **environ}, 77).watchdog == seconds


def test_without_a_manager_nothing_is_said_and_one_that_is_gone_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "trioproxy")
    nobody().ready("")
    Notifier({"NOTIFY_SOCKET": "vsock:2:1"}, 1).ready("")
    assert caplog.records == []
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}, 1)
    notifier.ready("")
    notifier.ready("")
    assert len(caplog.records) == 1
