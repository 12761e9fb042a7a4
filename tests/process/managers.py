"""What systemd is to a service, as far as tests need it: a socket for messages, and sockets that are passed on."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import trio

LAUNCHER = """\
import os, sys
first, names, count, *command = sys.argv[1:]
for number in range(int(count)):
    os.dup2(int(first) + number, 3 + number, inheritable=True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=count, LISTEN_FDNAMES=names)
os.execv(command[0], command)
"""
"""Becomes a service with sockets at descriptors from 3 on, which systemd says by the pid of that very process."""


class Manager:
    """Gets what a service says of itself."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.heard: list[dict[str, str]] = []

    async def until(self, key: str, value: str | None = None) -> dict[str, str]:
        """The next message with that key (and value)."""
        with trio.fail_after(30):
            while True:
                message = await self.message()
                if key in message and value in (None, message[key]):
                    return message

    async def message(self) -> dict[str, str]:
        """The next message."""
        while True:
            try:
                data = self._sock.recv(4096)
                break
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
        message = dict(line.split("=", 1) for line in data.decode().splitlines())
        self.heard.append(message)
        return message

    def waiting(self) -> int:
        """How many messages have come that nobody has looked at; they are dropped."""
        count = 0
        while True:
            try:
                self._sock.recv(4096)
            except BlockingIOError:
                return count
            count += 1


@contextmanager
def manager(address: str) -> Iterator[Manager]:
    """Listen for messages; an address that begins with @ is an abstract one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        yield Manager(sock)


def launcher(first: int, names: str, count: int) -> list[str]:
    """What makes the command behind it a service with `count` sockets, which are ours from descriptor `first` on."""
    return [sys.executable, "-c", LAUNCHER, str(first), names, str(count)]
