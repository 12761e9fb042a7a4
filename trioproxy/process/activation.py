"""Sockets that systemd has bound for us: sd_listen_fds(3), by hand.

They lie at descriptors from 3 on. Each is told apart by its FileDescriptorName= in the socket unit, "https" or "http",
or by the address that it listens on.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

import attrs

from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError

FIRST = 3
"""SD_LISTEN_FDS_START."""

_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@attrs.frozen
class Passed:
    """A listening socket that somebody else has bound.

    Attributes:
        name: What its owner calls it; "" where that is nothing that says what it is for.
        address: Where it listens.
        sock: The socket, non-blocking.
    """

    name: str
    address: HostPort
    sock: socket.socket


def passed_sockets(environ: MutableMapping[str, str], pid: int, first: int = FIRST) -> tuple[Passed, ...]:
    """The sockets that systemd has passed to this process; the variables that say so are taken out of `environ`.

    Raises:
        ListenError: one is no TCP socket that listens, or one for both IP versions.
    """
    meant, count, names = (environ.pop(variable, "") for variable in _VARIABLES)
    if meant != str(pid) or not count.isdecimal():  # for another process, whose child we are
        return ()
    called = names.split(":") if names else []
    found = []
    for number in range(int(count)):
        name = called[number] if number < len(called) else ""
        found.append(adopt(first + number, name if name in ("https", "http") else ""))
    return tuple(found)


def adopt(descriptor: int, name: str) -> Passed:
    """The listening TCP socket at `descriptor`.

    Raises:
        ListenError: it is none, or one for both IP versions.
    """
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise ListenError(f"descriptor {descriptor}, said to be passed to this process, is no socket: {exc}") from exc
    if problem := _unfit(sock):
        sock.close()
        raise ListenError(f"descriptor {descriptor} was passed to this process and {problem}")
    os.set_inheritable(descriptor, False)
    sock.setblocking(False)
    host, port = sock.getsockname()[:2]
    return Passed(name, HostPort(host.partition("%")[0], port), sock)


def _unfit(sock: socket.socket) -> str:
    """Why we cannot accept from a socket, and what would be right; "" if we can."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        return f"is no TCP socket: {_ADVICE}"
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return f"does not listen: {_ADVICE}"
    if sock.family == socket.AF_INET6 and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return (
            f"takes IPv4 connections besides those for {HostPort(*sock.getsockname()[:2])}, whose clients would be "
            "disguised: set BindIPv6Only=ipv6-only in its unit, and name 0.0.0.0 too"
        )
    return ""


_ADVICE = "ListenStream= with a port, and Accept=no, is what its socket unit needs"
