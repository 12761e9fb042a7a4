"""Connections to the backends of sites: kept when idle, reused, and closed when they are too old to trust."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import trio

from trioproxy.config.model import HostPort, Timeouts, UpstreamTLS
from trioproxy.errors import (
    OutOfDescriptors,
    StreamError,
    Untrusted,
    UpstreamError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from trioproxy.net.dial import Dialler
from trioproxy.net.failover import Failover
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.trust import H1, Trust, fingerprint, prove
from trioproxy.proxy.seldom import MOST, Seldom
from trioproxy.proxy.upstream import Backend, Upstream
from trioproxy.proxy.upstream_h1 import H1Upstream

IDLE_PER_BACKEND = 64
"""Idle connections kept for one backend; the oldest goes when there are more."""

IDLE_SECONDS = 30.0
"""How long an idle one is kept. Below the keep-alive limits that backends commonly have (Node 5 s is the exception,
nginx 75 s, Apache 5 s): a connection that the backend has closed meanwhile is noticed before it is reused."""


LOOK_AGAIN = 60.0
"""Seconds for which the certificate that an untrusted backend shows is taken to be the same."""


HINT_AGAIN = 3600.0
"""Seconds after which something is explained again."""


class Pool:
    """Connections by backend. Deciding is synchronous: `claim` and giving back never wait.

    Attributes:
        hints: Whose answers were explained in the log a while ago.
    """

    def __init__(self, dialler: Dialler, reaper: Reaper) -> None:
        self.hints = Seldom(HINT_AGAIN)
        self._dialler = dialler
        self._reaper = reaper
        self._idle: dict[Backend, deque[H1Upstream]] = {}
        self._failover: Failover[Backend] = Failover()
        self._trust = Trust()
        self._looks = Seldom(LOOK_AGAIN)
        self._shown: dict[Backend, str] = {}  # fingerprints of backends that are not trusted

    def claim(self, backend: Backend) -> Upstream | None:
        """The most recently used idle connection on which nothing unexpected has come, if there is one."""
        idle = self._idle.get(backend)
        while idle:
            upstream = idle.pop()
            if upstream.quiet():
                return upstream
            upstream.close()
        return None

    async def connect(self, backend: Backend, timeouts: Timeouts) -> Upstream:
        """A new connection to `backend`.

        Args:
            backend: Whom, and on what terms.
            timeouts: `connect` bounds the dialling and the TLS handshake together.

        Raises:
            UpstreamUnreachable: it does not resolve, answer, or prove who it is.
            UpstreamTimeout: that took longer than `timeouts.connect`.
        """
        deadline = trio.current_time() + timeouts.connect
        stream = await self._stream(backend, deadline, H1)
        stream.write_patience = timeouts.idle
        return H1Upstream(stream, backend, self._reaper, self._take_back)

    # ---- of several backends the first that can be reached ---------------------------------------------

    def ready(self, backends: Sequence[Backend]) -> list[Backend]:
        """Those that have not failed a moment ago, in order."""
        now = trio.current_time()
        return [backend for backend in backends if self._failover.ready([backend.for_anyone()], now)]

    def pause(self, backends: Sequence[Backend]) -> float:
        """Seconds until one of those that have failed is tried again."""
        return self._failover.pause([backend.for_anyone() for backend in backends], trio.current_time())

    async def attempt(self, backend: Backend, timeouts: Timeouts) -> Upstream | None:
        """As `connect`, but a backend that fails is set aside, and None is the answer.

        Raises:
            OutOfDescriptors: which says nothing about the backend.
        """
        whom, began = backend.for_anyone(), trio.current_time()
        self._failover.begin(whom, began, timeouts.connect)
        try:
            upstream = await self.connect(backend, timeouts)
        except OutOfDescriptors:
            raise
        except UpstreamError as exc:
            self._failover.failed(whom, str(exc), began, trio.current_time())
            return None
        self._failover.answered(whom)
        return upstream

    # ---- what comes before HTTP -------------------------------------------------------------------------

    async def _stream(self, backend: Backend, deadline: float, alpn: tuple[str, ...]) -> Stream:
        """A connection on which all is done that comes before HTTP."""
        if backend.tls is None:
            return await self._dial(backend, deadline)
        with trio.move_on_at(deadline):
            context = await self._trust.context(backend.tls, alpn)
            stream = await self._dial(backend, deadline)
            try:
                await prove(stream, context, backend.tls, backend.host)
            except Untrusted as exc:
                stream.close()
                raise Untrusted(f"{backend}: {exc}; {await self._advice(backend)}") from exc
            except StreamError as exc:
                stream.close()
                raise UpstreamUnreachable(f"{backend}: {exc}") from exc
            except BaseException:
                stream.close()
                raise
            return stream
        raise UpstreamTimeout(f"{backend}: no TLS connection in time")

    async def _dial(self, backend: Backend, deadline: float) -> Stream:
        """A connection, and the PROXY header sent."""
        where = Path(backend.host) if backend.scheme == "unix" else HostPort(backend.host, backend.port)
        stream = await self._dialler.dial(where, deadline)
        if backend.header:
            stream.deadline = deadline
            try:
                await stream.send_all(backend.header)
            except StreamError as exc:
                stream.close()
                raise UpstreamUnreachable(f"{backend}: {exc}") from exc
            except BaseException:
                stream.close()
                raise
            stream.deadline = math.inf
        return stream

    async def _advice(self, backend: Backend) -> str:
        """What to write so that a backend is trusted which is not, with the fingerprint that it shows.

        To learn it a second connection is made, on which nothing is asked and nothing believed; not more often than
        `LOOK_AGAIN`, however many requests fail.
        """
        ca_file = "best let `ca_file` name the certificate of the authority that issued it"
        whom = backend.for_anyone()
        if self._looks.due(whom, trio.current_time()):
            self._shown.pop(whom, None)
            if len(self._shown) >= MOST:
                self._shown.clear()
            with contextlib.suppress(UpstreamError, StreamError):
                self._shown[whom] = await self._fingerprint(backend)
        if whom not in self._shown:
            return ca_file
        return (
            f"{ca_file}; or, if the backend itself says that this is its fingerprint, write: "
            f'verify = "sha256:{self._shown[whom]}"'
        )

    async def _fingerprint(self, backend: Backend) -> str:
        tls = UpstreamTLS(verify=False, server_name=backend.tls.server_name if backend.tls else "")
        context = await self._trust.context(tls, H1)
        stream = await self._dial(backend, math.inf)
        try:
            await prove(stream, context, tls, backend.host)
            return fingerprint(stream)
        finally:
            stream.close()

    def _take_back(self, upstream: H1Upstream) -> None:
        idle = self._idle.get(upstream.backend)
        if idle is None:
            idle = self._idle[upstream.backend] = deque()
        upstream.idle_since = trio.current_time()
        idle.append(upstream)
        if len(idle) > IDLE_PER_BACKEND:
            idle.popleft().close()

    def close_idle(self) -> int:
        """Close every idle connection. Returns how many there were."""
        return self._evict(math.inf)

    async def run(self) -> None:
        """Close what has been idle for too long, until cancelled; then close everything."""
        try:
            while True:
                await trio.sleep(IDLE_SECONDS / 4)
                self._evict(trio.current_time() - IDLE_SECONDS)
        finally:
            self.close_idle()

    def _evict(self, before: float) -> int:
        closed = 0
        for backend, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < before:
                idle.popleft().close()
                closed += 1
            if not idle:
                del self._idle[backend]
        return closed
