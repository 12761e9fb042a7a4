"""System calls that fail, by strace, in a process that runs."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

PATIENCE = 30.0


@attrs.define
class Injected:
    """Attributes: `count`, how many calls failed for that reason; known when the block has ended."""

    count: int = 0


@asynccontextmanager
async def failing(
    folder: Path, tasks: int | Sequence[int], calls: str, error: str, *, when: str = "", path: Path | None = None
) -> AsyncIterator[Injected]:
    """Have `calls` of a process or of some of its threads fail until the block ends.

    Args:
        folder: For what strace says.
        tasks: Whom: a process as a whole, with what it starts meanwhile; or some of its threads, and those alone.
        calls: System calls, with commas between them.
        error: What they fail with, "EMFILE".
        when: Which of them, as strace has it: "3" the third, "1+2" every second one; all of them by default.
        path: Only calls that are about this file.
    """
    attach = ["--follow-forks", f"--attach={tasks}"] if isinstance(tasks, int) else [f"--attach={t}" for t in tasks]
    expected = 1 if isinstance(tasks, int) else len(tasks)
    log = folder / "strace"
    command = [
        "strace", "--quiet=none", f"--output={log}", *attach, f"--trace={calls}",
        f"--inject={calls}:error={error}{f':when={when}' if when else ''}",
        *([f"--trace-path={path}"] if path else []),
    ]  # fmt: skip
    injected = Injected()
    tracer = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE)
    assert tracer.stderr is not None
    try:
        said = b""
        with trio.fail_after(PATIENCE):
            while said.count(b" attached") < expected:
                said += (more := await tracer.stderr.receive_some())
                assert more, said.decode()
        yield injected
    finally:
        with trio.fail_after(PATIENCE) as scope:
            scope.shield = True
            tracer.send_signal(signal.SIGINT)  # it lets go of whom it traces
            await tracer.wait()
            await tracer.stderr.aclose()
    injected.count = len(re.findall(r"\(INJECTED\)", log.read_text()))


def other_threads(pid: int) -> list[int]:
    """The threads of a process but its first: those that wait for disks in place of the event loop."""
    return [number for task in Path(f"/proc/{pid}/task").iterdir() if (number := int(task.name)) != pid]
