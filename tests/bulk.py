"""Gigabytes up and down through a site of a real `trioproxy serve`, and the memory that it takes meanwhile.

    python -m tests.bulk [GIGABYTES]      5 each way when none are named; `make bulk` runs it

The memory may not move by more than 10 MB from where the first 256 MiB left it.
"""

from __future__ import annotations

import functools
import os
import ssl
import sys
import tempfile
from pathlib import Path

import trio

from tests.autobahn import free_port, listening
from tests.e2e.proxy import TRIOPROXY
from tests.proxy.stage import LOOPBACK

PIECE = b"x" * 256 * 1024
MIB = 1 << 20
SETTLED = 256 * MIB
ALLOWED = 10 * 10**6


class Memory:
    """The resident memory of a process, looked at again and again."""

    def __init__(self, pid: int) -> None:
        self._file = Path(f"/proc/{pid}/statm")
        self.low = self.high = 0

    def look(self, moved: int) -> None:
        """Take note of it, once `moved` bytes are enough for it to have settled."""
        if moved >= SETTLED:
            now = int(self._file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.low = min(self.low or now, now)
            self.high = max(self.high, now)


async def backend(stream: trio.SocketStream, size: int) -> None:
    """Swallow a PUT, answer a GET with `size` bytes."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    if head.startswith(b"PUT"):
        left = size - len(head.partition(b"\r\n\r\n")[2])
        while left:
            left -= len(await stream.receive_some(MIB))
        await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    else:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(PIECE)):
            await stream.send_all(PIECE)


async def client(port: int) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    stream = await trio.open_tcp_stream(LOOPBACK, port)
    return trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)


async def transfer(port: int, pid: int, size: int, *, up: bool) -> Memory:
    memory = Memory(pid)
    stream = await client(port)
    if up:
        await stream.send_all(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        for number in range(size // len(PIECE)):
            await stream.send_all(PIECE)
            memory.look(number * len(PIECE))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 204 ")
    else:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = 0
        while got < size:
            data = await stream.receive_some(MIB)
            assert data, "the response ended early"
            got += len(data)
            memory.look(got)
    await stream.transport_stream.aclose()
    return memory


async def run(size: int, folder: Path) -> int:
    """Move `size` bytes each way. Returns the exit code."""
    https, http = free_port(), free_port()
    failed = False
    serve = functools.partial(trio.serve_tcp, functools.partial(backend, size=size), 0, host=LOOPBACK)
    async with trio.open_nursery() as nursery:
        (there,) = await nursery.start(serve)
        config = folder / "config.toml"
        await trio.Path(config).write_text(
            f'[listen]\nhttps = ["{LOOPBACK}:{https}"]\nhttp = ["{LOOPBACK}:{http}"]\n'
            f'[storage]\npath = "{folder / "storage"}"\n'
            f'[sites."localhost"]\n"/" = "http://{LOOPBACK}:{there.socket.getsockname()[1]}"\ntls = "internal"\n'
        )
        process = await nursery.start(trio.run_process, [TRIOPROXY, "--config", str(config), "serve"])
        await listening(https)
        for up in (True, False):
            memory = await transfer(https, process.pid, size, up=up)
            spread = memory.high - memory.low
            failed = failed or not memory.low or spread > ALLOWED
            print(
                f"{size / 1e9:.1f} GB {'up' if up else 'down'}: between {memory.low / 1e6:.1f} and "
                f"{memory.high / 1e6:.1f} MB resident, {spread / 1e6:.1f} MB apart"
            )
        nursery.cancel_scope.cancel()
    return 1 if failed else 0


def main() -> int:
    gigabytes = float(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        return trio.run(run, int(gigabytes * 1e9) // len(PIECE) * len(PIECE), Path(folder))


if __name__ == "__main__":
    sys.exit(main())
