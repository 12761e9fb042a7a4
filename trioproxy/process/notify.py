"""Telling systemd how we are: sd_notify(3), by hand.

A message is one datagram of `KEY=value` lines to the unix socket that $NOTIFY_SOCKET names. Nothing answers. Where
nobody listens (a shell, Docker) there is no such variable, and every call here does nothing.

The watchdog is fed by a task of the event loop, twice in each period as sd_watchdog_enabled(3) advises. It is the loop
itself that must be alive: a thread could go on feeding it long after the loop had hung.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Callable, Mapping

import trio

log = logging.getLogger("trioproxy.systemd")


class Notifier:
    """The way to the service manager, if there is one.

    Args:
        environ: The process's environment.
        pid: Its number: a watchdog may be meant for another process.

    Attributes:
        watchdog: Seconds within which the manager wants a sign of life; `math.inf` if it wants none.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._complained = False
        self.watchdog = _watchdog(environ, pid) if self._address else math.inf

    def ready(self, status: str) -> None:
        """All is bound, or a reload has ended."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` ends it, whatever came of it."""
        # From version 253 on systemd compares this with its own clock, to know which reload it is.
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """The end begins."""
        self._send("STOPPING=1", f"STATUS={status}")

    def status(self, status: str) -> None:
        """A line for `systemctl status`."""
        self._send(f"STATUS={status}")

    def resign(self, successor: int) -> None:
        """The service is another process from now on: the last that is heard of this one."""
        self._send(f"MAINPID={successor}")
        self._address = ""
        self.watchdog = math.inf

    async def feed_watchdog(self, healthy: Callable[[], bool] = lambda: True) -> None:
        """Show that the event loop runs, until cancelled or until somebody else is the service.

        Args:
            healthy: Whether there is something to show besides.
        """
        while self.watchdog < math.inf:
            if healthy():
                self._send("WATCHDOG=1")
            await trio.sleep(self.watchdog / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        # What a line tells may come from a configuration: a line end in it would begin another message.
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(message, self._address)
        except OSError as exc:
            if not self._complained:
                self._complained = True
                log.warning("systemd cannot be told how this service is: %s", exc.strerror or exc)


def _address(named: str) -> str:
    """What to send to; an abstract socket's name begins with NUL, for which systemd writes @."""
    if named.startswith("@"):
        return "\0" + named[1:]
    return named if named.startswith("/") else ""  # vsock:… is for virtual machines as a whole


def _watchdog(environ: Mapping[str, str], pid: int) -> float:
    period, meant = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not period.isdecimal() or int(period) == 0 or (meant and meant != str(pid)):
        return math.inf
    return int(period) / 1e6


def nobody() -> Notifier:
    """For a server that no manager watches over."""
    return Notifier({}, os.getpid())
