"""Requests over HTTP/2 to a site, with hyper's h2 as the client and HTTP/1.1 behind."""

from __future__ import annotations

from typing import Any

import h11
import pytest
import trio
import trio.testing

from tests.net.sockets import until
from tests.proxy.h2_caller import Raw, calling, served
from tests.proxy.stage import HELLO, Caller, Recording, answering, backend, make_config, read_until, site, stage
from trioproxy.proxy.serve_h2 import RESTING

NAME = "cloud.test"


async def test_many_requests_share_a_connection() -> None:
    async with served(answering(HELLO)) as (caller, seen):
        streams = [await caller.begin("GET", f"/{number}", NAME) for number in range(50)]
        for stream in streams:
            answer = await caller.answer(stream)
            assert (answer.status, bytes(answer.body)) == (200, b"hello")
            assert answer.headers["content-length"] == "5"
            assert answer.headers["via"] == "1.1 test-proxy"
        assert "connection" not in answer.headers
        assert "date" in answer.headers
        assert seen.received.count(b"GET /") == 50


async def test_tasks_that_have_served_a_request_serve_the_next_and_leave_an_idle_connection() -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        stage(make_config(site(NAME, port))) as proxy,
        calling(proxy, NAME) as caller,
    ):
        for _ in range(5):
            for stream in [await caller.begin("GET", "/", NAME) for _ in range(RESTING + 4)]:
                assert (await caller.answer(stream)).status == 200
        (connection,) = proxy.connections.child_tasks
        with trio.fail_after(10):  # until there is only the writer
            await until(lambda: sum(len(nursery.child_tasks) for nursery in connection.child_nurseries) == 1)
        assert (await caller.ask("GET", "/", NAME)).status == 200


async def test_the_backend_learns_what_it_does_of_http1_clients() -> None:
    async with served(answering(HELLO)) as (caller, seen):
        headers = [("x-forwarded-for", "6.6.6.6"), ("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers")]
        await caller.ask("GET", "/x%2Fy?z", f"{NAME}:8443", headers)
        lines = bytes(seen.received).lower().split(b"\r\n")
        assert lines[0] == b"get /x%2fy?z http/1.1"
        for line in (b"host: cloud.test:8443", b"x-forwarded-for: 127.0.0.1", b"x-forwarded-proto: https"):
            assert line in lines
        assert b"cookie: a=1; b=2" in lines
        assert b"via: 2.0 test-proxy" in lines
        assert b"te: trailers" in lines
        assert not any(line.startswith(b":") or b"6.6.6.6" in line for line in lines)


async def _count(stream: trio.SocketStream, recording: Recording) -> None:
    connection = h11.Connection(h11.SERVER)
    size = 0
    trailers: object = None
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Data):
            size += len(event.data)
        elif isinstance(event, h11.EndOfMessage):
            trailers = [tuple(map(bytes, field)) for field in event.headers]
            break
        elif isinstance(event, h11.ConnectionClosed):
            return
    text = b"%d %a" % (size, trailers)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))


@pytest.mark.parametrize("length", [True, False])
async def test_a_large_upload_arrives_whole(length: bool) -> None:
    body = bytes(range(256)) * 20_000
    async with served(_count) as (caller, _):
        headers = [("content-length", str(len(body)))] if length else []
        answer = await caller.ask("PUT", "/", NAME, headers, body)
        assert bytes(answer.body) == b"%d []" % len(body)


async def test_trailers_pass_both_ways() -> None:
    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"0\r\nx-sum: 1\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: grpc-status\r\n\r\n"
            b"2\r\nok\r\n0\r\ngrpc-status: 0\r\n\r\n"
        )

    async with served(script) as (caller, _):
        stream = await caller.begin("POST", "/", NAME, end=False)
        await caller.body(stream, b"question")
        caller.h2.send_headers(stream, [("x-sum", "1")], end_stream=True)
        await caller.send()
        answer = await caller.answer(stream)
        assert (bytes(answer.body), answer.trailers) == (b"ok", {"grpc-status": "0"})


async def test_a_large_download_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with served(answering(response)) as (caller, _):
        assert (await caller.ask("GET", "/", NAME)).body == body


async def test_an_upload_and_its_response_are_streamed_at_the_same_time() -> None:
    """As a bidirectional call of gRPC does it: each piece is echoed before the next is sent."""

    async def echo(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not (data := await stream.receive_some()).endswith(b"0\r\n\r\n"):
            await stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))
        await stream.send_all(b"0\r\n\r\n")

    async with served(echo) as (caller, _):
        stream = await caller.begin("POST", "/", NAME, end=False)
        for piece in (b"first", b"second", b"third"):
            await caller.body(stream, piece)
            await caller.until(lambda piece=piece: piece in caller.answers[stream].body)  # type: ignore[misc]
        await caller.body(stream, end=True)
        assert (await caller.answer(stream)).ended


async def test_an_event_passes_before_the_response_has_ended() -> None:
    more = trio.Event()

    async def events(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await more.wait()
        await stream.send_all(b"data: 2\n\n")

    async with served(events) as (caller, _):
        stream = await caller.begin("GET", "/", NAME)
        await caller.until(lambda: caller.answers[stream].body == b"data: 1\n\n")
        more.set()
        assert (await caller.answer(stream)).body == b"data: 1\n\ndata: 2\n\n"


async def test_a_head_passes_before_anything_of_its_body_is_there() -> None:
    more = trio.Event()

    async def slow(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
        await more.wait()
        await stream.send_all(b"hello")

    async with served(slow) as (caller, _):
        stream = await caller.begin("GET", "/", NAME)
        await caller.until(lambda: caller.answers[stream].status == 200)
        more.set()
        assert (await caller.answer(stream)).body == b"hello"


async def test_informational_heads_pass_in_order() -> None:
    response = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 P\r\n\r\n" + HELLO
    async with served(answering(response)) as (caller, _):
        answer = await caller.ask("GET", "/", NAME)
        assert (answer.informational, answer.status) == ([103, 102], 200)


async def test_an_expectation_is_the_backends_to_meet() -> None:
    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        assert b"expect: 100-continue" in await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        await read_until(stream, recording, b"body")
        await stream.send_all(HELLO)

    async with served(script) as (caller, _):
        stream = await caller.begin("POST", "/", NAME, [("expect", "100-continue"), ("content-length", "4")], end=False)
        await caller.until(lambda: caller.answers[stream].informational == [100])
        await caller.body(stream, b"body", end=True)
        assert (await caller.answer(stream)).status == 200


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_responses_without_a_body(status: bytes) -> None:
    response = b"HTTP/1.1 %b\r\nETag: x\r\n\r\n" % status
    async with served(answering(response)) as (caller, _):
        answer = await caller.ask("GET", "/", NAME)
        assert (answer.status, answer.ended, bytes(answer.body)) == (int(status[:3]), True, b"")


async def test_head_keeps_the_length_of_what_it_does_not_get() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    async with served(answering(response)) as (caller, _):
        answer = await caller.ask("HEAD", "/", NAME)
        assert (answer.headers["content-length"], bytes(answer.body)) == ("5", b"")


# ---- what goes wrong ----------------------------------------------------------------------------------


async def test_a_backend_that_refuses_gets_its_request_alone_an_error() -> None:
    async with backend(answering(HELLO)) as (port, _):
        config = make_config(site(NAME, port), site("dead.test", 1))
        async with stage(config) as proxy, calling(proxy, "dead.test") as caller:
            answer = await caller.ask("GET", "/", "dead.test")
            assert answer.status == 502
            assert b"502 Bad Gateway" in answer.body
            assert (await caller.ask("GET", "/", "dead.test")).status == 502


async def test_a_response_that_is_cut_short_is_reset() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(response)

    async with served(script) as (caller, _):
        answer = await caller.ask("GET", "/", NAME)
        assert (answer.ended, answer.reset) == (False, 2)
        assert (await caller.ask("GET", "/", NAME)).reset == 2  # the connection lives on


async def test_a_backend_whose_fields_http2_does_not_allow_gets_502() -> None:
    response = b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n"
    async with served(answering(response)) as (caller, _):
        assert (await caller.ask("GET", "/", NAME)).status == 502


async def test_an_early_answer_arrives_whole_and_stops_the_upload() -> None:
    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")

    async with served(script) as (caller, _):
        stream = await caller.begin("POST", "/", NAME, [("content-length", "1000000")], end=False)
        answer = caller.answers[stream]
        await caller.until(lambda: answer.reset is not None)
        assert (answer.status, bytes(answer.body), answer.ended, answer.reset) == (413, b"big", True, 0)


async def test_a_request_that_its_client_gives_up_leaves_its_backend_alone() -> None:
    gone = trio.Event()

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        if b"/slow" not in await read_until(stream, recording, b"\r\n\r\n"):
            await stream.send_all(HELLO)
            return
        assert await stream.receive_some() == b""
        gone.set()

    async with served(script) as (caller, _):
        stream = await caller.begin("GET", "/slow", NAME)
        assert (await caller.ask("GET", "/", NAME)).status == 200
        caller.h2.reset_stream(stream, 8)
        await caller.send()
        with trio.fail_after(5):
            await gone.wait()
        assert (await caller.ask("GET", "/", NAME)).status == 200


async def test_a_slow_stream_delays_no_other() -> None:
    """One download that nobody reads, one upload that no backend takes, and requests that pass all the same."""
    big = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + bytes(10_000_000)

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        head = await read_until(stream, recording, b"\r\n\r\n")
        if b"/upload" in head:
            await trio.sleep_forever()
        await stream.send_all(big if b"/big" in head else HELLO)

    async with served(script) as (caller, _), trio.open_nursery() as nursery:
        caller.reading = False
        caller.h2.increment_flow_control_window(10_000_000)  # the connection's: one stream must not use it up
        big_stream = await caller.begin("GET", "/big", NAME)
        upload = await caller.begin("POST", "/upload", NAME, end=False)
        nursery.start_soon(caller.body, upload, bytes(30_000_000))
        await caller.until(lambda: len(caller.answers[big_stream].body) == 65_535)
        with trio.fail_after(60):  # as much as goes in: the kernel's buffers on the way, and ours
            while caller.h2.local_flow_control_window(upload):
                assert (await caller.ask("GET", "/", NAME)).body == b"hello"
        for _ in range(5):
            assert (await caller.ask("GET", "/", NAME)).body == b"hello"
        assert len(caller.answers[big_stream].body) == 65_535
        nursery.cancel_scope.cancel()


async def test_an_answer_that_was_sent_in_part_holds_up_no_other() -> None:
    """The client takes nothing for a while, so the last answer that fits waits in the middle of a TLS record."""
    body = bytes(range(256)) * 128
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    async with backend(answering(response)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        client = await Raw.connect(proxy, NAME)
        frames = client.frames
        await client.send(frames.start(INITIAL_WINDOW_SIZE=1 << 30), frames.window(0, 1 << 30))
        connection: Any
        with trio.fail_after(10):
            await until(lambda: len(proxy.ctx.drain.several) == 1)
            (connection,) = proxy.ctx.drain.several
            await trio.testing.wait_all_tasks_blocked()
            streams: list[int] = []
            while not connection._unsent:
                streams.append(2 * len(streams) + 1)
                await client.send(frames.headers(streams[-1]))
                await until(lambda: seen.received.count(b"GET /") == len(streams))
                await trio.testing.wait_all_tasks_blocked(0.01)
            streams.append(2 * len(streams) + 1)
            await client.send(frames.headers(streams[-1]))
            await until(lambda: seen.received.count(b"GET /") == len(streams))

        ended = dict.fromkeys(streams, b"")
        for number in ended:
            data = b""
            while len(data) < len(body):
                frame = await client.until(0)
                ended[frame.stream_id] += frame.data
                data = ended[number]
        assert set(ended.values()) == {body}


async def test_http1_is_served_to_those_who_ask_for_it() -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 200


async def test_a_bug_in_one_request_ends_that_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from trioproxy.proxy import site as module

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with served(answering(HELLO)) as (caller, _):
        with monkeypatch.context() as patch:
            patch.setattr(module, "prepare", broken)
            assert (await caller.ask("GET", "/", NAME)).reset == 2
        assert (await caller.ask("GET", "/", NAME)).status == 200
    assert "a bug in trioproxy ended this request" in caplog.text
