"""The reaper: many that have waited too long do not end in the same moment."""

from __future__ import annotations

import math

import attrs
import trio

from trioproxy.errors import StreamError
from trioproxy.net.reaper import AT_ONCE, Reaper


class Quick(Reaper):
    PERIOD = 0.01


@attrs.define(eq=False)
class Overdue:
    """One that has waited too long until it is told; `turns` notes when that was."""

    turns: list[int]
    turn: list[int]
    since: float = -math.inf

    def overdue(self, now: float) -> bool:
        return self.since < now

    def interrupt(self, error: StreamError) -> None:
        self.turns.append(self.turn[0])
        self.since = math.inf


async def test_others_have_their_turn_while_many_are_woken() -> None:
    reaper = Quick()
    turns: list[int] = []
    turn = [0]
    reaper.watched.update(Overdue(turns, turn) for _ in range(10 * AT_ONCE))

    async def other() -> None:
        while True:
            turn[0] += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)
        nursery.start_soon(other)
        with trio.fail_after(5):
            while len(turns) < 10 * AT_ONCE:  # noqa: ASYNC110
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert max(map(turns.count, turns)) <= 2 * AT_ONCE  # the two take turns in any order
    assert len(set(turns)) >= 5


async def test_who_ends_or_moves_on_meanwhile_is_left_alone() -> None:
    reaper = Quick()
    turns: list[int] = []
    turn = [0]
    crowd = [Overdue(turns, turn) for _ in range(6 * AT_ONCE)]
    reaper.watched.update(crowd)

    async def others_go() -> None:
        while not turns:  # noqa: ASYNC110
            await trio.lowlevel.checkpoint()
        reaper.watched.difference_update(crowd[::2])
        for one in crowd[1::2]:
            one.since = math.inf

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others_go)
        nursery.start_soon(reaper.run)
        with trio.move_on_after(0.2):
            await trio.sleep_forever()
        nursery.cancel_scope.cancel()
    assert AT_ONCE <= len(turns) <= 2 * AT_ONCE
