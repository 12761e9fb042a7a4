"""What is said, or done, at most once in a while about each of many."""

from __future__ import annotations

from collections.abc import Hashable

MOST = 1000
"""Of whom is remembered when it was their turn; the oldest is forgotten, and has it again."""


class Seldom:
    """Knows when it was whose turn. The time is handed in.

    Args:
        pause: Seconds between two turns of one.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._last: dict[Hashable, float] = {}

    def due(self, whose: Hashable, now: float) -> bool:
        """Whether it is their turn; if so, it is taken."""
        last = self._last.get(whose)
        if last is not None and now < last + self._pause:
            return False
        self._last.pop(whose, None)
        self._last[whose] = now
        if len(self._last) > MOST:
            del self._last[next(iter(self._last))]
        return True
