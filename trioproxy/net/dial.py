"""Connecting to a backend: by its address, by its name, or to the first of several that answers.

An address is the common case and is connected to with as few steps as there are. Connecting over loopback ends within
the system call that begins it, and even then a non-blocking `connect` says only that it has begun; asked a second time
it says how it ended (connect(2)), so that nobody has to wait for what has happened already.

A name may have several addresses, and they are tried as RFC 8305 ("happy eyeballs") says: the families in turn, the
next one as soon as one has failed, or `ATTEMPT_DELAY` after the one before it without either being given up. The
attempts of one dial are sockets in one epoll, and the dialling task waits for that: no attempt is a task, so none can
be left behind.
"""

from __future__ import annotations

import errno
import math
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import trio
from trio.lowlevel import wait_readable

from trioproxy.config.model import HostPort
from trioproxy.errors import (
    CannotBeClient,
    OutOfDescriptors,
    StreamTimeout,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from trioproxy.net.failover import Failover
from trioproxy.net.listen import EXHAUSTED, ROOM_PAUSE
from trioproxy.net.raw import Socket
from trioproxy.net.resolve import BAD_FOR, Address, Answer, Resolver, literal
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.transparent import family_of, speak_as

ATTEMPT_DELAY = 0.25
"""Seconds between the beginnings of two attempts (RFC 8305 section 8, "Connection Attempt Delay")."""

UNDER_WAY = (errno.EINPROGRESS, errno.EALREADY)

FULL_PAUSE = 0.02
"""Seconds between two attempts at a unix socket whose queue is full: the kernel tells nobody when it has room again."""


class Dialler:
    """Connects to backends, and remembers their addresses and which of them failed.

    Args:
        reaper: Looks after the streams.
        resolver: Knows the addresses of names.

    Attributes:
        make_room: Called when there are no descriptors left; closes idle connections, and returns how many.
        reached: Whether the last attempt at each address succeeded. Who demands more than a connection may correct it.
    """

    def __init__(self, reaper: Reaper, resolver: Resolver | None = None) -> None:
        self._reaper = reaper
        self._resolver = resolver or Resolver()
        self._failover: Failover[HostPort] = Failover()
        self.make_room: Callable[[], int] = lambda: 0
        self.reached: dict[HostPort | Path, bool] = {}

    async def dial(self, address: HostPort | Path, deadline: float = math.inf, *, client: str = "") -> Stream:
        """Connect to `address`; a name is resolved now, not at start.

        Args:
            address: Where to; a path is that of a unix socket.
            deadline: Trio time by which the connection must stand.
            client: The address literal to speak from (`client_ip = "transparent"`); "" for our own.

        Raises:
            UpstreamUnreachable: the name does not resolve, or nobody answers there.
            UpstreamTimeout: the deadline passed.
            CannotBeClient: the backend cannot be called from the address of `client`.
            OutOfDescriptors: we lack what a connection takes, and no idle one could be closed for it.
        """
        try:
            stream = await self._dial_with_room(address, deadline, client)
        except (UpstreamUnreachable, UpstreamTimeout):
            self.reached[address] = False
            raise
        self.reached[address] = True
        return stream

    async def _dial_with_room(self, address: HostPort | Path, deadline: float, client: str) -> Stream:
        try:
            return await self._dial(address, deadline, client)
        except OutOfDescriptors:
            if not self.make_room():
                raise
        await trio.sleep(ROOM_PAUSE)  # each connection that was told to go closes its own descriptors
        return await self._dial(address, deadline, client)

    async def _dial(self, address: HostPort | Path, deadline: float, client: str) -> Stream:
        if isinstance(address, Path):
            return await self._dial_unix(address, deadline)
        known = literal(address.host)
        if known is None:
            return await self._dial_name(address, deadline, client)
        if client:
            _reachable_as(client, address, [known])
        sock = _open(address, known.family, client)
        stream = Stream(sock, self._reaper)
        try:
            failure = _connect(sock, known.at(address.port))
            if failure in UNDER_WAY:
                stream.deadline = deadline
                await stream.wait_writable()
                stream.deadline = math.inf
                failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise _unreachable(address, failure)
        except StreamTimeout as exc:
            stream.close()
            raise _timeout(address) from exc
        except BaseException:
            stream.close()
            raise
        return stream

    async def _dial_unix(self, path: Path, deadline: float) -> Stream:
        try:
            sock = Socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as exc:
            raise _no_socket(path, exc) from exc
        try:
            while True:
                try:
                    failure = sock.connect_ex(os.fspath(path))
                except OSError as exc:  # a path longer than an address can be
                    raise UpstreamUnreachable(f"{path}: {exc}") from exc
                if not failure:
                    return Stream(sock, self._reaper)
                if failure != errno.EAGAIN:
                    raise _unreachable(path, failure)
                if trio.current_time() >= deadline:
                    raise _timeout(path)
                await trio.sleep(FULL_PAUSE)
        except BaseException:
            sock.close()
            raise

    async def dial_first(
        self, addresses: Sequence[HostPort], patience: float, *, client: str = ""
    ) -> tuple[HostPort, Stream]:
        """Connect to the first of `addresses` that answers, in their order.

        One that failed is set aside: for a while the others are tried before it. With all of them set aside, all are
        tried as if none were.

        Args:
            addresses: At least one.
            patience: Seconds that each may take to answer.
            client: As for `dial`.

        Returns:
            The one that answered, and the connection.

        Raises:
            UpstreamError: as for `dial`, of the last one that was tried.
        """
        if len(addresses) == 1:
            return addresses[0], await self.dial(addresses[0], trio.current_time() + patience, client=client)
        *others, last = self._failover.in_turn(addresses, trio.current_time())
        for address in others:
            try:
                return address, await self._try(address, patience, client)
            except UpstreamError:
                continue
        return last, await self._try(last, patience, client)

    async def _try(self, address: HostPort, patience: float, client: str) -> Stream:
        began = trio.current_time()
        self._failover.begin(address, began, patience)
        try:
            stream = await self.dial(address, began + patience, client=client)
        except (CannotBeClient, OutOfDescriptors):  # which say nothing about the backend
            raise
        except UpstreamError as exc:
            self._failover.failed(address, str(exc), began, trio.current_time())
            raise
        self._failover.answered(address)
        return stream

    # ---- names --------------------------------------------------------------------------------------

    async def _dial_name(self, address: HostPort, deadline: float, client: str) -> Stream:
        with trio.move_on_at(deadline):
            answer = await self._resolver.resolve(address.host)
            try:
                return await self._connect_to_one(address, answer, client)
            except UpstreamUnreachable as exc:
                failure = exc
            # An answer that was kept may have become wrong since; one that has only just come has not.
            now = trio.current_time()
            if now < answer.came + BAD_FOR:
                raise failure
            newer = await self._resolver.resolve(address.host, since=now)
            if set(newer.addresses) == set(answer.addresses):
                raise failure
            return await self._connect_to_one(address, newer, client)
        self._resolver.forget(address.host)
        raise _timeout(address)

    async def _connect_to_one(self, address: HostPort, answer: Answer, client: str) -> Stream:
        if answer.problem:
            raise UpstreamUnreachable(f"{address}: the name does not resolve ({answer.problem})")
        addresses = _reachable_as(client, address, answer.addresses) if client else answer.addresses
        return Stream(await _Race(address, addresses, client).run(), self._reaper)


class _Race:
    """The connection attempts of one dial to a name. Leaving it closes all but the one that won.

    Attributes:
        waiting: Addresses to which no attempt was made yet.
        under_way: The attempts whose outcome is not known, by descriptor.
    """

    def __init__(self, address: HostPort, addresses: Sequence[Address], client: str) -> None:
        self._address = address
        self._client = client
        self._lost: list[str] = []
        self.waiting = deque(addresses)
        self.under_way: dict[int, tuple[Address, Socket]] = {}
        try:
            self._outcomes = select.epoll()
        except OSError as exc:
            raise _no_socket(address, exc) from exc

    async def run(self) -> Socket:
        """The first socket that is connected."""
        try:
            while self.waiting or self.under_way:
                connected = self._begin_next()
                if connected is None and self.under_way:
                    connected = await self._outcome(ATTEMPT_DELAY if self.waiting else math.inf)
                if connected is not None:
                    return connected
        finally:
            self._outcomes.close()
            for _, sock in self.under_way.values():
                sock.close()
        raise UpstreamUnreachable(f"{self._address}: {', '.join(self._lost)}")

    def _begin_next(self) -> Socket | None:
        """Begin attempts until one does not fail at once; its socket, if it is connected at once."""
        while self.waiting:
            where = self.waiting.popleft()
            try:
                sock = _open(self._address, where.family, self._client)
            except UpstreamUnreachable as exc:
                self._lost.append(str(exc))
                continue
            failure = _connect(sock, where.at(self._address.port))
            if failure in UNDER_WAY:
                self.under_way[sock.fileno()] = where, sock
                self._outcomes.register(sock, select.EPOLLOUT)
                return None
            if self._stands(where, sock, failure):
                return sock
        return None

    async def _outcome(self, seconds: float) -> Socket | None:
        """Wait until an attempt has ended, but no longer than `seconds`; its socket, if it is connected."""
        with trio.move_on_after(seconds):
            await wait_readable(self._outcomes.fileno())
        for descriptor, _ in self._outcomes.poll(0):
            where, sock = self.under_way.pop(descriptor)
            if self._stands(where, sock, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
                return sock
        return None

    def _stands(self, where: Address, sock: Socket, failure: int) -> bool:
        if failure:
            sock.close()
            self._lost.append(f"{os.strerror(failure)} ({where.host})")
        return not failure


# ---- one attempt --------------------------------------------------------------------------------------


def _reachable_as(client: str, address: HostPort, addresses: Sequence[Address]) -> list[Address]:
    """Those of `addresses` that are of the client's family: nobody can be called from an address of the other one."""
    family = family_of(client)
    same = [a for a in addresses if a.family == family]
    if not same:
        theirs, its = ("IPv6", "IPv4") if family == socket.AF_INET6 else ("IPv4", "IPv6")
        raise CannotBeClient(
            f"{address} has only {its}, and the client's own address is {theirs}, so it cannot be passed on: give the "
            f'backend an {theirs} address too, or use client_ip = "proxy-v2" if it speaks the PROXY protocol'
        )
    return same


def _open(address: HostPort, family: socket.AddressFamily, client: str) -> Socket:
    """A socket that may be connected to a backend."""
    try:
        sock = Socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as exc:
        raise _no_socket(address, exc) from exc
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if client:
            speak_as(sock, client)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(sock: Socket, where: tuple[str, int] | tuple[str, int, int, int]) -> int:
    """Begin to connect. Returns an errno: 0 once it stands, one of `UNDER_WAY`, or why it failed."""
    failure = sock.connect_ex(where)
    return sock.connect_ex(where) if failure == errno.EINPROGRESS else failure


def _no_socket(address: HostPort | Path, exc: OSError) -> UpstreamError:
    kind = OutOfDescriptors if exc.errno in EXHAUSTED else UpstreamUnreachable
    return kind(f"{address}: {exc.strerror}")


def _unreachable(address: HostPort | Path, failure: int) -> UpstreamUnreachable:
    return UpstreamUnreachable(f"{address}: {os.strerror(failure)}")


def _timeout(address: HostPort | Path) -> UpstreamTimeout:
    return UpstreamTimeout(f"{address}: no answer to the connection attempt")
