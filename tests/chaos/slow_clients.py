"""Slow clients of five kinds, in a process of their own: what they cost it must not count as the server's.

    python -m tests.chaos.slow_clients PORT NAME COUNT SECONDS

It opens COUNT connections within SECONDS or somewhat more and says, in a line of JSON, how many are there `at_once`.
Then it waits until the server has ended all of them, and says for each kind after how many seconds the last one was
ended. These count from the moment from which the server's deadline counts, as far as a client can know it.

    half-open     connects and says nothing
    hello         sends its ClientHello by one byte a second
    header        after the handshake, sends a request's head by a few bytes a second
    body          sends the head of a POST and a part of the body
    read          asks for more than fits into any buffer, and does not read
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Iterable

import attrs
import trio

from bench.process import raise_descriptor_limit
from tests.proxy.stage import LOOPBACK, client_hello

DRIP = 1.0
"""Seconds between two pieces of what comes slowly."""

PER_ADDRESS = 500
"""Clients that share one address of this machine; a server takes a thousand from each."""

RECEIVE_BUFFER = 4096
"""Bytes that the kernel keeps for a client that does not read."""

SEGMENT = 1400
"""Bytes of a segment, as on the Internet: by those of loopback a server's kernel would reserve megabytes for each."""

LOOK = 0.2
"""Seconds between two looks at whether the server has ended what nobody reads from."""

KINDS = ("read", "body", "header", "hello", "half-open")
"""Those with a handshake come first, for that takes time: all are to be there at one moment."""


def main() -> None:
    """Be them all."""
    raise_descriptor_limit()
    port, name, count, seconds = sys.argv[1:]
    trio.run(Crowd(int(port), name, int(count) // len(KINDS), float(seconds) / int(count)).run)


@attrs.define
class Crowd:
    """All of them.

    Attributes:
        port: Where the server listens.
        name: The site that is asked for.
        each: How many there are of each kind.
        pause: Seconds between two that come: a crowd in one moment is another matter than slow clients.
        lasted: By kind, how many seconds each client was there after its deadline had begun to count.
    """

    port: int
    name: str
    each: int
    pause: float
    lasted: dict[str, list[float]] = attrs.field(factory=lambda: {kind: [] for kind in KINDS})
    _connected: int = 0
    _context: ssl.SSLContext = attrs.field(factory=lambda: ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    _present: int = 0
    _came: int = 0
    _poll: select.poll = attrs.field(factory=select.poll)
    _unread: dict[int, trio.Event] = attrs.field(factory=dict)

    async def run(self) -> None:
        """Come, stay, and be sent away."""
        self._context.check_hostname = False
        self._context.verify_mode = ssl.CERT_NONE
        behaviours = (self._read, self._body, self._header, self._hello, self._half_open)
        async with trio.open_nursery() as services:
            services.start_soon(self._look)
            async with trio.open_nursery() as nursery:
                due = trio.current_time()
                for kind, behave in zip(KINDS, behaviours, strict=True):
                    for _ in range(self.each):
                        nursery.start_soon(self._one, kind, behave)
                        due += self.pause
                        await trio.sleep_until(due)
                while self._came < len(KINDS) * self.each:  # noqa: ASYNC110 - thousands of them
                    await trio.sleep(0.01)
                os.nice(19)  # other machines would do this; here it must not delay those whose delay is measured
                print(json.dumps({"at_once": self._present}), flush=True)
            services.cancel_scope.cancel()
        print(json.dumps({kind: max(lasted) for kind, lasted in self.lasted.items()}), flush=True)

    async def _one(self, kind: str, behave: Callable[[trio.SocketStream], Awaitable[float]]) -> None:
        stream = await self._connect()
        begun = await behave(stream)
        self.lasted[kind].append(trio.current_time() - begun)
        self._present -= 1
        stream.socket.close()

    async def _connect(self) -> trio.SocketStream:
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
        await sock.bind((f"127.0.1.{1 + self._connected // PER_ADDRESS}", 0))
        self._connected += 1
        await sock.connect((LOOPBACK, self.port))
        return trio.SocketStream(sock)

    async def _secure(self, tcp: trio.SocketStream) -> trio.SSLStream[trio.SocketStream]:
        stream = trio.SSLStream(tcp, self._context, server_hostname=self.name, https_compatible=True)
        await stream.do_handshake()
        return stream

    def _stands(self) -> float:
        self._came += 1
        self._present += 1
        return trio.current_time()

    # ---- the five kinds: each returns when the server has ended it, with the time from which its deadline counted --

    async def _half_open(self, tcp: trio.SocketStream) -> float:
        begun = self._stands()
        await gone(tcp)
        return begun

    async def _hello(self, tcp: trio.SocketStream) -> float:
        begun = self._stands()
        await drip(tcp, (bytes([byte]) for byte in client_hello(self.name)))
        return begun

    async def _header(self, tcp: trio.SocketStream) -> float:
        stream = await self._secure(tcp)
        begun = self._stands()
        await drip(stream, (f"GET / HTTP/1.1\r\nHost: {self.name}\r\n".encode(), *[b"X-Slow: yes\r\n"] * 60))
        return begun

    async def _body(self, tcp: trio.SocketStream) -> float:
        stream = await self._secure(tcp)
        head = f"POST / HTTP/1.1\r\nHost: {self.name}\r\nContent-Length: 1000000\r\n\r\n"
        await stream.send_all(head.encode() + bytes(1000))
        begun = self._stands()
        await gone(stream)
        return begun

    async def _read(self, tcp: trio.SocketStream) -> float:
        stream = await self._secure(tcp)
        await stream.send_all(f"GET /large HTTP/1.1\r\nHost: {self.name}\r\n\r\n".encode())
        begun = self._stands()
        self._poll.register(tcp.socket.fileno(), select.POLLERR | select.POLLHUP)
        self._unread[tcp.socket.fileno()] = ended = trio.Event()
        await ended.wait()
        return begun

    async def _look(self) -> None:
        """Notice who was reset: to wait for something to read would not tell, for there always is."""
        while True:
            for descriptor, _ in self._poll.poll(0):
                self._poll.unregister(descriptor)
                self._unread.pop(descriptor).set()
            await trio.sleep(LOOK)


async def drip(stream: trio.abc.Stream, pieces: Iterable[bytes]) -> None:
    """Send one piece after the other, until there are no more and the server has ended the connection."""
    with contextlib.suppress(trio.BrokenResourceError):
        for piece in pieces:
            await stream.send_all(piece)
            with trio.move_on_after(DRIP):
                await gone(stream)
                return
    await gone(stream)


async def gone(stream: trio.abc.ReceiveStream) -> None:
    """Return when the server has ended the connection; an alert or a page that says why may come before."""
    with contextlib.suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass


if __name__ == "__main__":
    main()
