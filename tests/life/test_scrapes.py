"""The listener for metrics: what it answers, what cannot hurt it, and where it moves."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h11
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.net.sockets import open_descriptors, until
from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError
from trioproxy.life import scrapes as module
from trioproxy.life.scrapes import VISITS, Scrapes
from trioproxy.net.sock import Reaper
from trioproxy.process.inheritance import Heirloom
from trioproxy.witness.exposition import Samples

LOOPBACK = "127.0.0.1"
ANY = HostPort(LOOPBACK, 0)


class Counting:
    """Counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    async def __call__(self) -> Samples:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return {"trioproxy_connections": [((), self.asked)]}


@asynccontextmanager
async def answering(scrapes: Scrapes, reaper: Reaper) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reaper.run)  # noqa: ASYNC113 - they may begin whenever they like
        nursery.start_soon(scrapes.run)  # noqa: ASYNC113
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(gather: module.Gather | None = None) -> AsyncIterator[tuple[Scrapes, int]]:
    """One that answers, and its port."""
    reaper = Reaper()
    with Scrapes(reaper, gather or Counting()) as scrapes:
        with scrapes.moving(ANY):
            pass
        async with answering(scrapes, reaper):
            at = scrapes.bound()
            assert at is not None
            yield scrapes, at.port


async def ask(port: int, data: bytes) -> bytes:
    """All that is answered to `data`."""
    with trio.fail_after(30):
        async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(data)
            return b"".join([part async for part in stream])


async def asked_properly(port: int, target: str, method: str = "GET") -> tuple[h11.Response, bytes]:
    """The response, as an independent HTTP/1.1 reads it."""
    peer = h11.Connection(h11.CLIENT)
    request = peer.send(h11.Request(method=method, target=target, headers=[("Host", "x")]))
    assert request is not None
    peer.send(h11.EndOfMessage())
    peer.receive_data(await ask(port, request))
    peer.receive_data(b"")
    response, body = peer.next_event(), b""
    assert isinstance(response, h11.Response)
    while isinstance(event := peer.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    return response, body


# ---- what it answers ----------------------------------------------------------------------------------


async def test_metrics_are_prometheus_text() -> None:
    async with listening() as (_, port):
        response, body = await asked_properly(port, "/metrics?of=no-interest")
        assert response.status_code == 200
        assert dict(response.headers)[b"content-type"] == b"text/plain; version=0.0.4; charset=utf-8"
        [family] = text_string_to_metric_families(body.decode())
        assert (family.name, family.samples[0].value) == ("trioproxy_connections", 1)


async def test_head_is_the_same_without_the_text() -> None:
    async with listening() as (_, port):
        full, body = await asked_properly(port, "/metrics")
        head, nothing = await asked_properly(port, "/metrics", "HEAD")
        assert dict(head.headers) == dict(full.headers)
        assert nothing == b"" != body


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [("/", "GET", 404), ("/metrics/", "GET", 404), ("/metrics", "POST", 405), ("/metrics", "DELETE", 405)],
)
async def test_there_is_nothing_else(target: str, method: str, status: int) -> None:
    async with listening() as (_, port):
        response, _ = await asked_properly(port, target, method)
        assert response.status_code == status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 9000 + b"\r\n\r\n", 431),
        (b"GET /metrics HTTP/1.1\r\nHost: a\r\n" + b"X: x\r\n" * 60 + b"\r\n", 431),
    ],
)
async def test_what_is_no_request_is_refused(data: bytes, status: int) -> None:
    async with listening() as (_, port):
        assert (await ask(port, data)).startswith(b"HTTP/1.1 %d " % status)


async def test_a_visitor_who_leaves_half_way_leaves_nothing_behind() -> None:
    async with listening() as (scrapes, port):
        await asked_properly(port, "/metrics")  # now all that it needs is open
        before = open_descriptors()
        async with await trio.open_tcp_stream(LOOPBACK, port) as stream:
            await stream.send_all(b"GET /metr")
        with trio.fail_after(30):
            await until(lambda: open_descriptors() <= before and not scrapes._visits)
        assert (await asked_properly(port, "/metrics"))[0].status_code == 200


# ---- what cannot hurt ---------------------------------------------------------------------------------


async def test_more_visitors_than_there_is_room_for_are_turned_away() -> None:
    async with listening() as (scrapes, port):
        waiting = []
        for _ in range(VISITS):
            stream = await trio.open_tcp_stream(LOOPBACK, port)
            await stream.send_all(b"GET")  # a listener is told of a connection when something has come
            waiting.append(stream)
        with trio.fail_after(30):
            await until(lambda: scrapes._visits == VISITS)
        with contextlib.suppress(trio.BrokenResourceError):  # closed with what it had sent unread
            assert await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        await waiting[0].aclose()
        with trio.fail_after(30):
            await until(lambda: scrapes._visits < VISITS)
        assert (await asked_properly(port, "/metrics"))[0].status_code == 200
        for stream in waiting[1:]:
            await stream.aclose()


async def test_who_says_nothing_for_long_is_turned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    monkeypatch.setattr(Reaper, "PERIOD", 0.05)
    async with listening() as (_, port):
        assert await ask(port, b"GET /metrics HTTP/1.1\r\n") == b""


async def test_the_text_is_made_once_a_second_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = Counting()
    monkeypatch.setattr(module, "FRESH", 3600.0)
    async with listening(gather) as (_, port):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(asked_properly, port, "/metrics")
        assert gather.asked == 1
        monkeypatch.setattr(module, "FRESH", 0.0)
        await asked_properly(port, "/metrics")
        assert gather.asked == 2


async def test_others_have_their_turn_while_ten_thousand_names_are_written() -> None:
    async def many() -> Samples:
        await trio.lowlevel.checkpoint()
        return {"trioproxy_requests_total": [((f"{n}.test", "200"), n) for n in range(10_000)]}

    turns = 0

    async def somebody_else() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    scrapes = Scrapes(Reaper(), many)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(somebody_else)
        page = await scrapes._page()
        nursery.cancel_scope.cancel()
    assert page.count(b"\n") == 10_002
    assert turns > 50


async def test_a_bug_ends_one_visit_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    faults = [IndexError("a bug")]

    async def failing_once() -> Samples:
        await trio.lowlevel.checkpoint()
        if faults:
            raise faults.pop()
        return {"trioproxy_connections": [((), 3)]}

    async with listening(failing_once) as (_, port):
        assert await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") == b""
        assert "a bug in trioproxy ended a visit to its metrics" in caplog.text
        assert (await asked_properly(port, "/metrics"))[0].status_code == 200


# ---- where it is --------------------------------------------------------------------------------------


async def test_a_taken_port_is_told_with_the_setting_and_everything_stays() -> None:
    async with listening() as (scrapes, port):
        with socket.create_server((LOOPBACK, 0)) as other:
            taken = HostPort(LOOPBACK, other.getsockname()[1])
            with pytest.raises(ListenError, match=rf"^admin\.metrics: {taken.port} is held by "), scrapes.moving(taken):
                raise AssertionError("nothing is begun")
        assert scrapes.bound() == HostPort(LOOPBACK, port)
        assert (await asked_properly(port, "/metrics"))[0].status_code == 200


async def test_what_is_begun_and_fails_leaves_all_as_it_was() -> None:
    async with listening() as (scrapes, port):
        await asked_properly(port, "/metrics")  # now all that it needs is open
        before = open_descriptors()
        with pytest.raises(ListenError), scrapes.moving(HostPort("127.0.0.2", 0)):
            raise ListenError("another listener could not be had")
        assert open_descriptors() == before
        assert (await asked_properly(port, "/metrics"))[0].status_code == 200


async def test_it_moves_goes_and_comes_again() -> None:
    async with listening() as (scrapes, port):
        with scrapes.moving(HostPort("127.0.0.2", port)):
            pass
        with trio.fail_after(30):
            while await refuses(LOOPBACK, port) is False:  # noqa: ASYNC110 - the kernel tells nobody
                await trio.lowlevel.checkpoint()
        assert await refuses("127.0.0.2", port) is False
        with scrapes.moving(None):
            pass
        assert scrapes.bound() is None
        assert scrapes.heirlooms() == ()
        with trio.fail_after(30):
            while await refuses("127.0.0.2", port) is False:  # noqa: ASYNC110
                await trio.lowlevel.checkpoint()
        with scrapes.moving(HostPort(LOOPBACK, port)):
            pass
        assert (await asked_properly(port, "/metrics"))[0].status_code == 200


async def refuses(host: str, port: int) -> bool:
    """Whether nobody listens there."""
    try:
        stream = await trio.open_tcp_stream(host, port)
    except OSError:
        return True
    await stream.aclose()
    return False


async def test_a_newer_process_goes_on_with_the_same_socket() -> None:
    async with listening() as (old, port):
        [heirloom] = old.heirlooms()
        assert (heirloom.kind, heirloom.address) == ("metrics", ANY)
        handed = Heirloom(heirloom.kind, heirloom.address, heirloom.given, heirloom.sock.dup())
        unwanted = socket.create_server((LOOPBACK, 0))
        reaper = Reaper()
        with Scrapes(reaper, Counting()) as new:
            new.inherit([Heirloom("metrics", HostPort("127.0.0.9", 1), given=False, sock=unwanted), handed], ANY)
            assert unwanted.fileno() < 0
            assert new.bound() == HostPort(LOOPBACK, port)
            with new.moving(ANY):
                assert new.heirlooms()[0].sock is handed.sock, "what is there already is not bound again"
            async with answering(new, reaper):
                assert (await asked_properly(port, "/metrics"))[0].status_code == 200
        assert handed.sock.fileno() < 0


async def test_nothing_is_left_open_by_a_start_that_came_to_nothing() -> None:
    before = open_descriptors()
    with Scrapes(Reaper(), Counting()) as scrapes:
        with scrapes.moving(ANY):
            pass
        assert re.fullmatch(r"127\.0\.0\.1:\d+", str(scrapes.bound()))
    assert open_descriptors() == before
    await trio.lowlevel.checkpoint()
