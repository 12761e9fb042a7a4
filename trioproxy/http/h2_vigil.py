"""How much a peer may make us do for nothing.

Every attack on HTTP/2 that needs no great bandwidth is of one kind: frames that are cheap to send and cost us work,
memory or an answer, and carry no message. So a connection has one budget for all of them. A frame that is not a
message's costs something, a stream that breaks costs more, whoever broke it (MadeYouReset provokes resets of ours);
messages that come to their end earn something, and so does time. A client that does what clients do never gets near
the end of it. The frames are counted here and not by ngh2, which has limits of its own behind ours, because a
connection that it gives up cannot be told why.

The frames are also followed to know whether a peer has stopped inside of one, or inside of a block of header fields.
"""

from __future__ import annotations

import struct

BUDGET = 3000
"""What a connection may spend at once. A client that gives up 400 requests in a moment, as a map does that is zoomed,
stays below it."""

EACH_SECOND = 100
"""What comes back with time."""

RESET = 2
"""The price of a stream that ends before its messages do; a RST_STREAM of the peer's has its own on top."""

REFUSED = 5
"""The price of a request that breaks a rule and is answered, or for which there is no room."""

MESSAGE = 4
"""What a stream earns that came to its end."""

BODY_SENT = 512
"""Bytes sent that earn 1: the peer acknowledges them by WINDOW_UPDATE, some for each frame on two levels."""

PIECE_SENT = 7
"""What a piece of body earns beside that, however small: gRPC answers each with a WINDOW_UPDATE on both levels and,
while it measures the line, with a PING."""

PREFACE = 24  # RFC 9113 section 3.4
_PREFACE_ITSELF = -1

_HEAD = 9
_read_head = struct.Struct(">BHBB4x").unpack_from  # length in two parts, type, flags; the stream's number is ngh2's

_DATA, _HEADERS, _CONTINUATION = 0, 1, 9
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8

# PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE; what is unknown here must be ignored
# (RFC 9113 section 4.1).
_PRICES = {2: 2, 3: 5, 4: 20, 5: 20, 6: 5, 7: 20, 8: 1}
_PRICE_OF_CONTINUATION = 5
_PRICE_OF_UNKNOWN = 2
_PRICE_OF_EMPTY = 2


class Vigil:
    """Watches the frames of one peer.

    Attributes:
        left: What is left of the budget; below 0 the peer must be told to calm down. Whoever does what a peer wants of
            us adds what that earns. What is above `BUDGET` is forfeit with the next frame.
    """

    __slots__ = ("_in_block", "_kind", "_partial", "_skip", "_units", "left")

    def __init__(self, preface: int = 0) -> None:
        self.left = BUDGET
        self._units = 1  # that have begun: frames, a head with its continuations as one, the preface
        self._kind = _PREFACE_ITSELF
        self._skip = preface  # bytes that still come before the next frame's head
        self._partial = b""  # the beginning of a frame's head
        self._in_block = False

    @property
    def unfinished(self) -> int:
        """0 if what has come ends with a whole frame or inside of a body; else a number that names what is missing.

        That is the rest of the preface, of a block of header fields, or of another frame. Two answers that are alike
        are about the same one.
        """
        if self._in_block or self._partial or (self._skip and self._kind != _DATA):
            return self._units
        return 0

    def look(self, data: bytes) -> None:
        """Follow what has come, and charge for it."""
        if self._partial:
            data = self._partial + data
            self._partial = b""
        if self.left > BUDGET:
            self.left = BUDGET
        position, end = self._skip, len(data)
        while position + _HEAD <= end:
            high, low, kind, flags = _read_head(data, position)
            position += _HEAD + (high << 16 | low)
            self._kind = kind
            if kind == _HEADERS:
                self._units += 1
                self._in_block = not flags & _END_HEADERS
            elif kind == _DATA:
                self._units += 1
                if flags & _PADDED or not (high or low or flags & _END_STREAM):
                    self.left -= _PRICE_OF_EMPTY
            elif kind == _CONTINUATION:
                self._in_block = not flags & _END_HEADERS
                self.left -= _PRICE_OF_CONTINUATION
            else:
                self._units += 1
                self.left -= _PRICES.get(kind, _PRICE_OF_UNKNOWN)
        if position < end:
            self._partial = data[position:]
            self._skip = 0
        else:
            self._skip = position - end

    def second(self) -> None:
        """A second has passed."""
        self.left += EACH_SECOND
