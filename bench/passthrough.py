"""What is measured of passthrough, part by part.

In each the proxies take turns (A B C, A B C, ...), so that all meet the same noise. A part yields `Sample`s as they
come: the values of one proxy in one round. What they are held against is said in `figures.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import attrs

from bench.load import Load, Outcome, costing
from bench.process import raise_descriptor_limit
from bench.proxies import Running, started
from bench.samples import Sample, Settings

SMALL = 3_000
"""Bytes of a small answer: about a server's first flight in TLS 1.3."""

CONCURRENCY = 64
"""Connections at any time where new connections a second are counted."""

BULK = 100_000_000
BULK_STREAMS = 8

STREAM = 1_000_000_000
"""Bytes of each answer of the one stream that runs beside small connections."""

BESIDE_RATE = 500
"""Small connections a second beside that stream: far from what any of the proxies can do, so that their latency tells
about turns and not about capacity."""

SETTLE = 0.5
"""Seconds between a change of the load and a look at memory or CPU."""

WARM_UP = 0.3
"""Seconds of load before a proxy is measured."""

DIRECT = "direct"
"""The name of no proxy: the client connects to the backend."""

SMALL_NAME = "small.example.com"
BULK_NAME = "bulk.example.com"
HELD_NAME = "held.example.com"


@attrs.frozen
class Bench:
    """What every part needs.

    Attributes:
        load: Backends and clients.
        folder: For the files of the proxies.
        proxies: Those to measure, in the order of their turns.
        settings: How much.
    """

    load: Load
    folder: Path
    proxies: tuple[str, ...]
    settings: Settings

    @contextlib.contextmanager
    def running(self, small: int, others: Mapping[str, int] | None = None) -> Iterator[list[Running]]:
        """All proxies at once, warmed up; those whose turn it is not have nothing to do.

        Args:
            small: The port of a backend with small answers, for `SMALL_NAME`.
            others: Further names and ports.
        """
        names = {SMALL_NAME: small, **(others or {})}
        with contextlib.ExitStack() as stack:
            running = [stack.enter_context(started(name, names, self.folder)) for name in self.proxies]
            for proxy in running:
                self.load.client(proxy.port, SMALL_NAME, 8, WARM_UP, SMALL)
            yield running

    def turns(self, running: list[Running]) -> Iterator[tuple[int, Running]]:
        """Each round, each proxy."""
        return itertools.product(range(self.settings.rounds), running)

    def new_connections(self, proxy: Running, name: str) -> dict[str, float]:
        """So many of them a second, and the CPU that one costs."""
        outcome, cpu = costing(
            proxy.child, lambda: self.load.client(proxy.port, name, CONCURRENCY, self.settings.seconds, SMALL)
        )
        return {"per_s": outcome.done / outcome.seconds, "cpu_us": cpu / outcome.done * 1e6}


def connections(bench: Bench) -> Iterator[Sample]:
    """New connections a second at a fixed concurrency."""
    with bench.load.backend(SMALL) as small, bench.running(small) as running:
        for number, proxy in bench.turns(running):
            yield Sample("connections", "", number, proxy.name, bench.new_connections(proxy, SMALL_NAME))


def bulk(bench: Bench) -> Iterator[Sample]:
    """Throughput of a few large streams, and what a gigabyte costs."""
    with (
        bench.load.backend(SMALL) as small,
        bench.load.backend(BULK) as large,
        bench.running(small, {BULK_NAME: large}) as running,
    ):
        for number, proxy in bench.turns(running):
            outcome, cpu = _bulk(bench, proxy)
            values = {"mb_s": outcome.size / outcome.seconds / 1e6, "cpu_s_gb": cpu / outcome.size * 1e9}
            yield Sample("bulk", "", number, proxy.name, values)


def _bulk(bench: Bench, proxy: Running) -> tuple[Outcome, float]:
    return costing(
        proxy.child, lambda: bench.load.client(proxy.port, BULK_NAME, BULK_STREAMS, bench.settings.seconds, BULK)
    )


def latency(bench: Bench) -> Iterator[Sample]:
    """Latency that a proxy adds at half of trioproxy's own maximum, the same rate for all.

    "Adds" is the difference to the percentile of clients that connect to the backend directly, in the same round.
    """
    with bench.load.backend(SMALL) as small, bench.running(small) as running:
        own = next(proxy for proxy in running if proxy.name == "trioproxy")
        tries = [bench.new_connections(own, SMALL_NAME)["per_s"] for _ in range(bench.settings.rounds)]
        rate = statistics.median(tries) / 2
        for number in range(bench.settings.rounds):
            direct = bench.load.paced(small, SMALL_NAME, rate, bench.settings.seconds, SMALL)
            yield Sample(
                "latency", "", number, DIRECT, {"rate": rate, "p50_ms": direct.p50_ms, "p99_ms": direct.p99_ms}
            )
            for proxy in running:
                outcome, cpu = _paced(bench, proxy, rate)
                values = {
                    "rate": rate,
                    "p50_ms": outcome.p50_ms,
                    "p99_ms": outcome.p99_ms,
                    "added_p50_ms": outcome.p50_ms - direct.p50_ms,
                    "added_p99_ms": outcome.p99_ms - direct.p99_ms,
                    "cpu_us": cpu / outcome.done * 1e6,
                }
                yield Sample("latency", "", number, proxy.name, values)


def _paced(bench: Bench, proxy: Running, rate: float) -> tuple[Outcome, float]:
    return costing(proxy.child, lambda: bench.load.paced(proxy.port, SMALL_NAME, rate, bench.settings.seconds, SMALL))


def beside(bench: Bench) -> Iterator[Sample]:
    """Latency of small connections beside one bulk stream, over without it."""
    with (
        bench.load.backend(SMALL) as small,
        bench.load.backend(STREAM) as large,
        bench.running(small, {BULK_NAME: large}) as running,
    ):
        for number, proxy in bench.turns(running):
            alone, _ = _paced(bench, proxy, BESIDE_RATE)
            with bench.load.alongside(proxy.port, BULK_NAME, bench.settings.seconds + SETTLE, STREAM) as stream:
                time.sleep(SETTLE)
                disturbed, _ = _paced(bench, proxy, BESIDE_RATE)
            values = {
                "alone_ms": alone.p99_ms,
                "beside_ms": disturbed.p99_ms,
                "quotient": disturbed.p99_ms / alone.p99_ms,
                "mb_s": stream.outcome.size / stream.outcome.seconds / 1e6,
            }
            yield Sample("beside", "", number, proxy.name, values)


def idle(bench: Bench) -> Iterator[Sample]:
    """Memory and CPU of connections on which nothing happens, each time in a fresh process.

    Numbers for which this process may not open enough descriptors are left out: a proxy needs two for each.
    """
    limit = raise_descriptor_limit()
    possible = [count for count in bench.settings.idle if 2 * count + 1_000 <= limit]
    for count in sorted({*bench.settings.idle} - {*possible}):
        print(
            f"{count:,} idle connections are left out: a process may open only {limit:,} descriptors", file=sys.stderr
        )
    with bench.load.backend(1, stay=True) as held:
        for number, count, name in itertools.product(range(bench.settings.rounds), possible, bench.proxies):
            with started(name, {HELD_NAME: held}, bench.folder) as proxy:
                with bench.load.held(proxy.port, HELD_NAME, 1, 30):  # what is only loaded or made at first use
                    time.sleep(SETTLE)
                before = proxy.child.resident_kb()
                with bench.load.held(proxy.port, HELD_NAME, count, 60):
                    time.sleep(SETTLE)
                    memory = proxy.child.resident_kb() - before
                    cpu = proxy.child.cpu_seconds()
                    time.sleep(bench.settings.seconds)
                    cpu = proxy.child.cpu_seconds() - cpu
            values = {"kb": memory / count, "cpu_ms_s": cpu / bench.settings.seconds * 1e3}
            yield Sample("idle", str(count), number, name, values)


def hosts(bench: Bench) -> Iterator[Sample]:
    """New connections a second to names chosen at random among so many configured ones."""
    first = bench.settings.hosts[0]
    with contextlib.ExitStack() as stack:
        small = stack.enter_context(bench.load.backend(SMALL))
        running = {}
        for count in bench.settings.hosts:
            others = {f"n{n:05}.example.com": small for n in range(count)}
            running[count] = stack.enter_context(bench.running(small, others))
        for number in range(bench.settings.rounds):
            cost: dict[str, float] = {}
            for count in bench.settings.hosts:
                for proxy in running[count]:
                    values = bench.new_connections(proxy, f"n#.example.com/{count}")
                    if count == first:
                        cost[proxy.name] = values["cpu_us"]
                    values["growth"] = values["cpu_us"] / cost[proxy.name]
                    yield Sample("hosts", str(count), number, proxy.name, values)


PARTS: dict[str, Callable[[Bench], Iterator[Sample]]] = {
    "connections": connections,
    "bulk": bulk,
    "latency": latency,
    "beside": beside,
    "idle": idle,
    "hosts": hosts,
}
