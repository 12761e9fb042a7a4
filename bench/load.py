"""The load of passthrough: `ptbench`, as backends and as clients. Every run is bounded, every failure ends it all."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import attrs

from bench.process import BenchError, Child, free_port, running

SLACK = 20
"""Seconds that a client may take beyond its own limits before it is killed."""


@attrs.frozen
class Outcome:
    """What a client reports. Latencies are in milliseconds; `size` counts the bytes of all answers."""

    seconds: float
    done: int
    size: int
    p50_ms: float
    p99_ms: float


class Program:
    """A C program of this folder, built in `folder`, whose clients each print a line of JSON at their end.

    Args:
        name: Its name, without `.c`.
        folder: Where it is built, and where its servers log.
        libraries: What it is linked with.
        packages: The Debian packages that it is built from.

    Raises:
        BenchError: there is no compiler, or it fails.
    """

    def __init__(self, name: str, folder: Path, libraries: tuple[str, ...], packages: str) -> None:
        self.name = name
        self._folder = folder
        self._program = folder / name
        source = Path(__file__).with_name(f"{name}.c")
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise BenchError(f"the load generator is C and there is no gcc: sudo apt-get install {packages}")
        built = subprocess.run(
            [compiler, "-O2", "-o", self._program, source, *libraries], capture_output=True, text=True, check=False
        )
        if built.returncode:
            raise BenchError(f"{source} cannot be built (is all of {packages} installed?):\n{built.stderr}")

    @contextlib.contextmanager
    def server(self, *arguments: str) -> Iterator[int]:
        """A server on a free port, which it is told before `arguments`; the port."""
        port = free_port()
        with running([self._program, "server", str(port), *arguments], self._folder / f"{self.name}-{port}.log", port):
            yield port

    @contextlib.contextmanager
    def started(self, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
        """A client, which does not outlive the block."""
        with subprocess.Popen(
            [self._program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def wait_until_ready(self, process: subprocess.Popen[str], count: int) -> None:
        """Wait for a client's word that so many connections stand.

        Raises:
            BenchError: not all came about.
        """
        line = _stdout(process).readline()
        if not line or json.loads(line).get("ready") != count:
            process.kill()
            raise BenchError(f"only some of {count} connections came about: {line}{process.communicate()[1]}")

    def ended(self, arguments: list[str], process: subprocess.Popen[str], seconds: float) -> Outcome:
        """Close the input of a client, which should end within `seconds` by itself, and see that all went well.

        Raises:
            BenchError: it did not end, something failed, or nothing was done.
        """
        what = f"{self.name} {' '.join(arguments)}"
        try:
            out, err = process.communicate(timeout=seconds + SLACK)
        except subprocess.TimeoutExpired:
            raise BenchError(f"{what} did not come to its end") from None
        if process.returncode:
            raise BenchError(f"connections failed: {what}\n{out}{err}")
        said = json.loads(out)
        if said["done"] == 0:
            raise BenchError(f"no connection came to its end: {what}")
        return Outcome(said["seconds"], said["done"], said["bytes"], said["p50_ms"], said["p99_ms"])


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def costing(child: Child, run: Callable[[], Outcome]) -> tuple[Outcome, float]:
    """What `run` returns, and the CPU seconds that `child` used meanwhile."""
    before = child.cpu_seconds()
    outcome = run()
    return outcome, child.cpu_seconds() - before


class Alongside:
    """A client that runs while other things happen; its outcome is there when it has ended."""

    outcome: Outcome


class Load:
    """Builds `ptbench` in `folder` and runs it.

    Raises:
        BenchError: there is no compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        self._program = Program("ptbench", folder, ("-lm",), "gcc libc6-dev")

    def backend(self, size: int, *, stay: bool = False) -> contextlib.AbstractContextManager[int]:
        """A server that answers each connection with `size` bytes and closes it, or lets it `stay`; its port."""
        return self._program.server(str(size), *(["stay"] if stay else []))

    def client(self, port: int, name: str, concurrency: int, seconds: float, size: int) -> Outcome:
        """So many connections at any time, a new one for each that has ended."""
        return self._run(["client", "127.0.0.1", str(port), name, str(concurrency), str(seconds), str(size)], seconds)

    def paced(self, port: int, name: str, rate: float, seconds: float, size: int) -> Outcome:
        """`rate` new connections a second, whatever becomes of them."""
        return self._run(["paced", "127.0.0.1", str(port), name, f"{rate:.1f}", str(seconds), str(size)], seconds)

    def _run(self, arguments: list[str], seconds: float) -> Outcome:
        with self._program.started(arguments) as process:
            return self._program.ended(arguments, process, seconds + 5)

    @contextlib.contextmanager
    def alongside(self, port: int, name: str, seconds: float, size: int) -> Iterator[Alongside]:
        """One connection at any time that gets `size` bytes, for so long. The block ends after it, if all went well."""
        arguments = ["client", "127.0.0.1", str(port), name, "1", str(seconds), str(size)]
        with self._program.started(arguments) as process:
            alongside = Alongside()
            yield alongside
            alongside.outcome = self._program.ended(arguments, process, seconds + 5)

    @contextlib.contextmanager
    def held(self, port: int, name: str, count: int, seconds: float) -> Iterator[None]:
        """`count` open connections that have got an answer of one byte, within the block, for at most `seconds`.

        Raises:
            BenchError: not all came about, or one was lost within the block.
        """
        arguments = ["hold", "127.0.0.1", str(port), name, str(count), str(seconds)]
        with self._program.started(arguments) as process:
            self._program.wait_until_ready(process, count)
            yield
            self._program.ended(arguments, process, seconds)
