"""How many connections there may be, and which go first when there is no room for another.

A proxy that stops accepting when it is full serves whoever came first: a few clients that keep silent connections lock
out everybody. So when there is no room, the connection that has been idle for longest is closed for the new one; only
when none is idle is the new one turned away. Idle are connections kept alive without a request, and silent tunnels.
They are in many places (`Shedder` is handed functions that list them), and they are looked through only when there is
need: no connection pays for being found.

Memory that runs out is a lack of room like any other: `net/memory` tells how many connections there is room for.

What happens ten thousand times is said once: `Tally`.
"""

from __future__ import annotations

import functools
import logging
import resource
import sys
from collections import deque
from collections.abc import Callable, Iterable
from heapq import nsmallest
from ipaddress import ip_network
from typing import Protocol

import trio

from trioproxy.errors import ConnectionShed, StreamError
from trioproxy.net.memory import MemoryWatch

log = logging.getLogger("trioproxy.limits")

CANDIDATES = 256
"""Idle connections that one search finds; the next ones that must go are taken from these."""

FRUITLESS = 0.25
"""Seconds for which a search that found nothing is not repeated: with 10,000 busy connections it takes milliseconds."""

AT_ONCE = 64
"""Connections closed at once when descriptors have run out."""

SAME_IN_A_ROW = 50
"""Connections in a row from one address, after which it is worth a look whether that hides all clients."""

SPARE_DESCRIPTORS = 1024
"""Beside two for each connection: listeners, pipes, idle connections to backends, files."""


class Tally:
    """Says at once what happens first, and once a minute how often it happened besides."""

    MINUTE = 60.0

    def __init__(self) -> None:
        self._more: dict[str, int] = {}  # by kind, since it was told last
        self._quiet: set[str] = set()  # kinds that did not happen in the last minute

    def note(self, kind: str, message: str) -> None:
        """Something of this kind has happened; `message` is told at the first time, and at the first after a while."""
        if kind in self._more:
            self._more[kind] += 1
        else:
            self._more[kind] = 0
            log.warning("%s", message)

    async def run(self) -> None:
        """Sum up every minute, until cancelled."""
        while True:
            await trio.sleep(self.MINUTE)
            quiet = {kind for kind, more in self._more.items() if not more}
            for kind, more in self._more.items():
                if more:
                    log.warning("%s: %d more in the last minute", kind, more)
            self._more = {kind: 0 for kind in self._more if kind not in quiet & self._quiet}
            self._quiet = quiet


class Idle(Protocol):
    """A connection that may be idle."""

    @property
    def idle_since(self) -> float | None:
        """The Trio time since when nothing has come; None when that says nothing, because it waits for nobody."""

    def interrupt(self, error: StreamError) -> None:
        """End it with this error, in its own task."""


class Shedder:
    """Closes idle connections to make room.

    Args:
        groups: Functions that list connections, each with the seconds for which those must have been idle.
        spare: Closes what nobody would miss, and says how many connections that were.
    """

    def __init__(
        self, *groups: tuple[Callable[[], Iterable[Idle]], float], spare: Callable[[], int] = lambda: 0
    ) -> None:
        self.tally = Tally()
        self._groups = groups
        self._spare = spare
        self._candidates: deque[tuple[float, Idle]] = deque()  # longest idle first
        self._search_at = 0.0

    def shed(self, count: int = 1) -> int:
        """Close the `count` connections that have been idle for longest; returns how many there were.

        Each ends in its own task, so its descriptor is free only when that has run.
        """
        done = 0
        while done < count and (idle := self._next()) is not None:
            idle.interrupt(ConnectionShed("idle, and closed to make room"))
            done += 1
        return done

    def relieve(self, count: int) -> int:
        """The same for want of memory: what nobody would miss goes besides."""
        return self._spare() + self.shed(count)

    def make_room(self) -> int:
        """Descriptors have run out: close what can be closed. Returns how many connections that were."""
        return self._spare() or self.shed(AT_ONCE)

    def _next(self) -> Idle | None:
        now = trio.current_time()
        while True:
            while self._candidates:
                since, idle = self._candidates.popleft()
                if idle.idle_since == since:  # it has not moved since the search
                    return idle
            if now < self._search_at:
                return None
            self._candidates.extend(self._search(now))
            if not self._candidates:
                self._search_at = now + FRUITLESS
                return None

    def _search(self, now: float) -> list[tuple[float, Idle]]:
        found = (
            (since, idle)
            for members, spared in self._groups
            for idle in members()
            if (since := idle.idle_since) is not None and since <= now - spared
        )
        return nsmallest(CANDIDATES, found, key=lambda pair: pair[0])


class Admission:
    """Counts clients' connections, in all and by address, and says who is let in.

    Args:
        shedder: Makes room when there are too many.
        memory: The bytes that this process may take now; None for as many as there are.

    Attributes:
        shedder: The same.
        memory: Tells how many connections there is memory for.
        possible: How many connections the process has descriptors for.
        in_a_row: How many connections have come from the same address, one after the other.
        suspect: The address behind which all clients seem to be hidden; "" while none is.
    """

    def __init__(self, shedder: Shedder, memory: Callable[[], int | None] = lambda: None) -> None:
        self.shedder = shedder
        self.possible = sys.maxsize
        self.in_a_row = 0
        self.suspect = ""
        self._open = 0
        self._by_address: dict[str, int] = {}
        self._last = ""
        self.memory = MemoryWatch(memory, lambda: self._open, shedder.relieve, shedder.tally.note)

    @property
    def open(self) -> int:
        """How many connections there are."""
        return self._open

    def enter(self, most: int) -> bool:
        """Another connection was accepted. Returns whether there is room for it; then `leave` must follow.

        Args:
            most: `limits.connections`.
        """
        if self._open >= min(most, self.possible, self.memory.ceiling):
            if self._open >= most or self._open >= self.possible:
                why = "limits.connections" if self._open >= most else "all that there are descriptors for"
                message = f"{self._open} connections are open, which is {why}: idle ones make room for new ones"
                self.shedder.tally.note("connections beyond limits.connections", message)
            if not self.shedder.shed():
                return False
        self._open += 1
        return True

    def leave(self) -> None:
        """A connection that was let in has ended."""
        self._open -= 1

    def introduce(self, host: str, most: int) -> str | None:
        """A connection that was let in is from `host`, by its socket or its PROXY header.

        Args:
            host: An address literal.
            most: `limits.connections_per_ip`.

        Returns:
            What to call `part` with when it ends; None if there are too many from there, and it must end now.
        """
        if host == self._last:
            self.in_a_row += 1
        else:
            self._last = host
            self.in_a_row = 1
        key = _network_of_one(host) if ":" in host else host
        count = self._by_address.get(key, 0)
        if count >= most:
            message = f"{key} has {count} connections open, which is limits.connections_per_ip: new ones are closed"
            self.shedder.tally.note("connections beyond limits.connections_per_ip", message)
            return None
        self._by_address[key] = count + 1
        return key

    def part(self, key: str) -> None:
        """A connection that was introduced has ended."""
        count = self._by_address[key] - 1
        if count:
            self._by_address[key] = count
        else:
            del self._by_address[key]

    async def run(self) -> None:
        """Look after memory, and tell once a minute what happened too often to be told each time, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.shedder.tally.run)
            nursery.start_soon(self.memory.run)


@functools.lru_cache(maxsize=4096)
def _network_of_one(host: str) -> str:
    """The /64 of an IPv6 address: whoever has one address of it has all of them."""
    return str(ip_network((host, 64), strict=False))


def descriptors_for(connections: int) -> int:
    """How many descriptors so many connections take at the most."""
    return 2 * connections + SPARE_DESCRIPTORS


def connections_within(descriptors: int) -> int:
    """How many connections there can be with so many descriptors."""
    return (descriptors - min(SPARE_DESCRIPTORS, descriptors // 4)) // 2


def raise_descriptor_limit(connections: int) -> int:
    """Allow this process the descriptors that so many connections take, or as many as it may have.

    Args:
        connections: `limits.connections`.

    Returns:
        How many connections there can be at once. Beyond that a client could be accepted whose backend could not be
        called any more.
    """
    wanted = descriptors_for(connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return connections
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == wanted:
        return connections
    possible = connections_within(allowed)
    log.warning(
        "limits.connections = %d takes up to %d descriptors, and this process may have %d, which is enough for %d "
        "connections: set LimitNOFILE= in its unit, or ulimit -n",
        connections,
        wanted,
        allowed,
        possible,
    )
    return possible
