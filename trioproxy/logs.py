"""Events for people or programs: one event, one line, whatever a client has put into it, and nothing a thousand times.

What is said again within a minute is counted instead, and the count is said when the minute is over. That goes for
warnings and errors about the same thing, and for information about the same client beyond `FREE` in a minute, for that
comes as often as a client likes.

Two attributes may be given to a record by `extra`: `about`, what it is about where that is not its first argument, and
`site`, the configured name that it concerns.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from typing import Literal, Protocol, runtime_checkable

import attrs

MINUTE = 60.0

FREE = 10
"""Times that information about the same client is said as it comes."""

MOST = 1000
"""Things of which is remembered that they were said; the oldest is told of and forgotten."""


@runtime_checkable
class Caller(Protocol):
    """A client's connection (`net.listen.Peer`), as an argument of a message."""

    host: str
    number: int

    @property
    def address(self) -> str:
        """Address and port."""


class Writer(Protocol):
    """Where lines go."""

    def write(self, line: str, /) -> object:
        """Take a line, with its end."""

    def flush(self) -> object:
        """See that it gets there."""


def one_line(text: str) -> str:
    """`text` with all that is not printable escaped (line ends, terminal escapes, bidirectional controls)."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class OneLine(logging.Formatter):
    """For people. Messages are escaped by `one_line`.

    Names, paths and headers come from clients. Unescaped, they could forge log lines or drive the terminal that
    shows them. Tracebacks keep their lines: their text is ours.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line without a traceback, escaped."""
        return one_line(super().formatMessage(record))


class JsonLine(logging.Formatter):
    """For programs: an object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """All there is to say, a traceback included."""
        at = time.localtime(record.created)
        zone = time.strftime("%z", at)
        said: dict[str, object] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}.{int(record.msecs):03d}{zone[:3]}:{zone[3:]}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        caller = _caller(record)
        if caller is not None:
            said |= {"connection": caller.number, "client": caller.address}
        if site := getattr(record, "site", ""):
            said["name"] = site
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        return json.dumps(said)


FORMATTERS: dict[str, type[logging.Formatter]] = {"console": OneLine, "json": JsonLine}


# ---- what is said again ---------------------------------------------------------------------------------


@attrs.define
class _Said:
    """Something that was said, and may be said again.

    Attributes:
        until: The monotonic time at which its minute ends.
        logger: Its logger's name.
        level: Its level.
        site: As in the record.
        text: The message, as it was to be said last. Not the record, which may hold on to all that an error does.
        times: How often it was said as it came.
        more: How often it was not, in this minute.
    """

    until: float
    logger: str
    level: int
    site: str
    text: str
    times: int = 1
    more: int = 0

    def summary(self) -> logging.LogRecord:
        """The record that tells how often."""
        often = "once more" if self.more == 1 else f"{self.more} more times"
        record = logging.LogRecord(
            self.logger, self.level, "", 0, "%s … %s in the last minute", (self.text, often), None
        )
        record.site = self.site
        return record


class Folds:
    """Decides which records are said. The time, monotonic, is handed in."""

    def __init__(self) -> None:
        self._said: dict[tuple[object, ...], _Said] = {}

    def hear(self, record: logging.LogRecord, now: float) -> Iterator[logging.LogRecord]:
        """What to say at `record`: itself, or nothing yet; before it what has to be told before it is forgotten."""
        key, free = _key(record)
        if key is None:
            yield record
            return
        known = self._said.get(key)
        if known is not None and known.until <= now and not known.more:
            del self._said[key]
            known = None
        if known is None:
            if len(self._said) >= MOST:
                oldest = self._said.pop(next(iter(self._said)))
                if oldest.more:
                    yield oldest.summary()
            site = getattr(record, "site", "")
            self._said[key] = _Said(now + MINUTE, record.name, record.levelno, site, record.getMessage())
            yield record
            return
        known.text = record.getMessage()
        if known.times < free:
            known.times += 1
            yield record
        else:
            known.more += 1

    def due(self, now: float) -> list[logging.LogRecord]:
        """The counts of minutes that are over. What was counted goes on being counted, until a minute without any."""
        told = []
        for key, said in list(self._said.items()):
            if said.until > now:
                continue
            if said.more:
                told.append(said.summary())
                said.more = 0
                said.until = now + MINUTE
            else:
                del self._said[key]
        return told


def _key(record: logging.LogRecord) -> tuple[tuple[object, ...] | None, int]:
    """By what a record is known as said before, None for one that is always said; and how often it is said anyhow."""
    trouble = record.levelno >= logging.WARNING
    caller = _caller(record)
    if not trouble and (caller is None or record.levelno < logging.INFO):
        return None, 0
    about = getattr(record, "about", None)
    if about is None:
        first = next(iter(_arguments(record)), None) if trouble else caller
        about = first.host if isinstance(first, Caller) else str(first)
    fault = record.exc_info[0] if record.exc_info else None
    return (record.name, record.levelno, record.msg, about, fault), 1 if trouble else FREE


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    return record.args if isinstance(record.args, tuple) else ()


def _caller(record: logging.LogRecord) -> Caller | None:
    return next((argument for argument in _arguments(record) if isinstance(argument, Caller)), None)


class Folding(logging.StreamHandler):  # type: ignore[type-arg]  # as it is at run time
    """Writes to standard error what `Folds` lets through."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)
        self._folds = Folds()

    def emit(self, record: logging.LogRecord) -> None:
        """Say it, unless it was said a moment ago."""
        for said in self._folds.hear(record, time.monotonic()):
            super().emit(said)

    def tell(self, now: float | None = None) -> None:
        """Say how often was left unsaid what was said within minutes that are over at the monotonic time `now`."""
        self.acquire()
        try:
            for said in self._folds.due(time.monotonic() if now is None else now):
                super().emit(said)
        finally:
            self.release()

    def close(self) -> None:
        """Say what is left to say: the process ends."""
        self.tell(float("inf"))
        super().close()


def configure(level: str, how: Literal["console", "json"] = "console") -> None:
    """Log trioproxy's events at `level` and above to standard error. May be called again, for other settings."""
    logger = logging.getLogger("trioproxy")
    handler = _handler()
    handler.setFormatter(FORMATTERS[how]())
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


def write_to(stream: Writer) -> Writer:
    """Have events written to `stream` from now on; to be called after `configure`. Returns where they went before."""
    handler = _handler()
    before: Writer = handler.stream
    handler.setStream(stream)
    return before


def _handler() -> Folding:
    handlers = logging.getLogger("trioproxy").handlers
    return next((known for known in handlers if isinstance(known, Folding)), None) or Folding()


def tell_what_was_folded(now: float | None = None) -> None:
    """To be called now and then: say how often something happened again in minutes that are over, at `now` if given."""
    for handler in logging.getLogger("trioproxy").handlers:
        if isinstance(handler, Folding):
            handler.tell(now)
