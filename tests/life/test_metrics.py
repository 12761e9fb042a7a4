"""What a real server measures of itself, read as Prometheus would."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import trio
from prometheus_client.parser import text_string_to_metric_families

from tests.life.neighbours import (
    CLOSED,
    DOWN,
    LIVE,
    PASSED,
    SITE,
    be_refused,
    get,
    neighbourhood,
    pass_through,
    talk,
)
from tests.life.served import PATIENCE, ROOT, Served, configuration
from tests.life.test_trace import traced
from tests.proxy.stage import LOOPBACK, Caller

ADMIN = f'[admin]\nmetrics = "{LOOPBACK}:0"\n'

Found = dict[tuple[str, ...], float]
"""By the name of a sample and the values of its labels, in the order of their names."""


async def scrape(service: Served, host: str = LOOPBACK, port: int = 0) -> Found:
    """Everything that it tells."""
    port = port or int((await service.heard(rf"metrics: http://{re.escape(LOOPBACK)}:(\d+)/metrics"))[1])
    with trio.fail_after(PATIENCE):
        async with await trio.open_tcp_stream(host, port) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b"".join([part async for part in stream])
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def until_told(service: Served, enough: Callable[[Found], bool], host: str = LOOPBACK, port: int = 0) -> Found:
    """Scrape until it is `enough`: what is counted when a client has its answer is counted after that."""
    with trio.fail_after(PATIENCE):
        while not enough(found := await scrape(service, host, port)):  # noqa: ASYNC110 - it is another process
            await trio.sleep(0.1)  # the same text is given for a second
    return found


async def test_everything_that_happens_is_counted(tmp_path: Path) -> None:
    begun = time.time()
    async with neighbourhood(tmp_path, ADMIN) as service:
        for target in ("/", "/one", "/two"):
            assert await get(service, SITE, target) == 200
        assert await get(service, DOWN) == 502
        await talk(service, LIVE)
        said = await pass_through(service, PASSED)
        await be_refused(service, CLOSED)
        await be_refused(service, "nobody.test")
        (tmp_path / "config.toml").write_text("what is this?")
        assert "mistakes" in await service.ask("reload", dry_run=False)
        found = await until_told(
            service,
            lambda found: found["trioproxy_connections",] == 0 < found["trioproxy_event_loop_lag_seconds_count",],
        )

    assert found["trioproxy_connections_accepted_total", "https"] == 8
    assert found["trioproxy_requests_total", SITE, "200"] == 3
    assert found["trioproxy_requests_total", DOWN, "502"] == 1
    assert found["trioproxy_requests_total", LIVE, "101"] == 1
    assert (
        found["trioproxy_request_seconds_count", SITE] == found["trioproxy_request_seconds_bucket", "+Inf", SITE] == 3
    )
    assert 0 < found["trioproxy_request_seconds_sum", SITE] < time.time() - begun
    assert found["trioproxy_handshakes_total", SITE, "done"] == found["trioproxy_handshake_seconds_count", SITE] == 3
    assert found["trioproxy_bytes_total", "out", SITE] == 3 * len("hello")
    assert found["trioproxy_bytes_total", "in", LIVE] == found["trioproxy_bytes_total", "out", LIVE] == 6
    assert found["trioproxy_bytes_total", "in", PASSED] == said
    assert found["trioproxy_tunnels_total", "passthrough", PASSED, "done"] == 1
    assert found["trioproxy_refused_total", CLOSED] == found["trioproxy_refused_total", "other"] == 1
    assert sorted(value for key, value in found.items() if key[0] == "trioproxy_backend_up") == [0, 1, 1, 1]
    assert found["trioproxy_certificate_expiry_timestamp_seconds", SITE] > time.time() + 86400
    assert found["trioproxy_certificate_lifetime_seconds", SITE] > 86400
    assert found["trioproxy_reloads_total", "failed"] == 1
    assert begun - 1 < found["trioproxy_reload_success_timestamp_seconds",] < time.time()
    assert begun - 1 < found["process_start_time_seconds",] < time.time()
    assert found["process_open_fds",] < found["process_max_fds",]
    assert found["process_resident_memory_bytes",] > 20e6
    assert found["process_cpu_seconds_total",] > 0
    assert not any("nobody.test" in key for key in found), "what a client makes up is no label"


async def test_a_reload_moves_them_and_an_upgrade_hands_them_over(tmp_path: Path) -> None:
    async with neighbourhood(tmp_path, ADMIN) as service:
        file = tmp_path / "config.toml"
        text = file.read_text()
        assert await get(service, SITE) == 200
        before = await until_told(service, lambda found: found.get(("trioproxy_requests_total", SITE, "200")) == 1)
        port = int((await service.heard(r"metrics: http://127\.0\.0\.1:(\d+)/metrics"))[1])

        await service.ask("upgrade")
        after = await scrape(service)
        assert after["process_start_time_seconds",] > before["process_start_time_seconds",]
        await service.heard(r"stopped")  # the old process; there is no other listener now

        file.write_text(text.replace(ADMIN, f'[admin]\nmetrics = "127.0.0.2:{port}"\n'))
        changes = await service.ask("reload", dry_run=False)
        assert f"~ admin.metrics: 127.0.0.1:0 becomes 127.0.0.2:{port}" in changes["lines"]
        await until_told(service, lambda found: found["trioproxy_reloads_total", "succeeded"] == 1, "127.0.0.2", port)
        assert not accepts(LOOPBACK, port)

        with socket.create_server((LOOPBACK, 0)) as other:
            taken = other.getsockname()[1]
            file.write_text(text.replace(ADMIN, f'[admin]\nmetrics = "{LOOPBACK}:{taken}"\n'))
            result = await trio.to_thread.run_sync(trioproxy, tmp_path, "reload")
            assert (result.returncode, f"admin.metrics: {taken} is held by" in result.stderr) == (1, True)
        await scrape(service, "127.0.0.2", port)

        file.write_text(text.replace(ADMIN, ""))
        await service.ask("reload", dry_run=False)
        with trio.fail_after(PATIENCE):
            while accepts("127.0.0.2", port):  # noqa: ASYNC110 - the same
                await trio.sleep(0.01)


async def test_workers_are_measured_and_followed_as_one(tmp_path: Path) -> None:
    async with neighbourhood(tmp_path, f"{ADMIN}[process]\nworkers = 2\n") as service:
        async with traced(service, SITE) as trace:
            asked = 0
            while True:  # until either has had some: which of them gets a connection is the kernel's choice
                visits = [await service.visit(SITE) for _ in range(8)]
                asked += len(visits)
                for stream in visits:
                    assert (await Caller(stream).ask("GET", "/", SITE)).status == 200
                workers = (await service.ask("status"))["workers"]
                for stream in visits:
                    await trio.aclose_forcefully(stream)
                if len(workers) == 2 and all(worker["connections"] for worker in workers):
                    break
            victim = workers[0]["pid"]
            with trio.fail_after(PATIENCE):
                while trace.phases().count("closed") < asked:  # noqa: ASYNC110 - other processes
                    await trio.sleep(0.05)
        assert trace.phases().count("request") == asked
        assert len({event["connection"] for event in trace.events if event["phase"] == "hello"}) == asked
        requests = ("trioproxy_requests_total", SITE, "200")
        found = await until_told(service, lambda found: found.get(requests) == asked)
        assert found["process_resident_memory_bytes",] > 60e6, "three processes"
        assert found["trioproxy_reloads_total", "succeeded"] == 0

        os.kill(victim, signal.SIGKILL)
        await service.heard(rf"\(process {victim}\) has ended")
        first = await scrape(service)
        assert (await until_told(service, lambda found: found != first))[requests] == asked, "nothing is forgotten"


def accepts(host: str, port: int) -> bool:
    """Whether anybody listens there."""
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


def trioproxy(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    program = "from trioproxy.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, "--config", str(folder / "config.toml"), *arguments],
        capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_a_taken_port_ends_the_start(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        text = configuration(tmp_path, cloud=1) + f'[admin]\nmetrics = "{LOOPBACK}:{port}"\n'
        (tmp_path / "config.toml").write_text(text)
        done = trioproxy(tmp_path, "serve")
    assert done.returncode == 1
    assert f"admin.metrics: {port} is held by" in done.stderr
    assert "ready" not in done.stderr
