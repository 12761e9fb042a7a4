"""Looking at a connection's first bytes without taking them, and turning away a client whose bytes lead nowhere.

`recv(MSG_PEEK)` shows what the kernel has queued and leaves it there. So a passthrough forwards its connection from the
first byte without having held any of it, and a terminated connection hands the very same socket to TLS. A PROXY header
before the ClientHello is looked at in the same way, and then taken: exactly its bytes, and none of what follows.

Bytes that stay in the queue keep the socket readable, and a wait for more would return at once, for ever. Three things
keep the waiting quiet:

- `SO_RCVLOWAT` tells the kernel how many bytes must be queued before the socket counts as readable: those that were
  seen and those that the ClientHello lacks at least. However small the pieces in which it comes, it is looked at a few
  dozen times at most. (The line of version 1 of a PROXY header does not tell its length, but has 107 bytes at most.)
- An end of the stream makes the socket readable whatever `SO_RCVLOWAT` says, and stays. `POLLRDHUP` tells it apart.
- When its receive buffer runs full the kernel makes the socket readable too. After `FREE_LOOKS` looks that showed
  nothing new we pause between them.
"""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import trio

from trioproxy.errors import (
    BadProxyHeader,
    ConnectionLost,
    HelloError,
    HelloTimeout,
    SilentPeer,
    StreamError,
    StreamTimeout,
    TruncatedHello,
)
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Stream
from trioproxy.wire.alerts import fatal_alert
from trioproxy.wire.client_hello import MAX_HELLO, ClientHello, ClientHelloReader
from trioproxy.wire.proxy_protocol import ProxyHeader, missing, read_header

Found = TypeVar("Found")

Look = Callable[[bytes, int], Found | int]
"""Reads what is queued, of which so many bytes were shown to it before; says what it has found, or how many more bytes
it needs at least."""

FREE_LOOKS = 3
"""Times that we may be woken for nothing before we pause."""

PAUSE = 0.01
"""Seconds of that pause."""


def peek_client_hello(stream: Stream) -> Coroutine[Any, Any, ClientHello]:
    """The ClientHello with which the peer begins, left in the socket with all that follows it.

    Args:
        stream: A plain connection of which nothing was read. Its own deadline limits the wait.

    Raises:
        NotTLS, MalformedHello, BadServerName: what came is no ClientHello that could be served.
        TruncatedHello: the peer ended its direction, or reset the connection, within the ClientHello.
        HelloTimeout: the stream's deadline passed within the ClientHello.
        SilentPeer: not a byte came before either.
        ConnectionLost: the peer reset the connection without a byte.
        StreamInterrupted: the stream was interrupted.
    """
    reader = ClientHelloReader()

    def look(queued: bytes, seen: int) -> ClientHello | int:
        return reader.feed(queued[seen:] if seen else queued) or reader.missing

    return _peek(stream, look, "ClientHello", TruncatedHello, HelloTimeout)


async def take_proxy_header(stream: Stream) -> ProxyHeader:
    """The PROXY header with which the peer must begin, taken out of the socket; what follows it stays there.

    Args:
        stream: A plain connection of which nothing was read. Its own deadline limits the wait.

    Raises:
        BadProxyHeader: the peer begins otherwise, or ends or falls silent within the header.
        SilentPeer, ConnectionLost, StreamInterrupted: as `peek_client_hello`.
    """

    def look(queued: bytes, _: int) -> ProxyHeader | int:
        return read_header(queued) or missing(queued)

    header = await _peek(stream, look, "PROXY header", BadProxyHeader, BadProxyHeader)
    try:
        stream.sock.recv(header.size)
    except OSError as exc:
        raise ConnectionLost(f"reading failed: {exc}") from exc
    return header


async def _peek(
    stream: Stream, look: Look[Found], what: str, truncated: type[HelloError], late: type[HelloError]
) -> Found:
    seen = 0  # bytes that lie in the queue and have been looked at
    futile = 0  # looks in a row that showed nothing new
    ended = False
    try:
        while True:
            queued = _look(stream.sock)
            if len(queued) > seen:
                found = look(queued, seen)
                if not isinstance(found, int):
                    return found
                seen = len(queued)
                futile = 0
                stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, seen + found)
            if ended:
                if seen:
                    raise truncated(f"the client ended the connection within its {what}")
                raise SilentPeer("the client ended the connection without a byte")
            if futile >= FREE_LOOKS:
                await trio.sleep(PAUSE)
            futile += 1
            await stream.wait_readable()
            ended = _has_ended(stream.sock)  # asked before the next look, which then shows all that ever came
    except StreamTimeout as exc:
        if seen:
            raise late(f"the {what} did not come to its end in time") from exc
        raise SilentPeer("not a byte came in time") from exc
    finally:
        if seen:
            with contextlib.suppress(OSError):
                stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def refuse(stream: Stream, alert: int | None) -> None:
    """Answer a ClientHello with a fatal alert in such a way that it arrives. The caller closes the stream then.

    Closing a socket with unread bytes sends RST, and RST may overtake the alert. So what was peeked is taken and
    dropped, and what the client still sends is drained for at most `LINGER` seconds. Never fails, whatever it does.

    Args:
        stream: The connection that `peek_client_hello` looked at.
        alert: The AlertDescription; None for a peer that gets no answer.
    """
    with contextlib.suppress(OSError):
        stream.sock.recv(MAX_HELLO)
    if alert is None:
        return
    with contextlib.suppress(StreamError):
        await stream.send_all(fatal_alert(alert))  # at once: seven bytes fit in a send buffer in which nothing is yet
        stream.send_eof()
        await stream.drain()


def _look(sock: Socket) -> bytes:
    try:
        return sock.recv(MAX_HELLO, socket.MSG_PEEK)
    except BlockingIOError:
        return b""
    except OSError as exc:
        raise ConnectionLost(f"reading failed: {exc}") from exc


def _has_ended(sock: Socket) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))
