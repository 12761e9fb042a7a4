"""Upgraded connections: WebSocket by an independent implementation at both ends, and other protocols byte for byte."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket, wrap_client_stream

from tests.net.sockets import until
from tests.proxy.stage import HELLO, LOOPBACK, Recording, answering, backend, make_config, read_until, site, stage
from trioproxy.config.model import Timeouts

NAME = "cloud.test"


async def _echo(request: WebSocketRequest) -> None:
    socket = await request.accept()
    try:
        while True:
            await socket.send_message(await socket.get_message())
    except ConnectionClosed:
        return


async def test_websocket_messages_of_all_sizes_come_back_and_either_side_may_close() -> None:
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, _echo, LOOPBACK, 0, None))
        async with stage(make_config(site(NAME, server.port))) as proxy:
            stream = await proxy.tls(NAME)
            socket = await wrap_client_stream(nursery, stream, f"{NAME}", "/live")
            for message in (b"", b"x", b"y" * 70_000, "text", b"z" * 900_000):
                await socket.send_message(message)
                assert await socket.get_message() == message
            await socket.aclose(1001, "done")
            assert socket.closed is not None
            assert socket.closed.code == 1001
            await proxy.until_idle()
        nursery.cancel_scope.cancel()


async def _switching(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"\r\n\r\n")
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat/1\r\n\r\nwelcome")
    await read_until(stream, recording, b"over")
    await stream.send_all(b"goodbye")


ASK = b"POST /ts HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: chat/1\r\nContent-Length: 0\r\n\r\n"


async def test_another_protocol_is_tunnelled_after_the_backends_101() -> None:
    async with backend(_switching) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(ASK + b"early")
        recording = Recording()
        first = await read_until(stream, recording, b"welcome")
        assert first.startswith(b"HTTP/1.1 101 ")
        assert b"upgrade: chat/1\r\n" in first.lower()
        await stream.send_all(b"over")
        assert (await read_until(stream, recording, b"never")).endswith(b"goodbye")
        assert seen.received.endswith(b"earlyover")
        await proxy.until_idle()


async def test_a_backend_that_does_not_switch_is_an_ordinary_response() -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        for _ in range(2):
            await stream.send_all(ASK)
            data = await read_until(stream, Recording(), b"hello")
            assert data.startswith(b"HTTP/1.1 200 ")


async def test_a_switch_to_another_protocol_than_the_one_asked_for_is_502() -> None:
    async with backend(_switching) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(ASK.replace(b"chat/1", b"chat/2"))
        assert (await read_until(stream, Recording(), b"</html>")).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("token", [b"h2c", b"TLS/1.2", b"HTTP/2.0"])
async def test_upgrades_that_would_hide_requests_are_not_passed_on(token: bytes) -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(ASK.replace(b"chat/1", token))
        await read_until(stream, Recording(), b"hello")
        assert b"upgrade" not in bytes(seen.received).lower()


async def test_a_silent_tunnel_ends_at_its_limit() -> None:
    timeouts = Timeouts(tunnel=0.3)
    async with backend(_switching) as (port, _), stage(make_config(site(NAME, port), timeouts=timeouts)) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(ASK)
        with trio.fail_after(3):
            await read_until(stream, Recording(), b"never")
        await proxy.until_idle()


async def test_a_client_that_vanishes_ends_the_backends_side() -> None:
    async with backend(_switching) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(ASK)
        await read_until(stream, Recording(), b"welcome")
        await stream.transport_stream.aclose()
        with trio.fail_after(5):
            await until(lambda: seen.ended)
            await proxy.until_idle()
