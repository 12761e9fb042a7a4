"""Requests over HTTP/2 for which no task is woken, and how they end when the client, or a bug, ends them."""

from __future__ import annotations

import tracemalloc

import pytest
import trio
import trio.testing

from tests.http.h2_support import GET, changed
from tests.proxy.h2_caller import Raw, calling
from tests.proxy.h2_scene import CHUNKED, NAME, Part, doing, scene, soon, together, warmed
from tests.proxy.stage import HELLO
from trioproxy.http.h2 import MAX_STREAMS, Code, ServerCodec
from trioproxy.net.sock import Reaper, Stream
from trioproxy.proxy.h2_client import H2Client
from trioproxy.proxy.serve_h2 import _Connection
from trioproxy.proxy.upstream_h1 import H1Upstream
from trioproxy.witness.records import (
    BROKEN_OFF,
    BUG,
    CLIENT_CLOSED,
    CLIENT_LEFT,
    DONE,
    ENDED_HERE,
)

# ---- clients that leave ---------------------------------------------------------------------------------


async def test_a_stream_that_is_reset_has_its_slot_until_the_backend_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with warmed(doing(x=[trio.Event()]), monkeypatch) as (caller, there):
        stream = await caller.begin("GET", "/x", NAME)
        await soon(lambda: b"/x" in there.seen.received)
        assert there.woken == []
        caller.h2.reset_stream(stream, Code.CANCEL)
        await caller.send()
        connection = there.connection
        await soon(lambda: stream not in connection._clients)
        assert connection._working == 1
        told = await there.ear.next_exchange()
        assert (told.status, told.outcome) == (CLIENT_CLOSED, CLIENT_LEFT)
        assert (connection._working, there.idle) == (0, 0)
        assert (await caller.ask("GET", "/", NAME)).status == 200


async def test_all_streams_that_there_may_be_reset_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """They make no room before their backends are left alone, which is all within a second."""
    async with scene(doing(x=[trio.Event()]), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller, MAX_STREAMS - 28)  # as many as h2 begins without having heard of the limit
        raw = await Raw.connect(there.proxy, NAME)
        frames = raw.frames
        streams = range(1, 2 * there.idle, 2)
        await raw.send(frames.start(), *[frames.headers(stream, changed(GET, path="/x")) for stream in streams])
        await soon(lambda: there.seen.received.count(b"/x") == len(streams))
        assert there.woken == []
        more = [frames.headers(2 * MAX_STREAMS + 2 * n + 1) for n in range(29)]
        await raw.send(*map(frames.reset, streams), *more)
        assert (await raw.until(3)).error_code == Code.REFUSED_STREAM
        await soon(lambda: there.connection._working == 0)
        outcomes = [record.outcome for record in there.ear.exchanges]
        assert outcomes.count(CLIENT_LEFT) == len(streams)
        assert outcomes.count(DONE) == len(more) - 1


async def test_a_client_that_gave_up_has_left_though_the_answer_came_just_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = trio.Event()
    async with warmed(doing(x=[go_on, HELLO]), monkeypatch) as (caller, there):
        stream = await caller.begin("GET", "/x", NAME)
        await soon(lambda: b"/x" in there.seen.received)
        caller.h2.reset_stream(stream, Code.CANCEL)
        await caller.send()
        connection = there.connection
        await soon(lambda: stream not in connection._clients)
        go_on.set()
        assert (await there.ear.next_exchange()).outcome == CLIENT_LEFT
        assert connection._working == 0


async def test_a_stream_that_is_reset_inside_of_its_answer_ends_with_the_next_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = trio.Event()
    parts: list[Part] = [CHUNKED + b"1\r\na\r\n", go_on, b"1\r\nb\r\n", trio.Event()]
    monkeypatch.setattr(Reaper, "PERIOD", 60.0)
    async with warmed(doing(x=parts), monkeypatch) as (caller, there):
        stream = await caller.begin("GET", "/x", NAME)
        answer = caller.answers[stream]
        await caller.until(lambda: answer.body == b"a")
        caller.h2.reset_stream(stream, Code.CANCEL)
        await caller.send()
        connection = there.connection
        await soon(lambda: stream not in connection._clients)
        go_on.set()
        told = await there.ear.next_exchange()
        assert (told.status, told.outcome) == (200, CLIENT_LEFT)
        assert (connection._working, there.idle) == (0, 0)


@pytest.mark.parametrize("how", ["the client goes", "the client ends its side", "the server stops"])
async def test_the_end_of_a_connection_is_told_once_for_each_and_no_half_read_answer_is_left(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: dict[str, list[Part]] = {"x": [trio.Event()], "y": [CHUNKED + b"1\r\na\r\n", trio.Event()]}
    async with scene(doing(**parts), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller, 4)
            paths = ["/x", "/x", "/y", "/y"]
            answers = [caller.answers[await caller.begin("GET", path, NAME)] for path in paths]
            await caller.until(lambda: [bytes(a.body) for a in answers] == [b"", b"", b"a", b"a"])
            await soon(lambda: there.seen.received.count(b"/x") == 2)
            assert there.woken == []
            if how == "the server stops":
                there.proxy.connections.cancel_scope.cancel()
            elif how == "the client ends its side":
                await caller.stream.transport_stream.send_eof()
            else:
                caller.stream.transport_stream.socket.close()
            await there.proxy.until_idle()
        assert not any(isinstance(mortal, H1Upstream) for mortal in there.proxy.ctx.reaper.watched)
        outcome = ENDED_HERE if how == "the server stops" else CLIENT_LEFT
        assert [record.outcome for record in there.ear.exchanges] == [outcome] * 4
        assert there.idle == 0
        assert there.proxy.ctx.watch._heeds == {}


async def test_goaway_lets_come_what_was_asked_and_nothing_more_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = trio.Event()
    monkeypatch.setattr(Reaper, "PERIOD", 60.0)
    async with scene(doing(x=[go_on, HELLO]), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller)
        raw = await Raw.connect(there.proxy, NAME)
        await raw.send(raw.frames.start(), raw.frames.headers(1, changed(GET, path="/x")))
        await soon(lambda: b"/x" in there.seen.received)
        there.proxy.ctx.drain.begin()
        await raw.until(7)
        await raw.send(raw.frames.ping(b"draining", ack=True))
        await raw.until(7)
        go_on.set()
        assert (await raw.until(0, 1)).data == b"hello"
        await raw.until_end()
        assert there.woken == []
        assert (await there.ear.next_exchange()).outcome == DONE
        assert there.idle == 0  # it would be left for nobody


async def test_a_task_that_is_woken_while_the_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one moment: the backend's end, which a task is to see to, and the stop that ends all tasks."""
    go_on = trio.Event()
    cut_short = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"
    async with warmed(doing(x=[cut_short, go_on, None]), monkeypatch) as (caller, there):
        answer = caller.answers[await caller.begin("GET", "/x", NAME)]
        await caller.until(lambda: bytes(answer.body) == b"part")
        connection, wake = there.connection, _Connection.wake

        def stop(self: _Connection, client: H2Client) -> None:
            there.proxy.connections.cancel_scope.cancel()
            wake(self, client)

        monkeypatch.setattr(_Connection, "wake", stop)
        go_on.set()
        await there.proxy.until_idle()
        assert len(there.ear.exchanges) == 1
        assert there.ear.exchanges[0].outcome in (ENDED_HERE, BROKEN_OFF)
        assert connection._working == 0
        assert there.idle == 0


async def test_what_is_taken_in_small_parts_arrives_once_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends and clients take ten bytes at once, so every request and the last answer are left to tasks."""
    body = bytes(range(256)) * 20
    parts = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body]
    async with warmed(doing(x=parts), monkeypatch, 3) as (caller, there):
        send = Stream.send_at_once
        monkeypatch.setattr(Stream, "send_at_once", lambda stream, data: send(stream, data[:10]))
        for paths in (["/x"], ["/x"] * 3, ["/", "/x"]):
            for path, answer in zip(paths, await together(caller, paths), strict=True):
                assert bytes(answer.body) == (body if path == "/x" else b"hello")
        assert len(there.woken) == len(there.ear.exchanges) == 6
        assert there.seen.connections == 3


@pytest.mark.parametrize("how", ["the client goes", "the server stops"])
async def test_the_end_of_a_connection_inside_of_an_upload(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(doing(x=[trio.Event()]), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller)
            stream = await caller.begin("POST", "/x", NAME, end=False)
            await caller.body(stream, b"abc")
            await soon(lambda: b"/x" in there.seen.received)
            if how == "the server stops":
                there.proxy.connections.cancel_scope.cancel()
            else:
                caller.stream.transport_stream.socket.close()
            await there.proxy.until_idle()
        assert (await there.ear.next_exchange()).outcome == (ENDED_HERE if how == "the server stops" else CLIENT_LEFT)
        assert there.idle == 0


# ---- clients that take nothing --------------------------------------------------------------------------


async def test_a_client_that_opens_no_window_waits_in_a_task_and_gets_all_when_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = bytes(range(256)) * 4096
    parts = [
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body),
        *[body[n : n + 65536] for n in range(0, len(body), 65536)],
    ]
    async with scene(doing(x=parts), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller, 3)
        raw = await Raw.connect(there.proxy, NAME)
        frames = raw.frames
        await raw.send(frames.start(INITIAL_WINDOW_SIZE=0), frames.window(0, 1 << 24))
        await raw.send(frames.headers(1, changed(GET, path="/x")))
        await raw.until(1, 1)
        await soon(lambda: there.woken == [b"/x"])
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert there.connection.codec.queued(1) <= 2 * 65536
        await raw.send(frames.headers(3), frames.window(3, 100))  # nobody else waits for it
        assert (await raw.until(0, 3)).data == b"hello"
        got = b""
        for size in (1, 2, 3, len(body)):
            await raw.send(frames.window(1, size))
            wanted = min(len(got) + size, len(body))
            while len(got) < wanted:
                got += (await raw.until(0, 1)).data
        assert got == body


async def test_windows_that_nobody_opens_hold_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 responses of a megabyte each, asked for at once: of each two pieces at most are queued."""
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    async with warmed(doing(x=[big]), monkeypatch, 50) as (caller, there):
        caller.reading = False
        tracemalloc.start()
        try:
            for _ in range(50):
                caller.queue(changed(GET, path="/x"), end=True)
            await caller.send()
            await soon(lambda: len(there.woken) == 50)
            with trio.fail_after(30):
                await trio.testing.wait_all_tasks_blocked(0.2)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 50 * (2 * 65536 + 20_000)  # and tasks


# ---- bugs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "what"), [(H1Upstream, "ask"), (H1Upstream, "take"), (H2Client, "start"), (ServerCodec, "body")]
)
async def test_a_bug_ends_one_request_and_no_other(
    where: type, what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = trio.Event()
    async with warmed(doing(x=[go_on, HELLO]), monkeypatch, 2) as (caller, there):
        other = caller.answers[await caller.begin("GET", "/x", NAME)]
        await soon(lambda: b"/x" in there.seen.received)

        def broken(*_: object, **__: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patch:
            patch.setattr(where, what, broken)
            answer = await caller.ask("GET", "/", NAME)
        assert (answer.ended, answer.reset) == (False, Code.INTERNAL_ERROR)
        assert (await there.ear.next_exchange()).outcome == BUG
        go_on.set()
        await caller.until(lambda: other.ended)
        assert bytes(other.body) == b"hello"
        assert (await there.ear.next_exchange()).outcome == DONE
        assert (await caller.ask("GET", "/", NAME)).status == 200
    assert "a bug in trioproxy ended this request" in caplog.text


async def test_a_bug_when_an_answer_is_through_does_not_reach_the_next_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection to the backend has been given back by then, and nobody tells of it any more."""

    async with warmed(doing(), monkeypatch) as (caller, there):
        with monkeypatch.context() as patch:
            patch.setattr(there.ear, "exchange", lambda _: 1 / 0)
            await caller.begin("GET", "/", NAME)
            await soon(lambda: "a bug in trioproxy" in caplog.text)
        assert (await caller.ask("GET", "/", NAME)).status == 200
        assert there.seen.connections == 1
