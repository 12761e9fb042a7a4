"""A new process takes over: nobody is refused, nothing is cut, and a new process that fails changes nothing."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio

from tests.life.served import NAME, PATIENCE, configuration, load, served
from tests.proxy.stage import HELLO, Caller, answering, backend
from trioproxy.errors import ControlError

UPGRADES = 10
"""Each takes the time of a start, and leaves an old process behind that drains while the next one begins."""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"


async def gone(pid: int) -> None:
    with trio.fail_after(PATIENCE):
        while alive(pid):  # noqa: ASYNC110 - it is no child of ours
            await trio.sleep(0.01)


async def test_upgrades_under_load_refuse_nobody_and_cut_nothing(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        pids = [service.process.pid]
        async with load(service, 4, lambda body: body == b"hello") as result:
            for _ in range(UPGRADES):
                outcome = await service.ask("upgrade")
                assert outcome["old_pid"] == pids[-1]
                pids.append(outcome["pid"])
        assert result.failed == []
        assert result.answered > UPGRADES
        assert len(set(pids)) == UPGRADES + 1
        for pid in pids[1:-1]:
            await gone(pid)
        assert service.control.exists()
        assert (await service.ask("status"))["pid"] == pids[-1]
        os.kill(pids[-1], signal.SIGTERM)
        await gone(pids[-1])
        assert not service.control.exists()
    assert "Traceback" not in service.said()


async def test_a_response_under_way_is_finished_by_the_old_process(tmp_path: Path) -> None:
    proceed = trio.Event()

    async def slow(stream: trio.SocketStream, _: object) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await proceed.wait()
        await stream.send_all(b"last.")

    async with (
        backend(slow) as (port, seen),
        backend(answering(HELLO)) as (fast, _),
        served(tmp_path, configuration(tmp_path, cloud=port, other=fast)) as service,
        trio.open_nursery() as nursery,
    ):
        stream = await service.visit()
        bodies: list[bytes] = []

        async def download() -> None:
            bodies.append((await Caller(stream).ask("GET", "/", NAME)).body)

        nursery.start_soon(download)
        with trio.fail_after(PATIENCE):
            while not seen.connections:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await service.ask("upgrade")
        assert await service.get("other.test") == b"hello"
        assert bodies == []
        proceed.set()
        with trio.fail_after(PATIENCE):
            while not bodies:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert bodies == [b"firstlast."]
        await trio.aclose_forcefully(stream)
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(service.process.wait)
        assert service.process.returncode == 0


async def test_only_one_process_at_a_time_speaks_with_the_authority(tmp_path: Path) -> None:
    """The old one lives on, for a response is under way; the authority hears of it no more."""
    events: list[str] = []

    async def authority(stream: trio.SocketStream, _: object) -> None:
        events.append("begins")
        try:
            while await stream.receive_some():  # what it is asked it never answers
                pass
        finally:
            events.append("ends")

    async def never(stream: trio.SocketStream, _: object) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await trio.sleep_forever()

    async with (
        backend(authority) as (ca, _),
        backend(never) as (port, _),
        served(
            tmp_path,
            configuration(tmp_path, drain="1h", cloud=port)
            + f'[sites]\n"new.test" = "http://127.0.0.1:{port}"\n[acme]\ndirectory = "https://127.0.0.1:{ca}/"\n',
        ) as service,
    ):
        stream = await service.visit()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
        assert bytes(await stream.receive_some()).startswith(b"HTTP/1.1 200")
        with trio.fail_after(PATIENCE):
            while events != ["begins"]:  # noqa: ASYNC110
                await trio.sleep(0.01)
        await service.ask("upgrade")
        with trio.fail_after(PATIENCE):
            while len(events) < 3:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert events == ["begins", "ends", "begins"]
        assert service.process.poll() is None
        await trio.aclose_forcefully(stream)


async def test_a_new_process_that_finds_mistakes_changes_nothing(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        good = service.config.read_text()
        service.config.write_text(good + "[nonsense]\n")
        with pytest.raises(ControlError, match=r"did not start:\n.*nonsense: unknown key"):
            await service.ask("upgrade")
        assert await service.get() == b"hello"
        service.config.write_text(good)
        outcome = await service.ask("upgrade")
        assert outcome["old_pid"] == service.process.pid
        assert await service.get() == b"hello"


async def test_a_new_process_that_crashes_changes_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    async with (
        backend(answering(HELLO)) as (port, _),
        served(
            tmp_path,
            configuration(tmp_path, cloud=port),
            cwd=broken,  # where `python -c` looks for modules first
        ) as service,
    ):
        (broken / "trioproxy.py").write_text("raise SystemExit(7)\n")  # the new code
        with pytest.raises(ControlError, match="ended with code 7 before it served"):
            await service.ask("upgrade")
        assert await service.get() == b"hello"
        (broken / "trioproxy.py").unlink()
        await service.ask("upgrade")
        assert await service.get() == b"hello"


async def test_a_new_process_that_cannot_bind_gives_back_what_it_was_handed(tmp_path: Path) -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        backend(answering(HELLO)) as (taken, _),
        served(tmp_path, configuration(tmp_path, cloud=port)) as service,
    ):
        text = service.config.read_text()
        service.config.write_text(text.replace('http = ["127.0.0.1:0"]', f'http = ["127.0.0.1:{taken}"]'))
        with pytest.raises(ControlError, match=f"{taken} is held by"):
            await service.ask("upgrade")
        assert await service.get() == b"hello"
        assert (await service.ask("status"))["pid"] == service.process.pid


async def test_an_upgrade_may_bring_another_control_socket(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        old = service.control
        service.config.write_text(service.config.read_text() + f'[control]\nsocket = "{tmp_path}/other.sock"\n')
        await service.ask("upgrade")
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(service.process.wait)
        assert not old.exists()
        assert (tmp_path / "other.sock").is_socket()
        assert await service.get() == b"hello"
