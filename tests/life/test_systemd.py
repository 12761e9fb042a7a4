"""A real server under a manager that is the test's own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import trio

from tests.conftest import needs
from tests.life.served import PATIENCE, ROOT, Served, configuration, served
from tests.process.managers import launcher, manager
from tests.proxy.stage import HELLO, Caller, answering, backend


async def test_a_life_as_systemd_hears_of_it(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000"}
    async with backend(answering(HELLO)) as (port, _):
        with manager(address) as systemd:
            async with served(tmp_path, configuration(tmp_path, cloud=port), environ=environ) as service:
                ready = await systemd.until("READY")
                assert ready == {"READY": "1", "STATUS": "1 sites, 0 passthrough names"}
                for _ in range(3):
                    await systemd.until("WATCHDOG", "1")
                service.config.write_text(configuration(tmp_path, cloud=port, other=port))
                await service.ask("reload", dry_run=False)
                assert int((await systemd.until("RELOADING"))["MONOTONIC_USEC"]) > 0
                assert (await systemd.until("READY"))["STATUS"] == "2 sites, 0 passthrough names"
                service.config.write_text("nonsense")
                os.kill(service.process.pid, signal.SIGHUP)
                await systemd.until("RELOADING")
                assert (await systemd.until("READY"))["STATUS"] == "2 sites, 0 passthrough names"
                service.process.terminate()
                assert "stopping" in (await systemd.until("STOPPING"))["STATUS"]


async def test_a_server_that_hangs_feeds_no_watchdog(tmp_path: Path) -> None:
    address = f"@trioproxy-test-{os.getpid()}"
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "100000"}
    with manager(address) as systemd:
        async with served(tmp_path, configuration(tmp_path, cloud=9), environ=environ) as service:
            await systemd.until("WATCHDOG")
            service.process.send_signal(signal.SIGSTOP)
            with trio.move_on_after(0.3):  # what it had said before
                while True:
                    await systemd.message()
            with trio.move_on_after(0.4) as scope:
                await systemd.message()
            assert scope.cancelled_caught, "something else than the loop feeds it"
            service.process.send_signal(signal.SIGCONT)
            await systemd.until("WATCHDOG")


async def test_after_an_upgrade_the_service_is_the_new_process(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "400000", "WATCHDOG_PID": "1"}
    async with backend(answering(HELLO)) as (port, _):
        with manager(address) as systemd:
            async with served(tmp_path, configuration(tmp_path, cloud=port), environ=environ) as service:
                await systemd.until("READY")
                outcome = await service.ask("upgrade")
                assert (await systemd.until("MAINPID"))["MAINPID"] == str(outcome["pid"])
                await systemd.until("READY")  # of the new one, after systemd knows whose it is
                await systemd.until("WATCHDOG")
                with trio.fail_after(PATIENCE):
                    await trio.to_thread.run_sync(service.process.wait)
                assert not any("STOPPING" in message for message in systemd.heard)
                os.kill(outcome["pid"], signal.SIGTERM)
                await systemd.until("STOPPING")


async def test_sockets_that_systemd_has_bound_are_used_and_the_rest_is_bound_here(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _):
        with socket.create_server(("127.0.0.1", 0)) as named, socket.create_server(("127.0.0.1", 0)) as other:
            for sock in (named, other):
                os.set_inheritable(sock.fileno(), True)
            first = _in_a_row(named, other)
            text = configuration(tmp_path, cloud=port).replace('https = ["127.0.0.1:0"]\n', "")
            async with served(
                tmp_path, text, launch=launcher(first, "https:trioproxy.socket", 2), pass_fds=[first, first + 1]
            ) as service:
                assert service.https == named.getsockname()[1]
                assert service.http not in (0, other.getsockname()[1])
                assert await service.get() == b"hello"
                assert (
                    f"a socket for 127.0.0.1:{other.getsockname()[1]}, which [listen] does not name" in service.said()
                )
                outcome = await service.ask("upgrade")
                assert await service.get() == b"hello"
                assert (await service.ask("status"))["pid"] == outcome["pid"]
                await service.ask("reload", dry_run=False)
                assert await service.get() == b"hello"
            os.close(first)
            os.close(first + 1)


def _group(name: str) -> set[str]:
    """The system calls of a group, as SystemCallFilter= means it."""
    shown = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, timeout=60, check=True
    )
    found: set[str] = set()
    for word in (line.strip() for line in shown.stdout.splitlines()[1:]):
        if word.startswith("@"):
            found |= _group(word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


@needs("strace", "systemd-analyze")
async def test_the_units_filter_lets_a_server_do_all_that_it_does(tmp_path: Path) -> None:
    unit = (ROOT / "dist/trioproxy.service").read_text()
    given, taken = re.findall(r"^SystemCallFilter=~?(.*)", unit, re.MULTILINE)
    allowed = _group(given) - set().union(*map(_group, taken.split())) | _group("@default")
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-o", str(trace)]
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, configuration(tmp_path, cloud=port), launch=strace) as service,
    ):
        assert await service.get() == b"hello"
        await service.ask("reload", dry_run=False)
        await service.ask("upgrade")
        assert await service.get() == b"hello"
    called = set(re.findall(r"^\d+\s+(?:<\.\.\. )?(\w+)", trace.read_text(), re.MULTILINE))
    assert "execve" in called
    assert called - allowed == set()


async def test_sockets_are_told_apart_by_their_addresses(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tls, socket.create_server(("127.0.0.1", 0)) as plain:
        first = _in_a_row(plain, tls)
        text = configuration(tmp_path, cloud=9)
        text = text.replace('https = ["127.0.0.1:0"]', f'https = ["127.0.0.1:{tls.getsockname()[1]}"]')
        text = text.replace('http = ["127.0.0.1:0"]', f'http = ["127.0.0.1:{plain.getsockname()[1]}"]')
        async with served(tmp_path, text, launch=launcher(first, "a:b", 2), pass_fds=[first, first + 1]) as service:
            async with await trio.open_tcp_stream("127.0.0.1", plain.getsockname()[1]) as stream:
                assert (await Caller(stream).ask("GET", "/", "cloud.test")).status == 308
            await _answers_tls(service, tls.getsockname()[1])
        os.close(first)
        os.close(first + 1)


async def _answers_tls(service: Served, port: int) -> None:
    service.https = port
    await trio.aclose_forcefully(await service.visit())


def _in_a_row(*socks: socket.socket) -> int:
    """Copies of sockets at descriptors in a row, which can be passed on."""
    first = 500
    for number, sock in enumerate(socks):
        os.dup2(sock.fileno(), first + number, inheritable=True)
    return first
