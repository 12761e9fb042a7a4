"""What the parts of the benchmark hand on, and how much they measure."""

from __future__ import annotations

import attrs


@attrs.frozen
class Sample:
    """What one proxy did in one round.

    Attributes:
        part: The part of the benchmark.
        case: Which of several within the part: a number of connections or of names, a direction; else empty.
        round: From 0.
        proxy: A name of `proxies.installed()`, or `passthrough.DIRECT`.
        values: By name.
        missing: Why there are none, in a word or two.
    """

    part: str
    case: str
    round: int
    proxy: str
    values: dict[str, float]
    missing: str = ""


@attrs.frozen
class Settings:
    """How much is measured.

    Attributes:
        rounds: Turns of each proxy.
        seconds: Length of one measurement.
        idle: Numbers of idle connections.
        hosts: Numbers of configured names.
        idle_tls: Numbers of idle connections to a site.
        transfer: Bytes of one large body.
    """

    rounds: int = 3
    seconds: float = 4.0
    idle: tuple[int, ...] = (100, 1_000, 9_000)
    hosts: tuple[int, ...] = (10, 1_000, 10_000)
    idle_tls: tuple[int, ...] = (1_000, 4_000)
    transfer: int = 1_000_000_000


QUICK = Settings(rounds=1, seconds=1.0, idle=(100, 1_000), hosts=(10, 1_000), idle_tls=(1_000,))
