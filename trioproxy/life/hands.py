"""What a server serves with: itself (`alone`), or several processes (`crew`). Everything else of it is the same."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import trio

from trioproxy.config.model import Config
from trioproxy.process.notify import Notifier
from trioproxy.witness.exposition import Samples
from trioproxy.witness.tracing import Event

log = logging.getLogger("trioproxy.server")


@attrs.frozen
class Census:
    """The connections of a server, or of one of its processes.

    Attributes:
        open: How many there are, on all ports.
        suspect: The address behind which all clients seem to be hidden, or "".
        guests: Those on port 443 by kind and name of what they came for.
        workers: The process and the connections of each worker; empty where one process serves alone.
    """

    open: int
    suspect: str
    guests: Counter[tuple[str, str]]
    workers: tuple[dict[str, Any], ...] = ()


class Hands(Protocol):
    """Serves connections."""

    async def serve(self, stopping: trio.Event, serving: Callable[[], None]) -> None:
        """Accept until `stopping`; then let connections finish within `timeouts.drain`, and return.

        `serving` is called once, as soon as connections are accepted.
        """

    def cut(self) -> None:
        """End all connections now; `serve` returns."""

    async def take(self, config: Config) -> None:
        """Go by another configuration.

        Raises:
            ListenError: an address cannot be bound. Nothing has changed.
            ControlError: a worker cannot go by it. Nothing has changed.
        """

    def reopen_logs(self) -> None:
        """Log files were moved away: go on with new ones."""

    async def census(self) -> Census:
        """Count connections."""

    async def measure(self) -> Samples:
        """What is measured of those who serve."""

    async def follow(self, name: str, tell: Callable[[Event], None]) -> None:
        """Tell what happens to an entry, or for "" to all, until cancelled; at the first, that it is `following`."""

    async def connections(self, name: str) -> list[dict[str, Any]]:
        """Connections on port 443, of one name or, for "", of all, as `trioproxy connections` shows them."""

    async def close(self, number: int) -> bool:
        """End one of them, and say whether it was there."""

    def healthy(self) -> bool:
        """Whether those who serve have shown lately that they are alive."""


def tell_stopping(notifier: Notifier, connections: int, seconds: float) -> None:
    """Tell systemd and the log that the end begins.

    Args:
        notifier: The way to systemd.
        connections: How many there are still.
        seconds: What they get.
    """
    status = f"stopping: {connections} connections may finish within {seconds:g} s"
    notifier.stopping(status)
    if connections:
        log.info("%s", status)
