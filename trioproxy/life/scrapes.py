"""`[admin] metrics`: what is measured, for a Prometheus that comes and asks.

A tiny server, one request a connection, and not the proxy's own: its visits are in no log and no count. Whatever is
done to it, the proxy loses little: a few connections at a time, seconds for each, and the text is made once a second
at most, in pieces between which others have their turn.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import attrs
import trio

from trioproxy.config.model import HostPort, Limits
from trioproxy.errors import ListenError, RequestError, StreamError
from trioproxy.http.h1 import RequestReader, encode_response_head
from trioproxy.http.headers import reason_phrase
from trioproxy.http.messages import RequestHead
from trioproxy.net.listen import Peer, accept_forever, bind
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Reaper, Stream
from trioproxy.process.inheritance import Heirloom
from trioproxy.witness.exposition import CONTENT_TYPE, Samples, text

log = logging.getLogger("trioproxy.metrics")

KIND = "metrics"
"""What an heirloom of ours is called."""

PATH = b"/metrics"

VISITS = 8
"""Connections at a time; who comes when there are so many is turned away."""

PATIENCE = 10.0
"""Seconds from the first byte to the last: Prometheus itself gives up after as many."""

FRESH = 1.0
"""Seconds for which the same text is given to all who ask."""

PIECES = 100
"""Pieces of the text that are made in a row, which takes some milliseconds."""

LIMITS = Limits(header_size=8 * 1024, header_fields=50)

Gather = Callable[[], Awaitable[Samples]]
"""Asks all who have measured something."""


@attrs.frozen
class _Listener:
    sock: socket.socket
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class Scrapes:
    """The listener for metrics, where there is to be one.

    As a context manager it closes, at the end, what nobody accepts from.

    Args:
        reaper: Looks after the streams.
        gather: Where the samples come from.
    """

    def __init__(self, reaper: Reaper, gather: Gather) -> None:
        self._reaper = reaper
        self._gather = gather
        self._address: HostPort | None = None
        self._listener: _Listener | None = None
        self._moved = trio.Event()
        self._running = False
        self._visits = 0
        self._making = trio.Lock()
        self._made = b""
        self._made_at = -FRESH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave()

    # ---- where --------------------------------------------------------------------------------------

    @contextmanager
    def moving(self, address: HostPort | None) -> Iterator[None]:
        """Listen at `address` and nowhere else, once the block has ended well; else all is as it was.

        Raises:
            ListenError: that cannot be bound; the block is not begun then.
        """
        if address == self._address:
            yield
            return
        fresh: _Listener | None = None
        if address is not None:
            try:
                [sock] = bind([address], optional=False)
            except ListenError as exc:
                raise ListenError(f"admin.metrics: {exc}") from exc
            fresh = _Listener(sock)
        try:
            yield
        except BaseException:
            if fresh:
                fresh.sock.close()
            raise
        self._leave()
        self._address, self._listener = address, fresh
        self._moved.set()

    def inherit(self, heirlooms: Iterable[Heirloom], address: HostPort | None) -> None:
        """Go on with an older process's listener, if it is at `address`; every other one is closed."""
        for heirloom in heirlooms:
            if heirloom.address == address and self._listener is None:
                self._address, self._listener = address, _Listener(heirloom.sock)
            else:
                heirloom.sock.close()

    def heirlooms(self) -> tuple[Heirloom, ...]:
        """What a newer process is to go on with."""
        if self._address is None or self._listener is None:
            return ()
        return (Heirloom(KIND, self._address, given=False, sock=self._listener.sock),)

    def bound(self) -> HostPort | None:
        """Where it really listens, None while nowhere."""
        if self._listener is None or self._listener.sock.fileno() < 0:  # the server is stopping
            return None
        return HostPort(*self._listener.sock.getsockname()[:2])

    def _leave(self) -> None:
        """Give the listener up; who accepts from it closes it, when it has let go."""
        if self._listener and self._running:
            self._listener.scope.cancel()
        elif self._listener:
            self._listener.sock.close()
        self._address = self._listener = None

    # ---- answering ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer whoever asks, until cancelled."""
        self._running = True
        async with trio.open_nursery() as visits:

            def handle(sock: Socket, _: Peer) -> None:
                if self._visits >= VISITS:
                    sock.close()
                else:
                    self._visits += 1
                    visits.start_soon(self._visit, sock)

            while True:
                if self._listener is None:
                    await self._moved.wait()
                self._moved = trio.Event()
                if (listener := self._listener) is not None:
                    with listener.sock, listener.scope:
                        await accept_forever(listener.sock, handle)

    async def _visit(self, sock: Socket) -> None:
        stream = Stream(sock, self._reaper)
        stream.deadline = trio.current_time() + PATIENCE
        try:
            await stream.send_all(await self._answer(stream))
            stream.send_eof()
            await stream.drain()
        except StreamError as exc:
            log.debug("metrics: %s", exc)
        except Exception:
            log.exception("a bug in trioproxy ended a visit to its metrics")
        finally:
            self._visits -= 1
            stream.close()

    async def _answer(self, stream: Stream) -> bytes:
        try:
            request = await _request(stream)
        except RequestError as exc:
            return _response(exc.status, f"{exc}\n".encode())
        if request.target.partition(b"?")[0] != PATH:
            return _response(404, b"The metrics are at /metrics.\n")
        if request.method not in (b"GET", b"HEAD"):
            return _response(405, b"The metrics can only be read, by GET or HEAD.\n")
        return _response(200, await self._page(), CONTENT_TYPE, bodiless=request.method == b"HEAD")

    async def _page(self) -> bytes:
        async with self._making:
            if trio.current_time() >= self._made_at + FRESH:
                samples = await self._gather()
                parts: list[str] = []
                for number, part in enumerate(text(samples)):
                    parts.append(part)
                    if not number % PIECES:
                        await trio.lowlevel.checkpoint()
                self._made, self._made_at = "".join(parts).encode(), trio.current_time()
            return self._made


async def _request(stream: Stream) -> RequestHead:
    """The head of the one request of a connection.

    Raises:
        RequestError: there is none that could be understood.
        StreamError: the connection was lost, or said too little for too long.
    """
    reader = RequestReader(LIMITS)
    while not isinstance(event := reader.next(), RequestHead):
        data = await stream.receive_some()
        if not data:
            raise RequestError("the request is not complete", 400)
        reader.feed(data)
    return event


def _response(status: int, body: bytes, kind: bytes = b"text/plain; charset=utf-8", *, bodiless: bool = False) -> bytes:
    fields = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"allow", b"GET, HEAD"),
        (b"connection", b"close"),
    ]
    head = encode_response_head(status, reason_phrase(status), fields)
    return head if bodiless else head + body
