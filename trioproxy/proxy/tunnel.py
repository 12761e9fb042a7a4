"""A site's upgraded connection (WebSocket or another protocol), byte for byte.

The client's side is TLS, so the pump, which moves bytes between plain sockets inside the kernel, cannot do this.
"""

from __future__ import annotations

import trio

from trioproxy.errors import StreamError
from trioproxy.net.sock import Stream


async def tunnel(client: Stream, backend: Stream, idle: float) -> None:
    """Carry bytes both ways until the backend has ended, one side is lost, or both are silent for `idle` seconds.

    A client that ends its direction is passed on as a half-close. When the backend ends, all is over: TLS gives a
    client no dependable way to go on sending after that.
    """
    client.expect(idle)
    backend.expect(idle)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_carry, client, backend, idle)
        await _carry(backend, client, idle)
        nursery.cancel_scope.cancel()


async def _carry(source: Stream, sink: Stream, idle: float) -> None:
    try:
        while data := await source.receive_some():
            await sink.send_all(data)
            sink.expect(idle)  # a side that listens for an hour is not idle as long as it is spoken to
        sink.send_eof()
    except StreamError as exc:
        # The other direction cannot go on either; it learns by the same door.
        source.interrupt(exc)
        sink.interrupt(exc)
