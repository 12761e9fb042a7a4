"""The part of an HTTP/1.1 reader that both directions share: buffering, and the bodies.

How it works. `feed` keeps the very object that it is given, and `next` walks through it with a position, so a piece of
body that fills what was fed is handed out as that object, uncopied. Only what must be seen whole, a head, the line of
a chunk's size, a trailer section, is gathered in `_partial` when it arrives in parts; each has its cap, and the
search for its end goes on where it stopped, so input that comes byte by byte costs the same for each byte. What is
fed while there is still input waits in a queue.

Chunks are decoded here and not by llhttp, which cannot stop between one message and the next.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import deque
from typing import Generic, Literal, NoReturn, TypeVar

from trioproxy.config.model import Limits
from trioproxy.http.fields import FieldError, parse_trailers
from trioproxy.http.headers import clean_trailers
from trioproxy.http.messages import END as WHOLE
from trioproxy.http.messages import End, RequestHead, ResponseHead

HeadT = TypeVar("HeadT", RequestHead, ResponseHead)

MAX_CHUNK_LINE = 1024
"""Bytes in the line of a chunk's size: 16 digits, and extensions that nobody uses."""

MAX_EXTENSIONS = 16 * 1024
"""Bytes of chunk extensions in one body: they are thrown away, so more of them is only work for us."""

MAX_TRAILERS = 8 * 1024
"""Bytes in a trailer section."""

_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})(;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_BARE_LF = re.compile(rb"(?<!\r)\n")

# States. Those up to TO_END consume input.
HEAD, LENGTH, CHUNK_LINE, CHUNK_DATA, CHUNK_END, TRAILERS, TO_END = range(7)
END, STOPPED, BROKEN = range(7, 10)
_IN_DATA = (LENGTH, CHUNK_DATA, TO_END)


class MessageReader(ABC, Generic[HeadT]):
    """Bytes in, events out; see `RequestReader` and `ResponseReader`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._data = b""
        self._pos = 0
        self._queue: deque[bytes] | None = None  # made when needed: an empty one takes 760 bytes
        self._eof = False
        self._partial = bytearray()
        self._state = HEAD
        self._left = 0  # of a body with a length, or of a chunk
        self._extensions = 0

    def feed(self, data: bytes) -> None:
        """Take bytes from the connection."""
        if self._pos < len(self._data):
            if self._queue is None:
                self._queue = deque()
            self._queue.append(data)
        else:
            self._data = data
            self._pos = 0

    def feed_eof(self) -> None:
        """Take note that the peer sends nothing more."""
        self._eof = True

    def rest(self) -> bytes:
        """Everything fed and not consumed, taken out: what a peer sent behind an upgrade. The reader then stops."""
        data = b"".join((bytes(self._partial), self._data[self._pos :], *(self._queue or ())))
        self._partial.clear()
        self._queue = None
        self._data = b""
        self._pos = 0
        self._state = STOPPED
        return data

    def next(self) -> HeadT | bytes | End | None:
        """The next event, or None when more input is needed (or none is wanted any more)."""
        while (state := self._state) < END:
            if self._pos < len(self._data):
                event = self._read_head() if state == HEAD else self._step(state)
                if event is not None:
                    return event
            elif self._queue:
                self._data = self._queue.popleft()
                self._pos = 0
            else:
                return self._at_eof() if self._eof else None
        if self.over():
            return WHOLE
        if state == BROKEN:
            self._refuse("the connection is broken")
        return None

    def over(self) -> bool:
        """Whether the message ends here, without trailers. `next` then gives no End for it any more."""
        if self._state != END:
            return False
        self._ended()
        return True

    def whole(self) -> bytes | None:
        """The body, if it has a length and is all that was fed and not read; `next` gives nothing of it any more."""
        if self._state == LENGTH and len(self._data) - self._pos == self._left:
            body = self._data[self._pos :]
            self._data = b""  # not kept until something else comes
            self._pos = 0
            self._ended()
            return body
        return b"" if self.over() else None

    @property
    def unread(self) -> bool:
        """Whether anything was fed that no event has told of."""
        return self._pos < len(self._data) or bool(self._partial or self._queue)

    def _step(self, state: int) -> bytes | End | None:
        """Consume input of a body; None when the input or the present line is used up."""
        if state in _IN_DATA:
            data, pos = self._data, self._pos
            self._pos = end = len(data)
            if state != TO_END:
                if end - pos >= self._left:
                    self._pos = end = pos + self._left
                    self._state = END if state == LENGTH else CHUNK_END
                self._left -= end - pos
            return data[pos:end]  # the same object when this is all of it
        if state == CHUNK_LINE:
            self._read_chunk_line()
            return None
        if state == CHUNK_END:
            line = self._take_line(2)
            if line is not None:
                if line != b"\r\n":
                    self._refuse("a chunk does not end where its size says")
                self._state = CHUNK_LINE
            return None
        return self._read_trailers()

    @abstractmethod
    def _read_head(self) -> HeadT | None: ...

    @abstractmethod
    def _refuse(self, reason: str, status: int | None = None) -> NoReturn:
        """Break the reader and raise the error of its direction."""

    @abstractmethod
    def _too_large(self, head: bytearray) -> NoReturn: ...

    @abstractmethod
    def _ended(self) -> None:
        """A message is over: choose the state in which the next one is awaited."""

    def _at_eof(self) -> HeadT | bytes | End | None:
        if self._state != TO_END:
            self._refuse("the connection ended inside a message")
        self._ended()
        return WHOLE

    def _await_body(self, framing: int | Literal["chunked", "to end"]) -> int | None:
        """Set the state that reads a body, and say its length as heads do."""
        if isinstance(framing, int):
            self._state = LENGTH if framing else END
            self._left = framing
            return framing
        if framing == "chunked":
            self._state = CHUNK_LINE
            self._extensions = 0
        else:
            self._state = TO_END
        return None

    def _read_chunk_line(self) -> None:
        line = _CHUNK_LINE.match(self._data, self._pos) if not self._partial else None
        if line is not None and line.end() - self._pos <= MAX_CHUNK_LINE:
            self._pos = line.end()
        else:
            text = self._take_line(MAX_CHUNK_LINE)
            if text is None:
                return
            line = _CHUNK_LINE.fullmatch(text)
            if line is None:
                self._refuse("an invalid chunk size")
        if line[2]:
            self._extensions += len(line[2])
            if self._extensions > MAX_EXTENSIONS:
                self._refuse("too many chunk extensions")
        self._left = int(line[1], 16)
        self._state = CHUNK_DATA if self._left else TRAILERS

    def _read_trailers(self) -> End | None:
        if not self._partial:
            if self._data.startswith(b"\r\n", self._pos):
                self._pos += 2
                self._ended()
                return WHOLE
            # The CRLF before the section, so that its end is an empty line even when there are no fields.
            self._partial += b"\r\n"
        block = self._take_block(MAX_TRAILERS)
        if block is None:
            return None
        try:
            trailers = parse_trailers(block[2:-2])
        except FieldError as exc:
            self._refuse(str(exc))
        if len(trailers) > self._limits.header_fields:
            self._refuse("too many trailer fields", 431)
        self._ended()
        return End(tuple(clean_trailers(trailers)))

    def _take_line(self, cap: int) -> bytes | None:
        """A line with its LF, None while it is incomplete; at most `cap` bytes."""
        data, pos, partial = self._data, self._pos, self._partial
        end = data.find(b"\n", pos, pos + cap - len(partial)) + 1
        if end:
            self._pos = end
            line = bytes(partial) + data[pos:end]
            partial.clear()
            return line
        if len(data) - pos + len(partial) >= cap:
            self._refuse("a chunk's framing is too long or broken")
        partial += data[pos:]
        self._pos = len(data)
        return None

    def _take_block(self, cap: int) -> bytes | None:
        """All up to and with the next empty line, None while there is none; at most `cap` bytes."""
        data, pos, partial = self._data, self._pos, self._partial
        if not partial:
            end = data.find(b"\r\n\r\n", pos, pos + cap)
            if end >= 0:
                self._pos = end + 4
                return data[pos : end + 4]
        old = len(partial)
        partial += data[pos : pos + cap + 1 - old]
        end = partial.find(b"\r\n\r\n", max(old - 3, 0), cap)
        if _BARE_LF.search(partial, old, end + 4 if end >= 0 else cap):
            self._refuse("a line ends without CR")
        if end >= 0:
            self._pos = pos + end + 4 - old
            block = bytes(memoryview(partial)[: end + 4])
            partial.clear()
            return block
        if len(partial) > cap:
            self._too_large(partial)
        self._pos = len(data)
        return None
