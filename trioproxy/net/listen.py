"""Listeners: binding them all before anything is served, and accepting.

Accepting goes on whatever happens. When descriptors have run out, a connection that waits to be accepted keeps the
listener readable, and trying again at once would be a busy loop. So room is made (`Shedder.make_room`), and while
there is none we pause. What still waits after `PATIENCE` is turned away, so that its client learns of it: that takes
a descriptor, and `_Exhaustion` keeps one in reserve.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import attrs
import trio
from trio.lowlevel import checkpoint, wait_readable

from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError
from trioproxy.net.limits import Shedder
from trioproxy.net.raw import Socket, accept

log = logging.getLogger("trioproxy.listen")

BACKLOG = 4096
"""Connections that may wait to be accepted; the kernel lowers it to net.core.somaxconn."""

DEFER_SECONDS = 1
"""How long the kernel keeps a connection to itself on which nothing has come; then it is accepted, and our limits
hold. It counts in retransmissions, each twice as long as the one before: 5 would be seven seconds."""

ACCEPTS_IN_A_ROW = 64

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)

EXHAUSTED_PAUSE = 0.1
"""Seconds without accepting after descriptors or memory ran out; connections wait in the kernel meanwhile."""

ROOM_PAUSE = 0.01
"""The same after idle connections were told to end: it takes that long until they have."""

PATIENCE = 1.0
"""Seconds that connections wait for room before they are turned away."""


@attrs.define  # and not frozen, which takes four times as long to make: each connection has one
class Peer:
    """Where a connection comes from. Nobody changes it.

    Attributes:
        host: The client's address, an IPv4 or IPv6 literal without scope.
        port: Its port; 0 when that is not known, for the address is one that a proxy has told of.
        number: Tells the connection apart from all others of this process, from when it was accepted; 0 for none.
        local: What it connected to, where a PROXY header has told; else the socket knows.
    """

    host: str
    port: int
    number: int = attrs.field(default=0, eq=False)
    local: HostPort | None = None

    @property
    def address(self) -> str:
        """Its address and port, as they are written."""
        return str(HostPort(self.host, self.port)) if self.port else self.host

    def __str__(self) -> str:
        """For the log, where everything that is told of the connection has its number."""
        return f"{self.address} #{self.number}"


Handler = Callable[[Socket, Peer], object]
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
        prepare(sock)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


def prepare(sock: socket.socket) -> None:
    """Set what a listening socket of ours is to have, whoever has bound it. Raises OSError."""
    # Accepted sockets inherit both: no small write waits for an acknowledgement, and a vanished peer is noticed.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # On both ports the client speaks first: it is not worth waking anybody before it has.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_SECONDS)


async def accept_forever(
    listener: socket.socket, handle: Handler, shedder: Shedder | None = None, numbers: Iterator[int] | None = None
) -> None:
    """Accept connections and hand each to `handle`, until cancelled.

    Args:
        listener: Listens, and does not block.
        handle: Takes over what was accepted.
        shedder: Makes room when descriptors have run out.
        numbers: Gives each connection its own, among all that are accepted by these.
    """
    family = listener.family
    numbers = numbers or itertools.count(1)
    with _Exhaustion(listener, shedder or Shedder()) as exhaustion:
        while True:
            for _ in range(ACCEPTS_IN_A_ROW):
                try:
                    sock, address = accept(listener, family)
                except BlockingIOError:
                    await wait_readable(listener.fileno())
                    continue
                except OSError as exc:
                    if exc.errno in EXHAUSTED:
                        await exhaustion.relieve(exc)
                    # Anything else concerns the one connection that was to be accepted: accept(2), "Error handling".
                    continue
                if exhaustion.since is not None:
                    exhaustion.over()
                handle(sock, Peer(address[0].partition("%")[0], address[1], next(numbers)))
            await checkpoint()


class _Exhaustion:
    """What is done about a lack of descriptors or memory.

    Attributes:
        since: The Trio time since when nothing could be accepted; None while there is no lack.
    """

    def __init__(self, listener: socket.socket, shedder: Shedder) -> None:
        self.since: float | None = None
        self._listener = listener
        self._shedder = shedder
        self._reserve: int | None = None

    def __enter__(self) -> Self:
        self._keep_reserve()
        return self

    def __exit__(self, *_: object) -> None:
        self._give_reserve()

    async def relieve(self, exc: OSError) -> None:
        """Accepting has failed with `exc`: make room, wait for some, or turn away whoever waits."""
        now = trio.current_time()
        if self.since is None:
            self.since = now
        message = f"cannot accept connections: {exc.strerror}; idle ones are closed until there is room"
        self._shedder.tally.note("attempts to accept in vain", message)
        if self._shedder.make_room():
            await trio.sleep(ROOM_PAUSE)
        elif now < self.since + PATIENCE or not self._turn_away():
            await trio.sleep(EXHAUSTED_PAUSE)

    def over(self) -> None:
        """A connection was accepted again."""
        self.since = None
        self._shedder.tally.note("recoveries from a lack of descriptors", "accepting connections again")
        if self._reserve is None:
            self._keep_reserve()

    def _turn_away(self) -> bool:
        """Accept one connection by the reserve, and close it. Returns whether that was possible."""
        self._give_reserve()
        try:
            self._listener.accept()[0].close()
        except OSError:
            return False
        finally:
            self._keep_reserve()
        return True

    def _keep_reserve(self) -> None:
        with contextlib.suppress(OSError):  # a thread was faster; there will be a next time
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _give_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None


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
