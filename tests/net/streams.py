"""Streams under test, plain and TLS, with an independent peer at the other end."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import stream_pair
from trioproxy.errors import StreamError
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.trust import client_context

Peer = trio.SocketStream | trio.SSLStream[trio.SocketStream]
Connect = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Stream, Peer]]]

CA = trustme.CA()
SERVER = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
CA.issue_cert("backend.example").configure_cert(SERVER)
SERVER.set_alpn_protocols(["http/1.1"])
CLIENT = client_context()
CA.configure_trust(CLIENT)
CLIENT.set_alpn_protocols(["h2", "http/1.1"])


@asynccontextmanager
async def plain() -> AsyncIterator[tuple[Stream, trio.SocketStream]]:
    """Our stream and the peer's."""
    with trio.fail_after(10):
        stream, peer = stream_pair(Reaper())
        try:
            async with peer:
                yield stream, peer
        finally:
            stream.close()


@asynccontextmanager
async def as_tls_server() -> AsyncIterator[tuple[Stream, trio.SSLStream[trio.SocketStream]]]:
    async with plain() as (stream, transport):
        peer = trio.SSLStream(transport, CLIENT, server_hostname="backend.example")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.do_handshake)
            await stream.start_tls_server(SERVER)
        yield stream, peer


@asynccontextmanager
async def as_tls_client() -> AsyncIterator[tuple[Stream, trio.SSLStream[trio.SocketStream]]]:
    async with plain() as (stream, transport):
        peer = trio.SSLStream(transport, SERVER, server_side=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.do_handshake)
            await stream.start_tls_client(CLIENT, "backend.example")
        yield stream, peer


@attrs.define
class Waiting:
    """A call that waits in a task of its own."""

    result: object = None
    error: StreamError | None = None
    done: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def waiting(*calls: Callable[[], Awaitable[object]]) -> AsyncIterator[list[Waiting]]:
    """Begins the calls, which must block, and waits for their end at the end of the block."""
    found = [Waiting() for _ in calls]

    async def wait(call: Callable[[], Awaitable[object]], result: Waiting) -> None:
        try:
            result.result = await call()
        except StreamError as exc:
            result.error = exc
        result.done.set()

    async with trio.open_nursery() as nursery:
        for call, result in zip(calls, found, strict=True):
            nursery.start_soon(wait, call, result)
        await wait_all_tasks_blocked()
        assert not any(result.done.is_set() for result in found)
        yield found
