"""What everything in `proxy` needs and nobody owns: one frozen value instead of a dozen parameters."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from time import perf_counter
from typing import Protocol

import attrs

from trioproxy.access import parse, within
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Config, Listen, Site, Timeouts
from trioproxy.http.forwarded import client_of
from trioproxy.http.headers import Arrival, http_date
from trioproxy.http.messages import RequestHead
from trioproxy.http.rewriting import Rewriter
from trioproxy.net.dial import Dialler
from trioproxy.net.lan import Lan
from trioproxy.net.limits import Admission, Idle, Shedder
from trioproxy.net.listen import Peer
from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.watch import Watch
from trioproxy.proxy.pool import Pool
from trioproxy.routing import Entry, RouteTable
from trioproxy.snapshot import Cell
from trioproxy.witness.records import Exchange
from trioproxy.witness.witness import Witness

REQUESTS_APART = 0.5
"""Seconds for which a kept-alive connection must have been idle to be closed for another: a client that is at work asks
again sooner, and would meet a connection that is being closed."""

TUNNEL_SPARED = 10.0
"""The same for a tunnel, whose end its users do notice."""


FIRST_WORD = 1.0
"""Seconds that a client that has just connected gets for its first request when the server stops. Its connection was
accepted, so the server that takes over never sees it."""


class Several(Idle, Protocol):
    """A connection that carries several requests at once, and ends when it has been told and they are through."""

    def drain(self) -> None:
        """Take no further requests."""


class Drain:
    """Tells connections that the server is stopping: the idle ones at once, the busy ones when they look.

    Attributes:
        begun: Whether it is stopping.
        idle: Those that wait for a next request, and may be interrupted without loss.
        fresh: Those that wait for their first: their clients have come to ask, and get a moment more.
        several: All that carry several at once (HTTP/2), idle or not: they are told, and know themselves when to end.
    """

    def __init__(self) -> None:
        self.begun = False
        self.idle: set[Stream] = set()
        self.fresh: set[Stream] = set()
        self.several: set[Several] = set()

    def begin(self) -> None:
        """From now on no connection waits for another request, and none for its first longer than `FIRST_WORD`."""
        self.begun = True
        for stream in self.fresh:
            stream.expect(FIRST_WORD)
        for stream in self.idle:
            stream.interrupt()
        for connection in self.several:
            connection.drain()


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
class Guest:
    """A connection on port 443 that was shown to its place.

    Attributes:
        peer: Its client, and the connection's number.
        entry: What its name led to, as it was configured then.
        since: `time.perf_counter()` when that was.
    """

    peer: Peer
    entry: Entry
    since: float


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
        tunnels: The clients of upgraded connections.
        admission: Counts connections, and makes room for new ones.
        lan: The networks that this machine is on.
        watch: Tells of what comes where no task waits for it.
        numbers: Tell connections on both ports apart, together with the pseudonym.
        guests: Every connection on port 443 that has found its entry, by its client's stream.
        witness: Is told what happens on connections.
    """

    cell: Cell
    board: ChallengeBoard
    reaper: Reaper
    pump: Pump
    dialler: Dialler
    pool: Pool
    drain: Drain
    pseudonym: bytes
    tunnels: set[Stream] = attrs.field(factory=set)
    admission: Admission = attrs.field()
    lan: Lan = attrs.field(factory=Lan)
    watch: Watch = attrs.field(factory=Watch)
    numbers: Iterator[int] = attrs.field(factory=lambda: itertools.count(1))
    dates: Dates = attrs.field(factory=Dates)
    guests: dict[Stream, Guest] = attrs.field(factory=dict)
    witness: Witness = attrs.field(factory=Witness)

    def __attrs_post_init__(self) -> None:
        self.dialler.make_room = self.admission.shedder.make_room

    @admission.default
    def _make_admission(self) -> Admission:
        return Admission(
            Shedder(
                (lambda: self.drain.idle, REQUESTS_APART),
                (lambda: self.drain.fresh, REQUESTS_APART),
                (lambda: self.drain.several, REQUESTS_APART),
                (lambda: self.tunnels, TUNNEL_SPARED),
                (self.pump.relays, TUNNEL_SPARED),
                spare=self.pool.close_idle,
            ),
            lambda: self.cell.current.config.limits.memory,
        )


def arrival(listen: Listen, peer: Peer, scheme: str, port: int) -> Arrival:
    """What backends are told about a connection from `peer`.

    Args:
        listen: Names the proxies whose own forwarding fields are believed.
        peer: Where it comes from.
        scheme: "https" or "http".
        port: The port that clients use from outside.
    """
    trusted = listen.trusted_proxies
    if trusted and not within(parse(peer.host), trusted):
        trusted = ()
    return Arrival(peer.host, scheme, port, trusted)


@attrs.define
class Visit:
    """One client connection to a site, as far as its requests need to know.

    Attributes:
        peer: The client.
        arrival: What backends are told about where it came from.
        entry: What its server name led to; None on port 80, where each request names its own.
        by_default: It came without a name, or by `*`: it may then ask for any authority that is configured nowhere.
        rewriter: Writes the fields of its requests for backends.
        found: What its last request led to: the routes of that moment, the authority, the site. The next one most
            likely asks for the same.
    """

    peer: Peer
    arrival: Arrival
    entry: Entry | None
    by_default: bool
    rewriter: Rewriter
    found: tuple[RouteTable, bytes, Site] | None = None

    def timeouts(self, config: Config) -> Timeouts:
        """What counts until a request's route is known: the site's own limits, where a name has led to one."""
        return self.entry.timeouts if isinstance(self.entry, Site) else config.timeouts

    def client(self, request: RequestHead) -> Peer:
        """Whom the log calls the client of `request`."""
        if not self.arrival.trusted:
            return self.peer
        return Peer(client_of(request, self.arrival), 0, self.peer.number)

    def record(self, request: RequestHead | None) -> Exchange:
        """What is to be told of a request that has just come, when it is over; None for one that was none."""
        peer, came = self.peer, self.arrival
        client = client_of(request, came) if came.trusted and request is not None else peer.host
        return Exchange(peer.number, client, came.scheme, perf_counter(), request)

    def may_ask_for(self, name: str, routes: RouteTable) -> bool:
        """Whether a request for `name` belongs on this connection; if not: 421 (RFC 9110 section 15.5.20)."""
        configured = routes.configured(name)
        if configured is None:
            return self.by_default
        return self.entry is not None and configured.name == self.entry.name and type(configured) is type(self.entry)
