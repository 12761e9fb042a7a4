"""An HTTP/2 client connection: many requests at once, one task that reads and one that writes.

How it works. This task reads, hands what has come to the codec, and has a backend asked for each request `at_once`.
Only where there is something to wait for it starts a task for a request, or wakes one that has just served another.
What is said to the client is queued in the codec, and the writer, which is rung, sends what all streams have said since
it slept, at most `SEND_AT_ONCE` at a time. Only the last request that was under way has its answer sent without the
writer, which gets what the client does not take: nobody could add to it. The reader waits for nobody but the client, so
no stream can hold up another; a stream that is not read fills its own window and stops.

A request's task has no cancel scope. A stream that its client gives up is marked as lost, which wakes the task if it
waits for the client, and which the backend's side looks at once a second. Until the task has ended its slot counts as
taken, though HTTP/2 calls the stream closed: a client that resets as fast as it asks waits for its own backend.

Time is looked at once a second, by the reaper, for the connection and all its streams.
"""

from __future__ import annotations

import logging
import math
from time import perf_counter

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled

from trioproxy.config.model import Site
from trioproxy.errors import (
    ConnectionLost,
    RequestError,
    ResponseAborted,
    StreamError,
    StreamInterrupted,
    UpstreamError,
)
from trioproxy.http.h2 import MAX_STREAMS, Code, ServerCodec
from trioproxy.http.messages import End, RequestHead
from trioproxy.net.sock import TLS_READ, Stream
from trioproxy.proxy.asking import Asking, Prepare
from trioproxy.proxy.bell import Bell
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.proxy.failure import blame, report
from trioproxy.proxy.h2_client import H2Client, as_websocket
from trioproxy.witness.records import Exchange

log = logging.getLogger("trioproxy.http")

SEND_AT_ONCE = 64 * 1024
"""Bytes in one call to send: four TLS records."""

GRACE = 1.0
"""Seconds for which a connection that is to end still takes requests that are on their way, if its client does not
answer the PING that would tell."""

RESTING = 16
"""Tasks that wait for another request to serve, within a second of the last one: to wake one costs half of what its
birth and its death do."""


async def serve_h2(ctx: ProxyContext, stream: Stream, visit: Visit, prepare: Prepare) -> None:
    """Serve requests on `stream` as they come; `prepare` finds out who is to be asked.

    Returns when the connection is done; the caller closes it. Raises StreamError when the client was lost.
    """
    connection = _Connection(ctx, stream, visit, prepare)
    ctx.reaper.watched.add(connection)
    ctx.drain.several.add(connection)
    try:
        await connection.run()
    finally:
        ctx.drain.several.discard(connection)
        ctx.reaper.watched.discard(connection)
        connection.forget()


class _Connection:
    """The reader, the writer, and what the streams share (`h2_client.Shared`); the codec's listener."""

    def __init__(self, ctx: ProxyContext, stream: Stream, visit: Visit, prepare: Prepare) -> None:
        config = ctx.cell.current.config
        self.codec = ServerCodec(config.limits, self)
        self.ctx = ctx
        self.timeouts = visit.timeouts(config)
        self.stuck: set[H2Client] = set()
        self._stream = stream
        self._visit = visit
        self._prepare = prepare
        self._snapshot = ctx.cell.current  # whose routes still had this connection's entry
        self._clients: dict[int, H2Client] = {}  # by stream, until that is closed
        self._fresh: list[H2Client] = []  # of what was read last
        self._working = 0  # requests that have not come to their ends,
        self._asked: dict[H2Client, Asking] = {}  # of these, what no task waits for
        self._resting: list[_Server] = []
        self._bell = Bell()
        self._idle_since: float | None = trio.current_time()
        self._unfinished = 0
        self._unfinished_since = 0.0
        self._goaway_at = math.inf
        self._failure: StreamError | None = None
        self._unsent = b""  # of what was to be sent at once
        self._over = False  # nothing more comes from the client
        self.local = stream.local
        self.ring = self._bell.ring
        stream.write_patience = self.timeouts.idle

    async def run(self) -> None:
        """Serve until one side has had enough."""
        if self.ctx.drain.begun:
            self.drain()
        async with trio.open_nursery() as self._nursery:
            self._nursery.start_soon(self._write)
            try:
                await self._read()
                self._over = True
            finally:
                self._forsake()
            self._nursery.cancel_scope.cancel()  # whatever is still asked for is asked by nobody
        if self._failure is not None:
            raise self._failure
        self._stream.send_eof()
        await self._stream.drain()

    def forget(self) -> None:
        """It is over: undo what leads from its parts back to it, or its memory would wait for the collector."""
        self.codec.forget()
        self._clients.clear()
        del self._nursery

    # ---- reading ------------------------------------------------------------------------------------

    async def _read(self) -> None:
        codec, stream = self.codec, self._stream
        try:
            data = await stream.receive_some()
            while data:
                codec.receive(data)
                for client in self._fresh:
                    if not client.lost:  # reset in the same breath, and never asked
                        self._working += 1
                        self._begin(client)
                self._fresh.clear()
                if codec.restless:
                    self.ring()
                # A record that was not full is the last that its sender had.
                data = await stream.receive_some(likely=len(data) == TLS_READ)
        except StreamInterrupted:  # by our writer, when all was said
            pass
        except StreamError as exc:
            self._failure = self._failure or exc

    # ---- what the codec tells (`http.h2.ServerListener`) ----------------------------------------------

    def on_body(self, stream: int, data: bytes) -> None:
        if (client := self._clients.get(stream)) is not None:
            client.feed(data)

    def on_end(self, stream: int, end: End) -> None:
        if (client := self._clients.get(stream)) is not None:
            if client.deceptive:
                self._fresh.append(client)
            client.feed_end(end)

    def on_closed(self, stream: int, code: int) -> None:  # noqa: ARG002 - whatever it is
        client = self._clients.pop(stream, None)
        if client is not None and not client.finished:
            client.lose(ConnectionLost("the client gave the request up"))
        if not self._clients:
            self._idle_since = trio.current_time()

    def on_refused(self, stream: int, error: RequestError, method: bytes) -> None:
        self._refuse(stream, RequestHead(method, b"", b"", []), error)

    def on_over(self, code: int, reason: str) -> None:
        if code:
            log.info("%s: HTTP/2 ended: %s%s", self._visit.peer, _named(code), reason and f": {reason}")

    def on_request(self, stream: int, head: RequestHead, ended: bool) -> None:
        if self._working + len(self._fresh) >= MAX_STREAMS:
            self.codec.reset(stream, Code.REFUSED_STREAM)
            return
        if head.upgrade is not None:
            try:
                head = as_websocket(head)
            except RequestError as exc:
                self._refuse(stream, head, exc)
                return
        client = self._clients[stream] = H2Client(self, stream, head, self._visit.record(head), ended=ended)
        self._idle_since = None
        if ended or not client.deceptive:
            self._fresh.append(client)

    def _refuse(self, stream: int, request: RequestHead, error: RequestError) -> None:
        """Answer without a task: nothing is asked of anybody."""
        log.info("%s: refused: %s", self._visit.peer, error)
        record = self._visit.record(request)
        blame(record, error)
        H2Client(self, stream, request, record, ended=True).fail(error)
        self.codec.leave(stream)
        self._tell(record)

    # ---- requests -----------------------------------------------------------------------------------

    def _begin(self, client: H2Client) -> None:
        """Have a backend asked."""
        try:
            asking = self._prepare(self.ctx, self._visit, client.request, client)
        except Exception as exc:
            self._end_badly(client, exc)
            self.over(client)
            return
        if asking is None:
            self.over(client)
            return
        self._asked[client] = asking
        if not asking.at_once(client):
            self.wake(client)

    def over(self, client: H2Client) -> None:
        """See `Shared.over`."""
        self._asked.pop(client, None)
        self._end(client)
        if self._working or not self._bell.awaited:
            self.ring()
        else:
            self._send_at_once()

    def _end(self, client: H2Client) -> None:
        self._working -= 1
        if not client.complete:
            self.codec.leave(client.stream)
        self._tell(client.record)

    def wake(self, client: H2Client) -> None:
        """See `Shared.wake`."""
        asking = self._asked.pop(client)
        if self._resting:
            self._resting.pop().wake((client, asking))
        else:
            self._nursery.start_soon(self._serve_several, client, asking, name="requests")

    async def _serve_several(self, client: H2Client, asking: Asking) -> None:
        """Go on with one request after the other, as long as the next one comes soon."""
        me = _Server(self._resting)
        while True:
            try:
                await asking.go_on()
            except Exception as exc:
                self._end_badly(client, exc)
            except BaseException:  # cancelled: a group of that if two tasks were at it
                self._cut_off(client)
                raise
            finally:
                self._end(client)
            self.ring()
            if len(self._resting) >= RESTING:
                return
            self._resting.append(me)
            await wait_task_rescheduled(me.leave)
            if me.work is None:
                return
            client, asking = me.work

    def _forsake(self) -> None:
        """The connection ends, and with it what no task waits for; tasks are told by Trio."""
        while self._asked:
            client, asking = self._asked.popitem()
            asking.abandon()
            self._cut_off(client)
            self._end(client)

    def _cut_off(self, client: H2Client) -> None:
        by_client = ConnectionLost("the client's connection has ended")
        blame(client.record, by_client if self._over else StreamInterrupted("the server has ended the connection"))

    def _end_badly(self, client: H2Client, failure: Exception) -> None:
        if isinstance(failure, RequestError | UpstreamError | ResponseAborted):
            report(self._visit, client.request, client.record, failure)
            if client.started or isinstance(failure, ResponseAborted):
                client.give_up(Code.INTERNAL_ERROR, ConnectionLost(str(failure)))
            else:
                client.fail(failure)
            return
        blame(client.record, failure)
        if isinstance(failure, StreamError):
            log.debug("%s: %s", self._visit.peer, failure)
            client.give_up(Code.CANCEL, failure)
        else:
            log.error("%s: a bug in trioproxy ended this request", self._visit.peer, exc_info=failure)
            client.give_up(Code.INTERNAL_ERROR, ConnectionLost("a bug"))

    def _tell(self, record: Exchange) -> None:
        record.ended = perf_counter()
        self.ctx.witness.exchange(record)

    # ---- writing ------------------------------------------------------------------------------------

    async def _write(self) -> None:
        codec, stream = self.codec, self._stream
        try:
            while True:
                while data := self._unsent or codec.outgoing(SEND_AT_ONCE):
                    await stream.send_all(data)
                    self._unsent = b""
                    for client in [*self.stuck]:
                        client.sent()
                if codec.over:
                    break
                await self._bell.wait()
        except StreamInterrupted:
            pass
        except StreamError as exc:
            self._failure = self._failure or exc
        stream.interrupt()  # the reader has nothing to wait for

    def _send_at_once(self) -> None:
        """Send what the client takes now, and have the writer do the rest."""
        data = self.codec.outgoing(SEND_AT_ONCE)
        try:
            self._unsent = data[self._stream.send_at_once(data) :]
        except StreamError:
            self._unsent = data  # the writer meets with the same
        if self._unsent or self.codec.restless or self.codec.over:
            self.ring()

    # ---- the end ------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Take no more requests than are on their way, and end with the last one that runs."""
        if not self.codec.closing:
            self.codec.shutdown()
            self._goaway_at = trio.current_time() + GRACE
            self.ring()

    @property
    def idle_since(self) -> float | None:
        """The Trio time since when no stream is open; None while one is, or when it ends already."""
        return None if self.codec.closing else self._idle_since

    def overdue(self, now: float) -> bool:
        """See `Mortal`; looked at once a second, so this is also where all is seen to that time brings about."""
        self.codec.second()
        for client in [*self._clients.values()]:
            client.look(now)
        if self.ctx.cell.current is not self._snapshot:
            self._snapshot = self.ctx.cell.current
            entry = self._visit.entry
            if entry is None or not isinstance(self._snapshot.routes.entries.get(entry.name), Site):
                self.drain()
        if now >= self._goaway_at:
            self._goaway_at = math.inf
            self.codec.goaway()
            self.ring()
        unfinished = self.codec.unfinished
        if unfinished != self._unfinished:
            self._unfinished, self._unfinished_since = unfinished, now
        if self._idle_since is not None:
            while self._resting:  # an idle connection shall not hold the memory of a busy one
                self._resting.pop().wake(None)
        late = unfinished and now - self._unfinished_since > self.timeouts.header
        return late or (self._idle_since is not None and now - self._idle_since > self.timeouts.idle)

    def interrupt(self, error: StreamError) -> None:
        """See `Mortal`: say goodbye, and end."""
        log.debug("%s: HTTP/2 connection ended: %s", self._visit.peer, error)
        if self.codec.closing:
            self._stream.interrupt()  # said before, and to no effect
        self.codec.terminate(Code.NO_ERROR)
        self.ring()


class _Server:
    """A task that has served a request, and waits for another among those that rest.

    Attributes:
        work: Its next request; None when there is none to wait for any more.
    """

    __slots__ = ("_resting", "_task", "work")

    def __init__(self, resting: list[_Server]) -> None:
        self.work: tuple[H2Client, Asking] | None = None
        self._resting = resting
        self._task = current_task()

    def wake(self, work: tuple[H2Client, Asking] | None) -> None:
        """Give it its next request, or let it go. Only for one that was just taken from those that rest."""
        self.work = work
        reschedule(self._task)

    def leave(self, _: object) -> Abort:
        """For `wait_task_rescheduled`: the task is cancelled."""
        self._resting.remove(self)
        return Abort.SUCCEEDED


def _named(code: int) -> str:
    try:
        return Code(code).name
    except ValueError:
        return f"error {code}"
