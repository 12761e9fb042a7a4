"""What is measured, as values that several processes can add up, and as Prometheus' text. Pure.

Samples are plain data, which JSON can say: by family, each sample's labels and its value. Those of several workers
become those of the whole server by `merge`; what that means for a family stands in `FAMILIES`. The text is that of
version 0.0.4, which everything reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import Literal

import attrs

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

Value = float | list[float]
"""A number; of a histogram, how many fell into each bucket and, as the last item, the sum of what was observed."""

Sample = tuple[tuple[str, ...], Value]
"""The values of the labels, in the family's order, and what was measured. JSON's lists are as good as tuples."""

Samples = dict[str, list[Sample]]
"""By family."""

REQUEST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""From what a backend on the same machine needs to what makes somebody reload the page, and long polls beyond that."""

HANDSHAKE_SECONDS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)


@attrs.frozen
class Family:
    """One metric.

    Attributes:
        kind: What Prometheus calls its type.
        says: What it means, in a line.
        labels: The names of its labels.
        merge: How the same sample of several processes becomes one.
        bounds: The upper ends of a histogram's buckets, the last one, infinity, left out.
    """

    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: tuple[str, ...] = ()
    merge: Literal["sum", "max", "min"] = "sum"
    bounds: tuple[float, ...] = ()


FAMILIES = {
    "trioproxy_build_info": Family("gauge", "1, with the version that runs.", ("version",), "max"),
    "trioproxy_connections": Family("gauge", "Clients' connections that are open."),
    "trioproxy_connections_accepted_total": Family("counter", "Clients' connections that were let in.", ("listener",)),
    "trioproxy_refused_total": Family("counter", "ClientHellos that were answered with an alert.", ("name",)),
    "trioproxy_handshakes_total": Family("counter", "TLS handshakes with clients.", ("name", "outcome")),
    "trioproxy_handshake_seconds": Family(
        "histogram", "How long those took that succeeded.", ("name",), bounds=HANDSHAKE_SECONDS
    ),
    "trioproxy_requests_total": Family("counter", "Requests, by the status that was sent.", ("name", "status")),
    "trioproxy_request_seconds": Family(
        "histogram", "From a request's head to its response's last byte.", ("name",), bounds=REQUEST_SECONDS
    ),
    "trioproxy_tunnels_total": Family("counter", "Tunnels that have ended.", ("name", "kind", "outcome")),
    "trioproxy_bytes_total": Family("counter", "Bytes from clients (in) and to them (out).", ("name", "direction")),
    "trioproxy_backend_up": Family("gauge", "Whether it could be reached the last time.", ("backend",), "max"),
    "trioproxy_certificate_expiry_timestamp_seconds": Family("gauge", "When a certificate expires.", ("name",), "min"),
    "trioproxy_certificate_lifetime_seconds": Family("gauge", "How long it is valid in all.", ("name",), "min"),
    "trioproxy_acme_attempts_total": Family("counter", "Orders at an authority.", ("name", "outcome"), "max"),
    "trioproxy_reloads_total": Family("counter", "Reloads.", ("outcome",), "max"),
    "trioproxy_reload_success_timestamp_seconds": Family(
        "gauge", "When the configuration that is gone by was read.", merge="max"
    ),
    "trioproxy_event_loop_lag_seconds": Family(
        "histogram", "How much too late a task woke that looks once a second.", bounds=LAG_SECONDS
    ),
    "trioproxy_event_loop_lag_max_seconds": Family(
        "gauge", "The longest of these within the last minute.", merge="max"
    ),
    "process_cpu_seconds_total": Family("counter", "Processor time."),
    "process_open_fds": Family("gauge", "Descriptors that are open."),
    "process_max_fds": Family("gauge", "Descriptors that there may be."),
    "process_resident_memory_bytes": Family("gauge", "Memory that is really there."),
    "process_start_time_seconds": Family("gauge", "When the process began.", merge="min"),
}
"""Everything that there is to be had. Labels are names of the configuration and words of ours, never a client's."""

_MERGE = {"max": max, "min": min}


def merge(parts: Iterable[Samples]) -> Samples:
    """The samples of a whole, from those of its processes."""
    found: dict[str, dict[tuple[str, ...], Value]] = {}
    for part in parts:
        for name, samples in part.items():
            if (family := FAMILIES.get(name)) is None:  # of a newer version, while an old process is being replaced
                continue
            merged = found.setdefault(name, {})
            for labels, value in samples:
                key = tuple(labels)
                merged[key] = _joined(family, merged[key], value) if key in merged else value
    return {name: list(found[name].items()) for name in FAMILIES if name in found}


def counts(samples: Samples) -> Samples:
    """Only what was counted, and so stays true of a process that has ended."""
    return {
        name: found
        for name, found in samples.items()
        if (family := FAMILIES.get(name)) is not None and family.kind != "gauge" and family.merge == "sum"
    }


def _joined(family: Family, one: Value, other: Value) -> Value:
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    if isinstance(one, list) or isinstance(other, list):
        raise TypeError("a histogram and a number are no two samples of the same")
    return one + other if family.merge == "sum" else _MERGE[family.merge](one, other)


def text(samples: Samples) -> Iterator[str]:
    """Prometheus' text, in pieces of a few lines, so that whoever writes ten thousand names can let others have a turn.

    Args:
        samples: Of one process, or merged.
    """
    for name, family in FAMILIES.items():
        if not samples.get(name):
            continue
        yield f"# HELP {name} {family.says}\n# TYPE {name} {family.kind}\n"
        for labels, value in samples[name]:
            pairs = [f'{label}="{_escaped(said)}"' for label, said in zip(family.labels, labels, strict=True)]
            if isinstance(value, list):
                yield _histogram(name, family, pairs, value)
            else:
                yield f"{name}{_braced(pairs)} {_number(value)}\n"


def _histogram(name: str, family: Family, pairs: list[str], value: list[float]) -> str:
    *counts, total = value
    ends = [f'le="{_number(bound)}"' for bound in family.bounds] + ['le="+Inf"']
    lines = [
        f"{name}_bucket{_braced([*pairs, end])} {_number(count)}"
        for end, count in zip(ends, accumulate(counts), strict=True)
    ]
    lines.append(f"{name}_sum{_braced(pairs)} {_number(total)}")
    lines.append(f"{name}_count{_braced(pairs)} {_number(sum(counts))}")
    return "\n".join(lines) + "\n"


def _braced(pairs: list[str]) -> str:
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
