"""OpenSSL's reading against ours, on ClientHellos that are almost right. The long run is in differential.py."""

from __future__ import annotations

import collections
import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.wire.differential import any_hello, compare, outcome
from tests.wire.hellos import OpenSSLReader

EXAMPLES = int(os.environ.get("TRIOPROXY_EXAMPLES", "1500"))

OPENSSL = OpenSSLReader()


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
@given(rng=st.randoms(use_true_random=False), cuts=st.lists(st.integers(0, 4000), max_size=4))
def test_what_openssl_accepts_we_read_alike_or_refuse_and_however_it_is_cut(
    rng: random.Random, cuts: list[int]
) -> None:
    wire = any_hello(rng)
    compare(wire, OPENSSL)
    assert outcome(wire, *cuts) == outcome(wire)


def test_the_comparison_is_not_empty() -> None:
    """Where both always refused, nothing would be compared."""
    rng = random.Random(1)
    counts = collections.Counter(compare(any_hello(rng), OPENSSL) for _ in range(3000))
    assert counts["both accept"] > 600
    assert counts["both refuse"] > 600
    assert counts["only OpenSSL accepts"] > 30
