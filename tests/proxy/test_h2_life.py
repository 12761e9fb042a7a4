"""HTTP/2 connections over time: whose names they may ask for, how they end, and WebSockets on their streams."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import pytest
import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from tests.conftest import needs
from tests.http.h2_support import GET, changed
from tests.net.sockets import until
from tests.proxy.h2_caller import H2Caller, Raw, calling, served
from tests.proxy.stage import (
    HELLO,
    Recording,
    Script,
    answering,
    authority,
    backend,
    make_config,
    passthrough,
    read_until,
    record_all,
    site,
    stage,
)
from trioproxy.config.model import Config, Site
from trioproxy.http.upgrade import websocket_accept
from trioproxy.routing import RouteTable

NAME = "cloud.test"

DATA, GOAWAY = 0, 7

# ---- authority ----------------------------------------------------------------------------------------


async def test_a_connection_is_for_its_own_sites_names_alone() -> None:
    """Browsers coalesce: they ask for any name that resolves to this address and that the certificate covers."""
    async with backend(answering(HELLO)) as (port, seen), backend(record_all) as (inner, passed):
        config = make_config(
            site(NAME, port),
            site("other.test", port),
            site("alias.test", port, alias_of=NAME),
            site("*.apps.test", port, tls="internal"),
            passthrough("pbx.test", inner),
            passthrough("pbx.apps.test", inner),
        )
        async with stage(config) as proxy:
            async with calling(proxy, NAME) as caller:
                assert (await caller.ask("GET", "/", NAME)).status == 200
                assert (await caller.ask("GET", "/", "CLOUD.test.:443")).status == 200
                asked = seen.received.count(b"GET")
                for name in ("other.test", "alias.test", "x.apps.test", "pbx.test", "pbx.apps.test", "nobody.test"):
                    assert (await caller.ask("GET", "/", name)).status == 421, name
                assert (await caller.ask("GET", "/", NAME)).status == 200
                assert seen.received.count(b"GET") == asked + 1
            async with calling(proxy, "x.apps.test") as caller:
                assert (await caller.ask("GET", "/", "y.apps.test")).status == 200
                # The wildcard's certificate covers it, and yet it is the passthrough backend's alone.
                assert (await caller.ask("GET", "/", "pbx.apps.test")).status == 421
                assert (await caller.ask("GET", "/", "deep.y.apps.test")).status == 421
                assert (await caller.ask("GET", "/", "apps.test")).status == 421
        assert passed.connections == 0


async def test_an_authority_that_is_none_is_answered_or_reset() -> None:
    async with served(answering(HELLO)) as (caller, seen):
        for name in ("cloud.test@evil.test", "cloud.test:x", "[::1"):
            answer = await caller.ask("GET", "/", name)
            assert answer.status == 400 or answer.reset == 1
        assert seen.connections == 0


# ---- ends ---------------------------------------------------------------------------------------------


async def _slow(stream: trio.SocketStream, recording: Recording) -> None:
    """Answers `/slow` when told to go on, all else at once."""
    while head := await read_until(stream, recording, b"\r\n\r\n"):
        if b"/slow" in head:
            await until(lambda: b"go on" in recording.received)
        await stream.send_all(HELLO)


# Not with h2, for which GOAWAY is the end of everything.


async def test_a_drain_lets_requests_finish_that_run_or_are_on_their_way() -> None:
    async with backend(_slow) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        frames = raw.frames
        await raw.send(frames.start(), frames.headers(1, changed(GET, path="/slow")))
        await until(lambda: b"/slow" in seen.received)
        proxy.ctx.drain.begin()
        await raw.send(frames.headers(3))  # before it could hear of it
        notice = await raw.until(GOAWAY)
        assert (notice.last_stream_id, notice.error_code) == (2**31 - 1, 0)
        assert (await raw.until(DATA, 3)).data == b"hello"
        await raw.send(frames.ping(b"draining", ack=True))
        assert (await raw.until(GOAWAY)).last_stream_id == 3
        await raw.send(frames.headers(5))  # too late
        seen.received += b"go on"
        assert (await raw.until(DATA, 1)).data == b"hello"
        assert not any(frame.stream_id == 5 for frame in await raw.until_end())
        await proxy.until_idle()


async def test_an_idle_connection_ends_as_soon_as_its_client_has_heard_of_a_drain() -> None:
    async with backend(_slow) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        await raw.send(raw.frames.start(), raw.frames.headers(1))
        await raw.until(DATA, 1)
        proxy.ctx.drain.begin()
        await raw.until(GOAWAY)
        await raw.send(raw.frames.ping(b"draining", ack=True))
        await raw.until_end()
        assert raw.goaways() == [0, 0]
        await proxy.until_idle()


async def test_a_client_that_does_not_answer_the_last_ping_is_drained_all_the_same() -> None:
    async with backend(_slow) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        await raw.send(raw.frames.start(), raw.frames.headers(1))
        await raw.until(DATA, 1)
        proxy.ctx.drain.begin()
        await raw.until_end()
        assert raw.goaways() == [0, 0]


async def test_a_reload_ends_connections_whose_name_is_gone_and_no_others() -> None:
    def without(config: Config, name: str) -> Config:
        sites: dict[str, Site] = {key: value for key, value in config.sites.items() if key != name}
        return attrs.evolve(config, sites=sites)

    async with (
        backend(_slow) as (port, seen),
        stage(make_config(site(NAME, port), site("gone.test", port))) as proxy,
        calling(proxy, NAME) as staying,
    ):
        leaving = await Raw.connect(proxy, "gone.test")
        slow = changed(GET, path="/slow", authority="gone.test")
        await leaving.send(leaving.frames.start(), leaving.frames.headers(1, slow))
        assert (await staying.ask("GET", "/", NAME)).status == 200
        await until(lambda: b"/slow" in seen.received)
        config = without(proxy.ctx.cell.current.config, "gone.test")
        routes = RouteTable.of(config)
        proxy.ctx.cell.update(lambda old: attrs.evolve(old, config=config, routes=routes))
        await leaving.until(GOAWAY)
        await leaving.until(GOAWAY)
        seen.received += b"go on"
        assert (await leaving.until(DATA, 1)).data == b"hello"
        await leaving.until_end()
        assert (await staying.ask("GET", "/", NAME)).status == 200
        assert staying.terminated == []


async def test_a_client_that_breaks_http2_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with backend(_slow) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        raw = await Raw.connect(proxy, NAME)
        await raw.send(raw.frames.start(), raw.frames.data(1, b"x"))
        await raw.until_end()
        assert raw.goaways() == [1]
        await proxy.until_idle()
    assert "HTTP/2 ended: PROTOCOL_ERROR" in caplog.text


# ---- WebSockets (RFC 8441) ----------------------------------------------------------------------------


def _switching(rest: Callable[[trio.SocketStream], Awaitable[None]], accept: bytes | None = None) -> Script:
    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        head = await read_until(stream, recording, b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        original = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
        assert fields[b"connection"] == b"upgrade"
        assert fields[b"upgrade"] == b"websocket"
        key = next(value for name, value in original.items() if name.lower() == b"sec-websocket-key")
        answer = websocket_accept(key) if accept is None else accept
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: %b\r\n\r\n" % answer
        )
        await rest(stream)

    return script


async def _connect(caller: H2Caller, **fields: str) -> int:
    await caller.until(lambda: caller.h2.remote_settings.enable_connect_protocol == 1)
    head = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/chat")]
    return await caller.open([*head, (":authority", NAME), ("sec-websocket-version", "13"), *fields.items()])


async def _echo(stream: trio.SocketStream) -> None:
    websocket = Connection(ConnectionType.SERVER)
    while data := await stream.receive_some():
        websocket.receive_data(bytes(data))
        for event in websocket.events():
            if isinstance(event, BytesMessage):
                await stream.send_all(websocket.send(BytesMessage(event.data, message_finished=event.message_finished)))
            elif isinstance(event, CloseConnection):
                await stream.send_all(websocket.send(event.response()))
                return


@pytest.mark.parametrize("size", [1, 16 * 1024 * 1024])
async def test_messages_pass_both_ways_and_the_client_closes_first(size: int) -> None:
    async with served(_switching(_echo)) as (caller, _):
        stream = await _connect(caller)
        answer = caller.answers[stream]
        await caller.until(lambda: answer.status)
        assert answer.status == 200
        assert answer.headers["sec-websocket-protocol"] == "chat"
        assert not {"sec-websocket-accept", "upgrade", "connection"} & answer.headers.keys()
        websocket = Connection(ConnectionType.CLIENT)
        message = bytes(range(256)) * (size // 256) or b"x"
        await caller.body(stream, websocket.send(BytesMessage(message)))
        got = bytearray()
        while len(got) < len(message):
            await caller.until(lambda: answer.body)
            websocket.receive_data(bytes(answer.body))
            answer.body.clear()
            for event in websocket.events():
                assert isinstance(event, BytesMessage)
                got += event.data
        assert got == message
        await caller.body(stream, websocket.send(CloseConnection(1000)), end=True)
        await caller.answer(stream)
        assert answer.ended
        websocket.receive_data(bytes(answer.body))
        assert [type(event) for event in websocket.events()] == [CloseConnection]
        assert websocket.state is ConnectionState.CLOSED


async def test_the_backend_closes_first() -> None:
    async def leave(stream: trio.SocketStream) -> None:
        await stream.send_all(b"last words")

    async with served(_switching(leave)) as (caller, _):
        answer = await caller.answer(await _connect(caller))
        assert (bytes(answer.body), answer.ended) == (b"last words", True)
        await caller.until(lambda: answer.reset == 0)  # and what the client may still send is not wanted


async def test_a_client_that_leaves_its_websocket_takes_the_backends_with_it() -> None:
    gone = trio.Event()

    async def wait(stream: trio.SocketStream) -> None:
        try:
            assert await stream.receive_some() == b""
        finally:
            gone.set()

    async with served(_switching(wait)) as (caller, _):
        stream = await _connect(caller)
        await caller.until(lambda: caller.answers[stream].status == 200)
        caller.h2.reset_stream(stream, 8)
        await caller.send()
        with trio.fail_after(5):
            await gone.wait()


async def test_a_wrong_accept_is_no_websocket() -> None:
    async with served(_switching(trio.SocketStream.aclose, b"wrong")) as (caller, _):
        assert (await caller.answer(await _connect(caller))).status == 502


async def test_a_backend_may_refuse_the_websocket() -> None:
    response = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    async with served(answering(response)) as (caller, seen):
        answer = await caller.answer(await _connect(caller, **{"sec-websocket-key": "the client's own"}))
        assert (answer.status, bytes(answer.body)) == (403, b"no")
        assert b"the client's own" not in seen.received


async def test_another_protocol_is_not_spoken() -> None:
    async with served(answering(HELLO)) as (caller, seen):
        head = [(":method", "CONNECT"), (":protocol", "connect-udp"), (":scheme", "https"), (":path", "/")]
        stream = await caller.open([*head, (":authority", NAME)])
        assert (await caller.answer(stream)).status == 501
        assert seen.connections == 0


# ---- clients that people use --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            "curl -sS --http2 --fail --cacert {ca} --connect-to ::127.0.0.1:{port} https://cloud.test:{port}/x",
            marks=needs("curl"),
        ),
        pytest.param(  # names no server in its ClientHello
            "nghttp --header=:authority:cloud.test https://127.0.0.1:{port}/x", marks=needs("nghttp")
        ),
    ],
    ids=["curl", "nghttp"],
)  # fmt: skip
async def test_clients_that_people_use(command: str, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(ca))
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(NAME, port), no_sni=NAME)) as proxy,
    ):
        words = command.format(ca=ca, port=proxy.https).split()
        with trio.fail_after(10):
            done = await trio.run_process(words, capture_stdout=True, capture_stderr=True, check=False)
        assert b"hello" in done.stdout, done.stderr
        assert b"via: 2.0" in bytes(seen.received).lower()
