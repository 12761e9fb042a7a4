"""Requests over HTTP/1.1 that need no task, and end badly: told once, cut short visibly, and nothing left behind."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import receive_all, reset
from tests.proxy.desk import ASK, NAME, Client, Desk, asked, desk, ends, hears
from tests.proxy.stage import HELLO
from trioproxy.errors import ConnectionLost
from trioproxy.http.messages import RequestHead
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.watch import Watch
from trioproxy.proxy.asking import Asking
from trioproxy.proxy.guests import show_out
from trioproxy.proxy.h1_client import H1Client
from trioproxy.proxy.turnstile import Turnstile
from trioproxy.proxy.upstream_h1 import H1Upstream
from trioproxy.witness.records import (
    BACKEND_FAILED,
    BROKEN_OFF,
    BUG,
    CLIENT_LEFT,
    DONE,
    ENDED_HERE,
    Exchange,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"

UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\nhello"

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"

POST = b"POST / HTTP/1.1\r\nHost: cloud.test\r\nContent-Length: 2\r\n\r\nhi"

OLD = b"GET / HTTP/1.0\r\nHost: cloud.test\r\nConnection: keep-alive\r\n\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.01)


async def lost(there: trio.SocketStream, how: str) -> None:
    """The backend's end of a connection ends."""
    await (reset(there) if how == "reset" else there.aclose())


async def is_reset(client: Client) -> None:
    """The client's connection has an end that nobody takes for a proper one."""
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
        await receive_all(client.transport_stream)


# ---- backends that end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_backend_that_closes_at_once_is_asked_again(how: str) -> None:
    async with desk() as it:
        client, there = await it.begun()
        await lost(there, how)
        await (await it.called()).send_all(HELLO)
        await hears(client, b"hello")
        end = await it.end()
        assert (end.status, end.outcome) == (200, DONE)


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_but_not_for_what_may_not_be_done_twice(how: str) -> None:
    async with desk() as it:
        client, there = await it.begun(POST)
        await lost(there, how)
        assert b" 502 " in await client.receive_some()
        end = await it.end()
        assert (end.status, end.received, end.outcome) == (502, 2, BACKEND_FAILED)
        await client.send_all(ASK)
        await it.called()


@pytest.mark.parametrize(
    ("part", "how"),
    [
        (HEAD + b"hello", "end"),
        (HEAD + b"hello", "reset"),
        (CHUNKED, "end"),
        (CHUNKED, "reset"),
        (UNTIL_CLOSE, "reset"),  # without one it would be the whole
    ],
)
async def test_a_part_of_a_response_is_not_taken_for_the_whole(part: bytes, how: str) -> None:
    async with desk() as it:
        client, there = await it.begun()
        await there.send_all(part)
        await wait_all_tasks_blocked()
        assert it.at_once
        await lost(there, how)
        await is_reset(client)
        end = await it.end()
        assert (end.status, end.sent, end.outcome) == (200, 5, BROKEN_OFF)
        await it.over()


async def test_a_response_that_ends_with_its_connection() -> None:
    async with desk() as it:
        client, there = await it.begun()
        await there.send_all(UNTIL_CLOSE)
        await wait_all_tasks_blocked()
        await there.aclose()
        await hears(client, b"0\r\n\r\n")
        end = await it.end()
        assert (end.sent, end.outcome) == (5, DONE)
        await client.send_all(ASK)
        await it.called()


@pytest.mark.parametrize("what", [b"unasked", b""])
async def test_a_backend_that_says_something_while_nobody_asks(what: bytes) -> None:
    async with desk() as it:
        client, there = await it.acquainted()
        await (there.send_all(what) if what else there.aclose())
        await wait_all_tasks_blocked()
        assert it.watched == 1  # it is told of once
        await client.send_all(ASK)
        await (await it.called()).send_all(HELLO)
        await hears(client, b"hello")


# ---- the server ends, or ends a connection --------------------------------------------------------------------


async def test_a_server_that_stops_closes_who_waits_and_answers_who_has_asked() -> None:
    async with desk() as it:
        waiting = await it.proxy.tls(NAME)
        client, there = await it.begun()
        fresh = await it.proxy.tls(NAME)
        it.proxy.ctx.drain.begin()
        await there.send_all(HELLO)
        assert b"connection: close" in (await hears(client, b"hello")).lower()
        assert not await client.receive_some()
        client.transport_stream.socket.close()
        assert (await it.end()).outcome == DONE
        for other in (waiting, fresh):
            other.transport_stream.socket.close()
        await it.over()
        await ends(there)


async def test_a_server_that_stops_in_the_middle_of_a_response() -> None:
    async with desk() as it:
        client, there = await it.begun()
        await there.send_all(HEAD)
        await hears(client, b"\r\n\r\n")
        it.proxy.ctx.drain.begin()
        await there.send_all(b"helloagain")
        await hears(client, b"helloagain")
        assert (await it.end()).outcome == DONE
        assert not await client.receive_some()
        await it.over()


async def test_a_client_that_waits_for_a_next_request_is_let_go_at_once() -> None:
    async with desk() as it:
        client, _ = await it.acquainted()
        assert it.stream in it.proxy.ctx.drain.idle
        it.proxy.ctx.drain.begin()
        assert not await client.receive_some()
        await it.over()


def cut(it: Desk) -> None:
    """End all of the proxy's connections: the grace of its drain is over."""
    it.proxy.connections.cancel_scope.cancel()


async def test_who_is_cut_off_is_told_once_and_asks_no_more() -> None:
    async with desk() as it:
        client, there = await it.begun()
        cut(it)
        with trio.CancelScope(shield=True):  # the test itself runs within what was cancelled
            await ends(there)
            end = await it.end()
            assert (end.status, end.outcome) == (0, ENDED_HERE)
            assert not await client.transport_stream.receive_some()
            assert not it.watched


async def test_a_part_that_only_the_end_would_end_is_reset_when_it_is_cut_off() -> None:
    async with desk() as it:
        client, there = await it.begun(OLD)
        await there.send_all(CHUNKED)
        await hears(client, b"hello")
        cut(it)
        with trio.CancelScope(shield=True):
            await is_reset(client)
            assert (await it.end()).outcome == ENDED_HERE


async def test_an_answer_that_comes_in_the_moment_of_being_cut_off() -> None:
    async with desk() as it:
        client, there = await it.begun()
        there.socket._sock.send(HELLO)  # type: ignore[attr-defined]  # now, not a checkpoint later
        cut(it)
        it.proxy.ctx.watch._tell()  # before the connection's task runs
        with trio.CancelScope(shield=True):
            await hears(client, b"hello")
            assert (await it.end()).outcome == DONE


async def test_a_request_that_comes_in_the_moment_of_being_cut_off_is_not_asked() -> None:
    async with desk() as it:
        client, _ = await it.acquainted()
        client._ssl_object.write(ASK)
        client.transport_stream.socket._sock.send(client._outgoing.read())  # type: ignore[attr-defined]  # as above
        cut(it)
        it.proxy.ctx.watch._tell()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            assert it.upstream._asker is None
            assert not it.ear.exchanges


async def test_being_cut_off_between_a_wake_and_the_tasks_step() -> None:
    async with desk() as it:
        _, there = await it.begun()
        there.socket.close()
        it.proxy.ctx.watch._tell()
        cut(it)
        with trio.CancelScope(shield=True):
            assert (await it.end()).outcome == ENDED_HERE


@pytest.mark.parametrize("said", [b"", ASK])
async def test_who_is_shown_out_while_its_backend_is_silent(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioproxy.proxy.guests.AT_LAST", 0)
    async with desk() as it:
        client, there = await it.begun()
        await client.send_all(said)
        await wait_all_tasks_blocked()
        await show_out(it.proxy.ctx, [it.stream], "test")
        assert it.watched == 1  # whoever gets its descriptor must be heard
        await is_reset(client)
        await ends(there)
        assert (await it.end()).outcome == CLIENT_LEFT
        await it.over()


# ---- what cannot be, and bugs -----------------------------------------------------------------------------------


def unwatched(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    """From now on nobody of this kind can be told of anything."""
    listen = Watch.listen

    def refuse(watch: Watch, stream: Stream, heed: Callable[[], None]) -> None:
        if isinstance(getattr(heed, "__self__", None), kind):
            raise ConnectionLost("it cannot be watched")
        listen(watch, stream, heed)

    monkeypatch.setattr(Watch, "listen", refuse)


async def test_a_client_that_cannot_be_watched_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with desk() as it:
        _, there = await it.acquainted()
        other = await it.proxy.tls(NAME)
        unwatched(monkeypatch, Turnstile)
        await other.send_all(ASK)
        assert await asked(there)
        await ends(there)
        assert (await it.end()).outcome == CLIENT_LEFT
        await receive_all(other.transport_stream)


async def test_a_backend_that_cannot_be_watched_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    unwatched(monkeypatch, H1Upstream)
    async with desk() as it:
        client, there = await it.acquainted()
        await client.send_all(ASK)
        assert b" 502 " in await client.receive_some()
        assert (await it.end()).outcome == BACKEND_FAILED
        assert await asked(there)
        await ends(there)


@pytest.mark.parametrize("place", ["exchange.choose", "asking.Asking._ask", "asking.Asking._hand_on"])
async def test_a_bug_ends_its_connection_alone(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with desk() as it:
        client, there = await it.acquainted()
        with monkeypatch.context() as broken:
            broken.setattr(f"trioproxy.proxy.{place}", fail)
            await client.send_all(ASK)
            if place.endswith("_hand_on"):
                await asked(there)
                await there.send_all(HELLO)
            assert not await client.transport_stream.receive_some()
            end = await it.end()
            assert (end.outcome, end.reason) == (BUG, "ZeroDivisionError")
        assert "a bug in trioproxy ended this connection" in caplog.text
        await it.over()
        await it.proxy.tls(NAME)


async def test_a_bug_in_what_sends_to_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> bool:
        raise ZeroDivisionError

    async with desk() as it:
        client, there = await it.begun()
        monkeypatch.setattr(H1Client, "send_at_once", fail)
        await there.send_all(HELLO)
        assert not await client.transport_stream.receive_some()
        assert (await it.end()).outcome == BUG
        await it.over()


# ---- what is left -----------------------------------------------------------------------------------------------


def left(before: list[object]) -> list[object]:
    """What there is of exchanges, beside what there was `before`: other tests have requests of their own."""
    known = {id(one) for one in before}
    kinds = Asking | H1Client | Exchange | RequestHead
    return [one for one in gc.get_objects() if isinstance(one, kinds) and id(one) not in known]


ENDINGS = {
    "answered": HELLO,
    "in pieces": CHUNKED + b"0\r\n\r\n",
    "nonsense": b"nonsense\r\n\r\n",
    "broken off": HEAD + b"hello",
    "not answered": b"",
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_nothing_is_left_of_an_exchange_for_the_collector(ending: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "trioproxy.http")  # pytest would keep the errors
    async with desk() as it:
        gc.collect()
        gc.disable()
        before = left([])
        try:
            _, there = await it.begun(POST)
            await there.send_all(ENDINGS[ending])
            await wait_all_tasks_blocked()
            if "answered" not in ending or ending == "not answered":
                await there.aclose()
            await it.ear.next_exchange()
            await wait_all_tasks_blocked()
            assert not left(before)
        finally:
            gc.enable()


async def test_an_error_that_the_client_gets_leaves_nothing_either(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "trioproxy.http")
    async with desk(site_is={"routes": ()}) as it:
        client = await it.proxy.tls(NAME)
        gc.collect()
        gc.disable()
        before = left([])
        try:
            for status in (b" 404 ", b" 404 "):
                await client.send_all(ASK)
                assert status in await client.receive_some()
                await it.ear.next_exchange()
            await wait_all_tasks_blocked()
            assert not left(before)
        finally:
            gc.enable()
