"""A job that survives its bugs, and can pause."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from trioproxy.life.keeper import PAUSE, Keeper


class Work:
    """Something that goes on until it is cancelled, and takes its time to end."""

    def __init__(self) -> None:
        self.begun = 0
        self.at_it = False

    async def __call__(self) -> None:
        self.begun += 1
        self.at_it = True
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                await trio.sleep(1)
            self.at_it = False


async def test_when_the_pause_has_come_nothing_is_done_any_more(autojump_clock: trio.testing.MockClock) -> None:
    work = Work()
    keeper = Keeper(work)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.run)
        await trio.testing.wait_all_tasks_blocked()
        for times in (1, 2):
            assert (work.at_it, work.begun) == (True, times)
            await keeper.pause()
            assert not work.at_it
            await trio.sleep(2 * PAUSE)
            assert work.begun == times
            keeper.resume()
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_pause_before_it_has_begun(autojump_clock: trio.testing.MockClock) -> None:
    work = Work()
    keeper = Keeper(work)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.pause)
        nursery.start_soon(keeper.run)
        await trio.sleep(1)
        if work.at_it:  # it was the first of the two
            await trio.sleep(2)
        assert not work.at_it
        nursery.cancel_scope.cancel()


async def test_a_bug_ends_it_for_a_minute(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    begun = []

    async def stumble() -> None:
        begun.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        raise IndexError("a bug")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Keeper(stumble).run)
        await trio.sleep(PAUSE + 1)
        nursery.cancel_scope.cancel()
    assert [round(moment - begun[0]) for moment in begun] == [0, PAUSE]
    assert "a bug in the certificate manager" in caplog.text
