"""`trioproxy trace`: which entry a name leads to, and what happens to it from then on."""

from __future__ import annotations

import difflib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

from trioproxy.config.model import CATCH_ALL
from trioproxy.control import Endless, Tell
from trioproxy.errors import ControlError, InvalidName
from trioproxy.life.hands import Hands
from trioproxy.names import normalise
from trioproxy.proxy.context import ProxyContext
from trioproxy.snapshot import Cell
from trioproxy.witness.tracing import Event, Tracer

MOST = 2000
"""Events that a worker keeps until it is asked for them."""

TURN = 0.2
"""Seconds between two questions to all workers."""

FORGOTTEN = 10.0
"""Seconds after which a worker that is not asked for a trace any more takes it to be over."""


def tracing(cell: Cell, hands: Hands) -> Endless:
    """What the control socket carries out for `trioproxy trace`."""

    async def trace(arguments: dict[str, Any], tell: Tell) -> None:
        dropped = 0

        def tell_or_count(event: Event) -> None:
            nonlocal dropped
            if dropped and tell({"phase": "dropped", "events": dropped}):
                dropped = 0
            if dropped or not tell(event):
                dropped += 1

        await hands.follow(_entry(cell, str(arguments["name"])), tell_or_count)

    return Endless(trace)


def _entry(cell: Cell, name: str) -> str:
    """The entry that `name` leads to, "" for `*`, which is all of them.

    Raises:
        ControlError: it leads nowhere.
    """
    if name == CATCH_ALL:
        return ""
    config = cell.current.config
    names = (*config.sites, *config.passthrough)
    if name in names:  # as `*.apps.myname.com`
        return name
    try:
        entry, _ = cell.current.entry_for(normalise(name))
    except InvalidName:
        entry = None
    if entry is None:
        near = difflib.get_close_matches(name, names, 1)
        raise ControlError(f"{name} is configured nowhere{f'; did you mean {near[0]}?' if near else ''}")
    return entry.name


def begin(ctx: ProxyContext, name: str, tell: Callable[[Event], None]) -> Tracer:
    """Tell what happens to the entry `name`, or "" for all, until the tracer is removed from the witness of `ctx`."""

    def leads_to(asked_for: str) -> str:
        entry, _ = ctx.cell.current.entry_for(asked_for)
        return entry.name if entry else ""

    tracer = Tracer(tell, name, leads_to)
    ctx.witness.follow(tracer)
    return tracer


async def gather(
    ask_all: Callable[[], Awaitable[Sequence[dict[str, Any]]]], name: str, tell: Callable[[Event], None]
) -> None:
    """Tell what happens to an entry in several workers, which keep it until they are asked; until cancelled.

    Args:
        ask_all: Has each answer as `Gathering.take`.
        name: The entry, or "" for all.
        tell: Is handed each event.
    """
    await ask_all()
    tell({"phase": "following", "name": name})
    while True:
        await trio.sleep(TURN)
        answers = await ask_all()
        events: list[Event] = [event for answer in answers for event in answer["events"]]
        for event in sorted(events, key=lambda event: event["time"]):
            tell(event)
        if dropped := sum(answer["dropped"] for answer in answers):
            tell({"phase": "dropped", "events": dropped})


@attrs.define
class _Gathered:
    """One trace in a worker."""

    tracer: Tracer
    events: deque[Event]
    asked: float
    dropped: int = 0


class Gathering:
    """The traces of a worker, which keeps what has happened until its supervisor asks for it."""

    def __init__(self, ctx: ProxyContext) -> None:
        self._ctx = ctx
        self._traces: dict[int, _Gathered] = {}

    async def take(self, message: dict[str, Any]) -> dict[str, Any]:
        """What has happened since the last time; at the first time a trace begins.

        Args:
            message: `trace`, a number of the supervisor's, and `name`.

        Returns:
            `events`, and how many had to be left out as `dropped`.
        """
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        self._forget_before(now - FORGOTTEN)
        number = int(message["trace"])
        gathered = self._traces.get(number)
        if gathered is None:
            gathered = self._traces[number] = self._begin(str(message["name"]), now)
        events, dropped = list(gathered.events), gathered.dropped
        gathered.events.clear()
        gathered.dropped, gathered.asked = 0, now
        return {"events": events, "dropped": dropped}

    def _begin(self, name: str, now: float) -> _Gathered:
        events: deque[Event] = deque()

        def keep(event: Event) -> None:
            if len(events) < MOST:
                events.append(event)
            else:
                gathered.dropped += 1
                self._forget_before(trio.current_time() - FORGOTTEN)

        gathered = _Gathered(begin(self._ctx, name, keep), events, now)
        return gathered

    def _forget_before(self, moment: float) -> None:
        for number in [number for number, gathered in self._traces.items() if gathered.asked < moment]:
            self._ctx.witness.remove(self._traces.pop(number).tracer)
