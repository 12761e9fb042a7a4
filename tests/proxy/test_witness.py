"""What the witness is told: once for each request and each tunnel, however it ends, and all of it true."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

from tests.net.sockets import until
from tests.proxy.h2_caller import calling
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Caller,
    Recording,
    Script,
    Stage,
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
from tests.witness.hearing import Ear
from trioproxy.access import Access
from trioproxy.config.model import Config, Listen, Timeouts
from trioproxy.routing import RouteTable
from trioproxy.wire.proxy_protocol import read_header
from trioproxy.witness.records import (
    BACKEND_FAILED,
    BACKEND_SILENT,
    BROKEN_OFF,
    CLIENT_LEFT,
    CLIENT_SILENT,
    DONE,
    ENDED_HERE,
    REFUSED,
    Exchange,
)

SITE = "cloud.test"
PBX = "pbx.test"


@asynccontextmanager
async def heard(config: Config) -> AsyncIterator[tuple[Stage, Ear]]:
    """A proxy, and who hears what happens there."""
    ear = Ear()
    async with stage(config) as proxy:
        proxy.ctx.witness.add(ear)
        yield proxy, ear


def went(exchange: Exchange) -> tuple[str, int, int, int, str]:
    """The name, the status, bytes of both bodies, the outcome."""
    return exchange.name, exchange.status, exchange.received, exchange.sent, exchange.outcome


def lose(stream: trio.SocketStream) -> None:
    """Reset a connection."""
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


# ---- requests -------------------------------------------------------------------------------------------


async def test_all_that_there_is_to_tell_of_a_request() -> None:
    async with backend(answering(HELLO)) as (port, _), heard(make_config(site(SITE, port))) as (proxy, ear):
        caller = Caller(await proxy.tls(SITE))
        assert (await caller.ask("GET", "/x?y", SITE, {"User-Agent": "test"})).body == b"hello"
        first = await ear.next_exchange()
        assert first.request is not None
        assert (first.request.method, first.request.target) == (b"GET", b"/x?y")
        assert (b"user-agent", b"test") in first.request.headers
        assert (first.connection, first.client, first.scheme) == (1, LOOPBACK, "https")
        assert went(first) == (SITE, 200, 0, 5, DONE)
        assert str(first.backend) == f"http://{LOOPBACK}:{port}"
        assert 0 < first.began < first.asked < first.answered < first.ended
        assert not first.upgraded

        assert (await caller.ask("GET", "/", SITE)).status == 200
        assert (await ear.next_exchange()).connection == 1
        await caller.stream.aclose()
        await proxy.until_idle()
        await Caller(await proxy.plain()).ask("GET", "/", SITE)
        assert (await ear.next_exchange()).connection == 2
    assert ear.heard[:5] == [
        ("opened", 1, LOOPBACK, "https"),
        ("named", 1, LOOPBACK, SITE, SITE),
        ("handshake", 1, LOOPBACK, SITE, "http/1.1", DONE),
        ("closed", 1),
        ("opened", 2, LOOPBACK, "http"),
    ]


def swallowing(size: int) -> Script:
    """A backend that reads a body of `size` bytes, then answers in chunks."""

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        while head := await read_until(stream, recording, b"\r\n\r\n"):
            left = size - len(head.partition(b"\r\n\r\n")[2])
            while left:
                left -= len(await stream.receive_some())
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"
            )

    return script


@pytest.mark.parametrize("size", [3, 300_000])
async def test_bytes_of_bodies_are_counted(size: int) -> None:
    async with backend(swallowing(size)) as (port, _), heard(make_config(site(SITE, port))) as (proxy, ear):
        await Caller(await proxy.tls(SITE)).ask("POST", "/", SITE, body=bytes(size))
        assert went(await ear.next_exchange()) == (SITE, 200, size, 5, DONE)


async def test_bytes_that_came_with_the_head_are_counted() -> None:
    async with backend(swallowing(3)) as (port, _), heard(make_config(site(SITE, port))) as (proxy, ear):
        stream = await proxy.tls(SITE)
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: 3\r\n\r\nabc")
        assert went(await ear.next_exchange()) == (SITE, 200, 3, 5, DONE)


@pytest.mark.parametrize("size", [3, 300_000])
async def test_over_http_2_each_request_of_a_connection_is_told_of(size: int) -> None:
    async with (
        backend(swallowing(size)) as (port, _),
        heard(make_config(site(SITE, port))) as (proxy, ear),
        calling(proxy, SITE) as caller,
    ):
        for _ in range(2):
            headers = [("content-length", str(size))]
            assert (await caller.ask("POST", "/up", SITE, headers, bytes(size))).status == 200
            exchange = await ear.next_exchange()
            assert exchange.request is not None
            assert exchange.request.http_version == (2, 0)
            assert exchange.connection == 1
            assert went(exchange) == (SITE, 200, size, 5, DONE)
        assert (await caller.ask("GET", "/", "other.test")).status == 421
        assert went(await ear.next_exchange())[:2] == ("", 421)
        pseudo = [(":method", "CONNECT"), (":scheme", "https"), (":path", "/"), (":authority", SITE)]
        stream = await caller.open([*pseudo, (":protocol", "another")])
        assert (await caller.answer(stream)).status == 501
        assert went(await ear.next_exchange())[1::3] == (501, REFUSED)


async def test_one_whose_client_is_behind_a_trusted_proxy_is_the_client_s() -> None:
    listen = Listen(trusted_proxies=networks(LOOPBACK))
    async with backend(answering(HELLO)) as (port, _), heard(make_config(site(SITE, port), listen=listen)) as (p, ear):
        await Caller(await p.tls(SITE)).ask("GET", "/", SITE, {"X-Forwarded-For": "192.0.2.7"})
        assert (await ear.next_exchange()).client == "192.0.2.7"


async def test_what_port_80_answers_by_itself() -> None:
    entries = site(SITE, 1), passthrough(PBX, 1, http="off")
    async with heard(make_config(*entries)) as (proxy, ear):
        proxy.ctx.board._answers[SITE, "token"] = "answer"
        caller = Caller(await proxy.plain())
        for host, target, told in [
            (SITE, "/.well-known/acme-challenge/token", (SITE, 200, 0, 6, DONE)),
            (SITE, "/", (SITE, 308, 0, 0, DONE)),
            ("unknown.test", "/", ("", 404, 0, 190, REFUSED)),
            (PBX, "/", (PBX, 404, 0, 190, REFUSED)),
        ]:
            response = await caller.ask("GET", target, host)
            exchange = await ear.next_exchange()
            assert went(exchange) == (*told[:3], len(response.body), told[4])
            assert exchange.scheme == "http"
            assert exchange.backend is None


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"\x00\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: cloud.test\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: clou", 408),
    ],
)
async def test_one_that_is_none_is_told_of_as_well(sent: bytes, status: int) -> None:
    async with heard(make_config(site(SITE, 1), timeouts=Timeouts(header=0.1))) as (proxy, ear):
        stream = await proxy.plain()
        await stream.send_all(sent)
        page = await rest(stream)
        exchange = await ear.next_exchange()
        assert page.startswith(b"HTTP/1.1 %d " % status)
        assert (exchange.request, exchange.client, exchange.status) == (None, LOOPBACK, status)
        assert exchange.outcome == REFUSED
        assert exchange.sent == len(page.partition(b"\r\n\r\n")[2])


async def test_one_that_its_site_is_closed_to() -> None:
    async with heard(make_config(site(SITE, 1))) as (proxy, ear):
        caller = Caller(await proxy.tls(SITE))
        closed = make_config(site(SITE, 1, access=Access(deny=networks(LOOPBACK))))
        proxy.ctx.cell.update(lambda now: attrs.evolve(now, config=closed, routes=RouteTable.of(closed)))
        assert (await caller.ask("GET", "/", SITE)).status == 403
        assert went(await ear.next_exchange())[:2] == (SITE, 403)


# ---- what goes wrong ------------------------------------------------------------------------------------


async def silent(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"never")


async def leaving(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"\r\n\r\n")


async def breaking_off(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"\r\n\r\n")
    await stream.send_all(HELLO.replace(b"5", b"6"))


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
@pytest.mark.parametrize(
    ("script", "status", "sent", "outcome"),
    [
        (leaving, 502, None, BACKEND_FAILED),
        (silent, 504, None, BACKEND_SILENT),
        (breaking_off, 200, 5, BROKEN_OFF),
    ],
)
async def test_a_backend_that_fails_is_told_of(
    protocol: str, script: Script, status: int, sent: int | None, outcome: str
) -> None:
    timeouts = Timeouts(response=0.1)
    async with (
        backend(script) as (port, _),
        heard(make_config(site(SITE, port), timeouts=timeouts)) as (proxy, ear),
    ):
        if protocol == "h2":
            async with calling(proxy, SITE) as caller:
                await caller.ask("GET", "/", SITE)
                exchange = await ear.next_exchange()
        else:
            stream = await proxy.tls(SITE)
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
            exchange = await ear.next_exchange()
        assert (exchange.status, exchange.outcome) == (status, outcome)
        assert exchange.sent == sent if sent is not None else exchange.sent > 100
        assert str(exchange.backend) == f"http://{LOOPBACK}:{port}"
        assert exchange.reason


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_a_client_that_leaves_before_its_answer_is_499(protocol: str) -> None:
    async with backend(silent) as (port, seen), heard(make_config(site(SITE, port))) as (proxy, ear):
        if protocol == "h2":
            async with calling(proxy, SITE) as caller:
                stream = await caller.begin("GET", "/", SITE)
                await caller.until(lambda: seen.received)
                caller.h2.reset_stream(stream)
                await caller.send()
                assert went(await ear.next_exchange()) == (SITE, 499, 0, 0, CLIENT_LEFT)
        else:
            tls = await proxy.tls(SITE)
            await tls.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
            await until(lambda: seen.received)
            tls.transport_stream.socket.close()
            assert went(await ear.next_exchange()) == (SITE, 499, 0, 0, CLIENT_LEFT)


async def test_a_client_that_ends_its_connection_leaves_all_its_requests() -> None:
    async with backend(silent) as (port, seen), heard(make_config(site(SITE, port))) as (proxy, ear):
        async with calling(proxy, SITE) as caller:
            await caller.begin("GET", "/", SITE)
            await caller.until(lambda: seen.received)
        assert went(await ear.next_exchange()) == (SITE, 499, 0, 0, CLIENT_LEFT)


async def test_a_client_that_stops_sending_its_body() -> None:
    timeouts = Timeouts(idle=0.1)
    async with backend(silent) as (port, _), heard(make_config(site(SITE, port), timeouts=timeouts)) as (proxy, ear):
        tls = await proxy.tls(SITE)
        await tls.send_all(b"POST / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: 5\r\n\r\nabc")
        assert went(await ear.next_exchange()) == (SITE, 0, 3, 0, CLIENT_SILENT)


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_a_server_that_stops_tells_of_what_it_cuts(protocol: str) -> None:
    async with backend(silent) as (port, seen), heard(make_config(site(SITE, port))) as (proxy, ear):
        if protocol == "h2":
            async with calling(proxy, SITE) as caller:
                await caller.begin("GET", "/", SITE)
                await caller.until(lambda: seen.received)
                proxy.connections.cancel_scope.cancel()
                exchange = await ear.next_exchange()
        else:
            tls = await proxy.tls(SITE)
            await tls.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
            await until(lambda: seen.received)
            proxy.connections.cancel_scope.cancel()
            exchange = await ear.next_exchange()
        assert went(exchange) == (SITE, 0, 0, 0, ENDED_HERE)


# ---- tunnels --------------------------------------------------------------------------------------------


async def switching(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"\r\n\r\n")
    await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\nwelcome")
    await read_until(stream, recording, b"over")
    await stream.send_all(b"goodbye")


async def test_an_upgraded_connection_is_one_request_with_all_its_bytes() -> None:
    async with backend(switching) as (port, _), heard(make_config(site(SITE, port))) as (proxy, ear):
        stream = await proxy.tls(SITE)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
        await read_until(stream, Recording(), b"welcome")
        await stream.send_all(b"it is over")
        await read_until(stream, Recording(), b"goodbye")
        exchange = await ear.next_exchange()
        assert exchange.upgraded
        assert went(exchange) == (SITE, 101, 10, 14, DONE)


async def test_one_that_is_silent_for_too_long_is_told_to_have_been_ended() -> None:
    timeouts = Timeouts(tunnel=0.1)
    async with backend(switching) as (port, _), heard(make_config(site(SITE, port), timeouts=timeouts)) as (proxy, ear):
        stream = await proxy.tls(SITE)
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: chat\r\n\r\n")
        exchange = await ear.next_exchange()
        assert went(exchange)[1::3] == (101, ENDED_HERE)


async def test_what_was_passed_through_is_told_with_its_bytes() -> None:
    async def answer(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"now")
        await stream.send_all(bytes(3_000_000))

    hello = client_hello(PBX)
    async with backend(answer) as (port, _), heard(make_config(passthrough(PBX, port))) as (proxy, ear):
        stream = await proxy.raw()
        await stream.send_all(hello + bytes(1_000_000) + b"now")
        await stream.send_eof()
        assert len(await rest(stream)) == 3_000_000
        passage = await ear.next_passage()
        await proxy.until_idle()
    assert (passage.connection, passage.client, passage.name) == (1, LOOPBACK, PBX)
    assert str(passage.backend) == f"{LOOPBACK}:{port}"
    assert (passage.up, passage.down) == (len(hello) + 1_000_003, 3_000_000)
    assert passage.began < passage.ended
    assert (passage.outcome, passage.reason) == (DONE, "")
    assert ear.heard == [
        ("opened", 1, LOOPBACK, "https"),
        ("named", 1, LOOPBACK, PBX, PBX),
        ("passing", 1, LOOPBACK, PBX, f"{LOOPBACK}:{port}"),
        ("closed", 1),
    ]


async def test_how_a_passage_ends_otherwise() -> None:
    timeouts = Timeouts(tunnel=0.1)
    hello = client_hello(PBX)
    async with backend(record_all) as (port, seen), heard(make_config(passthrough(PBX, port))) as (proxy, ear):
        stream = await proxy.raw()
        await stream.send_all(hello)
        await until(lambda: seen.received)
        lose(stream)
        assert (await ear.next_passage()).outcome == BROKEN_OFF
        stream = await proxy.raw()
        await stream.send_all(hello)
        await until(lambda: len(seen.received) == 2 * len(hello))
        proxy.connections.cancel_scope.cancel()
        passage = await ear.next_passage()
        assert (passage.outcome, passage.up, passage.down) == (ENDED_HERE, len(hello), 0)
    config = make_config(passthrough(PBX, port), timeouts=timeouts)  # where nobody listens any more
    async with heard(config) as (proxy, ear):
        await (await proxy.raw()).send_all(hello)
        passage = await ear.next_passage()
        assert (passage.outcome, passage.backend, passage.up) == (BACKEND_FAILED, None, 0)
        assert "Connection refused" in passage.reason
    async with backend(record_all) as (port, _):
        config = make_config(passthrough(PBX, port), timeouts=timeouts)
        async with heard(config) as (proxy, ear):
            await (await proxy.raw()).send_all(hello)
            passage = await ear.next_passage()
            assert (passage.outcome, passage.reason, passage.up) == (ENDED_HERE, "silent for 0.1 s", len(hello))


async def test_the_number_of_a_connection_is_in_its_id_for_the_backend() -> None:
    config = make_config(passthrough(PBX, 1, client_ip="proxy-v2"))
    async with backend(record_all) as (port, seen), heard(config) as (proxy, ear):
        config = make_config(passthrough(PBX, port, client_ip="proxy-v2"))
        proxy.ctx.cell.update(lambda now: attrs.evolve(now, config=config, routes=RouteTable.of(config)))
        await (await proxy.plain()).aclose()
        stream = await proxy.raw()
        await stream.send_all(client_hello(PBX))
        await until(lambda: len(seen.received) > 500)
        header = read_header(bytes(seen.received))
        assert header is not None
        number = next(guest.peer.number for guest in proxy.ctx.guests.values())
        assert header.unique_id.endswith(b"-%d" % number)
        assert ("passing", number, LOOPBACK, PBX, f"{LOOPBACK}:{port}") in ear.heard


# ---- before a request -----------------------------------------------------------------------------------


async def test_hellos_that_are_refused_and_handshakes_that_fail() -> None:
    async with heard(make_config(site(SITE, 1))) as (proxy, ear):
        await (stream := await proxy.raw()).send_all(client_hello("unknown.test"))
        await rest(stream)
        await (stream := await proxy.raw()).send_all(b"GET / HTTP/1.1\r\n\r\n")
        await rest(stream)
        await (stream := await proxy.raw()).send_all(client_hello(SITE))
        await stream.send_eof()
        await rest(stream)
        await proxy.until_idle()
    told = [words for words in ear.heard if words[0] in ("refused", "handshake")]
    assert told[0] == ("refused", 1, LOOPBACK, "unknown.test", "unknown.test is configured nowhere")
    assert told[1][:4] == ("refused", 2, LOOPBACK, "")
    assert told[2][:5] == ("handshake", 3, LOOPBACK, SITE, "")
    assert str(told[2][5]).startswith("TLS handshake failed: ")
    assert not ear.exchanges
    assert sorted(words for words in ear.heard if words[0] == "closed") == [("closed", n) for n in (1, 2, 3)]


async def test_nobody_listens_any_more_who_was_removed() -> None:
    async with heard(make_config(site(SITE, 1))) as (proxy, ear):
        proxy.ctx.witness.remove(ear)
        await Caller(await proxy.plain()).ask("GET", "/", SITE)
        assert (ear.heard, ear.exchanges) == ([], [])
