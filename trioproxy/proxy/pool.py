"""The connections to the backends of sites: those of HTTP/1.1 that are idle, those of HTTP/2 that are shared.

What there is, `claim` gives at once. What there is not, `connect` makes. A backend that speaks HTTP/2 has one
connection for all its requests, and further ones when that is full; while it is being made, others wait for it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from trioproxy.config.model import Timeouts
from trioproxy.errors import OutOfDescriptors, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from trioproxy.http.alpn import HTTP11, spoken
from trioproxy.net.dial import Dialler
from trioproxy.net.failover import Failover
from trioproxy.net.raw import keep_alive
from trioproxy.net.sock import Reaper, Stream
from trioproxy.proxy.reach import Reach
from trioproxy.proxy.seldom import Seldom
from trioproxy.proxy.upstream import Backend, Upstream
from trioproxy.proxy.upstream_h1 import H1Upstream

if TYPE_CHECKING:
    from trioproxy.proxy.multiplex import H2Connection

IDLE_PER_BACKEND = 128
"""Idle connections kept for one backend; the oldest goes when there are more. A single HTTP/2 client may have so many
requests under way, and with fewer each of its bursts would dial anew what the one before it had closed."""

IDLE_SECONDS = 30.0
"""How long an idle one is kept. Below the keep-alive limits that backends commonly have (Node 5 s is the exception,
nginx 75 s, Apache 5 s): a connection that the backend has closed meanwhile is noticed before it is reused."""

HINT_AGAIN = 3600.0
"""Seconds after which something is explained again."""


class _Dial:
    """A connection that is being made for all who want it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: UpstreamError | None = None


class Pool:
    """Connections by backend.

    Attributes:
        hints: Whose answers were explained in the log a while ago.
    """

    def __init__(self, dialler: Dialler, reaper: Reaper) -> None:
        self.hints = Seldom(HINT_AGAIN)
        self._reach = Reach(dialler)
        self._reaper = reaper
        self._failover: Failover[Backend] = Failover()
        self._idle: dict[Backend, deque[H1Upstream]] = {}
        self._shared: dict[Backend, list[H2Connection]] = {}
        self._dials: dict[Backend, _Dial] = {}
        self._h1_only: set[Backend] = set()  # those that asked for it (HTTP_1_1_REQUIRED)
        self._protocols, self._lacking = spoken()
        self._nursery: trio.Nursery | None = None  # of the shared connections

    # ---- what there is ----------------------------------------------------------------------------------

    def claim(self, backend: Backend, upgrade: bytes | None = None) -> Upstream | None:
        """A way to `backend` over a connection that stands, if there is one.

        That is one of HTTP/2 with room, or the most recently used idle one on which nothing unexpected has come.

        Args:
            backend: Whom, and on what terms.
            upgrade: The protocol that the request wants to change to.
        """
        if upgrade is None and self._shared and (connection := self._with_room(backend)) is not None:
            return connection.open()
        return self.idle(backend)

    def idle(self, backend: Backend) -> H1Upstream | None:
        """As `claim`, of those of HTTP/1.1 alone."""
        idle = self._idle.get(backend)
        while idle:
            upstream = idle.pop()
            if upstream.quiet():
                return upstream
            upstream.close()
        return None

    def _with_room(self, backend: Backend) -> H2Connection | None:
        return next((connection for connection in self._shared.get(backend, ()) if connection.room), None)

    def _take_back(self, upstream: H1Upstream) -> None:
        idle = self._idle.get(upstream.backend)
        if idle is None:
            idle = self._idle[upstream.backend] = deque()
        upstream.idle_since = self._reaper.now()
        idle.append(upstream)
        if len(idle) > IDLE_PER_BACKEND:
            idle.popleft().close()

    # ---- what there is not ------------------------------------------------------------------------------

    async def connect(self, backend: Backend, timeouts: Timeouts, upgrade: bytes | None = None) -> Upstream:
        """A way to `backend` over a new connection, or over one of HTTP/2 that was made meanwhile.

        Args:
            backend: Whom, and on what terms.
            timeouts: `connect` bounds the dialling and the TLS handshake together.
            upgrade: As for `claim`. Over TLS the connection is then one of HTTP/1.1, which every backend speaks.

        Raises:
            UpstreamUnreachable: it does not resolve, answer, or prove who it is.
            UpstreamTimeout: that took longer than `timeouts.connect`.
        """
        deadline = trio.current_time() + timeouts.connect
        if backend.scheme == "h2c":
            return await self._connect_h2c(backend, timeouts, deadline, upgrade)
        if backend.tls is None or upgrade is not None or backend.for_anyone() in self._h1_only:
            return self._alone(await self._reach.connect(backend, deadline, HTTP11), backend, timeouts)
        if backend in self._shared:
            return (await self._share(backend, timeouts, deadline)).open()
        stream = await self._reach.connect(backend, deadline, self._protocols)
        if stream.alpn() != "h2":
            return self._alone(stream, backend, timeouts)
        if (connection := self._with_room(backend)) is not None:  # many who came first have dialled at once
            stream.close()
            return connection.open()
        return self._begin(stream, backend, timeouts).open()

    async def _connect_h2c(
        self, backend: Backend, timeouts: Timeouts, deadline: float, upgrade: bytes | None
    ) -> Upstream:
        if self._lacking:
            raise UpstreamUnreachable(f"{backend}: h2c needs ngh2, and that does not load: {self._lacking}")
        if upgrade is None:
            return (await self._share(backend, timeouts, deadline)).open()
        if upgrade == b"websocket":
            connection = await self._share(backend, timeouts, deadline)
            await self._settled(connection, deadline)
            if connection.room and connection.extended_connect:
                return connection.open()
        # What has no other way is asked for by HTTP/1.1, which many that speak h2c speak at the same port.
        backend = backend._replace(scheme="http")
        return self.claim(backend) or self._alone(
            await self._reach.connect(backend, deadline, HTTP11), backend, timeouts
        )

    def _alone(self, stream: Stream, backend: Backend, timeouts: Timeouts) -> H1Upstream:
        stream.write_patience = timeouts.idle
        return H1Upstream(stream, backend, self._reaper, self._take_back)

    async def _share(self, backend: Backend, timeouts: Timeouts, deadline: float) -> H2Connection:
        """A connection of HTTP/2 with room. Who comes while one is made shares it, or the reason why there is none."""
        while (connection := self._with_room(backend)) is None:
            dial = self._dials.get(backend)
            if dial is not None:
                await dial.done.wait()
                if dial.failure is not None:
                    raise type(dial.failure)(str(dial.failure)) from dial.failure
            elif (fresh := self._unsettled(backend)) is not None:
                await self._settled(fresh, deadline)
            else:
                return await self._make_shared(backend, timeouts, deadline)
        return connection

    def _unsettled(self, backend: Backend) -> H2Connection | None:
        return next((c for c in self._shared.get(backend, ()) if not c.settled.is_set()), None)

    async def _settled(self, connection: H2Connection, deadline: float) -> None:
        """Wait until it is known how many requests a new connection takes, and of which kind."""
        with trio.move_on_at(deadline):
            await connection.settled.wait()
            return
        connection.distrust()
        raise UpstreamTimeout(f"{connection.backend}: no word of HTTP/2 in time")

    async def _make_shared(self, backend: Backend, timeouts: Timeouts, deadline: float) -> H2Connection:
        dial = self._dials[backend] = _Dial()
        try:
            stream = await self._reach.connect(backend, deadline, self._protocols)
            if backend.tls is not None and stream.alpn() != "h2":
                stream.close()
                raise UpstreamUnreachable(f"{backend}: it speaks HTTP/2 no more")
            return self._begin(stream, backend, timeouts)
        except UpstreamError as exc:
            dial.failure = exc
            raise
        finally:
            del self._dials[backend]
            dial.done.set()

    def _begin(self, stream: Stream, backend: Backend, timeouts: Timeouts) -> H2Connection:
        from trioproxy.proxy.multiplex import H2Connection  # here, for it cannot be imported without ngh2

        if self._nursery is None:
            raise TypeError("connections are asked of a pool that does not run")
        stream.write_patience = timeouts.idle
        keep_alive(stream.sock)
        connection = H2Connection(stream, backend, self._reaper, self._ended, self._demote)
        self._shared.setdefault(backend, []).append(connection)
        self._nursery.start_soon(connection.run)
        return connection

    def _demote(self, backend: Backend) -> None:
        self._h1_only.add(backend.for_anyone())

    def _ended(self, connection: H2Connection) -> None:
        others = self._shared[connection.backend]
        others.remove(connection)
        if not others:
            del self._shared[connection.backend]

    # ---- of several backends the first that can be reached ---------------------------------------------

    def ready(self, backends: Sequence[Backend]) -> list[Backend]:
        """Those that have not failed a moment ago, in order."""
        now = trio.current_time()
        return [backend for backend in backends if self._failover.ready([backend.for_anyone()], now)]

    def pause(self, backends: Sequence[Backend]) -> float:
        """Seconds until one of those that have failed is tried again."""
        return self._failover.pause([backend.for_anyone() for backend in backends], trio.current_time())

    async def attempt(self, backend: Backend, timeouts: Timeouts, upgrade: bytes | None = None) -> Upstream | None:
        """As `connect`, but a backend that fails is set aside, and None is the answer.

        Raises:
            OutOfDescriptors: which says nothing about the backend.
        """
        whom, began = backend.for_anyone(), trio.current_time()
        self._failover.begin(whom, began, timeouts.connect)
        try:
            upstream = await self.connect(backend, timeouts, upgrade)
        except OutOfDescriptors:
            raise
        except UpstreamError as exc:
            self._failover.failed(whom, str(exc), began, trio.current_time())
            return None
        self._failover.answered(whom)
        return upstream

    # ---- the end ----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry the shared connections, and close what has been idle for too long; until cancelled, then everything."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while True:
                    await trio.sleep(IDLE_SECONDS / 4)
                    self._evict(trio.current_time() - IDLE_SECONDS)
        finally:
            self._nursery = None
            self.close_idle()

    def close_idle(self) -> int:
        """Close every idle connection. Returns how many there were."""
        return self._evict(math.inf)

    def _evict(self, before: float) -> int:
        closed = 0
        for backend, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < before:
                idle.popleft().close()
                closed += 1
            if not idle:
                del self._idle[backend]
        for connections in self._shared.values():
            for connection in connections:
                if connection.room and connection.idle_since is not None and connection.idle_since < before:
                    connection.distrust()
                    connection.close()
                    closed += 1
        return closed
