"""Slow clients by the thousand, and good ones among them, who must not notice."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import attrs
import trio

from bench.process import raise_descriptor_limit
from tests.chaos.rows import Row, Scale
from tests.chaos.slow_clients import KINDS
from tests.life.served import NAME, PATIENCE, ROOT, Served, configuration, served
from tests.proxy.stage import HELLO, Caller, Recording, backend, read_until
from trioproxy.net.listen import DEFER_SECONDS

SLOW = "slow.test"
"""The site that slow clients visit; the good ones visit `NAME`."""

GOOD = 8
"""Good clients."""

BETWEEN = 0.04
"""Seconds between two requests of one of them."""

MEMORY = 300
"""MB that the server may take."""

SLOWER = 2.0
"""How many times as long as alone one good request of a hundred may take."""

LOOK = 0.5
"""Seconds between two looks at the server."""

LARGE = 512 * 1024
"""Bytes of what slow readers ask for: more than the buffers between the server and them take."""

ENOUGH = 1000
"""Slow clients below which a measurement is so short that the hundredth part of the requests says nothing."""


@attrs.define
class Watch:
    """What good clients and the server have been like for a while.

    Attributes:
        waits: Seconds from each request to its response.
        failed: Requests that were not answered as they should be.
        memory: Bytes that were resident at most.
    """

    waits: list[float] = attrs.field(factory=list)
    failed: list[str] = attrs.field(factory=list)
    memory: int = 0

    def p99(self) -> float:
        """The milliseconds that one request of a hundred exceeds."""
        return 1e3 * sorted(self.waits)[len(self.waits) * 99 // 100]


async def clients(folder: Path, scale: Scale) -> Row:
    """Good clients alone, then while slow ones come, then among them until the last of them is gone, then alone."""
    raise_descriptor_limit()  # the backend is in this process
    alone, coming, among = Watch(), Watch(), Watch()
    async with backend(answer) as (port, _):
        text = impatient(folder, port, scale.patience)
        async with served(folder, text) as service:
            async with watched(service, alone):
                await trio.sleep(scale.calm)
            async with crowd(service, scale) as told:
                async with watched(service, coming):
                    standing = await anext(told)
                async with watched(service, among):
                    last = await anext(told)
            async with watched(service, alone):
                await trio.sleep(scale.calm)
            left = (await service.ask("status"))["connections"]
            log = service.said()
    at_once = standing["at_once"]
    memory = round(max(coming.memory, among.memory) / 1e6)
    row = Row(
        {
            "slow clients": scale.slow,
            "at once": at_once,
            "resident MB": memory,
            "good requests": len(coming.waits) + len(among.waits),
            "failed": len(coming.failed) + len(among.failed),
            "p99 ms alone": alone.p99(),
            "p99 ms while they come": coming.p99(),
            "p99 ms among them": among.p99(),
            **{f"{kind} gone after s": last[kind] for kind in KINDS},
        },
        alone.failed + coming.failed + among.failed,
    )
    row.expect(at_once == scale.slow, "they were not all there at once")
    row.expect(memory <= MEMORY, f"more than {MEMORY} MB")
    if scale.slow >= ENOUGH:
        row.expect(among.p99() <= SLOWER * alone.p99(), "good clients noticed")
    for kind in KINDS:
        kept = DEFER_SECONDS if kind == "half-open" else 0  # by the kernel, before there is a connection
        row.expect(last[kind] <= scale.patience + scale.grace + kept, f"{kind}: {last[kind]:.1f} s")
    row.expect(left == 0, f"{left} connections were left")
    row.expect("Traceback" not in log, "the log has a traceback")
    return row


def impatient(folder: Path, port: int, patience: float) -> str:
    """A configuration with a site for good clients, and one for others whose limits are so short."""
    limits = f'{{ header = "{patience:g}s", idle = "{patience:g}s" }}'
    text = configuration(folder, cloud=port, slow=port).replace(
        "[timeouts]\n", f'[timeouts]\nhello = "{patience:g}s"\n'
    )
    return f"{text}timeouts = {limits}\n"


async def answer(stream: trio.SocketStream, recording: Recording) -> None:
    """A backend: a large body for those who do not read it, and for a POST nothing until it is whole."""
    while head := await read_until(stream, recording, b"\r\n\r\n"):
        recording.received.clear()
        if head.startswith(b"POST "):
            await read_until(stream, recording, b"never")
        elif head.startswith(b"GET /large "):
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE)
            await stream.send_all(bytes(LARGE))
        else:
            await stream.send_all(HELLO)


@asynccontextmanager
async def crowd(service: Served, scale: Scale) -> AsyncIterator[AsyncIterator[dict[str, float]]]:
    """Slow clients; gives what they say: first how many are there at once, then how long the last of each kind was."""
    arguments = [str(service.https), SLOW, str(scale.slow), str(scale.patience / 2)]
    command = [sys.executable, "-m", "tests.chaos.slow_clients", *arguments]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(functools.partial(trio.run_process, command, cwd=ROOT, stdout=subprocess.PIPE))
        async with aclosing(said(process.stdout)) as told:
            yield told
        await process.wait()


async def said(stream: trio.abc.ReceiveStream) -> AsyncGenerator[dict[str, float], None]:
    """Lines of JSON."""
    rest = b""
    async for data in stream:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield json.loads(line)


@asynccontextmanager
async def watched(service: Served, watch: Watch) -> AsyncIterator[None]:
    """Good clients, and a look at the server now and then, until the block ends."""
    over = trio.Event()
    async with trio.open_nursery() as nursery:
        for _ in range(GOOD):
            nursery.start_soon(_good_client, service, watch, over)
        nursery.start_soon(_look, service, watch, over)
        yield
        over.set()


async def _good_client(service: Served, watch: Watch, over: trio.Event) -> None:
    """Request after request on one connection, which each time is answered at once."""
    try:
        stream = await service.visit()
        try:
            caller = Caller(stream)
            while not over.is_set():
                began = trio.current_time()
                with trio.fail_after(PATIENCE):
                    response = await caller.ask("GET", "/", NAME)
                watch.waits.append(trio.current_time() - began)
                if response.body != b"hello":
                    watch.failed.append(f"got {response}")
                await trio.sleep(BETWEEN)
        finally:
            await trio.aclose_forcefully(stream)
    except Exception as exc:
        watch.failed.append(repr(exc))


async def _look(service: Served, watch: Watch, over: trio.Event) -> None:
    while not over.is_set():
        watch.memory = max(watch.memory, resident(service.process.pid))
        with trio.move_on_after(LOOK):
            await over.wait()


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
