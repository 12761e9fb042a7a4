"""The gate between orders and a change of the account's key."""

from __future__ import annotations

import trio
import trio.testing

from trioproxy.acme.gate import Gate


class Visits:
    """Who goes in and out, in order."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.seen: list[str] = []

    async def together(self, name: str, leave: trio.Event) -> None:
        async with self.gate.together():
            self.seen.append(f"{name} in")
            await leave.wait()
            self.seen.append(f"{name} out")

    async def alone(self, name: str, leave: trio.Event) -> None:
        async with self.gate.alone():
            self.seen.append(f"{name} in")
            await leave.wait()
            self.seen.append(f"{name} out")


async def test_who_goes_alone_waits_for_those_inside_and_keeps_others_out() -> None:
    visits, leave, done = Visits(), trio.Event(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(visits.together, "a", leave)
        nursery.start_soon(visits.together, "b", leave)
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(visits.seen) == ["a in", "b in"]
        assert visits.gate.inside == 2
        nursery.start_soon(visits.alone, "x", done)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(visits.alone, "y", done)
        nursery.start_soon(visits.together, "c", done)
        await trio.testing.wait_all_tasks_blocked()
        assert len(visits.seen) == 2
        leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert visits.seen[4:] == ["x in"]
        done.set()
    assert visits.seen[5] == "x out"
    assert "".join(visits.seen[6:]) in {"y iny outc inc out", "c inc outy iny out"}


async def test_who_gives_up_waiting_leaves_the_gate_open() -> None:
    visits, leave = Visits(), trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(visits.together, "a", leave)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await visits.alone("x", leave)
        nursery.start_soon(visits.together, "b", leave)
        await trio.testing.wait_all_tasks_blocked()
        assert visits.seen == ["a in", "b in"]
        leave.set()
    with trio.fail_after(1):
        await visits.alone("y", leave)
