"""Streams on real sockets, plain and TLS: what they carry, when they wait, and what wakes them."""

from __future__ import annotations

import gc
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import open_descriptors, receive_all, receive_exactly, reset, tcp_pair, trio_stream
from tests.net.streams import CLIENT, SERVER, Connect, as_tls_client, as_tls_server, plain, waiting
from trioproxy.errors import ConnectionLost
from trioproxy.net.raw import accept
from trioproxy.net.sock import Reaper, Stream

MUCH = bytes(range(256)) * 32_768  # 8 MiB: more than both socket buffers hold

either = pytest.mark.parametrize("connect", [plain, as_tls_server, as_tls_client])

# ---- bytes --------------------------------------------------------------------------------------------


@either
async def test_much_goes_both_ways_at_the_same_time(connect: Connect) -> None:
    async with connect() as (stream, peer), trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, MUCH)
        nursery.start_soon(stream.send_all, MUCH[::-1])

        async def receive() -> None:
            data = bytearray()
            while len(data) < len(MUCH):
                data += await stream.receive_some()
            assert data == MUCH

        nursery.start_soon(receive)
        assert await receive_exactly(peer, len(MUCH)) == MUCH[::-1]


@either
async def test_nothing_is_sent_as_nothing(connect: Connect) -> None:
    async with connect() as (stream, peer):
        await stream.send_all(b"")
        await stream.send_all(memoryview(b"something"))
        assert await receive_exactly(peer, 9) == b"something"


@either
async def test_the_end_is_an_empty_read(connect: Connect) -> None:
    async with connect() as (stream, peer), trio.open_nursery() as nursery:
        await peer.send_all(b"last words")
        nursery.start_soon(peer.aclose)
        assert await stream.receive_some() == b"last words"
        assert await stream.receive_some() == b""


@either
async def test_our_end_is_the_peers_end_and_may_be_said_twice(connect: Connect) -> None:
    async with connect() as (stream, peer):
        await stream.send_all(b"last words")
        stream.send_eof()
        stream.send_eof()
        assert await receive_all(peer) == b"last words"


async def test_a_half_closed_connection_carries_on_in_the_other_direction() -> None:
    async with plain() as (stream, peer):
        stream.send_eof()
        await peer.send_all(b"answer")
        assert await stream.receive_some() == b"answer"


async def test_an_end_that_tls_did_not_announce_is_lost_data_from_a_backend_and_an_end_from_a_client() -> None:
    async with as_tls_client() as (stream, peer):
        await peer.send_all(b"part of an answer")
        await peer.transport_stream.aclose()
        assert await stream.receive_some() == b"part of an answer"
        with pytest.raises(ConnectionLost):
            await stream.receive_some()
    async with as_tls_server() as (stream, peer):
        await stream.send_all(b"question")
        assert await peer.receive_some() == b"question"  # with what was left unread it would close with RST
        await peer.transport_stream.aclose()
        assert await stream.receive_some() == b""


@either
async def test_a_reset_is_a_lost_connection(connect: Connect) -> None:
    async with connect() as (stream, peer):
        await reset(peer.transport_stream if isinstance(peer, trio.SSLStream) else peer)
        with pytest.raises(ConnectionLost):
            await stream.receive_some()
        with pytest.raises(ConnectionLost):
            await stream.send_all(b"to nobody")


# ---- TLS ----------------------------------------------------------------------------------------------


async def test_what_alpn_chose() -> None:
    async with plain() as (stream, _):
        assert stream.alpn() is None
    async with as_tls_server() as (stream, _):
        assert stream.alpn() == "http/1.1"
    async with as_tls_client() as (stream, _):
        assert stream.alpn() == "http/1.1"


@pytest.mark.parametrize("name", ["other.example", "192.0.2.1"])
async def test_a_certificate_for_another_name_is_refused(name: str) -> None:
    async with plain() as (stream, transport), trio.open_nursery() as nursery:
        peer = trio.SSLStream(transport, SERVER, server_side=True)

        async def fail() -> None:
            with pytest.raises(trio.BrokenResourceError):
                await peer.receive_some()

        nursery.start_soon(fail)
        with pytest.raises(ConnectionLost, match="certificate verify failed"):
            await stream.start_tls_client(CLIENT, name)
        stream.close()


async def test_a_client_that_speaks_no_tls() -> None:
    async with plain() as (stream, peer):
        await peer.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionLost, match="handshake failed"):
            await stream.start_tls_server(SERVER)


async def test_tls_on_a_socket_as_it_was_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = accept(listener, listener.family)
    near.setblocking(False)
    stream = Stream(far, Reaper())
    async with trio_stream(near) as transport, trio.open_nursery() as nursery:
        peer = trio.SSLStream(transport, CLIENT, server_hostname="backend.example")
        nursery.start_soon(peer.do_handshake)
        await stream.start_tls_server(SERVER)
        assert stream.sock is far
        await stream.send_all(b"hello")
        assert await receive_exactly(peer, 5) == b"hello"
        stream.close()
        assert far.fileno() == -1
        assert not stream._reaper.watched


@either
async def test_what_was_closed_meanwhile_is_silent_though_its_number_is_anothers(connect: Connect) -> None:
    async with connect() as (stream, _):
        number = stream.sock.fileno()
        stream.close()
        async with plain() as (other, peer):
            assert number in {other.sock.fileno(), peer.socket.fileno()}
            with pytest.raises(ConnectionLost):
                await stream.send_all(b"astray")
            with pytest.raises(ConnectionLost):
                await stream.receive_some()
            stream.send_eof()
            await other.send_all(b"a")
            await peer.send_all(b"b")
            assert await receive_exactly(peer, 1) == b"a"
            assert await other.receive_some() == b"b"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01"])
async def test_a_connection_that_is_lost_before_tls_begins(sent: bytes) -> None:
    before = open_descriptors()
    async with plain() as (stream, peer):
        if sent:
            await peer.send_all(sent)
        await reset(peer)
        with pytest.raises(ConnectionLost):
            await stream.start_tls_server(SERVER)
    assert open_descriptors() == before


async def fail_to_begin(stream: Stream) -> None:
    with pytest.raises(ConnectionLost):
        await stream.start_tls_client(CLIENT, "a" * 64 + ".example")
    gc.collect()


async def test_when_tls_cannot_begin_the_descriptors_number_is_forgotten() -> None:
    """`wrap_socket` has taken the descriptor when it finds fault with the name, and its number is soon another's."""
    async with plain() as (stream, _):
        number = stream.sock.fileno()
        with pytest.warns(ResourceWarning):  # the standard library lets go of it without closing it
            await fail_to_begin(stream)
        assert not stream._reaper.watched
        async with plain() as (other, peer):
            assert number in {other.sock.fileno(), peer.socket.fileno()}
            async with waiting(other.receive_some, peer.receive_some) as (ours, _):
                stream.close()
                stream.abort()
                await wait_all_tasks_blocked()
                await other.send_all(b"a")
                await peer.send_all(b"b")
            assert ours.result == b"b"


# ---- quiet --------------------------------------------------------------------------------------------


@either
async def test_quiet_until_something_comes(connect: Connect) -> None:
    async with connect() as (stream, peer):
        assert stream.quiet()
        assert stream.quiet()
        await peer.send_all(b"x")
        await stream.wait_readable()
        assert not stream.quiet()


@either
async def test_an_end_is_not_quiet(connect: Connect) -> None:
    async with connect() as (stream, peer), trio.open_nursery() as nursery:
        await peer.send_all(b"x")
        assert await stream.receive_some() == b"x"
        assert stream.quiet()
        nursery.start_soon(peer.aclose)
        await stream.wait_readable()
        assert not stream.quiet()


async def test_session_tickets_are_no_data() -> None:
    near, far = tcp_pair()
    client, server = Stream(near, Reaper()), Stream(far, Reaper())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.start_tls_server, SERVER)
        await client.start_tls_client(CLIENT, "backend.example")
    await client.wait_readable()
    assert client.quiet()
    client.close()
    server.close()


async def test_neither_is_a_reset_nor_a_closed_stream() -> None:
    async with plain() as (stream, peer):
        await reset(peer)
        await stream.wait_readable()
        assert not stream.quiet()
        stream.close()
        assert not stream.quiet()


async def test_asking_a_plain_stream_takes_nothing() -> None:
    async with plain() as (stream, peer):
        await peer.send_all(b"whole")
        await stream.wait_readable()
        assert not stream.quiet()
        assert await stream.receive_some() == b"whole"
