"""A client or a backend that is gone at any byte of an exchange leaves nothing behind.

Each test goes through every position of one direction of a small exchange, chunked both ways. After each, nothing of it
lives on: no task, no descriptor, no connection to the backend that would give its rest to somebody else. A bystander
shows the last: it asks by a connection of its own between any two of them, and would get what was left over.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import attrs
import pytest
import trio

from tests.net.sockets import open_descriptors, receive_exactly, reset, until
from tests.proxy.stage import (
    HELLO,
    Caller,
    Recording,
    Stage,
    backend,
    client_context,
    make_config,
    read_until,
    site,
    stage,
)
from trioproxy.net.sock import Reaper

NAME = "cloud.test"
REQUEST = (
    b"POST /up HTTP/1.1\r\nHost: cloud.test\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"4\r\nming\r\n6;x=y\r\n vases\r\n0\r\nX-Sum: 7\r\n\r\n"
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
    b"5\r\nfirst\r\n7\r\n second\r\n0\r\nX-Sum: 3\r\n\r\n"
)
LAST = b"0\r\n\r\n"


@attrs.define
class Backend:
    """Answers with `RESPONSE` or, once, does what it is told.

    Attributes:
        armed: The next connection is the one to do it on.
        reads: It reads so many bytes of the request, then leaves; None: the whole of it.
        sends: It sends so many bytes of the response.
        leaves: How it leaves then; None: it does not.
        done: It has done it.
    """

    armed: bool = False
    reads: int | None = None
    sends: int = len(RESPONSE)
    leaves: str | None = None
    done: trio.Event = attrs.field(factory=trio.Event)

    def arm(self, *, reads: int | None = None, sends: int = len(RESPONSE), leaves: str | None = None) -> None:
        self.armed, self.reads, self.sends, self.leaves, self.done = True, reads, sends, leaves, trio.Event()

    async def __call__(self, stream: trio.SocketStream, recording: Recording) -> None:
        if self.armed:
            self.armed = False
            if self.reads is None:
                await read_until(stream, recording, b"x-sum: 7\r\n\r\n")
                await stream.send_all(RESPONSE[: self.sends])
            else:
                await receive_exactly(stream, self.reads)
            self.done.set()
            if self.leaves:
                await leave(stream, self.leaves)
                return
        while await read_until(stream, recording, b"\r\n\r\n"):
            await stream.send_all(HELLO)


async def leave(stream: trio.SocketStream, how: str) -> None:
    """End a connection by FIN or by RST."""
    await (reset(stream) if how == "RST" else stream.aclose())


@attrs.frozen
class Scene:
    """The proxy, its backend, a bystander, how many descriptors all that takes, and the clients' TLS."""

    proxy: Stage
    backend: Backend
    seen: Recording
    bystander: Caller
    descriptors: int
    tls: ssl.SSLContext = attrs.field(factory=client_context)  # making one costs more than an exchange

    async def alone(self) -> None:
        """Wait until the proxy has only the bystander's connection."""
        with trio.fail_after(5):
            await until(lambda: len(self.proxy.connections.child_tasks) == 1)

    async def aftermath(self) -> None:
        """What must hold when one of an exchange's parties has vanished."""
        with trio.fail_after(5):
            answer = await self.bystander.ask("GET", "/", NAME)
            assert (answer.status, answer.body) == (200, b"hello")
            await self.alone()
            await until(lambda: self.seen.connections - self.seen.ended == 1)  # kept for the next request
            assert open_descriptors() == self.descriptors

    async def client(self) -> trio.SSLStream[trio.SocketStream]:
        """A client whose request will be the first on a connection to the backend."""
        self.proxy.ctx.pool.close_idle()
        stream = trio.SSLStream(await self.proxy.raw(), self.tls, server_hostname=NAME, https_compatible=True)
        await stream.do_handshake()
        return stream


@asynccontextmanager
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(Reaper, "PERIOD", 0.005)  # it is what sees that a client has left a silent backend
    actor = Backend()
    async with backend(actor) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        bystander = Caller(await proxy.tls(NAME))
        assert (await bystander.ask("GET", "/", NAME)).status == 200
        yield Scene(proxy, actor, seen, bystander, open_descriptors())


async def all_of(stream: trio.SSLStream[trio.SocketStream]) -> bytes:
    """What a client gets until the end, however it ends."""
    recording = Recording()
    with suppress(trio.BrokenResourceError):
        await read_until(stream, recording, b"never")
    return bytes(recording.received)


HOW = pytest.mark.parametrize("how", ["FIN", "RST"])


@HOW
async def test_clients_that_vanish_inside_their_request(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with scene(monkeypatch) as here:
        for position in range(len(REQUEST)):
            here.backend.arm()
            stream = await here.client()
            await stream.send_all(REQUEST[:position])
            await leave(stream.transport_stream, how)
            await here.alone()
            here.backend.armed = False
            await here.aftermath()


@HOW
async def test_clients_that_vanish_inside_their_response(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with scene(monkeypatch) as here:
        for position in range(len(RESPONSE) + 1):
            here.backend.arm(sends=position)
            stream = await here.client()
            await stream.send_all(REQUEST)
            await here.backend.done.wait()
            await leave(stream.transport_stream, how)
            await here.alone()
            await here.aftermath()


@HOW
async def test_backends_that_vanish_inside_the_response(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with scene(monkeypatch) as here:
        for position in range(len(RESPONSE) + 1):
            here.backend.arm(sends=position, leaves=how)
            stream = await here.client()
            await stream.send_all(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
            got = await all_of(stream)
            await stream.transport_stream.aclose()
            whole = got.startswith(b"HTTP/1.1 200") and got.endswith(b"x-sum: 3\r\n\r\n")
            if position < len(RESPONSE):  # a part never looks like the whole
                assert not whole
                assert got.startswith(b"HTTP/1.1 502") or LAST not in got
            elif how == "FIN":  # behind RST the end of a response may be lost
                assert whole
            await here.aftermath()


@HOW
async def test_backends_that_vanish_inside_the_request(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    async with scene(monkeypatch) as here:
        here.backend.arm()
        stream = await here.client()
        before = len(here.seen.received)
        await stream.send_all(REQUEST)
        await read_until(stream, Recording(), b"x-sum: 3\r\n\r\n")
        await stream.transport_stream.aclose()
        size = len(here.seen.received) - before  # of the request as the backend gets it
        body = size - len(REQUEST.partition(b"\r\n\r\n")[2])
        for position in (*range(0, body, 5), *range(body, size)):  # the head goes out as one piece
            here.backend.arm(reads=position, leaves=how)
            stream = await here.client()
            await stream.send_all(REQUEST)
            got = await read_until(stream, Recording(), b"</html>")
            assert got.startswith(b"HTTP/1.1 502 ")
            await stream.transport_stream.aclose()
            await here.aftermath()
