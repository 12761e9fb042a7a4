"""Log lines for people: one event, one line, whatever a client has put into it."""

from __future__ import annotations

import logging
import sys


def one_line(text: str) -> str:
    """`text` with all that is not printable escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


class OneLine(logging.Formatter):
    """Escapes what is not printable (line ends, terminal escapes, bidirectional controls) in messages.

    Names, paths and headers come from clients. Unescaped, they could forge log lines or drive the terminal that
    shows them. Tracebacks keep their lines: their text is ours.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name is logging's
        """The line without a traceback, escaped."""
        return one_line(super().formatMessage(record))


def configure(level: str) -> None:
    """Log trioproxy's events at `level` and above to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logger = logging.getLogger("trioproxy")
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())
