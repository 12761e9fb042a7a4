"""A worker: serves connections as a server alone does, and has everything else from its supervisor.

What it is asked, and what it answers (`channel` has how):

    begin       its place, its sockets, the configuration, the board, certificates   ->
    accept      serve from now on                                    ->
    update      the board, and certificates that were replaced       -> problems, by name
    prepare     another configuration, and sockets for it            ->
    commit      go by it now, and listen no more at `gone`           ->
    abandon     forget it                                            ->
    stand_in    accept from the sockets of another worker too        ->
    stand_down  no more                                              ->
    trace       begin one, or ask what has happened                  -> events, dropped
    census, measure, connections, close                              -> see `hands`
    ping                                                             ->
    drain       accept no more, let connections finish, and end      -> open
    cut         end now                                              ->

It does as it was asked before it answers. When the supervisor is gone it lets its connections finish, and ends. Signals
are not for it, but SIGUSR1: who stops a service may send them to all of its processes, and a terminal does.
"""

from __future__ import annotations

import itertools
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from trioproxy.certs.bundle import Bundle
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import InternalCA, utc_now
from trioproxy.certs.known import renews
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.load import parse
from trioproxy.config.model import CertificateFiles, Config, HostPort, Site
from trioproxy.errors import CertificateError, ConfigError, TrioproxyError
from trioproxy.http.alpn import spoken
from trioproxy.life.alone import Alone
from trioproxy.life.channel import FORMAT, Channel, ChannelClosed
from trioproxy.life.member import VARIABLE
from trioproxy.life.parts import proxy_context, snapshot_of
from trioproxy.life.sockets import Key, Sockets
from trioproxy.life.tracing import Gathering
from trioproxy.life.user import become
from trioproxy.logs import configure
from trioproxy.net.sock import Reaper
from trioproxy.snapshot import Cell, Snapshot
from trioproxy.witness.scribe import events_aside

log = logging.getLogger("trioproxy.workers")

NAP = 3600.0
"""Seconds between two looks whether a certificate of the internal CA is to be replaced: wall clocks jump."""

IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

Words = dict[str, Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]]


def is_worker(environ: MutableMapping[str, str]) -> int | None:
    """The descriptor by which this process hears of its work, if it is a worker. It is taken out of `environ`."""
    descriptor = environ.pop(VARIABLE, "")
    return int(descriptor) if descriptor.isdecimal() else None


def run(descriptor: int) -> None:
    """Be a worker, until the supervisor says that it is over or is gone.

    Args:
        descriptor: The way to the supervisor.
    """
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    try:
        trio.run(_run, socket.socket(fileno=descriptor))
    except TrioproxyError as exc:
        sys.exit(f"trioproxy: worker {os.getpid()}: {exc}")


async def _run(sock: socket.socket) -> None:
    os.set_inheritable(sock.fileno(), False)
    channel = Channel(sock)
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # `serve` held it back until we listen for it
        try:
            await channel.send({"format": FORMAT})
            begin, socks = await channel.receive()
            worker = Worker(channel, begin, socks)
            await channel.send({"id": begin["id"]})
        except ChannelClosed:  # the supervisor has thought better of it
            return
        with events_aside():
            await worker.run(signals)


def share(config: Config, workers: int) -> Config:
    """What one of so many workers goes by: its part of what all of them may have together."""
    limits = config.limits
    memory = None if limits.memory is None else limits.memory // workers
    return attrs.evolve(
        config, limits=attrs.evolve(limits, connections=-(-limits.connections // workers), memory=memory)
    )


class Worker:
    """Serves for a supervisor.

    Args:
        channel: The way to it.
        begin: The first thing that it has said.
        socks: The sockets that came with that.
    """

    def __init__(self, channel: Channel, begin: dict[str, Any], socks: Sequence[socket.socket]) -> None:
        self._channel = channel
        self._workers = int(begin["workers"])
        config = self._understand(begin)
        configure(config.log.level, config.log.format)
        become(config)
        store = Store(config.storage)
        self._source = ContextSource(store, InternalCA(store), spoken()[0])
        self._cell = Cell(attrs.evolve(self._snapshot(config), awaiting=frozenset(begin["awaiting"])))
        self._board = ChallengeBoard()
        self._board.copy(begin["board"])
        self._reaper = Reaper()
        self._sockets = Sockets()
        self._sockets.adopt(_by_key(begin["sockets"], socks))
        self._ctx = proxy_context(
            self._cell,
            self._board,
            self._reaper,
            called=begin["called"].encode(),
            numbers=itertools.count(1 + int(begin["slot"]), self._workers),
        )
        self._alone = Alone(self._ctx, self._sockets, self._snapshot, None)
        self._gathering = Gathering(self._ctx)
        self._prepared: tuple[Config, dict[Key, list[socket.socket]]] | None = None
        self._accept = trio.Event()
        self._stopping = trio.Event()
        self._problems(begin["certificates"])

    async def run(self, signals: AsyncIterator[int]) -> None:
        """Serve until told to stop. At each of `signals`, SIGUSR1, files of the log are opened anew."""
        async with trio.open_nursery() as services:
            services.start_soon(self._reaper.run)
            services.start_soon(self._reopen_logs, signals)
            services.start_soon(self._renew_internal)
            services.start_soon(self._obey)
            await self._accept.wait()
            await self._alone.serve(self._stopping, lambda: None)
            services.cancel_scope.cancel()

    async def _reopen_logs(self, signals: AsyncIterator[int]) -> None:
        async for _ in signals:
            self._alone.reopen_logs()

    async def _obey(self) -> None:
        words = self._words()
        try:
            while True:
                message, socks = await self._channel.receive()
                try:
                    answer = await words[message["word"]]({**message, "socks": socks})
                except TrioproxyError as exc:
                    answer = {"error": str(exc)}
                except Exception as exc:
                    log.exception("a bug in trioproxy ended what a worker was asked for: %s", message["word"])
                    answer = {"error": f"a bug in trioproxy: {exc!r}"}
                await self._channel.send({"id": message["id"], **answer})
        except ChannelClosed:
            if not self._stopping.is_set():
                log.error("worker %d: its supervisor has gone: it lets its connections finish, and ends", os.getpid())
            self._stopping.set()
            self._accept.set()

    def _words(self) -> Words:
        return {
            "accept": self._begin_to_accept,
            "update": self._update,
            "prepare": self._prepare,
            "commit": self._commit,
            "abandon": self._abandon,
            "stand_in": self._stand_in,
            "stand_down": self._stand_down,
            "census": self._census,
            "measure": self._measure,
            "trace": self._gathering.take,
            "connections": self._connections,
            "close": self._close,
            "ping": self._ping,
            "drain": self._drain,
            "cut": self._cut,
        }

    # ---- configurations -----------------------------------------------------------------------------

    def _understand(self, message: dict[str, Any]) -> Config:
        """The configuration of a message, with this worker's share of what all of them may have together.

        Raises:
            ConfigError: it has mistakes, which the supervisor has not found: the environments are not the same.
        """
        config = parse(message["text"], Path(message["path"]), os.environ, os.geteuid())
        return attrs.evolve(share(config, self._workers), storage=Path(message["storage"]))

    def _snapshot(self, config: Config) -> Snapshot:
        return snapshot_of(config, self._source)

    async def _prepare(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            config = await trio.to_thread.run_sync(self._understand, message)
        except ConfigError as exc:
            for sock in message["socks"]:
                sock.close()
            raise TrioproxyError("\n".join(exc.lines())) from exc
        self._prepared = config, _by_key(message["sockets"], message["socks"])
        return {}

    async def _commit(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._prepared is None:
            raise TrioproxyError("there is nothing prepared")
        (config, fresh), self._prepared = self._prepared, None
        old = self._cell.current.config.log
        if (config.log.level, config.log.format) != (old.level, old.format):
            configure(config.log.level, config.log.format)
        self._alone.listeners.change(fresh, [_key(place) for place in message["gone"]])
        self._alone.go_by(config)
        await self._read_files()
        return {}

    async def _abandon(self, _: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        if self._prepared is not None:
            for socks in self._prepared[1].values():
                for sock in socks:
                    sock.close()
        self._prepared = None
        return {}

    # ---- what the supervisor publishes --------------------------------------------------------------

    async def _update(self, message: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self._board.copy(message["board"])
        return {"problems": self._problems(message["certificates"])}

    def _problems(self, certificates: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Serve what these say; returns why not, by name."""
        found: dict[str, str] = {}
        for certificate in certificates:
            site = self._cell.current.config.sites.get(certificate["name"])
            if site is None:
                continue
            try:
                self._publish(site, certificate["pem"].encode(), awaiting=certificate["awaiting"])
            except CertificateError as exc:
                found[site.name] = str(exc)
        return found

    def _publish(self, site: Site, pem: bytes, *, awaiting: bool) -> None:
        if pem:
            context = self._source.context_of(site, Bundle.parse(pem), "files")
        else:
            context = self._source.context_for(site)
            problem = self._source.served[site.name].problem
            if problem:
                raise CertificateError(problem)

        now = self._cell.current.awaiting
        names = now | {site.name} if awaiting else now - {site.name}
        self._cell.update(lambda s: attrs.evolve(_with_context(site.name, context, s), awaiting=names))

    async def _read_files(self) -> None:
        """Have the certificates of users' files at hand before they are asked for."""
        snapshot = self._cell.current
        for site in snapshot.config.sites.values():
            if isinstance(site.tls, CertificateFiles):
                await trio.lowlevel.checkpoint()
                snapshot.contexts.of(site)

    async def _renew_internal(self) -> None:
        """Replace what the internal CA has signed in this process, before it ends; until cancelled."""
        while True:
            await trio.sleep(NAP)
            now = utc_now()
            for name, served in list(self._source.served.items()):
                site = self._cell.current.config.sites.get(name)
                if site is not None and served.by == "internal" and renews(served.leaf) <= now:
                    await trio.to_thread.run_sync(self._source.prepare)
                    context = self._source.context_for(site)
                    self._cell.update(partial(_with_context, name, context))

    # ---- accepting ----------------------------------------------------------------------------------

    async def _begin_to_accept(self, _: dict[str, Any]) -> dict[str, Any]:
        await self._read_files()
        self._accept.set()
        return {}

    async def _stand_in(self, message: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self._alone.listeners.stand_in(message["slot"], _by_key(message["sockets"], message["socks"]))
        return {}

    async def _stand_down(self, message: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self._alone.listeners.stand_down(message["slot"])
        return {}

    async def _drain(self, _: dict[str, Any]) -> dict[str, Any]:
        census = await self._alone.census()
        self._stopping.set()
        return {"open": census.open}

    async def _cut(self, _: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        self._alone.cut()
        return {}

    # ---- questions ----------------------------------------------------------------------------------

    async def _ping(self, _: dict[str, Any]) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return {}

    async def _census(self, _: dict[str, Any]) -> dict[str, Any]:
        census = await self._alone.census()
        guests = [[kind, name, count] for (kind, name), count in census.guests.items()]
        return {"open": census.open, "suspect": census.suspect, "guests": guests}

    async def _measure(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"samples": await self._alone.measure()}

    async def _connections(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"connections": await self._alone.connections(message["name"])}

    async def _close(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"closed": await self._alone.close(message["number"])}


def _with_context(name: str, context: ssl.SSLContext, snapshot: Snapshot) -> Snapshot:
    return attrs.evolve(snapshot, contexts=snapshot.contexts.replaced(name, context))


def _key(place: Sequence[Any]) -> Key:
    kind, host, port = place
    return kind, HostPort(host, port)


def _by_key(places: Sequence[Sequence[Any]], socks: Sequence[socket.socket]) -> dict[Key, list[socket.socket]]:
    found: dict[Key, list[socket.socket]] = {}
    for place, sock in zip(places, socks, strict=True):
        found.setdefault(_key(place), []).append(sock)
    return found
