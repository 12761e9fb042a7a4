"""Serving in this very process: a server's whole work where there is one process, and each worker's.

Two nurseries, one inside the other: `connections` outlive accepting. To stop, accepting is cancelled, and connections
get `timeouts.drain`.
"""

from __future__ import annotations

import gc
import logging
from collections import Counter
from collections.abc import Callable
from time import perf_counter
from typing import Any

import trio

from trioproxy.config.difference import KINDS
from trioproxy.config.model import Config
from trioproxy.life import tracing
from trioproxy.life.farewell import Farewell
from trioproxy.life.hands import Census, tell_stopping
from trioproxy.life.listeners import Listeners
from trioproxy.life.measuring import Measuring
from trioproxy.life.sockets import Sockets
from trioproxy.logs import tell_what_was_folded
from trioproxy.net.limits import raise_descriptor_limit
from trioproxy.net.sock import Stream
from trioproxy.process.notify import Notifier
from trioproxy.proxy.context import Guest, ProxyContext
from trioproxy.proxy.guests import show_out
from trioproxy.snapshot import Snapshot
from trioproxy.witness.access_log import AccessLog
from trioproxy.witness.exposition import Samples
from trioproxy.witness.tracing import Event

log = logging.getLogger("trioproxy.server")

LOOK_AGAIN = 5.0
"""Seconds between two looks whether a minute of the log's is over."""


class Alone:
    """Serves connections in this process; see `hands.Hands`.

    Args:
        ctx: The proxy.
        sockets: Where connections come in.
        snapshot: Makes what the proxy goes by of a configuration.
        notifier: Is told when the end begins; None where somebody else tells it.

    Attributes:
        listeners: Accept connections.
    """

    def __init__(
        self,
        ctx: ProxyContext,
        sockets: Sockets,
        snapshot: Callable[[Config], Snapshot],
        notifier: Notifier | None,
    ) -> None:
        self.listeners = Listeners(ctx, sockets)
        self._ctx = ctx
        self._snapshot = snapshot
        self._notifier = notifier
        self._farewell = Farewell(ctx)
        self._measuring = Measuring(ctx)
        self._access_log = AccessLog(ctx.witness, ctx.cell.current.config.log)
        self._connections = trio.CancelScope()

    async def serve(self, stopping: trio.Event, serving: Callable[[], None]) -> None:
        """See `Hands`."""
        ctx = self._ctx
        ctx.admission.possible = raise_descriptor_limit(ctx.cell.current.config.limits.connections)
        async with trio.open_nursery() as services:
            for work in (ctx.pump.run, ctx.watch.run, ctx.pool.run, ctx.lan.run, ctx.admission.run, self._farewell.run):
                services.start_soon(work)
            services.start_soon(self._measuring.run)
            services.start_soon(self._access_log.run)
            services.start_soon(_tell_what_was_folded)
            async with trio.open_nursery() as connections:
                self._connections = connections.cancel_scope
                async with trio.open_nursery() as accepting:
                    self.listeners.start(accepting, connections)
                    _settle_memory()
                    serving()
                    await stopping.wait()
                    accepting.cancel_scope.cancel()
                self._begin_drain(connections)
            services.cancel_scope.cancel()

    def _begin_drain(self, connections: trio.Nursery) -> None:
        seconds = self._ctx.cell.current.config.timeouts.drain
        self._ctx.drain.begin()
        if self._notifier is not None:
            tell_stopping(self._notifier, len(connections.child_tasks), seconds)
        connections.cancel_scope.deadline = trio.current_time() + seconds

    def cut(self) -> None:
        """See `Hands`."""
        self._connections.cancel()

    def reopen_logs(self) -> None:
        """See `Hands`."""
        self._access_log.reopen()

    async def take(self, config: Config) -> None:
        """See `Hands`."""
        self.listeners.move(config.listen)
        self.go_by(config)
        await trio.lowlevel.cancel_shielded_checkpoint()  # what is done is not to look undone

    def go_by(self, config: Config) -> None:
        """Publish what `config` says, and have those who came for names that are gone leave."""
        self._ctx.admission.possible = raise_descriptor_limit(config.limits.connections)
        snapshot = self._snapshot(config)
        self._ctx.cell.update(lambda _: snapshot)
        self._measuring.go_by(config)
        self._access_log.apply(config.log)
        self._farewell.asked.set()

    # ---- what there is to tell ----------------------------------------------------------------------

    async def census(self) -> Census:
        """See `Hands`."""
        await trio.lowlevel.checkpoint()
        guests = Counter((KINDS[type(guest.entry)], guest.entry.name) for guest in self._ctx.guests.values())
        return Census(self._ctx.admission.open, self._ctx.admission.suspect, guests)

    async def measure(self) -> Samples:
        """See `Hands`."""
        await trio.lowlevel.checkpoint()
        return self._measuring.samples()

    async def follow(self, name: str, tell: Callable[[Event], None]) -> None:
        """See `Hands`."""
        tracer = tracing.begin(self._ctx, name, tell)
        try:
            tell({"phase": "following", "name": name})
            await trio.sleep_forever()
        finally:
            self._ctx.witness.remove(tracer)

    async def connections(self, name: str) -> list[dict[str, Any]]:
        """See `Hands`."""
        await trio.lowlevel.checkpoint()
        now = perf_counter()
        relayed = {relay.forth.source for relay in self._ctx.pump.relays()}
        return [
            {
                "id": guest.peer.number,
                "client": guest.peer.address,
                "name": guest.entry.name,
                "kind": self._kind(stream, guest, relayed=stream.sock in relayed),
                "seconds": now - guest.since,
            }
            for stream, guest in self._ctx.guests.items()
            if name in ("", guest.entry.name)
        ]

    def _kind(self, stream: Stream, guest: Guest, *, relayed: bool) -> str:
        """What a connection is at, in a word."""
        if relayed or KINDS[type(guest.entry)] == "passthrough":
            return "passthrough"
        if stream in self._ctx.tunnels:
            return "tunnel"
        if stream in self._ctx.drain.idle or stream in self._ctx.drain.fresh:
            return "idle"
        return "http/2" if stream.alpn() == "h2" else "request"

    async def close(self, number: int) -> bool:
        """See `Hands`."""
        found = [stream for stream, guest in self._ctx.guests.items() if guest.peer.number == number]
        await show_out(self._ctx, found, "ended by command")
        return bool(found)

    def healthy(self) -> bool:
        """See `Hands`. Who asks is this process, so it is."""
        return True


async def _tell_what_was_folded() -> None:
    """Have the log say how often something has happened again, within seconds of the minute's end."""
    while True:
        await trio.sleep(LOOK_AGAIN)
        tell_what_was_folded()


def _settle_memory() -> None:
    """Tell the garbage collector that what the start made stays, and that connections come and go by the thousand.

    It would otherwise walk all modules every few hundred connections, for 5 % of the time of a short one. Tasks leave
    cycles behind, so it must still run, only less often: 20,000 objects are a few megabytes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
