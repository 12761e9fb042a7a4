"""One request and its response: the request goes to the backend of its route, the response comes back, both streamed.

Without a request body, or with one that has arrived already, asking and answering are two steps of one task: no
nursery, no lock, no timer is made for such a request. A body that is still coming is sent by a second task, because a
backend may answer before it has all of it, and a client may wait for `100 Continue` before it sends any.

What can go wrong belongs to one of three. The client's fault, or its absence, is a `RequestError` or a `StreamError`;
the backend's is an `UpstreamError`, as long as an error page can still be sent; once the response has begun, it is
`ResponseAborted`, and the client's connection must break so that nobody takes the part for the whole.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from time import perf_counter

import trio

from trioproxy.config.model import Route, Site, Timeouts
from trioproxy.errors import (
    NoBackendLeft,
    ResponseAborted,
    TrioproxyError,
    Unanswered,
    UpstreamError,
    UpstreamProtocolError,
)
from trioproxy.http.messages import END, End, Header, RequestHead, ResponseHead
from trioproxy.http.rewriting import WrittenFields
from trioproxy.net.listen import Peer
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.proxy.upstream import Backend, Upstream
from trioproxy.routing import Choice, Redirect, choose, map_location
from trioproxy.wire.proxy_protocol import Endpoint, encode_v1, encode_v2

log = logging.getLogger("trioproxy.http")

SEND_AT_ONCE = 64 * 1024
"""Bytes: what is collected beyond this is sent before more is read. Also how much of a body may ride with its head."""

IDEMPOTENT = (b"GET", b"HEAD", b"OPTIONS")
"""Methods that are asked again when a reused connection turns out to be dead. PUT and DELETE are idempotent as well
(RFC 9110 section 9.2.2), but backends are known to treat them carelessly."""


async def exchange(ctx: ProxyContext, visit: Visit, site: Site, request: RequestHead, client: Client) -> None:
    """Route `request` within `site` and answer it.

    Raises:
        RequestError: no route, or one that depends on how the path is read.
        UpstreamError: the backend failed before its response was passed on.
        ResponseAborted: the backend failed later.
        StreamError: the client was lost.
    """
    hsts = strict_transport(visit, site) if site.hsts else ()
    choice = choose(site, request.target)
    if isinstance(choice, Redirect):
        client.answer(308, [(b"location", choice.location), *hsts], b"")
        return
    route = client.record.route = choice.route
    if ctx.witness.followers:
        ctx.witness.under_way(client.record, "routed")
    if route.timeouts.idle != site.timeouts.idle:
        client.bear(route.timeouts.idle)
    fields = visit.rewriter.written(request, choice.prefix)
    asking = _Asking(ctx, request, choice, fields, client, hsts)
    header = announcement(route, visit.peer, client) if route.proxy_protocol else b""
    if len(route.to) > 1:
        await _ask_first(ctx, [Backend.of(target, route, header) for target in route.to], asking, route.timeouts)
        return
    backend = Backend.of(route.to[0], route, header)
    upgrade = request.upgrade
    upstream = ctx.pool.claim(backend, upgrade) or await ctx.pool.connect(backend, route.timeouts, upgrade)
    try:
        await asking.by(upstream)
    except Unanswered as exc:
        if not asking.may_ask_again(exc):
            raise
    else:
        return
    await asking.by(await ctx.pool.connect(backend, route.timeouts, upgrade))


async def _ask_first(ctx: ProxyContext, backends: Sequence[Backend], asking: _Asking, timeouts: Timeouts) -> None:
    """Ask the first of several that can be reached. The next one gets only what the one before it was never sent."""
    upgrade = asking.upgrade
    for backend in ctx.pool.ready(backends):
        upstream = ctx.pool.claim(backend, upgrade) or await ctx.pool.attempt(backend, timeouts, upgrade)
        if upstream is None:
            continue
        try:
            await asking.by(upstream)
        except Unanswered as exc:
            if not asking.may_ask_again(exc):
                raise
        else:
            return
        upstream = await ctx.pool.attempt(backend, timeouts, upgrade)
        if upstream is not None:
            await asking.by(upstream)
            return
    names = ", ".join(map(str, backends))
    raise NoBackendLeft(f"none of {names} can be reached", ctx.pool.pause(backends))


def strict_transport(visit: Visit, site: Site) -> Sequence[Header]:
    """The field Strict-Transport-Security, where it is due: RFC 6797 section 7.2 forbids it over http."""
    if not site.hsts or visit.arrival.scheme != "https":
        return ()
    return ((b"strict-transport-security", b"max-age=%d" % site.hsts),)


def announcement(route: Route, peer: Peer, client: Client) -> bytes:
    """The PROXY header of a route, which speaks for one connection of one client. Raises ConnectionLost."""
    reached = peer.local or client.local()
    encode = encode_v1 if route.proxy_protocol == "v1" else encode_v2
    return encode(Endpoint(peer.host, peer.port), Endpoint(reached.host, reached.port))


class _Asking:
    """One request on its way, and what is known of it so far."""

    __slots__ = ("_answered", "_body", "_choice", "_client", "_ctx", "_fields", "_hsts", "_request", "_uploaded")

    def __init__(
        self,
        ctx: ProxyContext,
        request: RequestHead,
        choice: Choice,
        fields: WrittenFields,
        client: Client,
        hsts: Sequence[Header],
    ) -> None:
        self._ctx = ctx
        self._request = request
        self._choice = choice
        self._fields = fields
        self._client = client
        self._hsts = hsts  # what the client is to be told of its own next requests
        self._body = _NO_BODY if request.body_length == 0 else _arrived(client)
        self._uploaded = bool(self._body) and isinstance(self._body[-1], End)  # or will be with what is sent first
        self._answered = False  # whether the final response has begun

    @property
    def upgrade(self) -> bytes | None:
        """The protocol to change to."""
        return self._request.upgrade

    def may_ask_again(self, failure: Unanswered) -> bool:
        """Whether all of the request is still here, and nobody does twice what was asked once."""
        return self._uploaded and (failure.untouched or self._request.method in IDEMPOTENT)

    async def by(self, upstream: Upstream) -> None:
        """Ask once; `upstream` is handed back, fit for another exchange if this one left it so."""
        clean = False
        try:
            record = self._client.record
            record.backend = upstream.backend
            if (witness := self._ctx.witness).followers:
                witness.under_way(record, "asking")
            await upstream.ask(self._request, self._choice.target, self._fields, self._body, self._client)
            record.asked = perf_counter()
            if self._uploaded:
                upstream.expect(self._choice.route.timeouts.response)
                await self._answer(upstream)
            else:
                await self._upload_and_answer(upstream)
            clean = self._uploaded and not self._ctx.drain.begun
        finally:
            upstream.done(keep=clean)
        await self._client.flush()

    async def _upload_and_answer(self, upstream: Upstream) -> None:
        failure: TrioproxyError | None = None

        async def upload() -> None:
            nonlocal failure
            try:
                await self._upload(upstream)
            except TrioproxyError as exc:
                failure = exc
                nursery.cancel_scope.cancel()

        upstream.expect(math.inf)  # the backend owes no answer before it has the request
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            try:
                await self._answer(upstream)
            except TrioproxyError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _upload(self, upstream: Upstream) -> None:
        """Send the rest of the request's body.

        Raises only what is the client's fault: what is the backend's shows in its answer, or in the lack of one.
        """
        whole = False
        while not whole:
            piece = self._client.ready() or await self._client.receive()
            if not await upstream.send(piece):
                break
            if isinstance(piece, End):
                whole = True
            else:
                self._client.record.received += len(piece)
        self._uploaded = whole
        if not self._answered:
            upstream.expect(self._choice.route.timeouts.response)

    async def _answer(self, upstream: Upstream) -> None:
        client = self._client
        head = await self._final_head(upstream)
        self._answered = True
        record = client.record
        record.answered = perf_counter()
        followed = self._ctx.witness.followers
        if head.status == 101:
            self._uploaded = False  # what it carries from now on is no exchange
            if followed:
                self._ctx.witness.under_way(record, "upgraded")
            await client.tunnel(head, upstream, self._choice.route.timeouts.tunnel)
            return
        if head.status == 400:
            self._explain_refusal(upstream.backend)
        client.start(self._as_sent(head))
        if followed:
            self._ctx.witness.under_way(record, "answered")
        if (body := upstream.whole()) is not None:
            if body:
                client.body(body)
                record.sent = len(body)
            client.end(())
            return
        upstream.expect(self._choice.route.timeouts.tunnel)
        try:
            while not isinstance(event := upstream.next(), End):
                if event is None:
                    if client.pending():
                        await client.flush()
                    await upstream.receive()
                elif isinstance(event, bytes):
                    client.body(event)
                    record.sent += len(event)
                    if client.pending() > SEND_AT_ONCE:
                        await client.flush()
                else:
                    raise UpstreamProtocolError("a head inside of a body")
        except UpstreamError as exc:
            raise ResponseAborted(str(exc)) from exc
        client.end(event.trailers)

    async def _final_head(self, upstream: Upstream) -> ResponseHead:
        """The head of the final response, or of a 101; the other 1xx are passed on as they come."""
        while True:
            await upstream.receive()  # at once, when something has come already
            while isinstance(head := upstream.next(), ResponseHead):
                if head.status >= 200 or head.status == 101:
                    return head
                self._client.informational(head)
            if self._client.pending():
                await self._client.flush()

    def _as_sent(self, head: ResponseHead) -> ResponseHead:
        """The final head as the client gets it, but for what depends on the client's HTTP version."""
        if 300 <= head.status < 400 or head.status == 201:
            head.headers = [
                (name, map_location(self._choice.route, value) if name == b"location" else value)
                for name, value in head.headers
            ]
        if self._hsts:
            name = self._hsts[0][0]
            head.headers = [*(field for field in head.headers if field[0] != name), *self._hsts]
        return head

    def _explain_refusal(self, backend: Backend) -> None:
        """Some backends refuse forwarded requests of proxies that they were not told of; few say why."""
        if self._ctx.pool.hints.due(backend.for_anyone(), trio.current_time()):
            log.warning(
                "%s answered 400 to %s %s. If it does so to every request, it may have to be told that it is behind a "
                "proxy: let it trust this machine's address as one that sends X-Forwarded-For (in Home Assistant: "
                "http.use_x_forwarded_for and http.trusted_proxies), and the name %s as its own",
                backend,
                self._request.method.decode("latin-1"),
                self._request.target.decode("latin-1"),
                self._request.authority.decode("latin-1"),
            )


_NO_BODY = (END,)


def _arrived(client: Client) -> Sequence[bytes | End]:
    """What has come of the request's body already."""
    piece = client.ready()
    pieces: list[bytes | End] = []
    size = 0
    while piece is not None:
        pieces.append(piece)
        if isinstance(piece, End):
            break
        size += len(piece)
        if size >= SEND_AT_ONCE:
            break
        piece = client.ready()
    client.record.received = size
    return pieces
