"""From samples to figures: medians, ratios to nginx round by round, and the targets they are held against."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import attrs

from bench.parts import Sample

OURS = "trioproxy"
REFERENCE = "nginx"

Sense = Literal["at least", "at most"]


@attrs.frozen
class Target:
    """What trioproxy has to reach.

    Attributes:
        sense: Whether more or less is better.
        bound: The value.
        of: What is held against it: the ratio to nginx, or trioproxy's own value.
    """

    sense: Sense
    bound: float
    of: Literal["ratio", "value"] = "ratio"

    def met(self, measured: float) -> bool:
        """Whether `measured` reaches it."""
        return measured >= self.bound if self.sense == "at least" else measured <= self.bound

    def __str__(self) -> str:
        sign = "≥" if self.sense == "at least" else "≤"
        return f"{sign} {self.bound:g}{' ×' if self.of == 'ratio' else ''}"


@attrs.frozen
class Spread:
    """The median of several rounds, and the least and the greatest of them."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@attrs.frozen
class Kind:
    """One kind of figure.

    Attributes:
        part: Where its samples come from.
        key: The name of its value in them.
        title: What it is, with the unit; `{case}` stands for the sample's case.
        digits: Decimals to print.
        target: None where there is none to reach.
    """

    part: str
    key: str
    title: str
    digits: int
    target: Target | None = None


KINDS = (
    Kind("connections", "per_s", "new connections/s", 0, Target("at least", 0.7)),
    Kind("connections", "cpu_us", "CPU of a connection, µs", 0, Target("at most", 1.43)),
    Kind("bulk", "mb_s", "MB/s, 8 streams", 0, Target("at least", 1.3)),
    Kind("bulk", "cpu_s_gb", "CPU of a GB, 8 streams, s", 2, Target("at most", 0.45)),
    Kind("latency", "added_p50_ms", "added latency, p50, ms", 2),
    Kind("latency", "added_p99_ms", "added latency, p99, ms", 2),
    Kind("latency", "cpu_us", "CPU of a connection at that rate, µs", 0),
    Kind("beside", "alone_ms", "small connections, p99, ms", 2),
    Kind("beside", "beside_ms", "the same beside a bulk stream, ms", 2),
    Kind("beside", "quotient", "the second over the first", 1, Target("at most", 1.5)),
    Kind("beside", "mb_s", "MB/s of that stream", 0),
    Kind("idle", "kb", "memory of one of {case} idle, KiB", 1, Target("at most", 4, "value")),
    Kind("idle", "cpu_ms_s", "CPU of all {case} idle, ms/s", 1),
    Kind("hosts", "per_s", "new connections/s, {case} hosts", 0),
    Kind("hosts", "cpu_us", "CPU of a connection, {case} hosts, µs", 0),
    Kind("hosts", "growth", "the same over that with the fewest", 2, Target("at most", 1.15, "value")),
)
"""In the order in which they are printed. 1.43 is 1 / 0.7: where throughput is noisy, the CPU that it takes decides."""


@attrs.frozen
class Figure:
    """One figure of all proxies.

    Attributes:
        kind: Which.
        case: The samples' case.
        title: What it is.
        values: By proxy.
        ratio: trioproxy's to nginx's, each round's own; None where it says nothing (nginx's is 0 or negative).
    """

    kind: Kind
    case: str
    title: str
    values: dict[str, Spread]
    ratio: Spread | None

    @property
    def measured(self) -> float | None:
        """What the target is held against; None where there is none, or nothing was measured."""
        if self.kind.target is None:
            return None
        if self.kind.target.of == "ratio":
            return None if self.ratio is None else self.ratio.median
        return self.values[OURS].median if OURS in self.values else None

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing."""
        if self.kind.target is None or self.measured is None:
            return ""
        return "met" if self.kind.target.met(self.measured) else "missed"


def figures(samples: Iterable[Sample]) -> list[Figure]:
    """Every figure that can be made of `samples`."""
    rounds: dict[tuple[str, str, str, str], dict[int, float]] = {}
    cases: dict[str, list[str]] = {}
    for sample in samples:
        if sample.case not in cases.setdefault(sample.part, []):
            cases[sample.part].append(sample.case)
        for key, value in sample.values.items():
            rounds.setdefault((sample.part, sample.case, key, sample.proxy), {})[sample.round] = value
    found = []
    for part in dict.fromkeys(kind.part for kind in KINDS):
        for case in cases.get(part, []):
            found += [_figure(kind, case, rounds) for kind in KINDS if kind.part == part and _shown(kind, case, cases)]
    return found


def _shown(kind: Kind, case: str, cases: dict[str, list[str]]) -> bool:
    return kind.key != "growth" or case != cases[kind.part][0]  # of the first it is 1


def _figure(kind: Kind, case: str, rounds: dict[tuple[str, str, str, str], dict[int, float]]) -> Figure:
    of_proxy = {
        proxy: values
        for (part, of_case, key, proxy), values in rounds.items()
        if (part, of_case, key) == (kind.part, case, kind.key)
    }
    theirs, ours = of_proxy.get(REFERENCE, {}), of_proxy.get(OURS, {})
    ratios = [ours[number] / theirs[number] for number in sorted(ours.keys() & theirs.keys()) if theirs[number] > 0]
    return Figure(
        kind,
        case,
        kind.title.format(case=f"{int(case):,}" if case else ""),
        {proxy: Spread.of(list(values.values())) for proxy, values in of_proxy.items()},
        Spread.of(ratios) if ratios else None,
    )
