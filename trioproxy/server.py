"""The running server: what lives how long, what signals do, how it reloads and how it stops.

Three nurseries, each inside the other, are the whole of it. `services` (the reaper, the pump, the certificate manager,
the control socket) outlive every connection; `connections` outlive accepting; stopping cancels the innermost, gives
the next a deadline, and then the outermost has nobody left to serve.
"""

from __future__ import annotations

import gc
import logging
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Literal

import attrs
import trio

from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.importing import handlers as import_handlers
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.manager import Manager, handlers
from trioproxy.certs.preflight import check_files
from trioproxy.certs.served import Listening
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Config, HostPort, Listen
from trioproxy.control import control_socket, serve_control
from trioproxy.errors import ConfigError, ListenError
from trioproxy.http.alpn import spoken
from trioproxy.net.dial import Dialler
from trioproxy.net.http_client import HttpClient
from trioproxy.net.limits import raise_descriptor_limit
from trioproxy.net.listen import Peer, accept_forever, bind
from trioproxy.net.pump import Pump
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Reaper
from trioproxy.proxy.context import Drain, ProxyContext
from trioproxy.proxy.front_door import serve_tls
from trioproxy.proxy.plain import serve_plain
from trioproxy.proxy.pool import Pool
from trioproxy.routing import RouteTable
from trioproxy.snapshot import Cell, Contexts, Snapshot

if TYPE_CHECKING:
    from trioproxy.acme.client import AcmeClient

log = logging.getLogger("trioproxy.server")

MANAGER_PAUSE = 60
"""Seconds before the certificate manager is started again after a bug ended it."""


@attrs.frozen
class Addresses:
    """Where a server really listens; what `task_status.started` gets."""

    https: tuple[HostPort, ...]
    http: tuple[HostPort, ...]


def proxy_context(cell: Cell, board: ChallengeBoard, reaper: Reaper) -> ProxyContext:
    """The parts of a proxy that goes by `cell` and answers the challenges of `board`."""
    dialler = Dialler(reaper)
    return ProxyContext(
        cell=cell,
        board=board,
        reaper=reaper,
        pump=Pump(reaper),
        dialler=dialler,
        pool=Pool(dialler, reaper),
        drain=Drain(),
        pseudonym=b"trioproxy-" + secrets.token_hex(4).encode(),
    )


def acme_client(settings: Acme, store: Store, reaper: Reaper) -> AcmeClient:
    """A client for the directory of `settings`, whose accounts are kept in `store`."""
    from trioproxy.acme.client import AcmeClient  # here, for it takes longer to import than all the rest

    return AcmeClient(settings, HttpClient(settings.ca_file, reaper), store.accounts)


class Server:
    """One running proxy.

    Args:
        config: What to serve.
        load: Reads the configuration again, for a reload; raises ConfigError.
    """

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self._load = load
        self._store = Store(config.storage)
        protocols, lacking = spoken()
        if lacking:
            log.warning("sites speak HTTP/1.1 only, for HTTP/2 needs ngh2, and that does not load: %s", lacking)
        self._source = ContextSource(self._store, InternalCA(self._store), protocols)
        self._cell = Cell(self._snapshot(config))
        self._board = ChallengeBoard()
        self._reaper = Reaper()
        self._ctx = proxy_context(self._cell, self._board, self._reaper)
        self._manager = Manager(
            self._cell,
            self._board,
            self._store,
            self._source,
            lambda settings: acme_client(settings, self._store, self._reaper),
            listening=Listening(lambda: self._listeners.bound("https"), lambda: self._listeners.bound("http")),
        )
        self._listeners = Listeners(self._ctx)
        self._stopping = trio.Event()
        self._reload_asked = trio.Event()

    async def run(self, task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, then let connections finish; a second signal ends them.

        Raises:
            ListenError: an address or the control socket cannot be bound. Nothing was served then.
        """
        config = self._cell.current.config
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals,
            control_socket(config.control_socket) as control,
        ):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # `serve` held it back until we listen for it
            self._ctx.admission.possible = raise_descriptor_limit(config.limits.connections)
            addresses = self._listeners.bind(config.listen)
            async with trio.open_nursery() as services:
                services.start_soon(self._reaper.run)
                services.start_soon(self._ctx.pump.run)
                services.start_soon(self._ctx.pool.run)
                services.start_soon(self._ctx.lan.run)
                services.start_soon(self._ctx.admission.run)
                services.start_soon(serve_control, control, handlers(self._manager) | import_handlers(self._manager))
                services.start_soon(self._keep_certificates)
                services.start_soon(self._reload_when_asked)
                async with trio.open_nursery() as connections:
                    async with trio.open_nursery() as accepting:
                        self._listeners.start(accepting, connections)
                        services.start_soon(self._heed, signals, connections)  # noqa: ASYNC111 - for its scope alone
                        _settle_memory()
                        log.info("ready: %s", ", ".join(map(str, addresses.https + addresses.http)))
                        task_status.started(addresses)
                        await self._stopping.wait()
                        accepting.cancel_scope.cancel()
                    self._begin_drain(connections)
                services.cancel_scope.cancel()
        log.info("stopped")

    def _begin_drain(self, connections: trio.Nursery) -> None:
        seconds = self._cell.current.config.timeouts.drain
        self._ctx.drain.begin()
        if connections.child_tasks:
            log.info("stopping: %d connections may finish within %g s", len(connections.child_tasks), seconds)
        connections.cancel_scope.deadline = trio.current_time() + seconds

    async def _heed(self, signals: AsyncIterator[int], connections: trio.Nursery) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._reload_asked.set()
            elif self._stopping.is_set():
                log.warning("stopping at once: open connections are cut")
                connections.cancel_scope.cancel()
            else:
                self._stopping.set()

    async def _keep_certificates(self) -> None:
        """Run the manager; a bug in it must not take the proxy down with it."""
        while True:
            try:
                await self._manager.run()
            except Exception:
                log.exception("a bug in the certificate manager; it starts again in %d s", MANAGER_PAUSE)
            await trio.sleep(MANAGER_PAUSE)

    # ---- reload -------------------------------------------------------------------------------------

    async def _reload_when_asked(self) -> None:
        """One reload at a time; whatever is asked for meanwhile comes to one more.

        A task of its own, for reading may hang (a dead network drive, a FIFO), and SIGTERM must be heeded even then.
        """
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            try:
                await self.reload()
            except Exception:
                log.exception("a bug in trioproxy: not reloaded; still serving by the old configuration")

    async def reload(self) -> None:
        """Read the configuration again and go by it; if anything is wrong with it, say so and change nothing.

        Running exchanges go on by the configuration they began with, and connections of names that are still configured
        live on.
        """
        old = self._cell.current.config
        try:
            config = await trio.to_thread.run_sync(self._load_checked, abandon_on_cancel=True)
            if self._stopping.is_set():
                log.info("not reloaded: the server is stopping")
                return
            self._listeners.move(config.listen)
        except ConfigError as exc:
            for line in exc.lines():
                log.error("%s", line)
            log.error("not reloaded: the configuration has mistakes; still serving by the old one")
            return
        except ListenError as exc:
            log.error("not reloaded: %s; still serving by the old configuration", exc)
            return
        if (config.storage, config.control_socket) != (old.storage, old.control_socket):
            log.warning("storage.path and control.socket change with a restart, not with a reload")
        self._ctx.admission.possible = raise_descriptor_limit(config.limits.connections)
        snapshot = self._snapshot(config)
        self._cell.update(lambda _: snapshot)
        self._manager.wake()
        log.info("reloaded: %d sites, %d passthrough names", len(config.sites), len(config.passthrough))

    def _load_checked(self) -> Config:
        config = self._load()
        mistakes = check_files(config)
        if mistakes:
            raise ConfigError(config.path, tuple(mistakes))
        return config

    def _snapshot(self, config: Config) -> Snapshot:
        return Snapshot(
            config, RouteTable.of(config), Contexts(self._source.context_for), self._source.awaiting(config)
        )


def _settle_memory() -> None:
    """Tell the garbage collector that what the start made stays, and that connections come and go by the thousand.

    It would otherwise walk all modules every few hundred connections, for 5 % of the time of a short one. Tasks leave
    cycles behind, so it must still run, only less often: 20,000 objects are a few megabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class Listeners:
    """The sockets that are listened on, each with the task that accepts from it."""

    def __init__(self, ctx: ProxyContext) -> None:
        self._ctx = ctx
        self._open: dict[tuple[str, HostPort], tuple[socket.socket, trio.CancelScope]] = {}
        self._nurseries: tuple[trio.Nursery, trio.Nursery] | None = None

    def bind(self, listen: Listen) -> Addresses:
        """Bind every address of `listen` that is not bound yet; all or, with a ListenError, none."""
        fresh: list[tuple[tuple[str, HostPort], socket.socket]] = []
        try:
            for kind, address, optional in _wanted(listen):
                if (kind, address) not in self._open:
                    fresh += [((kind, address), sock) for sock in bind([address], optional=optional)]
        except ListenError:
            for _, sock in fresh:
                sock.close()
            raise
        for key, sock in fresh:
            self._open[key] = (sock, trio.CancelScope())
        if not self._open:
            raise ListenError("there is nothing to listen on: [listen] https and http are empty")
        return Addresses(self.bound("https"), self.bound("http"))

    def bound(self, kind: Literal["https", "http"]) -> tuple[HostPort, ...]:
        """The addresses of the listeners of one kind, with the ports that they really have."""
        return tuple(
            HostPort(*sock.getsockname()[:2]) for (of_kind, _), (sock, _) in self._open.items() if of_kind == kind
        )

    def start(self, accepting: trio.Nursery, connections: trio.Nursery) -> None:
        """Accept from every bound address in `accepting`, and serve what comes in `connections`."""
        self._nurseries = (accepting, connections)
        for key in self._open:
            accepting.start_soon(self._accept, key, connections)

    async def _accept(self, key: tuple[str, HostPort], connections: trio.Nursery) -> None:
        sock, scope = self._open[key]
        serve = serve_tls if key[0] == "https" else serve_plain

        def handle(accepted: Socket, peer: Peer) -> None:
            connections.start_soon(serve, self._ctx, accepted, peer)

        with sock, scope:
            await accept_forever(sock, handle, self._ctx.admission.shedder)

    def move(self, new: Listen) -> None:
        """Listen on what `new` says. What is in both is not touched; nothing is closed before the rest is bound.

        Raises:
            ListenError: an address cannot be bound; everything is as it was.
        """
        before = set(self._open)
        self.bind(new)
        wanted = {(kind, address) for kind, address, _ in _wanted(new)}
        for key in before - wanted:
            self._open.pop(key)[1].cancel()
        if self._nurseries is not None:
            accepting, connections = self._nurseries
            for key in set(self._open) - before:
                accepting.start_soon(self._accept, key, connections)


def _wanted(listen: Listen) -> list[tuple[str, HostPort, bool]]:
    """Kind, address, and whether it may be left out (a default that this machine has no address family for)."""
    return [("https", address, not listen.https_written) for address in listen.https] + [
        ("http", address, not listen.http_written) for address in listen.http
    ]
