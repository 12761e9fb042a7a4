"""From samples to figures: medians, ratios to nginx round by round, and the targets they are held against."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Literal

import attrs

from bench.samples import Sample

OURS = "trioproxy"
REFERENCE = "nginx"

Sense = Literal["at least", "at most"]


@attrs.frozen
class Target:
    """What trioproxy has to reach.

    Attributes:
        sense: Whether more or less is better.
        bound: The value.
        of: What is held against it: the ratio to nginx, trioproxy's own value, or how far that is above nginx's.
        then: Values to reach after it, each harder than the one before.
    """

    sense: Sense
    bound: float
    of: Literal["ratio", "value", "difference"] = "ratio"
    then: tuple[float, ...] = ()

    def verdict(self, measured: float) -> str:
        """Whether `measured` reaches it; of several values, the hardest that it does."""
        reached = [bound for bound in (self.bound, *self.then) if self._reaches(measured, bound)]
        if not reached:
            return "missed"
        return "met" if len(reached) > len(self.then) else f"met {reached[-1]:g}"

    def _reaches(self, measured: float, bound: float) -> bool:
        return measured >= bound if self.sense == "at least" else measured <= bound

    def __str__(self) -> str:
        sign = "≥" if self.sense == "at least" else "≤"
        before, after = {"ratio": ("", " ×"), "value": ("", ""), "difference": ("nginx + ", "")}[self.of]
        steps = ", ".join(f"{bound:g}" for bound in self.then)
        return f"{sign} {before}{self.bound:g}{after}{f', then {steps}' if steps else ''}"


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


PASSTHROUGH = (
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

SITES = (
    Kind("requests", "cpu_us", "CPU of a request, HTTPS/1.1, µs", 0, Target("at most", 80, "value", then=(55, 36))),
    Kind("requests", "per_s", "requests/s, HTTPS/1.1", 0),
    Kind("http2", "cpu_us", "CPU of a request, HTTP/2, µs", 0, Target("at most", 70, "value", then=(50, 27))),
    Kind("http2", "per_s", "requests/s, HTTP/2", 0),
    Kind("handshakes", "cpu_us", "CPU of a new connection, µs", 0, Target("at most", 610, "value", then=(476,))),
    Kind("handshakes", "per_s", "new connections/s", 0),
    Kind("transfer", "cpu_s_gb", "CPU of a GB {case}, s", 2, Target("at most", 1.1)),
    Kind("transfer", "mb_s", "MB/s {case}, one stream", 0),
    Kind("pace", "p50_ms", "latency at the same rate, p50, ms", 2),
    Kind("pace", "p99_ms", "latency at the same rate, p99, ms", 2, Target("at most", 2)),
    Kind("pace", "cpu_us", "CPU of a request at that rate, µs", 0),
    Kind("idle-tls", "kb", "memory of one of {case} idle, KiB", 1, Target("at most", 20, "difference")),
)
"""Likewise, of sites. CPU comes first: on a machine that the clients share, it says more than throughput."""

KINDS = {"Passthrough": PASSTHROUGH, "Sites": SITES}
"""By the table that they stand in."""


@attrs.frozen
class Figure:
    """One figure of all proxies.

    Attributes:
        kind: Which.
        case: The samples' case.
        title: What it is.
        values: By proxy.
        missing: Why there is no value, by proxy.
        ratio: trioproxy's to nginx's, each round's own; None where it says nothing (nginx's is 0 or negative).
    """

    kind: Kind
    case: str
    title: str
    values: dict[str, Spread]
    missing: dict[str, str]
    ratio: Spread | None

    @property
    def measured(self) -> float | None:
        """What the target is held against; None where there is none, or nothing was measured."""
        if self.kind.target is None:
            return None
        if self.kind.target.of == "ratio":
            return None if self.ratio is None else self.ratio.median
        if OURS not in self.values:
            return None
        if self.kind.target.of == "value":
            return self.values[OURS].median
        return self.values[OURS].median - self.values[REFERENCE].median if REFERENCE in self.values else None

    @property
    def verdict(self) -> str:
        """`met`, `missed`, or nothing; see `Target.verdict`."""
        if self.kind.target is None or self.measured is None:
            return ""
        return self.kind.target.verdict(self.measured)


def figures(samples: Iterable[Sample]) -> list[Figure]:
    """Every figure that can be made of `samples`."""
    rounds: dict[tuple[str, str, str, str], dict[int, float]] = {}
    cases: dict[str, list[str]] = {}
    missing: dict[tuple[str, str], dict[str, str]] = {}
    for sample in samples:
        if sample.case not in cases.setdefault(sample.part, []):
            cases[sample.part].append(sample.case)
        if sample.missing:
            missing.setdefault((sample.part, sample.case), {})[sample.proxy] = sample.missing
        for key, value in sample.values.items():
            rounds.setdefault((sample.part, sample.case, key, sample.proxy), {})[sample.round] = value
    kinds = [*PASSTHROUGH, *SITES]
    found = []
    for part in dict.fromkeys(kind.part for kind in kinds):
        for case in cases.get(part, []):
            absent = missing.get((part, case), {})
            found += [
                _figure(kind, case, rounds, absent) for kind in kinds if kind.part == part and _shown(kind, case, cases)
            ]
    return found


def case_text(case: str) -> str:
    """A case for people: numbers with thousands apart."""
    return f"{int(case):,}" if case.isdigit() else case


def _shown(kind: Kind, case: str, cases: dict[str, list[str]]) -> bool:
    return kind.key != "growth" or case != cases[kind.part][0]  # of the first it is 1


def _figure(
    kind: Kind, case: str, rounds: dict[tuple[str, str, str, str], dict[int, float]], missing: dict[str, str]
) -> Figure:
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
        kind.title.format(case=case_text(case)),
        {proxy: Spread.of(list(values.values())) for proxy, values in of_proxy.items()},
        missing,
        Spread.of(ratios) if ratios else None,
    )
