"""Bodies pass at once and nothing is kept of them: events, long polls, ranges, and memory while much goes through."""

from __future__ import annotations

import os
import statistics
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.proxy.stage import Caller, Recording, answering, backend, make_config, read_until, site, stage

NAME = "cloud.test"
PIECE = b"x" * 256 * 1024
MIB = 1 << 20


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_events_arrive_within_milliseconds() -> None:
    """Each is sent when the one before has arrived, so that nothing can hold it but us."""
    arrived = trio.Event()
    sent = 0.0

    async def events(stream: trio.SocketStream, recording: Recording) -> None:
        nonlocal arrived, sent
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        for number in range(50):
            sent = trio.current_time()
            await stream.send_all(b"data: %d\n\n" % number)
            await arrived.wait()
            arrived = trio.Event()

    async with backend(events) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        latencies = []
        for number in range(50):
            await read_until(stream, Recording(), b"data: %d\n\n" % number)
            latencies.append(trio.current_time() - sent)
            arrived.set()
        assert statistics.median(latencies) < 0.02


async def test_a_long_poll_is_answered_when_the_backend_has_news() -> None:
    news = trio.Event()

    async def polled(stream: trio.SocketStream, recording: Recording) -> None:
        while await read_until(stream, recording, b"\r\n\r\n"):
            await news.wait()
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnews")

    async with backend(polled) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.ask, "GET", "/1", NAME)
            await wait_all_tasks_blocked()
            news.set()
        assert (await caller.ask("GET", "/2", NAME)).body == b"news"
        assert seen.connections == 1


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/9\r\nContent-Length: 3\r\n\r\ncde",
            206,
            b"cde",
        ),
        (b"HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */9\r\nContent-Length: 0\r\n\r\n", 416, b""),
    ],
)
async def test_ranges_are_the_backends_affair(response: bytes, status: int, body: bytes) -> None:
    async with backend(answering(response)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        fields = {"Range": "bytes=2-4", "If-Range": '"tag"'}
        answer = await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME, fields)
        assert (answer.status, answer.body) == (status, body)
        assert answer.headers["content-range"].startswith("bytes ")
        assert b"\r\nrange: bytes=2-4\r\n" in seen.received.lower()
        assert b'\r\nif-range: "tag"\r\n' in seen.received.lower()


async def test_a_refusal_instead_of_100_reaches_a_client_that_still_waits() -> None:
    refusal = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
    async with backend(answering(refusal)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(
            b"PUT / HTTP/1.1\r\nHost: cloud.test\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
        )
        answer = await read_until(stream, Recording(), b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"\r\nconnection: close\r\n" in answer.lower()  # or the body that never came would be the next request
        assert seen.connections == 1


async def test_memory_is_flat_while_much_is_sent_up_and_down() -> None:
    """A short form of `make bulk`; in this process both peers are counted as well."""
    pieces = 600  # 150 MiB

    async def bulk(stream: trio.SocketStream, recording: Recording) -> None:
        head = await read_until(stream, recording, b"\r\n\r\n")
        if head.startswith(b"PUT"):
            left = pieces * len(PIECE) - len(head.partition(b"\r\n\r\n")[2])
            while left:
                left -= len(await stream.receive_some(MIB))
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        else:
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (pieces * len(PIECE)))
            for _ in range(pieces):
                await stream.send_all(PIECE)

    async with backend(bulk) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        size = pieces * len(PIECE)
        levels: list[int] = []
        await stream.send_all(b"PUT / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: %d\r\n\r\n" % size)
        for number in range(pieces):
            await stream.send_all(PIECE)
            if number > 50:
                levels.append(resident())
        await read_until(stream, Recording(), b"hello")
        assert max(levels) - levels[0] < 10 * MIB

        levels.clear()
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        got = 0
        while got < size:
            got += len(await stream.receive_some(MIB))
            if got > 50 * len(PIECE):
                levels.append(resident())
        assert max(levels) - levels[0] < 10 * MIB


async def test_a_backend_waits_for_a_client_that_does_not_read() -> None:
    sent = 0

    async def pushing(stream: trio.SocketStream, recording: Recording) -> None:
        nonlocal sent
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(256):  # 64 MiB
            await stream.send_all(PIECE)
            sent += len(PIECE)

    async with backend(pushing) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\nConnection: close\r\n\r\n")
        await wait_all_tasks_blocked(0.1)
        assert sent < 32 * MIB  # what two sockets and two TLS records hold; the kernel lets each grow to some MiB
        got = 0
        while data := await stream.receive_some(MIB):
            got += len(data)
        assert got > 64 * MIB
