"""What the kernel tells of this process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trioproxy.process import vitals as module
from trioproxy.process.vitals import vitals


def test_descriptors_are_counted() -> None:
    before = vitals()
    assert before.most_descriptors == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(50)]
    try:
        assert vitals().descriptors == before.descriptors + 50
    finally:
        for file in files:
            os.close(file)


def test_descriptors_are_counted_where_the_folder_does_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fd").symlink_to(f"/proc/{os.getpid()}/fd")
    counted = len(list(Path("/proc/self/fd").iterdir())) - 1  # without the one that counting takes
    assert vitals().descriptors == counted
    monkeypatch.setattr(module, "PROC", tmp_path)
    monkeypatch.setattr(Path, "stat", lambda self: os.stat_result([0] * 10))
    assert module._descriptors() == counted


def test_memory_is_what_is_touched() -> None:
    before = vitals().memory
    block = bytearray(os.urandom(1)) * (64 << 20)
    assert 60 << 20 < vitals().memory - before < 70 << 20
    del block


def test_processor_time_and_the_start() -> None:
    begun = vitals()
    assert begun.started < time.time()
    while time.process_time() < begun.cpu + 0.05:
        pass
    assert vitals().cpu >= begun.cpu + 0.05


def test_the_start_is_that_of_this_process() -> None:
    program = "from trioproxy.process.vitals import vitals; print(vitals().started)"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert before - 0.1 <= float(done.stdout) <= time.time()
