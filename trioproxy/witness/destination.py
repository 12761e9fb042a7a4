"""Where lines of a log go: a file or standard output. This is the part that may block, so it runs in a thread.

A line is there as a whole or not at all. A file gets all lines of a moment by one write, behind what others have
appended (O_APPEND). A pipe gets no more at once than it takes in one piece, so that the lines of several processes do
not mix; one that is full is waited for.
"""

from __future__ import annotations

import contextlib
import os
import select
import stat
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

STDOUT = 1
STDERR = 2

MODE = 0o640
"""Of a file that is made: addresses of clients are nobody's business, and programs that read logs have a group."""

_NAMES = {STDOUT: "standard output", STDERR: "standard error"}

ONE_PIECE = 4096
"""Bytes that a pipe takes in one piece, if it takes any (PIPE_BUF of Linux)."""


class Destination:
    """A file, opened when it is first written to, or a descriptor, `STDOUT` or `STDERR`. For one thread at a time."""

    def __init__(self, where: Path | int) -> None:
        self._where = where
        self._descriptor: int | None = None
        self._regular = False
        self._stale = False
        self._torn = False  # a write broke off within a line
        self._lock = threading.Lock()

    def __str__(self) -> str:
        return _NAMES[self._where] if isinstance(self._where, int) else str(self._where)

    def reopen(self) -> None:
        """Open the file anew before anything else is written: this one has been moved away. For any thread."""
        self._stale = True

    def write(self, lines: Sequence[str]) -> None:
        """Append `lines`, each with its end.

        Raises:
            OSError: some or all of them could not be written.
        """
        with self._lock:
            if self._stale:
                self._stale = False
                self._close()
            if self._descriptor is None:
                self._open()
            for piece in [b"".join(_encoded(lines))] if self._regular else _pieces(_encoded(lines)):
                self._put(b"\n" + piece if self._torn else piece)

    def close(self) -> None:
        """Close the file. Never fails."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None and not isinstance(self._where, int):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def _open(self) -> None:
        self._torn = False
        if isinstance(self._where, int):
            at_start = {STDOUT: sys.__stdout__, STDERR: sys.__stderr__}
            if at_start.get(self._where, True) is None:  # closed, so that the number may be another's by now
                raise OSError("it is closed")
            self._descriptor = self._where
        else:
            self._descriptor = _open_file(self._where)
        self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)

    def _put(self, data: bytes) -> None:
        if self._descriptor is None:
            raise TypeError("not open")
        rest = memoryview(data)
        try:
            while rest:
                try:
                    rest = rest[os.write(self._descriptor, rest) :]
                except BlockingIOError:  # whoever shares it with us has made it so
                    _until_writable(self._descriptor)
            self._torn = False
        except OSError:
            if len(rest) < len(data):
                self._torn = data[-len(rest) - 1] != ord("\n")
            raise


def _open_file(path: Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
    with contextlib.suppress(FileExistsError):
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, MODE)
        os.fchmod(descriptor, MODE)  # whatever the umask
        return descriptor
    return os.open(path, flags | os.O_CREAT, MODE)


def _until_writable(descriptor: int) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    poll.poll()


def _encoded(lines: Sequence[str]) -> Iterator[bytes]:
    return (line.encode("utf-8", "backslashreplace") for line in lines)


def _pieces(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Lines put together, as many as go into one piece."""
    piece = b""
    for line in lines:
        if piece and len(piece) + len(line) > ONE_PIECE:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
