"""The door: who calls, when a proxy in front says so by a PROXY header or by the fields of a request."""

from __future__ import annotations

import attrs
import pytest
import trio

from tests.conftest import needs
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Caller,
    answering,
    backend,
    client_hello,
    make_config,
    networks,
    passthrough,
    record_all,
    rest,
    site,
    stage,
)
from trioproxy.config.model import Listen, Timeouts
from trioproxy.net.sock import Reaper
from trioproxy.wire.proxy_protocol import SIGNATURE, Endpoint, encode_v1, encode_v2

SITE = "cloud.test"
PBX = "pbx.test"
PROXY = "127.0.0.9"
"""A peer that must begin with a PROXY header."""

BEHIND = Listen(proxy_protocol_from=networks(PROXY))
CLIENT = Endpoint("192.0.2.7", 50000)
US = Endpoint("198.51.100.1", 443)
HEADERS = {"v1": encode_v1(CLIENT, US), "v2": encode_v2(CLIENT, US)}
LOCAL = SIGNATURE + b"\x20\x00\x00\x00"


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trioproxy")


@pytest.fixture
def _strict_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines are kept to the hundredth of a second."""
    monkeypatch.setattr(Reaper, "PERIOD", 0.01)


# ---- PROXY headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_a_site_s_backend_is_told_the_announced_client(header: bytes) -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(SITE, port), listen=BEHIND)) as proxy:
        caller = Caller(await proxy.tls(SITE, PROXY, header))
        assert (await caller.ask("GET", "/", SITE)).status == 200
        assert b"x-forwarded-for: 192.0.2.7\r\n" in seen.received
        assert b"x-real-ip: 192.0.2.7\r\n" in seen.received


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_so_is_one_on_port_80(header: bytes) -> None:
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(SITE, port, http="serve"), listen=BEHIND)) as proxy,
    ):
        stream = await proxy.plain(PROXY)
        await stream.send_all(header)
        assert (await Caller(stream).ask("GET", "/", SITE)).status == 200
        assert b"x-forwarded-for: 192.0.2.7\r\n" in seen.received


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
async def test_a_header_is_taken_off_wherever_it_is_cut(header: bytes) -> None:
    hello = client_hello(PBX)
    request = b"GET / HTTP/1.1\r\nHost: pbx.test\r\nConnection: close\r\n\r\n"
    async with backend(record_all) as (port, seen), backend(answering(HELLO)) as (http, _):
        entry = attrs.evolve(passthrough(PBX, port, http="all"), http_to=passthrough(PBX, http).http_to)
        async with stage(make_config(entry, listen=BEHIND)) as proxy:
            for cut in range(len(header) + 1):
                seen.received.clear()
                stream = await proxy.raw(PROXY)
                await stream.send_all(header[:cut] or header[:1])
                await trio.lowlevel.checkpoint()
                await stream.send_all(header[max(cut, 1) :] + hello)
                await stream.send_eof()
                assert await rest(stream) == b""
                assert bytes(seen.received) == hello

                stream = await proxy.plain(PROXY)
                await stream.send_all(header[:cut] or header[:1])
                await trio.lowlevel.checkpoint()
                await stream.send_all(header[max(cut, 1) :] + request)
                assert (await rest(stream)).startswith(b"HTTP/1.1 200 ")


async def test_the_log_and_the_access_rules_go_by_the_announced_client(caplog: pytest.LogCaptureFixture) -> None:
    async with stage(make_config(site(SITE, 1), listen=BEHIND)) as proxy:
        stream = await proxy.raw(PROXY)
        await stream.send_all(HEADERS["v1"] + client_hello("unknown.test"))
        assert (await rest(stream))[:1] == b"\x15"
        await proxy.until_idle()
    assert "192.0.2.7:50000 #1: refused: unknown.test is configured nowhere" in caplog.messages


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
async def test_a_proxy_that_speaks_for_itself_is_the_client(header: bytes) -> None:
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(SITE, port, http="serve"), listen=BEHIND)) as proxy,
    ):
        stream = await proxy.plain(PROXY)
        await stream.send_all(header)
        assert (await Caller(stream).ask("GET", "/", SITE)).status == 200
        assert b"x-forwarded-for: 127.0.0.9\r\n" in seen.received


REQUEST = b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n"
WRONG = {
    "none": b"",
    "version 1 of nonsense": b"PROXY TCP4 192.0.2.7 198.51.100.1 50000\r\n",
    "too long a line": b"PROXY TCP4 " + b"1" * 200,
    "a bad length": SIGNATURE + b"\x21\x11\x00\x04" + b"\0" * 4,
    "an unknown family": SIGNATURE + b"\x21\x31\x00\x00",
}


@pytest.mark.parametrize("start", WRONG.values(), ids=WRONG)
async def test_where_a_header_is_due_anything_else_is_closed_without_an_answer(
    start: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend(record_all) as (port, seen):
        config = make_config(passthrough("*", port, http="all"), listen=BEHIND)
        async with stage(config) as proxy:
            stream = await proxy.raw(PROXY)
            await stream.send_all(start + client_hello(PBX))
            assert await rest(stream) == b""
            stream = await proxy.plain(PROXY)
            await stream.send_all(start + REQUEST)
            assert await rest(stream) == b""
            await proxy.until_idle()
        assert seen.connections == 0
    assert [message.split(": ")[1] for message in caplog.messages] == ["refused", "refused"]
    assert caplog.messages[0].startswith("127.0.0.9:")


@pytest.mark.parametrize("header", [*HEADERS.values(), LOCAL], ids=[*HEADERS, "LOCAL"])
@pytest.mark.parametrize("listen", [BEHIND, Listen()], ids=["some may", "nobody may"])
async def test_from_anybody_else_a_header_is_refused(header: bytes, listen: Listen) -> None:
    async with backend(record_all) as (port, seen):
        config = make_config(passthrough("*", port, http="all"), listen=listen)
        async with stage(config) as proxy:
            stream = await proxy.raw()
            await stream.send_all(header + client_hello(PBX))
            assert await rest(stream) == b""
            stream = await proxy.plain()
            await stream.send_all(header + REQUEST)
            assert (await rest(stream)).startswith(b"HTTP/1.1 400 ")
        assert seen.connections == 0


@pytest.mark.usefixtures("_strict_reaper")
async def test_header_and_hello_together_have_the_time_of_a_hello(caplog: pytest.LogCaptureFixture) -> None:
    timeouts = Timeouts(hello=0.3)
    async with stage(make_config(site(SITE, 1), listen=BEHIND, timeouts=timeouts)) as proxy:
        for start in (HEADERS["v1"][:-1], HEADERS["v2"][:-1], HEADERS["v2"] + client_hello(SITE)[:-1]):
            began = trio.current_time()
            stream = await proxy.raw(PROXY)
            await stream.send_all(start)
            await rest(stream)
            assert timeouts.hello <= trio.current_time() - began < timeouts.hello + 2
    assert [message.partition(": ")[2] for message in caplog.messages[:2]] == [
        "refused: the PROXY header did not come to its end in time"
    ] * 2


@pytest.mark.usefixtures("_strict_reaper")
async def test_on_port_80_only_the_header_has_that_time() -> None:
    timeouts = Timeouts(hello=0.1)
    config = make_config(site(SITE, 1), listen=BEHIND, timeouts=timeouts)
    async with stage(config) as proxy:
        stream = await proxy.plain(PROXY)
        await stream.send_all(HEADERS["v1"])
        caller = Caller(stream)
        for _ in range(2):
            assert (await caller.ask("GET", "/", SITE)).status == 308
            await trio.sleep(timeouts.hello + 0.1)


async def test_a_health_check_that_says_nothing_is_not_worth_a_word(caplog: pytest.LogCaptureFixture) -> None:
    async with stage(make_config(site(SITE, 1), listen=BEHIND)) as proxy:
        for start in (b"", LOCAL):
            stream = await proxy.raw(PROXY)
            if start:
                await stream.send_all(start)
            await stream.send_eof()
            assert await rest(stream) == b""
        await proxy.until_idle()
    assert caplog.messages == []


@needs("curl")
async def test_curl_sends_headers_that_are_understood() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        listen = Listen(proxy_protocol_from=networks("127.0.0.0/8"))
        async with stage(make_config(site(SITE, port, http="serve"), listen=listen)) as proxy:
            for scheme, port_ in (("http", proxy.http), ("https", proxy.https)):
                command = ["curl", "--silent", "--fail", "--insecure", "--noproxy", "*", "--max-time", "10"]
                command += ["--haproxy-protocol", "--interface", "127.0.0.77"]
                command += ["--resolve", f"{SITE}:{port_}:{LOOPBACK}", f"{scheme}://{SITE}:{port_}/"]
                assert (await trio.run_process(command, capture_stdout=True)).stdout == b"hello"
            assert seen.received.count(b"x-forwarded-for: 127.0.0.77\r\n") == 2


# ---- trusted proxies ----------------------------------------------------------------------------------


async def test_the_fields_of_a_trusted_proxy_are_extended_and_anybody_else_s_replaced(
    caplog: pytest.LogCaptureFixture,
) -> None:
    listen = Listen(trusted_proxies=networks(PROXY))
    sent = {"X-Forwarded-For": "203.0.113.66, 198.51.100.7", "X-Forwarded-Proto": "https"}
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(SITE, port, http="serve"), listen=listen)) as proxy,
    ):
        caller = Caller(await proxy.plain(PROXY))
        assert (await caller.ask("GET", "/", SITE, sent)).status == 200
        assert b"x-forwarded-for: 203.0.113.66, 198.51.100.7, 127.0.0.9\r\n" in seen.received
        assert b"x-real-ip: 198.51.100.7\r\n" in seen.received
        assert b"x-forwarded-proto: https\r\n" in seen.received
        assert (await caller.ask("GET", "/", "unknown.test", sent)).status == 404
        assert caplog.messages[-1].startswith("198.51.100.7 #1: GET unknown.test/")

        seen.received.clear()
        assert (await Caller(await proxy.plain()).ask("GET", "/", SITE, sent)).status == 200
        assert b"x-forwarded-for: 127.0.0.1\r\n" in seen.received
        assert b"x-forwarded-proto: http\r\n" in seen.received


async def test_a_proxy_that_another_one_announces_may_be_trusted_too() -> None:
    listen = attrs.evolve(BEHIND, trusted_proxies=networks("192.0.2.7"))
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(SITE, port), listen=listen)) as proxy:
        caller = Caller(await proxy.tls(SITE, PROXY, HEADERS["v2"]))
        await caller.ask("GET", "/", SITE, {"X-Forwarded-For": "203.0.113.9"})
        assert b"x-forwarded-for: 203.0.113.9, 192.0.2.7\r\n" in seen.received
