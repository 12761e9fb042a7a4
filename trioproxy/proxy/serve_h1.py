"""An HTTP/1.1 client connection: request after request, until one side has had enough."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

import trio

from trioproxy.config.model import HostPort
from trioproxy.errors import RequestError, ResponseAborted, StreamInterrupted, StreamTimeout, UpstreamError
from trioproxy.http.h1 import RequestReader, chunk_prefix, encode_last_chunk, encode_response_head
from trioproxy.http.headers import Framing, clean_trailers, error_page, reason_phrase, response_headers
from trioproxy.http.messages import End, Header, Headers, RequestHead, ResponseHead
from trioproxy.net.sock import Stream
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import FIRST_WORD, ProxyContext, Visit
from trioproxy.proxy.failure import blame, report, told
from trioproxy.proxy.tunnel import tunnel
from trioproxy.proxy.upstream import Upstream
from trioproxy.witness.records import Exchange

log = logging.getLogger("trioproxy.http")

Answer = Callable[[ProxyContext, Visit, RequestHead, Client], Awaitable[None]]
"""Answers one request, or raises RequestError, UpstreamError, ResponseAborted or StreamError."""


async def serve_h1(ctx: ProxyContext, stream: Stream, visit: Visit, answer: Answer) -> None:
    """Serve requests on `stream` with `answer`, one after the other.

    Returns when the connection is done; the caller closes it. Raises StreamError when the client was lost.
    """
    config = ctx.cell.current.config
    timeouts = visit.timeouts(config)
    reader = RequestReader(config.limits)
    patience, first = timeouts.header, True
    while True:
        stream.write_patience = timeouts.idle
        try:
            request = await _next_request(ctx, stream, reader, patience, timeouts.header, first=first)
        except RequestError as exc:
            log.info("%s: refused: %s", visit.peer, exc)
            client = H1Client(ctx, stream, reader, timeouts.idle, visit.record(None))
            blame(client.record, exc)
            client.fail(exc)
            request = None
        else:
            if request is None:
                return
            client = H1Client(ctx, stream, reader, timeouts.idle, visit.record(request))
        try:
            if request is not None:
                await _answer(ctx, visit, request, client, answer)
            if client.broken:
                stream.abort()
                return
            if client.unsent:
                await client.flush()
        except BaseException as exc:
            blame(client.record, exc)
            if client.ends_by_closing:  # then an ordinary end would make a part look like the whole
                stream.abort()
            raise
        finally:
            client.record.ended = perf_counter()
            ctx.witness.exchange(client.record)
        if client.closing:
            stream.send_eof()
            await stream.drain()
            return
        del client  # which an idle connection shall not keep
        patience, first = timeouts.idle, False


async def _answer(ctx: ProxyContext, visit: Visit, request: RequestHead, client: H1Client, answer: Answer) -> None:
    try:
        await answer(ctx, visit, request, client)
    except (RequestError, UpstreamError, ResponseAborted) as exc:
        report(visit, request, client.record, exc)
        if client.started or isinstance(exc, ResponseAborted):
            client.broken = True
        else:
            client.fail(exc)


async def _next_request(
    ctx: ProxyContext, stream: Stream, reader: RequestReader, patience: float, header: float, *, first: bool
) -> RequestHead | None:
    """The next request's head; None when the client, its idle time, or the server came to an end before one began.

    Raises:
        RequestError: it breaks the rules, or was begun and not finished within `header` seconds (408).
    """
    while True:
        if not reader.unread:
            if ctx.drain.begun:
                if not first:
                    return None
                patience = min(patience, FIRST_WORD)
            stream.expect(patience)
            waiting = ctx.drain.fresh if first else ctx.drain.idle
            waiting.add(stream)
            try:
                # The first comes with the end of the handshake, or was waited for by the kernel (TCP_DEFER_ACCEPT).
                data = await stream.receive_some(likely=first)
            except (StreamTimeout, StreamInterrupted):
                return None
            finally:
                waiting.discard(stream)
            if not data:
                return None
            reader.feed(data)
        request = reader.next()
        if isinstance(request, RequestHead):
            return request
        if reader.unread:  # more than the empty line that may come before a request
            return await _rest_of_head(stream, reader, header)


async def _rest_of_head(stream: Stream, reader: RequestReader, header: float) -> RequestHead | None:
    stream.deadline = trio.current_time() + header
    try:
        while not isinstance(request := reader.next(), RequestHead):
            data = await stream.receive_some()
            if not data:
                return None
            reader.feed(data)
    except StreamTimeout:
        raise RequestError(f"the head was not complete within {header:g} s", 408) from None
    stream.deadline = math.inf
    return request


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
        headers += error.fields
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

    async def flush(self) -> None:
        """See `Client.flush`."""
        if unsent := self.unsent:
            data = unsent[0] if len(unsent) == 1 else b"".join(unsent)
            unsent.clear()
            await self._stream.send_all(data)
