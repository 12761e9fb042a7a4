"""Hostile HTTP/2 clients: each gets an end that is said, in bounded time and memory, and nobody else notices."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.http.h2_support import GET, POST, Frames, changed
from tests.net.sockets import until
from tests.proxy.h2_caller import Raw, calling, served
from tests.proxy.stage import HELLO, Recording, Stage, backend, make_config, read_until, site, stage
from trioproxy.config.model import Timeouts
from trioproxy.http.h2 import MAX_STREAMS, Code

NAME = "cloud.test"

CALM = [Code.ENHANCE_YOUR_CALM]


@asynccontextmanager
async def bystander(proxy: Stage) -> AsyncIterator[None]:
    """Another client, whose requests are answered before, and after what happens meanwhile."""
    async with calling(proxy, NAME) as caller:
        assert (await caller.ask("GET", "/bystander", NAME)).status == 200
        yield
        for _ in range(3):
            assert (await caller.ask("GET", "/bystander", NAME)).status == 200


async def answers_get(stream: trio.SocketStream, recording: Recording) -> None:
    """A backend that answers GET, and waits for ever with everything else."""
    while (await read_until(stream, recording, b"\r\n\r\n")).startswith(b"GET"):
        await stream.send_all(HELLO)
    await read_until(stream, recording, b"never")


@asynccontextmanager
async def attacked(timeouts: Timeouts | None = None) -> AsyncIterator[tuple[Raw, Recording]]:
    """A client that has said its preface, and what the backend records; others must be unharmed at the end."""
    async with (
        backend(answers_get) as (port, seen),
        stage(make_config(site(NAME, port), timeouts=timeouts)) as proxy,
        bystander(proxy),
    ):
        raw = await Raw.connect(proxy, NAME)
        await raw.send(raw.frames.start(MAX_CONCURRENT_STREAMS=100))
        yield raw, seen


async def flood(raw: Raw, make: Callable[[int], bytes], count: int = 60_000, batch: int = 200) -> list[int]:
    """Send until the proxy has had enough; the codes of its GOAWAYs. Fails if it takes all of `count`."""
    ended = trio.Event()

    async def read() -> None:
        await raw.until_end()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for start in range(0, count, batch):
            if ended.is_set() or not await raw.send(*[make(number) for number in range(start, start + batch)]):
                break
        else:
            if not raw.goaways():
                nursery.cancel_scope.cancel()
                pytest.fail("the proxy took it all")
        with trio.fail_after(10):
            await ended.wait()
    return raw.goaways()


def broken_by(
    fields: list[tuple[str, str]], rest: Callable[[Frames, int], bytes]
) -> Callable[[Frames], Callable[[int], bytes]]:
    def prepare(frames: Frames) -> Callable[[int], bytes]:
        return lambda n: frames.headers(2 * n + 1, fields, end=False) + rest(frames, 2 * n + 1)

    return prepare


RESETS = {
    "rapid reset": broken_by(GET, lambda frames, stream: frames.reset(stream)),
    "a body longer than announced": broken_by(
        [*POST, ("content-length", "1")], lambda frames, stream: frames.data(stream, b"xx", end=True)
    ),
    "a body shorter than announced": broken_by(
        [*POST, ("content-length", "9")], lambda frames, stream: frames.data(stream, b"x", end=True)
    ),
    "trailers that are none": broken_by(POST, lambda frames, stream: frames.headers(stream, [(":path", "/")])),
    "upper case": broken_by([*GET, ("X", "1")], lambda frames, stream: b""),
    "an invalid request": broken_by([*GET, ("host", "other.test")], lambda frames, stream: b""),
}


@pytest.mark.parametrize("attack", RESETS)
async def test_streams_that_are_broken_as_fast_as_they_are_opened(attack: str) -> None:
    """Rapid Reset (CVE-2023-44487), and MadeYouReset (CVE-2025-8671), where it is we who are made to reset."""
    async with attacked() as (raw, seen):
        assert await flood(raw, RESETS[attack](raw.frames)) == CALM
    asked = seen.received.count(b"GET /") + seen.received.count(b"POST /")
    assert asked < 550  # what the budget buys, what arrives in one read beyond it, and what some seconds give back


@pytest.mark.parametrize(
    ("length", "pieces"), [("3", [b"abc", b"d"]), ("3", [b"a", b"bc", b"d"]), ("0", [b"a"]), ("1", [b"a", b"b"])]
)
async def test_no_backend_sees_a_whole_request_before_its_body_has_kept_to_its_length(
    length: str, pieces: list[bytes]
) -> None:
    """Pieces that fill the announced length may still be followed by more, and a backend would have acted by then."""
    asked = bytearray()

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        while data := await stream.receive_some():
            asked.extend(data)

    async with backend(script) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        frames = raw.frames
        await raw.send(frames.start(), frames.headers(1, [*POST, ("content-length", length)], end=False))
        for number, piece in enumerate(pieces[:-1]):
            await raw.send(frames.data(1, piece), frames.ping(b"%08d" % number))
            await raw.until(6)
        await raw.send(frames.data(1, pieces[-1]))
        assert (await raw.until(3, 1)).error_code == Code.PROTOCOL_ERROR
        await until(lambda: seen.ended == seen.connections)
        assert len(asked.partition(b"\r\n\r\n")[2]) < max(int(length), 1)
        assert length != "0" or seen.connections == 0


async def test_a_body_whose_end_comes_by_itself_is_passed_on_whole() -> None:
    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"abc")
        await stream.send_all(HELLO)

    async with served(script) as (caller, seen):
        stream = await caller.begin("POST", "/", NAME, [("content-length", "3")], end=False)
        await caller.body(stream, b"abc")
        await caller.body(stream, end=True)
        assert (await caller.answer(stream)).status == 200
        stream = await caller.begin("POST", "/never", NAME, [("content-length", "0")], end=False)
        caller.h2.reset_stream(stream, 8)
        assert (await caller.ask("GET", "/abc", NAME)).status == 200
        assert b"/never" not in seen.received


FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda _: Frames.ping(),
    "SETTINGS": lambda _: Frames.settings({3: 100}),
    "PRIORITY": lambda n: Frames.priority(2 * (n % 1000) + 3),
    "WINDOW_UPDATE of the connection": lambda _: Frames.window(0, 1),
    "unknown frames": lambda _: b"\0\0\1\xbb\0\0\0\0\0x",
    "RST_STREAM of a stream that has ended": lambda _: Frames.reset(1),
    "GOAWAY": lambda _: Frames.goaway(),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_floods_of_frames_that_carry_nothing(kind: str) -> None:
    async with attacked() as (raw, _):
        await raw.send(raw.frames.headers(1))
        await raw.until(0)
        codes = await flood(raw, FLOODS[kind])
        assert codes in (CALM, [Code.NO_ERROR]) if kind == "GOAWAY" else codes == CALM


@pytest.mark.parametrize("kind", ["empty DATA", "padding", "WINDOW_UPDATE of a stream"])
async def test_floods_inside_of_a_stream(kind: str) -> None:
    frame = {
        "empty DATA": Frames.data(1),
        "padding": Frames.padding(1),
        "WINDOW_UPDATE of a stream": Frames.window(1, 1),
    }
    async with attacked() as (raw, _):
        await raw.send(raw.frames.headers(1, POST, end=False))
        assert await flood(raw, lambda _: frame[kind]) == CALM


@pytest.mark.parametrize("size", [0, 1, 16000])
async def test_a_flood_of_continuations(size: int) -> None:
    """CVE-2024-27316 and its kind: a block of header fields without end."""
    async with attacked() as (raw, _):
        start = raw.frames.headers(1, done=False)
        piece = b"\x82" * size  # `:method: GET`, again and again
        codes = await flood(raw, lambda n: (start if n == 0 else b"") + Frames.continuation(1, piece), 4000, 4)
        assert codes != []


async def test_a_flood_of_streams_beyond_those_allowed() -> None:
    async with attacked() as (raw, seen):
        await flood(raw, lambda n: raw.frames.headers(2 * n + 1, POST, end=False))
        assert sum(frame.type == 3 for frame in raw.seen) > 0  # REFUSED_STREAM, before it was enough
    assert seen.received.count(b"POST") <= MAX_STREAMS


async def test_a_slot_is_free_only_when_its_backend_work_has_ended() -> None:
    """Streams that were reset make no room for others while their backends are still at work."""

    async def silent(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(silent) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        streams = range(1, 2 * MAX_STREAMS, 2)
        await raw.send(raw.frames.start(), *map(raw.frames.headers, streams))
        with trio.fail_after(10):
            await until(lambda: seen.received.count(b"GET /") == MAX_STREAMS)
        await raw.send(*map(raw.frames.reset, streams), raw.frames.headers(2 * MAX_STREAMS + 1))
        assert (await raw.until(3, 2 * MAX_STREAMS + 1)).error_code == Code.REFUSED_STREAM
        with trio.fail_after(5):
            await until(lambda: seen.ended == MAX_STREAMS)
        await raw.send(raw.frames.headers(2 * MAX_STREAMS + 3))
        with trio.fail_after(5):
            await until(lambda: seen.received.count(b"GET /") == MAX_STREAMS + 1)


async def test_an_hpack_bomb_is_not_kept() -> None:
    """4 KiB that the table holds, named again for one byte: 30 KiB of head in 40 bytes, on each stream there may be."""

    async def silent(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(silent) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        bomb = [*changed(GET, path="/bomb"), *[("x", "a" * 3900)] * 7]
        await raw.send(raw.frames.start(), raw.frames.headers(1, bomb))
        assert len(raw.frames.block(bomb)) < 100
        tracemalloc.start()
        try:
            await raw.send(*[raw.frames.headers(2 * n + 1, bomb) for n in range(1, 120)], raw.frames.ping())
            await raw.until(6)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sum(frame.type == 3 for frame in raw.seen) > 100  # REFUSED_STREAM: the client may ask again
        assert kept < 2_000_000


@pytest.mark.parametrize("said", ["a preface begun", "a head begun", "a frame's head begun"])
async def test_what_is_begun_must_be_finished(said: str) -> None:
    async with attacked_slowly(Timeouts(header=1.0)) as (raw, _):
        if said == "a preface begun":
            await raw.send(b"PRI * HT")
        else:
            await raw.send(raw.frames.start())
            await raw.send(raw.frames.headers(1, done=False) if said == "a head begun" else b"\0\0")
        with trio.fail_after(8):
            await raw.until_end()


@asynccontextmanager
async def attacked_slowly(timeouts: Timeouts) -> AsyncIterator[tuple[Raw, Recording]]:
    """A client that has said nothing yet; a connection of others would end by the same timeouts, but may begin."""
    async with (
        backend(answers_get) as (port, seen),
        stage(make_config(site(NAME, port), timeouts=timeouts)) as proxy,
    ):
        yield await Raw.connect(proxy, NAME), seen
        async with calling(proxy, NAME) as caller:
            assert (await caller.ask("GET", "/", NAME)).status == 200


async def test_a_client_that_opens_no_window_is_given_up() -> None:
    async with attacked_slowly(Timeouts(idle=1.0)) as (raw, _):
        await raw.send(raw.frames.start(INITIAL_WINDOW_SIZE=0), raw.frames.headers(1))
        assert (await raw.until(3, 1)).error_code == Code.CANCEL


async def test_an_upload_that_stops_is_given_up() -> None:
    async with attacked_slowly(Timeouts(idle=1.0)) as (raw, _):
        await raw.send(raw.frames.start(), raw.frames.headers(1, POST, end=False), raw.frames.data(1, b"x"))
        assert (await raw.until(3, 1)).error_code == Code.CANCEL


async def test_an_empty_body_that_does_not_end_is_given_up() -> None:
    """Nobody is asked before it has, so there is no task that could run out of patience."""
    async with attacked_slowly(Timeouts(idle=1.0)) as (raw, seen):
        empty = raw.frames.headers(1, [*POST, ("content-length", "0")], end=False)
        await raw.send(raw.frames.start(), empty)
        assert (await raw.until(3, 1)).error_code == Code.CANCEL
        await raw.until_end()
        assert seen.connections == 0


async def test_an_idle_connection_ends_with_goaway() -> None:
    async with attacked_slowly(Timeouts(idle=1.0)) as (raw, _):
        await raw.send(raw.frames.start(), raw.frames.headers(1))
        await raw.until_end()
        assert raw.goaways() == [Code.NO_ERROR]


async def test_a_client_that_never_reads_holds_little() -> None:
    """128 responses of a megabyte each, with windows wide open, and a peer whose kernel takes no more."""
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        head = await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(HELLO if b"bystander" in head else big)

    async with backend(script) as (port, seen), stage(make_config(site(NAME, port))) as proxy, bystander(proxy):
        raw = await Raw.connect(proxy, NAME)
        tracemalloc.start()
        try:
            await raw.send(raw.frames.start(INITIAL_WINDOW_SIZE=2**31 - 1), raw.frames.window(0, 2**30))
            await raw.send(*[raw.frames.headers(2 * n + 1) for n in range(100)])
            with trio.fail_after(10):
                await until(lambda: seen.received.count(b"GET /") == 101)
            await trio.testing.wait_all_tasks_blocked(0.2)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 100 * (
            2 * 65536 + 20_000
        )  # of each: a piece queued, the same piece in its reader's hand, and tasks
