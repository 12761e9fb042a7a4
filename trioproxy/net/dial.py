"""Connecting to a backend."""

from __future__ import annotations

import errno
import functools
import ipaddress
import math
import os
import socket

import trio

from trioproxy.config.model import HostPort
from trioproxy.errors import StreamTimeout, UpstreamTimeout, UpstreamUnreachable
from trioproxy.net.sock import Reaper, Stream


async def dial(address: HostPort, reaper: Reaper, deadline: float = math.inf) -> Stream:
    """Connect to `address`.

    An address is connected to directly. A name is resolved now, not at start, and its addresses are tried as RFC 8305
    (happy eyeballs) says, which Trio does well.

    Args:
        address: Where to.
        reaper: Who looks after the new stream.
        deadline: Trio time by which the connection must stand.

    Raises:
        UpstreamUnreachable: the name does not resolve, or nobody answers there.
        UpstreamTimeout: the deadline passed.
    """
    family = _literal_family(address.host)
    if family is None:
        return await _dial_name(address, reaper, deadline)
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise UpstreamUnreachable(f"{address}: {exc.strerror}") from exc
    stream = Stream(sock, reaper)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        failure = sock.connect_ex((address.host, address.port))
        if failure == errno.EINPROGRESS:
            stream.deadline = deadline
            await stream.wait_writable()
            stream.deadline = math.inf
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            raise UpstreamUnreachable(f"{address}: {os.strerror(failure)}")
    except StreamTimeout as exc:
        stream.close()
        raise UpstreamTimeout(f"{address}: no answer to the connection attempt") from exc
    except BaseException:
        stream.close()
        raise
    return stream


async def _dial_name(address: HostPort, reaper: Reaper, deadline: float) -> Stream:
    with trio.move_on_at(deadline):
        try:
            connected = await trio.open_tcp_stream(address.host, address.port)
        except socket.gaierror as exc:
            raise UpstreamUnreachable(f"{address}: the name does not resolve ({exc.strerror})") from exc
        except OSError as exc:
            raise UpstreamUnreachable(f"{address}: {exc.strerror or exc}") from exc
        sock = socket.socket(fileno=connected.socket.detach())
        sock.setblocking(False)
        return Stream(sock, reaper)
    raise UpstreamTimeout(f"{address}: no answer to the connection attempt")


@functools.lru_cache(maxsize=4096)
def _literal_family(host: str) -> socket.AddressFamily | None:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    return socket.AF_INET if version == 4 else socket.AF_INET6
