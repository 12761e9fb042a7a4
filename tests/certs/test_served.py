"""What is told of our own listener, by looking at it."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio

from tests.certs.making import acme_site, bundle, config
from trioproxy.access import Access
from trioproxy.certs import served
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.contexts import server_context
from trioproxy.certs.served import look, reachable
from trioproxy.config.model import Config, HostPort, Listen

NAME = "cloud.example.com"
SITE = acme_site(NAME)


@pytest.fixture
def settings(tmp_path: Path) -> Config:
    return config(tmp_path, SITE)


@asynccontextmanager
async def listener(
    choose: Callable[[], Bundle | None], host: str = "127.0.0.1", asked: list[str] | None = None
) -> AsyncIterator[HostPort]:
    """Serves what `choose` says; None for who says nothing at all."""

    async def serve(stream: trio.SocketStream) -> None:
        made = choose()
        if made is None:
            await trio.sleep_forever()
        context = server_context(made)
        context.sni_callback = lambda _, name, __: asked.append(name) if asked is not None else None
        with_tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await with_tls.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError):
            return

    async with trio.open_nursery() as nursery:
        [first] = await nursery.start(partial(trio.serve_tcp, serve, 0, host=host))
        yield HostPort(host, first.socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def test_the_right_one_is_seen_and_asked_for_by_name(settings: Config) -> None:
    made = bundle(NAME)
    asked: list[str] = []
    async with listener(lambda: made, asked=asked) as address:
        verdict = await look(settings, SITE, made.leaf, [address])
    assert (verdict.result, verdict.words) == ("good", "already get it (checked)")
    assert asked == [NAME]


async def test_another_one_is_told_with_both_serial_numbers(settings: Config) -> None:
    made, other = bundle(NAME), bundle(NAME)
    async with listener(lambda: other) as address:
        verdict = await look(settings, SITE, made.leaf, [address])
    assert verdict.result == "wrong"
    assert f"{made.leaf.serial:x}" in verdict.words
    assert f"{other.leaf.serial:x}" in verdict.words


async def test_a_listener_that_is_bound_to_everything_is_called_over_loopback(settings: Config) -> None:
    made = bundle(NAME)
    async with listener(lambda: made, host="0.0.0.0") as address:
        assert (await look(settings, SITE, made.leaf, [HostPort("::", 1), address])).result == "good"
    assert reachable([HostPort("::", 443)]) == HostPort("::1", 443)
    assert reachable([HostPort("10.0.0.2", 443)]) == HostPort("10.0.0.2", 443)


async def test_where_a_proxy_must_announce_its_client_nobody_looks(settings: Config) -> None:
    behind = attrs.evolve(settings, listen=Listen(proxy_protocol_from=(ipaddress.ip_network("127.0.0.0/8"),)))
    verdict = await look(behind, SITE, bundle(NAME).leaf, [HostPort("127.0.0.1", 1)])
    assert verdict.result == "unknown"
    assert verdict.words == "already get it (not checked: connections from 127.0.0.1 must begin with a PROXY header)"


async def test_a_site_that_keeps_us_out_is_not_looked_at(settings: Config) -> None:
    closed = attrs.evolve(SITE, access=Access(allow=(ipaddress.ip_network("192.0.2.0/24"),)))
    verdict = await look(settings, closed, bundle(NAME).leaf, [HostPort("127.0.0.1", 1)])
    assert verdict.result == "unknown"
    assert (await look(settings, SITE, bundle(NAME).leaf, [])).words.endswith("(not checked: nothing listens here)")


async def test_who_does_not_answer_is_told(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PATIENCE", 0.1)
    async with listener(lambda: None) as address:
        verdict = await look(settings, SITE, bundle(NAME).leaf, [address])
    assert (verdict.result, verdict.words.split()[0]) == ("wrong", "hang,")
    verdict = await look(settings, SITE, bundle(NAME).leaf, [address])
    assert (verdict.result, verdict.words.split()[0]) == ("wrong", "fail,")
