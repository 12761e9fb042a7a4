"""Backends that speak HTTP/2: by ALPN and by prior knowledge, many requests on one connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import h2.errors
import h2.events
import h2.settings
import h11
import pytest
import trio

from tests.net.sockets import until
from tests.proxy.h2_backend import H2Peer, secured, speaking_h2
from tests.proxy.h2_caller import calling
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Caller,
    Recording,
    Stage,
    answering,
    authority,
    backend,
    make_config,
    read_until,
    site,
    stage,
)
from trioproxy.config.model import Config, Route, Target, Timeouts, UpstreamTLS
from trioproxy.http.alpn import HTTP11
from trioproxy.net.sock import Reaper

NAME = "cloud.test"


def h2c(port: int, **changes: Any) -> Config:
    """A site whose backend is spoken to by h2c."""
    timeouts = changes.pop("timeouts", None)
    routes = (Route("/", Target("h2c", LOOPBACK, port), **changes),)
    return make_config(site(NAME, port, routes=routes), timeouts=timeouts)


def https(port: int, tmp_path: Path) -> Config:
    """A site whose backend is spoken to by https, and trusted."""
    ca_file = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca_file)
    routes = (Route("/", Target("https", "localhost", port), tls=UpstreamTLS(ca_file=ca_file)),)
    return make_config(site(NAME, port, routes=routes))


async def _hello(peer: H2Peer) -> None:
    while True:
        stream, _ = await peer.request()
        await peer.respond(stream, b"hello")


@attrs.define
class Together:
    """Answers no request before so many have come."""

    number: int
    connections: int = 0
    streams: list[int] = attrs.Factory(list)

    async def converse(self, peer: H2Peer) -> None:
        self.connections += 1
        for _ in range(self.number):
            stream, _ = await peer.request()
            self.streams.append(stream)
        for stream in self.streams:
            await peer.respond(stream, b"hello")
        await _hello(peer)


async def _ask_at_once(proxy: Stage, number: int) -> list[int]:
    statuses: list[int] = []

    async def ask(caller: Caller) -> None:
        statuses.append((await caller.ask("GET", "/", NAME)).status)

    callers = [Caller(await proxy.tls(NAME)) for _ in range(number)]
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for caller in callers:
                nursery.start_soon(ask, caller)
    return statuses


# ---- one connection for all --------------------------------------------------------------------------


async def test_requests_of_many_clients_share_one_connection_at_the_same_time() -> None:
    together = Together(5)
    async with backend(speaking_h2(together.converse)) as (port, seen), stage(h2c(port)) as proxy:
        assert await _ask_at_once(proxy, 5) == [200] * 5
        assert seen.connections == 1


async def test_alpn_chooses_http2_and_later_requests_share_that_connection(tmp_path: Path) -> None:
    script = secured(speaking_h2(_hello), "h2", "http/1.1")
    async with backend(script) as (port, seen), stage(https(port, tmp_path)) as proxy:
        for _ in range(3):
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).body == b"hello"
        assert seen.connections == 1


async def test_a_backend_that_chooses_http1_is_spoken_to_by_that(tmp_path: Path) -> None:
    script = secured(answering(HELLO), "http/1.1")
    async with backend(script) as (port, seen), stage(https(port, tmp_path)) as proxy:
        caller = Caller(await proxy.tls(NAME))
        for _ in range(2):
            assert (await caller.ask("GET", "/", NAME)).body == b"hello"
        assert seen.connections == 1


async def test_more_requests_than_a_connection_takes_get_another_one() -> None:
    both = trio.Event()
    waiting = 0

    async def converse(peer: H2Peer) -> None:
        nonlocal waiting
        stream, _ = await peer.request()
        waiting += 1
        if waiting == 3:
            both.set()
        await both.wait()
        await peer.respond(stream, b"hello")
        await _hello(peer)

    script = speaking_h2(converse, MAX_CONCURRENT_STREAMS=1)
    async with backend(script) as (port, seen), stage(h2c(port)) as proxy:
        caller = Caller(await proxy.tls(NAME))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.ask, "GET", "/", NAME)
            await until(lambda: waiting == 1)
            assert await _ask_at_once(proxy, 2) == [200, 200]
        assert seen.connections == 3


# ---- messages ----------------------------------------------------------------------------------------


async def test_the_request_arrives_with_its_fields_body_and_trailers() -> None:
    asked: dict[str, str] = {}
    trailers: dict[str, str] = {}

    async def converse(peer: H2Peer) -> None:
        stream, fields = await peer.request()
        asked.update(fields)
        event = await peer.next(h2.events.TrailersReceived)
        trailers.update(event.headers)  # type: ignore[arg-type]
        await peer.respond(stream, b"hello")

    async with backend(speaking_h2(converse)) as (port, seen), stage(h2c(port)) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(
            b"POST /Echo?q=%41 HTTP/1.1\r\nHost: cloud.test\r\nTE: trailers\r\nConnection: te\r\nX-A: 1\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n"
        )
        assert b"hello" in await read_until(stream, Recording(), b"hello")
        assert (asked[":method"], asked[":path"], asked[":authority"]) == ("POST", "/Echo?q=%41", NAME)
        assert asked[":scheme"] == "http"
        assert (asked["te"], asked["x-a"], asked["x-forwarded-for"]) == ("trailers", "1", LOOPBACK)
        assert not {"host", "connection", "transfer-encoding"} & set(asked)
        assert seen.received == b"body"
        assert trailers == {"x-sum": "42"}


async def test_1xx_pass_in_order_and_trailers_follow_the_body() -> None:
    async def converse(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        peer.h2.send_headers(stream, [(":status", "103"), ("link", "</a.css>")])
        peer.h2.send_headers(stream, [(":status", "200")])
        peer.h2.send_data(stream, b"hello")
        peer.h2.send_headers(stream, [("grpc-status", "0")], end_stream=True)
        await peer.flush()
        await peer.next(h2.events.ConnectionTerminated)

    async with backend(speaking_h2(converse)) as (port, _), stage(h2c(port)) as proxy:
        answer = await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)
        assert answer.informational == (103,)
        assert answer.body == b"hello"
        assert answer.trailers == {"grpc-status": "0"}


async def test_a_response_of_trailers_alone_is_grpcs_way_to_fail() -> None:
    async def converse(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        await peer.respond(stream, fields=[("grpc-status", "12"), ("content-type", "application/grpc")])
        await peer.next(h2.events.ConnectionTerminated)

    async with backend(speaking_h2(converse)) as (port, _), stage(h2c(port)) as proxy:
        answer = await Caller(await proxy.tls(NAME)).ask("POST", "/a.B/C", NAME, body=b"12345")
        assert (answer.status, answer.headers["grpc-status"], answer.body) == (200, "12", b"")


async def test_large_bodies_pass_whole_both_ways() -> None:
    body = bytes(range(256)) * 2000

    async def converse(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        await peer.next(h2.events.StreamEnded)
        peer.h2.send_headers(stream, [(":status", "200")])
        left = bytes(peer.recording.received)
        while left:
            size = min(peer.h2.local_flow_control_window(stream), 16384, len(left))
            if not size:
                await peer.flush()
                await peer.next(h2.events.WindowUpdated)
                continue
            peer.h2.send_data(stream, left[:size], end_stream=size == len(left))
            left = left[size:]
        await peer.flush()
        await peer.next(h2.events.ConnectionTerminated)

    async with backend(speaking_h2(converse)) as (port, seen), stage(h2c(port)) as proxy:
        answer = await Caller(await proxy.tls(NAME)).ask("PUT", "/", NAME, body=body)
        assert bytes(seen.received) == body
        assert answer.body == body


async def test_a_client_that_reads_nothing_stops_its_own_stream_and_no_other() -> None:
    stuck = trio.Event()

    async def converse(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        peer.h2.send_headers(stream, [(":status", "200")])
        await peer.flush()
        sent = 0
        with trio.move_on_after(10) as scope:
            while sent < 64 * 1024 * 1024:
                size = min(peer.h2.local_flow_control_window(stream), 16384)
                if not size:
                    scope.deadline = trio.current_time() + 1
                    await peer.next(h2.events.WindowUpdated)
                    scope.deadline = trio.current_time() + 10
                    continue
                peer.h2.send_data(stream, bytes(size))
                sent += size
                await peer.flush()
        assert sent < 16 * 1024 * 1024, "somebody took it all"
        stuck.set()
        await _hello(peer)

    async with backend(speaking_h2(converse)) as (port, seen), stage(h2c(port)) as proxy:
        idle = await proxy.tls(NAME)
        await idle.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        with trio.fail_after(20):
            await stuck.wait()
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).body == b"hello"
        assert seen.connections == 1


async def test_a_call_of_grpc_passes_from_end_to_end_while_both_sides_talk() -> None:
    async def converse(peer: H2Peer) -> None:
        stream, fields = await peer.request()
        assert fields["te"] == "trailers"
        peer.h2.send_headers(stream, [(":status", "200"), ("content-type", "application/grpc")])
        await peer.flush()
        for _ in range(3):
            event = await peer.next(h2.events.DataReceived)
            peer.h2.send_data(stream, event.data)
            await peer.flush()
        peer.h2.send_headers(stream, [("grpc-status", "7"), ("grpc-message", "no")], end_stream=True)
        await peer.flush()
        await peer.next(h2.events.ConnectionTerminated)

    async with (
        backend(speaking_h2(converse)) as (port, _),
        stage(h2c(port)) as proxy,
        calling(proxy, NAME) as caller,
    ):
        fields = [("te", "trailers"), ("content-type", "application/grpc")]
        stream = await caller.begin("POST", "/echo.Echo/Talk", NAME, fields, end=False)
        answer = caller.answers[stream]
        for piece in (b"first", b"second", b"third"):
            await caller.body(stream, piece)
            await caller.until(lambda piece=piece: answer.body.endswith(piece))  # type: ignore[misc]
        await caller.until(lambda: answer.ended)
        assert answer.trailers == {"grpc-status": "7", "grpc-message": "no"}


async def test_a_client_that_resets_its_stream_cancels_the_backends() -> None:
    codes: list[object] = []

    async def converse(peer: H2Peer) -> None:
        await peer.request()
        codes.append((await peer.next(h2.events.StreamReset)).error_code)
        await peer.next(h2.events.ConnectionTerminated)

    async with (
        backend(speaking_h2(converse)) as (port, seen),
        stage(h2c(port)) as proxy,
        calling(proxy, NAME) as caller,
    ):
        stream = await caller.begin("GET", "/", NAME)
        await until(lambda: seen.connections)
        caller.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        await caller.send()
        with trio.fail_after(5):
            await until(lambda: codes)
        assert codes == [h2.errors.ErrorCodes.CANCEL]


# ---- what goes wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["refused", "goaway"])
async def test_a_request_that_was_not_looked_at_is_sent_again_whatever_it_is(how: str) -> None:
    asked = 0

    async def converse(peer: H2Peer) -> None:
        nonlocal asked
        stream, _ = await peer.request()
        asked += 1
        if asked == 1:
            if how == "refused":
                peer.h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            else:
                peer.h2.close_connection(last_stream_id=0)
            await peer.flush()
            if how == "goaway":
                return
            stream, _ = await peer.request()
            asked += 1
        await peer.respond(stream, b"hello")
        await peer.next(h2.events.ConnectionTerminated)

    async with backend(speaking_h2(converse)) as (port, _), stage(h2c(port)) as proxy:
        answer = await Caller(await proxy.tls(NAME)).ask("POST", "/", NAME, body=b"order")
        assert answer.status == 200
        assert asked == 2


async def test_a_backend_that_asks_for_http1_gets_that_from_then_on(tmp_path: Path) -> None:
    """One that chose HTTP/2 by ALPN may still want HTTP/1.1 for what is asked (RFC 9113 section 7)."""
    spoken: list[str] = []
    recorded = Recording()

    async def either(stream: Any, recording: Recording) -> None:
        spoken.append(stream.selected_alpn_protocol())
        if spoken[-1] != "h2":
            await answering(HELLO)(stream, recorded)
            return

        async def converse(peer: H2Peer) -> None:
            number, _ = await peer.request()
            peer.h2.reset_stream(number, h2.errors.ErrorCodes.HTTP_1_1_REQUIRED)
            await peer.flush()
            await peer.next(h2.events.ConnectionTerminated)

        await speaking_h2(converse)(stream, recording)

    async with backend(secured(either, "h2", "http/1.1")) as (port, _), stage(https(port, tmp_path)) as proxy:
        caller = Caller(await proxy.tls(NAME))
        for target in ("/first", "/second"):
            assert (await caller.ask("POST", target, NAME, {"Content-Length": "0"})).body == b"hello"
        assert spoken == ["h2", "http/1.1"]
        assert [line for line in recorded.received.split(b"\r\n") if line.startswith(b"POST")] == [
            b"POST /first HTTP/1.1",
            b"POST /second HTTP/1.1",
        ]


async def test_a_connection_that_ends_under_a_get_is_replaced_and_a_post_is_502() -> None:
    async def once(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        await peer.respond(stream, b"hello")
        await peer.request()  # and then ends without an answer

    async with backend(speaking_h2(once)) as (port, seen), stage(h2c(port)) as proxy:
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("GET", "/1", NAME)).status == 200
        assert (await caller.ask("GET", "/2", NAME)).status == 200
        assert seen.connections == 2
        assert (await caller.ask("POST", "/3", NAME, body=b"order")).status == 502


async def test_a_stream_that_is_reset_is_502_and_the_others_go_on() -> None:
    async def converse(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        peer.h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await peer.flush()
        await _hello(peer)

    async with backend(speaking_h2(converse)) as (port, seen), stage(h2c(port)) as proxy:
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("GET", "/", NAME)).status == 502
        assert (await caller.ask("GET", "/", NAME)).status == 200
        assert seen.connections == 1


async def test_a_body_that_breaks_off_never_looks_whole() -> None:
    async def converse(peer: H2Peer) -> None:
        stream, _ = await peer.request()
        await peer.respond(stream, b"part", end=False)
        peer.h2.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        await peer.flush()
        await peer.next(h2.events.ConnectionTerminated)

    async with backend(speaking_h2(converse)) as (port, _), stage(h2c(port)) as proxy:
        with pytest.raises((h11.RemoteProtocolError, trio.BrokenResourceError)):
            await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)


async def test_a_client_that_leaves_cancels_its_stream_and_the_connection_lives_on() -> None:
    code: list[object] = []

    async def converse(peer: H2Peer) -> None:
        await peer.request()
        code.append((await peer.next(h2.events.StreamReset)).error_code)
        await _hello(peer)

    async with backend(speaking_h2(converse)) as (port, seen), stage(h2c(port)) as proxy:
        leaving = await proxy.tls(NAME)
        await leaving.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        await until(lambda: seen.connections)
        await leaving.transport_stream.aclose()
        with trio.fail_after(5):
            await until(lambda: code)
        assert code == [h2.errors.ErrorCodes.CANCEL]
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 200
        assert seen.connections == 1


async def test_a_silent_backend_is_504_and_its_connection_gets_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    async def converse(peer: H2Peer) -> None:
        await peer.next(h2.events.ConnectionTerminated)

    config_for = Timeouts(response=0.2)
    monkeypatch.setattr(Reaper, "PERIOD", 0.1)
    async with backend(speaking_h2(converse)) as (port, seen), stage(h2c(port, timeouts=config_for)) as proxy:
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("GET", "/", NAME)).status == 504
        assert (await caller.ask("GET", "/", NAME)).status == 504
        assert seen.connections == 2
        with trio.fail_after(5):  # nobody would come back to them
            await until(lambda: seen.ended == 2 and not proxy.ctx.pool._shared)


async def test_what_is_no_http2_is_502() -> None:
    script = answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    async with backend(script) as (port, _), stage(h2c(port)) as proxy:
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 502


async def test_without_ngh2_https_goes_by_http1_and_h2c_is_502_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend(secured(answering(HELLO), "h2", "http/1.1")) as (port, _):
        config = https(port, tmp_path)
        route = Route("/rpc/", Target("h2c", LOOPBACK, port))
        config = make_config(attrs.evolve(config.sites[NAME], routes=(route, *config.sites[NAME].routes)))
        async with stage(config) as proxy:
            proxy.ctx.pool._protocols, proxy.ctx.pool._lacking = HTTP11, "No module named 'ngh2'"
            caller = Caller(await proxy.tls(NAME))
            assert (await caller.ask("GET", "/", NAME)).body == b"hello"
            assert (await caller.ask("GET", "/rpc/", NAME)).status == 502
    assert "h2c needs ngh2" in caplog.text


# ---- upgrades ----------------------------------------------------------------------------------------

ASK = (
    b"GET /live HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
ACCEPT = b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"  # RFC 6455 section 1.3

SWITCHED = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def _switching(stream: trio.abc.Stream, recording: Recording) -> None:
    """HTTP/1.1 that changes to an echo; what speaks HTTP/2 gets its SETTINGS, and no answer."""
    head = await read_until(stream, recording, b"\r\n\r\n")
    if head.startswith(b"PRI "):
        await stream.send_all(bytes(3) + b"\4" + bytes(5))
        await read_until(stream, recording, b"never")
        return
    await stream.send_all(SWITCHED)
    while data := await stream.receive_some():
        await stream.send_all(data)


async def _websocket(proxy: Stage) -> bytes:
    """Asks for one, sends a message and gets it back; the head of the answer."""
    stream = await proxy.tls(NAME)
    await stream.send_all(ASK)
    recording = Recording()
    head = await read_until(stream, recording, b"\r\n\r\n")
    await stream.send_all(b"ping")
    await read_until(stream, recording, b"ping")
    return head.lower()


async def test_an_upgrade_goes_by_http1_to_a_backend_that_would_choose_http2(tmp_path: Path) -> None:
    async with backend(secured(_switching, "h2", "http/1.1")) as (port, _), stage(https(port, tmp_path)) as proxy:
        with trio.fail_after(5):
            assert ACCEPT.lower() in await _websocket(proxy)


async def test_h2c_without_extended_connect_is_asked_by_http1() -> None:
    async with backend(_switching) as (port, seen), stage(h2c(port)) as proxy:
        with trio.fail_after(5):
            assert ACCEPT.lower() in await _websocket(proxy)
        assert seen.connections == 2


async def test_a_websocket_over_extended_connect() -> None:
    async def converse(peer: H2Peer) -> None:
        stream, fields = await peer.request()
        assert (fields[":method"], fields[":protocol"]) == ("CONNECT", "websocket")
        assert "sec-websocket-key" not in fields
        await peer.respond(stream, end=False)
        event = await peer.next(h2.events.DataReceived)
        peer.h2.send_data(stream, event.data)
        await peer.flush()
        await peer.next(h2.events.ConnectionTerminated)

    script = speaking_h2(converse, ENABLE_CONNECT_PROTOCOL=1)
    async with backend(script) as (port, _), stage(h2c(port)) as proxy:
        with trio.fail_after(5):
            head = await _websocket(proxy)
        assert head.startswith(b"http/1.1 101 ")
        assert ACCEPT.lower() in head


async def test_draining_and_the_end_of_the_pool_leave_no_connection() -> None:
    async with backend(speaking_h2(_hello)) as (port, seen):
        async with stage(h2c(port)) as proxy:
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 200
            assert proxy.ctx.pool.close_idle() == 1
            with trio.fail_after(5):
                await until(lambda: seen.ended == 1)
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).status == 200
        with trio.fail_after(5):
            await until(lambda: seen.ended == 2)
