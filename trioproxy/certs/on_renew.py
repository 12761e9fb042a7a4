"""`[acme] on_renew`: a command of the user's, run when a certificate has been replaced.

The command is a child in a session of its own, with none of our capabilities. It has a deadline; when that is over, or
when trioproxy ends, its whole process group is told to end and soon made to. It learns what is new from its
environment, gets nothing on standard input, and what it prints goes to the log. Where root works on a store that
belongs to somebody else, it runs as that user.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trio

from trioproxy.certs.bundle import Leaf
from trioproxy.certs.handing_out import Handed

log = logging.getLogger("trioproxy.certs")

NOTES = "on_renew"
"""The folder of the store with what came of it."""

DEADLINE = 300.0
"""Seconds for one run: a service that restarts slowly takes a minute."""

GRACE = 1.0
"""Seconds between being told to end and being made to; a server that stops waits for them."""

LINGERS = 1.0
"""Seconds for the rest of the output, after the command has ended: who else holds the pipe is a daemon it began."""

MAX_LINES = 100
"""Lines of output that are logged of one run."""

MAX_LINE = 500
"""Bytes of a line that are logged."""

INHERITED = ("PATH", "LANG", "LC_ALL", "TZ")
"""What the child has of our environment: nothing that belongs to systemd's dealings with us, and no secret."""


def environment(name: str, leaf: Leaf, handed: Handed) -> dict[str, str]:
    """What the command is told."""
    return {
        **{key: os.environ[key] for key in INHERITED if key in os.environ},
        "TRIOPROXY_NAME": name,
        "TRIOPROXY_NAMES": " ".join(leaf.names),
        "TRIOPROXY_NOT_AFTER": leaf.not_after.isoformat(),
        "TRIOPROXY_FOLDER": str(handed.folder),
        "TRIOPROXY_FULLCHAIN": str(handed.fullchain),
        "TRIOPROXY_KEY": str(handed.key),
        "TRIOPROXY_CERT": str(handed.certificate),
        "TRIOPROXY_CHAIN": str(handed.chain),
    }


async def run(name: str, command: Sequence[str], told: Mapping[str, str], owner: tuple[int, int] | None) -> str:
    """Run `command` for the site `name`.

    Args:
        name: For the log.
        command: The program and its arguments.
        told: Its environment.
        owner: User and group to run it as; None for ourselves.

    Returns:
        Why it did not work, in words; "" if it did.
    """
    try:
        process = await trio.lowlevel.open_process(
            _unprivileged(command, told.get("PATH")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=told,
            cwd="/",
            start_new_session=True,
            **_as(owner),
        )
    except (OSError, subprocess.SubprocessError) as exc:
        return f"{command[0]} cannot be run: {getattr(exc, 'strerror', None) or exc}"
    output = _Output(name)
    with trio.move_on_after(DEADLINE) as scope:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(output.read, process.stdout)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + LINGERS
        finally:
            with trio.move_on_after(2 * GRACE, shield=True):
                await _end(process)
    if scope.cancelled_caught:
        return f"{command[0]} was still at work after {DEADLINE:g} s and was ended{output.last}"
    if process.returncode:
        return f"{command[0]} {_how(process.returncode)}{output.last}"
    return ""


def _unprivileged(command: Sequence[str], path: str | None) -> list[str]:
    """`command` without our capabilities: those that a later reload needs would be its own, too.

    Raises:
        FileNotFoundError: there is no such program.
    """
    kept = re.search(r"^CapAmb:\s*([0-9a-f]+)", Path("/proc/self/status").read_text(), re.MULTILINE)
    setpriv = shutil.which("setpriv")
    if kept is None or not int(kept[1], 16) or setpriv is None:
        return list(command)
    if shutil.which(command[0], path=path) is None:  # setpriv would say that in words of its own
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), command[0])
    return [setpriv, "--ambient-caps=-all", "--inh-caps=-all", "--", *command]


def _as(owner: tuple[int, int] | None) -> dict[str, Any]:
    if owner is None:
        return {}
    user, group = owner
    return {"user": user, "group": group, "extra_groups": []}


def _how(code: int) -> str:
    if code > 0:
        return f"ended with exit code {code}"
    return f"was ended by {signal.Signals(-code).name}"


async def _end(process: trio.Process) -> None:
    """See to it that nothing of the process group is left if the command has not come to its own end."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with trio.move_on_after(GRACE):
            await process.wait()
        _signal(process, signal.SIGKILL)
        await process.wait()


def _signal(process: trio.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class _Output:
    """Puts what a command prints into the log, line by line, and remembers the last line."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lines = 0
        self._line = b""

    @property
    def last(self) -> str:
        """The last line, as the end of a sentence about a failure."""
        return f": {_text(self._line)}" if self._line else ""

    async def read(self, stream: trio.abc.ReceiveStream | None) -> None:
        """Read until whoever writes has ended."""
        rest, overlong = b"", False
        if stream is None:
            return
        async with stream:
            async for data in stream:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if not overlong:
                        self._tell(line)
                    overlong = False
                if len(rest) > MAX_LINE:
                    if not overlong:
                        self._tell(rest)
                    rest, overlong = b"", True
        self._tell(rest)

    def _tell(self, line: bytes) -> None:
        if not line.strip():
            return
        self._line = line[:MAX_LINE]
        self._lines += 1
        if self._lines <= MAX_LINES:
            log.info("%s  on_renew: %s", self._name, _text(self._line))
        elif self._lines == MAX_LINES + 1:
            log.info("%s  on_renew: it prints more than %d lines; the rest is left out", self._name, MAX_LINES)


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").strip()
