"""Listeners: binding them all before anything is served, and accepting."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import attrs
import trio
from trio.lowlevel import checkpoint, wait_readable

from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError

log = logging.getLogger("trioproxy.listen")

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn."""

DEFER_SECONDS = 5
"""How long the kernel keeps a connection to itself on which nothing has come; then it is accepted, and our limits hold."""

ACCEPTS_IN_A_ROW = 64

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

EXHAUSTED_PAUSE = 0.1
"""Seconds without accepting after descriptors or memory ran out; connections wait in the kernel meanwhile."""


@attrs.frozen
class Peer:
    """Where a connection comes from.

    Attributes:
        host: The client's address, an IPv4 or IPv6 literal without scope.
        port: Its port.
        local: What it connected to, where a PROXY header has told; else the socket knows.
    """

    host: str
    port: int
    local: HostPort | None = None

    def __str__(self) -> str:
        return str(HostPort(self.host, self.port))


Handler = Callable[[socket.socket, Peer], object]
"""Takes over a non-blocking, accepted socket; it must not block or fail."""


def bind(addresses: Iterable[HostPort], *, optional: bool) -> list[socket.socket]:
    """Bind and listen on every address, or on none.

    Args:
        addresses: Literal addresses; `::` is IPv6 only, so that `0.0.0.0` can stand beside it.
        optional: Skip, with a log line, an address whose family this kernel lacks.

    Raises:
        ListenError: an address is taken (the message names by whom) or cannot be bound.
    """
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            try:
                bound.append(_bind_one(address))
            except OSError as exc:
                if optional and exc.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    log.info("not listening on %s: this machine has no such address family", address)
                    continue
                raise ListenError(_explain(address, exc)) from exc
    except ListenError:
        for sock in bound:
            sock.close()
        raise
    return bound


def _bind_one(address: HostPort) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit both: no small write waits for an acknowledgement, and a vanished peer is noticed.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # On both ports the client speaks first: it is not worth waking anybody before it has.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


async def accept_forever(listener: socket.socket, handle: Handler) -> None:
    """Accept connections and hand each to `handle`, until cancelled."""
    exhausted = False
    while True:
        for _ in range(ACCEPTS_IN_A_ROW):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await wait_readable(listener.fileno())
                continue
            except OSError as exc:
                if exc.errno in EXHAUSTED:
                    if not exhausted:
                        log.error("cannot accept connections: %s; they wait until others have ended", exc.strerror)
                    exhausted = True
                    await trio.sleep(EXHAUSTED_PAUSE)
                # Anything else concerns the one connection that was to be accepted: accept(2), "Error handling".
                continue
            if exhausted:
                log.warning("accepting connections again")
                exhausted = False
            sock.setblocking(False)
            handle(sock, Peer(address[0].partition("%")[0], address[1]))
        await checkpoint()


def _explain(address: HostPort, exc: OSError) -> str:
    if exc.errno == errno.EADDRINUSE:
        holder = port_holder(address.port)
        if holder is None:
            return f"{address.port} is held by another process (run as root to see which): stop it first"
        name, pid = holder
        advice = "stop it"
        if address.port == 443:
            advice = 'stop it, or let it listen on 1443 and add [passthrough] "*" = "127.0.0.1:1443"'
        return f"{address.port} is held by {name} (pid {pid}): {advice}"
    if exc.errno == errno.EACCES:
        return (
            f"{address}: not allowed to bind a port below 1024: run as root, or give the process CAP_NET_BIND_SERVICE "
            "(AmbientCapabilities= in a systemd unit)"
        )
    if exc.errno == errno.EADDRNOTAVAIL:
        return f"{address}: no interface of this machine has this address"
    return f"{address}: cannot listen: {exc.strerror or exc}"


def port_holder(port: int) -> tuple[str, int] | None:
    """Name and pid of the process that listens on a TCP port, if this user may see it (Linux, /proc)."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            listening = fields[3] == "0A"  # TCP_LISTEN, include/net/tcp_states.h
            if listening and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended, or it is not ours to look into
            if any(_link(descriptor) in inodes for descriptor in (process / "fd").iterdir()):
                return (process / "comm").read_text().strip(), int(process.name)
    return None


def _link(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except OSError:  # closed meanwhile
        return ""
