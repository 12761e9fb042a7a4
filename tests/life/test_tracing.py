"""Traces: what is left out where nobody reads, and what workers keep for their supervisor."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.net.sockets import until
from tests.proxy.stage import HELLO, Caller, Stage, answering, backend, make_config, site, stage
from trioproxy.control import control_socket
from trioproxy.life import tracing
from trioproxy.life.hands import Hands
from trioproxy.life.tracing import Gathering, gather
from trioproxy.witness.tracing import Event
from trioproxy.witness.witness import Witness

NAME = "cloud.test"


class Flood:
    """Tells of more than anybody can read at once, and of one thing more when told to go on."""

    def __init__(self) -> None:
        self.go = trio.Event()
        self.ended = False

    async def follow(self, name: str, tell: Callable[[Event], None]) -> None:
        try:
            for number in range(500):
                tell({"phase": "event", "number": number})
            await self.go.wait()
            tell({"phase": "last"})
            await trio.sleep_forever()
        finally:
            self.ended = True


async def test_what_nobody_reads_in_time_is_left_out_and_counted(tmp_path: Path) -> None:
    flood, text = Flood(), b""
    async with stage(make_config(site(NAME, 1))) as proxy:
        handlers = {"trace": tracing.tracing(proxy.ctx.cell, cast(Hands, flood))}
        with control_socket(tmp_path / "control.sock") as control:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(control.answer, handlers)
                stream = await trio.open_unix_socket(str(control.path))
                await stream.send_all(b'{"command": "trace", "arguments": {"name": "*"}}\n')
                with trio.fail_after(30):
                    while text.count(b"\n") < 100:
                        text += await stream.receive_some()
                    flood.go.set()
                    while text.count(b"\n") < 102:
                        text += await stream.receive_some()
                assert not flood.ended
                await stream.aclose()
                with trio.fail_after(30):
                    await until(lambda: flood.ended)
                nursery.cancel_scope.cancel()
    events = [json.loads(line)["progress"] for line in text.splitlines()]
    assert [event.get("number") for event in events[:100]] == list(range(100))
    assert events[100:] == [{"phase": "dropped", "events": 400}, {"phase": "last"}]


# ---- in workers ---------------------------------------------------------------------------------------


async def ask(proxy: Stage) -> None:
    """One request, over a connection that is there until the server has noticed its end."""
    stream = await proxy.tls(NAME)
    assert (await Caller(stream).ask("GET", "/", NAME, {"Connection": "close"})).status == 200
    await trio.aclose_forcefully(stream)
    with trio.fail_after(30):
        await until(lambda: not proxy.ctx.admission.open)


def phases(answer: dict[str, Any]) -> list[str]:
    return [event["phase"] for event in answer["events"]]


async def test_a_worker_keeps_what_happens_until_it_is_asked() -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        gathering = Gathering(proxy.ctx)
        await ask(proxy)
        assert await gathering.take({"trace": 7, "name": NAME}) == {"events": [], "dropped": 0}, "it begins now"
        await ask(proxy)
        answer = json.loads(json.dumps(await gathering.take({"trace": 7, "name": NAME})))
        assert phases(answer) == ["hello", "handshake", "routed", "asking", "answered", "request", "closed"]
        assert await gathering.take({"trace": 7, "name": NAME}) == {"events": [], "dropped": 0}


async def test_it_keeps_only_so_much_and_forgets_whom_nobody_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST", 3)
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        gathering, witness = Gathering(proxy.ctx), proxy.ctx.witness
        await gathering.take({"trace": 1, "name": ""})
        await ask(proxy)
        answer = await gathering.take({"trace": 1, "name": ""})
        assert (phases(answer), answer["dropped"]) == (["hello", "handshake", "routed"], 4)
        assert len(witness.followers) == 1

        monkeypatch.setattr(tracing, "FORGOTTEN", -1.0)  # as if ten seconds were over
        await ask(proxy)
        assert witness.followers == witness.listeners == ()


async def test_one_that_is_forgotten_goes_when_another_one_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stage(make_config(site(NAME, 1))) as proxy:
        gathering, witness = Gathering(proxy.ctx), proxy.ctx.witness
        await gathering.take({"trace": 1, "name": ""})
        monkeypatch.setattr(tracing, "FORGOTTEN", -1.0)
        await gathering.take({"trace": 2, "name": NAME})
        assert len(witness.followers) == 1


async def test_what_several_workers_tell_comes_in_order(autojump_clock: trio.testing.MockClock) -> None:
    def event(at: float) -> Event:
        return {"time": at, "phase": "event"}

    turns: list[list[dict[str, Any]]] = [
        [],
        [{"events": [event(2), event(5)], "dropped": 1}, {"events": [event(1), event(4)], "dropped": 2}],
        [{"events": [event(6)], "dropped": 0}],
    ]
    told: list[Event] = []

    async def ask_all() -> Sequence[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        return turns.pop(0) if turns else []

    with trio.move_on_after(10):
        await gather(ask_all, NAME, told.append)
    assert told[0] == {"phase": "following", "name": NAME}
    assert [each.get("time") for each in told[1:]] == [1, 2, 4, 5, None, 6]
    assert told[5] == {"phase": "dropped", "events": 3}


# ---- what it costs ------------------------------------------------------------------------------------


async def test_where_nobody_follows_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Witness, "under_way", lambda self, exchange, phase: told.append(phase))
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        await ask(proxy)
        assert told == []
        tracing.begin(proxy.ctx, NAME, lambda event: None)
        await ask(proxy)
        assert told == ["routed", "asking", "answered"]
