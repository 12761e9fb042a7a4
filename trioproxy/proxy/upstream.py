"""Connections to the backends of sites: kept when idle, reused, and closed when they are too old to trust."""

from __future__ import annotations

import math
import ssl
from collections import deque

import trio

from trioproxy.config.model import HostPort, Target, Timeouts
from trioproxy.errors import ConnectionLost, StreamTimeout, UpstreamTimeout, UpstreamUnreachable
from trioproxy.http.h1 import ResponseReader
from trioproxy.net.dial import Dialler
from trioproxy.net.sock import Stream
from trioproxy.net.trust import client_context

IDLE_PER_BACKEND = 64
"""Idle connections kept for one backend; the oldest goes when there are more."""

IDLE_SECONDS = 30.0
"""How long an idle one is kept. Below the keep-alive limits that backends commonly have (Node 5 s is the exception,
nginx 75 s, Apache 5 s): a connection that the backend has closed meanwhile is noticed before it is reused."""

Key = tuple[str, str, int]


class Upstream:
    """A connection to a backend, and the reader of its responses."""

    __slots__ = ("idle_since", "key", "reader", "reused", "stream")

    def __init__(self, stream: Stream, key: Key) -> None:
        self.stream = stream
        self.key = key
        self.reader = ResponseReader()
        self.reused = False
        self.idle_since = 0.0


class Pool:
    """Idle connections by backend. Deciding is synchronous: `claim` and `release` never wait."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._idle: dict[Key, deque[Upstream]] = {}
        self._trust: ssl.SSLContext | None = None

    async def connect(self, target: Target, timeouts: Timeouts, *, fresh: bool = False) -> Upstream:
        """A connection to `target`: an idle one, or a new one.

        Args:
            target: The backend; only its scheme, host and port count.
            timeouts: `connect` bounds the dialling and the TLS handshake together.
            fresh: Do not reuse an idle one.

        Raises:
            UpstreamUnreachable: it does not resolve, answer, or prove who it is.
            UpstreamTimeout: that took longer than `timeouts.connect`.
        """
        key = (target.scheme, target.host, target.port)
        if not fresh and (claimed := self.claim(key)) is not None:
            return claimed
        if target.scheme == "https" and self._trust is None:
            self._trust = await trio.to_thread.run_sync(client_context)
        deadline = trio.current_time() + timeouts.connect
        stream = await self._dialler.dial(HostPort(target.host, target.port), deadline)
        if target.scheme == "https" and self._trust is not None:
            await _start_tls(stream, self._trust, target, deadline)
        stream.write_patience = timeouts.idle
        return Upstream(stream, key)

    def claim(self, key: Key) -> Upstream | None:
        """The most recently used idle connection on which nothing unexpected has come, if there is one."""
        idle = self._idle.get(key)
        while idle:
            upstream = idle.pop()
            if upstream.stream.quiet():
                upstream.reused = True
                return upstream
            upstream.stream.close()
        return None

    def release(self, upstream: Upstream) -> None:
        """Take back a connection whose last response has ended and that the backend keeps open."""
        idle = self._idle.setdefault(upstream.key, deque())
        upstream.idle_since = trio.current_time()
        idle.append(upstream)
        if len(idle) > IDLE_PER_BACKEND:
            idle.popleft().stream.close()

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
        for key, idle in list(self._idle.items()):
            while idle and idle[0].idle_since < before:
                idle.popleft().stream.close()
                closed += 1
            if not idle:
                del self._idle[key]
        return closed


async def _start_tls(stream: Stream, trust: ssl.SSLContext, target: Target, deadline: float) -> None:
    stream.deadline = deadline
    try:
        await stream.start_tls_client(trust, target.host)
    except ConnectionLost as exc:
        stream.close()
        raise UpstreamUnreachable(f"{target}: {exc}") from exc
    except StreamTimeout as exc:
        stream.close()
        raise UpstreamTimeout(f"{target}: no end of the TLS handshake") from exc
    except BaseException:
        stream.close()
        raise
    stream.deadline = math.inf
