"""One request to a backend, and the response to it: asking, answering, uploading, and asking somebody else.

Without a request body, or with one that has arrived already, asking and answering are two steps of one task: no
nursery, no lock, no timer is made for such a request. A body that is still coming is sent by a second task, because a
backend may answer before it has all of it, and a client may wait for `100 Continue` before it sends any.

Most requests need no task at all, for in them nothing has to be waited for: a connection to the backend stands, and
the client takes what it answers. These are asked `at_once`, and their answer is handed on as it comes, by a function
that is called when there is something to read. As soon as that would have to wait, or anything goes wrong, it wakes a
task, which goes on from there (`go_on`). So there is one place where things are handed on, and one where errors are.

What can go wrong belongs to one of three. The client's fault, or its absence, is a `RequestError` or a `StreamError`;
the backend's is an `UpstreamError`, as long as an error page can still be sent; once the response has begun, it is
`ResponseAborted`, and the client's connection must break so that nobody takes the part for the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Literal, Protocol

import trio

from trioproxy.errors import (
    NoBackendLeft,
    ResponseAborted,
    TrioproxyError,
    Unanswered,
    UpstreamError,
    UpstreamProtocolError,
)
from trioproxy.http.messages import END, End, Header, Headers, RequestHead, ResponseHead
from trioproxy.http.rewriting import WrittenFields
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.proxy.failure import explain_refusal
from trioproxy.proxy.upstream import Backend, Upstream
from trioproxy.proxy.upstream_h1 import H1Upstream
from trioproxy.routing import Choice, map_location

SEND_AT_ONCE = 64 * 1024
"""Bytes: what is collected beyond this is sent before more is read. Also how much of a body may ride with its head."""

IDEMPOTENT = (b"GET", b"HEAD", b"OPTIONS")
"""Methods that are asked again when a reused connection turns out to be dead. PUT and DELETE are idempotent as well
(RFC 9110 section 9.2.2), but backends are known to treat them carelessly."""

Progress = Literal["more", "full", "over"] | ResponseHead
"""How far a response has been handed on: as far as it has come; as far as the client should be given at once; to its
end; or to this 101, after which the connection is a tunnel."""


Prepare = Callable[[ProxyContext, Visit, RequestHead, Client], "Asking | None"]
"""Finds out who is to be asked; None for what it has answered itself. Raises RequestError."""


class Patron(Protocol):
    """On whose behalf something is asked `at_once`. Its methods neither wait nor raise."""

    def send(self) -> bool:
        """Send the client what was handed on. False when that has to be waited for, or the client is lost."""

    def over(self) -> None:
        """All of the response was handed on."""

    def wake(self) -> None:
        """Have a task `go_on`."""


class Asking:
    """One request on its way, and what is known of it so far."""

    # Most requests leave these as they are.
    _answered = False  # whether the final response has begun
    # While nobody sleeps for it:
    _patron: Patron | None = None
    _upstream: H1Upstream | None = None
    _error: Exception | None = None

    def __init__(
        self,
        ctx: ProxyContext,
        request: RequestHead,
        choice: Choice,
        fields: WrittenFields,
        client: Client,
        header: bytes,
        hsts: Sequence[Header],
    ) -> None:
        self._ctx = ctx
        self._request = request
        self._choice = choice
        self._fields = fields
        self._client = client
        self._header = header  # PROXY, which speaks for one client
        self._hsts = hsts  # what the client is to be told of its own next requests
        self._body = _NO_BODY if request.body_length == 0 else _arrived(client)
        self._whole = bool(self._body) and isinstance(self._body[-1], End)  # all is sent, or will be with what is first

    async def run(self) -> None:
        """Find a backend and have it answer. Raises as `exchange`."""
        route = self._choice.route
        if len(route.to) > 1:
            await self._ask_first([Backend.of(target, route, self._header) for target in route.to])
            return
        backend, upgrade, pool = self._backend(), self._request.upgrade, self._ctx.pool
        upstream = pool.claim(backend, upgrade) or await pool.connect(backend, route.timeouts, upgrade)
        if not await self._answered_by(upstream):
            await self._by(await pool.connect(backend, route.timeouts, upgrade))

    async def _ask_first(self, backends: Sequence[Backend]) -> None:
        """Ask the first that can be reached. The next one gets only what the one before it was never sent."""
        timeouts, upgrade, pool = self._choice.route.timeouts, self._request.upgrade, self._ctx.pool
        for backend in pool.ready(backends):
            upstream = pool.claim(backend, upgrade) or await pool.attempt(backend, timeouts, upgrade)
            if upstream is None:
                continue
            if await self._answered_by(upstream):
                return
            upstream = await pool.attempt(backend, timeouts, upgrade)
            if upstream is not None:
                await self._by(upstream)
                return
        names = ", ".join(map(str, backends))
        raise NoBackendLeft(f"none of {names} can be reached", pool.pause(backends))

    def _backend(self) -> Backend:
        route = self._choice.route
        return Backend.of(route.to[0], route, self._header)

    async def _answered_by(self, upstream: Upstream, *, asked: bool = False) -> bool:
        """Whether `upstream` has answered. If not, another may be asked, and nobody does twice what was asked once."""
        try:
            await self._by(upstream, asked=asked)
        except Unanswered as exc:
            # All of the request must still be here.
            if not (self._whole and (exc.untouched or self._request.method in IDEMPOTENT)):
                raise
            return False
        return True

    async def _by(self, upstream: Upstream, *, asked: bool = False) -> None:
        """Ask, if that was not done, and be answered; `upstream` is handed back, fit for another if this left it so."""
        clean = False
        try:
            if not asked:
                self._ask(upstream)
            if upstream.unsent:
                await upstream.flush()
            if self._whole:
                await self._answer(upstream)
            else:
                await self._upload_and_answer(upstream)
            clean = self._whole and not self._ctx.drain.begun
        finally:
            upstream.done(keep=clean)
        await self._client.flush()

    def _ask(self, upstream: Upstream) -> None:
        record = self._client.record
        record.backend = upstream.backend
        if (witness := self._ctx.witness).followers:
            witness.under_way(record, "asking")
        upstream.ask(self._request, self._choice.target, self._fields, self._body, self._client)
        record.asked = perf_counter()
        # A backend owes no answer before it has the request.
        upstream.expect(self._choice.route.timeouts.response if self._whole else math.inf)

    async def _upload_and_answer(self, upstream: Upstream) -> None:
        failure: TrioproxyError | None = None

        async def upload() -> None:
            nonlocal failure
            try:
                await self._upload(upstream)
            except TrioproxyError as exc:
                failure = exc
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            try:
                await self._answer(upstream)
            except TrioproxyError as exc:
                failure = exc
            nursery.cancel_scope.cancel()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None  # whose frames hold this one

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
        self._whole = whole
        if not self._answered:
            upstream.expect(self._choice.route.timeouts.response)

    async def _answer(self, upstream: Upstream) -> None:
        """Pass the response on to its end, or be the tunnel that it leads to."""
        client = self._client
        while (progress := self.hand_on(upstream)) != "over":
            if client.pending():
                await client.flush()
            if progress == "more":
                try:
                    await upstream.receive()
                except UpstreamError as exc:
                    self._abort(exc)
                    raise
            elif isinstance(progress, ResponseHead):
                self._whole = False  # what the connection carries from now on is no exchange
                if (witness := self._ctx.witness).followers:
                    witness.under_way(client.record, "upgraded")
                return await client.tunnel(progress, upstream, self._choice.route.timeouts.tunnel)
        return None

    # ---- without a task ---------------------------------------------------------------------------------

    def at_once(self, patron: Patron) -> bool:
        """Ask over a connection that stands, if nothing need be waited for; `patron` is told of what comes of it.

        False when there is something to wait for, or wrong: a task is to `go_on`.
        """
        if not self._whole or self._request.upgrade is not None or len(self._choice.route.to) > 1:
            return False
        upstream = self._upstream = self._ctx.pool.idle(self._backend())
        if upstream is None:
            return False
        try:
            self._ask(upstream)
            if upstream.unsent:
                return False
            self._patron = patron
            upstream.listen(self._ctx.watch, self._heard, self._wake)
        except Exception as exc:  # whatever it is, it is raised in the task of this exchange
            self._patron = None
            self._error = exc
            return False
        return True

    def _heard(self) -> None:
        """Something has come from the backend."""
        upstream, patron = self._upstream, self._patron
        if upstream is None or patron is None:
            return  # a task was woken, and has not come so far
        try:
            if upstream.take():
                progress = self.hand_on(upstream)
                if progress == "over":
                    self._upstream = self._patron = None
                    upstream.done(keep=not self._ctx.drain.begun)
                    patron.over()
                    return
                if progress == "more" and patron.send():
                    upstream.listen(self._ctx.watch, self._heard, self._wake)  # silent since now
                    return
        except Exception as exc:  # as above
            self._error = exc
        self._patron = None
        patron.wake()

    def _wake(self) -> None:
        if self._patron is not None:
            patron, self._patron = self._patron, None
            patron.wake()

    async def go_on(self) -> None:
        """Do what is left of an exchange that began `at_once`, or was to. Raises as `exchange`."""
        upstream, error = self._upstream, self._error
        self._upstream = self._error = None
        if error is not None:
            if upstream is not None:
                upstream.done(keep=False)
            try:
                raise error
            finally:
                del error  # it holds this frame, which would hold it
        if upstream is None:
            return await self.run()
        upstream.rest()
        if not await self._answered_by(upstream, asked=True):
            await self._by(await self._ctx.pool.connect(self._backend(), self._choice.route.timeouts))
        return None

    def abandon(self) -> None:
        """Nobody wants the answer any more."""
        self._patron = self._error = None
        if self._upstream is not None:
            self._upstream.done(keep=False)
            self._upstream = None

    # ---- what is handed on ------------------------------------------------------------------------------

    def hand_on(self, upstream: Upstream) -> Progress:
        """Hand the client what has come of the response. Raises UpstreamError, ResponseAborted."""
        try:
            return self._hand_on(upstream)
        except UpstreamError as exc:
            self._abort(exc)
            raise

    def _abort(self, error: UpstreamError) -> None:
        """Nobody may take for the whole what has been handed on. Raises ResponseAborted if that is anything."""
        if self._client.started:
            raise ResponseAborted(str(error)) from error

    def _hand_on(self, upstream: Upstream) -> Progress:
        client = self._client
        while (event := upstream.next()) is not None:
            if isinstance(event, bytes):
                client.body(event)
                client.record.sent += len(event)
                if client.pending() > SEND_AT_ONCE:
                    return "full"
            elif isinstance(event, End):
                client.end(event.trailers)
                return "over"
            elif not isinstance(event, ResponseHead):
                raise UpstreamProtocolError("a request in place of a response")
            elif event.status >= 200 or event.status == 101:
                self._answered = True
                client.record.answered = perf_counter()
                if event.status == 101:
                    return event
                self._start(event, upstream)
                if (body := upstream.whole()) is not None:
                    if body:
                        client.body(body)
                        client.record.sent = len(body)
                    client.end(())
                    return "over"
                upstream.expect(self._choice.route.timeouts.tunnel)
            else:
                client.informational(event)
        return "more"

    def _start(self, head: ResponseHead, upstream: Upstream) -> None:
        if head.status == 400:
            explain_refusal(self._ctx.pool.hints, upstream.backend, self._request)
        if self._hsts or 300 <= head.status < 400 or head.status == 201:
            head.headers = self._mapped(head)
        self._client.start(head)
        if (witness := self._ctx.witness).followers:
            witness.under_way(self._client.record, "answered")

    def _mapped(self, head: ResponseHead) -> Headers:
        """The fields of the final head as the client gets them, but for what depends on the client's HTTP version."""
        fields = [
            (name, map_location(self._choice.route, value) if name == b"location" else value)
            for name, value in head.headers
        ]
        if self._hsts:
            ours = self._hsts[0][0]
            fields = [*(field for field in fields if field[0] != ours), *self._hsts]
        return fields


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
