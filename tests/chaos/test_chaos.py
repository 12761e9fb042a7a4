"""Every scenario of `make chaos` and `make soak`, in a size that takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.rows import SHORT
from tests.chaos.scenarios import CHAOS, SOAK, Entry
from tests.conftest import needs

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that to a process")


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(entry, id=name, marks=[needs(*entry.programs), *([ROOT_ONLY] if entry.root else [])])
        for name, entry in {**CHAOS, **SOAK}.items()
    ],
)
async def test_it_is_survived(entry: Entry, tmp_path: Path) -> None:
    row = await entry.run(tmp_path, SHORT)
    assert row.problems == []
