"""A proxy for HTTP/2 clients whose backend does what the test says, and who hears which requests wake a task."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trio.testing

from tests.http.h2_support import GET, changed
from tests.net.sockets import until
from tests.proxy.h2_caller import Answer, H2Caller, calling
from tests.proxy.stage import HELLO, Recording, Script, Stage, backend, make_config, read_until, site, stage
from tests.witness.hearing import Ear
from trioproxy.config.model import Timeouts
from trioproxy.proxy.h2_client import H2Client
from trioproxy.proxy.serve_h2 import _Connection

NAME = "cloud.test"

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"

Part = bytes | trio.Event | None
"""Of what a backend does: it sends bytes, waits for an event, and closes with None."""


def doing(**answers: Sequence[Part]) -> Script:
    """A backend that does this when it is asked for the path of that name, and else says hello."""

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        while head := await read_until(stream, recording, b"\r\n\r\n"):
            name = head.split(b" ")[1].decode().lstrip("/")
            for part in answers.get(name, [HELLO]):
                if part is None:
                    return
                if isinstance(part, trio.Event):
                    await part.wait()
                else:
                    await stream.send_all(part)

    return script


async def soon(condition: Callable[[], object]) -> None:
    """As `until`, within seconds."""
    with trio.fail_after(10):
        await until(condition)


async def together(caller: H2Caller, paths: Sequence[str]) -> list[Answer]:
    """Ask for all of these in one TLS record, and wait for the answers."""
    streams = [caller.queue(changed(GET, path=path), end=True) for path in paths]
    await caller.send()
    return [await caller.answer(stream) for stream in streams]


@attrs.frozen
class Scene:
    """A proxy, who hears what happens there, and its backend.

    Attributes:
        proxy: The proxy.
        seen: What the backend has seen.
        ear: Who hears of each request.
        woken: The paths of the requests that a task was woken for.
    """

    proxy: Stage
    seen: Recording
    ear: Ear
    woken: list[bytes]

    async def warm(self, caller: H2Caller, count: int = 1) -> None:
        """Have so many connections to the backend stand idle."""
        for answer in await together(caller, ["/"] * count):
            assert answer.status == 200
        await soon(lambda: len(self.ear.exchanges) == count)
        self.ear.exchanges.clear()
        self.woken.clear()

    @property
    def connection(self) -> _Connection:
        """The only client's."""
        (connection,) = self.proxy.ctx.drain.several
        assert isinstance(connection, _Connection)
        return connection

    @property
    def idle(self) -> int:
        """Connections to the backend that another request may be asked over."""
        return sum(len(connections) for connections in self.proxy.ctx.pool._idle.values())


@asynccontextmanager
async def scene(
    script: Script, monkeypatch: pytest.MonkeyPatch, timeouts: Timeouts | None = None
) -> AsyncIterator[Scene]:
    """A site whose backend does as `script` says."""
    woken: list[bytes] = []
    wake = _Connection.wake

    def note(self: _Connection, client: H2Client) -> None:
        woken.append(client.request.target)
        wake(self, client)

    monkeypatch.setattr(_Connection, "wake", note)
    async with backend(script) as (port, seen), stage(make_config(site(NAME, port), timeouts=timeouts)) as proxy:
        ear = Ear()
        proxy.ctx.witness.add(ear)
        yield Scene(proxy, seen, ear, woken)


@asynccontextmanager
async def warmed(
    script: Script, monkeypatch: pytest.MonkeyPatch, count: int = 1, timeouts: Timeouts | None = None
) -> AsyncIterator[tuple[H2Caller, Scene]]:
    """A client, and so many connections to the backend that stand idle."""
    async with scene(script, monkeypatch, timeouts) as there, calling(there.proxy, NAME) as caller:
        await there.warm(caller, count)
        yield caller, there
