"""Notices that the wall clock has jumped: this machine was asleep, or somebody has set its clock.

Timers go by a clock that stands still while the machine sleeps, so what became due in the night would otherwise wait in
the morning until its timer has run out. Both clocks are compared every few seconds; what they drift apart is no jump.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

import trio

from trioproxy.certs.internal_ca import Clock

log = logging.getLogger("trioproxy.certs")

LOOK_EVERY = 10.0
"""Seconds."""

JUMP = timedelta(seconds=5)


async def watch_clock(clock: Clock, on_jump: Callable[[], None]) -> None:
    """Call `on_jump` within seconds whenever `clock` has jumped, until cancelled.

    Args:
        clock: The wall clock, UTC.
        on_jump: Must return at once.
    """
    start = clock() - timedelta(seconds=trio.current_time())
    while True:
        await trio.sleep(LOOK_EVERY)
        now = clock() - timedelta(seconds=trio.current_time())
        if abs(now - start) >= JUMP:
            log.info("the clock has jumped by %s: looking at once what is due now", _words(now - start))
            on_jump()
        start = now


def _words(jump: timedelta) -> str:
    """`+70 days`, `-0:15:00`."""
    size = str(timedelta(seconds=round(abs(jump).total_seconds()))).removesuffix(", 0:00:00")
    return f"{'-' if jump < timedelta() else '+'}{size}"
