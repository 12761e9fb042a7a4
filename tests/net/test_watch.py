"""The watch on real sockets: who is told of what, how often, and of what no longer."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import reset, stream_pair, tcp_pair, trio_stream, until
from trioproxy.errors import ConnectionLost
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.watch import BATCH, Watch


class Ear:
    """Reads what it is told of, if it does."""

    def __init__(self, stream: Stream, *, takes: bool = True) -> None:
        self.heard: list[bytes | None] = []
        self._stream = stream
        self._takes = takes

    def __call__(self) -> None:
        self.heard.append(self._stream.receive_at_once() if self._takes else None)


@asynccontextmanager
async def watching() -> AsyncIterator[Watch]:
    """A watch that runs."""
    watch = Watch()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.run)  # noqa: ASYNC113 - it may begin whenever it likes
            yield watch
            nursery.cancel_scope.cancel()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Stream, trio.SocketStream]]:
    stream, peer = stream_pair(Reaper())
    async with peer:
        yield stream, peer
        stream.close()


Pair = tuple[Stream, trio.SocketStream]


async def test_what_comes_is_told_until_it_is_forgotten(pair: Pair) -> None:
    stream, peer = pair
    ear = Ear(stream)
    async with watching() as watch:
        watch.listen(stream, ear)
        await wait_all_tasks_blocked()
        assert not ear.heard
        for word in (b"one", b"two"):
            await peer.send_all(word)
            await wait_all_tasks_blocked()
        watch.forget(stream)
        await peer.send_all(b"three")
        await wait_all_tasks_blocked()
        assert ear.heard == [b"one", b"two"]
        watch.listen(stream, ear)
        await wait_all_tasks_blocked()
        assert ear.heard == [b"one", b"two", b"three"]


@pytest.mark.parametrize("how", ["half", "end", "reset"])
async def test_an_end_is_told(pair: Pair, how: str) -> None:
    stream, peer = pair
    ear = Ear(stream, takes=False)

    def hear() -> None:
        ear()
        watch.forget(stream)

    async with watching() as watch:
        watch.listen(stream, hear)
        if how == "reset":
            await reset(peer)
        else:
            await (peer.send_eof() if how == "half" else peer.aclose())
        await wait_all_tasks_blocked()
        assert ear.heard == [None]


async def test_what_is_not_taken_is_told_again_and_others_have_their_turn(pair: Pair) -> None:
    stream, peer = pair
    ear = Ear(stream, takes=False)
    async with watching() as watch:
        watch.listen(stream, ear)
        await peer.send_all(b"x")
        await until(lambda: len(ear.heard) > 2)
        watch.forget(stream)


async def test_who_listens_last_is_told(pair: Pair) -> None:
    stream, peer = pair
    first, second = Ear(stream), Ear(stream)
    async with watching() as watch:
        watch.listen(stream, first)
        watch.listen(stream, second)
        await peer.send_all(b"x")
        await wait_all_tasks_blocked()
        assert (first.heard, second.heard) == ([], [b"x"])
        watch.forget(stream)
        watch.forget(stream)


async def test_who_was_closed_is_forgotten_and_the_next_with_its_descriptor_is_heard(pair: Pair) -> None:
    stream, _ = pair
    async with watching() as watch:
        watch.listen(stream, Ear(stream))
        descriptor = stream.fileno()
        stream.close()
        assert not watch._heeds
        near, far = tcp_pair()
        other = Stream(socket.socket(fileno=os.dup2(near.fileno(), descriptor)), Reaper())
        other.sock.setblocking(False)
        near.close()
        peer = trio_stream(far)
        ear = Ear(other)
        watch.listen(other, ear)
        async with peer:
            await peer.send_all(b"x")
            await wait_all_tasks_blocked()
            assert ear.heard == [b"x"]
        other.close()
        other.close()
        with pytest.raises(ConnectionLost):
            watch.listen(other, ear)


async def test_who_is_forgotten_in_the_same_moment_hears_nothing() -> None:
    pairs = [stream_pair(Reaper()) for _ in range(2)]
    streams = [stream for stream, _ in pairs]
    heard: list[Stream] = []
    watch = Watch()

    def hear(stream: Stream, other: Stream) -> None:
        heard.append(stream)
        other.close()

    for stream, other in zip(streams, reversed(streams), strict=True):
        watch.listen(stream, lambda stream=stream, other=other: hear(stream, other))  # type: ignore[misc]
    for _, peer in pairs:
        await peer.send_all(b"x")
    watch._tell()
    assert len(heard) == 1
    for stream, peer in pairs:
        stream.close()
        await peer.aclose()


async def test_many_are_told_of_in_turns() -> None:
    pairs = [stream_pair(Reaper()) for _ in range(BATCH + 1)]
    ears = [Ear(stream) for stream, _ in pairs]
    watch = Watch()
    for (stream, peer), ear in zip(pairs, ears, strict=True):
        watch.listen(stream, ear)
        await peer.send_all(b"x")
    watch._tell()
    assert sum(len(ear.heard) for ear in ears) == BATCH
    watch._tell()
    assert all(ear.heard == [b"x"] for ear in ears)
    for stream, peer in pairs:
        stream.close()
        await peer.aclose()


@pytest.mark.parametrize("forgets", [False, True])
async def test_a_bug_in_one_leaves_the_others_alone(
    pair: Pair, forgets: bool, caplog: pytest.LogCaptureFixture
) -> None:
    stream, peer = pair
    broken, other = stream_pair(Reaper())
    ear = Ear(stream)

    def fail() -> None:
        if forgets:
            watch.forget(broken)
        raise ZeroDivisionError

    async with watching() as watch, other:
        watch.listen(broken, fail)
        watch.listen(stream, ear)
        for end in (other, peer):
            await end.send_all(b"x")
        await wait_all_tasks_blocked()
        assert caplog.text.count("a bug in trioproxy") == 1
        await peer.send_all(b"y")
        await wait_all_tasks_blocked()
        assert b"".join(word or b"" for word in ear.heard) == b"xy"
        broken.close()


async def test_who_cannot_be_watched_is_lost(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, _ = pair
    await trio.lowlevel.checkpoint()

    class Full:
        def register(self, *_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    watch = Watch()
    with monkeypatch.context() as short:
        short.setattr(watch, "_epoll", Full())
        with pytest.raises(ConnectionLost, match="No space left"):
            watch.listen(stream, Ear(stream))
    assert not watch._heeds
    assert stream.unwatch is None


async def test_when_it_has_ended_nothing_is_left(pair: Pair) -> None:
    stream, _ = pair
    async with watching() as watch:
        watch.listen(stream, Ear(stream))
    assert watch._epoll.closed
    assert not watch._heeds
    watch.forget(stream)
    with pytest.raises(ConnectionLost):
        watch.listen(stream, Ear(stream))
