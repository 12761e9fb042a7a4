"""Which of several backends to try first: those that failed are set aside for a while."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

import attrs

log = logging.getLogger("trioproxy.failover")

SET_ASIDE = 10.0
"""Seconds for which a backend is passed over after it failed, doubled each time that it fails again after them."""

LONGEST = 60.0
"""The most that this grows to."""

FORGET = 600.0
"""Seconds after which a backend that nobody has asked for is forgotten: it may be configured no more."""


BackendT = TypeVar("BackendT", bound=Hashable)
"""Whatever tells backends apart, and names one in the log."""


@attrs.define
class _Trouble:
    """A backend that failed.

    Attributes:
        pause: Seconds for which it was set aside last.
        until: When it may be tried again.
        failed: When it was found to fail. All three in Trio time.
    """

    pause: float
    until: float
    failed: float


class Failover(Generic[BackendT]):
    """Remembers which backends failed. It decides and waits for nothing; the time is handed in."""

    def __init__(self) -> None:
        self._troubles: dict[BackendT, _Trouble] = {}

    def in_turn(self, addresses: Sequence[BackendT], now: float) -> list[BackendT]:
        """`addresses` in the order in which to try them: those set aside come last, and else their order counts."""
        aside = [address for address in addresses if self._is_aside(address, now)]
        return [address for address in addresses if address not in aside] + aside

    def ready(self, addresses: Sequence[BackendT], now: float) -> list[BackendT]:
        """Those of `addresses` that are not set aside, in order."""
        return [address for address in addresses if not self._is_aside(address, now)]

    def pause(self, addresses: Sequence[BackendT], now: float) -> float:
        """Seconds until one of `addresses` is to be tried again."""
        ends = [trouble.until for address in addresses if (trouble := self._troubles.get(address))]
        return max(0.0, min(ends, default=now) - now)

    def _is_aside(self, address: BackendT, now: float) -> bool:
        trouble = self._troubles.get(address)
        return trouble is not None and now < trouble.until

    def begin(self, address: BackendT, now: float, patience: float) -> None:
        """An attempt begins that ends within `patience` seconds.

        If it is the first one after a pause, the backend stays set aside for others until it has ended: they would only
        wait with it.
        """
        if trouble := self._troubles.get(address):
            trouble.until = max(trouble.until, now + min(patience, LONGEST))

    def failed(self, address: BackendT, reason: str, began: float, now: float) -> None:
        """An attempt that began at `began` has failed."""
        trouble = self._troubles.get(address)
        if trouble is None:
            self._forget_old(now)
            self._troubles[address] = _Trouble(SET_ASIDE, now + SET_ASIDE, now)
            log.warning("%s: set aside, others are tried first for %g s", reason, SET_ASIDE)
        elif began >= trouble.failed:  # else it tells only what is known: many may have tried at the same time
            trouble.pause = min(2 * trouble.pause, LONGEST)
            trouble.until = now + trouble.pause
            trouble.failed = now
            log.debug("%s: set aside for another %g s", reason, trouble.pause)

    def answered(self, address: BackendT) -> None:
        """An attempt has succeeded."""
        if self._troubles.pop(address, None):
            log.info("%s answers again", address)

    def _forget_old(self, now: float) -> None:
        for address in [a for a, trouble in self._troubles.items() if trouble.failed < now - FORGET]:
            del self._troubles[address]
