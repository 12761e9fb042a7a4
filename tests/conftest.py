"""What all tests share: how a test says what it cannot run without, a folder for others, and how Hypothesis behaves."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Debian keeps nginx and ip where an ordinary user's PATH does not look.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])

# The same examples at every run: a test that fails must fail again for whoever looks at it. No deadline, because a
# busy machine is no defect of the code.
hypothesis.settings.register_profile("trioproxy", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("trioproxy")


def needs(*programs: str) -> pytest.MarkDecorator:
    """A mark that skips a test, visibly, where one of `programs` is not installed.

    For a test, `@needs("pebble")`; for a module, `pytestmark = needs("pebble", "nginx")`.
    """
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (make test installs them)")


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that anybody may enter; those of pytest are its user's alone."""
    made = Path(tempfile.mkdtemp(prefix="trioproxy-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)
