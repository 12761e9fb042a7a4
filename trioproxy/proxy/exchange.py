"""One request and its response: the request goes to the backend of its route, the response comes back, both streamed.

Without a request body, or with one that has arrived already, asking and answering are two steps of one task: no
nursery, no lock, no timer is made for such a request. A body that is still coming is sent by a second task, because a
backend may answer before it has all of it, and a client may wait for `100 Continue` before it sends any.

What can go wrong belongs to one of three. The client's fault, or its absence, is a `RequestError` or a `StreamError`;
the backend's is an `UpstreamError`, as long as an error page can still be sent; once the response has begun, it is
`ResponseAborted`, and the client's connection must break so that nobody takes the part for the whole.
"""

from __future__ import annotations

import contextlib
import math

import trio

from trioproxy.config.model import Config, Site, Timeouts
from trioproxy.errors import (
    ClientLeft,
    ResponseAborted,
    StreamError,
    StreamTimeout,
    TrioproxyError,
    UpstreamError,
    UpstreamTimeout,
)
from trioproxy.http.h1 import encode_chunk, encode_last_chunk, encode_request_head
from trioproxy.http.headers import request_headers
from trioproxy.http.messages import End, RequestHead, ResponseHead
from trioproxy.net.sock import Stream
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.proxy.upstream import Upstream
from trioproxy.routing import Choice, Redirect, choose, map_location

SEND_AT_ONCE = 64 * 1024
"""Bytes: what is collected beyond this is sent before more is read. Also how much of a body may ride with its head."""

IDEMPOTENT = (b"GET", b"HEAD", b"OPTIONS")
"""Methods that are asked again when a reused connection turns out to be dead. PUT and DELETE are idempotent as well
(RFC 9110 section 9.2.2), but backends are known to treat them carelessly."""


async def exchange(
    ctx: ProxyContext, config: Config, visit: Visit, site: Site, request: RequestHead, client: Client
) -> None:
    """Route `request` within `site` and answer it.

    Raises:
        RequestError: no route, or one that depends on how the path is read.
        UpstreamError: the backend failed before its response was passed on.
        ResponseAborted: the backend failed later.
        StreamError: the client was lost.
    """
    choice = choose(site, request.target)
    if isinstance(choice, Redirect):
        client.answer(308, [(b"location", choice.location)], b"")
        return
    await forward(ctx, config, visit, choice, request, client)


async def forward(
    ctx: ProxyContext, config: Config, visit: Visit, choice: Choice, request: RequestHead, client: Client
) -> None:
    """Send `request` where `choice` says and pass the response back. Raises as `exchange`."""
    headers = request_headers(request, visit.arrival, choice.prefix, ctx.pseudonym)
    head = encode_request_head(request.method, choice.target, headers)
    first_body, whole = _collect(request, client, len(head))
    asking = _Asking(request, choice, client, config.timeouts, head + first_body, whole)
    target = choice.route.to[0]

    try:
        await _attempt(ctx, await ctx.pool.connect(target, config.timeouts), asking)
    except _Stale as exc:
        if not (request.method in IDEMPOTENT and whole):
            raise UpstreamError(f"{target}: {exc}") from exc
    else:
        return
    await _attempt(ctx, await ctx.pool.connect(target, config.timeouts, fresh=True), asking)


class _Stale(UpstreamError):
    """A reused connection ended before a byte of the response: the backend had closed it when we asked."""


def _collect(request: RequestHead, client: Client, size: int) -> tuple[bytes, bool]:
    """What has come of the request's body already, framed for the backend, and whether that is all of it."""
    pieces: list[bytes] = []
    while size < SEND_AT_ONCE:
        piece = client.ready()
        if piece is None:
            return b"".join(pieces), False
        pieces.append(_framed(request, piece))
        if isinstance(piece, End):
            return b"".join(pieces), True
        size += len(piece)
    return b"".join(pieces), False


def _framed(request: RequestHead, piece: bytes | End) -> bytes:
    if request.body_length is None:
        return encode_last_chunk(piece.trailers) if isinstance(piece, End) else encode_chunk(piece)
    return b"" if isinstance(piece, End) else piece


async def _attempt(ctx: ProxyContext, upstream: Upstream, asking: _Asking) -> None:
    """Ask once; the connection goes back to the pool if that left it clean, and is closed otherwise."""
    ctx.reaper.watched.add(asking)
    try:
        await asking.ask(upstream)
    finally:
        ctx.reaper.watched.discard(asking)
        if asking.clean and not ctx.drain.begun:
            ctx.pool.release(upstream)
        else:
            upstream.stream.close()


class _Asking:
    """One request on its way, and what is known of it so far.

    The reaper watches it: once a second it asks whether the client is still there, for a backend that is silent, a
    long poll say, would otherwise be waited for on behalf of nobody.
    """

    __slots__ = ("choice", "clean", "client", "first", "request", "timeouts", "tunnelled", "uploaded", "upstream")

    def __init__(
        self, request: RequestHead, choice: Choice, client: Client, timeouts: Timeouts, first: bytes, whole: bool
    ) -> None:
        self.request = request
        self.choice = choice
        self.client = client
        self.timeouts = timeouts
        self.first = first  # the head, and what of the body came with it
        self.uploaded = whole  # whether the backend has, or will have with `first`, all of the request
        self.clean = False  # whether the backend's connection may carry another request
        self.tunnelled = False  # then an end is an end of one direction only, and the tunnel's to see
        self.upstream: Upstream | None = None

    def overdue(self, now: float) -> bool:  # noqa: ARG002 - it goes by the client, not by time
        """See `Reaper`."""
        return not self.tunnelled and self.client.left()

    def interrupt(self, error: StreamError) -> None:  # noqa: ARG002
        """See `Reaper`."""
        if self.upstream is not None:
            self.upstream.stream.interrupt(ClientLeft("the client left before the response was through"))

    async def ask(self, upstream: Upstream) -> None:
        self.upstream = upstream
        upstream.reader.expect(self.request.method, upgrade=self.request.upgrade is not None)
        # A send that fails is no verdict: the backend may have answered (413, say) and closed. Reading will tell.
        with contextlib.suppress(StreamError):
            await upstream.stream.send_all(self.first)
        if self.uploaded:
            upstream.stream.expect(self.timeouts.response)
            await self._answer(upstream)
        else:
            await self._upload_and_answer(upstream)

    async def _upload_and_answer(self, upstream: Upstream) -> None:
        failure: TrioproxyError | None = None

        async def upload() -> None:
            nonlocal failure
            try:
                await self._upload(upstream.stream)
            except TrioproxyError as exc:
                failure = exc
                nursery.cancel_scope.cancel()

        upstream.stream.expect(math.inf)  # the backend owes no answer before it has the request
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            try:
                await self._answer(upstream)
            except TrioproxyError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _upload(self, backend: Stream) -> None:
        """Send the rest of the request's body.

        Raises only what is the client's fault: what is the backend's shows in its answer, or in the lack of one.
        """
        while not self.uploaded:
            piece = self.client.ready() or await self.client.receive()
            try:
                await backend.send_all(_framed(self.request, piece))
            except StreamError:
                break
            self.uploaded = isinstance(piece, End)
        backend.expect(self.timeouts.response)

    async def _answer(self, upstream: Upstream) -> None:
        client, reader = self.client, upstream.reader
        head = await self._final_head(upstream)
        if head.status == 101:
            self.tunnelled = True
            await client.tunnel(head, upstream, self.timeouts.tunnel)
            return
        upstream.stream.expect(self.timeouts.tunnel)
        client.start(self._with_mapped_location(head))
        try:
            while not isinstance(event := reader.next(), End):
                if isinstance(event, bytes):
                    client.body(event)
                    if client.pending() > SEND_AT_ONCE:
                        await client.flush()
                else:
                    await client.flush()
                    await self._read_more(upstream)
        except UpstreamError as exc:
            raise ResponseAborted(str(exc)) from exc
        self.clean = self.uploaded and reader.reusable
        client.end(event.trailers)
        await client.flush()

    async def _final_head(self, upstream: Upstream) -> ResponseHead:
        """The head of the final response, or of a 101; the other 1xx are passed on as they come."""
        while True:
            head = upstream.reader.next()
            if not isinstance(head, ResponseHead):
                await self.client.flush()
                await self._read_more(upstream)
            elif head.status >= 200 or head.status == 101:
                return head
            else:
                self.client.informational(head)

    async def _read_more(self, upstream: Upstream) -> None:
        try:
            data = await upstream.stream.receive_some()
        except ClientLeft:
            raise
        except StreamTimeout as exc:
            raise UpstreamTimeout(f"{self.choice.route.to[0]}: no answer in time") from exc
        except StreamError as exc:
            if upstream.reused and not upstream.reader.started:
                raise _Stale("the connection was closed") from exc
            raise UpstreamError(f"{self.choice.route.to[0]}: {exc}") from exc
        if data:
            upstream.reader.feed(data)
            return
        if upstream.reused and not upstream.reader.started:
            raise _Stale("the connection was closed")
        upstream.reader.feed_eof()

    def _with_mapped_location(self, head: ResponseHead) -> ResponseHead:
        if 300 <= head.status < 400 or head.status == 201:
            head.headers = [
                (name, map_location(self.choice.route, value) if name == b"location" else value)
                for name, value in head.headers
            ]
        return head
