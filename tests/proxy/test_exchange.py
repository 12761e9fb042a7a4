"""Requests to a site and their responses, streamed both ways, over real sockets."""

from __future__ import annotations

import math
from pathlib import Path

import h11
import pytest
import trio

from tests.net.sockets import until
from tests.proxy.h2_backend import secured
from tests.proxy.stage import (
    HELLO,
    Caller,
    Recording,
    answering,
    authority,
    backend,
    make_config,
    read_until,
    site,
    stage,
)
from trioproxy.config.model import Route, Target, Timeouts

NAME = "cloud.test"


async def test_requests_share_a_connection_on_both_sides() -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        for number in range(3):
            response = await caller.ask("GET", f"/{number}", NAME)
            assert (response.status, response.body) == (200, b"hello")
        assert seen.connections == 1
        assert seen.received.count(b"GET /") == 3


async def test_the_backend_learns_host_and_the_clients_true_address() -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        await caller.ask("GET", "/", f"{NAME}:8443", {"X-Forwarded-For": "6.6.6.6", "X-Real-IP": "6.6.6.6"})
        lines = bytes(seen.received).lower().split(b"\r\n")
        assert b"host: cloud.test:8443" in lines
        assert b"x-forwarded-for: 127.0.0.1" in lines
        assert b"x-real-ip: 127.0.0.1" in lines
        assert b"x-forwarded-proto: https" in lines
        assert not any(b"6.6.6.6" in line for line in lines)


async def test_an_upload_and_its_response_are_streamed_at_the_same_time() -> None:
    """Each piece is echoed before the next is sent: nothing waits for the whole, in either direction."""

    async def echo(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while data := await stream.receive_some():
            await stream.send_all(b"%x\r\n%b\r\n" % (len(data), data))
            if data.endswith(b"0\r\n\r\n"):
                await stream.send_all(b"0\r\n\r\n")
                return

    async with backend(echo) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: cloud.test\r\nTransfer-Encoding: chunked\r\n\r\n")
        recording = Recording()
        assert b"200 OK" in await read_until(stream, recording, b"\r\n\r\n")
        for piece in (b"first", b"second", b"third"):
            await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
            await read_until(stream, recording, piece)
        await stream.send_all(b"0\r\n\r\n")
        end = b"0\r\n\r\n\r\n0\r\n\r\n"  # the last chunk echoed, and the response's own
        assert (await read_until(stream, recording, end)).endswith(end)


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_large_upload_arrives_whole(chunked: bool) -> None:
    body = bytes(range(256)) * 20_000

    async def count(stream: trio.SocketStream, recording: Recording) -> None:
        connection = h11.Connection(h11.SERVER)
        size = 0
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some()))
            elif isinstance(event, h11.Data):
                assert bytes(event.data) == (body * 2)[size % 256 :][: len(event.data)]
                size += len(event.data)
        text = b"%d" % size
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text))

    async with backend(count) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        headers = {"Transfer-Encoding": "chunked"} if chunked else {"Content-Length": str(len(body))}
        fields = {"Host": NAME, **headers}
        await caller.send(h11.Request(method="PUT", target="/", headers=list(fields.items())))
        for start in range(0, len(body), 100_000):
            await caller.send(h11.Data(data=body[start : start + 100_000]))
        await caller.send(h11.EndOfMessage())
        assert (await caller.response()).body == b"%d" % len(body)


async def test_a_large_download_arrives_whole() -> None:
    body = bytes(range(256)) * 40_000
    response = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    async with backend(answering(response)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).body == body


async def test_an_event_passes_before_the_response_has_ended() -> None:
    """Server-sent events: what the backend has said is with the client before the backend says more."""
    more = trio.Event()

    async def events(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await more.wait()
        await stream.send_all(b"data: 2\n\n")

    async with backend(events) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        assert b"data: 1\n\n" in await read_until(stream, Recording(), b"data: 1\n\n")
        more.set()
        await read_until(stream, Recording(), b"0\r\n\r\n")


async def test_expect_is_relayed_and_the_body_waits_for_the_backends_consent() -> None:
    async def consenting(stream: trio.SocketStream, recording: Recording) -> None:
        head = await read_until(stream, recording, b"\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")  # nothing of the body yet
        assert b"expect: 100-continue" in head.lower()
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        await read_until(stream, recording, b"body")
        await stream.send_all(HELLO)

    async with backend(consenting) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        fields = [("Host", NAME), ("Content-Length", "4"), ("Expect", "100-continue")]
        await caller.send(h11.Request(method="POST", target="/", headers=fields))
        stream = caller.stream
        interim = await read_until(stream, Recording(), b"\r\n\r\n")
        assert interim.startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"body")
        assert b"hello" in await read_until(stream, Recording(), b"hello")


async def test_1xx_are_relayed_in_order_and_trailers_follow_the_body() -> None:
    response = (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"
    )
    async with backend(answering(response)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        answer = await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)
        assert answer.informational == (103,)
        assert answer.body == b"hello"
        assert answer.trailers == {"x-sum": "42"}


@pytest.mark.parametrize(
    ("method", "response", "body"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
    ],
)
async def test_responses_without_a_body_keep_the_connection(method: str, response: bytes, body: bytes) -> None:
    async with backend(answering(response)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        for _ in range(2):
            assert (await caller.ask(method, "/", NAME)).body == body
        assert seen.connections == 1


async def test_a_body_that_ends_with_the_backends_connection_is_chunked_for_the_client() -> None:
    async def closing(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\nhello")

    async with backend(closing) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        for _ in range(2):  # the client's connection lives on
            answer = await caller.ask("GET", "/", NAME)
            assert answer.body == b"hello"
            assert answer.headers["transfer-encoding"] == "chunked"
        assert seen.connections == 2


async def test_pipelined_requests_are_answered_in_order() -> None:
    async def numbered(stream: trio.SocketStream, recording: Recording) -> None:
        while head := await read_until(stream, recording, b"\r\n\r\n"):
            path = head.split()[1]
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with backend(numbered) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"".join(b"GET /%d HTTP/1.1\r\nHost: cloud.test\r\n\r\n" % n for n in range(5)))
        data = await read_until(stream, Recording(), b"\r\n\r\n/4")
        assert [data.index(b"\r\n\r\n/%d" % n) for n in range(5)] == sorted(
            data.index(b"\r\n\r\n/%d" % n) for n in range(5)
        )


async def test_a_request_that_says_close_is_the_last() -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\nConnection: close\r\n\r\n")
        data = await read_until(stream, Recording(), b"never")
        assert b"connection: close" in data.lower()
        assert data.endswith(b"hello")


async def test_location_is_mapped_back_below_the_route() -> None:
    async def redirecting(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        port = stream.socket.getsockname()[1]
        location = b"http://127.0.0.1:%d/v1/there" % port
        await stream.send_all(b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % location)

    async with backend(redirecting) as (port, seen):
        route = Route("/api/", Target("http", "127.0.0.1", port, "/v1/"))
        async with stage(make_config(site(NAME, port, routes=(route,)))) as proxy:
            answer = await Caller(await proxy.tls(NAME)).ask("GET", "/api/here", NAME)
            assert answer.headers["location"] == "/api/there"
            assert b"GET /v1/here HTTP/1.1\r\n" in seen.received
            assert b"x-forwarded-prefix: /api\r\n" in seen.received


async def test_no_route_is_404_and_a_prefix_without_its_slash_is_redirected() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        route = Route("/api/", Target("http", "127.0.0.1", port, "/"))
        async with stage(make_config(site(NAME, port, routes=(route,)))) as proxy:
            caller = Caller(await proxy.tls(NAME))
            assert (await caller.ask("GET", "/other", NAME)).status == 404
            answer = await caller.ask("GET", "/api?q=1", NAME)
            assert (answer.status, answer.headers["location"]) == (308, "/api/?q=1")
            assert seen.connections == 0


async def test_an_https_backend_must_prove_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority().cert_pem.write_to_path(tmp_path / "ca.pem")
    async with backend(secured(answering(HELLO), "http/1.1")) as (port, seen):
        config = make_config(site(NAME, port, routes=(Route("/", Target("https", "localhost", port)),)))
        async with stage(config) as proxy:
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 502
            assert not seen.received
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with stage(config) as proxy:
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).body == b"hello"


# ---- backends that fail -----------------------------------------------------------------------------


async def test_a_backend_that_refuses_is_502_at_once_and_the_connection_lives_on() -> None:
    async with backend(answering(HELLO)) as (port, _):
        pass  # its port is free again, so it refuses
    async with stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        with trio.fail_after(1):
            assert (await caller.ask("GET", "/", NAME)).status == 502
            assert (await caller.ask("GET", "/", NAME)).status == 502


async def test_a_backend_whose_name_does_not_resolve_is_502() -> None:
    config = make_config(site(NAME, 1, routes=(Route("/", Target("http", "nowhere.invalid", 80)),)))
    async with stage(config) as proxy:
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 502


async def test_a_silent_backend_is_504() -> None:
    async def silent(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    config = Timeouts(response=0.2)
    async with backend(silent) as (port, _), stage(make_config(site(NAME, port), timeouts=config)) as proxy:
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 504


async def test_garbage_from_a_backend_is_502() -> None:
    async with (
        backend(answering(b"SSH-2.0-OpenSSH\r\n\r\n")) as (port, _),
        stage(make_config(site(NAME, port))) as proxy,
    ):
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 502


@pytest.mark.parametrize(
    "beginning",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n",
    ],
    ids=["length", "chunked"],
)
async def test_a_body_that_breaks_off_never_looks_whole(beginning: bytes) -> None:
    async def dying(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(beginning)

    async with backend(dying) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await caller.ask("GET", "/", NAME)


async def test_a_reused_connection_that_has_died_is_replaced_for_a_get() -> None:
    async def once(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(HELLO)
        await read_until(stream, recording, b"\r\n\r\n")  # and then ends without an answer

    async with backend(once) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("GET", "/1", NAME)).status == 200
        assert (await caller.ask("GET", "/2", NAME)).status == 200
        assert seen.connections == 2


async def test_a_post_is_never_sent_twice() -> None:
    async def once(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(HELLO)
        await read_until(stream, recording, b"\r\n\r\n")

    async with backend(once) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("GET", "/1", NAME)).status == 200
        assert (await caller.ask("POST", "/2", NAME, body=b"order")).status == 502
        assert seen.received.count(b"POST /2") == 1


async def test_an_early_answer_reaches_the_client_and_that_backend_connection_is_not_reused() -> None:
    async def refusing(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
        await read_until(stream, recording, b"never")

    async with backend(refusing) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        for _ in range(2):
            stream = await proxy.tls(NAME)
            await stream.send_all(b"POST / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: 1000000\r\n\r\n")
            await stream.send_all(b"x" * 1000)
            data = await read_until(stream, Recording(), b"never")
            assert data.startswith(b"HTTP/1.1 413 ")
            assert b"connection: close" in data.lower()
        assert seen.connections == 2


# ---- clients that fail ------------------------------------------------------------------------------


async def test_a_client_that_vanishes_mid_upload_takes_the_backends_connection_with_it() -> None:
    async def waiting(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(waiting) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: 1000\r\n\r\nbegin")
        await until(lambda: b"begin" in seen.received)
        await stream.transport_stream.aclose()
        with trio.fail_after(5):
            await until(lambda: seen.ended)
            await proxy.until_idle()


async def test_a_client_that_leaves_while_the_backend_is_silent_ends_the_backends_connection() -> None:
    async def silent(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(silent) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        await until(lambda: seen.received)
        await stream.transport_stream.aclose()
        with trio.fail_after(3):
            await until(lambda: seen.ended)
            await proxy.until_idle()


async def test_a_chunked_body_that_breaks_while_it_streams_aborts_the_backends_connection() -> None:
    async def waiting(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(waiting) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: cloud.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n"
        )
        await until(lambda: b"begin" in seen.received)
        await stream.send_all(b"zz\r\n")
        data = await read_until(stream, Recording(), b"never")
        assert data.startswith(b"HTTP/1.1 400 ")
        await until(lambda: seen.ended)
        assert not seen.received.endswith(b"0\r\n\r\n")


async def test_a_head_that_is_never_finished_gets_408() -> None:
    timeouts = Timeouts(header=0.2)
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(NAME, port), timeouts=timeouts)) as proxy,
    ):
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost:")
        assert (await read_until(stream, Recording(), b"never")).startswith(b"HTTP/1.1 408 ")
        assert seen.connections == 0


async def test_a_silent_connection_is_closed_without_a_word() -> None:
    timeouts = Timeouts(header=0.2, idle=math.inf)
    async with stage(make_config(site(NAME, 1), timeouts=timeouts)) as proxy:
        stream = await proxy.tls(NAME)
        assert await read_until(stream, Recording(), b"never") == b""


async def test_draining_closes_idle_connections_and_lets_busy_ones_finish() -> None:
    proceed = trio.Event()

    async def slow(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await proceed.wait()
        await stream.send_all(HELLO)

    async with backend(slow) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        idle, busy = await proxy.tls(NAME), await proxy.tls(NAME)
        await busy.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        await until(lambda: seen.received)
        proxy.ctx.drain.begin()
        assert await read_until(idle, Recording(), b"never") == b""
        proceed.set()
        data = await read_until(busy, Recording(), b"never")
        assert data.endswith(b"hello")
        assert b"connection: close" in data.lower()
        await proxy.until_idle()
