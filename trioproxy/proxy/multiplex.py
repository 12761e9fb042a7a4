"""A connection to a backend that speaks HTTP/2, which its requests share.

How it works. Two tasks belong to the connection, and the pool's nursery owns them: one reads, hands what came to the
codec and what that tells to the requests it is for (`upstream_h2`); one writes what all of them have queued since it
slept. A request's own task touches no socket.

No request delays another. The reader waits for none: what has come is kept with its request, whose window is opened
again when the client has taken it, so that a slow client holds up to a window's worth and stops its own stream. The
connection's window has room for all of them (`http.h2_codec`).

A backend that vanishes without a word is found by the kernel's keep-alive probes. One that is merely silent runs into
its requests' own limits, and the connection gets no further ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from trioproxy.errors import StreamError, StreamInterrupted
from trioproxy.http.h2 import ClientCodec, Code
from trioproxy.http.messages import END, End, ResponseHead
from trioproxy.net.sock import Reaper, Stream
from trioproxy.proxy.bell import Bell
from trioproxy.proxy.upstream import Backend
from trioproxy.proxy.upstream_h2 import H2Upstream, named

log = logging.getLogger("trioproxy.http")

SEND_AT_ONCE = 64 * 1024
"""Bytes in one call to send: four TLS records."""


class H2Connection:
    """One connection, and the streams that are open on it.

    Attributes:
        backend: Whom it leads to.
        idle_since: The Trio time since when it carries no request; None while it does.
        settled: Set once the backend has said what it is ready to do, or the connection has ended.
        write_patience: Seconds that the backend may take no more of what is sent.
    """

    def __init__(
        self,
        stream: Stream,
        backend: Backend,
        reaper: Reaper,
        gone: Callable[[H2Connection], object],
        wants_h1: Callable[[Backend], object],
    ) -> None:
        self.backend = backend
        self.idle_since: float | None = trio.current_time()
        self.settled = trio.Event()
        self.write_patience = stream.write_patience
        self.codec = ClientCodec(self)
        self.stuck: set[H2Upstream] = set()  # those that wait until the writer has sent what they queued
        self.streams: dict[int, H2Upstream] = {}
        self._bell = Bell()
        self.ring = self._bell.ring
        self._stream = stream
        self._reaper = reaper
        self._gone = gone
        self._wants_h1 = wants_h1  # to be told before the request that is to be asked again
        self._trusted = True
        self._ended = False

    @property
    def room(self) -> bool:
        """Whether it takes another request now; a single one until the backend has said how many at once it takes."""
        if not self.settled.is_set() and self.streams:
            return False
        return self._trusted and not self._ended and self.codec.room > 0

    @property
    def extended_connect(self) -> bool:
        """Whether it carries WebSockets (RFC 8441)."""
        return self.codec.extended_connect

    def open(self) -> H2Upstream:
        """A way to the backend, for a request that is asked at once."""
        return H2Upstream(self)

    def distrust(self) -> None:
        """Give it no further requests; what is under way goes on, and the last of that ends it."""
        self._trusted = False
        if not self.streams:
            self.close()

    def close(self) -> None:
        """End it politely, and with it whatever it still carries."""
        self.codec.terminate(Code.NO_ERROR)
        self.ring()

    async def run(self) -> None:
        """Carry requests until one side has had enough. Never fails: what went wrong is told to the requests."""
        self._reaper.watched.add(self)
        failure: StreamError | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                failure = await self._read()
                nursery.cancel_scope.cancel()
        except Exception:
            log.exception("%s: a bug in trioproxy ended this connection", self.backend)
        finally:
            self._ended = True
            self._reaper.watched.discard(self)
            self._stream.close()
            self.codec.forget()
            for upstream in [*self.streams.values()]:
                upstream.lose(f"the connection was lost{f': {failure}' if failure else ''}")
            self.streams.clear()
            self.settled.set()
            self._gone(self)

    async def _read(self) -> StreamError | None:
        codec = self.codec
        try:
            while data := await self._stream.receive_some():
                codec.receive(data)
                self.settled.set()
                if codec.restless:
                    self.ring()
        except StreamInterrupted:  # by our writer, when all was said
            pass
        except StreamError as exc:
            return exc
        return None

    async def _write(self) -> None:
        codec, stream = self.codec, self._stream
        try:
            while True:
                while data := codec.outgoing(SEND_AT_ONCE):
                    await stream.send_all(data)
                    for upstream in [*self.stuck]:
                        upstream.sent()
                if codec.over or (codec.closing and not self.streams):
                    break
                await self._bell.wait()
        except StreamError as exc:
            stream.interrupt(exc)
        else:
            stream.interrupt()

    # ---- what the codec tells ----------------------------------------------------------------------------

    def on_response(self, stream: int, head: ResponseHead, ended: bool) -> None:
        """See `http.h2.ClientListener`."""
        if (upstream := self.streams.get(stream)) is not None:
            upstream.feed_head(head)
            if ended:
                upstream.feed(END)

    def on_body(self, stream: int, data: bytes) -> None:
        """See `http.h2.Listener`."""
        if (upstream := self.streams.get(stream)) is not None:
            upstream.feed(data)
        else:
            self.codec.consumed(stream, len(data))

    def on_end(self, stream: int, end: End) -> None:
        """See `http.h2.Listener`."""
        if (upstream := self.streams.get(stream)) is not None:
            upstream.feed(end)

    def on_closed(self, stream: int, code: int) -> None:
        """See `http.h2.Listener`."""
        if code == Code.HTTP_1_1_REQUIRED:
            self._wants_h1(self.backend)
            self.distrust()
        if (upstream := self.streams.pop(stream, None)) is not None:
            upstream.closed(code)
        if not self.streams:
            self.idle_since = trio.current_time()
            if not self._trusted:
                self.close()

    def on_over(self, code: int, reason: str) -> None:
        """See `http.h2.Listener`."""
        if code:
            log.info("%s: HTTP/2 ended: %s%s", self.backend, named(code), reason and f": {reason}")

    # ---- for the reaper --------------------------------------------------------------------------------

    def overdue(self, now: float) -> bool:
        """See `Mortal`: looked at once a second, so this is where all is seen to that time brings about."""
        self.codec.second()
        for upstream in [*self.streams.values()]:
            upstream.look(now)
        return False

    def interrupt(self, error: StreamError) -> None:
        """See `Mortal`; it is never overdue as a whole."""
        self._stream.interrupt(error)
