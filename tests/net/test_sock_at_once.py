"""Streams on real sockets, without waiting: what is there is read, what is taken is sent, and silence still counts."""

from __future__ import annotations

import math

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import receive_exactly, reset
from tests.net.streams import Connect, as_tls_client, as_tls_server, plain, waiting
from trioproxy.errors import ConnectionLost, StreamInterrupted, StreamTimeout

either = pytest.mark.parametrize("connect", [plain, as_tls_server, as_tls_client])


@either
async def test_what_is_there_is_read(connect: Connect) -> None:
    async with connect() as (stream, peer):
        assert stream.receive_at_once() is None  # there may be session tickets
        await peer.send_all(b"x")
        await stream.wait_readable()
        assert stream.receive_at_once() == b"x"
        assert stream.receive_at_once() is None


@either
async def test_what_is_taken_is_sent(connect: Connect) -> None:
    async with connect() as (stream, peer):
        assert stream.send_at_once(b"hello") == 5
        assert await receive_exactly(peer, 5) == b"hello"
        sent = 5
        while took := stream.send_at_once(bytes(1 << 20)):
            sent += took
        assert await receive_exactly(peer, sent - 5) == bytes(sent - 5)
        await stream.wait_writable()
        assert stream.send_at_once(bytes(1 << 20))


@either
async def test_a_lost_connection(connect: Connect) -> None:
    async with connect() as (stream, peer):
        await reset(peer.transport_stream if isinstance(peer, trio.SSLStream) else peer)
        await stream.wait_readable()
        with pytest.raises(ConnectionLost):
            stream.receive_at_once()
        with pytest.raises(ConnectionLost):
            stream.send_at_once(b"x")
        stream.close()
        with pytest.raises(ConnectionLost):
            stream.receive_at_once()
        with pytest.raises(ConnectionLost):
            stream.send_at_once(b"x")


async def test_an_end() -> None:
    async with plain() as (stream, peer):
        await peer.send_eof()
        await stream.wait_readable()
        assert stream.receive_at_once() == b""
        assert stream.send_at_once(b"x") == 1


@pytest.mark.parametrize("connect", [as_tls_server, as_tls_client])
async def test_an_end_of_tls(connect: Connect) -> None:
    async with connect() as (stream, peer):
        assert isinstance(peer, trio.SSLStream)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.unwrap)
            await wait_all_tasks_blocked()
            assert stream.receive_at_once() == b""
            nursery.cancel_scope.cancel()


async def test_an_end_that_tls_did_not_announce() -> None:
    """Clients do so; a backend's response may be cut short."""
    async with as_tls_server() as (stream, peer):
        assert isinstance(peer, trio.SSLStream)
        await peer.transport_stream.send_eof()
        await stream.wait_readable()
        assert stream.receive_at_once() == b""
    async with as_tls_client() as (stream, peer):
        assert isinstance(peer, trio.SSLStream)
        await peer.transport_stream.aclose()
        await stream.wait_readable()
        with pytest.raises(ConnectionLost):
            stream.receive_at_once()


@either
async def test_who_was_closed_by_us_has_left(connect: Connect) -> None:
    async with connect() as (stream, _):
        assert not stream.left()
        stream.close()
        assert stream.left()


# ---- silence ------------------------------------------------------------------------------------------------


async def test_silence_counts_though_nobody_sleeps() -> None:
    async with plain() as (stream, _):
        heard: list[bool] = []
        stream.expect(10)
        stream.await_for(lambda: heard.append(stream.interrupted))
        now = trio.current_time()
        first = stream.idle_since
        assert first is not None
        assert not stream.overdue(now + 9)
        assert stream.overdue(now + 11)
        stream.await_for(lambda: heard.append(stream.interrupted))  # anew
        assert first < (stream.idle_since or 0)
        stream.interrupt(StreamTimeout("too long"))
        assert heard == [True]
        with pytest.raises(StreamTimeout):
            await stream.wait_readable()


async def test_it_counts_no_more_when_nobody_wants_to_hear_of_it() -> None:
    async with plain() as (stream, _):
        heard: list[bool] = []
        stream.expect(10)
        stream.await_for(lambda: heard.append(True))
        stream.await_for(None)
        assert not stream.overdue(math.inf)
        assert stream.idle_since is None
        async with waiting(stream.receive_some) as (read,):
            stream.interrupt()
        assert isinstance(read.error, StreamInterrupted)
        assert not heard
