"""The user's command, as a real child."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import pytest
import trio

from tests.acme.support import PATIENCE
from tests.certs.making import bundle
from tests.net.sockets import until
from trioproxy.certs import on_renew
from trioproxy.certs.handing_out import Handed

NAME = "cloud.example.com"


async def run(*command: str, told: dict[str, str] | None = None) -> str:
    with trio.fail_after(PATIENCE):
        return await on_renew.run(NAME, command, {"PATH": os.environ["PATH"], **(told or {})}, None)


def sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


async def test_it_learns_what_is_new_and_nothing_of_ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/x")
    made = bundle(NAME, "www.example.com")
    told = on_renew.environment(NAME, made.leaf, Handed(tmp_path / NAME))
    assert await on_renew.run(NAME, sh(f"env > {tmp_path}/env"), told, None) == ""
    env = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines())
    assert env["TRIOPROXY_NAME"] == NAME
    assert env["TRIOPROXY_NAMES"] == f"{NAME} www.example.com"
    assert env["TRIOPROXY_FULLCHAIN"] == f"{tmp_path}/{NAME}/fullchain.pem"
    assert env["TRIOPROXY_KEY"] == f"{tmp_path}/{NAME}/privkey.pem"
    assert "NOTIFY_SOCKET" not in env


async def test_its_output_is_logged_line_by_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await run(*sh("echo one; echo two >&2; printf three")) == ""
    assert caplog.messages == [f"{NAME}  on_renew: {word}" for word in ("one", "two", "three")]


async def test_much_output_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    talker = "import sys; sys.stdout.write('x' * 300_000 + '\\n'); [print(n) for n in range(5000)]; sys.exit(1)"
    assert await run(sys.executable, "-c", talker) == f"{sys.executable} ended with exit code 1: 4999"
    assert len(caplog.messages) == on_renew.MAX_LINES + 1
    assert max(map(len, caplog.messages)) < on_renew.MAX_LINE + 100
    assert caplog.messages[1].endswith(": 0")  # what belonged to the long line is no line of its own
    assert caplog.messages[-1].endswith("the rest is left out")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (sh("echo the disk is full; exit 3"), "sh ended with exit code 3: the disk is full"),
        (sh("kill -9 $$"), "sh was ended by SIGKILL"),
        (("/nowhere/program",), "/nowhere/program cannot be run: No such file or directory"),
        (("/etc",), "/etc cannot be run: Permission denied"),
    ],
)
async def test_failures_in_words(command: tuple[str, ...], said: str) -> None:
    assert await run(*command) == said


async def test_it_is_no_shell(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await run("echo", "$PATH; touch x") == ""
    assert caplog.messages == [f"{NAME}  on_renew: $PATH; touch x"]


async def test_it_gets_nothing_to_read() -> None:
    assert await run("cat") == ""


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


STUBBORN = "trap '' TERM; (trap '' TERM; sleep 600) & echo $! > {pid}; echo begun; sleep 600"


async def all_gone(pid_file: Path) -> None:
    pid = int(content(pid_file))
    with trio.fail_after(PATIENCE):
        await until(lambda: gone(pid))


def content(file: Path) -> str:
    """Of a file that another process writes."""
    return file.read_text().strip() if file.exists() else ""


async def test_after_its_deadline_its_whole_group_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(on_renew, "DEADLINE", 0.5)
    monkeypatch.setattr(on_renew, "GRACE", 0.1)
    said = await run(*sh(STUBBORN.format(pid=tmp_path / "pid")))
    assert said == "sh was still at work after 0.5 s and was ended: begun"
    await all_gone(tmp_path / "pid")


async def test_when_we_end_so_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(on_renew, "GRACE", 0.1)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, *sh(STUBBORN.format(pid=tmp_path / "pid")))
            await until(lambda: bool(content(tmp_path / "pid")))
            nursery.cancel_scope.cancel()
    await all_gone(tmp_path / "pid")


async def test_a_daemon_that_it_began_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(on_renew, "LINGERS", 0.1)
    monkeypatch.setattr(on_renew, "DEADLINE", PATIENCE)
    assert await run(*sh(f"sleep 600 & echo $! > {tmp_path}/pid")) == ""
    pid = int((tmp_path / "pid").read_text())
    assert not gone(pid)
    os.kill(pid, 9)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_it_runs_as_the_owner_of_the_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert await on_renew.run(NAME, sh("id -u; id -G"), {"PATH": os.environ["PATH"]}, (65534, 65534)) == ""
    assert caplog.messages == [f"{NAME}  on_renew: 65534"] * 2
