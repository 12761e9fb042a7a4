"""What is done to a server, how much of it, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import attrs


@attrs.frozen
class Scale:
    """How much is done.

    Attributes:
        reloads: Reloads under load.
        upgrades: Upgrades under load.
        kills: Times that a backend is killed.
        slow: Slow clients at once, of all five kinds together.
        calm: Seconds for which good clients are measured without the slow ones.
        tool: Connections that slowhttptest opens.
        requests: Of the soak; the next two are its connections and its WebSockets.
        connections: Each with its own handshake, or passed through.
        websockets: Each with an upgrade and messages.
    """

    reloads: int
    upgrades: int
    kills: int
    slow: int
    calm: float
    tool: int
    requests: int
    connections: int
    websockets: int


SHORT = Scale(
    reloads=15, upgrades=2, kills=5, slow=100, calm=1.5, tool=50, requests=8_000, connections=1_200, websockets=120
)
LONG = Scale(
    reloads=500, upgrades=50, kills=200, slow=5_000, calm=20, tool=500,
    requests=1_000_000, connections=200_000, websockets=20_000,
)  # fmt: skip


@attrs.define
class Row:
    """What came of one scenario.

    Attributes:
        figures: What was counted and measured, by name, with units in the name where it has one.
        problems: What should not have been; empty when all is well.
    """

    figures: dict[str, int | float | str] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)

    def expect(self, good: object, problem: str) -> None:
        """Note `problem` unless `good` is true."""
        if not good:
            self.problems.append(problem)

    def said(self) -> str:
        """The figures in one line."""
        return ", ".join(f"{name} {_short(value)}" for name, value in self.figures.items())


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


Scenario = Callable[[Path, Scale], Awaitable[Row]]
"""Does it, with a folder of its own, in such a number."""
