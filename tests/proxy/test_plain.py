"""Port 80: challenges first, then what a passthrough's backend needs, then the way to https."""

from __future__ import annotations

import attrs
import pytest
import trio

from tests.proxy.stage import (
    HELLO,
    Caller,
    Recording,
    answering,
    backend,
    make_config,
    passthrough,
    read_until,
    site,
    stage,
)
from trioproxy.config.model import Listen

SITE = "cloud.test"
PBX = "pbx.test"
CHALLENGE = "/.well-known/acme-challenge/"


async def test_our_own_challenge_is_answered_before_anything_else() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        for entry in (site(SITE, port, http="redirect"), site(SITE, port, http="serve"), site(SITE, port, http="off")):
            async with stage(make_config(entry, passthrough("*", port))) as proxy:
                caller = Caller(await proxy.plain())
                with proxy.ctx.board.present(SITE, "token-1", "token-1.thumbprint"):
                    answer = await caller.ask("GET", CHALLENGE + "token-1", "Cloud.test:80")
                    assert (answer.status, answer.body) == (200, b"token-1.thumbprint")
        assert seen.connections == 0


async def test_a_token_is_answered_for_its_own_name_only_and_gone_afterwards() -> None:
    async with stage(make_config(site(SITE, 1, http="off"), site("home.test", 1, http="off"))) as proxy:
        caller = Caller(await proxy.plain())
        with proxy.ctx.board.present(SITE, "token-1", "secret"):
            assert (await caller.ask("GET", CHALLENGE + "token-1", "home.test")).status == 404
        answer = await caller.ask("GET", CHALLENGE + "token-1", SITE)
        assert answer.status == 404
        assert b"token-1" not in answer.body


async def test_an_unknown_token_of_a_site_reaches_its_backend() -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(SITE, port))) as proxy:
        answer = await Caller(await proxy.plain()).ask("GET", CHALLENGE + "theirs", SITE)
        assert (answer.status, answer.body) == (200, b"hello")
        assert b"GET " + CHALLENGE.encode() + b"theirs HTTP/1.1" in seen.received


@pytest.mark.parametrize("path", [CHALLENGE + "abc", "/.freepbx-known/abc", "/.well-known/pki-validation/x?a=b&c=%2f"])
async def test_a_passthroughs_challenges_go_to_its_backend_unchanged(path: str) -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        caller = Caller(await proxy.plain())
        answer = await caller.ask("GET", path, PBX)
        assert (answer.status, answer.body) == (200, b"hello")
        head = bytes(seen.received).split(b"\r\n")
        assert head[0] == b"GET " + path.encode() + b" HTTP/1.1"
        assert b"host: pbx.test" in head
        assert b"x-forwarded-for: 127.0.0.1" in head


async def test_a_passthroughs_challenge_may_have_a_body() -> None:
    async def swallowing(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"the body")
        await stream.send_all(HELLO)

    async with backend(swallowing) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        answer = await Caller(await proxy.plain()).ask("POST", "/.well-known/x", PBX, body=b"the body")
        assert answer.status == 200
        assert seen.received.endswith(b"\r\n\r\nthe body")


async def test_a_path_that_leaves_the_challenge_folder_again_does_not_reach_the_backend() -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        for path in ("/.well-known/../admin", "/.well-known/%2e%2e/admin"):
            assert (await Caller(await proxy.plain()).ask("GET", path, PBX)).status == 400
        assert seen.connections == 0


async def test_everything_else_is_redirected_to_the_public_https_port() -> None:
    config = make_config(site(SITE, 1), passthrough(PBX, 1))
    async with stage(config) as proxy:
        caller = Caller(await proxy.plain())
        for name in (SITE, PBX):
            answer = await caller.ask("GET", "/a/b?c=d", f"{name}:80")
            assert (answer.status, answer.headers["location"]) == (308, f"https://{name}/a/b?c=d")


async def test_the_redirect_names_a_public_port_that_is_not_443() -> None:
    config = attrs.evolve(make_config(site(SITE, 1)), listen=Listen(public_https_port=8443))
    async with stage(config) as proxy:
        answer = await Caller(await proxy.plain()).ask("GET", "/", SITE)
        assert answer.headers["location"] == f"https://{SITE}:8443/"


async def test_names_configured_nowhere_are_404_or_the_catch_alls() -> None:
    async with stage(make_config(site(SITE, 1))) as proxy:
        assert (await Caller(await proxy.plain()).ask("GET", "/", "unknown.test")).status == 404
    async with backend(answering(HELLO)) as (port, _), stage(make_config(passthrough("*", port, http="all"))) as proxy:
        assert (await Caller(await proxy.plain()).ask("GET", "/", "unknown.test")).status == 200


async def test_what_http_says_for_each_kind_of_entry() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        config = make_config(
            site("serve.test", port, http="serve"),
            site("off.test", port, http="off"),
            passthrough("all.test", port, http="all"),
            passthrough("none.test", port, http="off"),
        )
        async with stage(config) as proxy:
            caller = Caller(await proxy.plain())
            statuses = [(await caller.ask("GET", "/", f"{n}.test")).status for n in ("serve", "off", "all", "none")]
            assert statuses == [200, 404, 200, 404]
            assert b"x-forwarded-proto: http\r\n" in seen.received


async def test_a_client_that_breaks_the_rules_is_refused_and_reaches_nothing() -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(SITE, port, http="serve"))) as proxy:
        stream = await proxy.plain()
        await stream.send_all(
            b"POST / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert (await read_until(stream, Recording(), b"never")).startswith(b"HTTP/1.1 400 ")
        assert seen.connections == 0
