"""Jumps of the wall clock are noticed. Time is Trio's jumping clock."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.certs.making import DAY, acme_site, bundle, internal_site
from tests.certs.world import WallClock, world
from trioproxy.certs.jumps import LOOK_EVERY, watch_clock

Jumping = trio.testing.MockClock

NAME = "cloud.example.com"
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("by", "words"),
    [(70 * DAY, "+70 days"), (-2 * DAY, "-2 days"), (900 * SECOND, "+0:15:00"), (-6 * SECOND, "-0:00:06")],
)
async def test_a_jump_is_told_once_and_soon(
    by: timedelta, words: str, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = WallClock()
    jumps: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_clock, clock, lambda: jumps.append(trio.current_time()))
        await trio.sleep(3600)
        assert jumps == []
        clock.jump(by)
        before = trio.current_time()
        await trio.sleep(3600)
        nursery.cancel_scope.cancel()
    assert len(jumps) == 1
    assert jumps[0] <= before + LOOK_EVERY
    assert f"the clock has jumped by {words}: " in caplog.text


async def test_clocks_that_drift_apart_do_not_jump(autojump_clock: Jumping) -> None:
    clock = WallClock()
    jumps: list[float] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_clock, clock, lambda: jumps.append(trio.current_time()))
        for _ in range(1000):
            await trio.sleep(LOOK_EVERY)
            clock.jump(SECOND)
        nursery.cancel_scope.cancel()
    assert jumps == []


@pytest.mark.usefixtures("no_threads")
async def test_the_manager_looks_at_once(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, bundle(NAME))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        nursery.start_soon(watch_clock, w.clock, w.manager.clock_jumped)  # as the server does it
        await trio.sleep(60)
        assert w.authority.orders == []
        w.clock.jump(70 * DAY)
        await trio.sleep(LOOK_EVERY + 5)
        assert w.serial(NAME) == w.newest(NAME)
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("no_threads")
async def test_what_was_made_while_the_clock_was_ahead_is_made_anew(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, internal_site(NAME))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        nursery.start_soon(watch_clock, w.clock, w.manager.clock_jumped)
        await trio.sleep(1)
        w.clock.jump(2 * DAY)  # as a machine that starts with a wrong clock
        first = w.serial(NAME)
        await trio.sleep(60)
        assert w.serial(NAME) == first
        w.clock.jump(-2 * DAY)
        await trio.sleep(LOOK_EVERY + 5)
        second = w.source.served[NAME].leaf
        assert second.serial == w.serial(NAME) != first
        assert second.not_before <= w.clock()
        await trio.sleep(60)
        assert w.serial(NAME) == second.serial, "once is enough"
        nursery.cancel_scope.cancel()
