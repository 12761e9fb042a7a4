"""A server with a name of every kind, and visits to each."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.life.served import PATIENCE, Served, configuration, served
from tests.proxy.stage import HELLO, LOOPBACK, Caller, answering, backend, client_hello, record_all

SITE, LIVE, DOWN, CLOSED, PASSED = (f"{label}.test" for label in ("cloud", "live", "down", "closed", "pbx"))

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


async def echo(stream: trio.SocketStream, _: object) -> None:
    """Switch to another protocol, in which everything is sent back."""
    await stream.receive_some()
    await stream.send_all(SWITCHING)
    while data := await stream.receive_some():
        await stream.send_all(data)


def unused_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.create_server((LOOPBACK, 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@asynccontextmanager
async def neighbourhood(folder: Path, more: str = "") -> AsyncIterator[Served]:
    """All of them: `down` has no backend, and `closed` is open to nobody here; `more` ends the configuration."""
    down = unused_port()
    async with backend(answering(HELLO)) as (site, _), backend(echo) as (live, _), backend(record_all) as (passed, _):
        text = configuration(folder, cloud=site, live=live, down=down) + (
            f'[sites."{CLOSED}"]\ntls = "internal"\n"/" = "http://{LOOPBACK}:{site}"\nallow = ["192.0.2.0/24"]\n'
            f'[passthrough]\n"{PASSED}" = "{LOOPBACK}:{passed}"\n{more}'
        )
        async with served(folder, text) as service:
            yield service


async def get(service: Served, name: str, target: str = "/") -> int:
    """The status of a response, over a connection of its own."""
    stream = await service.visit(name)
    try:
        return (await Caller(stream).ask("GET", target, name, {"Connection": "close"})).status
    finally:
        await trio.aclose_forcefully(stream)


async def talk(service: Served, name: str) -> None:
    """Switch protocols, say six bytes, hear them, and go."""
    stream = await service.visit(name)
    assert (await Caller(stream).ask("GET", "/", name, {"Connection": "Upgrade", "Upgrade": "echo"})).status == 101
    await stream.send_all(b"hello?")
    assert bytes(await stream.receive_some()) == b"hello?"
    await trio.aclose_forcefully(stream)


async def pass_through(service: Served, name: str) -> int:
    """Say hello to a name whose backend listens and ends when we do; returns the size of what was said."""
    hello = client_hello(name)
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream(LOOPBACK, service.https) as stream:
            await stream.send_all(hello)
            await stream.send_eof()
            assert await stream.receive_some() == b""
    return len(hello)


async def be_refused(service: Served, name: str) -> None:
    """Ask for a name that one may not have."""
    with pytest.raises(trio.BrokenResourceError):  # by an alert
        await service.visit(name)
