"""Reloads and upgrades under load: nobody notices."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from tests.chaos.rows import Row, Scale
from tests.chaos.websockets import WebSocket, echo
from tests.life.served import NAME, Served, configuration, load, served
from tests.proxy.stage import Recording, backend, read_until

VISITORS = 8

KEPT = 10
"""WebSockets that are there from the first reload to the last."""

PIECES = 8

BODY = b"0123456789abcdef" * 1024 * PIECES


async def reloads(folder: Path, scale: Scale) -> Row:
    """A name comes, and goes, and comes, while visitors visit another and WebSockets stay."""
    row = Row()
    async with backend(echo) as (port, _), served(folder, configuration(folder, cloud=port)) as service:
        texts = [configuration(folder, cloud=port, other=port), configuration(folder, cloud=port)]
        kept = [await _websocket(service) for _ in range(KEPT)]
        async with load(service, VISITORS, lambda body: body == b"hello") as visits:
            for number in range(scale.reloads):
                service.config.write_text(texts[number % 2])
                outcome = await service.ask("reload", dry_run=False)
                row.expect("site other.test" in outcome["lines"][0], f"reload {number}: {outcome['lines']}")
        alive = [await one.repeats(b"still there?") for one in kept]
        for one in kept:
            await one.close()
        row.expect("Traceback" not in service.said(), "the log has a traceback")
    row.figures = {
        "reloads": scale.reloads,
        "requests": visits.answered,
        "failed": len(visits.failed),
        "WebSockets kept": f"{sum(alive)} of {KEPT}",
    }
    row.expect(visits.answered, "nobody was answered")
    row.expect(all(alive), "a WebSocket was lost")
    row.problems += visits.failed
    return row


async def upgrades(folder: Path, scale: Scale) -> Row:
    """One process after the other takes over, while downloads are under way that take a fifth of a second each."""
    row = Row()
    async with backend(dribble) as (port, _), served(folder, configuration(folder, cloud=port)) as service:
        pids = {service.process.pid}
        async with load(service, VISITORS, lambda body: body == BODY) as visits:
            for _ in range(scale.upgrades):
                pids.add((await service.ask("upgrade"))["pid"])
        last = (await service.ask("status"))["pid"]
        row.expect("Traceback" not in service.said(), "the log has a traceback")
        os.kill(last, 15)
        await service.heard("stopped", times=len(pids))
    row.figures = {"upgrades": scale.upgrades, "downloads": visits.answered, "refused or cut": len(visits.failed)}
    row.expect(visits.answered, "nobody was answered")
    row.expect(len(pids) == scale.upgrades + 1, f"there were only {len(pids)} processes")
    row.problems += visits.failed
    return row


async def dribble(stream: trio.SocketStream, recording: Recording) -> None:
    """A backend that takes its time for a body."""
    while await read_until(stream, recording, b"\r\n\r\n"):
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY))
        for start in range(0, len(BODY), len(BODY) // PIECES):
            await stream.send_all(BODY[start : start + len(BODY) // PIECES])
            await trio.sleep(0.2 / PIECES)


async def _websocket(service: Served) -> WebSocket:
    socket = WebSocket(await service.visit())
    await socket.open(NAME)
    return socket
