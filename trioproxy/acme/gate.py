"""A gate through which many go side by side, or one alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Gate:
    """Who goes alone waits for those who are inside, and whoever comes then waits until that is over."""

    def __init__(self) -> None:
        self._inside = 0
        self._left = trio.Event()
        self._alone: trio.Event | None = None

    @property
    def inside(self) -> int:
        """How many are."""
        return self._inside

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        """Be inside, with others, as long as the block runs."""
        while self._alone is not None:
            await self._alone.wait()
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1
            self._left.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be inside, and nobody else, as long as the block runs."""
        while self._alone is not None:
            await self._alone.wait()
        mine = self._alone = trio.Event()
        try:
            while self._inside:
                self._left = trio.Event()
                await self._left.wait()
            yield
        finally:
            self._alone = None
            mine.set()
