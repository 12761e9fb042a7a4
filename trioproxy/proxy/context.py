"""What everything in `proxy` needs and nobody owns: one frozen value instead of a dozen parameters."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import attrs

from trioproxy.challenges import ChallengeBoard
from trioproxy.http.headers import Arrival, http_date
from trioproxy.net.dial import Dialler
from trioproxy.net.lan import Lan
from trioproxy.net.listen import Peer
from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper, Stream
from trioproxy.proxy.upstream import Pool
from trioproxy.routing import Entry, RouteTable
from trioproxy.snapshot import Cell


class Drain:
    """Tells connections that the server is stopping: the idle ones at once, the busy ones when they look."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: set[Stream] = set()

    def waiting(self, stream: Stream) -> None:
        """`stream` begins to wait for a next request, and may be interrupted without loss."""
        self._idle.add(stream)

    def busy(self, stream: Stream) -> None:
        """`stream` has something to do, or has ended."""
        self._idle.discard(stream)

    def begin(self) -> None:
        """From now on no connection waits for another request."""
        self.begun = True
        for stream in self._idle:
            stream.interrupt()


class Dates:
    """The value of Date, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._value = b""

    def now(self) -> bytes:
        """The present moment as Date wants it."""
        second = int(time.time())
        if second != self._second:
            self._second, self._value = second, http_date(second)
        return self._value


@attrs.frozen
class ProxyContext:
    """The parts of a running proxy.

    Attributes:
        cell: The current snapshot.
        board: Live challenge answers.
        reaper: Looks after every stream.
        pump: Moves the bytes of passthrough connections.
        dialler: Connects to backends, and remembers their addresses and troubles.
        pool: Idle connections to the backends of sites.
        drain: Whether the server is stopping.
        pseudonym: Our name in Via, unlike that of any other proxy, so that a loop to ourselves shows.
        lan: The networks that this machine is on.
        numbers: Tell connections apart, together with the pseudonym.
    """

    cell: Cell
    board: ChallengeBoard
    reaper: Reaper
    pump: Pump
    dialler: Dialler
    pool: Pool
    drain: Drain
    pseudonym: bytes
    lan: Lan = attrs.field(factory=Lan)
    numbers: Iterator[int] = attrs.field(factory=itertools.count)
    dates: Dates = attrs.field(factory=Dates)


@attrs.frozen
class Visit:
    """One client connection to a site, as far as its requests need to know.

    Attributes:
        peer: The client.
        arrival: What backends are told about where it came from.
        entry: What its server name led to; None on port 80, where each request names its own.
        by_default: It came without a name, or by `*`: it may then ask for any authority that is configured nowhere.
    """

    peer: Peer
    arrival: Arrival
    entry: Entry | None
    by_default: bool

    def may_ask_for(self, name: str, routes: RouteTable) -> bool:
        """Whether a request for `name` belongs on this connection; if not: 421 (RFC 9110 section 15.5.20)."""
        configured = routes.configured(name)
        if configured is None:
            return self.by_default
        return self.entry is not None and configured.name == self.entry.name and type(configured) is type(self.entry)
