"""Samples of several processes, of which some end."""

from __future__ import annotations

import attrs

from tests.proxy.stage import make_config, site, stage
from trioproxy.config.model import HostPort
from trioproxy.life.measuring import Measuring, Tallies
from trioproxy.witness.exposition import Samples
from trioproxy.witness.records import Exchange

NAME = "cloud.test"


def worker(requests: int, connections: int = 0) -> Samples:
    return {
        "trioproxy_requests_total": [((NAME, "200"), requests)],
        "trioproxy_connections": [((), connections)],
        "trioproxy_event_loop_lag_max_seconds": [((), 0.5)],
    }


def told(samples: Samples) -> tuple[object, object]:
    """Requests and connections."""
    [(_, requests)], [(_, connections)] = samples["trioproxy_requests_total"], samples["trioproxy_connections"]
    return requests, connections


def test_what_a_worker_has_counted_outlives_it_and_what_it_had_does_not() -> None:
    tallies = Tallies()
    assert told(tallies.total({1: worker(10, 3), 2: worker(5, 4)})) == (15, 7)
    assert told(tallies.total({1: worker(12, 3), 3: worker(1, 1)})) == (18, 4), "process 2 has ended"
    assert told(tallies.total({1: worker(12, 3), 3: worker(2, 1)})) == (19, 4)
    assert told(tallies.total({4: worker(0)})) == (19, 0)


def test_the_supervisor_takes_something_of_the_machine_too() -> None:
    alone: Samples = {"process_resident_memory_bytes": [((), 1000)]}
    [(_, memory)] = Tallies().total({1: alone})["process_resident_memory_bytes"]
    assert isinstance(memory, int)
    assert memory > 1e6


async def test_requests_are_counted_only_where_somebody_may_ask() -> None:
    config = make_config(site(NAME, 1))
    async with stage(config) as proxy:
        measuring, witness = Measuring(proxy.ctx), proxy.ctx.witness
        record = Exchange(1, "192.0.2.1", "https", 0.0, None)
        record.name, record.status, record.ended = NAME, 200, 0.1
        witness.exchange(record)
        assert measuring.samples()["trioproxy_requests_total"] == []
        for _ in range(2):
            measuring.go_by(attrs.evolve(config, metrics=HostPort("127.0.0.1", 0)))
        witness.exchange(record)
        assert measuring.samples()["trioproxy_requests_total"] == [((NAME, "200"), 1)]
        measuring.go_by(config)
        assert witness.listeners == ()
