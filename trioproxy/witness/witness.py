"""The one who is told what happens on connections, and tells all who listen: access log, metrics, `trace`.

Whoever tells says what happened and no more. With nobody listening that costs a call and an empty loop.
"""

from __future__ import annotations

from trioproxy.wire.client_hello import ClientHello
from trioproxy.witness.records import Exchange, Passage, Phase


class Listener:
    """Hears what happens. Methods are called in the middle of things, so they neither wait nor fail.

    A connection is told by its number, and its client by the address without the port.
    """

    def opened(self, connection: int, client: str, scheme: str) -> None:
        """A connection was let in, on the port of "https" or of "http"."""

    def named(self, connection: int, client: str, hello: ClientHello, name: str) -> None:
        """On port 443: its ClientHello was read, and led to the entry `name`."""

    def refused(self, connection: int, client: str, name: str, reason: str) -> None:
        """On port 443: its ClientHello was refused. `name` is the one it asked for, "" if none can be told."""

    def handshake(self, connection: int, client: str, name: str, protocol: str, seconds: float, outcome: str) -> None:
        """A TLS handshake for the site `name` has ended.

        `protocol` is what ALPN chose, "" for nothing; `outcome` is `records.DONE`, or what went wrong.
        """

    def under_way(self, exchange: Exchange, phase: Phase) -> None:
        """A request has got so far. Only followers hear of it: what is not over yet is of no use to a count."""

    def exchange(self, exchange: Exchange) -> None:
        """A request is over."""

    def passing(self, connection: int, client: str, name: str, backend: object) -> None:
        """A connection goes through to `backend` from now on."""

    def passage(self, passage: Passage) -> None:
        """A connection that was to be passed through is over."""

    def closed(self, connection: int) -> None:
        """A connection that was `opened` has ended."""


class Witness:
    """Tells all `listeners`; see `Listener` for what each call says.

    Attributes:
        listeners: Who wants to know. Replaced as a whole, as the next one is.
        followers: Those of them who also want to know of what is not over yet. Mostly there are none, and whoever
            could tell them looks first.
    """

    __slots__ = ("followers", "listeners")

    def __init__(self, *listeners: Listener) -> None:
        self.listeners: tuple[Listener, ...] = listeners
        self.followers: tuple[Listener, ...] = ()

    def add(self, listener: Listener) -> None:
        """`listener` hears what happens from now on."""
        self.listeners = (*self.listeners, listener)

    def follow(self, listener: Listener) -> None:
        """`listener` hears what happens from now on, also of what is not over yet."""
        self.add(listener)
        self.followers = (*self.followers, listener)

    def remove(self, listener: Listener) -> None:
        """`listener` hears no more."""
        self.listeners = tuple(other for other in self.listeners if other is not listener)
        self.followers = tuple(other for other in self.followers if other is not listener)

    def opened(self, connection: int, client: str, scheme: str) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.opened(connection, client, scheme)

    def named(self, connection: int, client: str, hello: ClientHello, name: str) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.named(connection, client, hello, name)

    def refused(self, connection: int, client: str, name: str, reason: str) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.refused(connection, client, name, reason)

    def handshake(self, connection: int, client: str, name: str, protocol: str, seconds: float, outcome: str) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.handshake(connection, client, name, protocol, seconds, outcome)

    def under_way(self, exchange: Exchange, phase: Phase) -> None:
        """See `Listener`."""
        for follower in self.followers:
            follower.under_way(exchange, phase)

    def exchange(self, exchange: Exchange) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.exchange(exchange)

    def passing(self, connection: int, client: str, name: str, backend: object) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.passing(connection, client, name, backend)

    def passage(self, passage: Passage) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.passage(passage)

    def closed(self, connection: int) -> None:
        """See `Listener`."""
        for listener in self.listeners:
            listener.closed(connection)
