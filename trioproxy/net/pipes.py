"""Pipes for `os.splice`: bytes that go from socket to socket through one of them are never copied to us.

A pipe costs two descriptors and, while it is full, its pages; so there are few, they are taken for as long as a stream
is really busy, and given back. A pipe that still holds bytes is never given to another stream: it is closed.
"""

from __future__ import annotations

import fcntl
import os

SIZE = 1024 * 1024
"""Bytes asked for. What fits depends on how the bytes arrived: each piece of a received packet takes one of 256 places,
so a pipe can be full with 2,560 bytes in it."""

MOST = 64
"""Pipes at once. An unprivileged user may have 16,384 pages in pipes before the kernel makes them small (fs.pipe-user-
pages-soft), which is 64 of these."""


class Pipe:
    """A pipe, and how many bytes are in it: EAGAIN alone does not tell a full pipe from an empty socket."""

    __slots__ = ("held", "read_end", "write_end")

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            fcntl.fcntl(self.write_end, fcntl.F_SETPIPE_SZ, SIZE)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close both ends, and lose what is in it."""
        os.close(self.read_end)
        os.close(self.write_end)


class Pipes:
    """Lends pipes.

    Attributes:
        lent: How many are with streams.
    """

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self.lent = 0

    @property
    def free(self) -> int:
        """How many are kept for the next streams."""
        return len(self._free)

    def take(self) -> Pipe | None:
        """An empty pipe; None when there are enough, or the kernel gives no more: then bytes are copied instead."""
        if self._free:
            self.lent += 1
            return self._free.pop()
        if self.lent >= MOST:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self.lent += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Take back what was lent."""
        self.lent -= 1
        if pipe.held or len(self._free) >= MOST:
            pipe.close()
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close what is not lent."""
        while self._free:
            self._free.pop().close()
