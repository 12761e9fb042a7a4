"""The sockets that are listened on, each with the task that accepts from it.

A socket is known by what the configuration calls it: its kind and address. Those that systemd has bound for us take
the place of what would be bound otherwise; the rest is bound here.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Literal, Self

import attrs
import trio

from trioproxy.config.model import HostPort, Listen
from trioproxy.errors import ListenError
from trioproxy.net.listen import Peer, accept_forever, bind, prepare
from trioproxy.net.raw import Socket
from trioproxy.process.activation import Passed
from trioproxy.process.inheritance import Heirloom
from trioproxy.proxy.context import ProxyContext
from trioproxy.proxy.front_door import serve_tls
from trioproxy.proxy.plain import serve_plain

log = logging.getLogger("trioproxy.server")

Key = tuple[str, HostPort]
"""Kind ("https" or "http") and configured address."""


@attrs.frozen
class Addresses:
    """Where a server really listens; what `task_status.started` gets."""

    https: tuple[HostPort, ...]
    http: tuple[HostPort, ...]


@attrs.frozen
class _Listener:
    sock: socket.socket
    given: bool
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


class Listeners:
    """Every socket that is listened on.

    As a context manager it closes, at the end, those that nobody accepts from.
    """

    def __init__(self, ctx: ProxyContext) -> None:
        self._ctx = ctx
        self._open: dict[Key, _Listener] = {}
        self._waiting: tuple[Passed, ...] = ()  # from systemd, not used yet
        self._nurseries: tuple[trio.Nursery, trio.Nursery] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._nurseries is None:
            for listener in self._open.values():
                listener.sock.close()
        for passed in self._waiting:
            passed.sock.close()

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
                self._open[key] = _Listener(heirloom.sock, heirloom.given)
            else:
                heirloom.sock.close()

    def heirlooms(self) -> tuple[Heirloom, ...]:
        """What a newer process is to go on with."""
        return tuple(Heirloom(kind, at, each.given, each.sock) for (kind, at), each in self._open.items())

    # ---- binding ------------------------------------------------------------------------------------

    def bind(self, listen: Listen) -> Addresses:
        """Bind every address of `listen` that is not bound yet; all or, with a ListenError, none."""
        self._take_passed(listen)
        given = {kind for (kind, _), listener in self._open.items() if listener.given}
        fresh: list[tuple[Key, socket.socket]] = []
        try:
            for kind, address, optional in _wanted(listen):
                # Who has systemd bind the sockets of a kind, and names no addresses here, wants no others.
                if (kind, address) not in self._open and not (optional and kind in given):
                    fresh += [((kind, address), sock) for sock in bind([address], optional=optional)]
        except ListenError:
            for _, sock in fresh:
                sock.close()
            raise
        for key, sock in fresh:
            self._open[key] = _Listener(sock, given=False)
        if not self._open:
            raise ListenError("there is nothing to listen on: [listen] https and http are empty")
        return Addresses(self.bound("https"), self.bound("http"))

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
            self._open[kind, passed.address] = _Listener(passed.sock, given=True)
        self._waiting = ()

    def bound(self, kind: Literal["https", "http"]) -> tuple[HostPort, ...]:
        """The addresses of the listeners of one kind, with the ports that they really have."""
        return tuple(
            HostPort(*listener.sock.getsockname()[:2])
            for (of_kind, _), listener in self._open.items()
            if of_kind == kind and listener.sock.fileno() >= 0  # closed ones are left when the server stops
        )

    # ---- accepting ----------------------------------------------------------------------------------

    def start(self, accepting: trio.Nursery, connections: trio.Nursery) -> None:
        """Accept from every bound address in `accepting`, and serve what comes in `connections`."""
        self._nurseries = (accepting, connections)
        for key in self._open:
            accepting.start_soon(self._accept, key, connections)

    async def _accept(self, key: Key, connections: trio.Nursery) -> None:
        listener = self._open[key]
        serve = serve_tls if key[0] == "https" else serve_plain

        def handle(accepted: Socket, peer: Peer) -> None:
            connections.start_soon(serve, self._ctx, accepted, peer)

        with listener.sock, listener.scope:
            await accept_forever(listener.sock, handle, self._ctx.admission.shedder)

    def move(self, new: Listen) -> None:
        """Listen on what `new` says. What is in both is not touched; nothing is closed before the rest is bound.

        Sockets that systemd has bound stay: it would go on taking connections for them in our place.

        Raises:
            ListenError: an address cannot be bound; everything is as it was.
        """
        before = set(self._open)
        self.bind(new)
        wanted = {(kind, address) for kind, address, _ in _wanted(new)}
        for key in before - wanted:
            if not self._open[key].given:
                self._open.pop(key).scope.cancel()
        if self._nurseries is not None:
            accepting, connections = self._nurseries
            for key in set(self._open) - before:
                accepting.start_soon(self._accept, key, connections)


def _wanted(listen: Listen) -> list[tuple[str, HostPort, bool]]:
    """Kind, address, and whether it may be left out (a default that this machine has no address family for)."""
    return [("https", address, not listen.https_written) for address in listen.https] + [
        ("http", address, not listen.http_written) for address in listen.http
    ]
