"""What is measured of sites, part by part: TLS ends at the proxy, requests go on to a backend over plain HTTP/1.1.

As in passthrough.py the proxies take turns, and a part yields `Sample`s as they come.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs

from bench.certificates import Files
from bench.load import Outcome, costing
from bench.process import raise_descriptor_limit
from bench.proxies import Running
from bench.samples import Sample, Settings
from bench.site_load import SiteLoad, protocol
from bench.site_proxies import NAME, started

CONNECTIONS = 64
"""Keep-alive connections with a request each, and new connections at any time."""

H2_CONNECTIONS = 8
H2_STREAMS = 16

SETTLE = 0.5
"""Seconds between a change of the load and a look at memory."""

WARM_UP = 0.5
"""Seconds of load before a proxy is measured."""

PATIENCE = 60
"""Seconds that one large body, or holding idle connections, may take."""


@attrs.frozen
class SiteBench:
    """What every part needs.

    Attributes:
        load: The backend and the clients.
        folder: For the files of the proxies.
        certificate: What all proxies serve.
        proxies: Those to measure, in the order of their turns.
        settings: How much.
    """

    load: SiteLoad
    folder: Path
    certificate: Files
    proxies: tuple[str, ...]
    settings: Settings

    @contextlib.contextmanager
    def started(self, name: str, backend: int) -> Iterator[Running]:
        """The proxy `name` in front of the backend on that port, seen to speak TLS 1.3 with a good chain."""
        with started(name, backend, self.certificate, self.folder) as proxy:
            self.protocol(proxy)
            yield proxy

    @contextlib.contextmanager
    def running(self) -> Iterator[list[Running]]:
        """All proxies at once, warmed up; those whose turn it is not have nothing to do."""
        with contextlib.ExitStack() as stack:
            backend = stack.enter_context(self.load.backend())
            running = [stack.enter_context(self.started(name, backend)) for name in self.proxies]
            for proxy in running:
                with self.load.prepared("requests", proxy.port, NAME, CONNECTIONS, WARM_UP) as run:
                    run()
            yield running

    def protocol(self, proxy: Running) -> str:
        """What it prefers, of h2 and http/1.1."""
        return protocol(proxy.port, NAME, self.certificate.root)

    def turns(self, running: list[Running]) -> Iterator[tuple[int, Running]]:
        """Each round, each proxy."""
        return itertools.product(range(self.settings.rounds), running)

    def loaded(
        self, proxy: Running, mode: str, amount: int, *, seconds: float | None = None, rate: float | None = None
    ) -> tuple[Outcome, float]:
        """The outcome of a load, and the CPU seconds that it cost the proxy; connecting comes before it."""
        with self.load.prepared(mode, proxy.port, NAME, amount, seconds or self.settings.seconds, rate) as run:
            return costing(proxy.child, run)


def requests(bench: SiteBench) -> Iterator[Sample]:
    """Requests over connections that stay."""
    with bench.running() as running:
        for number, proxy in bench.turns(running):
            outcome, cpu = bench.loaded(proxy, "requests", CONNECTIONS)
            yield Sample("requests", "", number, proxy.name, _for_each(outcome, cpu))


def http2(bench: SiteBench) -> Iterator[Sample]:
    """Requests over HTTP/2. A proxy that does not offer it is left out."""
    with bench.running() as running:
        spoken = {proxy.name: bench.protocol(proxy) for proxy in running}
        for number, proxy in bench.turns(running):
            if spoken[proxy.name] != "h2":
                yield Sample("http2", "", number, proxy.name, {}, missing="not offered")
                continue
            outcome, cpu = costing(proxy.child, _http2(bench, proxy))
            yield Sample("http2", "", number, proxy.name, _for_each(outcome, cpu))


def _http2(bench: SiteBench, proxy: Running) -> Callable[[], Outcome]:
    return lambda: bench.load.http2(proxy.port, NAME, H2_CONNECTIONS, H2_STREAMS, bench.settings.seconds)


def handshakes(bench: SiteBench) -> Iterator[Sample]:
    """New connections with a full handshake and one request each."""
    with bench.running() as running:
        for number, proxy in bench.turns(running):
            outcome, cpu = bench.loaded(proxy, "connections", CONNECTIONS)
            yield Sample("handshakes", "", number, proxy.name, _for_each(outcome, cpu))


def _for_each(outcome: Outcome, cpu: float) -> dict[str, float]:
    return {"per_s": outcome.done / outcome.seconds, "cpu_us": cpu / outcome.done * 1e6}


def transfer(bench: SiteBench) -> Iterator[Sample]:
    """One large body by itself, down and up."""
    with bench.running() as running:
        for (number, proxy), direction in itertools.product(bench.turns(running), ("down", "up")):
            outcome, cpu = bench.loaded(proxy, direction, bench.settings.transfer, seconds=PATIENCE)
            values = {"mb_s": outcome.size / outcome.seconds / 1e6, "cpu_s_gb": cpu / outcome.size * 1e9}
            yield Sample("transfer", direction, number, proxy.name, values)


def pace(bench: SiteBench) -> Iterator[Sample]:
    """Latency of requests at half of trioproxy's own maximum, the same rate for all."""
    with bench.running() as running:
        own = next(proxy for proxy in running if proxy.name == "trioproxy")
        tries = [bench.loaded(own, "requests", CONNECTIONS)[0] for _ in range(bench.settings.rounds)]
        rate = statistics.median(outcome.done / outcome.seconds for outcome in tries) / 2
        for number, proxy in bench.turns(running):
            outcome, cpu = bench.loaded(proxy, "paced", CONNECTIONS, rate=rate)
            values = {
                "rate": rate,
                "p50_ms": outcome.p50_ms,
                "p99_ms": outcome.p99_ms,
                "cpu_us": cpu / outcome.done * 1e6,
            }
            yield Sample("pace", "", number, proxy.name, values)


def idle_tls(bench: SiteBench) -> Iterator[Sample]:
    """Memory of connections that have had a request and wait for a next, each time in a fresh process.

    Numbers for which this process may not open enough descriptors are left out: nginx needs three for each.
    """
    limit = raise_descriptor_limit()
    possible = [count for count in bench.settings.idle_tls if 3 * count + 1_000 <= limit]
    for count in sorted({*bench.settings.idle_tls} - {*possible}):
        print(f"{count:,} idle connections are left out: a process may open only {limit:,} files", file=sys.stderr)
    with bench.load.backend() as backend:
        for number, count, name in itertools.product(range(bench.settings.rounds), possible, bench.proxies):
            with bench.started(name, backend) as proxy:
                # What is only loaded or made at first use.
                with bench.load.prepared("hold", proxy.port, NAME, 1, PATIENCE) as end:
                    end()
                time.sleep(SETTLE)
                before = proxy.child.resident_kb()
                with bench.load.prepared("hold", proxy.port, NAME, count, PATIENCE) as end:
                    time.sleep(SETTLE)
                    memory = proxy.child.resident_kb() - before
                    end()
            yield Sample("idle-tls", str(count), number, name, {"kb": memory / count})


PARTS: dict[str, Callable[[SiteBench], Iterator[Sample]]] = {
    "requests": requests,
    "http2": http2,
    "handshakes": handshakes,
    "transfer": transfer,
    "pace": pace,
    "idle-tls": idle_tls,
}
