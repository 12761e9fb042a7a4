"""Certificates without a running server: the parts of one that a command needs, for as long as it takes.

Port 80 is answered meanwhile, port 443 is not, so a name is proved by HTTP-01 alone: to try TLS-ALPN-01 as well would
be a validation that fails, and of those CAs allow few.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import attrs
import trio

from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.manager import Manager
from trioproxy.certs.served import Listening
from trioproxy.certs.status import CertificateStatus, Outcome
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Config, HostPort
from trioproxy.control import Report
from trioproxy.errors import ControlError, TrioproxyError
from trioproxy.life.parts import proxy_context
from trioproxy.net.listen import Handler, Peer, accept_forever, bind
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Reaper
from trioproxy.proxy.plain import serve_plain
from trioproxy.routing import RouteTable
from trioproxy.server import acme_client
from trioproxy.snapshot import Cell, Contexts, Snapshot

T = TypeVar("T")


async def renew(config: Config, names: Sequence[str], force: bool, report: Report) -> list[Outcome]:
    """Do what `Manager.renew` does while no server runs: port 80 is answered here meanwhile.

    Raises:
        ListenError: port 80 is not to be had; the message says who holds it.
        ControlError: a name that is none of the configuration's, or HTTP-01 is not to be used.
    """
    parts = _Parts(config)
    parts.manager.named(names)  # a wrong name is told before anybody looks for port 80
    _check_challenges(config)
    async with _port_80(config, parts, report):
        return await parts.manager.renew(names, force, report)


async def rehearse(config: Config, names: Sequence[str], report: Report) -> list[Outcome]:
    """Do what `Manager.rehearse` does while no server runs. Raises as `renew`."""
    parts = _Parts(config)
    parts.manager.named(names)
    _check_challenges(config)
    async with _port_80(config, parts, report):
        return await parts.manager.rehearse(names, report)


async def revoke(config: Config, name: str, reason: str, report: Report) -> Outcome:
    """Do what `Manager.revoke` does while no server runs. Raises as that, and ListenError."""
    parts = _Parts(config)
    parts.manager.named([name])
    async with _port_80(config, parts, report):
        come = await _whatever_comes(parts.manager.revoke(name, reason, report))
    return come()


async def roll_over(config: Config, directory: str, report: Report) -> str:
    """Do what `Manager.roll_over` does while no server runs. Raises as that."""
    parts = _Parts(config)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(parts.reaper.run)  # noqa: ASYNC113 - nothing waits for it to have begun
        come = await _whatever_comes(parts.manager.roll_over(directory, report))
        nursery.cancel_scope.cancel()
    return come()


async def _whatever_comes(work: Awaitable[T]) -> Callable[[], T]:
    """What returns or raises what comes of `work`, to be called outside of a nursery: that would wrap an error."""
    try:
        done = await work
    except TrioproxyError as exc:
        failure = exc

        def fail() -> T:
            raise failure

        return fail
    return lambda: done


async def listing(config: Config) -> list[CertificateStatus]:
    """What `Manager.listing` tells, read from the store and from the users' files; nothing is made there."""
    manager = _Parts(config).manager
    await manager.look()
    return manager.listing()


def _check_challenges(config: Config) -> None:
    if "http-01" not in config.acme.challenges:
        raise ControlError(
            "names are to be proved on port 443 (acme.challenges), and only a running server answers there: start it"
        )


def _by_http(acme: Acme) -> Acme:
    """`acme` as this process can keep to it."""
    fallback = tuple(map(_by_http, acme.fallback))
    return attrs.evolve(acme, challenges=("http-01",), fallback=fallback)


class _Parts:
    def __init__(self, config: Config) -> None:
        config = attrs.evolve(config, acme=_by_http(config.acme))
        store = Store(config.storage)
        source = ContextSource(store, InternalCA(store))
        self.board = ChallengeBoard()
        self.reaper = Reaper()
        self.cell = Cell(Snapshot(config, RouteTable.of(config), Contexts(source.context_for), source.awaiting(config)))
        self.http: tuple[HostPort, ...] = ()  # where challenges are answered, while they are
        self.manager = Manager(
            self.cell,
            self.board,
            store,
            source,
            lambda settings: acme_client(settings, store, self.reaper),
            listening=Listening(https=tuple, http=lambda: self.http),
        )


@asynccontextmanager
async def _port_80(config: Config, parts: _Parts, report: Report) -> AsyncIterator[None]:
    """Answer port 80 as long as the block runs, and then until what is to be done after a renewal is done too."""
    listeners = bind(config.listen.http, optional=not config.listen.http_written)
    parts.http = tuple(HostPort(*listener.getsockname()[:2]) for listener in listeners)
    ctx = proxy_context(parts.cell, parts.board, parts.reaper)
    aftercare = parts.manager.aftercare
    async with trio.open_nursery() as nursery:

        def handle(sock: Socket, peer: Peer) -> None:
            nursery.start_soon(serve_plain, ctx, sock, peer)

        nursery.start_soon(parts.reaper.run)  # noqa: ASYNC113 - nothing waits for it to have begun
        nursery.start_soon(ctx.pool.run)  # noqa: ASYNC113
        nursery.start_soon(aftercare.run)  # noqa: ASYNC113
        for listener in listeners:
            nursery.start_soon(_accept, listener, handle)
        yield
        await aftercare.settle()
        for status in parts.manager.listing():
            if status.state == "amiss":
                report(f"{status.name}: {status.error}")
        nursery.cancel_scope.cancel()


async def _accept(listener: socket.socket, handle: Handler) -> None:
    with listener:
        await accept_forever(listener, handle)
