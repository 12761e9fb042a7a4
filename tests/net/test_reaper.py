"""The reaper: many that have waited too long do not end in the same moment."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import MockClock

from trioproxy.errors import StreamError, StreamTimeout
from trioproxy.net.reaper import SPREAD, Reaper

LOOK = 2 * Reaper.PERIOD
"""Seconds after which everything is over that begins with one look."""


@attrs.define(eq=False)
class Overdue:
    """One that has waited too long until it is told, which `woken` notes with the time."""

    woken: list[float]
    since: float = -math.inf

    def overdue(self, now: float) -> bool:
        return self.since < now

    def interrupt(self, error: StreamError) -> None:
        assert isinstance(error, StreamTimeout)
        self.woken.append(trio.current_time())
        self.since = math.inf


@asynccontextmanager
async def looking(reaper: Reaper) -> AsyncIterator[float]:
    """The reaper at work; gives the time at which it began."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)  # noqa: ASYNC113 - it may begin whenever it likes
        yield trio.current_time()
        nursery.cancel_scope.cancel()


async def test_many_are_woken_one_by_one(autojump_clock: MockClock) -> None:
    woken: list[float] = []
    reaper = Reaper()
    reaper.watched.update(Overdue(woken) for _ in range(100))
    async with looking(reaper) as began:
        await trio.sleep(LOOK)
    assert len(woken) == len(set(woken)) == 100
    assert woken[0] == pytest.approx(began + reaper.PERIOD)
    assert woken[-1] == pytest.approx(began + reaper.PERIOD + reaper.PERIOD * SPREAD * 0.99)


async def test_the_next_look_does_not_wait_longer_for_that(autojump_clock: MockClock) -> None:
    woken: list[float] = []
    reaper = Reaper()
    reaper.watched.update(Overdue(woken) for _ in range(100))
    async with looking(reaper) as began:
        reaper.watched.add(Overdue(woken, began + reaper.PERIOD))
        await trio.sleep(LOOK + 0.1)
    assert woken[-1] == pytest.approx(began + 2 * reaper.PERIOD)


async def test_a_loop_that_is_busy_puts_nobody_off(mock_clock: MockClock) -> None:
    woken: list[float] = []
    reaper = Reaper()
    reaper.watched.update(Overdue(woken) for _ in range(1500))
    async with looking(reaper) as began:
        while len(woken) < 1500:
            mock_clock.jump(0.02)  # for which others kept the loop, in each of its turns
            await trio.lowlevel.checkpoint()
    assert woken[-1] < began + 3 * reaper.PERIOD


async def test_who_ends_or_moves_on_meanwhile_is_left_alone(autojump_clock: MockClock) -> None:
    woken: list[float] = []
    reaper = Reaper()
    crowd = [Overdue(woken) for _ in range(60)]
    reaper.watched.update(crowd)
    async with looking(reaper):
        await trio.sleep(reaper.PERIOD + reaper.PERIOD * SPREAD / 2)
        some = len(woken)
        assert 0 < some < 60
        reaper.watched.difference_update(crowd[::2])
        for one in crowd[1::2]:
            one.since = math.inf
        await trio.sleep(LOOK)
    assert len(woken) == some
