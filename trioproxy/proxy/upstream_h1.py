"""A connection to a backend that speaks HTTP/1.1: one request at a time, then back to the pool.

This is the hot path. Claiming, asking, answering and giving back make no task, lock, timer or set entry: the reaper
knows a connection for as long as it lives, and whom to look at meanwhile is one assignment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from trioproxy.errors import (
    ClientLeft,
    ConnectionLost,
    StreamError,
    StreamTimeout,
    Unanswered,
    UpstreamError,
    UpstreamTimeout,
)
from trioproxy.http.h1 import ResponseReader, encode_chunk, encode_last_chunk, encode_request_line
from trioproxy.http.messages import End, RequestHead
from trioproxy.http.rewriting import WrittenFields
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.watch import Watch
from trioproxy.proxy.tunnel import Duplex
from trioproxy.proxy.upstream import Asker, Backend


class H1Upstream:
    """`proxy.upstream.Upstream` over HTTP/1.1.

    Attributes:
        backend: Whom it leads to.
        reused: It has carried a request before, so the backend may have closed it just now.
        idle_since: The Trio time at which it was given back last.
    """

    __slots__ = (
        "_answering",
        "_asker",
        "_chunked",
        "_end",
        "_heed",
        "_interrupted",
        "_reader",
        "_reaper",
        "_release",
        "_stream",
        "_watch",
        "backend",
        "expect",
        "idle_since",
        "next",
        "reused",
        "unsent",
        "whole",
    )

    def __init__(
        self, stream: Stream, backend: Backend, reaper: Reaper, release: Callable[[H1Upstream], object]
    ) -> None:
        self.backend = backend
        self.reused = False
        self.idle_since = 0.0
        self.unsent: bytes | memoryview = b""
        self._stream = stream
        self._reader = ResponseReader()
        self._reaper = reaper
        self._release = release
        self._asker: Asker | None = None  # while a request is under way
        self._answering = False  # something of the awaited response has come
        self._chunked = False
        self._interrupted = False
        self._end: str | None = None  # what `take` has met with: "" is an ordinary one
        self._watch: Watch | None = None
        self._heed: Callable[[], None] | None = None
        # Asked several times for each response, so without a function of ours between: see `Upstream`.
        self.next = self._reader.next
        self.whole = self._reader.whole
        self.expect = stream.expect
        reaper.watched.add(self)

    # ---- one exchange: see `Upstream` --------------------------------------------------------------------

    def ask(
        self, request: RequestHead, target: bytes, fields: WrittenFields, body: Sequence[bytes | End], asker: Asker
    ) -> None:
        """See `Upstream.ask`."""
        self._asker = asker
        self._answering = False
        self._chunked = request.body_length is None
        self._reader.expect(request.method, request.upgrade is not None)
        first = encode_request_line(request.method, target) + fields.block()
        if self._chunked:
            first = b"".join((first, *map(_chunk, body)))
        elif body and not isinstance(body[0], End):
            first = b"".join((first, *[piece for piece in body if isinstance(piece, bytes)]))
        try:
            sent = self._stream.send_at_once(first)
        except StreamError:
            return
        if sent < len(first):
            self.unsent = memoryview(first)[sent:]

    async def flush(self) -> None:
        """See `Upstream.flush`."""
        unsent, self.unsent = self.unsent, b""
        with contextlib.suppress(StreamError):
            await self._stream.send_all(unsent)

    async def send(self, piece: bytes | End) -> bool:
        """See `Upstream.send`."""
        if self._chunked:
            piece = _chunk(piece)
        elif isinstance(piece, End):
            return True
        try:
            await self._stream.send_all(piece)
        except StreamError:
            return False
        return True

    async def receive(self) -> None:
        """See `Upstream.receive`."""
        stream = self._stream
        likely = self._answering and not stream.interrupted  # which else the next one would be told of, not this one
        try:
            data = await stream.receive_some(likely=likely) if self._end is None else self._told_before()
        except ClientLeft:
            raise
        except StreamTimeout as exc:
            raise UpstreamTimeout(f"{self.backend}: no answer in time") from exc
        except StreamError as exc:
            if self.reused and not self._answering:
                raise Unanswered(f"{self.backend}: the connection was closed") from exc
            raise UpstreamError(f"{self.backend}: {exc}") from exc
        if data:
            self._answering = True
            self._reader.feed(data)
        elif self.reused and not self._answering:
            raise Unanswered(f"{self.backend}: the connection was closed")
        else:
            self._reader.feed_eof()

    # ---- without a task that waits: see `turnstile` --------------------------------------------------------

    def listen(self, watch: Watch, heed: Callable[[], None], wake: Callable[[], None]) -> None:
        """Until `rest` or `done`: call `heed` when something can be taken in, `wake` when that is waited for no more.

        Raises UpstreamError: it cannot be listened to.
        """
        if self._watch is None:
            try:
                watch.listen(self._stream, self._heard)  # and for good: it will be asked again
            except StreamError as exc:
                raise UpstreamError(f"{self.backend}: {exc}") from exc
            self._watch = watch
        self._heed = heed
        self._stream.await_for(wake)

    def _heard(self) -> None:
        if self._heed is not None:
            try:
                self._heed()
            except BaseException:  # a bug, after which the watch tells no more; but it may have been given back
                self._forget()
                raise
        else:  # it is idle, and what comes unasked shows when it is claimed; or a task reads it
            self._forget()

    def _forget(self) -> None:
        if self._watch is not None:
            self._watch.forget(self._stream)
            self._watch = None

    def take(self) -> bool:
        """Take in what has come. False when that is an end or an error: `receive` tells what it means."""
        try:
            data = self._stream.receive_at_once()
        except StreamError as exc:
            self._end = str(exc)
            return False
        if data:
            self._answering = True
            self._reader.feed(data)
        elif data is not None:
            self._end = ""
            return False
        return True

    def _told_before(self) -> bytes:
        """The end again, for sockets tell of it once: after a reset they give an end that looks like a proper one."""
        if self._end:
            raise ConnectionLost(self._end)
        return b""

    def rest(self) -> None:
        """Call nobody any more."""
        self._heed = None
        self._stream.await_for(None)

    def hand_over(self) -> Duplex:
        """See `Upstream.hand_over`."""
        self._asker = None
        early = self._reader.rest()
        return _Continued(self._stream, early) if early else self._stream

    def done(self, *, keep: bool) -> None:
        """See `Upstream.done`."""
        self._asker = None
        if self._heed is not None:
            self.rest()
        if keep and self._reader.reusable and not self._interrupted:
            self.reused = True
            self._release(self)
        else:
            self.close()

    # ---- between two -----------------------------------------------------------------------------------

    def quiet(self) -> bool:
        """Whether nothing has come since it was given back: neither an end nor what would be taken for an answer."""
        return self._stream.quiet()

    def close(self) -> None:
        """Close the connection. Never fails."""
        self._reaper.watched.discard(self)
        self._stream.close()

    # ---- for the reaper: a backend that is silent must not be waited for on behalf of nobody ---------------

    def overdue(self, now: float) -> bool:  # noqa: ARG002 - it goes by the client, not by time
        """See `Mortal`."""
        return self._asker is not None and self._asker.left()

    def interrupt(self, error: StreamError) -> None:  # noqa: ARG002
        """See `Mortal`."""
        self._interrupted = True  # which the stream does not forget, so that the next one would be told of it
        self._stream.interrupt(ClientLeft("the client left before the response was through"))


def _chunk(piece: bytes | End) -> bytes:
    return encode_last_chunk(piece.trailers) if isinstance(piece, End) else encode_chunk(piece)


class _Continued:
    """A stream of which some bytes were read already; they come first."""

    def __init__(self, stream: Stream, early: bytes) -> None:
        self._early = early
        self._stream = stream
        self.send_all = stream.send_all
        self.send_eof = stream.send_eof
        self.expect = stream.expect
        self.interrupt = stream.interrupt

    async def receive_some(self) -> bytes:
        early, self._early = self._early, b""
        return early or await self._stream.receive_some()
