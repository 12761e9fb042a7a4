"""The sockets that are listened on, whoever accepts from them.

A socket is known by what the configuration calls it: its kind and address. Those that systemd has bound for us take
the place of what would be bound otherwise; the rest is bound here. Where several processes are to accept there is a
socket for each of them at every address, and the kernel spreads connections over these (SO_REUSEPORT).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self

import attrs

from trioproxy.config.model import HostPort, Listen
from trioproxy.errors import ListenError
from trioproxy.net.group import bind_group, extend
from trioproxy.net.listen import prepare
from trioproxy.process.activation import Passed
from trioproxy.process.inheritance import Heirloom

log = logging.getLogger("trioproxy.server")

Key = tuple[str, HostPort]
"""Kind ("https" or "http") and configured address."""


@attrs.frozen
class Addresses:
    """Where a server really listens; what `task_status.started` gets."""

    https: tuple[HostPort, ...]
    http: tuple[HostPort, ...]


@attrs.frozen
class Bound:
    """What listens at one configured address.

    Attributes:
        socks: One socket, or one for each process that accepts.
        given: systemd has bound it.
    """

    socks: tuple[socket.socket, ...]
    given: bool = False

    def close(self) -> None:
        """Listen no more."""
        for sock in self.socks:
            sock.close()


class Sockets:
    """Every socket that is listened on. As a context manager it closes them at the end.

    Args:
        processes: How many accept.
    """

    def __init__(self, processes: int = 1) -> None:
        self._processes = processes
        self._open: dict[Key, Bound] = {}
        self._waiting: tuple[Passed, ...] = ()  # from systemd, not used yet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more. Whoever has the same sockets goes on."""
        for bound in self._open.values():
            bound.close()
        for passed in self._waiting:
            passed.sock.close()

    @property
    def open(self) -> Mapping[Key, Bound]:
        """What there is."""
        return self._open

    # ---- what others have bound ---------------------------------------------------------------------

    def receive(self, passed: Iterable[Passed]) -> None:
        """Have these used by the next `bind`."""
        self._waiting = tuple(passed)

    def inherit(self, heirlooms: Iterable[Heirloom], listen: Listen) -> None:
        """Go on with what an older process listened on, as far as `listen` still wants it."""
        wanted = {(kind, address) for kind, address, _ in _wanted(listen)}
        for heirloom in heirlooms:
            key = (heirloom.kind, heirloom.address)
            if key in wanted or heirloom.given:
                before = self._open[key].socks if key in self._open else ()
                self._open[key] = Bound((*before, heirloom.sock), heirloom.given)
            else:
                heirloom.sock.close()

    def adopt(self, socks: Mapping[Key, Sequence[socket.socket]]) -> None:
        """Have these, which are somebody else's too."""
        for key, each in socks.items():
            self._open[key] = Bound(tuple(each))

    def heirlooms(self) -> tuple[Heirloom, ...]:
        """What a newer process is to go on with."""
        return tuple(
            Heirloom(kind, at, bound.given, sock) for (kind, at), bound in self._open.items() for sock in bound.socks
        )

    # ---- binding ------------------------------------------------------------------------------------

    def bind(self, listen: Listen) -> list[Key]:
        """Bind every address of `listen` that is not bound yet; all or, with a ListenError, none.

        Returns:
            What has come to be open.
        """
        self._take_passed(listen)
        given = {kind for (kind, _), bound in self._open.items() if bound.given}
        fresh: dict[Key, Bound] = {}
        try:
            for kind, address, optional in _wanted(listen):
                # Who has systemd bind the sockets of a kind, and names no addresses here, wants no others.
                if (kind, address) not in self._open and not (optional and kind in given):
                    socks = bind_group(address, self._processes, optional=optional)
                    if socks:
                        fresh[kind, address] = Bound(socks)
        except ListenError:
            for bound in fresh.values():
                bound.close()
            raise
        self._open |= fresh
        if not self._open:
            raise ListenError("there is nothing to listen on: [listen] https and http are empty")
        self._complete()
        return list(fresh)

    def _take_passed(self, listen: Listen) -> None:
        """Put what systemd has bound in its place: by its name, else by its address."""
        kinds = {address: kind for kind, address, _ in _wanted(listen)}
        for passed in self._waiting:
            kind = passed.name or kinds.get(passed.address, "")
            if not kind:
                log.warning(
                    "systemd passed a socket for %s, which [listen] does not name: it is not used. Name it there, or "
                    "set FileDescriptorName=https (or http) in its unit",
                    passed.address,
                )
                passed.sock.close()
                continue
            prepare(passed.sock)
            self._open[kind, passed.address] = Bound((passed.sock,), given=True)
        self._waiting = ()

    def _complete(self) -> None:
        """An older server may have had fewer processes. Where no more sockets can be had, processes share them."""
        for key, bound in self._open.items():
            missing = self._processes - len(bound.socks)
            if missing > 0 and not bound.given:
                self._open[key] = attrs.evolve(bound, socks=(*bound.socks, *extend(bound.socks, missing)))

    def unwanted(self, listen: Listen) -> list[Key]:
        """What is open and not named by `listen`.

        Sockets that systemd has bound stay: it would go on taking connections for them in our place.
        """
        wanted = {(kind, address) for kind, address, _ in _wanted(listen)}
        return [key for key, bound in self._open.items() if key not in wanted and not bound.given]

    def let_go(self, key: Key) -> Bound:
        """Take one out, without closing it."""
        return self._open.pop(key)

    def bound(self, kind: Literal["https", "http"]) -> tuple[HostPort, ...]:
        """The addresses of the listeners of one kind, with the ports that they really have."""
        return tuple(
            HostPort(*bound.socks[0].getsockname()[:2])
            for (of_kind, _), bound in self._open.items()
            if of_kind == kind and bound.socks[0].fileno() >= 0  # closed ones are left when the server stops
        )

    def addresses(self) -> Addresses:
        """Where is really listened."""
        return Addresses(self.bound("https"), self.bound("http"))


def share(bound: Bound, slot: int, processes: int) -> tuple[socket.socket, ...]:
    """Which sockets of an address the process number `slot` of so many accepts from.

    Usually there are as many as processes. With fewer, processes share them; with more, they have several.
    """
    count = len(bound.socks)
    return tuple(bound.socks[number % count] for number in range(slot, max(count, slot + 1), processes))


def _wanted(listen: Listen) -> list[tuple[str, HostPort, bool]]:
    """Kind, address, and whether it may be left out (a default that this machine has no address family for)."""
    return [("https", address, not listen.https_written) for address in listen.https] + [
        ("http", address, not listen.http_written) for address in listen.http
    ]
