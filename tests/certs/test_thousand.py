"""A short form of `make thousand`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from tests.pebble import needs_pebble
from tests.thousand import paced
from trioproxy.certs.domains import Limit

pytestmark = needs_pebble

LIMIT = Limit(3, timedelta(seconds=4))
"""Fewer orders than are begun at the same time."""


async def test_pebble_is_asked_for_no_more_than_the_ledger_allows(tmp_path: Path) -> None:
    seen = await paced(tmp_path, 9, LIMIT)
    seen.check(9, LIMIT)
