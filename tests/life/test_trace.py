"""`trioproxy trace` beside a real server: what it tells of each kind of name, and when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.life.neighbours import (
    CLOSED,
    DOWN,
    LIVE,
    PASSED,
    SITE,
    be_refused,
    get,
    neighbourhood,
    pass_through,
    talk,
)
from tests.life.served import PATIENCE, ROOT, Served
from tests.net.sockets import until
from tests.proxy.stage import LOOPBACK, Caller
from trioproxy.control import ask
from trioproxy.errors import ControlError

Event = dict[str, Any]


@attrs.define
class Trace:
    """What was told so far."""

    events: list[Event] = attrs.field(factory=list)

    async def heard(self, phase: str) -> Event:
        """The first event of that phase; waits until it is there."""
        with trio.fail_after(PATIENCE):
            await until(lambda: phase in self.phases())
        return self.events[self.phases().index(phase)]

    def phases(self) -> list[str]:
        return [event["phase"] for event in self.events]


@asynccontextmanager
async def traced(service: Served, name: str) -> AsyncIterator[Trace]:
    """Follow a name, from when the server does."""
    trace = Trace()

    async def follow() -> None:
        await ask(service.control, "trace", {"name": name}, trace.events.append)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trace.heard("following")
        yield trace
        nursery.cancel_scope.cancel()


async def a_request_from_its_hello_to_its_end(service: Served) -> None:
    async with traced(service, SITE) as trace:
        assert await get(service, SITE, "/some/where?x=1") == 200
        await trace.heard("closed")
    assert trace.phases() == ["following", "hello", "handshake", "routed", "asking", "answered", "request", "closed"]
    _, hello, handshake, routed, asking, answered, request, closed = trace.events
    assert (hello["server_name"], hello["client"], hello["alpn"]) == (SITE, LOOPBACK, [])
    assert hello["size"] > 100
    assert hello["versions"] == ["TLSv1.3", "TLSv1.2"]
    assert {event["connection"] for event in trace.events[1:]} == {hello["connection"]}
    assert {event["name"] for event in trace.events} == {SITE}
    assert (handshake["outcome"], handshake["protocol"]) == ("done", "")
    assert (routed["method"], routed["host"], routed["target"]) == ("GET", SITE, "/some/where?x=1")
    assert (routed["route"], routed["to"]) == ("/", [asking["backend"]])
    assert answered["status"] == request["status"] == 200
    assert (request["outcome"], request["received"], request["sent"]) == ("done", 0, 5)
    assert 0 < request["seconds_to_backend"] < request["seconds"]
    assert 0 < request["seconds_to_answer"] < request["seconds"]
    assert closed["time"] >= request["time"] >= hello["time"]


async def a_websocket_is_told_when_it_begins_and_when_it_ends(service: Served) -> None:
    async with traced(service, LIVE) as trace:
        stream = await service.visit(LIVE)
        assert (await Caller(stream).ask("GET", "/", LIVE, {"Connection": "Upgrade", "Upgrade": "echo"})).status == 101
        assert (await trace.heard("upgraded"))["status"] == 101
        assert "request" not in trace.phases(), "it goes on"
        await trio.aclose_forcefully(stream)
        request = await trace.heard("request")
        assert (request["upgraded"], request["status"]) == (True, 101)


async def a_name_that_is_passed_through(service: Served) -> None:
    async with traced(service, PASSED) as trace:
        said = await pass_through(service, PASSED)
        passed = await trace.heard("passed")
        passing = await trace.heard("passing")
    assert trace.phases()[:4] == ["following", "hello", "passing", "passed"]
    assert (passed["up"], passed["down"], passed["outcome"]) == (said, 0, "done")
    assert passing["backend"] == passed["backend"]
    assert passing["backend"].startswith(f"{LOOPBACK}:")


async def a_backend_that_is_down(service: Served) -> None:
    async with traced(service, DOWN) as trace:
        assert await get(service, DOWN) == 502
        request = await trace.heard("request")
    assert "asking" not in trace.phases()
    assert (request["status"], request["outcome"], request["seconds_to_backend"]) == (502, "backend failed", None)
    assert "Connection refused" in request["reason"]


async def a_client_that_may_not_come_and_a_name_that_is_configured_nowhere(service: Served) -> None:
    async with traced(service, CLOSED) as trace, traced(service, "*") as everything:
        await be_refused(service, "nobody.test")
        await be_refused(service, CLOSED)
        refused = await trace.heard("refused")
        assert (refused["name"], refused["reason"]) == (CLOSED, f"{CLOSED} is not open to this client")
        with trio.fail_after(PATIENCE):
            await until(lambda: len(everything.events) == 3)
        unknown = everything.events[1]
        assert (unknown["phase"], unknown["name"], unknown["server_name"]) == ("refused", "", "nobody.test")
        assert trace.phases() == ["following", "refused"]
        assert await get(service, SITE) == 200
        assert (await everything.heard("closed"))["name"] == SITE


async def other_names_are_not_told_of(service: Served) -> None:
    async with traced(service, LIVE) as trace:
        assert await get(service, SITE) == 200
        await pass_through(service, PASSED)
        await be_refused(service, "nobody.test")
        await talk(service, LIVE)
        await trace.heard("closed")
    assert {event["name"] for event in trace.events} == {LIVE}


async def a_name_that_leads_nowhere_is_told_with_what_is_near(service: Served) -> None:
    with pytest.raises(ControlError, match=r"^cluod\.test is configured nowhere; did you mean cloud\.test\?$"):
        await ask(service.control, "trace", {"name": "cluod.test"}, print)
    with pytest.raises(ControlError, match=r"is configured nowhere$"):
        await ask(service.control, "trace", {"name": "no name at all"}, print)


async def test_what_is_told(tmp_path: Path) -> None:
    """One server for all of it, as starting one takes longest."""
    async with neighbourhood(tmp_path, '[log]\naccess = ""\n') as service:
        for scene in (
            a_request_from_its_hello_to_its_end,
            a_websocket_is_told_when_it_begins_and_when_it_ends,
            a_name_that_is_passed_through,
            a_backend_that_is_down,
            a_client_that_may_not_come_and_a_name_that_is_configured_nowhere,
            other_names_are_not_told_of,
            a_name_that_leads_nowhere_is_told_with_what_is_near,
        ):
            print(scene.__name__)
            await scene(service)


# ---- the command --------------------------------------------------------------------------------------


@asynccontextmanager
async def command(service: Served, *arguments: str) -> AsyncIterator[tuple[trio.Process, Callable[[], Awaitable[str]]]]:
    """`trioproxy trace` in a process of its own, and a way to read its next line."""
    program = "from trioproxy.cli.main import main; main()"
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", program, "--config", str(service.config), "trace", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    buffer = bytearray()

    async def line() -> str:
        assert process.stdout is not None
        with trio.fail_after(PATIENCE):
            while b"\n" not in buffer:
                data = await process.stdout.receive_some()
                assert data, "it has ended"
                buffer.extend(data)
        text, _, rest = bytes(buffer).partition(b"\n")
        buffer[:] = rest
        return text.decode()

    try:
        yield process, line
    finally:
        process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + PATIENCE):
            await process.wait()


async def begun(process: trio.Process) -> None:
    """Wait until it says that it follows."""
    assert process.stderr is not None
    said = b""
    with trio.fail_after(PATIENCE):
        while b"Following" not in said:
            said += await process.stderr.receive_some()


async def the_command_prints_a_line_for_each_event_and_ends_with_ctrl_c(service: Served) -> None:
    async with command(service, SITE) as (process, line):
        await begun(process)
        assert await get(service, SITE, "/x%1b[2J") == 200
        lines = [await line() for _ in range(7)]
        process.send_signal(signal.SIGINT)
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 0
    phases = [text.split()[2] for text in lines]
    assert phases == ["hello", "handshake", "routed", "asking", "answered", "request", "closed"]
    assert f"{LOOPBACK} asks for {SITE}; " in lines[0]
    assert lines[0].endswith(" bytes, offers TLSv1.3 TLSv1.2")
    assert f"{LOOPBACK} GET https://{SITE}/x%1b[2J by / to http://{LOOPBACK}:" in lines[2]
    assert " 200 for GET /x%1b[2J, 0 B in, 5 B out, " in lines[5]


async def with_json_each_line_is_an_object(service: Served) -> None:
    async with command(service, "*", "--json") as (_, line):
        assert json.loads(await line()) == {"phase": "following", "name": ""}
        assert await get(service, DOWN) == 502
        events = [json.loads(await line()) for _ in range(4)]
    assert [event["phase"] for event in events] == ["hello", "handshake", "routed", "request"]


async def the_command_ends_with_1_for_a_name_that_leads_nowhere(service: Served) -> None:
    async with command(service, "cluod.test") as (process, _):
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 1
        assert process.stderr is not None
        assert b"cluod.test is configured nowhere; did you mean cloud.test?" in await process.stderr.receive_some()


async def a_server_that_stops_ends_it(service: Served) -> None:
    async with command(service, SITE) as (process, _):
        await begun(process)
        service.process.send_signal(signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            assert await process.wait() == 1


async def test_the_command(tmp_path: Path) -> None:
    """The last scene is the server's end."""
    async with neighbourhood(tmp_path, '[log]\naccess = ""\n') as service:
        for scene in (
            the_command_prints_a_line_for_each_event_and_ends_with_ctrl_c,
            with_json_each_line_is_an_object,
            the_command_ends_with_1_for_a_name_that_leads_nowhere,
            a_server_that_stops_ends_it,
        ):
            print(scene.__name__)
            await scene(service)
