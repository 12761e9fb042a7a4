"""How much memory the process takes, and how many connections there may be while that is nearly all that it may.

What counts is what the kernel says is resident. Closing connections lowers that late and never by all that they took:
memory that was given back is kept for whoever comes next, and part of it lies between what is still in use. Who closed
connections until the figure fell would close them all. So it is growth that counts. Near the limit there may be no more
connections than there are (`Pressure.ceiling`): each new one takes an idle one's place, and its memory. Only when that
does not hold the figure, because what stands takes more, more idle ones go.
"""

from __future__ import annotations

import functools
import logging
import os
import resource
import sys
from collections.abc import Callable

import trio

log = logging.getLogger("trioproxy.limits")

EVERY = 0.25
"""Seconds between looks at the memory in use, where it has a limit."""

SELDOM = 1.0
"""Seconds between looks whether it has got one."""

MIB = 1024**2

MARGIN = 10
"""The part of the limit, a tenth, before which it begins: bodies and handshakes under way still need some."""

LEAST_MARGIN = 8 * MIB
"""Bytes by which the process may grow between two looks: a thousand connections, or two hundred handshakes."""

FREED = 16 * 1024
"""Bytes that the end of an idle connection is taken to free: a tunnel's is 4 KiB, one with TLS 22."""

TAKEN = 64 * 1024
"""Bytes for which another connection surely has room."""

GROWTH = 256 * 1024
"""Bytes below which growth is noise, and how exactly the kernel counts."""

FEWEST = 64
"""Connections that there may be whatever they take: a limit below what an empty process needs closes no door."""

AT_LEAST = 64
"""Connections closed at each look while more is taken than may be."""


class Pressure:
    """Decides how many connections there may be, and how many are to go. It is handed what it goes by.

    Attributes:
        ceiling: How many there may be; `sys.maxsize` while memory is no reason to have fewer.
    """

    def __init__(self) -> None:
        self.ceiling = sys.maxsize
        self._answered = 0  # bytes: growth up to here has been answered

    @property
    def felt(self) -> bool:
        """Whether memory is short, or was a moment ago."""
        return self.ceiling < sys.maxsize

    def feel(self, used: int, limit: int | None, connections: int) -> int:
        """Take a look at what is in use.

        Args:
            used: Bytes that the process takes.
            limit: Bytes that it may take; None for as many as there are.
            connections: How many there are.

        Returns:
            How many idle ones are to be closed now.
        """
        if limit is None:
            self.ceiling = sys.maxsize
            return 0
        high = limit - margin(limit)
        if used < high:
            self._answered = high
            if self.felt:
                enough = used < high - margin(limit)
                self.ceiling = sys.maxsize if enough else max(self.ceiling, connections + (high - used) // TAKEN)
            return 0
        grown = used - max(self._answered, high)
        too_many = grown // FREED + 1 if grown >= GROWTH else 0
        if too_many:
            self._answered = used
        if used > limit:
            too_many = max(too_many, AT_LEAST)
        too_many = min(too_many, max(connections - FEWEST, 0))
        self.ceiling = max(min(self.ceiling, connections) - too_many, FEWEST)
        return too_many


def margin(limit: int) -> int:
    """Bytes before `limit` that are kept free of idle connections."""
    return max(limit // MARGIN, LEAST_MARGIN)


def resident(statm: int) -> int:
    """Bytes of this process that are in memory now, which takes 2 µs.

    Args:
        statm: A descriptor of /proc/self/statm. It is kept, for when memory is short descriptors may be, too.
    """
    return int(os.pread(statm, 128, 0).split()[1]) * resource.getpagesize()


def give_back() -> None:
    """Return to the kernel what the C library keeps of freed memory: a millisecond, some more if it is much.

    It would keep nearly all of it: only what lies at the end of its heap goes back by itself.
    """
    import ctypes  # most processes never have a need of it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


class MemoryWatch:
    """Keeps the memory of this process within its limit.

    Args:
        limit: Bytes that it may take now; None for as many as there are.
        connections: How many connections there are now.
        relieve: Closes so many idle ones, or as many as there are, and says how many that were.
        note: Is told what may happen often, with its kind.
    """

    def __init__(
        self,
        limit: Callable[[], int | None],
        connections: Callable[[], int],
        relieve: Callable[[int], int],
        note: Callable[[str, str], None],
    ) -> None:
        self._limit = limit
        self._connections = connections
        self._relieve = relieve
        self._note = note
        self._pressure = Pressure()
        self._relieved = 0

    @property
    def ceiling(self) -> int:
        """How many connections there may be."""
        return self._pressure.ceiling

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        try:
            statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            log.warning("limits.memory cannot be kept, for this system does not say what is in use: %s", exc)
            return
        try:
            while True:
                self.look(functools.partial(resident, statm))
                await trio.sleep(SELDOM if self._limit() is None else EVERY)
        finally:
            os.close(statm)

    def look(self, in_use: Callable[[], int]) -> None:
        """Look once, and have idle connections closed if need be.

        Args:
            in_use: Says how many bytes are in use.
        """
        limit, before = self._limit(), self._pressure.felt
        if limit is None and not before:
            return
        if self._relieved:  # they have ended since the last look
            give_back()
        used = in_use()
        connections = self._connections()
        count = self._pressure.feel(used, limit, connections)
        self._relieved = self._relieve(count) if count else 0
        if limit is None or not self._pressure.felt:
            if before:
                log.info("there is room for more connections again")
            return
        state = (
            f"{used / MIB:.0f} MiB are in use with {connections} connections, and limits.memory is {limit / MIB:.0f}"
        )
        if not before:
            self._note("memory nearly all in use", f"{state}: idle ones make room for new ones")
        if used > limit:
            self._note("more memory in use than limits.memory", f"{state}: idle ones are closed")
