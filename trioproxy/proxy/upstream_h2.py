"""One stream of a connection to a backend that speaks HTTP/2: `proxy.upstream.Upstream` for one exchange.

Nothing here touches the socket. What is sent is queued in the codec, and the connection's writer is rung (`multiplex`);
what comes is kept here until it is asked for. The task of the exchange waits for its bell, which rings for an event, an
error, or room to send.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from trioproxy.errors import (
    ClientLeft,
    ConnectionLost,
    RequestError,
    StreamError,
    StreamTimeout,
    TrioproxyError,
    Unanswered,
    UpstreamError,
    UpstreamTimeout,
)
from trioproxy.http.h2 import STREAM_WINDOW, ClientCodec, Code
from trioproxy.http.messages import END, End, RequestHead, ResponseHead
from trioproxy.http.rewriting import WrittenFields
from trioproxy.http.upgrade import websocket_accept
from trioproxy.proxy.bell import Bell
from trioproxy.proxy.tunnel import Duplex
from trioproxy.proxy.upstream import Asker, Backend

_KEY = b"sec-websocket-key"


class Shared(Protocol):
    """What the streams of a connection share (`multiplex.H2Connection`)."""

    backend: Backend
    codec: ClientCodec
    idle_since: float | None
    streams: dict[int, H2Upstream]
    stuck: set[H2Upstream]
    write_patience: float
    ring: Callable[[], None]
    """Something was queued for the writer."""

    def distrust(self) -> None:
        """Give the connection no further requests."""


class H2Upstream:
    """`proxy.upstream.Upstream` over one stream."""

    # Most requests leave these as they are, or set them once.
    _number = 0
    _error: TrioproxyError | None = None  # told when what came before it was read
    _asker: Asker | None = None
    _later = False  # it is not the first request of its connection
    _started = False
    _ended = False  # the response has
    _sent_end = False
    _closed = False
    _taken = 0  # bytes handed out since `receive` was called last
    _patience = math.inf
    _silent_since = 0.0
    _queued = 0  # bytes, while `send` waits
    _send_by = math.inf
    _websocket_key: bytes | None = None  # of a client that asks for one

    def __init__(self, connection: Shared) -> None:
        self.backend = connection.backend
        self._connection = connection
        self._events: deque[ResponseHead | bytes | End] = deque()
        self._bell = Bell()
        self._sent_bell = Bell()

    # ---- see `Upstream` ----------------------------------------------------------------------------------

    unsent = b""  # the connection's writer sees to all that is said

    def ask(
        self, request: RequestHead, target: bytes, fields: WrittenFields, body: Sequence[bytes | End], asker: Asker
    ) -> None:
        """See `Upstream.ask`."""
        connection, codec = self._connection, self._connection.codec
        method, protocol, headers = request.method, b"", fields.headers
        if request.upgrade is not None:
            method, protocol = b"CONNECT", request.upgrade
            self._websocket_key = next((value for name, value in headers if name == _KEY), b"")
            headers = [field for field in headers if field[0] not in (_KEY, b"content-length")]
            body = ()
        bodiless = len(body) == 1 and isinstance(body[0], End) and not body[0].trailers
        scheme = b"http" if self.backend.tls is None else b"https"
        try:
            self._number = codec.request(
                method, scheme, request.authority, target, headers, end=bodiless, protocol=protocol
            )
        except ValueError as exc:
            raise RequestError(str(exc)) from exc
        except UpstreamError as exc:
            raise Unanswered(f"{self.backend}: {exc}", untouched=True) from exc
        connection.streams[self._number] = self
        connection.idle_since = None
        self._later = self._number > 1
        self._asker = asker
        self._sent_end = bodiless
        if len(body) == 2 and isinstance(body[0], bytes) and body[1] == END:
            self._sent_end = True
            codec.body(self._number, body[0], end=True)  # in one frame, as most calls of gRPC are
        elif not bodiless:
            for piece in body:
                self._queue(piece)
        connection.ring()

    async def flush(self) -> None:
        """See `Upstream.flush`."""

    def _queue(self, piece: bytes | End) -> None:
        codec = self._connection.codec
        if not isinstance(piece, End):
            codec.body(self._number, piece)
            return
        self._sent_end = True
        try:
            codec.end(self._number, piece.trailers)
        except ValueError as exc:
            raise RequestError(str(exc)) from exc

    async def send(self, piece: bytes | End) -> bool:
        """See `Upstream.send`."""
        connection = self._connection
        if self._gone:
            return False
        self._queue(piece)
        connection.ring()
        while not self._gone and connection.codec.queued(self._number) > STREAM_WINDOW:
            self._queued = connection.codec.queued(self._number)
            self._send_by = trio.current_time() + connection.write_patience
            connection.stuck.add(self)
            try:
                await self._sent_bell.wait()
            finally:
                connection.stuck.discard(self)
                self._send_by, late = math.inf, self._send_by < trio.current_time()
            if late:
                return False
        return not self._gone

    @property
    def _gone(self) -> bool:
        """Whether what is sent reaches nobody, or nobody who still answers."""
        return self._ended or self._closed or self._error is not None

    def next(self) -> ResponseHead | bytes | End | None:
        """See `Upstream.next`."""
        if not self._events:
            return None
        event = self._events.popleft()
        if isinstance(event, bytes):
            self._taken += len(event)
        return event

    def whole(self) -> bytes | None:
        """See `Upstream.whole`."""
        events = self._events
        if not self._ended or not 1 <= len(events) <= 2 or events[-1] != END:
            return None
        body = self.next() if len(events) == 2 else b""
        events.clear()
        return body if isinstance(body, bytes) else None

    async def receive(self) -> None:
        """See `Upstream.receive`."""
        if self._taken:
            self._connection.codec.consumed(self._number, self._taken)
            self._connection.ring()
            self._taken = 0
        self._silent_since = trio.current_time()
        while not self._events:
            if self._ended:
                raise UpstreamError(f"{self.backend}: the stream has ended")
            if self._error is not None:
                raise self._error
            await self._bell.wait()

    def expect(self, seconds: float) -> None:
        """See `Upstream.expect`."""
        self._patience = seconds
        self._silent_since = trio.current_time()

    def hand_over(self) -> Duplex:
        """See `Upstream.hand_over`."""
        self._asker = None
        return _Tunnel(self)

    def done(self, *, keep: bool) -> None:  # noqa: ARG002 - the stream ends in any case
        """See `Upstream.done`."""
        self._asker = None
        if self._number and not self._closed and not (self._ended and self._sent_end):
            self._connection.codec.reset(self._number, Code.CANCEL)
        elif self._taken:
            self._connection.codec.consumed(self._number, self._taken)
        self._connection.ring()

    def send_end(self) -> None:
        """End our direction. Never fails."""
        if not self._gone and not self._sent_end:
            self._queue(END)
            self._connection.ring()

    # ---- what the connection tells -----------------------------------------------------------------------

    def feed_head(self, head: ResponseHead) -> None:
        """A head of the response has come."""
        self._started = True
        if self._websocket_key is not None and 200 <= head.status < 300:
            head = self._switched(head, self._websocket_key)
        self.feed(head)

    def _switched(self, head: ResponseHead, key: bytes) -> ResponseHead:
        """The answer to an extended CONNECT as HTTP/1.1 has it, which is what `Client.tunnel` is given."""
        fields = [field for field in head.headers if field[0] not in (b"content-length", b"sec-websocket-accept")]
        fields += [(b"upgrade", b"websocket"), (b"sec-websocket-accept", websocket_accept(key))]
        return ResponseHead(101, b"Switching Protocols", fields, head.http_version)

    def feed(self, event: ResponseHead | bytes | End) -> None:
        """Something of the response has come."""
        self._events.append(event)
        self._silent_since = trio.current_time()
        if isinstance(event, End):
            self._ended = True
        self._bell.ring()

    def closed(self, code: int) -> None:
        """The stream is gone."""
        self._closed = True
        if self._ended:
            self._sent_bell.ring()  # and `receive` waits for nothing any more
        elif code in (Code.REFUSED_STREAM, Code.HTTP_1_1_REQUIRED) and not self._started:
            self.fail(Unanswered(f"{self.backend}: it took no more requests on this connection", untouched=True))
        else:
            self.fail(UpstreamError(f"{self.backend}: it broke the stream off ({named(code)})"))

    def lose(self, reason: str) -> None:
        """The connection has ended."""
        self._closed = True
        kind = Unanswered if self._later and not self._started else UpstreamError
        self.fail(kind(f"{self.backend}: {reason}"))

    def fail(self, error: TrioproxyError) -> None:
        """Whoever waits for it, or will, gets this error."""
        if self._error is None:
            self._error = error
        self._bell.ring()
        self._sent_bell.ring()

    def sent(self) -> None:
        """The writer has sent something, perhaps what `send` waits for."""
        if self._connection.codec.queued(self._number) < self._queued:
            self._sent_bell.ring()

    def look(self, now: float) -> None:
        """To be called each second."""
        if self._asker is not None and self._asker.left():
            self.fail(ClientLeft("the client left before the response was through"))
        elif self._bell.awaited and now - self._silent_since > self._patience:
            self._connection.distrust()
            self.fail(UpstreamTimeout(f"{self.backend}: no answer in time"))
        elif self._send_by < now:
            self._sent_bell.ring()


class _Tunnel:
    """Bytes both ways over a stream (RFC 8441)."""

    def __init__(self, upstream: H2Upstream) -> None:
        self._upstream = upstream
        self.expect = upstream.expect

    async def receive_some(self) -> bytes:
        upstream = self._upstream
        while (event := upstream.next()) is None:
            try:
                await upstream.receive()
            except UpstreamTimeout as exc:
                raise StreamTimeout(str(exc)) from exc
            except UpstreamError as exc:
                raise ConnectionLost(str(exc)) from exc
        return event if isinstance(event, bytes) else b""

    async def send_all(self, data: bytes) -> None:
        if not await self._upstream.send(data):
            raise ConnectionLost(f"{self._upstream.backend}: the stream is gone")

    def send_eof(self) -> None:
        self._upstream.send_end()

    def interrupt(self, error: StreamError | None = None) -> None:
        self._upstream.fail(error or ConnectionLost("closed by us"))


def named(code: int) -> str:
    """The name of an error code."""
    try:
        return Code(code).name
    except ValueError:
        return f"error {code}"
