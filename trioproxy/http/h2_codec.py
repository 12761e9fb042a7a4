"""HTTP/2 connections without I/O: what both roles share. The only module that knows ngh2.

How it works. ngh2 (libnghttp2) does framing, HPACK, scheduling and the state of streams; this file tells what
its events mean, refuses what it lets pass, and keeps count of what it does not count.

*Flow control* is by hand. A piece of body that came stays on the peer's account until `consumed` is told of it. Each
stream may hold `STREAM_WINDOW`, and the connection's window has room for all streams at once, so that a stream nobody
reads stops no other. That window alone would make an upload over a long way slow: 64 KiB each 50 ms are 1.3 MB/s. So a
stream whose bytes are taken as they come gets a larger one, doubled each time that it was used up, out of a reserve of
the connection's that is returned when the stream ends.

*Sending.* What is sent is queued in ngh2, by stream, and leaves by `outgoing`, in turns. Whoever sends bodies looks at
`queued` and waits until that is little enough. A second piece that is not the last marks the stream as incremental (RFC
9218): libnghttp2 would otherwise send one stream to its end before the next, and one that is always refilled has none.

*Telling.* What has happened is told by calls of the listener, at the end of `receive` and `outgoing`; it may give any
command but these two.

*Errors.* No input makes anything raise here. A connection that breaks is told as `on_over`. A command about a stream
that has gone meanwhile does nothing: the one who gives it cannot know yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import ngh2

from trioproxy.config.model import Limits
from trioproxy.http.h2_events import Code, Listener
from trioproxy.http.h2_heads import fields_to_send
from trioproxy.http.h2_vigil import BODY_SENT, MESSAGE, PIECE_SENT, PREFACE, REFUSED, RESET, Vigil
from trioproxy.http.headers import clean_trailers
from trioproxy.http.messages import END, End, Header

MAX_STREAMS = 128
"""That a peer may have open at once."""

STREAM_WINDOW = 64 * 1024
"""Bytes of body that a stream holds which nobody takes."""

FAST_WINDOW = 1024 * 1024
"""Bytes that a stream may hold whose bytes are taken: 20 MB/s over 50 ms."""

RESERVE = 4 * 1024 * 1024
"""Bytes for which the windows of a connection's fast streams may exceed `STREAM_WINDOW`."""

CONNECTION_WINDOW = MAX_STREAMS * STREAM_WINDOW + RESERVE

_GONE = (ngh2.StreamProtocolError, ngh2.ConnectionStateError, ngh2.ConnectionClosingError)
"""What ngh2 says to a command about a stream, or by a connection, that has ended."""

_GOAWAY = b"\0\0\x08\x07\0\0\0\0\0"  # a frame's head: 8 bytes of GOAWAY on stream 0


class Account:
    """What is kept of an open stream: until something is other than with most of them, what the class says."""

    size = 0  # of its head, while that is kept
    method = b""  # of the request, in a client
    interim = 0  # bytes of heads below 200, which no window holds back
    unread = 0  # bytes of body told and not yet consumed
    window = STREAM_WINDOW
    used = 0  # bytes consumed of that
    refilled = 0  # pieces of body given that were not the last
    ours = False  # reset by command


class Codec:
    """One HTTP/2 connection, whichever role.

    Args:
        role: Which one.
        settings: To announce, beside what both roles do.
        limits: Of the heads that come. ngh2 itself ends the connection at four times as much.
        listener: Who is told what happens.

    Attributes:
        over: Whether `on_over` was called; all else is then without effect.
        closing: Whether one side has said that it ends the connection.
    """

    def __init__(self, role: ngh2.Role, settings: dict[ngh2.Setting, int], limits: Limits, listener: Listener) -> None:
        self.over = False
        self.closing = False
        self._server = role is ngh2.Role.SERVER
        self._vigil = Vigil(PREFACE if self._server else 0)
        self._listener = listener
        self._streams: dict[int, Account] = {}  # that are open, of those that were told or begun
        self._unwanted: set[int] = set()  # streams whose message is over for us before the peer's is
        self._reserve = RESERVE
        self._held = 0  # bytes of the heads of all open streams
        self._at_boundary = True  # between two frames
        self._last_words = b""
        self._handlers: dict[type[ngh2.Event], Callable[[Any], None]] = {
            ngh2.DataReceived: self._on_data,
            ngh2.TrailersReceived: self._on_trailers,
            ngh2.StreamClosed: self._on_closed,
            ngh2.GoAwayReceived: self._on_goaway,
            ngh2.ConnectionClosed: self._on_end,
        }
        self._engine = ngh2.Connection(
            role,
            ngh2.Configuration(
                auto_window_update=False,
                max_outbound_ack=200,
                stream_reset_rate_limit=(1000, 100),
                glitch_rate_limit=(3000, 300),
                max_inbound_header_list_size=4 * limits.header_size,
                max_inbound_header_count=4 * limits.header_fields,
            ),
        )
        self._engine.initiate_connection(
            {
                ngh2.Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.header_size,
                **settings,
            }
        )
        self._engine.set_local_window_size(CONNECTION_WINDOW)

    @property
    def streams(self) -> int:
        """How many are open, of those that were told or begun."""
        return len(self._streams)

    @property
    def restless(self) -> bool:
        """Whether `outgoing` is to be called: there is something to send, or the end is near."""
        return self.closing or self._engine.want_write

    def forget(self) -> None:
        """The connection is gone: tell nothing more. What tells knows the codec, which no counting undoes."""
        self._handlers.clear()
        del self._listener

    # ---- reading ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what the peer sent, and tell what it means."""
        if self.over:
            return
        vigil = self._vigil
        vigil.look(data)
        if vigil.left < 0:
            self.terminate(Code.ENHANCE_YOUR_CALM)
            return
        try:
            self._engine.receive_data(data)
        except ngh2.ConnectionStateError:
            pass  # we are leaving it already
        except ngh2.DenialOfServiceError as exc:
            self._dead(Code.ENHANCE_YOUR_CALM, str(exc))
        except ngh2.NGH2Error as exc:
            self._dead(Code.PROTOCOL_ERROR, str(exc))
        self._tell()

    def _tell(self) -> None:
        if self.over:
            return
        try:
            for event in self._engine.events():
                self._handlers.get(type(event), _ignore)(event)
        except ngh2.NGH2Error as exc:
            self._dead(Code.INTERNAL_ERROR, str(exc))

    @property
    def unfinished(self) -> int:
        """What the peer has begun and not finished, beside bodies: see `Vigil.unfinished`."""
        return self._vigil.unfinished

    def second(self) -> None:
        """To be told each second: what a peer may demand of us comes back with time."""
        self._vigil.second()

    def consumed(self, stream: int, size: int) -> None:
        """`size` bytes of body were passed on: the peer may send as many more."""
        account = self._streams.get(stream)
        if account is None:
            return  # it has closed, and what it held was returned
        account.unread -= size
        account.used += size
        self._acknowledge(stream, size)
        window = account.window
        if account.used >= window:
            account.used = 0
            if window < FAST_WINDOW and self._reserve >= window:
                self._reserve -= window
                account.window = 2 * window
                with contextlib.suppress(*_GONE):
                    self._engine.set_local_window_size(account.window, stream_id=stream)

    def _acknowledge(self, stream: int, size: int) -> None:
        try:  # noqa: SIM105 - as each piece passes here
            self._engine.acknowledge_received_data(size, stream)
        except _GONE:
            pass

    # ---- sending ------------------------------------------------------------------------------------

    def outgoing(self, limit: int) -> bytes:
        """At most `limit` bytes to be sent now; b"" when there are none, or the peer's windows are used up.

        Tells what that brings about: streams end when they are sent.
        """
        if self.over:
            data, self._last_words = self._last_words, b""
            return data
        try:
            data = self._engine.data_to_send(limit)
            self._at_boundary = len(data) < limit
            if self._unwanted and self._at_boundary:
                self._leave_unwanted()
                data += self._engine.data_to_send(limit - len(data))
        except ngh2.NGH2Error as exc:
            self._dead(Code.INTERNAL_ERROR, str(exc))
            return b""
        self._vigil.left += len(data) // BODY_SENT
        self._tell()
        return data

    def _leave_unwanted(self) -> None:
        """RFC 9113 section 8.1: a response may be whole before its request is, and NO_ERROR stops the rest of that."""
        for stream in [s for s in self._unwanted if not self._engine.queued_body_size(s)]:
            self._unwanted.discard(stream)
            self.reset(stream, Code.NO_ERROR)

    def queued(self, stream: int) -> int:
        """Bytes of body that were given for `stream` and have not left by `outgoing`."""
        return 0 if self.over else self._engine.queued_body_size(stream)

    def body(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a piece of body; with `end` it is the last, and no trailers follow."""
        if not end:
            self._refilled(stream)
        try:
            self._engine.send_data(stream, data, end_stream=end)
        except _GONE:
            return
        self._vigil.left += PIECE_SENT

    def _refilled(self, stream: int) -> None:
        """`stream` gets a piece of body that is not its last: from the second on it takes turns with the others."""
        account = self._streams.get(stream)
        if account is None:
            return
        account.refilled += 1
        if account.refilled == 2 and self._server:
            with contextlib.suppress(*_GONE):
                wish = self._engine.get_stream_priority(stream)
                turns = ngh2.Priority(3 if wish is None else wish.urgency, incremental=True)
                self._engine.set_stream_priority(stream, turns, ignore_client_signal=True)

    def end(self, stream: int, trailers: Sequence[Header] = ()) -> None:
        """End the message.

        Raises:
            ValueError: a trailer that HTTP/2 does not allow.
        """
        fields = fields_to_send(trailers) if trailers else None
        try:
            if fields:
                self._engine.send_trailers(stream, fields)
            else:
                self._engine.end_stream(stream)
        except _GONE:
            pass

    def leave(self, stream: int) -> None:
        """Our message has ended, and what is still to come of the peer's is not wanted."""
        if stream in self._streams:
            self._unwanted.add(stream)

    def reset(self, stream: int, code: int = Code.CANCEL) -> None:
        """Break the stream off; what is queued for it is dropped."""
        if (account := self._streams.get(stream)) is not None:
            account.ours = True
        if code == Code.REFUSED_STREAM:
            self._vigil.left -= REFUSED
        with contextlib.suppress(*_GONE):
            self._engine.reset_stream(stream, code)

    # ---- the end ------------------------------------------------------------------------------------

    def goaway(self) -> None:
        """Take no further streams; `on_over` is called when those that there are have ended."""
        self.closing = True
        with contextlib.suppress(*_GONE):
            self._engine.send_goaway(Code.NO_ERROR)

    def terminate(self, code: int) -> None:
        """End the connection at once: GOAWAY, and all streams are gone. `on_over` is called once that has left."""
        self.closing = True
        with contextlib.suppress(*_GONE):
            self._engine.terminate_connection(code)

    def _dead(self, code: Code, reason: str) -> None:
        """ngh2 has given the connection up and will not say goodbye: that is left to us, where it can be understood."""
        if self._at_boundary:
            self._last_words = _GOAWAY + bytes(4) + code.to_bytes(4, "big")
        self._finish(code, reason)

    def _finish(self, code: int, reason: str) -> None:
        self.over = self.closing = True
        streams, self._streams = self._streams, {}
        for stream in sorted(streams):
            self._listener.on_closed(stream, code)
        self._listener.on_over(code, reason)

    # ---- ngh2's events ------------------------------------------------------------------------------

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        if event.stream_id not in self._unwanted:
            self._listener.on_end(event.stream_id, End(tuple(clean_trailers(event.headers))))

    def _on_goaway(self, _: ngh2.GoAwayReceived) -> None:
        self.closing = True

    def _on_end(self, event: ngh2.ConnectionClosed) -> None:
        if not self.over:
            self._finish(event.error_code, event.debug_data.decode("latin-1"))

    def _on_data(self, event: ngh2.DataReceived) -> None:
        stream, data = event.stream_id, event.data
        account = self._streams.get(stream)
        if account is None or stream in self._unwanted:
            self._acknowledge(stream, len(data))
            return
        if data:
            account.unread += len(data)
            self._listener.on_body(stream, data)
        if event.end_stream:
            self._listener.on_end(stream, END)

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        stream, code = event.stream_id, event.error_code
        account = self._streams.pop(stream, None)
        if account is None or not account.ours:
            self._vigil.left += -RESET if code else MESSAGE
        if account is None:
            return  # nobody was told of it
        self._held -= account.size
        self._reserve += account.window - STREAM_WINDOW
        if account.unread:
            self._acknowledge(stream, account.unread)  # to the connection's window, which other streams go on with
        self._listener.on_closed(stream, code)


def _ignore(_: ngh2.Event) -> None:
    """What ngh2 has seen to itself."""
