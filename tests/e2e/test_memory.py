"""A limit of memory, kept by a real server against clients that come, ask once and never leave."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.sites import Sites, sites
from tests.proxy.stage import LOOPBACK

NAME = "quiet.test"
MIB = 1024**2
CLIENTS = 950
"""With TLS they take 20 MiB, and the server may have 17 besides what it has when it is empty."""

SITE = f'[sites."{NAME}"]\n"/" = {{ redirect = "https://elsewhere.test/" }}\ntls = "internal"\n'


@pytest.fixture(autouse=True)
def _descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def peak(running: Sites) -> float:
    """MiB that the server has had in memory at once."""
    status = Path(f"/proc/{running.software.pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))


def caller(running: Sites) -> Callable[[], ssl.SSLSocket]:
    """Connects, asks once, and stays."""
    trust = running.trust()
    session: ssl.SSLSession | None = None  # resumed, for a handshake costs the test more than all the rest

    def call() -> ssl.SSLSocket:
        nonlocal session
        plain = socket.create_connection((LOOPBACK, running.port), 30)
        sock = trust.wrap_socket(plain, server_hostname=NAME, session=session)
        sock.sendall(f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 308 ")
        session = session or sock.session
        return sock

    return call


def closed(client: ssl.SSLSocket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) == b""
    except ssl.SSLWantReadError:
        return False


def test_idle_clients_make_room_before_the_limit_is_passed_and_all_who_come_are_served(tmp_path: Path) -> None:
    with contextlib.ExitStack() as clients:
        with sites(tmp_path / "unlimited", SITE) as running:
            clients.enter_context(caller(running)())
            limit = max(64, round(peak(running)) + 17)  # there are no limits below 64 MiB
        limits = f'[limits]\nconnections_per_ip = 10000\nmemory = "{limit}MiB"\n'
        with sites(tmp_path / "limited", SITE + limits) as running:
            call = caller(running)
            idle = [clients.enter_context(call()) for _ in range(CLIENTS)]  # each is served, however many there are
            assert peak(running) < limit
            gone = [closed(client) for client in idle]
            said = running.software.said()
    assert CLIENTS // 10 < sum(gone) < CLIENTS * 3 // 4  # some had to go, and no more than had to
    assert not any(gone[-50:]), "the longest idle go first"
    assert said.count(f"and limits.memory is {limit}: idle ones make room for new ones") == 1
    assert "more memory" not in said
