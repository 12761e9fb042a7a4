"""The scene, built once for all tests that play on it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest

from tests.e2e.scene import Scene, scene


@pytest.fixture(scope="package")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Everything the scene consists of, running."""
    with scene(tmp_path_factory.mktemp("scene")) as built:
        yield built


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the scene's proxy said with the report of a test that failed on it."""
    report = yield
    stage = getattr(item, "funcargs", {}).get("stage")
    if report.failed and isinstance(stage, Scene):
        report.sections.append(("what the scene's trioproxy said", stage.server.said()))
    return report
