"""How a supervisor and a worker speak: lines of JSON over a socket pair, with which listening sockets may go.

The supervisor asks and the worker answers, one after the other:

    supervisor: {"id": 7, "word": "census", …}
    worker:     {"id": 7, "open": 12, …}     or     {"id": 7, "error": "why not"}

The first line is the worker's: {"format": 1}. What is asked stands in `worker`. Each line says how many `descriptors`
belong to it: they arrive with its first bytes, which may be read together with the end of the line before.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Sequence
from typing import Any

import trio

from trioproxy.errors import TrioproxyError

FORMAT = 1
"""Of what is said. A worker whose code knows another one was installed beside a server that runs."""

MAX_LINE = 64 * 1024 * 1024
"""Bytes of one line: a configuration of ten thousand sites is two megabytes."""

MAX_SOCKETS = 200
"""That go with one line: the kernel takes 253 (SCM_MAX_FD)."""

_ROOM = socket.CMSG_SPACE(MAX_SOCKETS * array.array("i").itemsize)


class ChannelClosed(TrioproxyError):
    """The other process has ended, or makes no sense."""


class Channel:
    """One end. One task sends at a time, and one receives.

    Args:
        sock: A socket of a pair; it is closed with this.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._buffer = bytearray()
        self._socks: list[socket.socket] = []

    async def send(self, message: dict[str, Any], socks: Sequence[socket.socket] = ()) -> None:
        """Send one line, and descriptors of `socks` with it.

        Whoever cancels this in the middle must close the channel. Raises ChannelClosed.
        """
        data = memoryview(json.dumps({**message, "descriptors": len(socks)}).encode() + b"\n")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno() for sock in socks]))]
        try:
            sent = await self._sock.sendmsg([data], rights if socks else [])
            while sent < len(data):
                sent += await self._sock.send(data[sent:])
        except (OSError, trio.ClosedResourceError) as exc:
            raise ChannelClosed("the other process has ended") from exc

    async def receive(self) -> tuple[dict[str, Any], list[socket.socket]]:
        """The next line, and the listening sockets that came with it. Raises ChannelClosed."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > MAX_LINE:
                raise ChannelClosed("the other process does not end its line")
            self._buffer += await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message: dict[str, Any] = json.loads(line)
            count = int(message["descriptors"])
        except (ValueError, KeyError, TypeError) as exc:
            raise ChannelClosed("the other process makes no sense") from exc
        socks, self._socks = self._socks[:count], self._socks[count:]
        return message, socks

    async def _more(self) -> bytes:
        try:
            data, rights, _, _ = await self._sock.recvmsg(256 * 1024, _ROOM, socket.MSG_CMSG_CLOEXEC)
        except (OSError, trio.ClosedResourceError) as exc:
            raise ChannelClosed("the other process has ended") from exc
        for level, kind, value in rights:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                descriptors = array.array("i")
                descriptors.frombytes(value[: len(value) - len(value) % descriptors.itemsize])
                self._socks += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not data:
            raise ChannelClosed("the other process has ended")
        return data

    def close(self) -> None:
        """No more is to be said."""
        self._sock.close()
        for sock in self._socks:
            sock.close()
