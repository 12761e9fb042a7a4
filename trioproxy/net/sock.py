"""A connected socket, plain or TLS: try the system call first, and wait only when there is nothing to do.

Trio's own streams pass a checkpoint and several coroutine frames at every call; over a raw non-blocking socket the
same exchange costs a third. The price is three rules, which this file keeps for everybody else:

*Trying first passes no checkpoint*, so a connection that is always ready would starve all others. A stream may make
`CALLS_IN_A_ROW` successful calls, then it passes one.

*Deadlines are the stream's own.* A cancel scope for every read would cost more than the read. Instead a stream knows
how long it may wait for one read or write (its patience) and until when all must be done (its deadline), and one
task, the `Reaper`, looks at all streams once a second and wakes what has waited too long. The sleeper then gets
`StreamTimeout`, an ordinary error, so it can still answer its other peer; a Cancelled could only leave. The same
bell, `interrupt`, tells a keep-alive connection that the server is draining.

*The descriptor is closed in one place*, after everyone who waits for it was told.
"""

from __future__ import annotations

import contextlib
import copy
import math
import select
import socket
import ssl
import struct
from collections.abc import Callable
from typing import cast

import trio
from trio.lowlevel import checkpoint, notify_closing, wait_readable, wait_writable

from trioproxy.config.model import HostPort
from trioproxy.errors import ConnectionLost, HandshakeFailed, StreamError, StreamInterrupted, StreamTimeout
from trioproxy.net.patience import Patience
from trioproxy.net.raw import Socket, TlsPart, tls_part, tls_server, words
from trioproxy.net.reaper import Mortal as Mortal
from trioproxy.net.reaper import Reaper as Reaper  # streams, and who looks after them, are had from one place

CALLS_IN_A_ROW = 64

MAX_READ = 64 * 1024
"""Bytes asked for in one read of a plain socket."""

TLS_READ = 16 * 1024
"""Bytes asked for in one read of a TLS socket: a record holds no more (RFC 8446 section 5.1)."""

_LINGER_ZERO = struct.pack("ii", 1, 0)

LINGER = 1.0
"""Seconds that a polite close waits for the peer to take what was sent."""


class Stream(Patience):
    """One connection. A single task may read and a single task may write at a time.

    Attributes:
        sock: The non-blocking socket, which `start_tls_client` replaces by an `ssl.SSLSocket`.
        unwatch: To be told before it is closed; None while nobody is.
        carried: Bytes that came from here through a relay that has ended (`Pump.relay`).
    """

    __slots__ = (
        "_calls",
        "_fd",
        "_poll",
        "_tls",
        "carried",
        "sock",
        "unwatch",
    )

    carried: int

    def __init__(self, sock: Socket, reaper: Reaper) -> None:
        Patience.__init__(self, reaper)  # by name, for each connection passes here
        self.sock = sock
        self._fd = sock.fileno()
        self._poll: select.poll | None = None  # made when it is first asked whether something has come
        self._tls: TlsPart | None = None
        self._calls = 0
        self.unwatch: Callable[[Stream], None] | None = None
        reaper.watched.add(self)

    # ---- reading and writing ------------------------------------------------------------------------

    async def receive_some(self, *, likely: bool = True) -> bytes:
        """The bytes that are there, or the next that come; b"" at the end of the stream.

        Args:
            likely: False for what can hardly be here yet: a try that fails costs more than a needless wait.

        Raises:
            ConnectionLost: the connection broke.
            StreamTimeout: the deadline passed.
            StreamInterrupted: `interrupt` was called.
        """
        tls = self._tls
        if likely or (tls is not None and tls.pending()):  # what TLS has decrypted already makes no socket readable
            self._calls += 1
            if self._calls >= CALLS_IN_A_ROW:
                await self._others_first()
        else:
            await self._until_readable()
        while True:
            try:
                return self.sock.recv(MAX_READ) if (tls := self._tls) is None else tls.read(TLS_READ)
            except (BlockingIOError, ssl.SSLWantReadError):
                wait = self._until_readable
            except ssl.SSLWantWriteError:
                wait = self._until_writable
            except OSError as exc:
                if self._is_end_of_client(exc):
                    return b""
                raise ConnectionLost(f"reading failed: {words(exc)}") from exc
            await wait()  # out here, for in there the exception would be kept as long: a kilobyte

    def receive_at_once(self) -> bytes | None:
        """The bytes that are there; None when none are, b"" at the end of the stream. Raises ConnectionLost."""
        try:
            return self.sock.recv(MAX_READ) if (tls := self._tls) is None else tls.read(TLS_READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as exc:
            if self._is_end_of_client(exc):
                return b""
            raise ConnectionLost(f"reading failed: {words(exc)}") from exc

    def send_at_once(self, data: bytes | memoryview) -> int:
        """Send what the kernel takes now of `data`; how many bytes that were. Raises ConnectionLost.

        The rest is to be sent next, all of it, and may be followed by more: TLS may have begun with it, and says 0.
        """
        try:
            return self.sock.send(data) if (tls := self._tls) is None else tls.write(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return 0
        except OSError as exc:
            raise ConnectionLost(f"sending failed: {words(exc)}") from exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send every byte of `data`.

        Raises:
            ConnectionLost: the connection broke; how much arrived is unknown.
            StreamTimeout: the deadline passed.
            StreamInterrupted: `interrupt` was called.
        """
        self._calls += 1
        if self._calls >= CALLS_IN_A_ROW:
            await self._others_first()
        while True:
            try:
                sent = self.sock.send(data) if (tls := self._tls) is None else tls.write(data)
            except (BlockingIOError, ssl.SSLWantWriteError):
                wait = self._until_writable
            except ssl.SSLWantReadError:
                wait = self._until_readable
            except OSError as exc:
                raise ConnectionLost(f"sending failed: {words(exc)}") from exc
            else:
                if sent == len(data):
                    return
                data = memoryview(data)[sent:]
                continue
            await wait()

    async def wait_readable(self) -> None:
        """Wait until a read would not block (there is data, an end, or an error). Raises as `receive_some`."""
        await self._until_readable()

    async def wait_writable(self) -> None:
        """Wait until a write would not block; after a non-blocking connect: until it has ended."""
        await self._until_writable()

    def fileno(self) -> int:
        """Its descriptor; -1 when it is closed."""
        return self._fd

    def left(self) -> bool:
        """Whether the peer has ended its direction or the connection, though what it sent before may be unread.

        So has who was closed by us: `show_out` does that to those whose backends are silent.
        """
        if self._fd < 0:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        return bool(poll.poll(0))

    def quiet(self) -> bool:
        """Whether nothing at all has come: no byte, no end, no error. What an idle connection must be to be reused."""
        poll = self._poll
        if poll is None:  # kept: asking it costs a third of a `recv` that fails
            poll = self._poll = select.poll()
            poll.register(self._fd, select.POLLIN | select.POLLRDHUP)
        tls = self._tls
        if not poll.poll(0):
            return tls is None or not tls.pending()
        if tls is None:
            return False
        try:
            tls.read(1)  # a session ticket may lie there: only TLS itself can tell it from data
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False

    # ---- TLS ----------------------------------------------------------------------------------------

    async def start_tls_server(self, context: ssl.SSLContext) -> None:
        """Do the server's side of a TLS handshake on this very socket.

        Raises as `receive_some`, and HandshakeFailed, a ConnectionLost, when TLS itself is the reason.

        Clients often end without close_notify, so an end of the stream that TLS did not announce is an end here.
        """
        try:
            tls = tls_server(self.sock, context)
        except OSError as exc:
            raise ConnectionLost(f"TLS could not begin: {words(exc)}") from exc
        await self._shake_hands(tls)

    async def start_tls_client(self, context: ssl.SSLContext, server_name: str) -> None:
        """Do the client's side. An end of the stream that TLS did not announce is then an error, not an end.

        Args:
            context: Says whom to trust.
            server_name: The host name or IP address that the certificate must be for, sent as SNI if it is a name.
        """
        try:
            self.sock.getpeername()  # a connection that is lost already shows here, where the socket is still ours
            tls = self.sock = context.wrap_socket(
                cast("socket.socket", self.sock),
                server_hostname=server_name,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except (OSError, ValueError) as exc:
            if self.sock.fileno() < 0:  # it took the descriptor before it failed, and the number may be another's
                self._fd = -1
                self._reaper.watched.discard(self)
            raise ConnectionLost(f"TLS could not begin: {words(exc)}") from exc
        await self._shake_hands(tls_part(tls))

    async def _shake_hands(self, tls: TlsPart) -> None:
        self._tls = tls
        try:
            while True:
                try:
                    return tls.do_handshake()
                except ssl.SSLWantReadError:
                    wait = self._until_readable
                except ssl.SSLWantWriteError:
                    wait = self._until_writable
                except OSError as exc:
                    lost = not isinstance(exc, ssl.SSLError) or isinstance(exc, ssl.SSLEOFError)
                    raise (ConnectionLost if lost else HandshakeFailed)(f"TLS handshake failed: {words(exc)}") from exc
                await wait()
        except StreamTimeout as exc:
            raise StreamTimeout("the TLS handshake did not come to its end in time") from exc

    def local(self) -> HostPort:
        """The address and port on our side: what the peer connected to. Raises ConnectionLost."""
        try:
            host, port = self.sock.getsockname()[:2]
        except OSError as exc:
            raise ConnectionLost(f"the connection is gone: {exc}") from exc
        return HostPort(host.partition("%")[0], port)

    def alpn(self) -> str | None:
        """The protocol that ALPN chose, if this is TLS and one was chosen."""
        return None if self._tls is None else self._tls.selected_alpn_protocol()

    # ---- the end ------------------------------------------------------------------------------------

    def interrupt(self, error: StreamError | None = None) -> None:
        """Wake whoever waits on this stream with `error`; who waits later gets it at once."""
        self.deadline = math.inf  # so that it is not overdue again while it is being cleared away
        if self._error is None:
            self._error = StreamInterrupted("the server is draining") if error is None else copy.copy(error)
        if self._heed is not None:
            self._heed()
        elif self._fd >= 0:
            notify_closing(self._fd)

    def send_eof(self) -> None:
        """End our direction: close_notify without waiting for the peer's, then FIN. Never fails.

        With TLS it is the last word: what still comes can be drained, but no longer be read.
        """
        with contextlib.suppress(OSError, ValueError):
            if self._tls is not None:
                with contextlib.suppress(ssl.SSLError):
                    self._tls.shutdown()
                self._tls = None
            self.sock.shutdown(socket.SHUT_WR)

    async def drain(self) -> None:
        """Read and drop what the peer still sends, for at most `LINGER`.

        Closing a socket with unread bytes sends RST, and RST makes the peer's kernel forget what we sent last: an error
        page or a TLS alert would be lost. So whoever answered and closes first calls `send_eof`, then this.
        """
        self.resume()
        self.deadline = math.inf
        with contextlib.suppress(StreamError), trio.move_on_after(LINGER):
            while await self.receive_some():
                pass

    def abort(self) -> None:
        """Close with RST, so that the peer cannot take what it has for the whole. Never fails."""
        self._end_by_reset()
        self.close()

    def close(self) -> None:
        """Close the descriptor at once. Never fails, and may be called again."""
        if self._fd < 0:
            return
        if self._read_since is not None or self._write_by is not None:  # telling nobody costs as much
            notify_closing(self._fd)
        if self.unwatch is not None:
            self.unwatch(self)
        self._fd = -1
        self._tls = None  # it would go on with the number, which is soon another's, and this may be another task
        self._reaper.watched.discard(self)
        self.sock.close()

    # ---- inside -------------------------------------------------------------------------------------

    def _is_end_of_client(self, exc: OSError) -> bool:
        # `ssl` reports a reset as SSLEOFError too, and would suppress both alike; only the reason tells them apart.
        return (
            isinstance(exc, ssl.SSLEOFError)
            and exc.reason == "UNEXPECTED_EOF_WHILE_READING"
            and self._tls is not None
            and self._tls.server_side
        )

    async def _others_first(self) -> None:
        self._calls = 0
        await checkpoint()

    def _end_by_reset(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)

    def _timed_out(self) -> bool:
        return isinstance(self._error, StreamTimeout)

    async def _until_readable(self) -> None:
        if self._error is not None or self._fd < 0:
            raise self._why()
        self._calls = 0
        self._read_since = self._reaper.now()
        try:
            await wait_readable(self._fd)
        except trio.ClosedResourceError as exc:
            raise self._why() from exc
        finally:
            self._read_since = None

    async def _until_writable(self) -> None:
        if self._error is not None or self._fd < 0:
            raise self._why()
        self._calls = 0
        self._write_by = self._reaper.now() + self.write_patience
        try:
            await wait_writable(self._fd)
        except trio.ClosedResourceError as exc:
            if self._timed_out():
                self._end_by_reset()  # else the kernel would go on offering for minutes what nobody takes
            raise self._why() from exc
        finally:
            self._write_by = None
