"""Tells functions that something has come, where waking a task for it would cost more than what is to be done.

A task that waits for a socket takes some two hundred lines of Trio's each time: it is registered, put to sleep, found,
put in the queue, and entered again through all the calls that it sleeps in. Here a socket is registered once, with a
function that is called whenever there is something to read. Such a function does not wait, and belongs to a task that
sleeps meanwhile: what cannot be done at once is that task's to do, so it is woken for the rest.

What comes stays readable until it is read, and is told of again until then (the epoll is level-triggered). So whoever
does not want to read for a while has to `forget`.
"""

from __future__ import annotations

import logging
import select
from collections.abc import Callable

from trio.lowlevel import wait_readable

from trioproxy.errors import ConnectionLost
from trioproxy.net.raw import words
from trioproxy.net.sock import Stream

log = logging.getLogger("trioproxy.net")

BATCH = 64
"""Events that are told of before other tasks have their turn."""

_COMING = select.EPOLLIN | select.EPOLLRDHUP


class Watch:
    """One epoll, and the functions that are told. `run` must be running while `listen` is used."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._heeds: dict[int, Callable[[], None]] = {}
        self._forget = self.forget  # made once, for every stream that is watched keeps it

    def listen(self, stream: Stream, heed: Callable[[], None]) -> None:
        """Have `heed` called whenever `stream` can be read, or has ended, until `forget`. It should not raise.

        Raises:
            ConnectionLost: the kernel refuses, for its watches are used up; or `run` has ended.
        """
        descriptor = stream.fileno()
        if descriptor not in self._heeds:
            try:
                self._epoll.register(descriptor, _COMING)
            except (OSError, ValueError) as exc:  # ValueError: it has ended, or the stream is closed
                raise ConnectionLost(f"it cannot be watched: {words(exc)}") from exc
        self._heeds[descriptor] = heed
        stream.unwatch = self._forget

    def forget(self, stream: Stream) -> None:
        """Tell nobody of `stream` any more. Its `close` does so, whoever calls it: the descriptor will be another's."""
        self._drop(stream.fileno())
        stream.unwatch = None

    def _drop(self, descriptor: int) -> None:
        if self._heeds.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    async def run(self) -> None:
        """Tell them, until cancelled."""
        try:
            while True:
                await wait_readable(self._epoll.fileno())
                self._tell()
        finally:
            self._heeds.clear()
            self._epoll.close()

    def _tell(self) -> None:
        descriptor, heed = -1, None
        try:
            # Nobody is closed or accepted by others in between, so a descriptor is who it was, or has been forgotten.
            for descriptor, _ in self._epoll.poll(0, BATCH):
                if (heed := self._heeds.get(descriptor)) is not None:
                    heed()
        except Exception:  # which would end all connections: this one is left to its deadlines, others are told again
            log.exception("a bug in trioproxy: %r failed, and hears no more", heed)
            self._drop(descriptor)
