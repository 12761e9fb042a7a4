"""What self-hosters do: paste a line from the log, have an application on a unix socket, or a second one in reserve."""

from __future__ import annotations

import json
import re
import signal
import ssl
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
import trustme

from tests.conftest import needs
from tests.e2e.sites import Sites, loopback, routed, sites, sites_beside, written
from tests.e2e.software import Software, run, running
from tests.proxy.h2_backend import with_context
from tests.proxy.stage import HELLO, LOOPBACK, Recording, answering, backend, read_until

pytestmark = needs("curl", "setpriv")

NAME = "cloud.test"

BACKEND = str(Path(__file__).with_name("backend.py"))

APPLICATION = """
import json

async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "text": f"{scope['client'][0]}: {message['text']}"})
    elif scope["type"] == "http":
        size = 0
        while True:
            message = await receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):
                break
        seen = {"client": scope["client"][0], "scheme": scope["scheme"], "path": scope["path"], "size": size}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
"""


@contextmanager
def cloud(folder: Path) -> Iterator[tuple[Software, int]]:
    """The scene's HTTP service."""
    host = loopback()
    with running(host, sys.executable, BACKEND, LOOPBACK, str(host.port(80))) as software:
        software.wait_for("ready")
        yield software, host.port(80)


def ask(site: Sites, path: str, *options: str) -> tuple[int, str]:
    """Status and body of an answer to curl, by HTTP/2."""
    done = run(site.host, *site.curl(NAME, path, "--write-out", "\n%{http_version} %{http_code}", *options), check=True)
    body, _, last = done.stdout.decode().rpartition("\n")
    version, status = last.split()
    assert version == "2"
    return int(status), body


# ---- clients ------------------------------------------------------------------------------------------


@needs("h2load")
def test_h2load_gets_all_that_it_asks_for(tmp_path: Path) -> None:
    with cloud(tmp_path) as (_, port), sites(tmp_path, routed(cloud=f'"http://{LOOPBACK}:{port}"')) as site:
        resolved = ("--connect-to", site.at)
        load = ["h2load", "-n", "2000", "-c", "4", "-m", "60", *resolved, site.url(NAME, "/x")]
        said = run(site.host, *load, check=True).stdout.decode()
        assert "2000 succeeded, 0 failed, 0 errored" in said, said
        assert "2xx, 0 3xx, 0 4xx, 0 5xx" in said, said
        upload = tmp_path / "upload"
        upload.write_bytes(bytes(3_000_000))
        load = ["h2load", "-n", "20", "-c", "2", "-m", "5", "-d", str(upload), *resolved, site.url(NAME, "/x")]
        said = run(site.host, *load, check=True).stdout.decode()
        assert "20 succeeded, 0 failed, 0 errored" in said, said


def test_events_reach_curl_over_http2_within_milliseconds(tmp_path: Path) -> None:
    """Each is sent when the one before has arrived; the time includes two processes beside the proxy."""
    latencies: list[float] = []

    async def main() -> None:
        arrived = trio.Event()
        sent = 0.0

        async def events(stream: trio.SocketStream, recording: Recording) -> None:
            nonlocal arrived, sent
            await read_until(stream, recording, b"\r\n\r\n")
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
            for number in range(100):
                sent = trio.current_time()
                await stream.send_all(b"data: %d\n\n" % number)
                await arrived.wait()
                arrived = trio.Event()

        async with (
            backend(events) as (port, _),
            sites_beside(tmp_path, routed(cloud=f'"http://{LOOPBACK}:{port}"')) as site,
            trio.open_nursery() as nursery,
        ):
            command = site.curl(NAME, "/events")
            process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
            assert process.stdout is not None
            for number in range(100):
                assert b"data: %d\n\n" % number in await read_until(process.stdout, Recording(), b"\n\n")
                latencies.append(trio.current_time() - sent)
                arrived.set()
            await process.wait()
            await process.stdout.aclose()
            nursery.cancel_scope.cancel()

    trio.run(main)
    print(f"median {1000 * statistics.median(latencies):.2f} ms, worst {1000 * max(latencies):.2f} ms")
    assert statistics.median(latencies) < 0.02


# ---- backends -----------------------------------------------------------------------------------------


async def test_the_line_that_the_log_proposes_for_a_self_signed_backend_is_all_it_takes(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("nas.lan").configure_cert(context)
    async with backend(with_context(answering(HELLO), context)) as (port, _):
        there = f"https://{LOOPBACK}:{port}"
        async with sites_beside(tmp_path, routed(cloud=f'"{there}"')) as site:
            status, _ = await trio.to_thread.run_sync(ask, site, "/")
            assert status == 502
            line = await trio.to_thread.run_sync(site.software.wait_for, "is not trusted")
            found = re.search(r'verify = "sha256:[0-9a-f]{64}"', line)
            assert found, line
            written(site.proxy, routed(cloud=f'{{ to = "{there}", {found[0]} }}'))
            site.software.signal(signal.SIGHUP)
            await trio.to_thread.run_sync(site.software.wait_for, "reloaded")
            assert await trio.to_thread.run_sync(ask, site, "/") == (200, "hello")


async def test_a_backend_that_trusts_no_proxy_is_named_with_what_to_set(tmp_path: Path) -> None:
    """Home Assistant answers so until `http.trusted_proxies` names the proxy."""

    async def home(stream: trio.SocketStream, recording: Recording) -> None:
        while head := await read_until(stream, recording, b"\r\n\r\n"):
            refused = b"x-forwarded-for" in head.lower()
            status = b"400 Bad Request" if refused else b"200 OK"
            await stream.send_all(b"HTTP/1.1 %b\r\nContent-Length: 16\r\n\r\n400: Bad Request" % status)

    async with (
        backend(home) as (port, _),
        sites_beside(tmp_path, routed(cloud=f'"http://{LOOPBACK}:{port}"')) as site,
    ):
        for _ in range(3):
            assert await trio.to_thread.run_sync(ask, site, "/") == (400, "400: Bad Request")
        said = site.software.said()
    assert said.count("trusted_proxies") == 1
    assert f"http://{LOOPBACK}:{port} answered 400" in said


def test_uvicorn_on_a_unix_socket(tmp_path: Path) -> None:
    """It believes the forwarding fields of a socket's peer only when it is told to."""
    (tmp_path / "application.py").write_text(APPLICATION)
    socket = tmp_path / "app.sock"
    command = [sys.executable, "-m", "uvicorn", "application:app", "--app-dir", str(tmp_path), "--uds", str(socket)]
    options = ["--forwarded-allow-ips", "*", "--ws", "wsproto"]
    with running(loopback(), *command, *options) as uvicorn:
        uvicorn.wait_for("running on unix socket")
        with sites(tmp_path, routed(cloud=f'"unix:{socket}"')) as site:
            status, body = ask(site, "/some/path", "--data-binary", "@-")
            assert status == 200
            assert json.loads(body) == {"client": LOOPBACK, "scheme": "https", "path": "/some/path", "size": 0}
            status, body = ask(site, "/", "--data-binary", f"@{BACKEND}")
            assert json.loads(body)["size"] == len(Path(BACKEND).read_bytes())
            echo = str(Path(__file__).with_name("echo.py"))
            talk = [sys.executable, echo, "talk", LOOPBACK, str(site.port), f"{NAME}:{site.port}", "/ws"]
            said = run(site.host, *talk, str(site.root), "one", "two", check=True).stdout.decode()
            assert said.split("\n")[:2] == [f"{LOOPBACK}: one", f"{LOOPBACK}: two"]
            uvicorn.stop()
            status, _ = ask(site, "/")
            assert status == 502


def test_a_spare_backend_takes_over(tmp_path: Path) -> None:
    first, second = loopback(), loopback()
    start = [sys.executable, BACKEND, LOOPBACK]
    targets = ", ".join(f'"http://{LOOPBACK}:{host.port(80)}"' for host in (first, second))
    with running(second, *start, str(second.port(80))) as spare:
        spare.wait_for("ready")
        with sites(tmp_path, routed(cloud=f"{{ to = [{targets}] }}")) as site:
            with running(first, *start, str(first.port(80))) as main:
                main.wait_for("ready")
                assert ask(site, "/1")[0] == 200
                assert '"/1"' in main.wait_for("path")
            assert ask(site, "/2")[0] == 200
            assert '"/2"' in spare.wait_for("path")
            spare.stop()
            assert ask(site, "/3")[0] == 503
