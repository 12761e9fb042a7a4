"""A short form of `make short-lived`."""

from __future__ import annotations

from pathlib import Path

from tests.pebble import needs_pebble
from tests.short_lived import check, under_load

pytestmark = needs_pebble


async def test_certificates_of_twelve_seconds_are_renewed_under_load_and_nobody_notices(tmp_path: Path) -> None:
    seen = await under_load(tmp_path, seconds=12, renewals=2)
    check(seen, seconds=12, renewals=2)
    assert seen.visits.rate() > 10, "there was load"
