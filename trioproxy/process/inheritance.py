"""What an old server leaves to its successor, and what the two say to each other meanwhile.

The old process starts the new one with its listening sockets among the descriptors, and one end of a socket pair. What
is what stands in $TRIOPROXY_INHERITANCE, as JSON. Then lines go to and fro:

    new: ready      the configuration is good, all is bound
    old: go         our certificate manager has stopped, and we answer no commands any more
    new: serving    we accept connections
    old: main       systemd has been told that you are the service

or, at any time before `serving`, `failed` from the new one with the reason. Whoever finds the other gone before that
goes back: the old one serves on, the new one ends. Both accept connections from the same sockets between `serving` and
the moment when the old one closes its own, so none is refused.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import attrs

from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError
from trioproxy.process.activation import adopt

VARIABLE = "TRIOPROXY_INHERITANCE"

FORMATS = (1, 2)
"""Of the variable and the lines. A successor that does not know it says so, and the old server goes on. With the second
one several sockets may be of the same address; it is spoken only where some are."""

MAX_LINE = 64 * 1024
"""Bytes of one line: a configuration may have hundreds of mistakes."""


@attrs.frozen
class Heirloom:
    """A listening socket, and what the configuration calls it.

    Attributes:
        kind: "https" or "http".
        address: As configured; port 0 stays 0.
        given: It was systemd's.
        sock: The socket.
    """

    kind: str
    address: HostPort
    given: bool
    sock: socket.socket


@attrs.frozen
class Inheritance:
    """What a new process was handed by the old one.

    Attributes:
        listeners: The old one's.
        control: Its control socket, and the path of that.
        channel: The way to it.
    """

    listeners: tuple[Heirloom, ...]
    control: tuple[socket.socket, Path]
    channel: socket.socket

    def refuse(self, reasons: list[str]) -> None:
        """Tell the old process why there will be no new one. Never fails."""
        with contextlib.suppress(OSError):
            self.channel.sendall(line("failed", reasons=reasons))


def line(word: str, **more: object) -> bytes:
    """One line of the conversation."""
    return json.dumps({"word": word, **more}).encode() + b"\n"


def bequeath(listeners: tuple[Heirloom, ...], control: tuple[socket.socket, Path], channel: socket.socket) -> str:
    """The value of the variable; the descriptors in it are those of this process, and are to be passed as they are."""
    return json.dumps(
        {
            "format": FORMATS[len({(h.kind, h.address) for h in listeners}) < len(listeners)],
            "channel": channel.fileno(),
            "control": [control[0].fileno(), str(control[1])],
            "listeners": [[h.kind, h.address.host, h.address.port, h.given, h.sock.fileno()] for h in listeners],
        }
    )


def inheritance(environ: MutableMapping[str, str]) -> Inheritance | None:
    """What this process was handed, None if it was started by anybody else. The variable is taken out of `environ`.

    Raises:
        ListenError: it cannot be made sense of.
    """
    text = environ.pop(VARIABLE, "")
    if not text:
        return None
    with contextlib.ExitStack() as undo:
        try:
            values: dict[str, Any] = json.loads(text)
            channel = undo.enter_context(_socket(values["channel"]))
            if values["format"] not in FORMATS:
                channel.sendall(
                    line("failed", reasons=["it cannot be handed over to this version: restart the service"])
                )
                raise ListenError("an old server of another version cannot be replaced while it runs")
            descriptor, path = values["control"]
            control = undo.enter_context(_socket(descriptor))
            listeners = tuple(
                Heirloom(kind, HostPort(host, port), given, adopt(descriptor, kind).sock)
                for kind, host, port, given, descriptor in values["listeners"]
            )
        except (ValueError, KeyError, TypeError, OSError) as exc:
            raise ListenError(f"{VARIABLE} is set, and cannot be made sense of: unset it") from exc
        undo.pop_all()
    return Inheritance(listeners, (control, Path(path)), channel)


def _socket(descriptor: int) -> socket.socket:
    sock = socket.socket(fileno=descriptor)
    os.set_inheritable(descriptor, False)
    return sock
