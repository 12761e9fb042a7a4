"""The client's side of one exchange, whichever HTTP version it speaks; the backend's is `proxy.upstream.Upstream`.

An error that is answered with a page (RequestError, UpstreamError) may carry header `fields` for that answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from trioproxy.config.model import HostPort
from trioproxy.http.messages import End, Header, Headers, ResponseHead
from trioproxy.proxy.upstream import Upstream
from trioproxy.witness.records import Exchange


class Client(Protocol):
    """What `exchange` asks of it. The writing half collects, and sends when told to `flush`.

    Attributes:
        started: Whether the final response's head has been handed over; after that no error page can be sent.
        record: What the witness will be told of this exchange.
        own_fields: What every error page says to it.
    """

    started: bool
    record: Exchange
    own_fields: Sequence[Header]

    def ready(self) -> bytes | End | None:
        """The next piece of the request's body if it is here already; None if it would have to be waited for.

        Not to be asked of a request whose `body_length` is 0: that is whole with its head.

        Raises:
            RequestError: the body breaks the framing it announced.
        """

    async def receive(self) -> bytes | End:
        """The next piece of the request's body. Raises as `ready`, and StreamError when the client is lost."""

    def bear(self, idle: float) -> None:
        """During this exchange it may stop sending or reading for `idle` seconds, and not for as long as usual here."""

    def left(self) -> bool:
        """Whether the client has gone away, so that nobody waits for the response."""

    def local(self) -> HostPort:
        """The address and port on our side of its connection. Raises ConnectionLost."""

    def informational(self, head: ResponseHead) -> None:
        """Pass on a 1xx response."""

    def start(self, head: ResponseHead) -> None:
        """Begin the response; `head` is as the backend sent it, but for a Location that was mapped back."""

    def body(self, data: bytes) -> None:
        """Add a piece of the response's body."""

    def end(self, trailers: Sequence[Header]) -> None:
        """End the response."""

    def pending(self) -> int:
        """Bytes collected and not yet sent."""

    async def flush(self) -> None:
        """Send what was collected. Raises StreamError when the client is lost."""

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Begin and end a response of our own."""

    async def tunnel(self, head: ResponseHead, upstream: Upstream, idle: float) -> None:
        """Pass on the backend's 101, then carry bytes both ways until either side is done or silent for `idle` s.

        `upstream.hand_over` has what the backend sends from then on.
        """
