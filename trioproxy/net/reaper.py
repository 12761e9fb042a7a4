"""Who has waited too long is woken: one task looks after everything that waits for a peer.

A cancel scope for every read would cost more than the read; `net/sock` tells what stands in its place.
"""

from __future__ import annotations

from typing import Protocol

import trio
from trio.lowlevel import checkpoint

from trioproxy.errors import StreamError, StreamTimeout

AT_ONCE = 8
"""What is woken in one moment. Each takes a part of a millisecond to end, and good clients would wait for hundreds."""


class Mortal(Protocol):
    """What the reaper looks after."""

    def overdue(self, now: float) -> bool:
        """Whether it has waited too long at the Trio time `now`."""

    def interrupt(self, error: StreamError) -> None:
        """Stop waiting, with this error."""


class Reaper:
    """Knows everything that waits for a peer, and wakes what has waited too long."""

    PERIOD = 1.0

    def __init__(self) -> None:
        self.watched: set[Mortal] = set()

    async def run(self) -> None:
        """Look once a second, until cancelled."""
        while True:
            await trio.sleep(self.PERIOD)
            now = trio.current_time()
            woken = 0
            for mortal in [m for m in self.watched if m.overdue(now)]:
                if mortal not in self.watched or not mortal.overdue(now):  # it has ended or moved on meanwhile
                    continue
                mortal.interrupt(StreamTimeout("no progress in time"))
                woken += 1
                if woken % AT_ONCE == 0:
                    await checkpoint()
