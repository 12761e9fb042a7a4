"""Streams on real sockets: when they wait, for how long, what wakes them, and how they say goodbye."""

from __future__ import annotations

import contextlib
import gc
import math
import socket
import ssl

import pytest
import trio
from trio.testing import assert_no_checkpoints, wait_all_tasks_blocked

from tests.net.sockets import open_descriptors, receive_all, receive_exactly, running, stream_pair
from tests.net.streams import Connect, as_tls_client, as_tls_server, plain, waiting
from trioproxy.errors import ConnectionLost, StreamInterrupted, StreamTimeout
from trioproxy.net.sock import CALLS_IN_A_ROW, Reaper, Stream

either = pytest.mark.parametrize("connect", [plain, as_tls_server, as_tls_client])


class Quick(Reaper):
    PERIOD = 0.01


def fill(stream: Stream) -> None:
    """Send until the connection takes no more."""
    with contextlib.suppress(BlockingIOError, ssl.SSLWantWriteError):
        while True:
            stream.sock.send(bytes(1 << 20))


# ---- try first, but fairly ----------------------------------------------------------------------------


@either
async def test_what_is_ready_is_done_without_a_checkpoint(connect: Connect) -> None:
    async with connect() as (stream, peer):
        await peer.send_all(b"ready")
        await stream.wait_readable()
        with assert_no_checkpoints():
            assert await stream.receive_some() == b"ready"
            await stream.send_all(b"answer")


@either
async def test_who_is_always_ready_lets_others_have_their_turn(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect() as (stream, peer), trio.open_nursery() as nursery:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(other)
        await trio.lowlevel.checkpoint()
        before = turns
        for _ in range(5 * CALLS_IN_A_ROW):
            await stream.send_all(b"x")
        assert 4 <= turns - before <= 6
        await peer.send_all(b"x" * 5 * CALLS_IN_A_ROW)
        await stream.wait_readable()
        monkeypatch.setattr("trioproxy.net.sock.MAX_READ", 1)
        monkeypatch.setattr("trioproxy.net.sock.TLS_READ", 1)
        before = turns
        for _ in range(5 * CALLS_IN_A_ROW):
            assert await stream.receive_some() == b"x"
        assert 4 <= turns - before <= 6
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("connect", [as_tls_server, as_tls_client])
async def test_what_tls_has_decrypted_is_not_waited_for(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioproxy.net.sock.TLS_READ", 1)
    async with connect() as (stream, peer):
        await peer.send_all(b"ab")  # one record: the socket is empty when half of it was read
        assert await stream.receive_some(likely=False) == b"a"
        with trio.fail_after(5):
            assert await stream.receive_some(likely=False) == b"b"


# ---- time ---------------------------------------------------------------------------------------------


@either
async def test_a_read_may_last_as_long_as_is_expected(connect: Connect) -> None:
    async with connect() as (stream, peer):
        stream.expect(10)
        assert not stream.overdue(math.inf)  # nobody waits
        async with waiting(stream.receive_some) as (read,):
            now = trio.current_time()
            assert not stream.overdue(now + 9)
            assert stream.overdue(now + 11)
            stream.expect(20)  # reaches the read under way
            assert not stream.overdue(now + 19)
            assert stream.overdue(now + 21)
            await peer.send_all(b"x")
        assert read.result == b"x"
        assert not stream.overdue(math.inf)


@either
async def test_a_write_may_last_as_long_as_the_patience(connect: Connect) -> None:
    async with connect() as (stream, _):
        stream.write_patience = 10
        fill(stream)
        assert not stream.overdue(math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.wait_writable)
            await wait_all_tasks_blocked()
            now = trio.current_time()
            assert not stream.overdue(now + 9)
            assert stream.overdue(now + 11)
            nursery.cancel_scope.cancel()
        assert not stream.overdue(math.inf)


@pytest.mark.parametrize("what", ["read", "write"])
async def test_what_waited_too_long_is_gone_without_the_collector(what: str) -> None:
    """Thousands end at once, and their memory is wanted then."""
    reaper = Reaper()
    ended: list[str] = []

    async def wait() -> None:
        near, far = socket.socketpair()
        near.setblocking(False)
        stream = Stream(near, reaper)
        stream.expect(0)
        stream.write_patience = 0
        try:
            await (stream.receive_some() if what == "read" else stream.send_all(bytes(1 << 24)))
        except StreamTimeout:
            ended.append(what)
        stream.close()
        far.close()

    gc.collect()
    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            [late] = reaper.watched
            late.interrupt(StreamTimeout("too long"))
            del late
        assert ended == [what]
        await trio.lowlevel.checkpoint()
        assert not [one for one in gc.get_objects() if isinstance(one, Stream) and one._reaper is reaper]
    finally:
        gc.enable()


async def test_a_deadline_holds_whether_anybody_waits_or_not() -> None:
    async with plain() as (stream, _):
        stream.deadline = 100
        assert not stream.overdue(100)
        assert stream.overdue(101)


@pytest.mark.parametrize("limit", ["deadline", "read", "write"])
async def test_the_reaper_wakes_what_has_waited_too_long(limit: str) -> None:
    reaper = Quick()
    stream, peer = stream_pair(reaper)
    call = stream.receive_some
    if limit == "deadline":
        stream.deadline = trio.current_time() + 0.02
    elif limit == "read":
        stream.expect(0.02)
    else:
        fill(stream)
        stream.write_patience = 0.02
        call = stream.wait_writable  # type: ignore[assignment]  # what it returns is not asked for
    async with peer:
        with trio.fail_after(5):
            async with waiting(call) as (result,), running(reaper):
                await result.done.wait()
        assert isinstance(result.error, StreamTimeout)
        assert stream in reaper.watched
        stream.close()
        assert not reaper.watched


async def test_what_a_peer_did_not_take_in_time_is_not_left_to_the_kernel() -> None:
    """Which would offer it for minutes to a peer that does not read, with megabytes of its memory."""
    reaper = Quick()
    stream, peer = stream_pair(reaper)
    fill(stream)
    stream.write_patience = 0.02
    async with peer, running(reaper):
        with pytest.raises(StreamTimeout), trio.fail_after(5):
            await stream.send_all(b"more")
        stream.close()
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await receive_all(peer)


async def test_the_reaper_leaves_the_patient_alone() -> None:
    reaper = Quick()
    stream, peer = stream_pair(reaper)
    stream.expect(60)
    stream.deadline = trio.current_time() + 60
    async with peer, waiting(stream.receive_some) as (read,), running(reaper):
        await trio.sleep(0.05)
        await peer.send_all(b"x")
        await read.done.wait()
    assert read.result == b"x"
    stream.close()


# ---- interrupt and close ------------------------------------------------------------------------------


@either
async def test_an_interruption_wakes_both_directions_and_stays(connect: Connect) -> None:
    async with connect() as (stream, peer):
        fill(stream)
        async with waiting(stream.receive_some, stream.wait_writable) as (read, write):
            stream.interrupt()
        assert isinstance(read.error, StreamInterrupted)
        assert isinstance(write.error, StreamInterrupted)
        with pytest.raises(StreamInterrupted):
            await stream.receive_some()
        stream.resume()
        async with waiting(stream.receive_some) as (read,):
            await peer.send_all(b"x")
        assert read.result == b"x"


async def test_an_interruption_takes_nothing_that_has_come() -> None:
    async with plain() as (stream, peer):
        await peer.send_all(b"x")
        await stream.wait_readable()
        stream.interrupt()
        assert await stream.receive_some() == b"x"
        with pytest.raises(StreamInterrupted):
            await stream.receive_some()


async def test_the_first_reason_counts_and_a_deadline_strikes_once() -> None:
    async with plain() as (stream, _):
        stream.deadline = 0
        stream.interrupt(StreamTimeout("too late"))
        stream.interrupt()
        assert not stream.overdue(math.inf)
        with pytest.raises(StreamTimeout):
            await stream.wait_readable()


@either
async def test_closing_wakes_both_directions(connect: Connect) -> None:
    async with connect() as (stream, _):
        fill(stream)
        async with waiting(stream.receive_some, stream.wait_writable) as (read, write):
            stream.close()
        assert isinstance(read.error, ConnectionLost)
        assert isinstance(write.error, ConnectionLost)


@either
async def test_a_closed_stream_may_be_closed_again_and_does_nothing_else(connect: Connect) -> None:
    async with connect() as (stream, _):
        before = open_descriptors()
        stream.close()
        assert open_descriptors() == before - 1
        stream.close()
        stream.abort()
        stream.send_eof()
        stream.interrupt()
        await stream.drain()
        for call in (stream.receive_some, stream.wait_readable, stream.wait_writable):
            with pytest.raises(ConnectionLost):
                await call()
        with pytest.raises(ConnectionLost):
            await stream.send_all(b"x")


async def test_aborting_is_seen_as_no_end() -> None:
    async with plain() as (stream, peer):
        await stream.send_all(b"part")
        assert await receive_exactly(peer, 4) == b"part"
        stream.abort()
        with pytest.raises(trio.BrokenResourceError):
            await peer.receive_some()


@either
async def test_a_cancelled_wait_leaves_no_trace(connect: Connect) -> None:
    async with connect() as (stream, peer):
        stream.expect(1)
        with trio.move_on_after(0.01):
            await stream.receive_some()
        assert not stream.overdue(math.inf)
        await peer.send_all(b"x")
        assert await stream.receive_some() == b"x"


# ---- goodbye ------------------------------------------------------------------------------------------


@either
async def test_last_words_arrive_though_the_peer_still_sends(connect: Connect) -> None:
    async with connect() as (stream, peer), trio.open_nursery() as nursery:
        await peer.send_all(bytes(100_000))  # which nobody reads: closing now would send RST
        await stream.send_all(b"last words")
        stream.send_eof()

        async def goodbye() -> None:
            await stream.drain()
            stream.close()

        nursery.start_soon(goodbye)
        await wait_all_tasks_blocked()
        transport = peer.transport_stream if isinstance(peer, trio.SSLStream) else peer
        await transport.send_all(bytes(1000))
        assert await receive_all(peer) == b"last words"
        assert transport.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        await transport.aclose()


@pytest.mark.parametrize("chatty", [True, False])
async def test_a_peer_that_does_not_end_is_not_waited_for_long(chatty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioproxy.net.sock.LINGER", 0.05)
    async with plain() as (stream, peer), trio.open_nursery() as nursery:

        async def chat() -> None:
            while True:
                await peer.send_all(bytes(1000))

        if chatty:
            nursery.start_soon(chat)
        stream.send_eof()
        with trio.fail_after(5):
            await stream.drain()
        nursery.cancel_scope.cancel()


async def test_draining_goes_on_after_a_timeout() -> None:
    async with plain() as (stream, peer):
        stream.interrupt(StreamTimeout("too late"))
        stream.deadline = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.drain)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            assert not stream.overdue(trio.current_time())
            await peer.send_eof()
