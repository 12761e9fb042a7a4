"""A site's upgraded connection (WebSocket or another protocol), byte for byte.

The client's side is TLS or a stream of HTTP/2, so the pump, which moves bytes between plain sockets inside the kernel,
cannot do this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import trio

from trioproxy.errors import ConnectionLost, StreamError
from trioproxy.witness.records import BROKEN_OFF, DONE, ENDED_HERE, Exchange


class Duplex(Protocol):
    """Bytes both ways. A `net.sock.Stream` is one; a stream of an HTTP/2 connection can be made one (RFC 8441)."""

    async def receive_some(self) -> bytes:
        """The next bytes; b"" at the end of that direction. Raises StreamError."""

    async def send_all(self, data: bytes) -> None:
        """Send all of it. Raises StreamError."""

    def send_eof(self) -> None:
        """End our direction. Never fails."""

    def expect(self, seconds: float) -> None:
        """From now on the peer may be silent for at most `seconds` while we read, also for a read under way."""

    def interrupt(self, error: StreamError | None = None) -> None:
        """Wake whoever waits for it with `error`; who waits later gets it at once."""


async def tunnel(client: Duplex, backend: Duplex, idle: float, record: Exchange) -> None:
    """Carry bytes both ways until the backend has ended, one side is lost, or both are silent for `idle` seconds.

    `record` counts them, and is told what went wrong.

    A client that ends its direction is passed on as a half-close. When the backend ends, all is over: TLS gives a
    client no dependable way to go on sending after that.
    """
    record.status = 101
    record.upgraded = True
    client.expect(idle)
    backend.expect(idle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_carry, client, backend, idle, record, record.count_received)
        await _carry(backend, client, idle, record, record.count_sent)
        nursery.cancel_scope.cancel()


async def _carry(source: Duplex, sink: Duplex, idle: float, record: Exchange, count: Callable[[int], None]) -> None:
    try:
        while data := await source.receive_some():
            await sink.send_all(data)
            count(len(data))
            sink.expect(idle)  # a side that listens for an hour is not idle as long as it is spoken to
        sink.send_eof()
    except StreamError as exc:
        if record.outcome == DONE:
            record.outcome = BROKEN_OFF if isinstance(exc, ConnectionLost) else ENDED_HERE
            record.reason = str(exc)
        # The other direction cannot go on either; it learns by the same door.
        source.interrupt(exc)
        sink.interrupt(exc)
