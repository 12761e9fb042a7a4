"""Several backends for a route; and what the proxy adds to answers, or says about them."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

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
    Stage,
    answering,
    backend,
    make_config,
    read_until,
    site,
    stage,
)
from trioproxy.config.model import Config, Route, Target, Timeouts
from trioproxy.http.h2 import Code
from trioproxy.net.sock import Reaper

NAME = "cloud.test"


def _config(*ports: int, **changes: object) -> Config:
    route = Route("/", tuple(Target("http", LOOPBACK, port) for port in ports))
    return make_config(site(NAME, 1, routes=(route,), **changes))


def _says(text: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)


async def _closed_port() -> int:
    async with backend(answering(HELLO)) as (port, _):
        return port


# ---- failover ----------------------------------------------------------------------------------------


async def test_the_first_that_can_be_reached_is_asked_and_one_that_refused_is_set_aside() -> None:
    closed = await _closed_port()
    async with (
        backend(answering(_says(b"second"))) as (second, _),
        backend(answering(_says(b"third"))) as (third, seen),
    ):
        async with stage(_config(closed, second, third)) as proxy:
            for method in ("GET", "POST"):
                answer = await Caller(await proxy.tls(NAME)).ask(method, "/", NAME, body=b"order" * (method == "POST"))
                assert answer.body == b"second"
        assert seen.connections == 0


async def test_one_that_is_set_aside_is_not_even_tried() -> None:
    closed = await _closed_port()
    async with AsyncExitStack() as stack:
        other, _ = await stack.enter_async_context(backend(answering(_says(b"other"))))
        proxy = await stack.enter_async_context(stage(_config(closed, other)))
        assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).body == b"other"
        listeners = await trio.open_tcp_listeners(closed, host=LOOPBACK)
        try:
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)).body == b"other"
        finally:
            await listeners[0].aclose()


async def test_503_at_once_when_none_is_left_and_when_to_ask_again() -> None:
    async with stage(_config(await _closed_port(), await _closed_port())) as proxy:
        caller = Caller(await proxy.tls(NAME))
        with trio.fail_after(2):
            for _ in range(2):
                answer = await caller.ask("GET", "/", NAME)
                assert answer.status == 503
                assert 1 <= int(answer.headers["retry-after"]) <= 10
                assert answer.headers["content-type"].startswith("text/html")
                assert b"503 Service Unavailable" in answer.body
                assert LOOPBACK.encode() not in answer.body


async def test_what_was_sent_to_one_never_goes_to_the_next() -> None:
    async def dying(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")

    async with (
        backend(dying) as (first, seen),
        backend(answering(HELLO)) as (second, other),
        stage(_config(first, second)) as proxy,
    ):
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("POST", "/", NAME, body=b"order")).status == 502
        assert seen.connections == 1
        assert other.connections == 0


async def test_a_reused_connection_that_died_with_its_backend_leads_to_the_next_one() -> None:
    async def once(stream: trio.SocketStream) -> None:
        await read_until(stream, Recording(), b"\r\n\r\n")
        await stream.send_all(HELLO)
        await read_until(stream, Recording(), b"\r\n\r\n")

    listeners = await trio.open_tcp_listeners(0, host=LOOPBACK)
    first = listeners[0].socket.getsockname()[1]
    async with (
        backend(answering(_says(b"second"))) as (second, _),
        stage(_config(first, second)) as proxy,
        trio.open_nursery() as nursery,
    ):

        async def serve() -> None:
            async with await listeners[0].accept() as stream:
                await once(stream)

        nursery.start_soon(serve)
        caller = Caller(await proxy.tls(NAME))
        assert (await caller.ask("GET", "/", NAME)).body == b"hello"
        await listeners[0].aclose()
        assert (await caller.ask("GET", "/", NAME)).body == b"second"


async def test_each_route_has_its_own_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.1)

    async def silent(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(silent) as (port, _):
        target = Target("http", LOOPBACK, port)
        routes = (Route("/hasty/", target, timeouts=Timeouts(response=0.1)), Route("/", target))
        async with stage(make_config(site(NAME, port, routes=routes))) as proxy:
            assert (await Caller(await proxy.tls(NAME)).ask("GET", "/hasty/", NAME)).status == 504
            with trio.move_on_after(0.4) as scope:
                await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)
            assert scope.cancelled_caught


async def test_each_site_has_its_own_patience_with_heads_and_idle_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.1)
    hasty = site(NAME, 1, timeouts=Timeouts(header=0.1, idle=0.2))
    async with backend(answering(HELLO)) as (port, _):
        config = make_config(attrs.evolve(hasty, routes=site(NAME, port).routes), site("calm.test", port))
        async with stage(config) as proxy:
            with trio.fail_after(5):
                await _patience_ends(proxy)


async def _patience_ends(proxy: Stage) -> None:
    calm = await proxy.tls("calm.test")
    await calm.send_all(b"GET / HTTP/1.1\r\n")
    slow = await proxy.tls(NAME)
    await slow.send_all(b"GET / HTTP/1.1\r\n")
    assert (await read_until(slow, Recording(), b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")
    idle = Caller(await proxy.tls(NAME))
    assert (await idle.ask("GET", "/", NAME)).status == 200
    assert await idle.stream.receive_some() == b""
    async with calling(proxy, NAME) as caller:
        assert (await caller.ask("GET", "/", NAME)).status == 200
        await caller.until_closed()
    await calm.send_all(b"Host: calm.test\r\n\r\n")
    assert (await read_until(calm, Recording(), b"hello")).startswith(b"HTTP/1.1 200 ")


async def test_each_route_has_its_own_patience_with_clients_that_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.1)

    async def taking(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"never")

    async with backend(taking) as (port, seen):
        target = Target("http", LOOPBACK, port)
        routes = (Route("/hasty/", target, timeouts=Timeouts(idle=0.1)), Route("/", target))
        config = make_config(site(NAME, port, routes=routes))
        async with stage(config) as proxy, calling(proxy, NAME) as caller:
            upload = b" HTTP/1.1\r\nHost: %b\r\nContent-Length: 9\r\n\r\nx" % NAME.encode()
            calm, hasty = await proxy.tls(NAME), await proxy.tls(NAME)
            await calm.send_all(b"POST /" + upload)
            waits = await caller.begin("POST", "/", NAME, end=False)
            await hasty.send_all(b"POST /hasty/" + upload)
            with trio.fail_after(5):
                assert await read_until(hasty, Recording(), b"never") == b""
                gone = await caller.begin("POST", "/hasty/", NAME, end=False)
                assert (await caller.answer(gone)).reset == Code.CANCEL
                await until(lambda: seen.ended == 2)
            assert (caller.answers[waits].reset, seen.connections) == (None, 4)


# ---- Strict-Transport-Security -----------------------------------------------------------------------


async def test_hsts_goes_with_every_answer_over_https_and_replaces_the_backends() -> None:
    script = answering(b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nContent-Length: 5\r\n\r\nhello")
    async with backend(script) as (port, _):
        closed = await _closed_port()
        routes = (
            Route("/", Target("http", LOOPBACK, port)),
            Route("/gone/", Target("http", LOOPBACK, closed, "/")),
        )
        entry = site(NAME, port, routes=routes[::-1], hsts=15552000.0, http="serve")
        async with stage(make_config(entry)) as proxy:
            caller = Caller(await proxy.tls(NAME))
            for path, status in (("/", 200), ("/gone/", 502), ("/gone", 308), ("/%zz", 400)):
                answer = await caller.ask("GET", path, NAME)
                assert (answer.status, answer.headers.get("strict-transport-security")) == (status, "max-age=15552000")
            plain = await Caller(await proxy.plain()).ask("GET", "/", NAME)
            assert plain.headers["strict-transport-security"] == "max-age=1", "the backend's own, for http is not ours"


async def test_without_hsts_the_backends_own_stays() -> None:
    script = answering(b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=1\r\nContent-Length: 5\r\n\r\nhello")
    async with backend(script) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        answer = await Caller(await proxy.tls(NAME)).ask("GET", "/", NAME)
        assert answer.headers["strict-transport-security"] == "max-age=1"


# ---- hints -------------------------------------------------------------------------------------------


async def test_a_backend_that_answers_400_is_explained_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    script = answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    async with backend(script) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        caller = Caller(await proxy.tls(NAME))
        for _ in range(3):
            assert (await caller.ask("GET", "/", NAME)).status == 400
    hints = [r.getMessage() for r in caplog.records if "trusted_proxies" in r.getMessage()]
    assert len(hints) == 1
    assert f"http://{LOOPBACK}:{port}" in hints[0]
