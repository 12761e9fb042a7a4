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
        patience: Seconds of the deadlines that end them.
        grace: Seconds after its deadline by which a slow client is gone; a busy machine must not fail a test.
        calm: Seconds for which good clients are measured without the slow ones.
        steps: Of the writes, fsyncs and renames of one renewal, how many are made to fail.
        tool: Connections that slowhttptest opens.
        requests: Of the soak; the next two are its connections and its WebSockets.
        connections: Each with its own handshake, or passed through.
        websockets: Each with an upgrade and messages.
        rounds: In how many parts that comes.
        growth: The part of itself by which memory may grow once it has settled.
        spare: Idle connections to backends that may still be there at the end, for nobody waits until they go.
    """

    reloads: int
    upgrades: int
    kills: int
    slow: int
    patience: float
    grace: float
    calm: float
    steps: int
    tool: int
    requests: int
    connections: int
    websockets: int
    rounds: int
    growth: float
    spare: int


SHORT = Scale(
    reloads=15, upgrades=2, kills=3, slow=100, patience=3, grace=5, calm=0.5, steps=1, tool=50,
    requests=4_000, connections=800, websockets=60, rounds=4, growth=0.1, spare=128,
)  # fmt: skip
LONG = Scale(
    reloads=500, upgrades=50, kills=200, slow=5_000, patience=60, grace=2, calm=15, steps=50, tool=200,
    requests=1_000_000, connections=200_000, websockets=20_000, rounds=20, growth=0.01, spare=0,
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
