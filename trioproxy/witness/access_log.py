"""The access log: a line for each request and each tunnel, written by one task within a moment of its end.

What happens on connections is put aside, and made lines many at a time: in between two other things each line would
take three times as long. The task takes all lines that there are, ten times a second at most, and has a thread write
them, because a disk or a pipe may take its time. Meanwhile further lines wait, up to `MOST`; those that come then are
dropped and counted. Nothing that goes wrong with the log concerns a connection.
"""

from __future__ import annotations

import logging
import time

import trio
from trio.lowlevel import checkpoint_if_cancelled

from trioproxy.config.model import Log
from trioproxy.witness.destination import STDOUT, Destination
from trioproxy.witness.formats import Format, format_of
from trioproxy.witness.records import Exchange, Passage
from trioproxy.witness.witness import Listener, Witness

log = logging.getLogger("trioproxy.access")

COLLECT = 0.1
"""Seconds from the first line that waits until all that do are written."""

AT_ONCE = 64
"""Records that are made lines together, if so many come within `COLLECT`."""

MOST = 2 * 1024 * 1024
"""Characters that may wait while the destination takes none: 5 seconds of as many requests as there can be."""

LAST = 1.0
"""Seconds that a destination gets at the end to take what waits."""


class AccessLog(Listener):
    """Keeps the access log that `[log]` asks for, and listens to `witness` where it asks for one.

    Attributes:
        dropped: How many lines were not written, since the start.
    """

    def __init__(self, witness: Witness, settings: Log) -> None:
        self.dropped = 0
        self._witness = witness
        self._settings = Log(access="")
        self._format: Format = format_of("console")
        self._to: Destination | None = None
        self._heard: list[tuple[Exchange | Passage, float]] = []  # what is not yet a line, and when it was
        self._lines: list[str] = []
        self._size = 0
        self._leaving: list[tuple[Destination, list[str]]] = []  # what was to be written to before
        self._asked = trio.Event()
        self._threads = trio.CapacityLimiter(2)  # one that writes, and at the end one that waits for it
        self._told = ""  # the trouble that was told of, until it is over
        self._unwritten = 0  # lines since then
        self.apply(settings)

    def apply(self, settings: Log) -> None:
        """Go by `settings` from now on; the lines that wait go where they were to go."""
        self._make_lines()
        old, self._settings = self._settings, settings
        self._format = format_of(settings.access_format)
        if settings.access != old.access:
            if self._to is not None:
                self._leaving.append((self._to, self._lines))
                self._lines, self._size = [], 0
                self._asked.set()
            to = STDOUT if settings.access == "-" else settings.access
            self._to = Destination(to) if to else None
            self._witness.remove(self)
            if self._to is not None:
                self._witness.add(self)

    def reopen(self) -> None:
        """The file was moved away: go on with a new one of its name."""
        if self._to is not None:
            self._to.reopen()
            self._asked.set()

    # ---- hearing ------------------------------------------------------------------------------------

    def exchange(self, exchange: Exchange) -> None:
        """See `Listener`."""
        self._hear(exchange)

    def passage(self, passage: Passage) -> None:
        """See `Listener`."""
        self._hear(passage)

    def _hear(self, record: Exchange | Passage) -> None:
        heard = self._heard
        if not heard:
            self._asked.set()
        heard.append((record, time.time()))
        if len(heard) >= AT_ONCE:
            self._make_lines()

    def _make_lines(self) -> None:
        heard, self._heard = self._heard, []
        write = self._format
        lost = 0
        for record, when in heard:
            line = write.exchange(record, when) if isinstance(record, Exchange) else write.passage(record, when)
            if self._size + len(line) > MOST:
                lost += 1
            elif line:
                self._size += len(line)
                self._lines.append(line)
        if lost:
            self._lost(lost, "nobody takes what is written there")

    # ---- writing ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write what is heard, until cancelled; then what still waits."""
        try:
            while True:
                await self._asked.wait()
                await trio.sleep(COLLECT)
                await self._write()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + LAST) as scope:
                await self._write()
            if scope.cancelled_caught:
                log.error("access log: %s did not take the last lines within %g s", self._to, LAST)

    async def _write(self) -> None:
        self._asked = trio.Event()
        while self._leaving:
            await checkpoint_if_cancelled()
            destination, lines = self._leaving.pop(0)
            await self._write_to(destination, lines)
            destination.close()
        await checkpoint_if_cancelled()
        self._make_lines()
        if self._to is not None:
            lines, self._lines, self._size = self._lines, [], 0
            await self._write_to(self._to, lines)

    async def _write_to(self, destination: Destination, lines: list[str]) -> None:
        """Have `lines` written. Whoever was not cancelled before the call can be sure that it is begun."""
        try:
            # Abandoned only at the end: until then the next lines wait for these.
            await trio.to_thread.run_sync(destination.write, lines, abandon_on_cancel=True, limiter=self._threads)
        except OSError as exc:
            self._lost(len(lines), exc.strerror or str(exc))
        else:
            if self._told and lines:
                log.warning("access log: %s takes lines again; %d were lost", destination, self._unwritten)
                self._told = ""
                self._unwritten = 0

    def _lost(self, count: int, why: str) -> None:
        self.dropped += count
        self._unwritten += count
        if not self._told:
            self._told = why
            log.error("access log: %s: %s. Lines are dropped until that is over; requests go on", self._to, why)
