"""Several processes serve as one: they share the work, are replaced when they die, and change together."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import h11
import pytest
import trio
import trio.testing

from tests.life.served import NAME, PATIENCE, ROOT, Load, Served, configuration, load, served
from tests.life.test_upgrade import gone
from tests.process.managers import launcher, manager
from tests.proxy.stage import HELLO, LOOPBACK, Caller, Recording, Script, answering, backend
from trioproxy.errors import ControlError

WORKERS = "[process]\nworkers = 2\n"

BACK_WITHIN = 1.0
"""Seconds without a worker's share after it was killed."""

MANY = 20
"""Connections of which the kernel gives some to each of two workers: all to one happens once in half a million."""


def text(folder: Path, *, drain: str = "5s", **ports: int) -> str:
    return WORKERS + configuration(folder, drain=drain, **ports)


async def pids(service: Served) -> list[int]:
    """The workers that serve."""
    return [worker["pid"] for worker in (await service.ask("status"))["workers"]]


async def staffed(service: Served) -> list[int]:
    """The workers, as soon as there are two."""
    with trio.fail_after(PATIENCE):
        while len(found := await pids(service)) < 2:  # noqa: ASYNC110 - another process's doing
            await trio.sleep(0.02)
    return found


async def answers(result: Load, count: int) -> None:
    """Wait for so many."""
    with trio.fail_after(PATIENCE):
        while result.answered < count:  # noqa: ASYNC110 - as they come
            await trio.sleep(0.01)


@attrs.define
class Visitors:
    """Connections that are kept open."""

    streams: list[trio.SSLStream[trio.SocketStream]]

    async def ask(self, name: str = NAME) -> list[bytes]:
        """The body of one answer on each; b"" where the connection has ended."""
        bodies = []
        for stream in self.streams:
            try:
                bodies.append((await Caller(stream).ask("GET", "/", name)).body)
            except trio.BrokenResourceError:
                bodies.append(b"")
        return bodies


@asynccontextmanager
async def visitors(service: Served, count: int, name: str = NAME) -> AsyncIterator[Visitors]:
    streams = [await service.visit(name) for _ in range(count)]
    try:
        yield Visitors(streams)
    finally:
        for stream in streams:
            await trio.aclose_forcefully(stream)


async def test_two_processes_share_the_work_and_tell_as_one(tmp_path: Path) -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, text(tmp_path, cloud=port)) as service,
        visitors(service, MANY) as guests,
    ):
        assert await guests.ask() == [b"hello"] * MANY
        status = await service.ask("status")
        shares = [worker["connections"] for worker in status["workers"]]
        assert min(shares) > 0
        assert sum(shares) == status["connections"] == status["names"][0]["connections"] == MANY
        assert len({status["pid"], *(worker["pid"] for worker in status["workers"])}) == 3
        listed = (await service.ask("connections"))["connections"]
        assert len({connection["id"] for connection in listed}) == MANY
        for connection in listed:
            await service.ask("connections.close", id=connection["id"])
        assert (await service.ask("connections"))["connections"] == []
        with pytest.raises(ControlError, match="there is no connection 1; it may have ended"):
            await service.ask("connections.close", id=1)


async def test_the_share_of_a_killed_worker_is_back_within_a_second(tmp_path: Path) -> None:
    """However long the start of another one takes."""
    slow = tmp_path / "slow"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\nif 'TRIOPROXY_WORKER' in os.environ and os.path.exists({str(slow)!r}):\n    time.sleep(2)\n"
    )
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, text(tmp_path, cloud=port), environ=environ) as service,
    ):
        slow.touch()
        victim, other = await pids(service)
        os.kill(victim, signal.SIGKILL)
        for _ in range(MANY):
            begun = trio.current_time()
            assert await service.get() == b"hello"
            assert trio.current_time() - begun < BACK_WITHIN, "it has waited for a worker that is not there"
        assert await pids(service) == [other], "all that was the other one's work"
        assert victim not in await staffed(service)
        async with visitors(service, MANY):
            status = await service.ask("status")
            assert all(worker["connections"] for worker in status["workers"]), "all listeners are accepted from"
        await service.heard(r"worker 1 \(process \d+\) has ended with code -9; another one takes its place")


async def test_killing_a_worker_under_load_costs_no_connection_but_its_own(tmp_path: Path) -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, text(tmp_path, cloud=port)) as service,
        load(service, 4, lambda body: body == b"hello") as result,
    ):
        for slot in range(2):
            answered = result.answered
            os.kill((await staffed(service))[slot], signal.SIGKILL)
            await answers(result, answered + 20)
        assert len(result.failed) <= 2 * 4, "each of four visitors can have been with it when it was killed"


async def test_what_waits_in_a_dead_workers_queue_is_served(tmp_path: Path) -> None:
    """By the other worker where there is one, else by the new one."""
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, text(tmp_path, cloud=port)) as service:
        for count in (1, 2):
            victims = (await staffed(service))[:count]
            for victim in victims:
                os.kill(victim, signal.SIGSTOP)  # it accepts no more, and its queue fills
            done: list[bytes] = []

            async def visit(done: list[bytes] = done) -> None:
                done.append(await service.get())

            async with trio.open_nursery() as nursery:
                for _ in range(MANY):
                    nursery.start_soon(visit)
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert len(done) < MANY, "some wait in its queue"
                for victim in victims:
                    os.kill(victim, signal.SIGKILL)
            assert done == [b"hello"] * MANY


async def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, text(tmp_path, cloud=port)) as service:
        before = await pids(service)
        os.kill(before[0], signal.SIGSTOP)
        await service.heard(rf"worker 1 \(process {before[0]}\) has not answered within 5 s, and is killed")
        for _ in range(MANY):
            assert await service.get() == b"hello"
        after = await staffed(service)
        assert before[0] not in after
        assert before[1] in after


async def test_all_workers_open_the_files_of_their_log_anew(tmp_path: Path) -> None:
    kept, moved = tmp_path / "access.log", tmp_path / "moved.log"

    def lines(path: Path) -> int:
        return len(path.read_text().splitlines()) if path.exists() else 0

    async with backend(answering(HELLO)) as (port, _):
        plain = f'[log]\naccess = "{kept}"\n' + text(tmp_path, cloud=port)
        async with served(tmp_path, plain) as service, visitors(service, MANY) as guests:
            with trio.fail_after(PATIENCE):
                assert await guests.ask() == [b"hello"] * MANY
                while lines(kept) < MANY:  # noqa: ASYNC110 - another process's doing
                    await trio.sleep(0.02)
                kept.rename(moved)
                service.process.send_signal(signal.SIGUSR1)
                asked, before = 0, -1
                while lines(kept) < MANY or lines(moved) != before:  # until a round has left the old file alone
                    before = lines(moved)
                    assert await guests.ask() == [b"hello"] * MANY
                    asked += MANY
                    while lines(kept) + lines(moved) < MANY + asked:  # noqa: ASYNC110
                        await trio.sleep(0.02)


async def test_a_drain_lets_all_workers_finish_and_leaves_nobody_behind(tmp_path: Path) -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, text(tmp_path, cloud=port)) as service,
        visitors(service, MANY) as guests,
    ):
        assert await guests.ask() == [b"hello"] * MANY
        workers = await pids(service)
        service.process.terminate()
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(service.process.wait)
        assert service.process.returncode == 0
        for worker in workers:
            await gone(worker)
        assert "may finish within 5 s" in service.said()
        assert "takes its place" not in service.said()
        with pytest.raises(OSError, match="all attempts to connect"):
            await service.get()


def slowly(gate: trio.Event) -> Script:
    """Answers half of what is promised, and the rest when `gate` opens."""

    async def script(stream: trio.SocketStream, _: object) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nfirst")
        await gate.wait()
        await stream.send_all(b"last.")

    return script


@asynccontextmanager
async def downloads(service: Served, seen: Recording, count: int) -> AsyncIterator[list[bytes]]:
    """So many responses that are under way; the list has those that have come to their end."""
    bodies: list[bytes] = []
    async with visitors(service, count) as guests, trio.open_nursery() as nursery:

        async def download(stream: trio.SSLStream[trio.SocketStream]) -> None:
            with contextlib.suppress(trio.BrokenResourceError, h11.RemoteProtocolError):
                bodies.append((await Caller(stream).ask("GET", "/", NAME)).body)

        for stream in guests.streams:
            nursery.start_soon(download, stream)
        with trio.fail_after(PATIENCE):
            while seen.connections < count:  # noqa: ASYNC110 - as they come
                await trio.sleep(0.01)
        yield bodies


async def refused(service: Served) -> None:
    """Wait until nobody listens any more."""
    with trio.fail_after(PATIENCE):
        while True:
            try:
                await service.get()
            except trio.BrokenResourceError:  # it waited to be accepted when the last listener was closed
                continue
            except OSError:
                return


async def test_a_second_signal_ends_all_workers_at_once(tmp_path: Path) -> None:
    async with (
        backend(slowly(trio.Event())) as (port, seen),
        served(tmp_path, text(tmp_path, drain="1h", cloud=port)) as service,
        downloads(service, seen, 8) as bodies,
    ):
        workers = await pids(service)
        service.process.terminate()
        await service.heard("8 connections may finish within 3600 s")
        await refused(service)
        service.process.terminate()
        for worker in workers:
            await gone(worker)
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(service.process.wait)
        assert service.process.returncode == 0
        assert bodies == []


async def test_workers_whose_supervisor_was_killed_finish_and_end(tmp_path: Path) -> None:
    gate = trio.Event()
    async with (
        backend(slowly(gate)) as (port, seen),
        served(tmp_path, text(tmp_path, drain="1h", cloud=port)) as service,
        downloads(service, seen, 8) as bodies,
    ):
        workers = await pids(service)
        service.process.kill()
        await service.heard("its supervisor has gone", times=2)
        await refused(service)
        gate.set()
        for worker in workers:
            await gone(worker)
        with trio.fail_after(PATIENCE):
            while len(bodies) < 8:  # noqa: ASYNC110 - they were sent; their readers may not have had their turn
                await trio.sleep(0.01)
        assert bodies == [b"firstlast."] * 8


async def test_all_workers_change_with_a_reload_and_nobody_notices(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, text(tmp_path, cloud=port)) as service:
        both, one = text(tmp_path, cloud=port, other=port), text(tmp_path, cloud=port)

        async def reload(text: str) -> dict[str, object]:
            service.config.write_text(text)
            return await service.ask("reload", dry_run=False)

        async with load(service, 3, lambda body: body == b"hello") as result, visitors(service, MANY) as guests:
            for _ in range(3):
                outcome = await reload(both)
                assert outcome["ending"] == {}
                async with visitors(service, MANY, "other.test") as leaving:
                    assert await leaving.ask("other.test") == [b"hello"] * MANY
                    assert (await reload(one))["ending"] == {"other.test": MANY}
                    for stream in leaving.streams:
                        with trio.fail_after(PATIENCE):
                            assert await stream.receive_some() == b"", "it waited for a next request"
                for _ in range(6):
                    with pytest.raises(trio.BrokenResourceError):
                        await service.get("other.test")
            assert await guests.ask() == [b"hello"] * MANY, "connections of names that stay live on"
        assert result.failed == []


async def test_a_reload_moves_the_listeners_of_all_workers(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, text(tmp_path, cloud=port)) as service:
        with socket.create_server((LOOPBACK, 0)) as probe:
            new = probe.getsockname()[1]
        old = service.https
        both = f'https = ["127.0.0.1:0", "127.0.0.1:{new}"]'
        service.config.write_text(text(tmp_path, cloud=port).replace('https = ["127.0.0.1:0"]', both))
        await service.ask("reload", dry_run=False)
        for service.https in [new, old] * 8:
            assert await service.get() == b"hello"
        service.config.write_text(
            text(tmp_path, cloud=port).replace('https = ["127.0.0.1:0"]', f'https = ["127.0.0.1:{new}"]')
        )
        await service.ask("reload", dry_run=False)
        service.https = old
        await refused(service)
        service.https = new
        os.kill((await pids(service))[0], signal.SIGKILL)
        for _ in range(MANY):
            assert await service.get() == b"hello"


async def test_a_reload_with_mistakes_changes_no_worker(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, text(tmp_path, cloud=port)) as service:
        service.config.write_text(text(tmp_path, other=port) + "[nonsense]\n")
        assert (await service.ask("reload", dry_run=False))["mistakes"]
        with socket.create_server((LOOPBACK, 0)) as taken:
            held = f'http = ["127.0.0.1:{taken.getsockname()[1]}"]'
            service.config.write_text(text(tmp_path, other=port).replace('http = ["127.0.0.1:0"]', held))
            with pytest.raises(ControlError, match="is held by"):
                await service.ask("reload", dry_run=False)
        for _ in range(8):
            assert await service.get() == b"hello"
        workers = await pids(service)
        service.config.write_text(text(tmp_path, cloud=port).replace("workers = 2", "workers = 3"))
        outcome = await service.ask("reload", dry_run=False)
        assert outcome["lines"] == ["! process.workers: 2 becomes 3: needs a restart, and stays as it was until then"]
        assert await pids(service) == workers


async def test_upgrades_under_load_refuse_nobody_whatever_the_number_of_workers(tmp_path: Path) -> None:
    def several(count: int) -> str:
        return f"[process]\nworkers = {count}\n" + configuration(tmp_path, cloud=port)

    async with backend(answering(HELLO)) as (port, _), served(tmp_path, several(1)) as service:
        leader, old = service.process.pid, []
        async with load(service, 3, lambda body: body == b"hello") as result:
            for count in (2, 3, 1):
                old += [leader, *await pids(service)]
                service.config.write_text(several(count))
                leader = (await service.ask("upgrade"))["pid"]
                await answers(result, result.answered + 20)
                async with visitors(service, MANY):
                    workers = (await service.ask("status"))["workers"]
                    assert len(workers) == (count if count > 1 else 0)
                    assert all(worker["connections"] for worker in workers)
            for pid in old:
                await gone(pid)
        assert result.failed == []
    assert "Traceback" not in service.said()


async def test_systemd_hears_of_the_supervisor_alone(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    async with backend(answering(HELLO)) as (port, _):
        with manager(address) as systemd:
            environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
            async with served(tmp_path, text(tmp_path, cloud=port), environ=environ) as service:
                assert (await systemd.until("READY"))["STATUS"] == "1 sites, 0 passthrough names"
                for _ in range(3):
                    await systemd.until("WATCHDOG", "1")
                service.process.terminate()
                assert "stopping" in (await systemd.until("STOPPING"))["STATUS"]
                with trio.fail_after(PATIENCE):
                    await trio.to_thread.run_sync(service.process.wait)
                assert [message for message in systemd.heard if "READY" in message or "STOPPING" in message] == [
                    {"READY": "1", "STATUS": "1 sites, 0 passthrough names"},
                    {"STOPPING": "1", "STATUS": "stopping: 0 connections may finish within 5 s"},
                ]


async def test_a_socket_of_systemds_is_shared_by_all_workers(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _):
        with socket.create_server((LOOPBACK, 0)) as named:
            os.set_inheritable(named.fileno(), True)
            first = named.fileno()
            plain = text(tmp_path, cloud=port).replace('https = ["127.0.0.1:0"]\n', "")
            async with served(tmp_path, plain, launch=launcher(first, "https", 1), pass_fds=[first]) as service:
                assert service.https == named.getsockname()[1]
                for victim in await pids(service):
                    assert await service.get() == b"hello"
                    os.kill(victim, signal.SIGKILL)
                    assert await service.get() == b"hello"
                    await staffed(service)


async def test_workers_that_do_not_start_end_the_server_with_words(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nif 'TRIOPROXY_WORKER' in os.environ:\n    os._exit(7)\n")
    environ = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    with pytest.raises(AssertionError, match="workers end before they serve: see the log above"):
        async with served(tmp_path, text(tmp_path, cloud=9), environ=environ):
            pass
