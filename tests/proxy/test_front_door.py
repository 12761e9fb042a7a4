"""Port 443: each kind of first bytes, and where it leads."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from tests.net.sockets import until
from tests.proxy.stage import (
    HELLO,
    Caller,
    Recording,
    answering,
    backend,
    client_context,
    client_hello,
    make_config,
    passthrough,
    read_until,
    record_all,
    site,
    stage,
)
from trioproxy.config.model import Timeouts
from trioproxy.net.sock import Reaper

SITE = "cloud.test"
PBX = "pbx.test"


def in_records_of(size: int, hello: bytes) -> bytes:
    """The same handshake message, cut into TLS records of `size` bytes."""
    message = hello[5:]
    pieces = (message[i : i + size] for i in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + struct.pack(">H", len(piece)) + piece for piece in pieces)


ALERT = {
    112: b"\x15\x03\x03\x00\x02\x02\x70",
    109: b"\x15\x03\x03\x00\x02\x02\x6d",
    47: b"\x15\x03\x03\x00\x02\x02\x2f",
}


async def test_a_passthrough_gets_every_byte_from_the_first_and_its_half_close() -> None:
    hello = client_hello(PBX)

    async def answer(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")
        await stream.send_all(b"after your end")

    async with backend(answer) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(hello + b"and more at once")
        await stream.send_eof()
        assert await read_until(stream, Recording(), b"never") == b"after your end"
        assert bytes(seen.received) == hello + b"and more at once"
        await proxy.until_idle()


@pytest.mark.parametrize("record", [1, 7, 100, 16384])
async def test_a_hello_in_any_number_of_records_takes_the_same_route(record: int) -> None:
    data = in_records_of(record, client_hello(PBX))
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port), site(SITE, 1))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(data)
        await stream.send_eof()
        await read_until(stream, Recording(), b"never")
        assert bytes(seen.received) == data


async def test_a_hello_in_segments_of_one_byte_takes_the_same_route() -> None:
    data = client_hello(PBX)
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        stream = await proxy.raw()
        for byte in data:
            await stream.send_all(bytes([byte]))
        await stream.send_eof()
        await read_until(stream, Recording(), b"never")
        assert bytes(seen.received) == data


@pytest.mark.parametrize("spelling", ["pbx.test", "PBX.Test", "pbx.test."])
async def test_spellings_of_a_name_are_one_name(spelling: str) -> None:
    async with backend(record_all) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        stream = await proxy.raw()
        hello = client_hello("p" * len(spelling)).replace(b"p" * len(spelling), spelling.encode())
        await stream.send_all(hello)
        await stream.send_eof()
        await read_until(stream, Recording(), b"never")
        assert bytes(seen.received) == hello


async def test_exact_wins_over_wildcard_and_wildcard_over_the_catch_all() -> None:
    async with (
        backend(record_all) as (exact, at_exact),
        backend(record_all) as (wildcard, at_wildcard),
        backend(record_all) as (catch_all, at_catch_all),
    ):
        config = make_config(
            passthrough("a.apps.test", exact), passthrough("*.apps.test", wildcard), passthrough("*", catch_all)
        )
        async with stage(config) as proxy:
            for name in ("a.apps.test", "b.apps.test", "apps.test", "x.b.apps.test", "other.example"):
                stream = await proxy.raw()
                await stream.send_all(client_hello(name))
                await stream.send_eof()
                await read_until(stream, Recording(), b"never")
    assert (at_exact.connections, at_wildcard.connections, at_catch_all.connections) == (1, 1, 3)


async def test_an_unknown_name_gets_unrecognized_name_even_if_it_goes_on_sending() -> None:
    async with stage(make_config(site(SITE, 1))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(client_hello("unknown.test"))
        await stream.send_all(b"\x14\x03\x03\x00\x01\x01" * 100)
        assert await read_until(stream, Recording(), b"never") == ALERT[112]


async def test_openssl_names_the_alert_for_an_unknown_name() -> None:
    async with stage(make_config(site(SITE, 1))) as proxy:
        stream = trio.SSLStream(await proxy.raw(), client_context(), server_hostname="unknown.test")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.do_handshake()
        assert "UNRECOGNIZED_NAME" in str(caught.value.__cause__)


async def test_no_name_is_refused_unless_an_entry_is_named_for_it() -> None:
    async with backend(record_all) as (port, seen):
        async with stage(make_config(passthrough(PBX, port))) as proxy:
            stream = await proxy.raw()
            await stream.send_all(client_hello(None))
            assert await read_until(stream, Recording(), b"never") == ALERT[109]
        async with stage(make_config(passthrough(PBX, port), no_sni=PBX)) as proxy:
            stream = await proxy.raw()
            await stream.send_all(client_hello(None))
            await stream.send_eof()
            await read_until(stream, Recording(), b"never")
        assert seen.connections == 1


def _with_name(name: bytes) -> bytes:
    return client_hello("p" * len(name)).replace(b"p" * len(name), name)


HOSTILE = {
    "malformed": client_hello(PBX)[:60] + b"\xff" * (len(client_hello(PBX)) - 60),
    "over 64 KiB": b"\x16\x03\x01\x40\x00\x01\x01\x00\x10" + b"\0" * 70_000,
    "a NUL in the name": _with_name(b"pbx.test\0"),
    "no LDH": _with_name(b"pbx_test"),
    "an address": _with_name(b"127.0.0.1"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
async def test_a_bad_hello_gets_an_alert_and_never_the_catch_all(data: bytes) -> None:
    async with backend(record_all) as (port, seen), stage(make_config(passthrough("*", port))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(data)
        answer = await read_until(stream, Recording(), b"never")
        assert answer[:1] == b"\x15"  # an alert record
        assert answer[5] == 2  # fatal
        assert seen.connections == 0


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\nHost: pbx.test\r\n\r\n", b"\x80\x2e\x01\x03\x01\0\0\0", b"SSH-2.0-x\r\n", b"\0" * 100],
    ids=["HTTP", "SSLv2", "SSH", "noise"],
)
async def test_what_is_no_tls_is_closed_without_a_word(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with backend(record_all) as (port, seen), stage(make_config(passthrough("*", port))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(data)
        try:
            answer = await read_until(stream, Recording(), b"never")
        except trio.BrokenResourceError:
            answer = b""
        assert answer == b""
        assert seen.connections == 0
        await proxy.until_idle()
    assert not [record for record in caplog.records if record.exc_info]


async def test_an_unfinished_hello_gets_an_alert_at_its_deadline_and_never_the_catch_all() -> None:
    timeouts = Timeouts(hello=0.3)
    async with (
        backend(record_all) as (port, seen),
        stage(make_config(passthrough("*", port), timeouts=timeouts)) as proxy,
    ):
        stream = await proxy.raw()
        await stream.send_all(client_hello(PBX)[:-1])
        with trio.fail_after(timeouts.hello + 2):
            assert (await read_until(stream, Recording(), b"never"))[:1] == b"\x15"
        assert seen.connections == 0


async def test_a_backend_that_cannot_be_reached_is_an_internal_error_and_concerns_nobody_else() -> None:
    async with backend(answering(HELLO)) as (gone, _):
        pass
    async with (
        backend(answering(HELLO)) as (port, _),
        stage(make_config(passthrough(PBX, gone), site(SITE, port))) as proxy,
    ):
        stream = await proxy.raw()
        await stream.send_all(client_hello(PBX))
        assert await read_until(stream, Recording(), b"never") == b"\x15\x03\x03\x00\x02\x02\x50"
        assert (await Caller(await proxy.tls(SITE)).ask("GET", "/", SITE)).status == 200


async def test_each_site_has_its_own_certificate_and_alpn() -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        stage(make_config(site(SITE, port), site("home.test", port))) as proxy,
    ):
        for name in (SITE, "home.test"):
            stream = await proxy.tls(name)  # the client checks the name
            assert stream.selected_alpn_protocol() == "http/1.1"


async def test_an_authority_of_another_entry_is_misdirected() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        config = make_config(site(SITE, port), site("home.test", port), passthrough(PBX, port))
        async with stage(config) as proxy:
            caller = Caller(await proxy.tls(SITE))
            assert (await caller.ask("GET", "/", "CLOUD.test.:8443")).status == 200
            for other in ("home.test", PBX, "unknown.test", "127.0.0.1"):
                assert (await caller.ask("GET", "/", other)).status == 421
            assert seen.received.count(b"GET ") == 1


async def test_a_site_reached_without_a_name_serves_what_is_configured_nowhere_else() -> None:
    async with backend(answering(HELLO)) as (port, _):
        config = make_config(site(SITE, port), site("home.test", port), no_sni=SITE)
        async with stage(config) as proxy:
            context = client_context()
            context.check_hostname = False
            stream = trio.SSLStream(await proxy.raw(), context)
            caller = Caller(stream)
            assert (await caller.ask("GET", "/", "127.0.0.1:443")).status == 200
            assert (await caller.ask("GET", "/", "home.test")).status == 421
            assert (await caller.ask("GET", "/", SITE)).status == 200


async def test_a_site_without_its_certificate_stays_with_the_catch_all() -> None:
    async with backend(record_all) as (port, seen), backend(answering(HELLO)) as (own, _):
        config = make_config(site(SITE, own), passthrough("*", port))
        async with stage(config, awaiting=frozenset({SITE})) as proxy:
            stream = await proxy.raw()
            await stream.send_all(client_hello(SITE))
            await stream.send_eof()
            await read_until(stream, Recording(), b"never")
            assert seen.connections == 1
        async with stage(make_config(site(SITE, own)), awaiting=frozenset({SITE})) as proxy:  # none to stay with
            assert (await Caller(await proxy.tls(SITE)).ask("GET", "/", SITE)).status == 200


async def test_a_client_that_goes_away_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "trioproxy.door")
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(SITE, port))) as proxy:
        tls = await proxy.tls(SITE)
        assert (await Caller(tls).ask("GET", "/", SITE)).status == 200
        tls.transport_stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tls.transport_stream.socket.close()
        await proxy.until_idle()
        stream = await proxy.raw()
        await stream.send_all(client_hello(SITE))
        await stream.receive_some(1)
        await stream.aclose()
        await proxy.until_idle()
    assert [record.levelname for record in caplog.records if record.name == "trioproxy.door"] == ["DEBUG"] * 2
    assert "_ssl.c" not in caplog.text


async def test_a_client_that_does_not_agree_on_tls_is(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trioproxy.door")
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(SITE, port))) as proxy:
        stream = await proxy.raw()
        await stream.send_all(client_hello(SITE) + b"\x15\x03\x03\x00\x02\x02\x30")  # unknown_ca
        await proxy.until_idle()
        await trio.aclose_forcefully(stream)
    [record] = caplog.records
    assert record.levelname == "INFO"
    assert "TLS handshake failed: " in record.getMessage()
    assert "_ssl.c" not in caplog.text


async def test_a_handshake_that_stops_half_way_is_said_to(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.01)
    caplog.set_level("INFO", "trioproxy.door")
    config = make_config(site(SITE, 1), timeouts=Timeouts(hello=0.1))
    async with stage(config) as proxy:
        stream = await proxy.raw()
        await stream.send_all(client_hello(SITE))
        await until(lambda: caplog.messages)
        await proxy.until_idle()
        await trio.aclose_forcefully(stream)
    [message] = caplog.messages
    assert message.endswith(": the TLS handshake did not come to its end in time")


async def test_a_failed_handshake_ends_its_own_connection_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(SITE, port))) as proxy:
        good = Caller(await proxy.tls(SITE))
        stream = await proxy.raw()
        await stream.send_all(client_hello(SITE))
        await stream.send_all(b"\x17\x03\x03\x00\x05wrong")
        await read_until(stream, Recording(), b"never")
        assert (await good.ask("GET", "/", SITE)).status == 200
    assert not [record for record in caplog.records if record.exc_info]
