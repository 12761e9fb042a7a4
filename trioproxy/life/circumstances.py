"""What a process finds at its start: systemd, sockets that it was handed, how it could be started again."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence

import attrs

from trioproxy.process.activation import Passed, passed_sockets
from trioproxy.process.inheritance import Inheritance, inheritance
from trioproxy.process.notify import Notifier, nobody


@attrs.frozen
class Circumstances:
    """Where a server finds itself; by default, nothing special.

    Attributes:
        notifier: The way to the service manager.
        passed: Sockets that systemd has bound.
        inheritance: What an older process has left to this one.
        command: What starts a server such as this one; empty where nothing does.
    """

    notifier: Notifier = attrs.field(factory=nobody)
    passed: tuple[Passed, ...] = ()
    inheritance: Inheritance | None = None
    command: Sequence[str] = ()


def found(environ: MutableMapping[str, str]) -> Circumstances:
    """Those of this process. What is meant for it alone is taken out of `environ`.

    Raises:
        ListenError: a socket that was handed to it is of no use.
    """
    pid = os.getpid()
    inherited = inheritance(environ)
    return Circumstances(
        notifier=Notifier(environ, pid),
        passed=passed_sockets(environ, pid),
        inheritance=inherited,
        # As it was typed, but with the interpreter's full name: a new version may be installed in its place.
        command=(sys.executable, *sys.orig_argv[1:]),
    )
