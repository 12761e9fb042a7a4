"""Reaching a backend, with all that comes before HTTP: dialling, the PROXY header, the TLS handshake and its proof."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import trio

from trioproxy.config.model import HostPort, UpstreamTLS
from trioproxy.errors import StreamError, Untrusted, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from trioproxy.http.alpn import HTTP11
from trioproxy.net.dial import Dialler
from trioproxy.net.sock import Stream
from trioproxy.net.trust import Trust, fingerprint, prove
from trioproxy.proxy.seldom import MOST, Seldom
from trioproxy.proxy.upstream import Backend

LOOK_AGAIN = 60.0
"""Seconds for which the certificate that an untrusted backend shows is taken to be the same."""


LOOK_FOR = 2.0
"""Seconds that looking at it may take: the request that failed waits for as long."""


class Reach:
    """Makes connections to backends, on the terms that they come with."""

    def __init__(self, dialler: Dialler) -> None:
        self._dialler = dialler
        self._trust = Trust()
        self._looks = Seldom(LOOK_AGAIN)
        self._shown: dict[Backend, str] = {}  # fingerprints of backends that are not trusted

    async def connect(self, backend: Backend, deadline: float, alpn: tuple[str, ...]) -> Stream:
        """A connection on which HTTP can be spoken, by the Trio time `deadline`.

        Args:
            backend: Whom, and on what terms.
            deadline: For all of it together.
            alpn: The protocols to offer, with TLS.

        Raises:
            UpstreamUnreachable: it does not resolve, answer, or prove who it is.
            UpstreamTimeout: the deadline passed.
        """
        if backend.tls is None:
            return await self._dial(backend, deadline)
        try:
            return await self._connect_tls(backend, backend.tls, deadline, alpn)
        except (UpstreamUnreachable, UpstreamTimeout):
            self._dialler.reached[_address(backend)] = False  # a connection alone is not what was asked for
            raise

    async def _connect_tls(self, backend: Backend, tls: UpstreamTLS, deadline: float, alpn: tuple[str, ...]) -> Stream:
        with trio.move_on_at(deadline):
            context = await self._trust.context(tls, alpn)
            stream = await self._dial(backend, deadline)
            try:
                await prove(stream, context, tls, backend.host)
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
        stream = await self._dialler.dial(_address(backend), deadline)
        if backend.header:
            try:
                await stream.send_all(backend.header)  # the first bytes of a connection always find room
            except StreamError as exc:
                stream.close()
                raise UpstreamUnreachable(f"{backend}: {exc}") from exc
            except BaseException:
                stream.close()
                raise
        return stream

    async def _advice(self, backend: Backend) -> str:
        """What to write so that a backend is trusted which is not, with the fingerprint that it shows.

        To learn that, a second connection is made, on which nothing is asked and nothing believed; not more often than
        `LOOK_AGAIN`, however many requests fail.
        """
        whom = backend.for_anyone()
        if self._looks.due(whom, trio.current_time()):
            self._shown.pop(whom, None)
            if len(self._shown) >= MOST:
                self._shown.clear()
            with contextlib.suppress(UpstreamError, StreamError), trio.move_on_after(LOOK_FOR):
                self._shown[whom] = await self._fingerprint(backend)
        advice = "best let its route's ca_file name the certificate of the authority that issued it"
        if whom in self._shown:
            advice += (
                f', or, if the backend itself says that this is its own, write verify = "sha256:{self._shown[whom]}"'
            )
        return advice

    async def _fingerprint(self, backend: Backend) -> str:
        tls = UpstreamTLS(verify=False, server_name=backend.tls.server_name if backend.tls else "")
        context = await self._trust.context(tls, HTTP11)
        stream = await self._dial(backend, math.inf)
        try:
            await prove(stream, context, tls, backend.host)
            return fingerprint(stream)
        finally:
            stream.close()


def _address(backend: Backend) -> HostPort | Path:
    return Path(backend.host) if backend.scheme == "unix" else HostPort(backend.host, backend.port)
