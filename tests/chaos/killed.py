"""A backend that is killed again and again: whoever was being answered learns that it was not all."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs
import h11
import trio

from tests.chaos import backend
from tests.chaos.rows import Row, Scale
from tests.life.served import NAME, PATIENCE, Served, configuration, served
from tests.pebble import free_ports
from tests.proxy.h2_caller import H2Caller
from tests.proxy.stage import LOOPBACK, Caller

SIZE = 1_000_000

PIECE = 64 * 1024

KILLED_AFTER = (0.05, 0.35)
"""Seconds that a backend lives once it listens, between these: a download takes a quarter of a second."""


@attrs.define
class Verdicts:
    """What became of requests.

    Attributes:
        count: How many were whole, refused with an error status, or visibly cut.
        wrong: What should never be: bodies that differ, or that end early and look whole.
    """

    count: Counter[str] = attrs.field(factory=Counter)
    wrong: list[str] = attrs.field(factory=list)

    def judge(self, what: str, status: int, body: bytes, expected: bytes) -> None:
        """A response has come to what looked like its end."""
        if status == 200 and body == expected:
            self.count["whole"] += 1
        elif status in (502, 503, 504):
            self.count["refused"] += 1
        else:
            self.wrong.append(f"{what}: {status} with {len(body)} bytes in place of {len(expected)}")


async def backends(folder: Path, scale: Scale) -> Row:
    """Kill it with SIGKILL at random moments of downloads and uploads over HTTP/1.1 and HTTP/2."""
    (port,) = free_ports(LOOPBACK, 1)
    verdicts = Verdicts()
    async with served(folder, configuration(folder, cloud=port)) as service:
        async with trio.open_nursery() as nursery:
            for ask in (by_length, by_chunks, by_upload, over_http2):
                nursery.start_soon(again_and_again, ask, service, verdicts)
            dice = random.Random(scale.kills)
            for _ in range(scale.kills):
                process = subprocess.Popen([sys.executable, backend.__file__, str(port)])  # noqa: ASYNC220
                try:
                    with trio.fail_after(PATIENCE):
                        await listening(port)
                    await trio.sleep(dice.uniform(*KILLED_AFTER))
                finally:
                    process.kill()
                    process.wait()
            nursery.cancel_scope.cancel()
        log = service.said()
    count = verdicts.count
    row = Row(
        {
            "kills": scale.kills,
            **{kind: count[kind] for kind in ("whole", "cut", "refused")},
            "wrong": len(verdicts.wrong),
        },
        verdicts.wrong,
    )
    row.expect("Traceback" not in log, "the log has a traceback")
    row.expect(count["whole"], "nothing ever came through")
    row.expect(count["cut"] >= scale.kills, "most kills hit nobody")
    return row


Ask = Callable[[Served, Verdicts], Awaitable[None]]


async def again_and_again(ask: Ask, service: Served, verdicts: Verdicts) -> None:
    """One after the other; whatever a client's own library takes for a cut body is one."""
    while True:
        try:
            with trio.fail_after(PATIENCE):
                await ask(service, verdicts)
        except (h11.RemoteProtocolError, trio.BrokenResourceError):
            verdicts.count["cut"] += 1
        except trio.TooSlowError:
            verdicts.wrong.append(f"{ask.__name__}: neither an answer nor an end came")
        await trio.sleep(0.01)


async def by_length(service: Served, verdicts: Verdicts) -> None:
    """A download whose head says how much comes."""
    await _download(service, verdicts, "length")


async def by_chunks(service: Served, verdicts: Verdicts) -> None:
    """A download that ends with a last chunk."""
    await _download(service, verdicts, "chunked")


async def _download(service: Served, verdicts: Verdicts, framing: str) -> None:
    stream = await service.visit()
    try:
        caller = Caller(stream)
        for _ in range(3):
            response = await caller.ask("GET", f"/{framing}/{SIZE}", NAME)
            verdicts.judge(framing, response.status, response.body, backend.body(SIZE))
    finally:
        await trio.aclose_forcefully(stream)


async def by_upload(service: Served, verdicts: Verdicts) -> None:
    """An upload whose answer says what the backend got of it."""
    data = os.urandom(PIECE) * 8
    stream = await service.visit()
    try:
        response = await Caller(stream).ask("POST", "/", NAME, body=data)
        verdicts.judge("upload", response.status, response.body, hashlib.sha256(data).hexdigest().encode())
    finally:
        await trio.aclose_forcefully(stream)


async def over_http2(service: Served, verdicts: Verdicts) -> None:
    """Two downloads at once on one connection."""
    stream = await service.visit(protocol="h2")
    caller = H2Caller(stream)
    caller.h2.initiate_connection()
    try:
        await caller.send()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.read)
            streams = [await caller.begin("GET", f"/{framing}/{SIZE}", NAME) for framing in ("length", "chunked")]
            for number in streams:
                answer = await caller.answer(number)
                if answer.reset is not None:
                    verdicts.count["cut"] += 1
                else:
                    verdicts.judge("HTTP/2", answer.status, bytes(answer.body), backend.body(SIZE))
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def listening(port: int) -> None:
    """Wait until something accepts connections there."""
    while True:
        try:
            stream = await trio.open_tcp_stream(LOOPBACK, port)
        except OSError:
            await trio.sleep(0.01)
        else:
            await trio.aclose_forcefully(stream)
            return
