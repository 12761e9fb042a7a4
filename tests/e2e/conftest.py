"""The scene, built once for all tests that play on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.scene import Scene, scene


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Everything the scene consists of, running."""
    with scene(tmp_path_factory.mktemp("scene")) as built:
        yield built
