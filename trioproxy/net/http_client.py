"""A small HTTP client for the few requests that trioproxy makes of its own accord: to certificate authorities.

One request at a time goes over a connection, and a connection that its server keeps open is used again within the next
seconds: an order is a dozen requests, and each new TLS connection costs both sides more than all of them. Nothing
is sent twice: a request that failed may have been done, and only the caller knows whether it may be done again.

There are no limits of time here; a cancel scope around the request is one.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Self

import attrs
import trio

import trioproxy
from trioproxy.config.model import HostPort
from trioproxy.errors import ConnectionLost, InvalidName, UpstreamProtocolError, UpstreamUnreachable
from trioproxy.http.h1 import ResponseReader, encode_request_head
from trioproxy.http.messages import End, Headers, ResponseHead
from trioproxy.names import split_authority
from trioproxy.net.dial import Dialler
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.trust import client_context

MAX_BODY = 1024 * 1024
"""Bytes of a response's body. A certificate chain is some 5 KB; more than this is a mistake or an attack."""

MAX_IDLE = 10.0
"""Seconds for which a connection is used again: well below what servers keep one, so that none is closing just then."""

MAX_KEPT = 4
"""Idle connections kept for one host."""

_URL = re.compile(r"(https?)://([^/?#]+)([/?][!-\"$-~]*)?(?:#.*)?")
_DEFAULT_PORTS = {"http": 80, "https": 443}


@attrs.frozen
class Response:
    """A final response with its whole body."""

    status: int
    headers: Headers
    body: bytes

    def field(self, name: bytes) -> str | None:
        """The value of the first field `name` (in lower case), None when there is none."""
        return next((value.decode("latin-1") for found, value in self.headers if found == name), None)


@attrs.frozen
class _Origin:
    scheme: str
    address: HostPort

    @property
    def authority(self) -> bytes:
        """What Host says (RFC 9110 section 7.2): without the port where it is the scheme's own."""
        return str(self.address).removesuffix(f":{_DEFAULT_PORTS[self.scheme]}").encode("ascii")


@attrs.define
class _Connection:
    stream: Stream
    reader: ResponseReader
    idle_since: float = 0.0


class HttpClient:
    """Asks servers over connections of its own; a context manager that closes those it keeps.

    Args:
        ca_file: PEM certificates to trust beside those that the system trusts; None for no more than those.
        reaper: Looks after the streams.
    """

    def __init__(self, ca_file: Path | None, reaper: Reaper) -> None:
        self._ca_file = ca_file
        self._dialler = Dialler(reaper)
        self._context: ssl.SSLContext | None = None
        self._idle: dict[_Origin, list[_Connection]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def request(self, method: bytes, url: str, headers: Headers, body: bytes = b"") -> Response:
        """Send one request and read the whole response; redirects are answers like any other.

        Args:
            method: GET, HEAD, POST.
            url: Absolute, http or https.
            headers: Fields beside Host, User-Agent and Content-Length, which are written here.
            body: Sent with its length.

        Raises:
            UpstreamUnreachable: the URL is none, its host does not resolve or answer, or is not to be trusted.
            UpstreamProtocolError: the response is no valid HTTP/1.1, or larger than `MAX_BODY`.
            ConnectionLost: the connection broke after it stood; the request may have been done.
        """
        origin, target = _split(url)
        head: Headers = [(b"host", origin.authority), (b"user-agent", f"trioproxy/{trioproxy.__version__}".encode())]
        if body or method not in (b"GET", b"HEAD"):
            head.append((b"content-length", b"%d" % len(body)))
        message = encode_request_head(method, target, [*head, *headers]) + body
        # A stream tries to send before it waits: without this, who was cancelled would still have asked.
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = self._take(origin) or await self._connect(origin)
        try:
            response = await _exchange(connection, method, message)
        except BaseException:
            connection.stream.close()
            raise
        self._put_back(origin, connection)
        return response

    def close(self) -> None:
        """Close the connections that are kept. The client can be used again, and makes new ones."""
        for connections in self._idle.values():
            for connection in connections:
                connection.stream.close()
        self._idle.clear()

    def _take(self, origin: _Origin) -> _Connection | None:
        kept = self._idle.get(origin, [])
        while kept:
            connection = kept.pop()
            if trio.current_time() - connection.idle_since < MAX_IDLE and connection.stream.quiet():
                return connection
            connection.stream.close()
        return None

    def _put_back(self, origin: _Origin, connection: _Connection) -> None:
        kept = self._idle.setdefault(origin, [])
        if connection.reader.reusable and len(kept) < MAX_KEPT:
            connection.idle_since = trio.current_time()
            kept.append(connection)
        else:
            connection.stream.close()

    async def _connect(self, origin: _Origin) -> _Connection:
        if origin.scheme == "http":
            return _Connection(await self._dialler.dial(origin.address), ResponseReader())
        if self._context is None:
            # Reading the system's certificates takes 40 ms, for which connections would stand still.
            self._context = await trio.to_thread.run_sync(self._make_context)
        stream = await self._dialler.dial(origin.address)
        try:
            await stream.start_tls_client(self._context, origin.address.host)
        except ConnectionLost as exc:
            stream.close()
            raise UpstreamUnreachable(f"{origin.address}: {exc}") from exc
        except BaseException:
            stream.close()
            raise
        return _Connection(stream, ResponseReader())

    def _make_context(self) -> ssl.SSLContext:
        context = client_context()
        if self._ca_file is not None:
            try:
                context.load_verify_locations(self._ca_file)
            except (OSError, ssl.SSLError) as exc:
                raise UpstreamUnreachable(f"the certificates in {self._ca_file} cannot be used: {exc}") from exc
        return context


def _split(url: str) -> tuple[_Origin, bytes]:
    """The origin and the request target of a URL."""
    parts = _URL.fullmatch(url)
    try:
        if parts is None:
            raise InvalidName("it must begin with http:// or https:// and hold no spaces")
        scheme, authority, target = parts.groups("/")
        host, port = split_authority(authority)
    except InvalidName as exc:
        raise UpstreamUnreachable(f"{url!r} cannot be asked: {exc}") from exc
    if target.startswith("?"):
        target = "/" + target
    return _Origin(scheme, HostPort(host, _DEFAULT_PORTS[scheme] if port is None else port)), target.encode("ascii")


async def _exchange(connection: _Connection, method: bytes, message: bytes) -> Response:
    connection.reader.expect(method)
    await connection.stream.send_all(message)
    head = await _next(connection)
    while not isinstance(head, ResponseHead) or head.status < 200:  # those below announce the one that counts
        head = await _next(connection)
    body = bytearray()
    while isinstance(piece := await _next(connection), bytes):
        body += piece
        if len(body) > MAX_BODY:
            raise UpstreamProtocolError(f"a response of more than {MAX_BODY} bytes")
    return Response(head.status, head.headers, bytes(body))


async def _next(connection: _Connection) -> ResponseHead | bytes | End:
    while (event := connection.reader.next()) is None:
        data = await connection.stream.receive_some()
        if data:
            connection.reader.feed(data)
        else:
            connection.reader.feed_eof()
    return event
