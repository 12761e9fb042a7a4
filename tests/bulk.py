"""Gigabytes up and down through a site of a real `trioproxy serve`, and the memory that it takes meanwhile.

    python -m tests.bulk [--http2] [GIGABYTES]      5 each way when none are named; `make bulk` runs it

The memory may not move by more than 10 MB from where the first 256 MiB left it. With `--http2` the client is curl.
"""

from __future__ import annotations

import functools
import os
import ssl
import sys
import tempfile
from collections.abc import Callable
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


Moved = Callable[[int], None]


async def backend(stream: trio.SocketStream, size: int, moved: Moved) -> None:
    """Swallow a PUT, answer a GET with `size` bytes; `moved` is told how much of it has passed."""
    head = bytearray()
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    if head.startswith(b"PUT"):
        left = size - len(head.partition(b"\r\n\r\n")[2])
        while left:
            left -= len(await stream.receive_some(MIB))
            moved(size - left)
        await stream.send_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
    else:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        for number in range(size // len(PIECE)):
            await stream.send_all(PIECE)
            moved(number * len(PIECE))


async def client(port: int) -> trio.SSLStream[trio.SocketStream]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    stream = await trio.open_tcp_stream(LOOPBACK, port)
    return trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=True)


async def transfer(port: int, size: int, *, up: bool) -> None:
    """Over HTTP/1.1, by a client of our own."""
    stream = await client(port)
    if up:
        await stream.send_all(b"PUT / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size // len(PIECE)):
            await stream.send_all(PIECE)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 204 ")
    else:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = 0
        while got < size:
            data = await stream.receive_some(MIB)
            assert data, "the response ended early"
            got += len(data)
    await stream.transport_stream.aclose()


async def transfer_by_curl(port: int, folder: Path, size: int, *, up: bool) -> None:
    """Over HTTP/2; the upload is a file of holes."""
    body = folder / "body"
    with body.open("wb") as file:
        file.truncate(size)
    told = ["--write-out", "%{http_version} %{size_upload} %{size_download}", "--output", "/dev/null"]
    upload = ["--upload-file", str(body)] if up else []
    command = ["curl", "-sS", "--fail", "--http2", "--insecure", *told, *upload, f"https://localhost:{port}/"]
    done = await trio.run_process(command, capture_stdout=True)
    assert done.stdout.split() == [b"2", *((b"%d" % size, b"0") if up else (b"0", b"%d" % size))], done.stdout


async def run(size: int, folder: Path, *, http2: bool) -> int:
    """Move `size` bytes each way. Returns the exit code."""
    https, http = free_port(), free_port()
    failed = False
    memory: Memory

    def moved(number: int) -> None:
        memory.look(number)  # of the transfer that runs

    serve = functools.partial(trio.serve_tcp, functools.partial(backend, size=size, moved=moved), 0, host=LOOPBACK)
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
            memory = Memory(process.pid)
            began = trio.current_time()
            if http2:
                await transfer_by_curl(https, folder, size, up=up)
            else:
                await transfer(https, size, up=up)
            rate = size / (trio.current_time() - began)
            spread = memory.high - memory.low
            failed = failed or not memory.low or spread > ALLOWED
            print(
                f"{size / 1e9:.1f} GB {'up' if up else 'down'}: between {memory.low / 1e6:.1f} and "
                f"{memory.high / 1e6:.1f} MB resident, {spread / 1e6:.1f} MB apart, "
                f"{rate / 1e6:.0f} MB/s"
            )
        nursery.cancel_scope.cancel()
    return 1 if failed else 0


def main() -> int:
    words = sys.argv[1:]
    http2 = "--http2" in words
    gigabytes = float(next((word for word in words if not word.startswith("-")), 5))
    with tempfile.TemporaryDirectory() as folder:
        size = int(gigabytes * 1e9) // len(PIECE) * len(PIECE)
        return trio.run(functools.partial(run, size, Path(folder), http2=http2))


if __name__ == "__main__":
    sys.exit(main())
