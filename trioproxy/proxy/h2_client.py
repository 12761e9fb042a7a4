"""One stream of an HTTP/2 connection: `proxy.client.Client` for its exchange, and bytes both ways for a WebSocket.

Nothing here sends. What an exchange says is queued in the codec; `flush` rings the connection's one writer, which
collects what all streams have said by then, and an exchange whose client does not take what was said waits there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs

from trioproxy.config.model import HostPort, Timeouts
from trioproxy.errors import (
    ConnectionLost,
    RequestError,
    StreamError,
    StreamTimeout,
    UpstreamError,
    UpstreamProtocolError,
)
from trioproxy.http.h2 import STREAM_WINDOW, Code, ServerCodec
from trioproxy.http.headers import clean_trailers, error_page, response_headers_h2
from trioproxy.http.messages import END, End, Header, Headers, RequestHead, ResponseHead
from trioproxy.http.upgrade import accepted_upgrade, websocket_accept, websocket_key
from trioproxy.proxy.bell import Bell
from trioproxy.proxy.context import ProxyContext
from trioproxy.proxy.failure import blame, told
from trioproxy.proxy.tunnel import tunnel
from trioproxy.proxy.upstream import Upstream
from trioproxy.witness.records import Exchange

SMALL = 16 * 1024
"""Bytes of a piece of body that is joined with what waits already: many small frames must not cost more than few."""

_KEY = b"sec-websocket-key"


_SILENT = Bell()
"""Rings for nobody: most exchanges never wait for their client, and need no bell of their own."""


class Shared(Protocol):
    """What the streams of a connection share."""

    codec: ServerCodec
    ctx: ProxyContext
    timeouts: Timeouts
    local: Callable[[], HostPort]
    """See `Client.local`."""
    ring: Callable[[], None]
    """Something was queued for the writer."""
    stuck: set[H2Client]
    """Those that wait until the writer has sent what they queued."""

    def over(self, client: H2Client) -> None:
        """The exchange is over, and no task knows of it."""

    def wake(self, client: H2Client) -> None:
        """It takes a task to go on."""


class H2Client:
    """`proxy.client.Client` for one exchange over HTTP/2.

    Attributes:
        stream: The stream's number.
        request: What is asked.
        record: See `Client`.
        started: The final response's head was handed over.
        finished: The response is whole, as far as it is known here.
        complete: Whether the request has come to its end.
        lost: The stream is gone, or of no use any more.
    """

    # Most requests leave these as they are, and setting them would cost each of them a microsecond.
    started = False
    finished = False
    complete = True
    lost = False
    own_fields: Sequence[Header] = ()
    _taken = 0  # bytes handed out last, and passed on when the next are asked for
    _bodiless = False
    _untold = 0  # whether a head waits for the writer to be rung
    _left: int | None = None  # bytes of a response whose length is known, still to come
    _error: StreamError | None = None
    _idle: float | None = None  # seconds that the client may take nothing, where its route says so
    _body_bell = _SILENT
    _answer_bell = _SILENT
    _end: End | None = END
    _missing: int | None = 0  # bytes of a body whose length is known, not yet handed out
    _patience: float | None = None  # seconds that the client may be silent, if not as long as usual
    _heard = True  # since the last look: something came
    _silent_since = 0.0
    _moved = False  # since the last look: what was queued has left, and more was queued
    _queued = 0
    _queued_since = 0.0

    def __init__(self, shared: Shared, stream: int, request: RequestHead, record: Exchange, *, ended: bool) -> None:
        self.stream = stream
        self.request = request
        self.record = record
        self._shared = shared
        self._pieces: list[bytes | bytearray] = []
        if not ended:
            self.complete = False
            self._end = None
            self._missing = request.body_length

    # ---- what the connection's reader tells ---------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """A piece of the request's body has come."""
        pieces = self._pieces
        if pieces and len(data) < SMALL:
            last = pieces[-1]
            if isinstance(last, bytearray):
                last += data
            else:
                pieces[-1] = bytearray(last) + data
        else:
            pieces.append(data)
        self._heard = True
        self._body_bell.ring()

    def feed_end(self, end: End) -> None:
        """The request is whole."""
        self.complete = True
        self._end = end
        self._body_bell.ring()

    def lose(self, error: StreamError) -> None:
        """The stream is gone: whoever waits for it, or will, gets this error."""
        self.lost = True
        self.interrupt(error)

    @property
    def deceptive(self) -> bool:
        """Whether the request says that it has no body, and leaves open whether one comes."""
        return self._missing == 0 and self._end is None and self.request.upgrade is None

    def look(self, now: float) -> None:
        """To be called each second: gives the stream up when its client has been silent, or took nothing, too long."""
        usual = self._shared.timeouts.idle
        queued = self._shared.codec.queued(self.stream)
        if not queued or queued != self._queued or self._moved:
            self._moved = False
            self._queued = queued
            self._queued_since = now
        elif now - self._queued_since > (usual if self._idle is None else self._idle):
            self.give_up(Code.CANCEL, StreamTimeout("the client takes no more of the response"))
        if self._heard or not (self._body_bell.awaited or self.deceptive):
            self._heard = False
            self._silent_since = now
        elif now - self._silent_since > (usual if self._patience is None else self._patience):
            silence = StreamTimeout("nothing came from the client in time")
            if self.deceptive:  # so nobody works for it
                self.give_up(Code.CANCEL, silence)
            else:
                self.interrupt(silence)

    def give_up(self, code: Code, error: StreamError) -> None:
        """Break the stream off."""
        self._shared.codec.reset(self.stream, code)
        self._shared.ring()
        self.lose(error)

    # ---- the request's body -------------------------------------------------------------------------

    def ready(self) -> bytes | End | None:
        """See `Client.ready`."""
        if self._taken:
            self._shared.codec.consumed(self.stream, self._taken)
            self._shared.ring()
            self._taken = 0
        if not self._pieces:
            return self._end
        data = bytes(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        self._pieces.clear()
        if self._missing is not None:
            if self._end is None and len(data) >= self._missing:
                # An HTTP/1.1 backend would hold the request for whole, and here more may follow than was announced.
                self._pieces.append(data[-1:])
                data = data[:-1]
            self._missing -= len(data)
        self._taken = len(data)
        return data or None

    async def receive(self) -> bytes | End:
        """See `Client.receive`."""
        while (piece := self.ready()) is None:
            if self._error is not None:
                raise self._error
            if self._body_bell is _SILENT:
                self._body_bell = Bell()
            await self._body_bell.wait()
        return piece

    def bear(self, idle: float) -> None:
        """See `Client.bear`."""
        self._patience = self._idle = idle

    def left(self) -> bool:
        """See `Client.left`."""
        return self.lost

    def local(self) -> HostPort:
        """See `Client.local`."""
        return self._shared.local()

    # ---- the response -------------------------------------------------------------------------------

    def informational(self, head: ResponseHead) -> None:
        """See `Client.informational`."""
        ctx = self._shared.ctx
        fields, _ = response_headers_h2(head, self.request, pseudonym=ctx.pseudonym, date=ctx.dates.now())
        try:
            self._shared.codec.inform(self.stream, head.status, fields)
        except ValueError as exc:
            raise UpstreamProtocolError(str(exc)) from exc
        self._untold = 1

    def start(self, head: ResponseHead) -> None:
        """See `Client.start`.

        Raises:
            UpstreamProtocolError: a field that HTTP/1 lets pass and HTTP/2 does not.
        """
        ctx = self._shared.ctx
        fields, whole = response_headers_h2(head, self.request, pseudonym=ctx.pseudonym, date=ctx.dates.now())
        try:
            self._shared.codec.respond(self.stream, head.status, fields, end=whole)
        except ValueError as exc:
            raise UpstreamProtocolError(str(exc)) from exc
        self.started = True
        self._untold = 1
        self.record.status = head.status
        self.finished = self._bodiless = whole
        if head.http_version != (2, 0):  # where trailers may follow a body whose length was told
            self._left = head.body_length

    def body(self, data: bytes) -> None:
        """See `Client.body`."""
        if self._bodiless:
            return
        if self._left is not None:
            self._left -= len(data)
            self.finished = self._left == 0
        self._moved = True
        self._shared.codec.body(self.stream, data, end=self.finished)

    def end(self, trailers: Sequence[Header]) -> None:
        """See `Client.end`. Raises as `start`."""
        if self.finished:
            return
        try:
            self._shared.codec.end(self.stream, clean_trailers(trailers) if trailers else ())
        except ValueError as exc:
            raise UpstreamProtocolError(str(exc)) from exc
        self.finished = True

    def pending(self) -> int:
        """See `Client.pending`. A head counts as 1, until the writer was told of it."""
        return self._untold + self._shared.codec.queued(self.stream)

    async def flush(self) -> None:
        """See `Client.flush`: waits until the writer has taken what was queued, but for the end of a response.

        Raises:
            StreamError: the client gave the stream up, or takes nothing.
        """
        if not self.finished:
            self._untold = 0
            self._shared.ring()
        while self._error is None and not self.finished and self._shared.codec.queued(self.stream):
            if self._answer_bell is _SILENT:
                self._answer_bell = Bell()
            self._shared.stuck.add(self)
            await self._answer_bell.wait()
        if self._error is not None:
            raise self._error

    def sent(self) -> None:
        """The writer has sent something, perhaps what `flush` waits for."""
        if not self._answer_bell.awaited:
            self._shared.stuck.discard(self)
        elif not self._shared.codec.queued(self.stream):
            self._shared.stuck.discard(self)
            self._answer_bell.ring()

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Client.answer`."""
        self.start(ResponseHead(status, b"", headers, body_length=len(body)))
        if body and not self._bodiless:
            self.record.sent = len(body)
            self.body(body)

    def fail(self, error: RequestError | UpstreamError) -> None:
        """Answer with the error's status and a small page."""
        headers, page = error_page(error.status, told(error))
        headers += (*error.fields, *self.own_fields)
        self.answer(error.status, headers, page)

    # ---- without a task: see `Patron` -----------------------------------------------------------------

    def send(self) -> bool:
        """See `Patron.send`: the writer does it."""
        self._shared.ring()
        return not self.lost

    def over(self) -> None:
        """See `Patron.over`."""
        if self._error is not None:  # so there was nobody any more to be told
            blame(self.record, self._error)
        self._shared.over(self)

    def wake(self) -> None:
        """See `Patron.wake`."""
        self._shared.wake(self)

    # ---- a WebSocket --------------------------------------------------------------------------------

    async def tunnel(self, head: ResponseHead, upstream: Upstream, idle: float) -> None:
        """See `Client.tunnel`; the backend's 101 becomes the 200 of RFC 8441 section 5."""
        accepted_upgrade(head.headers, self.request.upgrade)
        key = next(value for name, value in self.request.headers if name == _KEY)
        if [value for name, value in head.headers if name == b"sec-websocket-accept"] != [websocket_accept(key)]:
            raise UpstreamProtocolError("101 with a Sec-WebSocket-Accept that is none")
        fields = [field for field in head.headers if field[0] not in (b"sec-websocket-accept", b"upgrade")]
        self.start(attrs.evolve(head, status=200, headers=fields, body_length=None))
        self._missing = None
        self._shared.ring()
        await tunnel(self, upstream.hand_over(), idle, self.record)
        if not self.finished:
            self.give_up(Code.CANCEL, ConnectionLost("one side of the tunnel was lost"))

    async def receive_some(self) -> bytes:
        """See `Duplex.receive_some`."""
        piece = await self.receive()
        return piece if isinstance(piece, bytes) else b""

    async def send_all(self, data: bytes) -> None:
        """See `Duplex.send_all`."""
        for start in range(0, len(data), STREAM_WINDOW):
            self.body(data[start : start + STREAM_WINDOW])
            await self.flush()

    def send_eof(self) -> None:
        """See `Duplex.send_eof`."""
        self.end(())
        self._shared.ring()

    def expect(self, seconds: float) -> None:
        """See `Duplex.expect`."""
        self._patience = seconds
        self._heard = True

    def interrupt(self, error: StreamError | None = None) -> None:
        """See `Duplex.interrupt`."""
        if self._error is None:
            self._error = error or ConnectionLost("closed by us")
        self._body_bell.ring()
        self._answer_bell.ring()


def as_websocket(request: RequestHead) -> RequestHead:
    """An extended CONNECT as the handshake that an HTTP/1.1 backend knows: with a key, which is ours.

    Raises:
        RequestError: 501, a protocol other than WebSocket.
    """
    if request.upgrade != b"websocket":
        raise RequestError("a :protocol that is not spoken here", 501)
    headers = [field for field in request.headers if field[0] != _KEY]
    headers.append((_KEY, websocket_key(os.urandom(16))))
    request.headers = headers
    return request
