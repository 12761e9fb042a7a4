"""Keeps a job going that must not be done twice at the same time: it survives its bugs, and can pause."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

log = logging.getLogger("trioproxy.server")

PAUSE = 60
"""Seconds before the certificate manager is started again after a bug ended it."""


class Keeper:
    """Runs the certificate manager; a bug in it must not take the proxy down with it."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._scope = trio.CancelScope()
        self._paused = False
        self._resumed = trio.Event()
        self._at_rest = trio.Event()

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            self._at_rest = trio.Event()
            if not self._paused:
                with trio.CancelScope() as self._scope:
                    await self._go_on()
            self._at_rest.set()
            await self._resumed.wait()
            self._resumed = trio.Event()

    async def pause(self) -> None:
        """Stop working; returns when that has come about."""
        self._paused = True
        self._scope.cancel()
        await self._at_rest.wait()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._resumed.set()

    async def _go_on(self) -> None:
        while True:
            try:
                await self._work()
            except Exception:
                log.exception("a bug in the certificate manager; it starts again in %d s", PAUSE)
            await trio.sleep(PAUSE)
