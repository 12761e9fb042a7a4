"""The load: `ptbench`, built here, as backends and as clients. Every run is bounded, and every failure ends it all."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import attrs

from bench.process import BenchError, free_port, running

SOURCE = Path(__file__).with_name("ptbench.c")

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


class Alongside:
    """A client that runs while other things happen; its outcome is there when it has ended."""

    outcome: Outcome


class Load:
    """Builds `ptbench` in `folder` and runs it.

    Raises:
        BenchError: there is no compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._program = folder / "ptbench"
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise BenchError("the load generator is C and there is no gcc: sudo apt-get install gcc libc6-dev")
        built = subprocess.run(
            [compiler, "-O2", "-o", self._program, SOURCE, "-lm"], capture_output=True, text=True, check=False
        )
        if built.returncode:
            raise BenchError(f"{SOURCE} cannot be built (is libc6-dev installed?):\n{built.stderr}")

    @contextlib.contextmanager
    def backend(self, size: int, *, stay: bool = False) -> Iterator[int]:
        """A server that answers each connection with `size` bytes and closes it, or lets it `stay`; its port."""
        port = free_port()
        arguments = ["server", str(port), str(size), *(["stay"] if stay else [])]
        with running([self._program, *arguments], self._folder / f"backend-{port}.log", port):
            yield port

    def client(self, port: int, name: str, concurrency: int, seconds: float, size: int) -> Outcome:
        """So many connections at any time, a new one for each that has ended."""
        return self._run(["client", "127.0.0.1", str(port), name, str(concurrency), str(seconds), str(size)], seconds)

    def paced(self, port: int, name: str, rate: float, seconds: float, size: int) -> Outcome:
        """`rate` new connections a second, whatever becomes of them."""
        return self._run(["paced", "127.0.0.1", str(port), name, f"{rate:.1f}", str(seconds), str(size)], seconds)

    def _run(self, arguments: list[str], seconds: float) -> Outcome:
        with self._started(arguments) as process:
            return _ended(arguments, process, seconds + 5)

    @contextlib.contextmanager
    def alongside(self, port: int, name: str, seconds: float, size: int) -> Iterator[Alongside]:
        """One connection at any time that gets `size` bytes, for so long. The block ends after it, if all went well."""
        arguments = ["client", "127.0.0.1", str(port), name, "1", str(seconds), str(size)]
        with self._started(arguments) as process:
            alongside = Alongside()
            yield alongside
            alongside.outcome = _ended(arguments, process, seconds + 5)

    @contextlib.contextmanager
    def held(self, port: int, name: str, count: int, seconds: float) -> Iterator[None]:
        """`count` open connections that have got an answer of one byte, within the block, for at most `seconds`.

        Raises:
            BenchError: not all came about, or one was lost within the block.
        """
        arguments = ["hold", "127.0.0.1", str(port), name, str(count), str(seconds)]
        with self._started(arguments) as process:
            line = _stdout(process).readline()
            if not line or json.loads(line).get("ready") != count:
                process.kill()
                raise BenchError(f"only some of {count} connections came about: {line}{process.communicate()[1]}")
            yield
            _ended(arguments, process, seconds)

    @contextlib.contextmanager
    def _started(self, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
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


def _stdout(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def _ended(arguments: list[str], process: subprocess.Popen[str], seconds: float) -> Outcome:
    """Close the input of a client, which should end within `seconds` by itself, and see to it that all went well."""
    try:
        out, err = process.communicate(timeout=seconds + SLACK)
    except subprocess.TimeoutExpired:
        raise BenchError(f"ptbench {' '.join(arguments)} did not come to its end") from None
    if process.returncode:
        raise BenchError(f"connections failed: ptbench {' '.join(arguments)}\n{out}{err}")
    said = json.loads(out)
    if said["done"] == 0:
        raise BenchError(f"no connection came to its end: ptbench {' '.join(arguments)}")
    return Outcome(said["seconds"], said["done"], said["bytes"], said["p50_ms"], said["p99_ms"])
