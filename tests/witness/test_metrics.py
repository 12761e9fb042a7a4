"""What is counted of the things that happen on connections."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import trio
import trio.testing

from trioproxy.witness.exposition import LAG_SECONDS, Sample, Samples
from trioproxy.witness.metrics import LOOK, MINUTE, MOST, OTHER, Metrics
from trioproxy.witness.records import BACKEND_FAILED, CLIENT_LEFT, DONE, Exchange, Passage
from trioproxy.witness.witness import Listener, Witness

CLIENT = "192.0.2.7"


@pytest.fixture
def names() -> set[str]:
    """The configured ones; tests change them."""
    return {"a.test", "b.test"}


@pytest.fixture
def metrics(names: set[str]) -> Metrics:
    return Metrics(names.__contains__)


def exchange(name: str = "a.test", status: int = 200, seconds: float = 0.002, **more: object) -> Exchange:
    told = Exchange(1, CLIENT, "https", 100.0, None)
    vars(told).update(name=name, status=status, ended=100.0 + seconds, **more)
    return told


def by_labels(samples: list[Sample]) -> dict[tuple[str, ...], object]:
    return dict(samples)


def test_requests_are_counted_by_name_and_status(metrics: Metrics) -> None:
    for status in (200, 200, 404):
        metrics.exchange(exchange(status=status, received=5, sent=70))
    metrics.exchange(exchange("b.test", 502, outcome=BACKEND_FAILED))
    found = metrics.samples()
    assert by_labels(found["trioproxy_requests_total"]) == {
        ("a.test", "200"): 2,
        ("a.test", "404"): 1,
        ("b.test", "502"): 1,
    }
    assert by_labels(found["trioproxy_bytes_total"])["a.test", "in"] == 15
    assert by_labels(found["trioproxy_bytes_total"])["a.test", "out"] == 210


@pytest.mark.parametrize(("seconds", "bucket"), [(0.0, 0), (0.0009, 0), (0.0011, 1), (0.3, 8), (61.0, 13)])
def test_their_time_is_in_the_bucket_that_it_fits(metrics: Metrics, seconds: float, bucket: int) -> None:
    metrics.exchange(exchange(seconds=seconds))
    [(_, value)] = metrics.samples()["trioproxy_request_seconds"]
    assert isinstance(value, list)
    assert [index for index, count in enumerate(value[:-1]) if count] == [bucket]
    assert value[-1] == pytest.approx(seconds)


def test_an_upgraded_request_took_until_its_answer_and_not_until_its_tunnels_end(metrics: Metrics) -> None:
    metrics.exchange(exchange(status=101, seconds=3600, answered=100.02, upgraded=True, outcome=CLIENT_LEFT))
    found = metrics.samples()
    [(_, value)] = found["trioproxy_request_seconds"]
    assert isinstance(value, list)
    assert value[-1] == pytest.approx(0.02)
    assert found["trioproxy_tunnels_total"] == [(("a.test", "upgraded", "client left"), 1)]


def test_tunnels_handshakes_and_refusals(metrics: Metrics) -> None:
    for outcome in (DONE, BACKEND_FAILED):
        metrics.passage(Passage(1, CLIENT, "b.test", None, 0.0, 1.0, up=3, down=40, outcome=outcome))
    for outcome in (DONE, "in words that nobody has foreseen"):
        metrics.handshake(1, CLIENT, "a.test", "h2", 0.004, outcome)
    metrics.refused(1, CLIENT, "nobody.test", "nobody.test is configured nowhere")
    metrics.refused(1, CLIENT, "a.test", "a.test is not open to this client")
    found = metrics.samples()
    assert by_labels(found["trioproxy_tunnels_total"]) == {
        ("b.test", "passthrough", "done"): 1,
        ("b.test", "passthrough", "backend failed"): 1,
    }
    assert by_labels(found["trioproxy_bytes_total"]) == {("b.test", "in"): 6, ("b.test", "out"): 80}
    assert by_labels(found["trioproxy_handshakes_total"]) == {("a.test", "done"): 1, ("a.test", "failed"): 1}
    [(_, shaken)] = found["trioproxy_handshake_seconds"]
    assert isinstance(shaken, list)
    assert sum(shaken[:-1]) == 1, "how long one took that failed says nothing"
    assert by_labels(found["trioproxy_refused_total"]) == {(OTHER,): 1, ("a.test",): 1}


def test_connections_are_counted_by_their_port(metrics: Metrics) -> None:
    for number, scheme in enumerate(("https", "https", "http")):
        metrics.opened(number, CLIENT, scheme)
    found = metrics.samples()
    assert by_labels(found["trioproxy_connections_accepted_total"]) == {("https",): 2, ("http",): 1}


def names_told(samples: Samples) -> set[str]:
    return {labels[0] for labels, _ in samples["trioproxy_requests_total"]}


def test_what_clients_make_up_names_no_series(metrics: Metrics) -> None:
    for number in range(1000):
        metrics.exchange(exchange(f"made-up-{number}.test", 404))
    metrics.exchange(exchange("", 400))
    found = metrics.samples()
    assert by_labels(found["trioproxy_requests_total"]) == {(OTHER, "404"): 1000, (OTHER, "400"): 1}


def test_a_name_that_is_configured_no_more_goes_and_what_it_counted_stays(metrics: Metrics, names: set[str]) -> None:
    metrics.exchange(exchange("a.test", received=1))
    metrics.handshake(1, CLIENT, "a.test", "", 0.1, DONE)
    metrics.passage(Passage(1, CLIENT, "b.test", None, 0.0, 1.0, 1, 2))
    metrics.refused(1, CLIENT, "a.test", "why")
    names.clear()
    found = metrics.samples()
    for family in ("requests_total", "request_seconds", "tunnels_total", "handshakes_total", "refused_total"):
        assert {labels[0] for labels, _ in found[f"trioproxy_{family}"]} == {OTHER}, family
    assert by_labels(found["trioproxy_bytes_total"]) == {(OTHER, "in"): 2, (OTHER, "out"): 2}
    names.add("a.test")
    metrics.exchange(exchange("a.test"))
    assert by_labels(metrics.samples()["trioproxy_requests_total"]) == {("a.test", "200"): 1, (OTHER, "200"): 1}


def test_names_beyond_a_thousand_share_one_series() -> None:
    metrics = Metrics(lambda name: True)
    for number in range(MOST + 50):
        metrics.exchange(exchange(f"{number}.test"))
    found = by_labels(metrics.samples()["trioproxy_requests_total"])
    assert len(found) == MOST + 1
    assert found[OTHER, "200"] == 50


def test_samples_are_a_copy(metrics: Metrics) -> None:
    metrics.exchange(exchange())
    before = metrics.samples()
    metrics.exchange(exchange())
    assert before["trioproxy_request_seconds"] != metrics.samples()["trioproxy_request_seconds"]


def longest(metrics: Metrics) -> object:
    [(_, value)] = metrics.samples()["trioproxy_event_loop_lag_max_seconds"]
    return value


async def test_the_lag_of_the_event_loop_is_how_late_a_task_wakes(
    metrics: Metrics, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(metrics.run)
        await trio.sleep(2.5 * LOOK)
        autojump_clock.jump(3.5)  # as if something had held the loop for so long
        await trio.sleep(LOOK / 2)
        [(_, lag)] = metrics.samples()["trioproxy_event_loop_lag_seconds"]
        assert isinstance(lag, list)
        assert (lag[0], lag[len(LAG_SECONDS)]) == (2, 1)
        assert lag[-1] == pytest.approx(3.0)
        assert longest(metrics) == pytest.approx(3.0)
        await trio.sleep((MINUTE + 1) * LOOK)
        assert longest(metrics) == pytest.approx(0.0)
        nursery.cancel_scope.cancel()


def processor_time(work: Callable[[], object], times: int) -> float:
    """Seconds of this thread's own that one call takes, in the best of a few rounds."""
    best = float("inf")
    for _ in range(7):
        began = time.thread_time()
        for _ in range(times):
            work()
        best = min(best, time.thread_time() - began)
    return best / times


def test_a_request_costs_little_more_than_being_told_of_it(metrics: Metrics) -> None:
    """By the measure of this machine: what an empty listener costs is some 0.2 us on the one where this was written."""
    told, deaf = Witness(metrics), Witness(Listener())
    record = exchange()
    with_metrics = processor_time(lambda: told.exchange(record), 5000)
    without = processor_time(lambda: deaf.exchange(record), 5000)
    assert with_metrics < 10 * without
