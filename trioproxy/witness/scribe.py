"""Events on standard error, written by a thread: a pipe or a terminal there may take its time, and nobody waits for it.

What a process says with `logging` is written at once, wherever that leads to, so a journal that hangs would stop the
event loop and with it every connection.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from trioproxy.logs import tell_what_was_folded, write_to
from trioproxy.witness.destination import STDERR, Destination

log = logging.getLogger("trioproxy.log")

MOST = 1024 * 1024
"""Characters that may wait while nobody takes them."""

LAST = 1.0
"""Seconds that what waits at the end has to be taken in."""


class Scribe:
    """What `logging.StreamHandler` takes for a stream. Beyond `MOST` characters that wait, lines are dropped."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self._lines: list[str] = []
        self._size = 0
        self._lost = 0
        self._over = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Have a line written soon."""
        with self._news:
            ours = threading.get_ident() == self._thread.ident  # how many were lost must not be lost as well
            if self._size + len(line) > MOST and not ours:
                self._lost += 1
                return
            self._lines.append(line)
            self._size += len(line)
            self._news.notify()

    def flush(self) -> None:
        """Nothing: `logging` calls it behind each line."""

    def close(self) -> bool:
        """Have what waits written, within `LAST`. Returns whether all of it was."""
        with self._news:
            self._over = True
            self._news.notify()
        self._thread.join(LAST)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while lines := self._next():
            failed = False
            try:
                self._to.write(lines)
            except Exception:  # whatever it is, there is nobody to be told of it, and the next lines may fare better
                failed = True
            with self._news:
                self._size -= sum(map(len, lines))
                lost, self._lost = (0, self._lost + len(lines)) if failed else (self._lost, 0)
            if lost:
                log.warning("%d events were not written here: nobody took them, or the disk did not", lost)

    def _next(self) -> list[str]:
        with self._news:
            while not self._lines and not self._over:
                self._news.wait()
            lines, self._lines = self._lines, []
            return lines


@contextmanager
def events_aside() -> Iterator[None]:
    """Until the block ends, a thread writes what our loggers say. Not to begin before this process is its user's."""
    scribe = Scribe(Destination(STDERR))
    before = write_to(scribe)
    try:
        yield
    finally:
        tell_what_was_folded(math.inf)
        if scribe.close():  # else whoever says something more would wait for what nobody takes
            write_to(before)
