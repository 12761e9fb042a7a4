"""How many connections there may be, which ones make room, and when all of them seem to come from one place."""

from __future__ import annotations

import gc
import logging
from typing import Any

import attrs
import pytest
import trio

from tests.net.sockets import no_more_descriptors, until
from tests.proxy.h2_caller import calling
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Caller,
    Recording,
    answering,
    backend,
    client_hello,
    make_config,
    networks,
    passthrough,
    read_until,
    record_all,
    rest,
    site,
    stage,
)
from trioproxy.config.model import Limits, Listen
from trioproxy.errors import ConnectionShed
from trioproxy.net.limits import SAME_IN_A_ROW
from trioproxy.net.sock import Stream
from trioproxy.proxy import context
from trioproxy.wire.proxy_protocol import Endpoint, encode_v2

SITE = "cloud.test"
PBX = "pbx.test"
PROXY = "127.0.0.9"
"""A peer that must begin with a PROXY header."""

BEHIND = Listen(proxy_protocol_from=networks(PROXY))
REQUEST = b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n"


def announcing(host: str) -> bytes:
    return encode_v2(Endpoint(host, 50000), Endpoint("198.51.100.1", 443))


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trioproxy")


async def test_connections_are_counted_by_announced_address() -> None:
    limits = Limits(connections_per_ip=2)
    async with backend(answering(HELLO)) as (port, _):
        config = make_config(site(SITE, port, http="serve"), listen=BEHIND, limits=limits)
        async with stage(config) as proxy:

            async def call(host: str) -> bytes:
                stream = await proxy.plain(PROXY)
                await stream.send_all(announcing(host) + REQUEST)
                return await read_until(stream, Recording(), b"hello")

            first = await proxy.plain(PROXY)
            await first.send_all(announcing("192.0.2.1") + REQUEST)
            assert (await read_until(first, Recording(), b"hello")).endswith(b"hello")
            assert await call("192.0.2.1")
            third = await proxy.plain(PROXY)
            await third.send_all(announcing("192.0.2.1") + REQUEST)
            assert await rest(third) == b""
            assert await call("192.0.2.2")
            await first.aclose()
            await until(lambda: len(proxy.connections.child_tasks) == 2)
            assert await call("192.0.2.1")


@pytest.fixture
def _idle_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits may be closed for another, however short it has waited."""
    monkeypatch.setattr(context, "REQUESTS_APART", 0)
    monkeypatch.setattr(context, "TUNNEL_SPARED", 0)


@pytest.mark.usefixtures("_idle_at_once")
async def test_beyond_the_limit_the_longest_idle_request_or_tunnel_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with backend(record_all) as (port, seen), backend(answering(HELLO)) as (http, _):
        config = make_config(passthrough(PBX, port), site(SITE, http), limits=Limits(connections=3))
        async with stage(config) as proxy:
            request = await proxy.tls(SITE)
            assert (await Caller(request).ask("GET", "/", SITE)).status == 200
            tunnel = await proxy.raw()
            await tunnel.send_all(client_hello(PBX))
            await until(lambda: seen.received)
            await until(proxy.ctx.pump.relays)
            busy = Caller(await proxy.tls(SITE))
            assert (await busy.ask("GET", "/", SITE)).status == 200

            assert (await Caller(await proxy.tls(SITE)).ask("GET", "/", SITE)).status == 200
            assert await request.receive_some() == b""
            assert (await busy.ask("GET", "/", SITE)).status == 200
            await tunnel.send_all(b"at work")
            await until(lambda: seen.received.endswith(b"at work"))

            assert (await Caller(await proxy.tls(SITE)).ask("GET", "/", SITE)).status == 200
            assert (await busy.ask("GET", "/", SITE)).status == 200
            assert (await Caller(await proxy.tls(SITE)).ask("GET", "/", SITE)).status == 200
            assert await rest(tunnel) == b""
            assert (await busy.ask("GET", "/", SITE)).status == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        "3 connections are open, which is limits.connections: idle ones make room for new ones"
    ]


@pytest.mark.usefixtures("_idle_at_once")
async def test_of_those_who_were_closed_nothing_is_left_to_the_collector() -> None:
    """It comes by seldom, and each connection with TLS that waits for it keeps 22 KiB."""
    async with (
        backend(record_all) as (port, _),
        backend(answering(HELLO)) as (http, _),
        stage(make_config(passthrough(PBX, port), site(SITE, http, http="serve"))) as proxy,
        calling(proxy, SITE) as several,
    ):
        assert (await several.ask("GET", "/", SITE)).status == 200
        idle = [await proxy.tls(SITE), await proxy.plain()]
        for stream in idle:
            assert (await Caller(stream).ask("GET", "/", SITE)).status == 200
        tunnel = await proxy.raw()
        await tunnel.send_all(client_hello(PBX))
        await until(proxy.ctx.pump.relays)
        proxy.ctx.pool.close_idle()
        gc.collect()
        gc.disable()
        try:
            assert proxy.ctx.admission.shedder.shed(10) == 4
            await proxy.until_idle()
            left = [thing for thing in gc.get_objects() if isinstance(thing, Stream | ConnectionShed)]
        finally:
            gc.enable()
        assert left == []


@pytest.mark.usefixtures("_idle_at_once")
async def test_an_upgraded_connection_is_a_tunnel_too() -> None:
    async def switching(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        await read_until(stream, recording, b"never")

    async with (
        backend(switching) as (port, seen),
        stage(make_config(site(SITE, port), limits=Limits(connections=1))) as proxy,
    ):
        stream = await proxy.tls(SITE)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n")
        await read_until(stream, Recording(), b"\r\n\r\n")
        await until(lambda: [tunnel.idle_since for tunnel in proxy.ctx.tunnels] not in ([], [None]))
        await proxy.tls(SITE)
        with trio.fail_after(5):
            assert await stream.receive_some() == b""
        await until(lambda: seen.ended)
        assert proxy.ctx.tunnels == set()


async def test_when_all_are_at_work_the_new_one_is_closed(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        backend(record_all) as (port, _),
        stage(make_config(site(SITE, port), limits=Limits(connections=1))) as proxy,
    ):
        at_work = await proxy.tls(SITE)
        await at_work.send_all(REQUEST)
        for _ in range(20):
            stream = await proxy.raw()
            await stream.send_all(client_hello(SITE))
            assert await rest(stream) == b""
        await at_work.aclose()
        await proxy.until_idle()
        await proxy.tls(SITE)
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


@pytest.mark.usefixtures("_idle_at_once")
async def test_without_descriptors_idle_connections_make_room_within_a_second() -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(SITE, port, http="redirect"))) as proxy:
        idle = [Caller(await proxy.plain()) for _ in range(20)]
        for caller in idle:
            assert (await caller.ask("GET", "/", SITE)).status == 308
        stream = trio.socket.socket()
        with no_more_descriptors():
            await stream.connect((LOOPBACK, proxy.http))
            with trio.fail_after(1):
                assert (await Caller(trio.SocketStream(stream)).ask("GET", "/", SITE)).status == 308
        stream.close()


@pytest.mark.parametrize(
    ("host", "changes", "told"),
    [
        ("172.17.0.1", {}, True),
        ("fd00::1", {}, True),
        ("192.0.2.1", {}, False),
        ("127.0.0.5", {}, False),
        ("172.17.0.1", {"trusted_proxies": networks("172.17.0.1")}, False),
    ],
)
async def test_one_private_address_for_everybody_is_told_once(
    host: str, changes: dict[str, Any], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    listen = attrs.evolve(BEHIND, **changes)
    async with stage(make_config(site(SITE, 1), listen=listen)) as proxy:

        async def call(host: str) -> None:
            stream = await proxy.plain(PROXY)
            await stream.send_all(announcing(host) + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            await rest(stream)

        for _ in range(SAME_IN_A_ROW - 1):
            await call(host)
        await call("192.0.2.99")
        assert proxy.ctx.admission.suspect == ""
        for _ in range(2 * SAME_IN_A_ROW):
            await call(host)
        await call("192.0.2.99")
        for _ in range(SAME_IN_A_ROW):
            await call(host)
        assert proxy.ctx.admission.suspect == (host if told else "")
    assert caplog.text.count("a private address") == told
