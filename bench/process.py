"""Child processes: started apart from the terminal, measured through /proc, and stopped by their ids."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

MAX_DESCRIPTORS = 65536

_TICK = 1 / os.sysconf("SC_CLK_TCK")

_used_ports: set[int] = set()


class BenchError(Exception):
    """Why nothing can be measured here, for the reader at the terminal."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses, below those that the kernel gives to outgoing connections.

    A listener among those would now and then lose its port to one of the thousands of connections made here.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(max(1024, min(20_000, lowest - 2_000)), lowest):
        if port not in _used_ports:
            with socket.socket() as sock, contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                _used_ports.add(port)
                return port
    raise BenchError(f"no port below {lowest} is free")


def raise_descriptor_limit() -> int:
    """Let this process and its children open as many descriptors as they may; how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(hard, MAX_DESCRIPTORS), hard):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            return limit
    return hard


class Child:
    """A running process and those that it started itself."""

    def __init__(self, command: Sequence[str | Path], log: Path, environment: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def wait_for_port(self, port: int, patience: float) -> None:
        """Wait until the process accepts connections.

        Raises:
            BenchError: it ended, or took longer than `patience` seconds.
        """
        until = time.monotonic() + patience
        while time.monotonic() < until and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)
        said = self._log.read_text(errors="replace")[-2000:]
        raise BenchError(f"{self._process.args!r} does not accept connections:\n{said}")

    def cpu_seconds(self) -> float:
        """CPU time that the process, its threads and its children have used, ended threads included."""
        used = 0
        for pid in self._tree():
            fields = _stat(pid)
            used += int(fields[11]) + int(fields[12])  # utime and stime, proc_pid_stat(5)
        return used * _TICK

    def wakes(self) -> int:
        """How often the process and its children have slept and been woken; of threads only the first counts."""
        total = 0
        for pid in self._tree():
            found = re.search(
                r"^voluntary_ctxt_switches:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
            )
            total += int(found[1]) if found else 0
        return total

    def resident_kb(self) -> int:
        """KiB of memory that is resident, of the process and its children together.

        From the page tables: the counter behind VmRSS is behind by up to some hundred KiB.
        """
        total = 0
        for pid in self._tree():
            found = re.search(r"^Rss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
            total += int(found[1]) if found else 0
        return total

    def stop(self) -> None:
        """End the process and its children; politely first, for at most 5 s."""
        family = [(pid, _stat(pid)[19]) for pid in self._tree()]  # with their starting time: numbers are reused
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for pid, started in family:
            with contextlib.suppress(OSError):
                if _stat(pid)[19] == started:
                    os.kill(pid, signal.SIGKILL)

    def _tree(self) -> list[int]:
        if self._process.poll() is not None:
            return []
        found = [self._process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                children = Path(f"/proc/{pid}/task/{pid}/children").read_text()
                found += map(int, children.split())
        return found


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second, the name, may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


@contextlib.contextmanager
def running(
    command: Sequence[str | Path],
    log: Path,
    port: int,
    patience: float = 20,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Child]:
    """A child that listens on `port`, until the end of the block."""
    child = Child(command, log, environment)
    try:
        child.wait_for_port(port, patience)
        yield child
    finally:
        child.stop()
