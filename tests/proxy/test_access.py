"""Who may connect: refused before any backend is called, and challenges are exempt."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from tests.proxy.stage import (
    HELLO,
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
    site,
    stage,
)
from trioproxy.access import Access
from trioproxy.config.model import Listen
from trioproxy.routing import RouteTable
from trioproxy.wire.proxy_protocol import Endpoint, encode_v2

SITE = "cloud.test"
PBX = "pbx.test"
FRIEND = "127.0.0.5"
STRANGER = "127.0.0.6"
PROXY = "127.0.0.9"

ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
FRIENDS = Access(allow=networks(FRIEND))
CHALLENGE = "/.well-known/acme-challenge/"


async def first_answer(proxy: Stage, name: str, source: str, before: bytes = b"") -> bytes:
    """What port 443 answers to a ClientHello that is followed by an end."""
    stream = await proxy.raw(source)
    await stream.send_all(before + client_hello(name))
    await stream.send_eof()
    return await read_until(stream, Recording(), b"never")


@pytest.mark.parametrize(
    "access",
    [FRIENDS, Access(deny=networks(STRANGER)), Access(allow=networks("127.0.0.0/8"), deny=networks(STRANGER))],
    ids=["allow", "deny", "both"],
)
async def test_on_port_443_others_get_an_alert_and_no_backend_is_called(
    access: Access, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trioproxy")
    async with backend(record_all) as (port, seen):
        config = make_config(passthrough(PBX, port, access=access), site(SITE, port, access=access))
        async with stage(config) as proxy:
            assert await first_answer(proxy, PBX, STRANGER) == ACCESS_DENIED
            assert await first_answer(proxy, SITE, STRANGER) == ACCESS_DENIED
            assert seen.connections == 0
            assert await first_answer(proxy, PBX, FRIEND) == b""
            assert seen.connections == 1
            assert (await first_answer(proxy, SITE, FRIEND))[:1] == b"\x16"  # a handshake
    assert caplog.messages[0].endswith("refused: pbx.test is not open to this client")
    assert caplog.messages[0].startswith(f"{STRANGER}:")


async def test_the_rule_of_the_catch_all_and_of_no_sni_holds_too() -> None:
    async with backend(record_all) as (port, seen):
        config = make_config(passthrough("*", port, access=FRIENDS), no_sni="*")
        async with stage(config) as proxy:
            assert await first_answer(proxy, "any.test", STRANGER) == ACCESS_DENIED
            stream = await proxy.raw(STRANGER)
            await stream.send_all(client_hello(None))
            assert await read_until(stream, Recording(), b"never") == ACCESS_DENIED
            assert seen.connections == 0


async def test_lan_is_what_the_interfaces_say_now() -> None:
    """203.0.113.0/24 is public, but may be what a machine's interface is on."""
    listen = Listen(proxy_protocol_from=networks(PROXY))
    near = encode_v2(Endpoint("203.0.113.9", 5), Endpoint("203.0.113.1", 443))
    private = encode_v2(Endpoint("10.1.2.3", 5), Endpoint("203.0.113.1", 443))
    async with backend(record_all) as (port, _):
        config = make_config(passthrough(PBX, port, access=Access(allow_lan=True)), listen=listen)
        async with stage(config) as proxy:
            assert await first_answer(proxy, PBX, PROXY, near) == ACCESS_DENIED
            assert await first_answer(proxy, PBX, PROXY, private) == b""
            proxy.ctx.lan.networks = networks("203.0.113.0/24")
            assert await first_answer(proxy, PBX, PROXY, near) == b""
            proxy.ctx.lan.networks = ()
            assert await first_answer(proxy, PBX, PROXY, near) == ACCESS_DENIED


async def test_x_forwarded_for_opens_no_door() -> None:
    listen = Listen(trusted_proxies=networks(STRANGER))
    async with backend(answering(HELLO)) as (port, seen):
        config = make_config(site(SITE, port, http="serve", access=FRIENDS), listen=listen)
        async with stage(config) as proxy:
            caller = Caller(await proxy.plain(STRANGER))
            assert (await caller.ask("GET", "/", SITE, {"X-Forwarded-For": FRIEND})).status == 403
            assert seen.connections == 0


async def test_a_rule_that_a_reload_brought_holds_for_the_next_request() -> None:
    async with backend(answering(HELLO)) as (port, _):
        config = make_config(site(SITE, port))
        async with stage(config) as proxy:
            caller = Caller(await proxy.tls(SITE, STRANGER))
            assert (await caller.ask("GET", "/", SITE)).status == 200
            stricter = make_config(site(SITE, port, access=FRIENDS))
            proxy.ctx.cell.update(lambda s: attrs.evolve(s, config=stricter, routes=RouteTable.of(stricter)))
            assert (await caller.ask("GET", "/", SITE)).status == 403


# ---- port 80 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("http", ["redirect", "serve"])
async def test_others_get_403_for_a_site_on_port_80(http: str) -> None:
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(SITE, port, http=http, access=FRIENDS))) as proxy,
    ):
        caller = Caller(await proxy.plain(STRANGER))
        for path in ("/", CHALLENGE, f"{CHALLENGE}../../admin", f"{CHALLENGE}%2e%2e/x", f"{CHALLENGE}a/b"):
            assert (await caller.ask("GET", path, SITE)).status == 403
        assert seen.connections == 0
        friend = Caller(await proxy.plain(FRIEND))
        assert (await friend.ask("GET", "/", SITE)).status == (308 if http == "redirect" else 200)


@pytest.mark.parametrize("http", ["redirect", "serve", "off"])
async def test_our_own_challenges_are_exempt(http: str) -> None:
    async with stage(make_config(site(SITE, 1, http=http, access=FRIENDS))) as proxy:
        with proxy.ctx.board.present(SITE, "token-1", "answer"):
            answer = await Caller(await proxy.plain(STRANGER)).ask("GET", CHALLENGE + "token-1", SITE)
            assert (answer.status, answer.body) == (200, b"answer")


@pytest.mark.parametrize("http", ["redirect", "serve"])
async def test_so_are_tokens_that_may_be_the_backend_s(http: str) -> None:
    async with (
        backend(answering(HELLO)) as (port, seen),
        stage(make_config(site(SITE, port, http=http, access=FRIENDS))) as proxy,
    ):
        assert (await Caller(await proxy.plain(STRANGER)).ask("GET", CHALLENGE + "theirs", SITE)).status == 200
        assert seen.received.startswith(f"GET {CHALLENGE}theirs HTTP".encode())


@pytest.mark.parametrize("http", ["challenges", "all"])
async def test_of_a_passthrough_name_others_reach_the_challenges_alone(http: str) -> None:
    entry: dict[str, Any] = {"http": http, "access": FRIENDS}
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(passthrough(PBX, port, **entry))) as proxy:
        for path, status in (
            ("/", 403),
            ("/admin", 403),
            ("/.well-known", 403),
            ("/.well-known/../admin", 400),
            ("/.freepbx-known/%2e%2e/admin", 400),
            (CHALLENGE + "x", 200),
            ("/.freepbx-known/x", 200),
        ):
            assert (await Caller(await proxy.plain(STRANGER)).ask("GET", path, PBX)).status == status
        assert seen.received.count(b"GET ") == 2
        caller = Caller(await proxy.plain(FRIEND))
        assert (await caller.ask("GET", "/admin", PBX)).status == (200 if http == "all" else 308)


async def test_what_is_off_is_off_for_everybody() -> None:
    config = make_config(site(SITE, 1, http="off", access=FRIENDS), passthrough(PBX, 1, http="off", access=FRIENDS))
    async with stage(config) as proxy:
        for name in (SITE, PBX):
            for source in (FRIEND, STRANGER):
                assert (await Caller(await proxy.plain(source)).ask("GET", CHALLENGE + "x", name)).status == 404
