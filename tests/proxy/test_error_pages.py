"""What a client gets when a backend fails before its response: a small page that tells nothing of the house behind."""

from __future__ import annotations

import pytest
import trio

from tests.proxy.stage import Caller, Recording, Script, answering, backend, make_config, read_until, site, stage
from trioproxy.config.model import Timeouts
from trioproxy.net.sock import Reaper

NAME = "cloud.test"


async def _silent(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"never")


async def _gone(stream: trio.SocketStream, recording: Recording) -> None:
    await read_until(stream, recording, b"\r\n\r\n")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    ("script", "status"),
    [
        (_silent, 504),
        (_gone, 502),
        (answering(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx"), 502),
        (answering(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000 + b"\r\n\r\n"), 502),
        (answering(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), 502),
    ],
    ids=["silent", "gone", "ambiguous", "endless", "switching unasked"],
)
async def test_the_page(monkeypatch: pytest.MonkeyPatch, script: Script, status: int, method: str) -> None:
    monkeypatch.setattr(Reaper, "PERIOD", 0.02)  # it is what sees that a backend is silent
    timeouts = Timeouts(response=0.1)
    async with (
        backend(script) as (port, _),
        stage(make_config(site(NAME, port), timeouts=timeouts)) as proxy,
    ):
        caller = Caller(await proxy.tls(NAME))
        for _ in range(2):  # the client's connection has done nothing wrong and lives on
            answer = await caller.ask(method, "/<b>", NAME)
            assert answer.status == status
            assert answer.headers["content-type"].startswith("text/html")
            assert answer.headers["cache-control"] == "no-store"
            assert len(answer.body) < 1024
            assert b"<b>" not in answer.body
            assert str(port).encode() not in answer.body
            assert (answer.body == b"") is (method == "HEAD")
