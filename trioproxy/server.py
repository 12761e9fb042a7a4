"""The running server: what lives how long, what signals do, how it starts and how it stops.

The certificate manager, the control socket and reloads are here, and outlive every connection; who accepts and serves
those are its hands (`life/hands`): this process alone or, with `process.workers`, several others. How it changes while
it runs is `life`.
"""

from __future__ import annotations

import functools
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.importing import handlers as import_handlers
from trioproxy.certs.internal_ca import InternalCA, utc_now
from trioproxy.certs.jumps import watch_clock
from trioproxy.certs.manager import Manager
from trioproxy.certs.served import Listening
from trioproxy.certs.store import Store
from trioproxy.certs.wishes import handlers
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Config
from trioproxy.control import ControlSocket, Handlers, control_socket
from trioproxy.http.alpn import spoken
from trioproxy.life.alone import Alone
from trioproxy.life.circumstances import Circumstances
from trioproxy.life.crew import Crew
from trioproxy.life.hands import Hands
from trioproxy.life.keeper import Keeper
from trioproxy.life.measuring import of_server
from trioproxy.life.member import WorkerGone
from trioproxy.life.parts import proxy_context, snapshot_of
from trioproxy.life.reload import Reloads, summary
from trioproxy.life.reload import handler as reload_handler
from trioproxy.life.reports import reports
from trioproxy.life.scrapes import KIND, Scrapes
from trioproxy.life.shared import SharedBoard, SharedCell, SharedSource
from trioproxy.life.sockets import Addresses, Sockets
from trioproxy.life.tidings import Tidings
from trioproxy.life.tracing import tracing
from trioproxy.life.upgrade import Estate, Succession, Upgrades
from trioproxy.life.user import become
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper
from trioproxy.snapshot import Cell, Snapshot
from trioproxy.witness.exposition import Samples, merge
from trioproxy.witness.scribe import events_aside

if TYPE_CHECKING:
    from trioproxy.acme.client import AcmeClient

log = logging.getLogger("trioproxy.server")

HELD_BACK = (signal.SIGHUP, signal.SIGUSR1)
"""Signals that `serve` has held back until they are listened for: they would be the end of a process that starts."""

LAST_WORDS = 1.0
"""Seconds that commands under way get at the end: who asked for an upgrade is to hear of it."""


def acme_client(settings: Acme, store: Store, reaper: Reaper) -> AcmeClient:
    """A client for the directory of `settings`, whose accounts are kept in `store`."""
    from trioproxy.acme.client import AcmeClient  # here, for it takes longer to import than all the rest

    return AcmeClient(settings, HttpClient(settings.ca_file, reaper), store.accounts)


class Server:
    """One running proxy.

    Args:
        config: What to serve.
        load: Reads the configuration again, for a reload; raises ConfigError.
        circumstances: What the process was given at its start.
    """

    def __init__(self, config: Config, load: Callable[[], Config], circumstances: Circumstances | None = None) -> None:
        self._circumstances = circumstances or Circumstances()
        self._notifier = self._circumstances.notifier
        self._store = Store(config.storage)
        protocols, lacking = spoken()
        if lacking:
            log.warning("sites speak HTTP/1.1 only, for HTTP/2 needs ngh2, and that does not load: %s", lacking)
        self._reaper = Reaper()
        self._sockets = Sockets(config.process.workers)
        make_hands = self._alone if config.process.workers == 1 else self._crew
        self._hands = make_hands(config, InternalCA(self._store), protocols)
        self._scrapes = Scrapes(self._reaper, self._measure)
        self._manager = Manager(
            self._cell,
            self._board,
            self._store,
            self._source,
            lambda settings: acme_client(settings, self._store, self._reaper),
            listening=Listening(
                lambda: self._sockets.bound("https"), lambda: self._sockets.bound("http"), self._board.seen
            ),
        )
        self._stopping = trio.Event()
        self._reloads = Reloads(
            self._cell,
            self._hands,
            self._scrapes,
            self._source,
            load,
            self._manager.wake,
            self._notifier,
            self._stopping.is_set,
        )
        self._keeper = Keeper(self._manager.run)
        self._signalled = False

    def _alone(self, config: Config, internal_ca: InternalCA, protocols: Sequence[str]) -> Hands:
        self._source = ContextSource(self._store, internal_ca, protocols)
        self._cell = Cell(self._snapshot(config))
        self._board = ChallengeBoard()
        ctx = proxy_context(self._cell, self._board, self._reaper)
        return Alone(ctx, self._sockets, self._snapshot, self._notifier)

    def _crew(self, config: Config, internal_ca: InternalCA, protocols: Sequence[str]) -> Hands:
        self._source = source = SharedSource(self._store, internal_ca, protocols)
        self._cell = cell = SharedCell(self._snapshot(config))
        self._board = board = SharedBoard()
        tidings = Tidings(cell, board, source)
        command = self._circumstances.command
        return Crew(config.process.workers, command, tidings, self._sockets, self._snapshot, self._notifier)

    async def run(self, task_status: trio.TaskStatus[Addresses] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, then let connections finish; a second signal ends them.

        Raises:
            ListenError: an address or the control socket cannot be bound. Nothing was served then.
            PrivilegeError: root cannot be given up as configured; the same.
            WorkerGone: workers do not start; the same.
        """
        config = self._cell.current.config
        with (
            trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *HELD_BACK) as signals,
            self._sockets as sockets,
            self._scrapes as scrapes,
        ):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_BACK)
            inherited = self._take_over(config)
            with scrapes.moving(config.metrics):
                sockets.bind(config.listen)
            addresses = sockets.addresses()
            become(config)
            with events_aside(), control_socket(config.control_socket, inherited) as control:
                succession = Succession(i) if (i := self._circumstances.inheritance) else None
                if succession:
                    await succession.wait_for_turn()
                await self._serve(signals, control, addresses, succession, lambda: task_status.started(addresses))
        log.info("stopped")

    def _take_over(self, config: Config) -> socket.socket | None:
        """Use the sockets that this process was handed; the control socket too, if that is to be the same."""
        self._sockets.receive(self._circumstances.passed)
        inheritance = self._circumstances.inheritance
        if inheritance is None:
            return None
        ours = [heirloom for heirloom in inheritance.listeners if heirloom.kind == KIND]
        self._scrapes.inherit(ours, config.metrics)
        self._sockets.inherit((each for each in inheritance.listeners if each not in ours), config.listen)
        sock, path = inheritance.control
        if path == config.control_socket:
            return sock
        sock.close()
        return None

    async def _serve(
        self,
        signals: AsyncIterator[int],
        control: ControlSocket,
        addresses: Addresses,
        succession: Succession | None,
        bound: Callable[[], None],
    ) -> None:
        failure: WorkerGone | None = None
        async with trio.open_nursery() as services:
            services.start_soon(self._reaper.run)
            services.start_soon(control.answer, self._handlers(control))
            services.start_soon(self._keeper.run)
            services.start_soon(watch_clock, utc_now, self._manager.clock_jumped)
            services.start_soon(self._reloads.run)
            services.start_soon(self._answer_scrapes)
            services.start_soon(self._heed, signals)

            def serving() -> None:
                if at := self._scrapes.bound():
                    log.info("metrics: http://%s/metrics", at)
                log.info("ready: %s", ", ".join(map(str, addresses.https + addresses.http)))
                services.start_soon(self._announce, control, succession)
                bound()

            try:
                await self._hands.serve(self._stopping, serving)
            except WorkerGone as exc:
                failure = exc  # raised outside, for a nursery would wrap it
            with trio.move_on_after(LAST_WORDS):  # who asked for this end is to hear of it
                await control.answered()
            services.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _answer_scrapes(self) -> None:
        """Tell what is measured, until the server stops: one that takes its place has counts of its own."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._scrapes.run)
            await self._stopping.wait()
            nursery.cancel_scope.cancel()

    async def _measure(self) -> Samples:
        return merge([of_server(self._cell, self._manager, self._reloads), await self._hands.measure()])

    async def _announce(self, control: ControlSocket, succession: Succession | None) -> None:
        """Tell systemd that all is well, as soon as we are the service, and go on telling."""
        if succession:
            await succession.serving(control=control.path == self._inherited_path())
        if not self._stopping.is_set():
            self._notifier.ready(summary(self._cell.current.config))
        await self._notifier.feed_watchdog(self._hands.healthy)

    def _inherited_path(self) -> Path | None:
        inheritance = self._circumstances.inheritance
        return inheritance.control[1] if inheritance else None

    def _handlers(self, control: ControlSocket) -> Handlers:
        estate = Estate(
            self._circumstances.command,
            lambda: self._sockets.heirlooms() + self._scrapes.heirlooms(),
            control,
            self._notifier,
            stopping=self._stopping.is_set,
            let_go=functools.partial(self._let_go, control),
            take_back=functools.partial(self._take_back, control),
            leave=self._stopping.set,
        )
        return {
            **handlers(self._manager),
            **import_handlers(self._manager),
            **reports(self._cell, self._hands, self._sockets, self._manager),
            "reload": reload_handler(self._reloads),
            "trace": tracing(self._cell, self._hands),
            "upgrade": Upgrades(estate).upgrade,
        }

    async def _let_go(self, control: ControlSocket) -> None:
        control.pause()
        await self._keeper.pause()

    def _take_back(self, control: ControlSocket) -> None:
        control.resume()
        self._keeper.resume()

    async def _heed(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._reloads.asked.set()
            elif number == signal.SIGUSR1:
                self._hands.reopen_logs()
            elif self._signalled:
                log.warning("stopping at once: open connections are cut")
                self._hands.cut()
            else:
                self._signalled = True
                self._stopping.set()

    def _snapshot(self, config: Config) -> Snapshot:
        return snapshot_of(config, self._source)
