"""A short form of `make hot-swap`: however slow the machine is, so many connections are made."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import needs
from tests.hot_swap import run
from tests.pebble import PROGRAMS

SWAPS, APART = 2, 100


@pytest.mark.parametrize("source", [pytest.param("Pebble", marks=needs(*PROGRAMS)), "internal CA"])
async def test_a_new_certificate_is_there_within_a_second_and_nobody_fails(source: str, tmp_path: Path) -> None:
    visits, swaps = await run(tmp_path, source, SWAPS, APART, rate=200)
    assert len(swaps) == SWAPS
    assert len(visits.good) >= (SWAPS + 1) * APART
