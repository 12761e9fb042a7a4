"""Thousands of passthrough connections to a real process: a reload drops none, and nothing of them stays."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.conftest import needs
from tests.e2e.network import Host
from tests.e2e.proxy import TRIOPROXY
from tests.e2e.software import PATIENCE, Software, eventually, running
from tests.wire.hellos import by_openssl

TUNNELS = 9_000
AT_A_TIME = 200
SPARE = 200
"""Descriptors that the proxy and the tests need beside two for each tunnel."""


@contextmanager
def descriptors(count: int) -> Iterator[int]:
    """Let this process and its children open `count` descriptors, or as many as they may; gives how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = min(count, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    try:
        yield allowed
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened(process: Software) -> int:
    """How many descriptors a process has open."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        assert more, f"the connection ended after {len(data)} bytes of {size}"
        data += more
    return data


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def open_tunnels(
    port: int, backend: socket.socket, hello: bytes, numbers: range, stack: ExitStack
) -> list[tuple[socket.socket, socket.socket]]:
    """Both ends of as many tunnels as `numbers` has: the client's socket and the backend's."""
    clients = {}
    for number in numbers:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE))
        client.sendall(hello + b"%08d" % number)  # so that the two ends find each other
        clients[number] = client
    ends = []
    for _ in numbers:
        far = stack.enter_context(backend.accept()[0])
        far.settimeout(PATIENCE)
        said = read_exactly(far, len(hello) + 8)
        assert said.startswith(hello)
        ends.append((clients.pop(int(said[-8:])), far))
    return ends


@needs("setpriv")
def test_a_reload_drops_none_of_thousands_of_idle_tunnels_and_their_end_leaves_nothing(tmp_path: Path) -> None:
    hello = by_openssl("pbx.test")
    config = tmp_path / "config.toml"
    here = Host("here", ("127.0.0.1",), "127.0.0.1", (), isolated=False)
    with ExitStack() as stack:
        allowed = stack.enter_context(descriptors(2 * TUNNELS + SPARE))
        count = min(TUNNELS, (allowed - SPARE) // 2)
        backend = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=AT_A_TIME))
        backend.settimeout(PATIENCE)
        port = free_port()
        config.write_text(
            f'[listen]\nhttps = ["127.0.0.1:{port}"]\nhttp = []\n'
            f'[passthrough]\n"pbx.test" = "127.0.0.1:{backend.getsockname()[1]}"\n'
            f"[limits]\nconnections = {2 * count}\nconnections_per_ip = {2 * count}\n"
            f'[storage]\npath = "{tmp_path}"\n'
        )
        proxy = stack.enter_context(running(here, TRIOPROXY, "--config", str(config), "serve"))
        proxy.wait_for(r"\bready\b")
        tunnels = open_tunnels(port, backend, hello, range(1), stack)
        before = opened(proxy) - 2
        for start in range(1, count, AT_A_TIME):
            tunnels += open_tunnels(port, backend, hello, range(start, min(start + AT_A_TIME, count)), stack)

        proxy.signal(signal.SIGHUP)
        proxy.wait_for("reloaded: ")
        for client, far in tunnels:
            client.sendall(b"forth")
            assert read_exactly(far, 5) == b"forth"
            far.sendall(b"back")
            assert read_exactly(client, 4) == b"back"

        for client, far in tunnels:
            client.close()
            far.close()
        eventually(lambda: opened(proxy) <= before, "all descriptors of the tunnels are closed")
        assert "Traceback" not in proxy.said()
