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

_DATA, _HEADERS, _PUSH_PROMISE, _CONTINUATION = 0, 1, 5, 9
_END_STREAM, _END_HEADERS, _PADDED = 1, 4, 8

# PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE,
# CONTINUATION; what is unknown here must be ignored (RFC 9113 section 4.1).
_PRICES = {_HEADERS: 0, 2: 2, 3: 5, 4: 20, _PUSH_PROMISE: 20, 6: 5, 7: 20, 8: 1, _CONTINUATION: 5}
_PRICE_OF_UNKNOWN = 2
_PRICE_OF_EMPTY = 2


class Vigil:
    """Watches the frames of one peer.

    Attributes:
        left: What is left of the budget; below 0 the peer must be told to calm down.
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
        position, end = self._skip, len(data)
        while position + 9 <= end:
            length = data[position] << 16 | data[position + 1] << 8 | data[position + 2]
            kind, flags = data[position + 3], data[position + 4]
            self._kind = kind
            if not self._in_block:
                self._units += 1
            if kind == _DATA:
                if flags & _PADDED or not (length or flags & _END_STREAM):
                    self.left -= _PRICE_OF_EMPTY
            else:
                if kind in (_HEADERS, _CONTINUATION):
                    self._in_block = not flags & _END_HEADERS
                self.left -= _PRICES.get(kind, _PRICE_OF_UNKNOWN)
            position += 9 + length
        if position < end:
            self._partial = data[position:]
            self._skip = 0
        else:
            self._skip = position - end

    def earn(self, amount: int) -> None:
        """Something was done that a peer wants us to do."""
        self.left = min(self.left + amount, BUDGET)

    def second(self) -> None:
        """A second has passed."""
        self.earn(EACH_SECOND)
