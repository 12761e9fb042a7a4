"""An interpreter that an ordinary user can start: that of the tests may lie in root's home."""

from __future__ import annotations

import functools
import subprocess
import sys
import sysconfig

import pytest

USER = "nobody"


@functools.cache
def interpreter() -> tuple[str, str]:
    """Such an interpreter, and where it finds what the tests have installed; skips where there is none."""
    packages = sysconfig.get_path("purelib")
    version = "import sys, trio, attrs, cryptography; print(*sys.version_info[:2])"
    for python in (sys.executable, "/usr/bin/python3"):
        done = subprocess.run(
            ["setpriv", f"--reuid={USER}", "--clear-groups", "env", f"PYTHONPATH={packages}", python, "-c", version],
            capture_output=True, text=True, timeout=60, check=False, cwd="/",
        )  # fmt: skip
        if done.stdout.split() == [str(part) for part in sys.version_info[:2]]:
            return python, packages
    pytest.skip("an ordinary user of this machine can start no interpreter like this one")
