from __future__ import annotations

import pytest

from trioproxy.cli import capacity


@pytest.fixture(autouse=True)
def _ample_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """`check` finds nothing amiss with the machine, whichever runs the tests."""
    monkeypatch.setattr(capacity, "look", capacity.Machine)
