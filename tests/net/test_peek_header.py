"""Taking a PROXY header out of a real socket: exactly its bytes, however they come."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import receive_exactly, reset, running, stream_pair
from tests.wire import hellos
from tests.wire.hellos import record
from trioproxy.errors import BadProxyHeader, ConnectionLost, SilentPeer
from trioproxy.net.peek import peek_client_hello, take_proxy_header
from trioproxy.net.sock import Reaper, Stream
from trioproxy.wire.proxy_protocol import Endpoint, ProxyHeader, encode_v1, encode_v2

FOUR = Endpoint("192.0.2.7", 50000), Endpoint("198.51.100.1", 443)
SIX = Endpoint("2001:db8::7", 50000), Endpoint("2001:db8::1", 443)
HEADERS = {
    "v1": encode_v1(*FOUR),
    "v1 over IPv6": encode_v1(*SIX),
    "v2": encode_v2(*FOUR),
    "v2 with TLVs": encode_v2(*SIX, alpn=b"h2", authority=b"cloud.example.com", unique_id=b"x" * 100),
}
HELLO = record(hellos.message(hellos.server_name(b"cloud.example.com")))


class Quick(Reaper):
    PERIOD = 0.01


@asynccontextmanager
async def connection(reaper: Reaper | None = None) -> AsyncIterator[tuple[Stream, trio.SocketStream]]:
    stream, client = stream_pair(reaper or Reaper())
    try:
        async with client:
            yield stream, client
    finally:
        stream.close()


def low_water(stream: Stream) -> int:
    return stream.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


@pytest.mark.parametrize("wire", HEADERS.values(), ids=HEADERS)
async def test_only_the_header_is_taken_wherever_it_is_cut(wire: bytes) -> None:
    for cut in range(1, len(wire) + 1):
        async with connection() as (stream, client):
            found: list[ProxyHeader] = []

            async def take(stream: Stream = stream, found: list[ProxyHeader] = found) -> None:
                found.append(await take_proxy_header(stream))

            with trio.fail_after(5):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(take)
                    await client.send_all(wire[:cut])
                    await wait_all_tasks_blocked()
                    assert bool(found) == (cut == len(wire))
                    await client.send_all(wire[cut:] + HELLO)
                assert found[0].size == len(wire)
                assert low_water(stream) == 1
                assert (await peek_client_hello(stream)).server_name == "cloud.example.com"
                assert await stream.receive_some() == HELLO


@pytest.mark.parametrize("wire", HEADERS.values(), ids=HEADERS)
async def test_header_and_hello_may_come_byte_by_byte(wire: bytes) -> None:
    async with connection() as (stream, client):
        names = []

        async def look() -> None:
            header = await take_proxy_header(stream)
            assert header.source is not None
            names.append((await peek_client_hello(stream)).server_name)

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(look)
                for byte in wire + HELLO:
                    await client.send_all(bytes([byte]))
                    await wait_all_tasks_blocked()
        assert names == ["cloud.example.com"]


@pytest.mark.parametrize("wire", [HELLO, b"GET / HTTP/1.1\r\n", b"PROXY TCP5 ", b"PROXY TCP4 1 2 3 4\r\n", b"Q"])
async def test_what_is_no_header_is_said_as_soon_as_it_shows(wire: bytes) -> None:
    async with connection() as (stream, client):
        await client.send_all(wire if wire != b"PROXY TCP5 " else wire + b"x" * 100)
        with trio.fail_after(5), pytest.raises(BadProxyHeader):
            await take_proxy_header(stream)


async def test_an_end_within_the_header() -> None:
    async with connection() as (stream, client):
        await client.send_all(HEADERS["v1"][:-1])
        await client.send_eof()
        with trio.fail_after(5), pytest.raises(BadProxyHeader, match="ended the connection within its PROXY header"):
            await take_proxy_header(stream)


@pytest.mark.parametrize("wire", [HEADERS["v1"][:-1], HEADERS["v2"][:-1], HEADERS["v2"][:5]])
async def test_silence_within_the_header(wire: bytes) -> None:
    reaper = Quick()
    async with running(reaper), connection(reaper) as (stream, client):
        await client.send_all(wire)
        stream.deadline = trio.current_time() + 0.05
        with trio.fail_after(5), pytest.raises(BadProxyHeader, match="did not come to its end in time"):
            await take_proxy_header(stream)


async def test_a_health_check_that_only_connects_is_a_silent_peer() -> None:
    async with connection() as (stream, client):
        await client.send_eof()
        with trio.fail_after(5), pytest.raises(SilentPeer):
            await take_proxy_header(stream)


async def test_a_reset_is_a_lost_connection() -> None:
    async with connection() as (stream, client):
        await reset(client)
        with trio.fail_after(5), pytest.raises(ConnectionLost):
            await take_proxy_header(stream)


async def test_the_client_gets_nothing_while_its_header_is_read() -> None:
    async with connection() as (stream, client):
        await client.send_all(HEADERS["v2"])
        await take_proxy_header(stream)
        stream.close()
        assert await receive_exactly(client, 1) == b""
