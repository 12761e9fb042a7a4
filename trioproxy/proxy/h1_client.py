"""One exchange of an HTTP/1.1 connection: `proxy.client.Client` for it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trioproxy.config.model import HostPort
from trioproxy.errors import RequestError, StreamError, UpstreamError
from trioproxy.http.h1 import RequestReader, chunk_prefix, encode_last_chunk, encode_response_head
from trioproxy.http.headers import Framing, clean_trailers, error_page, reason_phrase, response_headers
from trioproxy.http.messages import End, Header, Headers, RequestHead, ResponseHead
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext
from trioproxy.proxy.failure import told
from trioproxy.proxy.tunnel import tunnel
from trioproxy.proxy.upstream import Upstream
from trioproxy.witness.records import Exchange


class H1Client:
    """`proxy.client.Client` for one exchange over HTTP/1.1.

    Attributes:
        started: The final response's head was handed over.
        closing: The connection ends after this response.
        broken: It ends now, with a reset.
        unsent: What was collected to be sent.
        record: See `Client`.
    """

    # Most requests leave these as they are, and setting them would cost each of them part of a microsecond.
    started = False
    closing = True  # until a request says otherwise
    broken = False
    _asked_all = False  # whether the request's end has been read
    own_fields: Sequence[Header] = ()
    _framing = Framing.EMPTY

    def __init__(self, ctx: ProxyContext, stream: Stream, reader: RequestReader, idle: float, record: Exchange) -> None:
        self.record = record
        self.unsent: list[bytes] = []
        self._ctx = ctx
        self._stream = stream
        self._reader = reader
        self._idle = idle
        self._request = request = record.request
        if request is not None:
            self.closing = not request.keep_alive
            self._asked_all = reader.over()

    @property
    def ends_by_closing(self) -> bool:
        """Whether nothing but the connection's end tells the client where the response ends (HTTP/1.0)."""
        return self._framing is Framing.UNTIL_CLOSE

    # ---- the request's body -------------------------------------------------------------------------

    def ready(self) -> bytes | End | None:
        """See `Client.ready`."""
        event = self._reader.next()
        if isinstance(event, End):
            self._asked_all = True
        elif isinstance(event, RequestHead):
            raise TypeError("the body was asked for after its end")
        return event

    async def receive(self) -> bytes | End:
        """See `Client.receive`."""
        self._stream.expect(self._idle)
        while (event := self.ready()) is None:
            data = await self._stream.receive_some()
            if data:
                self._reader.feed(data)
            else:
                self._reader.feed_eof()
        return event

    def bear(self, idle: float) -> None:
        """See `Client.bear`."""
        self._idle = self._stream.write_patience = idle

    def left(self) -> bool:
        """See `Client.left`."""
        return self._stream.left()

    def local(self) -> HostPort:
        """See `Client.local`."""
        return self._stream.local()

    def _skip_ready_body(self) -> None:
        """Read past a body that nobody wanted, as far as it is here already; if it is not, the connection must end."""
        try:
            while self.ready() is not None and not self._asked_all:
                pass
        except RequestError:
            pass
        if not self._asked_all:
            self.closing = True

    # ---- the response -------------------------------------------------------------------------------

    def informational(self, head: ResponseHead) -> None:
        """See `Client.informational`. HTTP/1.0 clients know of none (RFC 9110 section 15.2)."""
        if self._request is not None and self._request.http_version != (1, 0):
            self._add_head(head)

    def start(self, head: ResponseHead) -> None:
        """See `Client.start`."""
        self.started = True
        self.record.status = head.status
        if not self._asked_all:
            self._skip_ready_body()
        self.closing = self.closing or self._ctx.drain.begun
        self._framing = self._add_head(head)
        if self._framing is Framing.UNTIL_CLOSE:
            self.closing = True

    def _add_head(self, head: ResponseHead) -> Framing:
        if self._request is None:
            raise TypeError("a response to no request")
        headers, framing = response_headers(
            head, self._request, pseudonym=self._ctx.pseudonym, date=self._ctx.dates.now(), close=self.closing
        )
        self.unsent.append(encode_response_head(head.status, head.reason, headers))
        return framing

    def body(self, data: bytes) -> None:
        """See `Client.body`."""
        if self._framing is Framing.CHUNKED:
            self.unsent += (chunk_prefix(len(data)), data, b"\r\n")
        elif self._framing is not Framing.EMPTY:
            self.unsent.append(data)

    def end(self, trailers: Sequence[Header]) -> None:
        """See `Client.end`."""
        if self._framing is Framing.CHUNKED:
            self.unsent.append(encode_last_chunk(clean_trailers(trailers)))

    def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """See `Client.answer`."""
        self.start(ResponseHead(status, reason_phrase(status), headers, body_length=len(body)))
        if body and self._framing is not Framing.EMPTY:
            self.record.sent = len(body)
            self.body(body)

    def fail(self, error: RequestError | UpstreamError) -> None:
        """Answer with the error's status and a small page."""
        self._stream.resume()  # a deadline of the request's must not stand against its answer
        self._stream.deadline = math.inf
        headers, page = error_page(error.status, told(error))
        headers += (*error.fields, *self.own_fields)
        if self._request is None:  # its head was not understood, so neither is what follows it
            headers.append((b"connection", b"close"))
            self.record.status = error.status
            self.record.sent = len(page)
            self.unsent.append(encode_response_head(error.status, reason_phrase(error.status), headers) + page)
        else:
            self.answer(error.status, [h for h in headers if h[0] != b"content-length"], page)

    async def tunnel(self, head: ResponseHead, upstream: Upstream, idle: float) -> None:
        """See `Client.tunnel`."""
        self._add_head(head)  # or an error page, if the backend switched to what nobody asked for
        self.started = self.closing = True
        await self.flush()
        backend = upstream.hand_over()
        early = self._reader.rest()
        if early:
            await backend.send_all(early)
            self.record.count_received(len(early))
        self._ctx.tunnels.add(self._stream)
        try:
            await tunnel(self._stream, backend, idle, self.record)
        finally:
            self._ctx.tunnels.discard(self._stream)

    def pending(self) -> int:
        """See `Client.pending`."""
        return sum(map(len, self.unsent))

    def send_at_once(self) -> bool:
        """Send what the kernel takes now. Whether that was all of it; if the client was lost, `flush` tells."""
        if unsent := self.unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            try:
                sent = self._stream.send_at_once(data)
            except StreamError:
                return False
            if sent < len(data):
                self.unsent = [data[sent:]]
                return False
            unsent.clear()
        return True

    async def flush(self) -> None:
        """See `Client.flush`."""
        if unsent := self.unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            await self._stream.send_all(data)
