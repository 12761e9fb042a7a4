"""Requests, connections and WebSockets by the hundred thousand: nothing grows, and everything comes back.

The load is h2load's, and the backend nginx, which also ends the TLS of what is passed through: both cost little beside
the server. WebSockets are Trio's on both sides. All of it comes in rounds, and after each the server is looked at.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
import trustme

from bench.process import raise_descriptor_limit
from tests.chaos.killed import listening
from tests.chaos.rows import Row, Scale
from tests.chaos.slow import resident
from tests.chaos.websockets import WebSocket, echo
from tests.life.served import NAME, Served, configuration, served
from tests.pebble import free_ports
from tests.proxy.stage import LOOPBACK, backend

PASSED = "passed.test"

WARM = 0.3
"""The part of the rounds after which memory has settled: caches are full, and the heap has the size that it needs."""

AT_ONCE = 400
"""Connections that come in one moment."""

HELLO = "30s"
"""Its limit for a handshake: on a machine that has much else to do, hundreds in one moment take seconds."""

TALKERS = 16
"""WebSockets at any time."""

STEADY = 5
"""Looks in a row that see as many tasks."""

PATIENCE = 60.0
"""Seconds until everything has come back: idle connections to backends are kept for half of it."""

NGINX = """\
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        listen 127.0.0.1:{tls} ssl backlog=4096;
        ssl_certificate {folder}/pair.pem;
        ssl_certificate_key {folder}/pair.pem;
        location / {{ return 200 "hello"; }}
    }}
}}
"""


@attrs.frozen
class State:
    """The server between two rounds. Attributes: `memory` in bytes, `descriptors`, `tasks`."""

    memory: int
    descriptors: int
    tasks: int


async def soak(folder: Path, scale: Scale) -> Row:
    """Rounds of everything; what the server has is compared between its settling and the end."""
    raise_descriptor_limit()
    row = Row()
    done = {"requests": 0, "connections": 0, "WebSockets": 0}
    async with serving(folder) as service:
        before = await begun(service)
        states = []
        began = trio.current_time()
        for _ in range(scale.rounds):
            await one_round(service, scale, done, row)
            await quiet(service)
            states.append(await state(service))
        seconds = trio.current_time() - began
        after = await state(service)
        with trio.move_on_after(PATIENCE):
            while after.tasks > before.tasks or after.descriptors > before.descriptors + scale.spare:
                await trio.sleep(0.2)
                after = await state(service)
        row.expect("Traceback" not in service.said(), "the log has a traceback")
    settled = [one.memory for one in states[int(len(states) * WARM) :]]
    growth = slope(settled)
    row.figures = {
        **done,
        "rounds": scale.rounds,
        "seconds": round(seconds),
        "resident MB settled": settled[0] / 1e6,
        "resident MB at the end": settled[-1] / 1e6,
        "slope in percent": 100 * growth,
        "descriptors": f"{before.descriptors}, then {after.descriptors}",
        "tasks": f"{before.tasks}, then {after.tasks}",
    }
    row.expect(growth <= scale.growth, f"memory grows: {[round(one / 1e6, 1) for one in settled]}")
    row.expect(after.descriptors <= before.descriptors + scale.spare, "descriptors are lost")
    row.expect(after.tasks <= before.tasks, "tasks are left")
    return row


def slope(values: Sequence[float]) -> float:
    """By what part of itself the line that fits best grows from the first to the last."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    spread = sum((x - middle) ** 2 for x in range(len(values)))
    rise = sum((x - middle) * (y - mean) for x, y in enumerate(values)) / spread if spread else 0.0
    return rise * (len(values) - 1) / (mean - rise * middle)


async def one_round(service: Served, scale: Scale, done: dict[str, int], row: Row) -> None:
    """A part of everything, one kind after the other."""
    requests, connections = scale.requests // scale.rounds, scale.connections // scale.rounds
    site, passed = f"https://{NAME}:{service.https}/", f"https://{PASSED}:{service.https}/"
    kinds = (
        (site, requests * 6 // 10, 8, ["-m", "16"]),  # HTTP/2
        (site, requests * 4 // 10, 32, ["--h1"]),
        *each(site, connections * 2 // 10, ["--h1"]),
        *each(passed, connections * 4 // 10, ["--h1"]),
        *each(f"http://{NAME}:{service.http}/", connections * 4 // 10, ["--h1"]),
    )
    for url, count, clients, options in kinds:
        command = ["h2load", "-n", str(count), "-c", str(clients), *options, f"--connect-to={_there(url)}", url]
        said = (await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT)).stdout.decode()
        row.expect(f" {count} succeeded," in said and f"status codes: {count} 2xx" in said, f"{command}: {said[-900:]}")
        done["requests"] += count
        done["connections"] += clients
    await talk(service, scale.websockets // scale.rounds, row)
    done["WebSockets"] += scale.websockets // scale.rounds
    done["connections"] += scale.websockets // scale.rounds


def each(url: str, count: int, options: list[str]) -> list[tuple[str, int, int, list[str]]]:
    """So many connections, each with one request, `AT_ONCE` at a time."""
    parts = [min(AT_ONCE, count - start) for start in range(0, count, AT_ONCE)]
    return [(url, part, part, options) for part in parts]


def _there(url: str) -> str:
    return f"{LOOPBACK}:{url.rpartition(':')[2].rstrip('/')}"


async def talk(service: Served, count: int, row: Row) -> None:
    """WebSockets that come, say something three times, and go."""
    left = iter(range(count))

    async def talker() -> None:
        for number in left:
            socket = WebSocket(await service.visit())
            await socket.open(NAME, "/socket")
            for text in (b"hello", b"x" * 100, b"%d" % number):
                row.expect(await socket.repeats(text), "a message came back otherwise")
            await socket.close()

    async with trio.open_nursery() as nursery:
        for _ in range(TALKERS):
            nursery.start_soon(talker)


async def begun(service: Served) -> State:
    """What it has once everything that serves has begun: it accepts connections before the last of that does."""
    await service.get()
    seen: list[int] = []
    while len(seen) < STEADY or len(set(seen[-STEADY:])) > 1:
        seen.append((await service.ask("status"))["tasks"])
        await trio.sleep(0.2)
    return await state(service)


async def quiet(service: Served) -> None:
    """Wait until there are no connections."""
    with trio.fail_after(PATIENCE):
        while (await service.ask("status"))["connections"]:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def state(service: Served) -> State:
    """What it has."""
    pid = service.process.pid
    tasks = (await service.ask("status"))["tasks"]
    return State(resident(pid), len(os.listdir(f"/proc/{pid}/fd")), tasks)  # noqa: PTH208


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Served]:
    """A server with a site, also on port 80, and a name that is passed through."""
    plain, tls = free_ports(LOOPBACK, 2)
    trustme.CA().issue_cert(PASSED).private_key_and_cert_chain_pem.write_to_path(str(folder / "pair.pem"))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, plain=plain, tls=tls))
    command = ["nginx", "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    async with backend(echo) as (port, _), trio.open_nursery() as nursery:
        nursery.start_soon(trio.run_process, command)  # noqa: ASYNC113 - its ports are waited for
        for there in (plain, tls):
            await listening(there)
        text = configuration(folder, cloud=plain) + f'"/socket" = "http://{LOOPBACK}:{port}"\nhttp = "serve"\n'
        text += f'[passthrough]\n"{PASSED}" = "{LOOPBACK}:{tls}"\n'
        text = text.replace("[timeouts]\n", f'[timeouts]\nhello = "{HELLO}"\n')
        async with served(folder, text) as service:
            yield service
        nursery.cancel_scope.cancel()
