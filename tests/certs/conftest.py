"""What the tests of managers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest
import trio

T = TypeVar("T")


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do in place what is meant for threads: Trio's jumping clock does not wait for those."""

    async def in_place(function: Callable[..., T], *args: object, abandon_on_cancel: bool = False) -> T:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", in_place)
