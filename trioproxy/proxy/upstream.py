"""The backend's side of one exchange, whichever HTTP version it speaks: what `proxy.client.Client` is for the client's.

`pool` hands one out for each request. `exchange` asks by it, reads the answer from it, and hands it back; that behind
it stands a connection of its own (`upstream_h1`) or one stream of many (`upstream_h2`) it never learns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trioproxy.config.model import Route, Target, UpstreamTLS
from trioproxy.http.messages import End, Event, RequestHead
from trioproxy.http.rewriting import WrittenFields
from trioproxy.proxy.tunnel import Duplex


class Backend(NamedTuple):
    """A backend and the terms on which it is spoken to. Connections are shared only where all of this is equal.

    Attributes:
        scheme: As in `Target`, and so are the next two.
        host: Its host, or the path of its socket.
        port: Its port.
        tls: What it must prove; None without TLS.
        header: The PROXY header with which its connections begin, which speaks for one client; b"" for none.
    """

    scheme: str
    host: str
    port: int
    tls: UpstreamTLS | None
    header: bytes

    @classmethod
    def of(cls, target: Target, route: Route, header: bytes) -> Backend:
        """One of a route's backends."""
        return cls(target.scheme, target.host, target.port, route.tls if target.scheme == "https" else None, header)

    def for_anyone(self) -> Backend:
        """The same without the client: what fails for one will fail for all."""
        return self._replace(header=b"")

    def __str__(self) -> str:
        return str(Target(self.scheme, self.host, self.port))  # type: ignore[arg-type]  # a target's, once


class Asker(Protocol):
    """On whose behalf a backend is asked."""

    def left(self) -> bool:
        """Whether it has gone away; looked at once a second."""


class Upstream(Protocol):
    """One request's way to a backend.

    Attributes:
        backend: Whom it leads to.
    """

    backend: Backend

    @property
    def unsent(self) -> bytes | memoryview:
        """What `ask` could not send at once."""

    def ask(
        self, request: RequestHead, target: bytes, fields: WrittenFields, body: Sequence[bytes | End], asker: Asker
    ) -> None:
        """Send the head, and what of the body is there, as far as that needs no waiting.

        What goes wrong with the backend here shows in `receive`: it may have answered (413, say) and closed.

        Args:
            request: The client's request; of it only method, `body_length` and `upgrade` count.
            target: The request target.
            fields: As `Rewriter` writes them.
            body: The first pieces of the body, possibly to its end.
            asker: When it leaves, `receive` raises ClientLeft.

        Raises:
            UpstreamProtocolError: the backend said something before it was asked.
        """

    async def flush(self) -> None:
        """Send what is `unsent`. Never fails, as `ask`."""

    async def send(self, piece: bytes | End) -> bool:
        """Send a piece of the body. False if the backend takes no more; why shows in `receive`."""

    def next(self) -> Event | None:
        """The next event of the response, as `http.h1.ResponseReader.next`; None when `receive` must be called first.

        Raises:
            UpstreamError: the response is none.
        """

    def whole(self) -> bytes | None:
        """After the final head: the response's body, if nothing else of it is to come, not even trailers.

        `next` gives nothing of it any more. None when the body must be had from `next`.
        """

    async def receive(self) -> None:
        """Wait until more of the response has come. Whatever `next` gave before must have been passed on or kept.

        Raises:
            Unanswered: there will be no response, and there was nothing of one.
            UpstreamTimeout: the backend was silent for too long.
            UpstreamError: it failed otherwise.
            ClientLeft: nobody waits for the response any more.
        """

    def expect(self, seconds: float) -> None:
        """From now on the backend may be silent for at most this long."""

    def hand_over(self) -> Duplex:
        """After a 101: the bytes both ways, what came behind it included. The asker is looked at no more."""

    def done(self, *, keep: bool) -> None:
        """The exchange is over. Call it once, whatever happened.

        Args:
            keep: Request and response have come to their ends, and another exchange may follow here.
        """
