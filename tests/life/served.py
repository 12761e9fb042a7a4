"""A real `trioproxy serve` in a process of its own, and steady visitors."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from tests.proxy.stage import LOOPBACK, Caller
from trioproxy.control import ask

NAME = "cloud.test"

ROOT = Path(__file__).parents[2]

PATIENCE = 30.0
"""Seconds for what takes less than one."""

PAUSE = 0.02
"""Seconds between two visits of the same visitor."""

HEAD = """\
[listen]
https = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
[storage]
path = "{storage}"
[timeouts]
drain = "{drain}"
"""


def configuration(folder: Path, *, drain: str = "5s", **ports: int) -> str:
    """Sites by the first label of their names, with certificates that need nobody."""
    sites = "".join(
        f'[sites."{label}.test"]\ntls = "internal"\n"/" = "http://{LOOPBACK}:{port}"\n' for label, port in ports.items()
    )
    return HEAD.format(storage=folder / "store", drain=drain) + sites


@attrs.define
class Served:
    """The service, whichever process it is at the moment."""

    folder: Path
    process: subprocess.Popen[bytes]
    https: int = 0
    http: int = 0

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def control(self) -> Path:
        return self.folder / "store" / "control.sock"

    def said(self) -> str:
        """All that any of its processes has logged."""
        return (self.folder / "log").read_text()

    async def heard(self, pattern: str, times: int = 1) -> re.Match[str]:
        """Wait until it has logged something."""
        with trio.fail_after(PATIENCE):
            while len(found := list(re.finditer(pattern, self.said()))) < times:
                if self.process.poll() is not None and times == 1 and not re.search(pattern, self.said()):
                    raise AssertionError(f"it ended with {self.process.returncode}:\n{self.said()}")
                await trio.sleep(0.01)
        return found[times - 1]

    async def ask(self, command: str, **arguments: object) -> dict[str, Any]:
        """Have it carry out a command."""
        with trio.fail_after(PATIENCE):
            return await ask(self.control, command, dict(arguments), lambda line: None)

    async def visit(self, name: str = NAME, *, protocol: str = "") -> trio.SSLStream[trio.SocketStream]:
        """A TLS connection that takes any certificate, and offers `protocol` by ALPN if there is one."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if protocol:
            context.set_alpn_protocols([protocol])
        transport = await trio.open_tcp_stream(LOOPBACK, self.https)
        stream = trio.SSLStream(transport, context, server_hostname=name, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def get(self, name: str = NAME) -> bytes:
        """The body of a response, over a connection of its own."""
        stream = await self.visit(name)
        try:
            return (await Caller(stream).ask("GET", "/", name, {"Connection": "close"})).body
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def served(
    folder: Path,
    text: str,
    *,
    environ: Mapping[str, str] | None = None,
    launch: list[str] | None = None,
    python: str = sys.executable,
    **popen: Any,
) -> AsyncIterator[Served]:
    """Run it, from its `ready` to the end of the block; all of its processes are ended then.

    Args:
        folder: For its files.
        text: Its configuration.
        environ: More of its environment.
        launch: A command that starts it, to stand before its own.
        python: The interpreter.
        popen: More for Popen.
    """
    (folder / "config.toml").write_text(text)
    command = [
        *(launch or []), python, "-c", "from trioproxy.cli.main import main; main()",
        "--config", str(folder / "config.toml"), "serve",
    ]  # fmt: skip
    kept = {key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "WATCHDOG_USEC")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - a matter of milliseconds
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            env={**kept, "PYTHONPATH": str(ROOT), **(environ or {})}, **popen,
        )  # fmt: skip
    service = Served(folder, process)
    try:
        ready = await service.heard(r"ready: (?:127\.0\.0\.1|0\.0\.0\.0):(\d+)(?:, 127\.0\.0\.1:(\d+))?")
        service.https, service.http = int(ready[1]), int(ready[2] or 0)
        yield service
    finally:
        print(service.said())  # pytest shows it with a test that failed
        with contextlib.suppress(ProcessLookupError):  # the group is its own: no other process is in it
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@attrs.define
class Load:
    """Visitors who come again and again, each time by a new connection."""

    answered: int = 0
    failed: list[str] = attrs.field(factory=list)


@asynccontextmanager
async def load(service: Served, visitors: int, expected: Callable[[bytes], bool]) -> AsyncIterator[Load]:
    """Have them come until the block ends; the last ones get their answers before it does."""
    result = Load()
    over = False

    async def come_and_go() -> None:
        while not over:
            try:
                with trio.fail_after(PATIENCE):
                    body = await service.get()
                if expected(body):
                    result.answered += 1
                else:
                    result.failed.append(f"got {body!r}")
            except Exception as exc:
                result.failed.append(repr(exc))
            await trio.sleep(PAUSE)  # a steady load, and not all that two processors can do

    async with trio.open_nursery() as nursery:
        for _ in range(visitors):
            nursery.start_soon(come_and_go)
        yield result
        over = True
