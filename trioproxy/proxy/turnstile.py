"""Where a client of HTTP/1.1 waits for its next request, and where most requests are answered without its task.

Between two requests a connection's task sleeps here. What the client says is heeded by a function that reads the
request and has a backend asked `at_once`. Nothing in that waits. As soon as something would have to be waited for (a
connection to a backend, the rest of a request's body, a client that takes no more), or comes to an end in any but the
usual way, the task is woken and goes on from there by the ordinary way; so what can go wrong is seen to in one place,
and that is not here.

What is spared is Trio's part, which is a quarter of what such a request costs otherwise.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import NamedTuple, NoReturn

from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from trioproxy.http.h1 import RequestReader
from trioproxy.http.messages import RequestHead
from trioproxy.net.sock import Stream
from trioproxy.proxy.asking import Asking, Prepare
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.proxy.failure import blame
from trioproxy.proxy.h1_client import H1Client


class Begun(NamedTuple):
    """An exchange that the task is to go on with.

    Attributes:
        client: Whose it is.
        rest: Does what is left of it; None when it only has to be sent.
    """

    client: H1Client
    rest: Callable[[], Awaitable[None]] | None


class Turnstile:
    """The one of a connection, and the patron of what is asked there.

    Attributes:
        ended: The client has ended the connection, between two requests.
    """

    __slots__ = (
        "_asking",
        "_client",
        "_ctx",
        "_deaf",
        "_error",
        "_idle",
        "_prepare",
        "_reader",
        "_stream",
        "_task",
        "_visit",
        "_wanted",
        "ended",
    )

    def __init__(
        self, ctx: ProxyContext, stream: Stream, visit: Visit, reader: RequestReader, idle: float, prepare: Prepare
    ) -> None:
        self._ctx = ctx
        self._stream = stream
        self._visit = visit
        self._reader = reader
        self._idle = idle  # seconds
        self._prepare = prepare
        self.ended = False
        self._task: Task | None = None  # while it sleeps
        self._wanted = False  # it is to wake up, or not to fall asleep
        self._deaf = False  # the client said more before it had its answer: that has to wait
        self._client: H1Client | None = None  # of the exchange that is under way
        self._asking: Asking | None = None  # the same
        self._error: Exception | None = None

    def begin(self, request: RequestHead) -> None:
        """Have `request` answered, which the task has read; to be followed by `wait`."""
        ctx, visit = self._ctx, self._visit
        client = self._client = H1Client(ctx, self._stream, self._reader, self._idle, visit.record(request))
        try:
            asking = self._asking = self._prepare(ctx, visit, request, client)
            if asking is None:
                self.over()
            elif not asking.at_once(self):
                self.wake()
        except Exception as exc:  # whatever it is, it is raised in the connection's task
            self._error = exc
            self.wake()

    async def wait(self) -> Begun | None:
        """Sleep until there is something that wants a task.

        Returns:
            The exchange that is under way; None when there is none, and the connection is to be read by the task, or
            has `ended`.

        Raises:
            RequestError: what came is no request.
            ConnectionLost: the client was lost before it sent one.
        """
        ctx, stream = self._ctx, self._stream
        stream.expect(self._idle)
        if self._client is None and not self._wanted:
            self._await_client()
            self._wanted = stream.interrupted
        try:
            if not self._wanted:
                ctx.watch.listen(stream, self._on_client)
                self._task = current_task()
                await wait_task_rescheduled(self._leave)
        except BaseException as exc:
            self._abandon(exc)
            raise
        finally:
            ctx.drain.idle.discard(stream)
            stream.await_for(None)
            ctx.watch.forget(stream)
            self._deaf = self._wanted = False
        client, asking = self._client, self._asking
        self._client = self._asking = None
        if client is None:
            if self._error is not None:
                self._fail()
            return None
        if self._error is not None:
            return Begun(client, self._fail)
        return Begun(client, None if asking is None else asking.go_on)

    def _fail(self) -> NoReturn:
        error, self._error = self._error, None
        if error is None:
            raise TypeError("nothing has failed")
        try:
            raise error
        finally:
            del error  # it holds this frame, which would hold it

    def _abandon(self, exc: BaseException) -> None:
        """The task was cancelled, or cannot sleep: whatever was under way ends here."""
        if self._asking is not None:
            self._asking.abandon()
        if (client := self._client) is not None:
            blame(client.record, exc)
            self._tell(client)
            if client.ends_by_closing:  # see `serve_h1`
                self._stream.abort()

    def _leave(self, _: object) -> Abort:
        self._task = None
        self._wanted = True
        return Abort.SUCCEEDED

    # ---- what is heeded: never waits, never raises ----------------------------------------------------------

    def _on_client(self) -> None:
        """The client has said something."""
        if self._client is not None or self._wanted:
            self._deaf = True
            self._ctx.watch.forget(self._stream)
            return
        try:
            data = self._stream.receive_at_once()
            if data is None:
                return
            self.ended = not data
            self._reader.feed(data)
            request = self._reader.next()
            if isinstance(request, RequestHead):
                self._ctx.drain.idle.discard(self._stream)
                self._stream.await_for(None)  # now it waits for us
                self.begin(request)
                return
        except Exception as exc:  # as above
            self._error = exc
        self.wake()

    def _tell(self, client: H1Client) -> None:
        client.record.ended = perf_counter()
        self._ctx.witness.exchange(client.record)

    def _await_client(self) -> None:
        self._stream.write_patience = self._idle  # a route may have had another
        self._stream.await_for(self.wake)
        self._ctx.drain.idle.add(self._stream)

    # ---- see `Patron` ---------------------------------------------------------------------------------------

    def send(self) -> bool:
        """See `Patron.send`."""
        return self._client is not None and self._client.send_at_once()

    def over(self) -> None:
        """See `Patron.over`: send the rest of the response, and wait for the next request."""
        client = self._client
        through = client is not None and not client.closing and client.send_at_once()
        self._asking = None
        if client is None or not through:
            self.wake()
            return
        self._tell(client)
        self._client = None
        self._await_client()
        if self._deaf:
            self._deaf = False
            self._ctx.watch.listen(self._stream, self._on_client)
        if self._reader.unread or self._ctx.drain.begun or self._stream.interrupted:
            self.wake()

    def wake(self) -> None:
        """See `Patron.wake`."""
        self._wanted = True
        if self._task is not None:
            task, self._task = self._task, None
            reschedule(task)
