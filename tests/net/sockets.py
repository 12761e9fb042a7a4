"""Connected TCP sockets for tests, non-blocking on our side and blocking-free on the other."""

from __future__ import annotations

import os
import resource
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper, Stream


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of a real TCP connection over loopback, both non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def trio_stream(sock: socket.socket) -> trio.SocketStream:
    """The far end as a peer uses it."""
    return trio.SocketStream(trio.socket.from_stdlib_socket(sock))


def stream_pair(reaper: Reaper) -> tuple[Stream, trio.SocketStream]:
    """Our stream, and the peer's."""
    near, far = tcp_pair()
    return Stream(near, reaper), trio_stream(far)


@asynccontextmanager
async def running(reaper: Reaper, pump: Pump | None = None) -> AsyncIterator[trio.Nursery]:
    """A nursery in which the reaper, and the pump if there is one, run until the block ends."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)  # noqa: ASYNC113 - it may begin whenever it likes
        if pump is not None:
            nursery.start_soon(pump.run)  # noqa: ASYNC113
        yield nursery
        nursery.cancel_scope.cancel()


async def reset(peer: trio.SocketStream) -> None:
    """Close the peer's end with RST."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await peer.aclose()


async def until(condition: Callable[[], object]) -> None:
    """Pass checkpoints until `condition` holds: for what the code under test has no event to tell by."""
    while not condition():  # noqa: ASYNC110 - there is no event
        await trio.lowlevel.checkpoint()


async def receive_exactly(stream: trio.abc.ReceiveStream, size: int) -> bytes:
    """`size` bytes, or what came before the end."""
    data = bytearray()
    while len(data) < size and (more := await stream.receive_some(size - len(data))):
        data += more
    return bytes(data)


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything until the end."""
    return b"".join([data async for data in stream])


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """While it lasts this process gets no descriptor beside those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    holes: list[int] = []
    try:
        # The limit is one on numbers, so those below the highest one must be taken.
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        while not holes or holes[-1] < highest:
            holes.append(os.open(os.devnull, os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (holes[-1] + 1, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for descriptor in holes:
            os.close(descriptor)
