"""Requests over HTTP/2 for which no task is woken: what is left to tasks, and how such a request ends otherwise.

They are asked over a connection to the backend that stands already; so each test begins with as many as it needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from tests.http.h2_support import GET, POST, changed
from tests.proxy.h2_caller import Raw, calling
from tests.proxy.h2_scene import CHUNKED, NAME, Part, doing, scene, soon, together, warmed
from tests.proxy.stage import HELLO, Recording, read_until
from trioproxy.config.model import Timeouts
from trioproxy.http.h2 import Code
from trioproxy.proxy import serve_h2
from trioproxy.proxy.serve_h2 import _Connection
from trioproxy.witness.records import (
    BACKEND_FAILED,
    BACKEND_SILENT,
    BROKEN_OFF,
    DONE,
)

# ---- what needs no task ---------------------------------------------------------------------------------

WHOLE: dict[str, tuple[str, Sequence[bytes], int, bytes]] = {
    "a length": ("GET", [HELLO], 200, b"hello"),
    "no body": ("GET", [b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"], 200, b""),
    "204": ("GET", [b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b""),
    "304": ("GET", [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"], 304, b""),
    "HEAD": ("HEAD", [b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], 200, b""),
    "chunks": ("GET", [CHUNKED + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"], 200, b"abc"),
    "a head below 200": ("GET", [b"HTTP/1.1 103 Early Hints\r\n\r\n" + HELLO], 200, b"hello"),
}


@pytest.mark.parametrize("kind", WHOLE)
async def test_most_answers_wake_no_task(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    method, parts, status, body = WHOLE[kind]
    async with warmed(doing(x=parts), monkeypatch) as (caller, there):
        answer = await caller.ask(method, "/x", NAME)
        assert (answer.status, bytes(answer.body), answer.ended) == (status, body, True)
        assert answer.informational == [103] * (kind == "a head below 200")
        told = await there.ear.next_exchange()
        assert (told.status, told.sent, told.outcome) == (status, len(body), DONE)
        assert there.woken == []
        assert there.idle == there.seen.connections == 1


async def test_an_answer_that_comes_in_pieces_wakes_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece is there before the next is sent; so are trailers."""
    events = [trio.Event() for _ in range(3)]
    parts: list[Part] = [
        CHUNKED,
        events[0],
        b"2\r\nab\r\n",
        events[1],
        b"1\r",
        events[2],
        b"\nc\r\n0\r\nX-Sum: 6\r\n\r\n",
    ]
    async with warmed(doing(x=parts), monkeypatch) as (caller, there):
        answer = caller.answers[await caller.begin("GET", "/x", NAME, [("te", "trailers")])]
        await caller.until(lambda: answer.status == 200)
        events[0].set()
        await caller.until(lambda: answer.body == b"ab")
        events[1].set()
        events[2].set()
        await caller.until(lambda: answer.ended)
        assert (bytes(answer.body), answer.trailers) == (b"abc", {"x-sum": "6"})
        assert there.woken == []
        assert (await there.ear.next_exchange()).outcome == DONE


async def test_a_body_that_came_with_its_head_wakes_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(doing(), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller)
        raw = await Raw.connect(there.proxy, NAME)
        frames = raw.frames
        await raw.send(frames.start(), frames.headers(1, POST, end=False), frames.data(1, b"abc", end=True))
        assert (await raw.until(0, 1)).data == b"hello"
        assert there.woken == []
        assert (await there.ear.next_exchange()).received == 3
        # The backend's script takes what follows the head for another request, as long as it has no more of it.
        await raw.send(frames.headers(3, POST, end=False))
        await raw.send(frames.ping())
        await raw.until(6)
        assert there.woken == [b"/"]


async def test_many_at_once_share_what_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    async with warmed(doing(), monkeypatch, 20) as (caller, there):
        for answer in await together(caller, ["/"] * 20):
            assert bytes(answer.body) == b"hello"
        assert there.woken == []
        assert [record.outcome for record in there.ear.exchanges] == [DONE] * 20
        assert there.connection._working == 0
        assert there.idle == there.seen.connections == 20


async def test_an_answer_is_sent_at_once_only_when_no_other_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = trio.Event()
    async with warmed(doing(x=[go_on, HELLO]), monkeypatch, 2) as (caller, _):
        sent: list[int] = []
        send = _Connection._send_at_once

        def note(self: _Connection) -> None:
            sent.append(self._working)
            send(self)

        monkeypatch.setattr(_Connection, "_send_at_once", note)
        slow = await caller.begin("GET", "/x", NAME)
        assert (await caller.ask("GET", "/", NAME)).status == 200
        assert sent == []
        go_on.set()
        assert (await caller.answer(slow)).status == 200
        assert sent == [0]


async def test_more_than_is_sent_at_once_follows_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is whole when it is handed on, and longer in HTTP/2's frames than one call sends."""
    body = bytes(range(250)) * 20
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    monkeypatch.setattr(serve_h2, "SEND_AT_ONCE", 1000)
    async with scene(doing(x=[answer]), monkeypatch) as there:
        async with calling(there.proxy, NAME) as caller:
            await there.warm(caller)
        raw = await Raw.connect(there.proxy, NAME)
        await raw.send(
            raw.frames.start(), raw.frames.settings(ack=True), raw.frames.headers(1, changed(GET, path="/x"))
        )
        got = b""
        while len(got) < len(body):
            got += (await raw.until(0, 1)).data
        assert got == body
        assert there.woken == []


# ---- what goes wrong with the backend -------------------------------------------------------------------

NOT_ALLOWED = b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n"
"""In HTTP/2."""

CUT_SHORT = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart",
    "chunks": CHUNKED + b"9\r\npart",
    "no last chunk": CHUNKED + b"4\r\npart\r\n",
    "a chunk that is none": CHUNKED + b"4\r\npart\r\nzz\r\n",
}


@pytest.mark.parametrize("kind", CUT_SHORT)
async def test_a_part_never_looks_like_the_whole(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with warmed(doing(x=[CUT_SHORT[kind], None]), monkeypatch) as (caller, there):
        answer = await caller.ask("GET", "/x", NAME)
        assert (answer.ended, answer.reset) == (False, Code.INTERNAL_ERROR)
        told = await there.ear.next_exchange()
        assert (told.status, told.outcome) == (200, BROKEN_OFF)
        assert there.idle == 0
        assert (await caller.ask("GET", "/", NAME)).status == 200


async def test_what_ends_with_its_connection_is_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    async with warmed(doing(x=[b"HTTP/1.1 200 OK\r\n\r\nall", None]), monkeypatch) as (caller, there):
        tasks = len(there.connection._nursery.child_tasks)
        answer = await caller.ask("GET", "/x", NAME)
        assert (answer.status, bytes(answer.body), answer.ended) == (200, b"all", True)
        assert (await there.ear.next_exchange()).outcome == DONE
        assert there.idle == 0
        assert there.woken == [b"/x"]
        assert len(there.connection._nursery.child_tasks) == tasks  # one that rested was woken


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
async def test_a_connection_that_was_closed_meanwhile_is_replaced_once(
    method: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = True

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        nonlocal first
        while head := await read_until(stream, recording, b"\r\n\r\n"):
            if b"/x" in head and first:
                first = False
                return
            await stream.send_all(HELLO)

    async with warmed(script, monkeypatch) as (caller, there):
        assert (await caller.ask(method, "/x", NAME)).status == status
        assert there.woken == [b"/x"]
        assert (await there.ear.next_exchange()).outcome == (DONE if status == 200 else BACKEND_FAILED)
        assert there.seen.received.count(b"/x") == (2 if status == 200 else 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        NOT_ALLOWED,
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: chat\r\n\r\n",
    ],
)
async def test_what_is_no_answer_is_502(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with warmed(doing(x=[answer]), monkeypatch) as (caller, there):
        assert (await caller.ask("GET", "/x", NAME)).status == 502
        told = await there.ear.next_exchange()
        assert (told.status, told.outcome) == (502, BACKEND_FAILED)
        assert there.idle == 0


async def test_a_backend_that_is_silent_is_504_and_broken_off_when_it_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts: dict[str, list[Part]] = {"x": [trio.Event()], "y": [CHUNKED + b"1\r\na\r\n", trio.Event()]}
    timeouts = Timeouts(response=0.5, tunnel=0.5)
    async with warmed(doing(**parts), monkeypatch, 2, timeouts) as (caller, there):
        silent, begun = await together(caller, ["/x", "/y"])
        assert silent.status == 504
        assert (begun.status, begun.ended, begun.reset) == (200, False, Code.INTERNAL_ERROR)
        await soon(lambda: len(there.ear.exchanges) == 2)
        assert {record.outcome for record in there.ear.exchanges} == {BACKEND_SILENT, BROKEN_OFF}
        assert there.idle == 0
