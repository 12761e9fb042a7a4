"""Several processes on one store, all of them real: servers, a command, and Pebble, which must be asked once.

Behind one address several servers answer challenges, as behind a load balancer: whoever knows the token answers.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from cryptography import x509

from tests.certs.serving import MAIN, NAME, eventually
from tests.life.served import PATIENCE, ROOT, Served, served
from tests.pebble import Pebble, free_ports, needs_pebble, own_address, running_pebble
from trioproxy.certs.store import Store

pytestmark = needs_pebble

CONFIG = """\
[listen]
https = ["127.0.0.1:0"]
http = ["{address}:{http}"]
[acme]
email = "me@example.com"
directory = "{ca.directory}"
ca_file = "{ca.ca_file}"
challenges = ["http-01"]
[storage]
path = "{store}"
[control]
socket = "{socket}"
[sites]
"{name}" = {{ "/" = {{ redirect = "https://example.com/" }} }}
"""


@attrs.define
class Front:
    """Asks each server for the answer to a challenge until one has it.

    Attributes:
        ports: Theirs, of this process's own address.
        port: Where it listens itself.
        asked: Set when somebody has asked.
        open: Until this is set nobody is answered.
    """

    ports: Sequence[int]
    port: int = 0
    asked: trio.Event = attrs.Factory(trio.Event)
    open: trio.Event = attrs.Factory(trio.Event)

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = bytes(await stream.receive_some())
            self.asked.set()
            await self.open.wait()
            with trio.move_on_after(PATIENCE):
                while not (answer := await self._answer(request)):  # noqa: ASYNC110 - it is another process's affair
                    await trio.sleep(0.05)
                await stream.send_all(answer)

    async def _answer(self, request: bytes) -> bytes:
        alone = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", request).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        for port in self.ports:
            try:
                async with await trio.open_tcp_stream(own_address(), port) as server:
                    await server.send_all(alone)
                    answer = b"".join([bytes(part) async for part in server])
            except (OSError, trio.BrokenResourceError):
                continue  # it does not listen, or not any more
            if b" 200 " in answer[:13]:
                return answer
        return b""


@asynccontextmanager
async def front(servers: int) -> AsyncIterator[Front]:
    """One for so many servers, as long as the block runs."""
    made = Front(free_ports(own_address(), servers))
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, made.handle, 0, host="127.0.0.1"))
        made.port = listeners[0].socket.getsockname()[1]
        yield made
        nursery.cancel_scope.cancel()


@attrs.frozen
class Shared:
    """A store that everybody uses, and what else they need."""

    folder: Path
    ca: Pebble
    front: Front

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def configuration(self, number: int) -> tuple[Path, str]:
        """The folder and the configuration of one who uses it."""
        own = self.folder / str(number)
        (own / "store").mkdir(parents=True)  # where `Served` looks for the control socket, and nothing else is
        return own, CONFIG.format(
            address=own_address(), http=self.front.ports[number], ca=self.ca, store=self.store,
            socket=own / "store" / "control.sock", name=NAME,
        )  # fmt: skip

    def orders(self) -> int:
        return self.ca.said().count("Added order")

    def serial(self) -> int | None:
        bundle = Store(self.store).load(NAME)
        return None if bundle is None else bundle.leaf.serial

    def locked(self) -> list[str]:
        """The lock files that somebody holds."""
        held = []
        for path in (self.store / "locks").iterdir():
            with path.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(path.name)
        return held


@pytest.fixture
async def shared(tmp_path: Path) -> AsyncIterator[Shared]:
    async with front(3) as made, running_pebble(tmp_path / "ca", http_port=made.port) as ca:
        yield Shared(tmp_path, ca, made)


async def serial(service: Served) -> int:
    """Of what a handshake gets."""
    stream = await service.visit()
    der = stream.getpeercert(binary_form=True)
    await trio.aclose_forcefully(stream)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


async def serves(service: Served, expected: int | None) -> None:
    """Wait until it serves what is stored."""
    with trio.fail_after(PATIENCE):
        while await serial(service) != expected:  # noqa: ASYNC110
            await trio.sleep(0.05)


async def good(server: Served) -> dict[str, object]:
    """What it says of its certificate, once that is good: it serves a new one a moment before it says so."""
    with trio.fail_after(PATIENCE):
        while True:
            status: dict[str, object] = (await server.ask("certs.list"))["certificates"][0]
            if status["state"] == "good":
                return status
            await trio.sleep(0.05)


async def test_two_servers_and_a_command_on_one_store_order_once(shared: Shared) -> None:
    (first, text), (second, other), (third, command) = map(shared.configuration, range(3))
    (third / "config.toml").write_text(command)
    said = third / "said"
    renew = [sys.executable, "-c", MAIN, "--config", str(third / "config.toml"), "certs", "renew", NAME]
    done: list[int] = []

    async def run() -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT)}
        with said.open("wb") as out:
            done.append((await trio.run_process(renew, stdout=out, stderr=out, check=False, env=environ)).returncode)

    async with served(first, text) as one, served(second, other) as two, trio.open_nursery() as nursery:
        nursery.start_soon(run)
        with trio.fail_after(PATIENCE):
            await shared.front.asked.wait()  # by now somebody holds the lock
        await eventually(lambda: said.exists() and "this command does it itself" in said.read_text())
        shared.front.open.set()
        await eventually(lambda: done)
        for server in (one, two):
            await serves(server, shared.serial())
        await eventually(lambda: not shared.locked())
        listed = [await good(each) for each in (one, two)]
    assert shared.orders() == 1
    assert done == [0], said.read_text()
    assert listed[0]["not_after"] == listed[1]["not_after"]
    assert "There are now 2 accounts" not in shared.ca.said()


async def test_when_the_holder_of_a_lock_is_killed_another_server_goes_on_with_its_order(shared: Shared) -> None:
    (first, text), (second, other) = map(shared.configuration, range(2))
    async with served(first, text) as one:
        with trio.fail_after(PATIENCE):
            await shared.front.asked.wait()
        async with served(second, other) as two:
            assert await serial(two) != shared.serial(), "it waits"
            assert shared.locked() == [f"{NAME}.lock"]
            one.process.kill()
            shared.front.open.set()
            await eventually(shared.serial)
            await serves(two, shared.serial())
            await eventually(lambda: not shared.locked())
    assert shared.orders() == 1, "the order was written down before the challenges were"
