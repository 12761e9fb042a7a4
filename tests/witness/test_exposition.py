"""Samples: added up, and as text that an independent parser reads."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trioproxy.witness.exposition import FAMILIES, REQUEST_SECONDS, Samples, merge, text

ODD = 'a\\b"c\nd'
"""All that must be escaped in a label. No name is like this; the version of a build might be."""


def read(samples: Samples) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    """By name of a line, and by its labels, what Prometheus' own parser finds in the text."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families("".join(text(samples))):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def histogram(**observed: float) -> list[float]:
    """Of request times: how many are in the buckets `b0`, `b1`, …, and their `sum`."""
    return [observed.get(f"b{index}", 0.0) for index in range(len(REQUEST_SECONDS) + 1)] + [observed["sum"]]


def test_numbers_come_out_as_they_went_in() -> None:
    samples: Samples = {
        "trioproxy_build_info": [((ODD,), 1)],
        "trioproxy_connections": [((), 12)],
        "trioproxy_event_loop_lag_max_seconds": [((), 0.00125)],
        "trioproxy_certificate_expiry_timestamp_seconds": [(("a.test",), 1795000000.5)],
    }
    assert read(samples) == {
        "trioproxy_build_info": {(("version", ODD),): 1},
        "trioproxy_connections": {(): 12},
        "trioproxy_event_loop_lag_max_seconds": {(): 0.00125},
        "trioproxy_certificate_expiry_timestamp_seconds": {(("name", "a.test"),): 1795000000.5},
    }


def test_buckets_are_cumulative_and_the_last_is_all() -> None:
    samples: Samples = {"trioproxy_request_seconds": [(("a.test",), histogram(b0=2, b3=1, b13=4, sum=300.5))]}
    found = read(samples)
    buckets = {dict(labels)["le"]: value for labels, value in found["trioproxy_request_seconds_bucket"].items()}
    assert buckets["0.001"] == buckets["0.005"] == 2
    assert buckets["0.01"] == buckets["60"] == 3
    assert buckets["+Inf"] == 7
    assert len(buckets) == len(REQUEST_SECONDS) + 1
    assert found["trioproxy_request_seconds_sum"] == {(("name", "a.test"),): 300.5}
    assert found["trioproxy_request_seconds_count"] == {(("name", "a.test"),): 7}


def test_every_family_is_told_with_its_type_and_what_it_means() -> None:
    samples: Samples = {
        name: [(("x",) * len(family.labels), [1.0] * (len(family.bounds) + 2) if family.bounds else 1.0)]
        for name, family in FAMILIES.items()
    }
    found = {family.name: family for family in text_string_to_metric_families("".join(text(samples)))}
    assert len(found) == len(FAMILIES)
    for name, family in FAMILIES.items():
        told = found[name.removesuffix("_total") if family.kind == "counter" else name]  # as its parser names counters
        assert told.type == family.kind
        assert told.documentation == family.says
        assert {label for sample in told.samples for label in sample.labels} - {"le"} == set(family.labels)
        assert name.endswith("_total") == (family.kind == "counter")


def workers() -> Iterator[Samples]:
    """What two workers hand to their supervisor."""
    for number in (1, 2):
        samples: Samples = {
            "trioproxy_requests_total": [(("a.test", "200"), 10 * number), ((f"only-{number}.test", "404"), 1)],
            "trioproxy_request_seconds": [(("a.test",), histogram(b0=number, b2=1, sum=0.25))],
            "trioproxy_event_loop_lag_max_seconds": [((), number / 10)],
            "process_start_time_seconds": [((), 1000 + number)],
            "trioproxy_backend_up": [(("10.1.2.3:80",), number - 1)],
            "of_a_newer_version": [((), 1)],
        }
        yield json.loads(json.dumps(samples))


def test_samples_of_several_processes_become_those_of_one() -> None:
    assert merge(workers()) == {
        "trioproxy_requests_total": [
            (("a.test", "200"), 30),
            (("only-1.test", "404"), 1),
            (("only-2.test", "404"), 1),
        ],
        "trioproxy_request_seconds": [(("a.test",), histogram(b0=3, b2=2, sum=0.5))],
        "trioproxy_backend_up": [(("10.1.2.3:80",), 1)],
        "trioproxy_event_loop_lag_max_seconds": [((), 0.2)],
        "process_start_time_seconds": [((), 1001)],
    }


def test_merging_leaves_its_parts_alone() -> None:
    one, other = workers()
    before = json.dumps(one)
    merge([one, other])
    assert json.dumps(one) == before


def test_a_number_is_no_histogram() -> None:
    with pytest.raises(TypeError, match="no two samples of the same"):
        merge([{"trioproxy_request_seconds": [(("a",), 1)]}, {"trioproxy_request_seconds": [(("a",), [1.0, 1.0])]}])


def test_nothing_measured_is_nothing_said() -> None:
    assert list(text({})) == []
    assert list(text({"trioproxy_requests_total": []})) == []
