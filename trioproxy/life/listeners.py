"""Accepting: each socket that is listened on has a task that does."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping, Sequence

import trio

from trioproxy.config.model import Listen
from trioproxy.errors import ControlError
from trioproxy.life.sockets import Bound, Key, Sockets
from trioproxy.net.listen import Peer, accept_forever
from trioproxy.net.raw import Socket
from trioproxy.proxy.context import ProxyContext
from trioproxy.proxy.front_door import serve_tls
from trioproxy.proxy.plain import serve_plain


class Listeners:
    """Accepts in this process.

    Args:
        ctx: What serves the connections.
        sockets: Where they come in.
    """

    def __init__(self, ctx: ProxyContext, sockets: Sockets) -> None:
        self._ctx = ctx
        self._sockets = sockets
        self._scopes: dict[Key, trio.CancelScope] = {}
        self._stand_ins: dict[int, list[trio.CancelScope]] = {}  # by the worker's slot
        self._nurseries: tuple[trio.Nursery, trio.Nursery] | None = None

    def start(self, accepting: trio.Nursery, connections: trio.Nursery) -> None:
        """Accept from every bound address in `accepting`, and serve what comes in `connections`."""
        self._nurseries = (accepting, connections)
        for key, bound in self._sockets.open.items():
            self._start(key, bound, accepting, connections)

    def _start(self, key: Key, bound: Bound, accepting: trio.Nursery, connections: trio.Nursery) -> None:
        scope = self._scopes[key] = trio.CancelScope()
        accepting.start_soon(self._accept_all, key[0], bound, scope, connections)

    async def _accept_all(self, kind: str, bound: Bound, scope: trio.CancelScope, connections: trio.Nursery) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                for sock in bound.socks:
                    nursery.start_soon(self.accept, kind, sock, connections)

    async def accept(self, kind: str, sock: socket.socket, connections: trio.Nursery) -> None:
        """Accept from one socket until cancelled; then it is closed."""
        serve = serve_tls if kind == "https" else serve_plain

        def handle(accepted: Socket, peer: Peer) -> None:
            connections.start_soon(serve, self._ctx, accepted, peer)

        with sock:
            await accept_forever(sock, handle, self._ctx.admission.shedder, self._ctx.numbers)

    def move(self, new: Listen) -> None:
        """Listen on what `new` says. What is in both is not touched; nothing is closed before the rest is bound.

        Raises:
            ListenError: an address cannot be bound; everything is as it was.
        """
        self._follow(self._sockets.bind(new), self._sockets.unwanted(new))

    def change(self, fresh: Mapping[Key, Sequence[socket.socket]], gone: Iterable[Key]) -> None:
        """Listen on sockets that somebody else has bound, and no more on those of `gone`."""
        self._sockets.adopt(fresh)
        self._follow(fresh, gone)

    def _follow(self, fresh: Iterable[Key], gone: Iterable[Key]) -> None:
        for key in gone:
            self._sockets.let_go(key)
            if key in self._scopes:
                self._scopes.pop(key).cancel()
        if self._nurseries is not None:
            for key in fresh:
                self._start(key, self._sockets.open[key], *self._nurseries)

    # ---- for another worker -------------------------------------------------------------------------

    def stand_in(self, slot: int, socks: Mapping[Key, Sequence[socket.socket]]) -> None:
        """Accept from the sockets of another worker too, as long as it does not itself."""
        if self._nurseries is None:
            raise ControlError("it does not accept itself")
        self.stand_down(slot)
        accepting, connections = self._nurseries
        self._stand_ins[slot] = []
        for (kind, _), each in socks.items():
            scope = trio.CancelScope()
            self._stand_ins[slot].append(scope)
            accepting.start_soon(self._accept_all, kind, Bound(tuple(each)), scope, connections)

    def stand_down(self, slot: int) -> None:
        """The other worker does."""
        for scope in self._stand_ins.pop(slot, ()):
            scope.cancel()
