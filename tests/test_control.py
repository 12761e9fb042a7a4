"""The control socket, both sides."""

from __future__ import annotations

import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.net.sockets import until
from trioproxy.control import NoServer, Report, ask, control_socket
from trioproxy.errors import ControlError, ListenError, StoreError


async def _greet(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    for number in range(arguments["times"]):
        report(f"greeting {number}")
        await trio.lowlevel.checkpoint()
    return {"greeting": f"hello {arguments['name']}"}


async def _refuse(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    raise StoreError("the disk is full")


async def _talk_for_ever(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    while True:
        report("still talking")
        await trio.sleep(0.001)


async def _stumble(arguments: dict[str, Any], report: Report) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    raise IndexError("a bug")


HANDLERS = {"greet": _greet, "refuse": _refuse, "talk": _talk_for_ever, "stumble": _stumble}


@asynccontextmanager
async def served(path: Path) -> AsyncIterator[None]:
    with control_socket(path) as control:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.answer, HANDLERS)
            yield
            nursery.cancel_scope.cancel()


async def test_a_command_gets_progress_and_then_its_result(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    progress: list[str] = []
    async with served(path):
        assert await ask(path, "greet", {"name": "you", "times": 2}, progress.append) == {"greeting": "hello you"}
    assert progress == ["greeting 0", "greeting 1"]


async def test_what_the_server_refuses_is_an_error_with_its_words(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        with pytest.raises(ControlError, match="the disk is full"):
            await ask(path, "refuse", {}, print)
        with pytest.raises(ControlError, match="does not know this command"):
            await ask(path, "unheard-of", {}, print)


async def test_the_socket_is_its_owners_alone_and_goes_with_the_server(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "control.sock"
    async with served(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()
    with pytest.raises(NoServer):
        await ask(path, "greet", {}, print)


async def test_a_socket_of_a_dead_server_is_replaced_and_one_of_a_living_server_is_not(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NoServer):
        await ask(path, "greet", {}, print)
    async with served(path):
        with pytest.raises(ListenError, match="another trioproxy is running"), control_socket(path):
            pass
        assert await ask(path, "greet", {"name": "you", "times": 0}, print) == {"greeting": "hello you"}


async def test_a_command_that_breaks_off_disturbs_nobody(tmp_path: Path) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b'{"command": "greet", "argum')
        await stream.aclose()
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b"not json\n")
        assert b"error" in await stream.receive_some()
        await stream.aclose()
        assert await ask(path, "greet", {"name": "you", "times": 0}, print) == {"greeting": "hello you"}


async def test_who_leaves_before_the_answer_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trioproxy")
    path = tmp_path / "control.sock"
    async with served(path):
        stream = await trio.open_unix_socket(str(path))
        await stream.send_all(b'{"command": "talk", "arguments": {}}\n')
        assert b"still talking" in await stream.receive_some()
        await stream.aclose()
        with trio.fail_after(5):
            await until(lambda: bool(caplog.records))
        assert await ask(path, "greet", {"name": "you", "times": 0}, print) == {"greeting": "hello you"}
    assert [record.getMessage() for record in caplog.records] == [
        "a command went away before it was answered; what it had asked for is given up"
    ]


async def test_a_bug_in_a_command_is_told_to_whoever_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "control.sock"
    async with served(path):
        with pytest.raises(ControlError, match="a bug in trioproxy ended this command"):
            await ask(path, "stumble", {}, print)
        assert await ask(path, "greet", {"name": "you", "times": 0}, print) == {"greeting": "hello you"}
    assert "a bug in trioproxy ended the command stumble" in caplog.text


def test_what_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious.txt"
    path.write_text("precious")
    with pytest.raises(ListenError, match="this is no socket"), control_socket(path):
        pass
    assert path.read_text() == "precious"
