"""Passthrough: what the backend is told before the client's first byte, and which backend it is."""

from __future__ import annotations

from socket import AF_INET

import pytest
import trio

from tests.net.sockets import no_more_descriptors, until
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Caller,
    Recording,
    Stage,
    answering,
    backend,
    client_hello,
    make_config,
    networks,
    passthrough,
    read_until,
    record_all,
    stage,
)
from trioproxy.config.model import HostPort, Listen
from trioproxy.net.transparent import allowed
from trioproxy.proxy import context
from trioproxy.wire.proxy_protocol import Endpoint, ProxyHeader, encode_v1, encode_v2, read_header

PBX = "pbx.test"
PROXY = "127.0.0.9"
"""A peer whose PROXY headers are believed."""


async def say(proxy: Stage, data: bytes, source: str = LOOPBACK) -> int:
    """Send `data` and an end on port 443, and wait for the other end; returns the client's port."""
    stream = await proxy.raw(source)
    port: int = stream.socket.getsockname()[1]
    await stream.send_all(data)
    await stream.send_eof()
    await read_until(stream, Recording(), b"never")
    return port


def first_header(seen: Recording) -> ProxyHeader:
    header = read_header(bytes(seen.received))
    assert header is not None
    return header


async def test_by_default_the_backend_is_told_nothing() -> None:
    hello = client_hello(PBX)
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        await say(proxy, hello)
        assert bytes(seen.received) == hello


async def test_version_1_is_sent_before_the_first_byte() -> None:
    hello = client_hello(PBX)
    entry = {"client_ip": "proxy-v1"}
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port, **entry))) as proxy:
        client = await say(proxy, hello)
        line = f"PROXY TCP4 127.0.0.1 127.0.0.1 {client} {proxy.https}\r\n".encode()
        assert bytes(seen.received) == line + hello


async def test_version_2_is_sent_before_the_first_byte_and_tells_more() -> None:
    hello = client_hello(PBX, "h2")
    entry = {"client_ip": "proxy-v2"}
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port, **entry))) as proxy:
        client = await say(proxy, hello)
        header = first_header(seen)
        assert (header.source, header.destination) == (Endpoint(LOOPBACK, client), Endpoint(LOOPBACK, proxy.https))
        assert (header.alpn, header.authority) == (b"h2", b"pbx.test")
        assert bytes(seen.received[header.size :]) == hello


async def test_the_protocol_is_told_only_where_there_is_no_choice_and_the_name_only_where_there_is_one() -> None:
    async with backend(record_all) as (port, seen):
        config = make_config(passthrough(PBX, port, client_ip="proxy-v2"), no_sni=PBX)
        async with stage(config) as proxy:
            await say(proxy, client_hello(None, "h2", "http/1.1"))
            header = first_header(seen)
            assert (header.alpn, header.authority) == (b"", b"")


async def test_each_connection_has_an_id_of_its_own_which_the_log_knows(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "trioproxy.passthrough")
    ids = []
    for _ in range(2):
        async with (
            backend(record_all) as (port, seen),
            stage(make_config(passthrough(PBX, port, client_ip="proxy-v2"))) as proxy,
        ):
            for _ in range(2):
                seen.received.clear()
                await say(proxy, client_hello(PBX))
                ids.append(first_header(seen).unique_id)
                assert ids[-1].decode() in caplog.text
    assert len(set(ids[:2])) == len(set(ids[2:])) == 2


@pytest.mark.parametrize("form", ["proxy-v1", "proxy-v2"])
@pytest.mark.parametrize(
    ("source", "destination", "told"),
    [
        (Endpoint("192.0.2.7", 5), Endpoint("198.51.100.1", 443), Endpoint("198.51.100.1", 443)),
        (Endpoint("2001:db8::7", 5), Endpoint("2001:db8::1", 8443), Endpoint("2001:db8::1", 8443)),
        # Two families are both written as IPv6; read again, IPv4 within IPv6 is IPv4.
        (Endpoint("2001:db8::7", 5), Endpoint("198.51.100.1", 443), Endpoint("198.51.100.1", 443)),
    ],
    ids=["IPv4", "IPv6", "mixed"],
)
async def test_what_a_proxy_in_front_announced_is_what_the_backend_is_told(
    form: str, source: Endpoint, destination: Endpoint, told: Endpoint
) -> None:
    listen = Listen(proxy_protocol_from=networks(PROXY))
    async with (
        backend(record_all) as (port, seen),
        stage(make_config(passthrough(PBX, port, client_ip=form), listen=listen)) as proxy,
    ):
        for encode in (encode_v1, encode_v2):
            seen.received.clear()
            await say(proxy, encode(source, destination) + client_hello(PBX), PROXY)
            header = first_header(seen)
            assert (header.source, header.destination) == (source, told)


async def test_port_80_never_sends_a_header() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        entry = passthrough(PBX, port, client_ip="proxy-v2", http="all")
        async with stage(make_config(entry)) as proxy:
            assert (await Caller(await proxy.plain()).ask("GET", "/", PBX)).status == 200
            assert seen.received.startswith(b"GET / HTTP/1.1\r\n")


async def test_of_several_backends_the_first_that_answers_gets_the_connection() -> None:
    async with backend(record_all) as (gone, _):
        pass
    hello = client_hello(PBX)
    async with backend(record_all) as (second, at_second), backend(record_all) as (third, at_third):
        to = tuple(HostPort(LOOPBACK, port) for port in (gone, second, third))
        async with stage(make_config(passthrough(PBX, second, to=to))) as proxy:
            await say(proxy, hello)
    assert bytes(at_second.received) == hello
    assert at_third.connections == 0


@pytest.mark.parametrize("form", ["none", "proxy-v1", "proxy-v2"])
async def test_when_none_answers_the_alert_is_an_internal_error(form: str) -> None:
    async with backend(record_all) as (one, _), backend(record_all) as (two, _):
        pass
    to = (HostPort(LOOPBACK, one), HostPort(LOOPBACK, two))
    async with stage(make_config(passthrough(PBX, one, to=to, client_ip=form))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(client_hello(PBX))
        with trio.fail_after(5):
            assert await read_until(stream, Recording(), b"never") == b"\x15\x03\x03\x00\x02\x02\x50"


async def test_without_descriptors_an_idle_tunnel_makes_room_for_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "TUNNEL_SPARED", 0)
    hello = client_hello(PBX)
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        idle = await proxy.raw()
        await idle.send_all(hello)
        await until(lambda: len(seen.received) == len(hello))
        fresh = await proxy.raw()
        await fresh.send_all(hello[:-1])
        await until(lambda: len(proxy.connections.child_tasks) == 2)  # accepted, but not dialled for
        with no_more_descriptors(), trio.fail_after(5):
            await fresh.send_all(hello[-1:])
            await until(lambda: len(seen.received) == 2 * len(hello))


@pytest.mark.skipif(not allowed(AF_INET), reason="only root may speak from others' addresses")
async def test_a_transparent_backend_is_called_from_the_clients_own_address() -> None:
    hello = client_hello(PBX)
    peers: list[str] = []

    async def who_calls(stream: trio.SocketStream, recording: Recording) -> None:
        peers.append(stream.socket.getpeername()[0])
        await record_all(stream, recording)

    async with backend(who_calls) as (port, seen):
        entry = passthrough(PBX, port, client_ip="transparent", to=(HostPort("::1", port), HostPort(LOOPBACK, port)))
        async with stage(make_config(entry)) as proxy:
            await say(proxy, hello, "127.0.0.7")
    assert peers == ["127.0.0.7"]
    assert bytes(seen.received) == hello, "nothing is said but what the client said"
