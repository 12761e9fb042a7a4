"""Who has waited too long is woken: one task looks after everything that waits for a peer.

A cancel scope for every read would cost more than the read; `net/sock` tells what stands in its place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio
from trio.lowlevel import checkpoint

from trioproxy.errors import StreamError, StreamTimeout

SPREAD = 0.5
"""The part of a period over which those are woken that are overdue in the same look, one by one.

Each takes a part of a millisecond to end: good clients would wait for hundreds that end in one moment.
"""

BEHIND = 32
"""Those that are woken in one moment when the loop takes so long for other things that their turns are past."""


class Mortal(Protocol):
    """What the reaper looks after."""

    def overdue(self, now: float) -> bool:
        """Whether it has waited too long at the Trio time `now`."""

    def interrupt(self, error: StreamError) -> None:
        """Stop waiting, with this error."""


class Reaper:
    """Knows everything that waits for a peer, and wakes what has waited too long.

    Attributes:
        watched: All of that.
        now: Trio's time, by the shortest way: every wait asks for it.
    """

    PERIOD = 1.0

    def __init__(self) -> None:
        self.watched: set[Mortal] = set()
        self.now: Callable[[], float] = trio.current_time

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        self.now = trio.lowlevel.current_clock().current_time
        now = self.now()
        while True:
            await trio.sleep_until(now + self.PERIOD)
            now = self.now()
            late = [mortal for mortal in self.watched if mortal.overdue(now)]
            for position, mortal in enumerate(late):
                turn = now + self.PERIOD * SPREAD * position / len(late)
                if turn > self.now():
                    await trio.sleep_until(turn)
                elif position % BEHIND == 0:  # the loop is busy, and slower than that: limits are limits
                    await checkpoint()
                if mortal in self.watched and mortal.overdue(now):  # it has not ended or moved on meanwhile
                    mortal.interrupt(StreamTimeout("no progress in time"))
