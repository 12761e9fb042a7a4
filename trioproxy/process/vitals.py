"""What the process takes of the machine, as the kernel counts it in /proc (proc(5))."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import attrs

PROC = Path("/proc/self")

_START_TIME = 19
"""The place of `starttime` in stat, counted from behind the program's name, which may hold anything."""


@attrs.frozen
class Vitals:
    """One process at one moment.

    Attributes:
        cpu: Seconds of processor time so far, of all threads.
        descriptors: How many are open.
        most_descriptors: How many there may be; infinity where there is no limit.
        memory: Bytes that are really in memory.
        started: When it began, in seconds since 1970.
    """

    cpu: float
    descriptors: int
    most_descriptors: float
    memory: int
    started: float


def vitals() -> Vitals:
    """Those of this process. Reads a few small files, which takes some 0.1 ms.

    Raises:
        OSError: there is no /proc, or no descriptor to read it by.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Vitals(
        cpu=time.process_time(),
        descriptors=_descriptors(),
        most_descriptors=float("inf") if most == resource.RLIM_INFINITY else most,
        memory=int((PROC / "statm").read_text().split()[1]) * resource.getpagesize(),
        started=_started(),
    )


def _descriptors() -> int:
    # Since Linux 6.2 the folder's size is their number; before that, and in some sandboxes, it is 0.
    return (PROC / "fd").stat().st_size or len(os.listdir(PROC / "fd")) - 1  # noqa: PTH208 - 20,000 paths to count them


def _started() -> float:
    ticks = int((PROC / "stat").read_text().rpartition(")")[2].split()[_START_TIME])
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + ticks / os.sysconf("SC_CLK_TCK")
