"""Sockets that are passed: taken, told apart, refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError
from trioproxy.process.activation import passed_sockets

PID = 77


@pytest.fixture
def three() -> Iterator[list[socket.socket]]:
    """Listening sockets at three descriptors in a row, which whoever takes them owns."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    first = 700
    for number, sock in enumerate(socks):
        os.dup2(sock.fileno(), first + number)
    yield socks
    for sock in socks:
        sock.close()


def test_they_are_taken_with_their_names_and_the_variables_go(three: list[socket.socket]) -> None:
    environ = {"LISTEN_PID": "77", "LISTEN_FDS": "3", "LISTEN_FDNAMES": "https:trioproxy.socket:http", "HOME": "/"}
    passed = passed_sockets(environ, PID, 700)
    assert [p.name for p in passed] == ["https", "", "http"]
    assert [p.address for p in passed] == [HostPort(*sock.getsockname()) for sock in three]
    assert not any(p.sock.getblocking() or os.get_inheritable(p.sock.fileno()) for p in passed)
    assert environ == {"HOME": "/"}
    for p in passed:
        p.sock.close()


def test_those_for_another_process_are_not_ours() -> None:
    environ = {"LISTEN_PID": "78", "LISTEN_FDS": "3"}
    assert passed_sockets(environ, PID) == ()
    assert environ == {}
    assert passed_sockets({}, PID) == ()


def _refused(sock: socket.socket, problem: str) -> None:
    os.dup2(sock.fileno(), 700)
    with pytest.raises(ListenError, match=problem):
        passed_sockets({"LISTEN_PID": "77", "LISTEN_FDS": "1"}, PID, 700)


def test_what_cannot_be_listened_on_is_refused() -> None:
    with socket.socket() as plain:
        _refused(plain, "does not listen")
    with socket.socket(socket.AF_UNIX) as local:
        _refused(local, "no TCP socket")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        _refused(datagrams, "no TCP socket")
    with pytest.raises(ListenError, match="no socket"):
        passed_sockets({"LISTEN_PID": "77", "LISTEN_FDS": "1"}, PID, 701)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_a_socket_for_both_ip_versions_is_refused() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as both:
        _refused(both, "BindIPv6Only=ipv6-only")
