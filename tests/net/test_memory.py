"""When memory is short, how many connections there may be then, and that what is freed goes back."""

from __future__ import annotations

import os
import sys

import pytest
import trio
from trio.testing import MockClock

from tests.net.test_limits import Fake, shed_of
from trioproxy.net.limits import Admission, Shedder
from trioproxy.net.memory import (
    AT_LEAST,
    EVERY,
    FEWEST,
    FREED,
    GROWTH,
    LEAST_MARGIN,
    MIB,
    TAKEN,
    MemoryWatch,
    Pressure,
    give_back,
    resident,
)

LIMIT = 500 * MIB
HIGH = 450 * MIB


def pressed(connections: int = 1000) -> Pressure:
    """As it is once the memory nearly in use was seen."""
    pressure = Pressure()
    assert pressure.feel(HIGH, LIMIT, connections) == 0
    return pressure


# ---- deciding -----------------------------------------------------------------------------------------


def test_below_a_tenth_before_the_limit_there_is_room() -> None:
    pressure = Pressure()
    assert pressure.feel(HIGH - 1, LIMIT, 1000) == 0
    assert not pressure.felt
    assert pressure.ceiling == sys.maxsize
    assert pressed().ceiling == 1000


def test_a_small_limit_has_a_margin_that_is_none_the_smaller() -> None:
    pressure = Pressure()
    pressure.feel(64 * MIB - LEAST_MARGIN - 1, 64 * MIB, 1000)
    assert not pressure.felt
    pressure.feel(64 * MIB - LEAST_MARGIN, 64 * MIB, 1000)
    assert pressure.felt


def test_it_is_growth_that_is_answered_and_once() -> None:
    pressure = pressed()
    assert pressure.feel(HIGH + GROWTH - 1, LIMIT, 1000) == 0
    assert pressure.feel(HIGH + GROWTH, LIMIT, 1000) == GROWTH // FREED + 1
    assert pressure.ceiling == 1000 - (GROWTH // FREED + 1)
    assert [pressure.feel(HIGH + GROWTH, LIMIT, 983) for _ in range(10)] == [0] * 10
    assert pressure.feel(HIGH + 2 * GROWTH, LIMIT, 983) == GROWTH // FREED + 1


def test_what_comes_in_one_leap_is_answered_in_one() -> None:
    assert Pressure().feel(HIGH + 16 * MIB, LIMIT, 5000) == 16 * MIB // FREED + 1


def test_beyond_the_limit_some_go_each_time() -> None:
    pressure = pressed()
    assert pressure.feel(LIMIT + 1, LIMIT, 10_000) > AT_LEAST
    assert [pressure.feel(LIMIT + 1, LIMIT, 5000) for _ in range(3)] == [AT_LEAST] * 3


def test_a_limit_that_an_empty_process_passes_closes_no_door() -> None:
    pressure = Pressure()
    assert pressure.feel(2 * LIMIT, LIMIT, 0) == 0
    assert pressure.ceiling == FEWEST
    assert pressure.feel(2 * LIMIT, LIMIT, FEWEST + 10) == 10
    assert pressure.ceiling == FEWEST


def test_when_memory_comes_back_so_does_room() -> None:
    pressure = pressed(100)
    pressure.feel(HIGH - 10 * TAKEN, LIMIT, 90)
    assert pressure.ceiling == 100
    pressure.feel(HIGH - 100 * TAKEN, LIMIT, 90)
    assert pressure.ceiling == 190
    assert pressure.felt
    pressure.feel(400 * MIB - 1, LIMIT, 90)
    assert not pressure.felt


def test_a_limit_that_was_taken_away_is_no_more() -> None:
    pressure = pressed()
    assert pressure.feel(2 * LIMIT, None, 1000) == 0
    assert not pressure.felt


# ---- watching -----------------------------------------------------------------------------------------


async def test_new_ones_take_the_place_of_idle_ones_and_it_is_told_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await trio.sleep(1)
    idle = [Fake(0.0) for _ in range(3)]
    limit: list[int | None] = [LIMIT]
    door = Admission(Shedder((lambda: idle, 0)), lambda: limit[0])
    for _ in range(FEWEST):
        assert door.enter(10_000)
    for _ in range(5):
        door.memory.look(lambda: HIGH)
    assert shed_of(idle) == [False] * 3
    assert door.enter(10_000)
    assert shed_of(idle).count(True) == 1
    limit[0] = None  # a reload
    door.memory.look(lambda: HIGH)
    assert door.enter(10_000)
    assert shed_of(idle).count(True) == 1
    assert caplog.messages == [
        "450 MiB are in use with 64 connections, and limits.memory is 500: idle ones make room for new ones",
        "there is room for more connections again",
    ]


def test_what_nobody_would_miss_goes_too() -> None:
    asked: list[int] = []

    def relieve(count: int) -> int:
        asked.append(count)
        return count

    said: list[str] = []
    watch = MemoryWatch(lambda: LIMIT, lambda: 5000, relieve, lambda _, message: said.append(message))
    watch.look(lambda: LIMIT + MIB)
    assert asked == [51 * MIB // FREED + 1]
    assert said[1] == "501 MiB are in use with 5000 connections, and limits.memory is 500: idle ones are closed"
    spare = [7]
    assert Shedder(spare=lambda: spare.pop()).relieve(0) == 7


async def test_it_looks_by_itself() -> None:
    door = Admission(Shedder(), lambda: MIB)  # no process is as small as that
    async with trio.open_nursery() as nursery:
        nursery.start_soon(door.run)
        with trio.fail_after(20):
            while door.memory.ceiling > FEWEST:  # noqa: ASYNC110 - it tells nobody
                await trio.sleep(EVERY / 10)
        nursery.cancel_scope.cancel()


def test_what_was_freed_goes_back_to_the_kernel() -> None:
    statm = os.open("/proc/self/statm", os.O_RDONLY)
    try:
        blocks = [bytes(2000) for _ in range(20_000)]
        kept = blocks[::100]  # without these the heap would shrink by itself
        full = resident(statm)
        del blocks
        give_back()
        assert resident(statm) < full - 20 * MIB
        assert len(kept) == 200
    finally:
        os.close(statm)
