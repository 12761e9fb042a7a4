"""How long one side of a connection is waited for, and what ended that."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

from trioproxy.errors import ConnectionLost, StreamError
from trioproxy.net.reaper import Reaper


class Patience:
    """The part of a `Stream` that knows of time; `sock` tells why a stream has its own.

    Attributes:
        deadline: Trio time by which the present phase must be over, however much comes; `math.inf` for never.
        write_patience: Seconds that the peer may take to accept more.
    """

    __slots__ = (
        "_error",
        "_heed",
        "_read_patience",
        "_read_since",
        "_reaper",
        "_write_by",
        "deadline",
        "write_patience",
    )

    def __init__(self, reaper: Reaper) -> None:
        self.deadline = math.inf
        self.write_patience = math.inf
        self._read_patience = math.inf
        self._read_since: float | None = None  # None while nobody waits
        self._write_by: float | None = None
        self._error: StreamError | None = None
        self._heed: Callable[[], None] | None = None
        self._reaper = reaper

    def expect(self, seconds: float) -> None:
        """From now on the peer may be silent for at most `seconds` while we read, also for a read under way."""
        self._read_patience = seconds
        if self._read_since is not None:
            self._read_since = self._reaper.now()

    def await_for(self, heed: Callable[[], None] | None) -> None:
        """From now on the peer's silence counts, though nobody sleeps here: `heed` is called when `interrupt` is.

        None: it counts no more.
        """
        self._heed = heed
        self._read_since = None if heed is None else self._reaper.now()

    def overdue(self, now: float) -> bool:
        """Whether a deadline has passed at the Trio time `now`."""
        return (
            self.deadline < now
            or (self._read_since is not None and self._read_since + self._read_patience < now)
            or (self._write_by is not None and self._write_by < now)
        )

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called, and `resume` not since."""
        return self._error is not None

    @property
    def idle_since(self) -> float | None:
        """The Trio time since when it waits for its peer to send; None while it does not, or was told to end."""
        return self._read_since if self._error is None else None

    def resume(self) -> None:
        """Forget an interruption: the stream is used again, to say goodbye on it."""
        self._error = None

    def _why(self) -> StreamError:
        """What ended it. A copy: raised itself, it would hold the frames that hold this stream, for the collector."""
        return ConnectionLost("closed by us") if self._error is None else copy.copy(self._error)
