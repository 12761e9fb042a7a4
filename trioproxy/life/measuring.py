"""What is measured, from those who know it: of each process that serves, and of the server as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import trioproxy
from trioproxy.config.model import Config, HostPort
from trioproxy.process.vitals import vitals
from trioproxy.proxy.context import ProxyContext
from trioproxy.snapshot import Cell
from trioproxy.witness.exposition import Sample, Samples, counts, merge
from trioproxy.witness.metrics import OTHER, Metrics

if TYPE_CHECKING:  # a worker has neither, and is to start soon
    from trioproxy.certs.manager import Manager
    from trioproxy.life.reload import Reloads


class Measuring:
    """Measures one process that serves; what happens on its connections is counted while the configuration wants it.

    Args:
        ctx: The running proxy.
    """

    def __init__(self, ctx: ProxyContext) -> None:
        self._ctx = ctx
        self._metrics = Metrics(self._configured)
        self._config: Config | None = None
        self._backends: frozenset[HostPort | Path] = frozenset()
        self.go_by(ctx.cell.current.config)

    def go_by(self, config: Config) -> None:
        """Count, or leave it, as `config` says."""
        self._ctx.witness.remove(self._metrics)
        if config.metrics is not None:
            self._ctx.witness.add(self._metrics)

    async def run(self) -> None:
        """Look how late the event loop is, until cancelled."""
        await self._metrics.run()

    def samples(self) -> Samples:
        """Everything, as it is at this moment."""
        return {
            "trioproxy_connections": [((), self._ctx.admission.open)],
            **self._metrics.samples(),
            "trioproxy_backend_up": self._backends_up(),
            **of_process(),
        }

    def _configured(self, name: str) -> bool:
        config = self._ctx.cell.current.config
        return name in config.sites or name in config.passthrough

    def _backends_up(self) -> list[Sample]:
        config = self._ctx.cell.current.config
        if config is not self._config:
            self._config, self._backends = config, frozenset(_addresses(config))
        reached = self._ctx.dialler.reached
        return [((str(address),), int(up)) for address, up in reached.items() if address in self._backends]


class Tallies:
    """Adds up what several processes measure. What was counted by one that has ended since stays in the sum."""

    def __init__(self) -> None:
        self._last: Mapping[int, Samples] = {}
        self._gone: Samples = {}

    def total(self, samples: Mapping[int, Samples]) -> Samples:
        """The sum, with what this process takes of the machine.

        Args:
            samples: Of those that there are, by process.
        """
        ended = [counts(last) for pid, last in self._last.items() if pid not in samples]
        self._gone = merge([self._gone, *ended])
        self._last = samples
        return merge([of_process(), self._gone, *samples.values()])


def of_server(cell: Cell, manager: Manager, reloads: Reloads) -> Samples:
    """What there is once, however many processes serve.

    Args:
        cell: What it goes by.
        manager: Its certificates.
        reloads: Its reloads.
    """
    sites = cell.current.config.sites
    attempts: dict[tuple[str, ...], int] = {}
    for (name, outcome), count in manager.attempts.items():
        key = (name if name in sites else OTHER, outcome)
        attempts[key] = attempts.get(key, 0) + count
    leaves = {name: leaf for name, site in sites.items() if (leaf := manager.leaves.of(site))}
    return {
        "trioproxy_build_info": [((trioproxy.__version__,), 1)],
        "trioproxy_certificate_expiry_timestamp_seconds": [
            ((name,), leaf.not_after.timestamp()) for name, leaf in leaves.items()
        ],
        "trioproxy_certificate_lifetime_seconds": [
            ((name,), (leaf.not_after - leaf.not_before).total_seconds()) for name, leaf in leaves.items()
        ],
        "trioproxy_acme_attempts_total": list(attempts.items()),
        "trioproxy_reloads_total": [((outcome,), count) for outcome, count in reloads.outcomes.items()],
        "trioproxy_reload_success_timestamp_seconds": [((), reloads.succeeded)],
    }


def of_process() -> Samples:
    """What this process takes of the machine."""
    with contextlib.suppress(OSError):  # no descriptor was left to read it by; the rest can still be told
        found = vitals()
        return {
            "process_cpu_seconds_total": [((), found.cpu)],
            "process_open_fds": [((), found.descriptors)],
            "process_max_fds": [((), found.most_descriptors)],
            "process_resident_memory_bytes": [((), found.memory)],
            "process_start_time_seconds": [((), found.started)],
        }
    return {}


def _addresses(config: Config) -> Iterator[HostPort | Path]:
    """Everywhere that connections may lead."""
    for entry in config.passthrough.values():
        yield from (*entry.to, entry.http_to)
    for site in config.sites.values():
        for route in site.routes:
            for to in route.to:
                yield Path(to.host) if to.scheme == "unix" else HostPort(to.host, to.port)
