"""HTTP/2 connections without I/O: what both roles share. The only module that knows ngh2.

How it works. ngh2 (libnghttp2) does framing, HPACK, scheduling and the state of streams; this file turns its events
into ours, refuses what it lets pass, and keeps count of what it does not count.

*Flow control* is by hand. A piece of body that came stays on the peer's account until `consumed` is told of it. Each
stream may hold `STREAM_WINDOW`, and the connection's window has room for all streams at once, so that a stream nobody
reads stops no other. That window alone would make an upload over a long way slow: 64 KiB each 50 ms are 1.3 MB/s. So a
stream whose bytes are taken as they come gets a larger one, doubled each time that it was used up, out of a reserve of
the connection's that is returned when the stream ends.

*Sending.* What is sent is queued in ngh2, by stream, and leaves by `outgoing`, in turns. Whoever sends bodies looks at
`queued` and waits until that is little enough. A second piece marks the stream as incremental (RFC 9218): libnghttp2
would otherwise send one stream to its end before the next, and a stream that is always refilled has none.

*Errors.* No input makes anything raise here. A connection that breaks tells `Over`. A command about a stream that has
gone meanwhile does nothing: the one who gives it cannot know yet.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import ngh2

from trioproxy.config.model import Limits
from trioproxy.http.h2_events import Body, Closed, Code, Ended, Event, GoingAway, Over
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


class Codec:
    """One HTTP/2 connection, whichever role.

    Args:
        role: Which one.
        settings: To announce, beside what both roles do.
        limits: Of the heads that come. ngh2 itself ends the connection at four times as much.

    Attributes:
        over: Whether `Over` was told; all else is then without effect.
        closing: Whether one side has said that it ends the connection.
    """

    def __init__(self, role: ngh2.Role, settings: dict[ngh2.Setting, int], limits: Limits) -> None:
        self.over = False
        self.closing = False
        self._server = role is ngh2.Role.SERVER
        self._vigil = Vigil(PREFACE if self._server else 0)
        self._told: list[Event] = []
        self._open: set[int] = set()
        self._unread: dict[int, int] = {}  # bytes of body told and not yet consumed
        self._windows: dict[int, list[int]] = {}  # of streams that receive: the window, and what was consumed of it
        self._reserve = RESERVE
        self._sending: dict[int, bool] = {}  # streams that have sent body; whether they take turns
        self._ours: set[int] = set()  # streams that were reset by command
        self._unwanted: set[int] = set()  # streams whose message is over for us before the peer's is
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
        return len(self._open)

    def forget(self) -> None:
        """The connection is gone: heed nothing more. What heeds knows the codec, which no counting undoes."""
        self._handlers.clear()

    # ---- reading ------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take in what the peer sent; `events` then has what it means."""
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

    def events(self) -> list[Event]:
        """What has happened; to be asked after `receive` and after `outgoing`."""
        if not self.over:
            try:
                for event in self._engine.events():
                    if (handle := self._handlers.get(type(event))) is not None:
                        handle(event)
            except ngh2.NGH2Error as exc:
                self._dead(Code.INTERNAL_ERROR, str(exc))
        told = self._told
        if told:
            self._told = []
        return told

    @property
    def unfinished(self) -> int:
        """What the peer has begun and not finished, beside bodies: see `Vigil.unfinished`."""
        return self._vigil.unfinished

    def second(self) -> None:
        """To be told each second: what a peer may demand of us comes back with time."""
        self._vigil.second()

    def consumed(self, stream: int, size: int) -> None:
        """`size` bytes of body were passed on: the peer may send as many more."""
        unread = self._unread.get(stream)
        if unread is None:
            return  # it has closed, and its account with it
        self._unread[stream] = unread - size
        window = self._windows.setdefault(stream, [STREAM_WINDOW, 0])
        window[1] += size
        try:
            self._engine.acknowledge_received_data(size, stream)
            if window[1] >= window[0]:
                window[1] = 0
                if window[0] < FAST_WINDOW and self._reserve >= window[0]:
                    self._reserve -= window[0]
                    window[0] *= 2
                    self._engine.set_local_window_size(window[0], stream_id=stream)
        except _GONE:
            pass

    # ---- sending ------------------------------------------------------------------------------------

    def outgoing(self, limit: int) -> bytes:
        """At most `limit` bytes to be sent now; b"" when there are none, or the peer's windows are used up."""
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
        self._vigil.earn(len(data) // BODY_SENT)
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
        in_turns = self._sending.get(stream)
        try:
            if in_turns is None:
                self._sending[stream] = False
            elif not in_turns:
                self._sending[stream] = True
                if self._server:
                    wish = self._engine.get_stream_priority(stream)
                    turns = ngh2.Priority(3 if wish is None else wish.urgency, incremental=True)
                    self._engine.set_stream_priority(stream, turns, ignore_client_signal=True)
            self._engine.send_data(stream, data, end_stream=end)
            self._vigil.earn(PIECE_SENT)
        except _GONE:
            pass

    def end(self, stream: int, trailers: Sequence[Header] = ()) -> None:
        """End the message.

        Raises:
            ValueError: a trailer that HTTP/2 does not allow.
        """
        fields = fields_to_send([], trailers) if trailers else None
        try:
            if fields:
                self._engine.send_trailers(stream, fields)
            else:
                self._engine.end_stream(stream)
        except _GONE:
            pass

    def leave(self, stream: int) -> None:
        """Our message has ended, and what is still to come of the peer's is not wanted."""
        if stream in self._open:
            self._unwanted.add(stream)

    def reset(self, stream: int, code: int = Code.CANCEL) -> None:
        """Break the stream off; what is queued for it is dropped."""
        if stream in self._open:
            self._ours.add(stream)
        if code == Code.REFUSED_STREAM:
            self._vigil.left -= REFUSED
        with contextlib.suppress(*_GONE):
            self._engine.reset_stream(stream, code)

    # ---- the end ------------------------------------------------------------------------------------

    def goaway(self) -> None:
        """Take no further streams; `Over` is told when those that there are have ended."""
        self.closing = True
        with contextlib.suppress(*_GONE):
            self._engine.send_goaway(Code.NO_ERROR)

    def terminate(self, code: int) -> None:
        """End the connection at once: GOAWAY, and all streams are gone. `Over` is told once that has left."""
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
        self._told += [Closed(stream, code, ours=False) for stream in sorted(self._open)]
        self._told.append(Over(code, reason))
        self._open.clear()

    # ---- ngh2's events ------------------------------------------------------------------------------

    def _on_trailers(self, event: ngh2.TrailersReceived) -> None:
        if event.stream_id not in self._unwanted:
            self._told.append(Ended(event.stream_id, End(tuple(clean_trailers(event.headers)))))

    def _on_goaway(self, event: ngh2.GoAwayReceived) -> None:
        self.closing = True
        self._told.append(GoingAway(event.last_stream_id, event.error_code))

    def _on_end(self, event: ngh2.ConnectionClosed) -> None:
        if not self.over:
            self._finish(event.error_code, event.debug_data.decode("latin-1"))

    def _on_data(self, event: ngh2.DataReceived) -> None:
        stream, data = event.stream_id, event.data
        if stream in self._unwanted or stream not in self._open:
            self._unread[stream] = self._unread.get(stream, 0) + len(data)
            self.consumed(stream, len(data))
            return
        if data:
            self._unread[stream] = self._unread.get(stream, 0) + len(data)
            self._told.append(Body(stream, data))
        if event.end_stream:
            self._told.append(Ended(stream, END))

    def _on_closed(self, event: ngh2.StreamClosed) -> None:
        stream, code = event.stream_id, event.error_code
        ours = stream in self._ours
        if not ours:
            if code:
                self._vigil.left -= RESET
            else:
                self._vigil.earn(MESSAGE)
        unread = self._unread.get(stream)
        if unread is not None:
            self.consumed(stream, unread)  # the connection's window, which other streams go on with
            del self._unread[stream]
            self._reserve += self._windows.pop(stream, (STREAM_WINDOW, 0))[0] - STREAM_WINDOW
        self._sending.pop(stream, None)
        if ours:
            self._ours.discard(stream)
        if self._unwanted:
            self._unwanted.discard(stream)
        if stream in self._open:
            self._open.discard(stream)
            self._told.append(Closed(stream, code, ours))
