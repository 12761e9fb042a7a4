"""DNS that is gone: a name server that is silent, that fails, that is not there; and one that is there again.

The server has a /etc/resolv.conf of its own, in a mount namespace, which names a server in this process.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from tests.chaos.faults import alive
from tests.chaos.rows import Row, Scale
from tests.life.served import Served, configuration, load, served
from tests.pebble import own_address
from tests.proxy.stage import HELLO, LOOPBACK, Caller, answering, backend

MOODS = ("silent", "failing", "gone")

OWN_NAMESPACE = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'

PATIENCE = 30.0

A_RECORD, SERVFAIL = 1, 2


@attrs.define
class NameServer:
    """Answers every question for an A record with 127.0.0.1, as long as it is in the mood.

    Attributes:
        mood: "well", or one of `MOODS`.
        asked: How many questions have come.
    """

    mood: str = "well"
    asked: int = 0

    async def serve(self, address: str, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer at `address`; while it is gone, nothing listens there."""
        while True:
            with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                await sock.bind((address, 53))
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                while self.mood != "gone":
                    with trio.move_on_after(0.05):
                        question, client = await sock.recvfrom(512)
                        self.asked += 1
                        if self.mood != "silent":
                            await sock.sendto(reply(question, fails=self.mood == "failing"), client)
            while self.mood == "gone":  # noqa: ASYNC110
                await trio.sleep(0.05)


def reply(query: bytes, *, fails: bool) -> bytes:
    """The answer to a question: that of a server that fails, or an address where one was asked for."""
    end = query.index(b"\0", 12) + 5
    wanted = struct.unpack("!H", query[end - 4 : end - 2])[0] == A_RECORD and not fails
    head = query[:2] + struct.pack("!HHHHH", 0x8180 | (SERVFAIL if fails else 0), 1, int(wanted), 0, 0)
    record = struct.pack("!HHHIH4s", 0xC00C, A_RECORD, 1, 60, 4, socket.inet_aton(LOOPBACK)) if wanted else b""
    return head + query[12:end] + record


async def gone(folder: Path, scale: Scale) -> Row:
    """Sites whose backends have names get 502 meanwhile, and nothing else is delayed; then all is well again."""
    row = Row()
    async with resolving(folder) as (service, server):
        pid = service.process.pid
        for mood in MOODS:
            server.mood = mood
            name = f"{mood}.test"
            async with load(service, 2, lambda body: body == b"hello") as visits:
                began = trio.current_time()
                status = await asked(service, name)
                row.figures[f"{mood}: status"] = status
                row.figures[f"{mood}: after s"] = trio.current_time() - began
                row.expect(status == 502, f"{mood}: {status}")
                server.mood = "well"
                began = trio.current_time()
                with trio.fail_after(PATIENCE):
                    while await asked(service, name) != 200:  # noqa: ASYNC110
                        await trio.sleep(0.1)
                row.figures[f"{mood}: well again after s"] = trio.current_time() - began
            row.expect(visits.answered, f"{mood}: nobody else was answered")
            row.problems += visits.failed
        row.expect(server.asked, "the name server was never asked")
        await alive(row, service, pid)
    return row


async def asked(service: Served, name: str) -> int:
    """The status of a response."""
    stream = await service.visit(name)
    try:
        with trio.fail_after(PATIENCE):
            return (await Caller(stream).ask("GET", "/", name, {"Connection": "close"})).status
    finally:
        await trio.aclose_forcefully(stream)


@asynccontextmanager
async def resolving(folder: Path) -> AsyncIterator[tuple[Served, NameServer]]:
    """A server that resolves names at ours: a site for each mood leads to a name, `NAME` to an address."""
    resolv = folder / "resolv.conf"
    resolv.write_text(f"nameserver {own_address()}\noptions timeout:1 attempts:1\n")
    server = NameServer()
    async with backend(answering(HELLO)) as (port, _), trio.open_nursery() as nursery:
        await nursery.start(server.serve, own_address())
        text = configuration(folder, cloud=port, silent=port, failing=port, gone=port)
        for mood in MOODS:
            there = text.index(f'[sites."{mood}.test"]')
            text = text[:there] + text[there:].replace(f"//{LOOPBACK}:", f"//{mood}.example:", 1)
        launch = ["unshare", "--mount", "sh", "-c", OWN_NAMESPACE, str(resolv)]
        async with served(folder, text, launch=launch) as service:
            yield service, server
        nursery.cancel_scope.cancel()
