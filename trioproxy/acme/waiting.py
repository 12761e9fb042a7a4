"""Waiting for a CA that has not finished, or that has passing trouble, until a deadline."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from trioproxy.acme.problems import passing
from trioproxy.errors import AcmeError

FIRST_PAUSE = 0.25
LAST_PAUSE = 5.0
GROWTH = 1.6
"""Seconds between two looks at what the CA has not finished, where it does not name a time itself."""

T = TypeVar("T")


class OrderUnfinished(AcmeError):
    """The CA works on the order for longer than we wait."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message, "unfinished", retry_after=retry_after)


@attrs.define
class Pauses:
    """Waits between two looks at the same thing, ever longer, and never shorter than the CA wishes.

    Attributes:
        deadline: Trio's time by which the next look has to come.
    """

    deadline: float
    _next: float = FIRST_PAUSE

    async def pause(self, wish: float | None, because: AcmeError | None = None) -> None:
        """Wait once.

        Args:
            wish: Seconds that the CA asks for.
            because: Is raised where the next look would come too late; OrderUnfinished for None.
        """
        seconds = max(self._next, wish or 0.0)
        if trio.current_time() + seconds >= self.deadline:
            if because is not None:
                raise because
            raise OrderUnfinished("the CA has not finished in time", wish)
        await trio.sleep(seconds)
        self._next = min(self._next * GROWTH, LAST_PAUSE)


async def persist(ask: Callable[[], Awaitable[T]], deadline: float) -> T:
    """Ask until passing trouble has passed; what stays is raised, and so is what does not pass before `deadline`."""
    pauses = Pauses(deadline)
    while True:
        try:
            return await ask()
        except AcmeError as exc:
            if not passing(exc):
                raise
            await pauses.pause(exc.retry_after, exc)
