"""WebSockets as far as a load needs them: a handshake, and short messages that come back.

`trio-websocket` would take ten times the processor of the proxy that is looked at. What is right and wrong in the
protocol is held elsewhere, with libraries and suites of others.
"""

from __future__ import annotations

import base64
import os

import trio

from tests.net.sockets import receive_exactly
from tests.proxy.stage import Recording, read_until

UNMASKED = b"\0\0\0\0"
"""A masking key that leaves the payload as it is (RFC 6455 section 5.3)."""

TEXT, CLOSE = 0x81, 0x88
"""First bytes of frames that are whole messages."""

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def echo(stream: trio.SocketStream, recording: Recording) -> None:
    """A backend that answers an upgrade and repeats each message of up to 125 bytes; anything else gets `hello`."""
    while head := await read_until(stream, recording, b"\r\n\r\n"):
        recording.received.clear()
        if b"upgrade: websocket" not in head.lower():
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            continue
        await stream.send_all(SWITCHING)
        while len(start := await receive_exactly(stream, 6)) == 6:  # of its client's frame: two bytes, and the key
            payload = await receive_exactly(stream, start[1] & 0x7F)
            await stream.send_all(bytes([start[0], len(payload)]) + payload)
            if start[0] == CLOSE:
                return
        return


class WebSocket:
    """A client's side, over TLS."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream

    async def open(self, name: str, path: str = "/") -> None:
        """Do the handshake. Raises ConnectionError when it is refused."""
        key = base64.b64encode(os.urandom(16)).decode()
        await self.stream.send_all(
            f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = bytearray()
        while not head.endswith(b"\r\n\r\n"):  # the backend says no more until it is spoken to
            if not (more := await self.stream.receive_some()):
                raise ConnectionError("the handshake was not answered")
            head += more
        if not head.startswith(b"HTTP/1.1 101 "):
            raise ConnectionError(f"no WebSocket: {head[:30]!r}")

    async def repeats(self, text: bytes) -> bool:
        """Whether a message comes back as it was sent."""
        await self._send(TEXT, text)
        return await receive_exactly(self.stream, len(text) + 2) == bytes([TEXT, len(text)]) + text

    async def close(self) -> None:
        """The closing handshake, and the end of the connection."""
        await self._send(CLOSE, b"\x03\xe8")
        await receive_exactly(self.stream, 4)
        await trio.aclose_forcefully(self.stream)

    async def _send(self, first: int, payload: bytes) -> None:
        await self.stream.send_all(bytes([first, 0x80 | len(payload)]) + UNMASKED + payload)
