"""A server that root starts, and that is root no more."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
from pathlib import Path

import pytest
import trio

from tests.life.served import PATIENCE, ROOT, Served, configuration, served
from tests.process.interpreters import USER, interpreter
from tests.proxy.stage import HELLO, answering, backend

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def text(folder: Path, port: int) -> str:
    return configuration(folder, cloud=port) + f'[process]\nuser = "{USER}"\n'


def fields(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def threads_are_alike(pid: int) -> bool:
    """Whether every thread of a process may as little as its first one."""
    said = fields(pid)
    keys = ("Uid", "Gid", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs")
    others = [fields(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]
    return len(others) > 1 and all(other[key] == said[key] for other in others for key in keys)


async def reload(service: Served) -> list[str]:
    lines: list[str] = (await service.ask("reload", dry_run=False))["lines"]
    return lines


async def test_it_serves_and_reloads_as_an_ordinary_user_and_binds_low_ports_all_the_same(folder: Path) -> None:
    who = pwd.getpwnam(USER)
    low = next(port for port in range(1023, 600, -1) if _is_free(port))
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{ROOT}:{packages}"}
    async with (
        backend(answering(HELLO)) as (port, _),
        served(folder, text(folder, port), environ=environ, python=python) as service,
    ):
        status = fields(service.process.pid)
        assert status["Uid"] == [str(who.pw_uid)] * 4
        assert status["CapEff"] == [f"{1 << 10:016x}"]
        assert status["NoNewPrivs"] == ["1"]
        assert threads_are_alike(service.process.pid)
        assert "running as nobody (uid" in service.said()
        assert await service.get() == b"hello"
        owners = {path.stat().st_uid for path in (folder / "store", *(folder / "store").rglob("*"))}
        assert owners == {who.pw_uid}
        service.config.write_text(text(folder, port).replace(
            'http = ["127.0.0.1:0"]', f'http = ["127.0.0.1:0", "127.0.0.1:{low}"]'))  # fmt: skip
        assert f"+ listener http 127.0.0.1:{low}" in await reload(service)
        async with await trio.open_tcp_stream("127.0.0.1", low):
            pass
        assert not any("restart" in line for line in await reload(service))  # its default folders are what they were


async def test_workers_are_the_same_user_with_the_same_capabilities_and_so_is_who_replaces_them(folder: Path) -> None:
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{ROOT}:{packages}"}
    several = text(folder, 9).replace("[process]", "[process]\nworkers = 2")
    async with served(folder, several, environ=environ, python=python) as service:
        before = fields(service.process.pid)

        async def alike() -> list[int]:
            workers = [worker["pid"] for worker in (await service.ask("status"))["workers"]]
            for pid in workers:
                assert threads_are_alike(pid)
                after = fields(pid)
                for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs"):
                    assert before[key] == after[key], key
            return workers

        os.kill((await alike())[0], signal.SIGKILL)
        await service.heard("serves", times=3)
        assert len(await alike()) == 2


async def test_the_successor_is_the_same_user_with_the_same_capabilities(folder: Path) -> None:
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{ROOT}:{packages}"}
    async with (
        backend(answering(HELLO)) as (port, _),
        served(folder, text(folder, port), environ=environ, python=python) as service,
    ):
        before = fields(service.process.pid)
        outcome = await service.ask("upgrade")
        after = fields(outcome["pid"])
        for key in ("Uid", "Gid", "Groups", "CapEff", "CapPrm", "CapBnd", "CapAmb", "NoNewPrivs"):
            assert before[key] == after[key], key
        assert await service.get() == b"hello"
        os.kill(outcome["pid"], signal.SIGTERM)
        with trio.fail_after(PATIENCE):
            while service.control.exists():  # noqa: ASYNC110
                await trio.sleep(0.01)


async def test_a_store_of_somebody_else_stops_the_start(folder: Path) -> None:
    (folder / "store").mkdir()
    (folder / "store" / "keys").touch()
    with pytest.raises(AssertionError) as no:
        async with served(folder, text(folder, 9)):
            pass
    assert "belongs to root, and process.user is nobody" in str(no.value)
    assert "ready" not in str(no.value)


async def test_a_user_who_cannot_read_the_program_stops_the_start(folder: Path) -> None:
    """What is imported later, with the first renewal perhaps, could not be had then."""
    copy = folder / "program"
    shutil.copytree(ROOT / "trioproxy", copy / "trioproxy", ignore=shutil.ignore_patterns("__pycache__"))
    copy.chmod(0o700)
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{copy}:{packages}"}
    with pytest.raises(AssertionError) as no:
        async with served(folder, text(folder, 9), environ=environ, python=python, cwd="/"):
            pass
    assert f"process.user: nobody may not read {copy}/trioproxy/__init__.py" in str(no.value)
    assert "install it where every user may read it" in str(no.value)
    assert "ready" not in str(no.value)


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0
