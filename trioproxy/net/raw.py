"""Sockets as the kernel has them: each connection is born and dies without what Python's `socket.socket` adds."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from typing import Any, Protocol, cast

Socket = socket.SocketType
"""A socket without what `socket.socket` puts around it (families as enums, counts of the files made from it), which
costs microseconds at each birth and death. A `socket.socket` is one too, and `ssl` takes either."""


class _Accepted(Socket):
    """One that `tls_server` takes: it may be referred to weakly, which of these only a `socket.socket` allows."""

    __slots__ = ("__weakref__",)


PROBES = (
    (socket.TCP_KEEPIDLE, 20),  # seconds of silence before the first,
    (socket.TCP_KEEPINTVL, 5),  # between two,
    (socket.TCP_KEEPCNT, 3),  # and how many may stay without an answer
    (socket.TCP_USER_TIMEOUT, 35_000),  # milliseconds for which what was sent may stay unacknowledged
)

_SOURCE_LINE = re.compile(r" \(_ssl\.c:\d+\)$")


def accept(listener: socket.socket, family: int) -> tuple[Socket, Any]:
    """Accept a connection, as a socket that does not block, and the peer's address. Raises OSError.

    `socket.accept` is this with a `socket.socket` around the descriptor. `_accept` is its own, undocumented half, the
    same in every CPython from 3.0 on.

    Args:
        listener: Listens.
        family: Its address family; to ask it each time costs a microsecond.
    """
    descriptor, address = listener._accept()  # type: ignore[attr-defined]
    sock = _Accepted(family, socket.SOCK_STREAM, 0, descriptor)
    sock.setblocking(False)
    return sock, address


class TlsPart(Protocol):
    """The half of an `ssl.SSLSocket` that calls OpenSSL. It raises what the socket's own methods raise.

    OpenSSL goes by the descriptor's number and looks at nothing else: it is no longer to be used once that is closed.

    Attributes:
        server_side: Whether it is the server's.
    """

    server_side: bool

    def do_handshake(self) -> None:
        """Go on with the handshake until it is done, or would have to wait."""

    def selected_alpn_protocol(self) -> str | None:
        """What ALPN chose."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes that were sent to us; b"" once the peer has said that it ends."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        """Send, and say how many bytes that were."""

    def pending(self) -> int:
        """Bytes that are decrypted and not read."""

    def shutdown(self) -> object:
        """Say that nothing more will be sent (close_notify). It raises when the peer has not said so yet."""


def tls_server(sock: Socket, context: ssl.SSLContext) -> TlsPart:
    """The server's side of TLS on `sock`, which is the caller's to keep and to close. Raises OSError.

    `SSLContext.wrap_socket` is this with an `ssl.SSLSocket` around it, made of the descriptor that is taken out of
    `sock`: six system calls, sixty lines and 400 bytes, of which the peer hears nothing. `_wrap_socket` is its own,
    undocumented half, with the same parameters in every CPython from 3.8 on.

    Args:
        sock: From `accept`, or a `socket.socket`. Only a weak reference is kept: it must live as long.
        context: With the certificate.
    """
    return cast(TlsPart, context._wrap_socket(sock, server_side=True))  # type: ignore[attr-defined]


def tls_part(sock: ssl.SSLSocket) -> TlsPart:
    """What `recv` and `send` of an SSLSocket come to after two Python calls each, which a request pays four times.

    `_sslobj` is undocumented, and the same in every CPython from 2.7 on.
    """
    return cast(TlsPart, sock._sslobj)  # type: ignore[attr-defined]


def keep_alive(sock: Socket) -> None:
    """Let the kernel ask a peer that is silent, or takes nothing, whether it is still there. Never fails."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in PROBES:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def words(exc: OSError | ValueError) -> str:
    """What `exc` says, without the line of a C source file that `ssl` ends it with."""
    return _SOURCE_LINE.sub("", str(exc))
