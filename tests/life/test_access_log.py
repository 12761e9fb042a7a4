"""The access log of a real server: rotated, moved, and whole at the end, with one process or several."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.life.served import PATIENCE, Served, configuration, served
from tests.proxy.stage import HELLO, LOOPBACK, Caller, answering, backend

WORKERS = "[process]\nworkers = 2\n"


def text(folder: Path, port: int, log: str, more: str = "") -> str:
    return f"{more}{configuration(folder, cloud=port)}[log]\n{log}\n"


async def look(condition: Callable[[], Any]) -> Any:
    """Wait for what another process does."""
    with trio.fail_after(PATIENCE):
        while not (found := condition()):  # noqa: ASYNC110 - its doing
            await trio.sleep(0.01)
    return found


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def get(service: Served, target: str) -> None:
    stream = await service.visit()
    try:
        assert (await Caller(stream).ask("GET", target, "cloud.test", {"Connection": "close"})).status == 200
    finally:
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("more", ["", WORKERS], ids=["alone", "workers"])
async def test_no_line_is_lost_by_a_rotation_a_reload_or_the_end(tmp_path: Path, more: str) -> None:
    first, rotated, second = tmp_path / "access.log", tmp_path / "access.log.1", tmp_path / "second.log"
    json_to = 'access_format = "json"\naccess = "{}"'.format
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, text(tmp_path, port, json_to(first), more)) as service,
    ):
        for number in range(4):
            await get(service, f"/{number}")
        await look(lambda: len(lines(first)) == 4)
        first.rename(rotated)
        os.killpg(service.process.pid, signal.SIGUSR1)  # as logrotate has it done for all processes of a service
        await look(first.exists)
        while len(lines(first)) < 1:  # a process of several may not have heard yet
            await get(service, "/rotated")
            await trio.sleep(0.2)
        service.config.write_text(text(tmp_path, port, json_to(second) + '\nformat = "json"', more))
        await service.ask("reload", dry_run=False)
        await get(service, "/moved")
        os.kill(service.process.pid, signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(service.process.wait, abandon_on_cancel=True)
        told = [*lines(rotated), *lines(first), *lines(second)]
        targets = [line["target"] for line in told]
        # Each process writes its own lines; those of several come in no order.
        assert sorted(target for target in targets if target != "/rotated") == ["/0", "/1", "/2", "/3", "/moved"]
        assert [line["target"] for line in lines(second)] == ["/moved"]
        assert {(line["client"], line["name"], line["status"], line["sent"]) for line in told} == {
            (LOOPBACK, "cloud.test", 200, 5)
        }
        assert len({line["connection"] for line in told}) == len(told)
        said = [json.loads(line) for line in service.said().splitlines() if line.startswith("{")]
        assert "stopped" in [event["message"] for event in said]


async def test_a_signal_before_the_server_listens_for_it_does_not_end_it(tmp_path: Path) -> None:
    async with served(tmp_path, text(tmp_path, 1, 'access = ""')) as service:
        os.kill(service.process.pid, signal.SIGUSR1)
        assert (await service.ask("status"))["pid"] == service.process.pid


async def test_an_access_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, text(tmp_path, port, f'access = "{tmp_path}/missing/access.log"')) as service,
    ):
        await get(service, "/")
        await service.heard(r"access log: \S+: No such file or directory")
        (tmp_path / "missing").mkdir()
        await get(service, "/")
        assert " GET / 200 5 B " in await look(
            lambda: (file := tmp_path / "missing" / "access.log").exists() and file.read_text()
        )
        await service.heard("takes lines again; 1 were lost")
