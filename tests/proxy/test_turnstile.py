"""Requests over HTTP/1.1 that need no task, and each moment in which they come to need one."""

from __future__ import annotations

import math
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import receive_all, reset
from tests.proxy.desk import ASK, NAME, asked, desk, ends, hears
from tests.proxy.stage import HELLO, LOOPBACK
from trioproxy.config.model import Route, Target, Timeouts
from trioproxy.net.sock import Reaper
from trioproxy.witness.records import (
    BACKEND_FAILED,
    BACKEND_SILENT,
    CLIENT_LEFT,
    DONE,
    REFUSED,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"

OLD = b"GET / HTTP/1.0\r\nHost: cloud.test\r\nConnection: keep-alive\r\n\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.01)


class Steps(trio.abc.Instrument):
    """Counts the steps of each task that serves a client."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "serve_tls" in task.name


async def test_most_requests_wake_no_task() -> None:
    async with desk() as it:
        client, there = await it.acquainted()
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for _ in range(3):
            await client.send_all(ASK)
            assert await asked(there)
            await there.send_all(HEAD + b"hello")
            await hears(client, b"hello")
            await there.send_all(b"again")
            await hears(client, b"again")
            end = await it.end()
            assert (end.status, end.sent, end.outcome) == (200, 10, DONE)
            assert 0 < end.began < end.asked < end.answered < end.ended
        before = steps.count
        assert before == 0
        await client.send_all(ASK + ASK)  # the second has to wait for the first
        for _ in range(2):
            assert await asked(there)
            await there.send_all(HELLO)
        await hears(client, b"hello")
        assert steps.count > before
        trio.lowlevel.remove_instrument(steps)


@pytest.mark.parametrize(
    "pieces",
    [
        (ASK + ASK,),
        (ASK[:9], ASK[9:] + ASK[:20], ASK[20:]),
        (b"\r\n" + ASK, b"\r\n", ASK),
        (b"\r", b"\n" + ASK, ASK),
        (ASK, ASK),
    ],
)
async def test_requests_come_in_whatever_pieces(pieces: tuple[bytes, ...]) -> None:
    async with desk() as it:
        client, there = await it.acquainted()
        for piece in pieces:
            await client.send_all(piece)
            await wait_all_tasks_blocked()
        for _ in range(2):
            assert await asked(there)
            await there.send_all(HELLO)
            await hears(client, b"hello")
            assert (await it.end()).outcome == DONE
        await client.send_all(ASK)  # and whoever waited goes back to where it does not
        assert await asked(there)
        assert it.at_once
        await there.send_all(HELLO)
        await hears(client, b"hello")


RESPONSES = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n", 200, b"ok", True),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", 200, b"ok", False),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 behind it\r\n\r\n", 200, b"ok", False),
    (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", 502, None, False),
    (b"nonsense\r\n\r\n", 502, None, False),
]


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(("response", "status", "body", "kept"), RESPONSES)
async def test_responses_of_each_kind(
    response: bytes, status: int, body: bytes | None, kept: bool, bytewise: bool
) -> None:
    async with desk() as it:
        client, there = await it.begun()
        for piece in [response[i : i + 1] for i in range(len(response))] if bytewise else [response]:
            try:
                await there.send_all(piece)
            except trio.BrokenResourceError:
                break  # what stands behind a response is not waited for
            await wait_all_tasks_blocked()
        with trio.fail_after(5):
            answer = b""
            while b" %d " % status not in answer or not it.ear.exchanges:
                answer += await client.receive_some()
                await wait_all_tasks_blocked()
        end = await it.end()
        assert (end.status, end.outcome) == (status, DONE if body is not None else BACKEND_FAILED)
        if body is not None:
            assert end.sent == len(body)
        await client.send_all(ASK)  # the client's connection stands, whatever became of the backend's
        assert await (asked(there) if kept else it.called())


@pytest.mark.parametrize(
    "request_", [ASK.replace(b"Host", b"Connection: close\r\nHost"), OLD.replace(b"keep-alive", b"x")]
)
async def test_a_last_request(request_: bytes) -> None:
    async with desk() as it:
        client, there = await it.begun(request_)
        await there.send_all(HELLO)
        await hears(client, b"hello")
        assert not await client.receive_some()
        client.transport_stream.socket.close()
        assert (await it.end()).outcome == DONE
        await it.over()


async def test_what_is_no_request_is_refused_there_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trioproxy.http")
    async with desk() as it:
        client, _ = await it.acquainted()
        await client.send_all(b"nonsense\r\n\r\n")
        assert b" 400 " in await client.receive_some()
        client.transport_stream.socket.close()
        end = await it.end()
        assert (end.status, end.outcome, end.request) == (400, REFUSED, None)
        assert "refused: an invalid request line" in caplog.text
        await it.over()


async def test_what_is_answered_here_needs_no_task_either() -> None:
    moved = (Route("/moved", (), redirect="/"), Route("/", Target("http", LOOPBACK, 1)))
    async with desk(site_is={"routes": moved}) as it:
        client = await it.proxy.tls(NAME)
        for _ in range(2):
            await client.send_all(ASK.replace(b"/ ", b"/moved "))
            assert b" 308 " in await client.receive_some()
            end = await it.end()
            assert (end.status, end.outcome) == (308, DONE)
        await client.send_all(ASK)
        assert b" 502 " in await client.receive_some()
        assert (await it.end()).outcome == BACKEND_FAILED


# ---- who is waited for, and for how long ------------------------------------------------------------------


async def test_a_client_is_waited_for_only_while_it_is_its_turn() -> None:
    async with desk(timeouts=Timeouts(idle=10, response=100, tunnel=1000)) as it:
        client, there = await it.acquainted()
        now = trio.current_time()
        assert not it.stream.overdue(now + 9)
        assert it.stream.overdue(now + 11)
        await client.send_all(ASK)
        assert await asked(there)
        assert not it.stream.overdue(math.inf)
        assert it.stream not in it.proxy.ctx.drain.idle
        backend = it.upstream._stream
        now = trio.current_time()
        assert not backend.overdue(now + 99)
        assert backend.overdue(now + 101)
        await there.send_all(HEAD)
        await hears(client, b"\r\n\r\n")
        first = backend._read_since
        assert not backend.overdue(now + 999)
        assert backend.overdue(now + 1001)
        await there.send_all(b"hello")
        await hears(client, b"hello")
        assert first is not None
        assert backend._read_since is not None
        assert backend._read_since > first  # each piece counts anew
        await there.send_all(b"again")
        await hears(client, b"again")
        assert not backend.overdue(math.inf)
        assert it.stream.overdue(trio.current_time() + 11)
        assert it.stream in it.proxy.ctx.drain.idle


async def test_a_backend_that_is_silent_for_too_long() -> None:
    async with desk(timeouts=Timeouts(response=0.02)) as it:
        client, there = await it.begun()
        assert b" 504 " in await client.receive_some()
        end = await it.end()
        assert (end.status, end.outcome) == (504, BACKEND_SILENT)
        await ends(there)
        await client.send_all(ASK)
        await it.called()


async def test_a_client_that_is_silent_for_too_long() -> None:
    async with desk(timeouts=Timeouts(idle=0.02)) as it:
        client, _ = await it.acquainted()
        assert not await client.receive_some()
        await it.over()
        assert not it.ear.exchanges


@pytest.mark.parametrize("said", [b"", ASK])
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_client_that_leaves_while_its_backend_is_silent(how: str, said: bytes) -> None:
    async with desk() as it:
        client, there = await it.begun()
        if said:
            await client.send_all(said)
            await wait_all_tasks_blocked()
        await (reset(client.transport_stream) if how == "reset" else client.transport_stream.aclose())
        await ends(there)
        end = await it.end()
        assert (end.status, end.outcome) == (499, CLIENT_LEFT)
        await it.over()


async def test_a_client_that_says_goodbye_and_waits_for_ours() -> None:
    """TLS has an end of its own, and a socket tells of it once."""
    async with desk() as it:
        client, _ = await it.acquainted()
        client._https_compatible = False
        with trio.fail_after(5):
            await client.aclose()
        await it.over()


async def test_a_client_that_takes_nothing() -> None:
    async with desk(timeouts=Timeouts(idle=0.05)) as it:
        client, there = await it.begun()
        it.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await there.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await there.send_all(bytes(100_000_000))
        end = await it.end()
        assert (end.status, end.outcome) == (200, "client timed out")
        assert end.sent < 10_000_000
        await it.over()
        with pytest.raises(trio.BrokenResourceError):  # an end would be one of a response
            await receive_all(client)


async def test_more_than_is_collected_at_once_is_sent_before_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioproxy.proxy.asking.SEND_AT_ONCE", 4)
    async with desk() as it:
        client, there = await it.begun()
        await there.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        await hears(client, b"0\r\n\r\n")
        assert (await it.end()).sent == 5


async def test_the_patience_of_one_route_is_not_that_of_the_next() -> None:
    async with desk() as it:
        client, there = await it.acquainted()
        usual = it.stream.write_patience
        site = it.proxy.ctx.cell.current.config.sites[NAME]
        [route] = site.routes
        patient = Route("/patient", route.to, timeouts=Timeouts(idle=9999))
        object.__setattr__(site, "routes", (patient, route))
        for target, patience in ((b"/patient ", 9999), (b"/ ", usual)):
            await client.send_all(ASK.replace(b"/ ", target, 1))
            assert await asked(there)
            assert it.stream.write_patience == patience
            await there.send_all(HELLO)
            await hears(client, b"hello")
