"""Names to addresses: asked for when they are needed, off the event loop, and kept for some seconds.

The system's resolver is asked (`getaddrinfo`), so /etc/hosts, mDNS and whatever else nsswitch.conf names count. It
blocks, for half a minute if the DNS servers are gone, so it runs in a thread. That thread belongs to nobody who waits
for it: whoever loses patience leaves, and the answer still comes to those who stay, and to those who come later. So
there is never more than one lookup for one name under way, however many connections want it and however soon they
give up, and a dead DNS server cannot use up the threads that other work needs.

The resolver tells no lifetimes of its answers. They are kept for a time so short that nobody notices (a container that
comes back at another address), and whoever finds out that an answer is wrong asks for a newer one.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import math
import socket
from collections.abc import Callable, Sequence
from itertools import chain, zip_longest
from typing import Protocol

import attrs
import trio
from trio.lowlevel import current_trio_token, start_thread_soon

log = logging.getLogger("trioproxy.resolve")

GOOD_FOR = 10.0
"""Seconds for which an answer is kept."""

BAD_FOR = 1.0
"""Seconds for which it is kept that a name has no address. Also the least age at which an answer is asked for anew."""

MAX_NAMES = 1024
"""Answers that are kept; the oldest goes when there are more."""

MAX_LOOKUPS = 32
"""Lookups under way at once, each a thread."""


@attrs.frozen
class Address:
    """An address to connect to; `scope` is the interface of an IPv6 link-local one."""

    host: str
    scope: int = 0

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def at(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """The address and `port` as sockets take them."""
        return (self.host, port, 0, self.scope) if self.scope else (self.host, port)


@attrs.frozen
class Answer:
    """What the resolver said about a name.

    Attributes:
        addresses: In the order in which it prefers them (RFC 6724); empty where there is a problem.
        problem: Why there are none.
        came: When it was said, in Trio time.
    """

    addresses: tuple[Address, ...]
    problem: str
    came: float

    def good_at(self, now: float) -> bool:
        """Whether one may still go by it."""
        return now < self.came + (GOOD_FOR if self.addresses else BAD_FOR)


class NoAddress(Exception):
    """A name that has no address, or whose address cannot be found out; the message says why."""


Lookup = Callable[[str], Sequence[Address]]
"""Asks for the addresses of a name, in a thread; raises NoAddress."""


class Result(Protocol):
    """How a lookup ended, as its thread hands it over."""

    def unwrap(self) -> Sequence[Address]:
        """Its value, or its exception raised."""


@functools.lru_cache(maxsize=4096)
def literal(host: str) -> Address | None:
    """The address that `host` spells out; None for a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return None
    return Address(host)


def look_up(name: str) -> list[Address]:
    """Ask the system. Blocks.

    Raises:
        NoAddress: it knows none.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror as exc:
        raise NoAddress(exc.strerror) from exc
    except (OSError, UnicodeError) as exc:  # no descriptors left; a label that no A-label can be
        raise NoAddress(str(exc)) from exc
    return [
        Address(str(where[0]).partition("%")[0], int(where[3]) if len(where) == 4 else 0)
        for family, *_, where in found
        if family in (socket.AF_INET, socket.AF_INET6)
    ]


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """The addresses with their families in turn, the preferred one first (RFC 8305 section 4)."""
    if not addresses:
        return []
    preferred = [a for a in addresses if a.family == addresses[0].family]
    others = [a for a in addresses if a.family != addresses[0].family]
    return [a for a in chain.from_iterable(zip_longest(preferred, others)) if a is not None]


class _Question:
    """A lookup under way, and then its answer."""

    __slots__ = ("answer", "answered")

    answer: Answer

    def __init__(self) -> None:
        self.answered = trio.Event()


class Resolver:
    """Asks, and keeps what it was told.

    Args:
        lookup: Who is asked.
    """

    def __init__(self, lookup: Lookup = look_up) -> None:
        self._lookup = lookup
        self._kept: dict[str, Answer] = {}  # the oldest first
        self._under_way: dict[str, _Question] = {}
        self._threads = trio.Semaphore(MAX_LOOKUPS)

    async def resolve(self, name: str, since: float = -math.inf) -> Answer:
        """What is known of `name`, or can be found out; an answer may say that it has no address.

        Args:
            name: A host name, not an address.
            since: Trio time; an answer that came before it will not do.
        """
        while True:
            if (kept := self._known(name, since)) is not None:
                return kept
            question = self._under_way.get(name)
            if question is None:
                await self._threads.acquire()
                if name in self._under_way or self._known(name, since):  # somebody else was faster
                    self._threads.release()
                    continue
                question = self._ask(name)
            await question.answered.wait()
            return question.answer

    def _known(self, name: str, since: float) -> Answer | None:
        kept = self._kept.get(name)
        return kept if kept is not None and kept.came >= since and kept.good_at(trio.current_time()) else None

    def forget(self, name: str) -> None:
        """Ask anew when somebody next wants to know."""
        self._kept.pop(name, None)

    def _ask(self, name: str) -> _Question:
        question = self._under_way[name] = _Question()
        loop = current_trio_token()

        def deliver(found: Result) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left who wanted to know
                loop.run_sync_soon(self._arrived, name, found)

        start_thread_soon(functools.partial(self._lookup, name), deliver, name=f"looking up {name}")
        return question

    def _arrived(self, name: str, found: Result) -> None:
        question = self._under_way.pop(name)
        self._threads.release()
        self._kept.pop(name, None)  # so that the new answer stands behind all others
        question.answer = self._kept[name] = _answer(name, found)
        if len(self._kept) > MAX_NAMES:
            del self._kept[next(iter(self._kept))]
        question.answered.set()


def _answer(name: str, found: Result) -> Answer:
    now = trio.current_time()
    try:
        addresses = tuple(interleaved(list(dict.fromkeys(found.unwrap()))))
    except NoAddress as exc:
        return Answer((), str(exc), now)
    except Exception:
        log.exception("a bug in trioproxy: %s cannot be looked up", name)
        return Answer((), "a bug in trioproxy, see the log", now)
    return Answer(addresses, "" if addresses else "it has no address", now)
