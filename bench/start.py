"""How long trioproxy takes to be ready, and what it costs to look a name up.

    python bench/start.py

Every run starts the real program on loopback with an empty storage folder, and measures from the start of the process
to its line `ready`. Half of the names are passthrough, half are sites; of the sites every other one wants a
certificate by ACME, from a directory that nobody answers at, and the rest one of the internal CA.
"""

from __future__ import annotations

import itertools
import random
import socket
import statistics
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

from trioproxy.config.model import HostPort, Passthrough
from trioproxy.routing import RouteTable

TRIOPROXY = Path(sysconfig.get_path("scripts")) / "trioproxy"

RUNS = 5

START_TARGETS = {3: 0.5, 10_000: 3.0}
"""Seconds to `ready`, by number of names."""

LOOKUP_SIZES = (10, 1_000, 10_000)
SAME = 2.0
"""Lookups count as costing the same when the dearest costs at most this times the cheapest: a larger table misses the
processor's caches more often, whatever the algorithm."""

LOOKUPS = 10_000
ROUNDS = 50
PATIENCE = 60
"""Seconds to wait for `ready` before a run has failed."""


# ---- start --------------------------------------------------------------------------------------------


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(closing(socket.socket())) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def configuration(names: int, folder: Path) -> str:
    """A configuration file with so many names, whose storage is below `folder`."""
    https, http, nobody = free_ports(3)
    sites = names // 2
    lines = [
        f'[listen]\nhttps = ["127.0.0.1:{https}"]\nhttp = ["127.0.0.1:{http}"]',
        f'[acme]\nemail = "bench@example.com"\ndirectory = "https://127.0.0.1:{nobody}/directory"',
        f'[storage]\npath = "{folder / "storage"}"',
        "[passthrough]",
        *(f'"p{n}.example.com" = "10.1.2.3"' for n in range(names - sites)),
        "[sites]",
        *(f'"s{n}.example.com" = {site(n)}' for n in range(sites)),
    ]
    return "\n".join(lines) + "\n"


def site(number: int) -> str:
    """The value of one site."""
    return '"http://10.2.3.4"' if number % 2 else '{ "/" = "http://10.2.3.4", tls = "internal" }'


def seconds_to_ready(names: int) -> float:
    """One start: from the process to its line `ready`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "config.toml"
        file.write_text(configuration(names, folder))
        started = time.perf_counter()
        process = subprocess.Popen(
            [TRIOPROXY, "--config", file, "serve"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = []
        with process:
            try:
                for line in process.stdout:
                    said.append(line)
                    if " ready" in line:
                        return time.perf_counter() - started
                    if time.perf_counter() - started > PATIENCE:
                        break
            finally:
                process.kill()
    raise SystemExit(f"trioproxy did not become ready with {names} names:\n{''.join(said)}")


# ---- lookup -------------------------------------------------------------------------------------------


def table(size: int) -> RouteTable:
    """A table of so many names, one in ten of them a wildcard."""
    backend, plain = HostPort("10.1.2.3", 443), HostPort("10.1.2.3", 80)
    names = [f"*.w{n}.example.com" if n % 10 == 0 else f"n{n}.example.com" for n in range(size)]
    return RouteTable({name: Passthrough(name, (backend,), "challenges", plain) for name in names}, None)


def questions(size: int) -> list[str]:
    """What clients ask such a table for: 60 % names in it, 20 % below its wildcards, 20 % unknown ones."""
    pick = random.Random(size)
    kinds: Iterator[Callable[[], str]] = itertools.cycle(
        [
            *[lambda: f"n{pick.randrange(size) // 10 * 10 + pick.randrange(1, 10)}.example.com"] * 3,
            lambda: f"any.w{pick.randrange(size) // 10 * 10}.example.com",
            lambda: f"unknown{pick.randrange(size)}.example.com",
        ]
    )
    return [next(kinds)() for _ in range(LOOKUPS)]


def microseconds_a_lookup(size: int) -> float:
    """The mean over all questions, in the best of several rounds."""
    routes, names = table(size), questions(size)
    best = min(_round(routes, names) for _ in range(ROUNDS))
    return best / len(names) * 1e6


def _round(routes: RouteTable, names: list[str]) -> float:
    look = routes.for_name
    started = time.perf_counter()
    for name in names:
        look(name)
    return time.perf_counter() - started


# ---- the table ----------------------------------------------------------------------------------------


def row(what: str, measured: str, target: str, met: bool) -> str:
    """One line of the output."""
    return f"{what:<34} {measured:>22}   {target:<12} {'met' if met else 'missed'}"


def main() -> None:
    """Measure and print."""
    print(f"{'':<34} {'measured':>22}   target")
    for names, target in START_TARGETS.items():
        runs = [seconds_to_ready(names) for _ in range(RUNS)]
        median = statistics.median(runs)
        measured = f"{median:.2f} s ({min(runs):.2f}-{max(runs):.2f})"
        print(row(f"start to ready, {names:,} names", measured, f"{target:g} s", median <= target), flush=True)
    costs = {size: microseconds_a_lookup(size) for size in LOOKUP_SIZES}
    same = max(costs.values()) <= SAME * min(costs.values())
    for size, cost in costs.items():
        print(row(f"lookup, {size:,} names", f"{cost:.2f} µs", "the same", same))


if __name__ == "__main__":
    main()
