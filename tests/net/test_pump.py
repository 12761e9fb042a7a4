"""The pump on real sockets: bytes, half-closes, resets, idleness, fairness, and nothing left behind."""

from __future__ import annotations

import hashlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import open_descriptors, receive_all, receive_exactly, running, stream_pair
from trioproxy.errors import ConnectionLost, StreamError, StreamTimeout
from trioproxy.net import pump as pump_module
from trioproxy.net.pump import CHUNK, QUOTA, Pump
from trioproxy.net.sock import Reaper


@attrs.frozen
class Relayed:
    """A relay under test: the peers at both ends, and how it ended."""

    client: trio.SocketStream
    backend: trio.SocketStream
    done: trio.Event
    errors: list[StreamError]


@asynccontextmanager
async def relayed(pump: Pump, reaper: Reaper, nursery: trio.Nursery, idle: float = 60) -> AsyncIterator[Relayed]:
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)
    result = Relayed(client, backend, trio.Event(), [])

    async def relay() -> None:
        try:
            await pump.relay(near, far, idle)
        except StreamError as exc:
            result.errors.append(exc)
            near.abort()
            far.abort()
        finally:
            near.close()
            far.close()
            result.done.set()

    nursery.start_soon(relay)
    async with client, backend:
        yield result


async def test_bytes_pass_both_ways_and_each_half_close_is_kept() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as ends:
        await ends.client.send_all(b"question")
        await ends.client.send_eof()
        assert await receive_all(ends.backend) == b"question"  # the end arrived
        await ends.backend.send_all(b"answer")  # and the way back is still open
        assert await receive_exactly(ends.client, 6) == b"answer"
        assert not ends.done.is_set()
        await ends.backend.send_eof()
        assert await receive_all(ends.client) == b""
        await ends.done.wait()
        assert ends.errors == []


async def test_the_backend_may_end_first() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as ends:
        await ends.backend.send_all(b"greeting")
        await ends.backend.send_eof()
        assert await receive_all(ends.client) == b"greeting"
        await ends.client.send_all(b"more")
        await ends.client.send_eof()
        assert await receive_all(ends.backend) == b"more"
        await ends.done.wait()


async def test_what_lay_in_the_sockets_before_is_moved_without_a_further_edge() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)
    async with running(reaper, pump) as nursery, client, backend:
        await client.send_all(b"x" * 100_000)
        await near.wait_readable()
        nursery.start_soon(pump.relay, near, far, 60)
        assert await receive_exactly(backend, 100_000) == b"x" * 100_000
    near.close()
    far.close()


@pytest.mark.parametrize("seed", range(4))
async def test_large_streams_with_random_cuts_arrive_unchanged_both_ways(seed: int) -> None:
    dice = random.Random(seed)
    data = [dice.randbytes(dice.randrange(1, 5_000_000)) for _ in range(2)]
    reaper = Reaper()
    pump = Pump(reaper)

    async def send(stream: trio.SocketStream, content: bytes) -> None:
        position = 0
        while position < len(content):
            size = dice.choice((1, 7, 1400, 65536, 1_000_000))
            await stream.send_all(content[position : position + size])
            position += size
        await stream.send_eof()

    async def check(stream: trio.SocketStream, content: bytes) -> None:
        received = hashlib.sha256()
        async for piece in stream:
            received.update(piece)
        assert received.digest() == hashlib.sha256(content).digest()

    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as ends:
        async with trio.open_nursery() as peers:
            peers.start_soon(send, ends.client, data[0])
            peers.start_soon(send, ends.backend, data[1])
            peers.start_soon(check, ends.backend, data[0])
            peers.start_soon(check, ends.client, data[1])
        await ends.done.wait()


async def test_a_sender_is_held_back_while_the_other_side_does_not_read() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as ends:
        sent = 0
        with trio.move_on_after(0.5):
            while True:
                await ends.client.send_all(b"x" * CHUNK)
                sent += CHUNK
        assert sent < 64 * 1024 * 1024  # what the kernel's buffers hold, and a chunk of ours
        with trio.fail_after(10):
            assert len(await receive_exactly(ends.backend, sent)) == sent


@pytest.mark.parametrize("resetting", ["client", "backend"])
async def test_a_reset_ends_the_other_side_with_a_reset_at_once(resetting: str) -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as ends:
        await ends.client.send_all(b"a")
        await receive_exactly(ends.backend, 1)
        by, other = (ends.client, ends.backend) if resetting == "client" else (ends.backend, ends.client)
        by.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await by.aclose()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await other.receive_some()
        await ends.done.wait()
        assert isinstance(ends.errors[0], ConnectionLost)


async def test_a_reset_is_seen_even_while_the_other_side_is_stuck() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as ends:
        with trio.move_on_after(0.3):  # until the backend, which reads nothing, can take no more
            while True:
                await ends.client.send_all(b"x" * CHUNK)
        ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await ends.client.aclose()
        with trio.fail_after(5):
            await ends.done.wait()
        assert isinstance(ends.errors[0], ConnectionLost)


async def test_silence_for_too_long_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    # Nothing is sent here, so the jumping clock cannot overtake the kernel.
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery, idle=30) as ends:
        began = trio.current_time()
        await ends.done.wait()
        assert isinstance(ends.errors[0], StreamTimeout)
        assert 30 <= trio.current_time() - began <= 32


async def test_a_bulk_stream_leaves_others_their_turn() -> None:
    """Beside a stream that could be moved for ever, a small exchange still takes a bounded number of rounds."""
    reaper = Reaper()
    pump = Pump(reaper)
    async with (
        running(reaper, pump) as nursery,
        relayed(pump, reaper, nursery) as bulk,
        relayed(pump, reaper, nursery) as small,
    ):

        async def flood() -> None:
            while True:
                await bulk.client.send_all(b"x" * CHUNK * QUOTA * 4)

        async def swallow() -> None:
            async for _ in bulk.backend:
                pass

        async with trio.open_nursery() as peers:
            peers.start_soon(flood)
            peers.start_soon(swallow)
            with trio.fail_after(10):
                for _ in range(100):
                    await small.client.send_all(b"ping")
                    assert await receive_exactly(small.backend, 4) == b"ping"
            peers.cancel_scope.cancel()


class _CountingSocket(socket.socket):
    """Counts shutdowns: a second one fails only if the peer has ended meanwhile, which is not to be had on demand."""

    shutdowns = 0

    def shutdown(self, how: int) -> None:
        self.shutdowns += 1
        super().shutdown(how)


async def test_a_direction_that_ended_before_its_turn_came_is_not_ended_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "QUOTA", 1)
    reaper = Reaper()
    pump = Pump(reaper)
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)
    counting = far.sock = _CountingSocket(fileno=far.sock.detach())
    async with client, backend, trio.open_nursery() as nursery:
        nursery.start_soon(pump.relay, near, far, 60)
        await wait_all_tasks_blocked()
        await client.send_all(bytes(CHUNK))
        pump._work()  # moves a chunk, and queues the direction for more
        await client.send_eof()
        pump._work()  # the end comes as an event, and the direction's turn after it
        assert counting.shutdowns == 1
        nursery.cancel_scope.cancel()
    near.close()
    far.close()


async def test_cancelling_the_owner_takes_the_relay_out() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    before = open_descriptors()
    async with running(reaper, pump) as nursery:
        near, client = stream_pair(reaper)
        far, backend = stream_pair(reaper)
        async with client, backend, trio.open_nursery() as owner:
            owner.start_soon(pump.relay, near, far, 60)
            await wait_all_tasks_blocked()
            owner.cancel_scope.cancel()
        near.close()
        far.close()
        assert reaper.watched == set()
        # The pump still works, also with the same descriptor numbers.
        async with relayed(pump, reaper, nursery) as ends:
            await ends.client.send_all(b"again")
            assert await receive_exactly(ends.backend, 5) == b"again"
            await ends.client.send_eof()
            await ends.backend.send_eof()
            await ends.done.wait()
    assert reaper.watched == set()
    assert open_descriptors() <= before


async def test_two_hundred_relays_at_once_do_not_mix_their_bytes() -> None:
    reaper = Reaper()
    pump = Pump(reaper)

    async def one(nursery: trio.Nursery, number: int) -> None:
        content = hashlib.sha256(b"%d" % number).digest() * 500
        async with relayed(pump, reaper, nursery) as ends:
            async with trio.open_nursery() as peers:
                peers.start_soon(ends.client.send_all, content)
                assert await receive_exactly(ends.backend, len(content)) == content
            await ends.backend.send_all(content[:32])
            assert await receive_exactly(ends.client, 32) == content[:32]
            await ends.client.send_eof()
            await ends.backend.send_eof()
            await ends.done.wait()
            assert ends.errors == []

    async with running(reaper, pump) as nursery, trio.open_nursery() as visitors:
        for number in range(200):
            visitors.start_soon(one, nursery, number)
    assert reaper.watched == set()


async def test_a_bug_in_one_relay_is_raised_in_its_own_task() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)

    async def relay() -> None:
        with pytest.raises(AttributeError):
            await pump.relay(near, far, 60)
        near.close()
        far.close()

    async with running(reaper, pump) as nursery, relayed(pump, reaper, nursery) as other, client, backend:
        nursery.start_soon(relay)
        await wait_all_tasks_blocked()
        broken = next(r for r in reaper.watched if getattr(getattr(r, "forth", None), "source", None) is near.sock)
        broken.forth.sink = None  # type: ignore[attr-defined]  # no peer can cause a bug, so the test makes one
        await client.send_all(b"x")
        await other.client.send_all(b"fine")
        assert await receive_exactly(other.backend, 4) == b"fine"
