"""A server whose standard error nobody reads."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import trio

from tests.life.served import PATIENCE, configuration, served
from tests.proxy.stage import HELLO, answering, backend

RELOADS = 60
"""Each says some hundred bytes or more."""


async def test_a_log_that_nobody_takes_stops_nobody(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    moved = 0

    taking = trio.CancelScope()

    async def carry() -> None:
        """Take what is said, to where `served` reads it."""
        nonlocal moved
        with (tmp_path / "log").open("ab", buffering=0) as log, taking:
            while True:
                try:
                    moved += log.write(os.read(pipe, 65536))
                except BlockingIOError:
                    await trio.sleep(0.01)

    launch = ["sh", "-c", f'exec "$0" "$@" 2>{fifo}']
    async with backend(answering(HELLO)) as (port, _), trio.open_nursery() as nursery:
        nursery.start_soon(carry)
        async with served(tmp_path, configuration(tmp_path, cloud=port), launch=launch) as service:
            taking.cancel()
            with trio.fail_after(PATIENCE):
                for _ in range(RELOADS):
                    await service.ask("reload", dry_run=False)
                assert await service.get() == b"hello"
                await service.ask("upgrade")
                assert await service.get() == b"hello"
    os.close(pipe)
    assert moved
