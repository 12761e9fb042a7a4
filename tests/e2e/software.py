"""Programs of the scene: started on a host, listened to, and ended with the test that started them."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from tests.e2e.network import Host

PATIENCE = 30.0
"""Seconds for anything that should take less than one: a busy machine must not fail a test."""

T = TypeVar("T")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what would lead a client elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return {**kept, "PYTHONUNBUFFERED": "1", **(extra or {})}


def run(
    host: Host, *command: str, env: Mapping[str, str] | None = None, patience: float = PATIENCE, check: bool = False
) -> subprocess.CompletedProcess[bytes]:
    """Run a command on `host` to its end; with `check`, a failure is an error that shows what it said."""
    done = subprocess.run(
        [*host.prefix, *command],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env=environment(env),
        timeout=patience,
        start_new_session=True,
        check=False,
    )
    if check and done.returncode:
        said = (done.stdout + done.stderr).decode(errors="replace")
        raise AssertionError(f"{' '.join(command)} ended with {done.returncode}:\n{said}")
    return done


def eventually(probe: Callable[[], T | None], what: str, patience: float = PATIENCE) -> T:
    """Ask `probe` until it answers something; for a state that comes by itself and announces itself to nobody."""
    end = time.monotonic() + patience
    while not (found := probe()):
        if time.monotonic() > end:
            raise AssertionError(f"not within {patience:.0f} s: {what}")
        time.sleep(0.05)
    return found


def listening(host: Host, *numbers: int, over: str = "tcp") -> None:
    """Wait until something on `host` listens on every one of the ports, given as `Host.port` takes them."""
    for number in numbers:
        question = ["ss", "-H", "-l", "-n", f"--{over}", f"sport = :{host.port(number)}"]
        eventually(functools.partial(_output, host, *question), f"{over} port {number} of {host.name} is open")


def _output(host: Host, *command: str) -> bytes:
    return run(host, *command, check=True).stdout


class Software:
    """A running program and every line it has said, on either stream.

    It leads a process group of its own, so that Ctrl-C on the tests' terminal reaches the tests alone, and the kernel
    kills it should the tests die without having ended it.
    """

    def __init__(self, host: Host, *command: str, env: Mapping[str, str] | None = None, apart: bool = False) -> None:
        """Start `command` on `host`; `apart` keeps its standard output for `output`, and out of what it said."""
        self.name = command[0].rpartition("/")[2]
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *host.prefix, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if apart else subprocess.STDOUT,
            env=environment(env),
            start_new_session=True,
        )
        self.output = self._process.stdout
        spoken = self._process.stderr if apart else self._process.stdout
        assert spoken is not None
        self._listener = threading.Thread(target=self._listen, args=(spoken,), name=f"listening to {self.name}")
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def said(self, since: int = 0) -> str:
        """Everything it said, from line number `since` on."""
        with self._news:
            return "\n".join(self._lines[since:])

    def mark(self) -> int:
        """How many lines it has said by now."""
        with self._news:
            return len(self._lines)

    def wait_for(self, pattern: str, since: int = 0, patience: float = PATIENCE) -> str:
        """The first line from number `since` on in which `pattern` is found; waits until it is said."""
        found = re.compile(pattern)
        end = time.monotonic() + patience
        with self._news:
            while True:
                ended = not self._listener.is_alive()
                for line in self._lines[since:]:
                    if found.search(line):
                        return line
                if ended or time.monotonic() >= end:
                    break
                self._news.wait(0.1)
        said = "\n  ".join(self._lines)
        state = "still runs" if self.running else f"ended with {self._process.returncode}"
        raise AssertionError(f"{self.name} {state} and never said {pattern!r}. It said:\n  {said}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit status, once it has ended."""
        status = self._process.wait(patience)
        self._listener.join(patience)
        return status

    def stop(self, patience: float = PATIENCE) -> None:
        """End it politely, then by force."""
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(patience)
        self._listener.join(patience)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _listen(self, spoken: Iterator[bytes]) -> None:
        for line in spoken:
            with self._news:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


@contextlib.contextmanager
def running(
    host: Host, *command: str, env: Mapping[str, str] | None = None, apart: bool = False, patience: float = PATIENCE
) -> Iterator[Software]:
    """A program that runs on `host` for as long as the block."""
    program = Software(host, *command, env=env, apart=apart)
    try:
        yield program
    finally:
        program.stop(patience)
