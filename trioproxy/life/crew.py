"""Serving with several processes: the supervisor's side.

The supervisor holds every listening socket and accepts from none. Each worker has a seat, and the sockets that belong
to it; a worker that ends is replaced in the same seat, so whatever waits in the queues of its sockets is served. Until
the new process is there, which takes a second of import, another worker accepts from these sockets too.

Certificates, challenges, commands and reloads are the supervisor's own, who is a server like any other in all else.
"""

from __future__ import annotations

import itertools
import logging
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import trio

from trioproxy.config.model import Config
from trioproxy.errors import ControlError, ListenError, TrioproxyError
from trioproxy.life import member, tracing
from trioproxy.life.channel import MAX_SOCKETS
from trioproxy.life.hands import Census, tell_stopping
from trioproxy.life.measuring import Tallies
from trioproxy.life.member import LONG_PATIENCE, Member, WorkerGone
from trioproxy.life.parts import pseudonym
from trioproxy.life.seats import Seat, Seats, tell
from trioproxy.life.sockets import Key, Sockets
from trioproxy.life.tidings import Tidings
from trioproxy.process.notify import Notifier
from trioproxy.snapshot import Snapshot
from trioproxy.witness.exposition import Samples
from trioproxy.witness.tracing import Event

log = logging.getLogger("trioproxy.workers")

PULSE = 2.0
"""Seconds between two questions whether a worker is alive."""

LATE = 4.0
"""Seconds without an answer after which systemd is not told any more that all is well."""

GRACE = 3.0
"""Seconds beyond `timeouts.drain` in which workers are to have ended."""

LAST_SECOND = 1.0
"""Seconds to end in, when all is to end at once."""

ATTEMPTS = 3
"""Times that a worker may fail at the start of all; later it is tried again for ever."""

SETTLED_IN = 60.0
"""Seconds after which a worker's end is no consequence of its start."""

PAUSES = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Seconds before a worker is replaced, by how often in a row it ended soon after its start."""


class Crew:
    """Serves connections with several processes; see `hands.Hands`.

    Args:
        workers: How many.
        command: What starts a server such as this one.
        tidings: Of what is published.
        sockets: Where connections come in.
        snapshot: Makes what is gone by of a configuration.
        notifier: Is told when the end begins.
    """

    def __init__(
        self,
        workers: int,
        command: Sequence[str],
        tidings: Tidings,
        sockets: Sockets,
        snapshot: Callable[[Config], Snapshot],
        notifier: Notifier,
    ) -> None:
        self._command = command
        self._cell = tidings.cell
        self._sockets = sockets
        self._snapshot = snapshot
        self._notifier = notifier
        self._called = pseudonym().decode()
        self._seats = Seats(workers, sockets)
        self._tidings = tidings
        tidings.members = self._seats.members
        self._traces = itertools.count()
        self._tallies = Tallies()
        self._changing = trio.Lock()
        self._stopping = False
        self._serving = trio.CancelScope()
        self._draining = trio.CancelScope()
        self._failure: TrioproxyError | None = None

    # ---- from the first to the last -----------------------------------------------------------------

    async def serve(self, stopping: trio.Event, serving: Callable[[], None]) -> None:
        """See `Hands`.

        Raises:
            WorkerGone: workers end before they serve, again and again.
        """
        if not self._command:
            raise WorkerGone("this server was not started by `trioproxy serve`, so nothing knows how to start workers")
        async with trio.open_nursery() as nursery:
            for seat in self._seats.all:
                nursery.start_soon(self._keep, seat, nursery)
            nursery.start_soon(self._end_with, stopping)
            with self._serving:
                for seat in self._seats.all:
                    await seat.served.wait()
                serving()
                await trio.sleep_forever()
            if self._failure is None:
                await self._drain()
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _end_with(self, stopping: trio.Event) -> None:
        await stopping.wait()
        self._serving.cancel()

    async def _drain(self) -> None:
        self._stopping = self._seats.closed = True
        for each in self._seats.members():
            if not each.accepting:
                each.kill()
        seconds = self._cell.current.config.timeouts.drain
        open_now = sum([answer["open"] for answer in await self._ask_all("drain")])
        self._sockets.close()
        tell_stopping(self._notifier, open_now, seconds)
        self._draining.deadline = trio.current_time() + seconds + GRACE
        with self._draining:
            for each in self._seats.members():
                await each.process.wait()
        with trio.move_on_after(LAST_SECOND):
            await self._ask_all("cut")
            for each in self._seats.members():
                await each.process.wait()

    def cut(self) -> None:
        """See `Hands`."""
        self._draining.cancel()

    def reopen_logs(self) -> None:
        """See `Hands`."""
        for worker in self._seats.members():
            if worker.begun:
                worker.process.send_signal(signal.SIGUSR1)

    # ---- a seat -------------------------------------------------------------------------------------

    async def _keep(self, seat: Seat, nursery: trio.Nursery) -> None:
        """Have a worker in `seat` until cancelled."""
        soon = 0
        while not self._stopping:
            begun = trio.current_time()
            try:
                async with member.started(seat.number, self._command) as seat.member:
                    if not self._stopping:
                        await self._live(seat, seat.member)
            except WorkerGone as exc:
                log.error("%s", exc)
            soon = 0 if trio.current_time() > begun + SETTLED_IN else soon + 1
            if not seat.served.is_set() and soon >= ATTEMPTS:
                self._failure = WorkerGone("workers end before they serve: see the log above")
                self._serving.cancel()
                return
            nursery.start_soon(self._seats.cover)  # the new one is not to wait for that
            await trio.sleep(PAUSES[min(max(soon - 1, 0), len(PAUSES) - 1)])

    async def _live(self, seat: Seat, worker: Member) -> None:
        """Lead one worker from its first word to its end."""
        await worker.hello()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.listen)
            nursery.start_soon(self._lead, seat, worker)
            code = await worker.process.wait()
            worker.lost()
            nursery.cancel_scope.cancel()
        if not self._stopping:
            log.error("%s has ended with code %d; another one takes its place", worker, code)

    async def _lead(self, seat: Seat, worker: Member) -> None:
        try:
            await self._begin(worker)
            await self._tidings.bring(worker)
            worker.accepting = True  # from here on it is waited for, whatever is published
            await worker.ask("accept")
            log.info("%s serves", worker)
            seat.served.set()
            await self._seats.relieve(seat)
            while True:
                worker.wanted = trio.Event()
                await self._tidings.bring(worker)
                with trio.move_on_after(PULSE):
                    await worker.wanted.wait()
                    continue
                await worker.ask("ping")
        except WorkerGone as exc:
            log.debug("%s", exc)  # its end is told by whoever waits for that
        except ControlError as exc:
            worker.kill(f"does not do its work: {exc}")

    async def _begin(self, worker: Member) -> None:
        """Give a new worker all that it needs, and no reload comes between."""
        async with self._changing:
            places, socks = self._seats.places(worker.slot, list(self._sockets.open))
            await worker.ask(
                "begin",
                socks,
                patience=LONG_PATIENCE,
                slot=worker.slot,
                workers=len(self._seats.all),
                called=self._called,
                sockets=places,
                **self._tidings.everything(worker),
            )
            worker.begun = True

    # ---- reloads ------------------------------------------------------------------------------------

    async def take(self, config: Config) -> None:
        """See `Hands`. All workers have understood it before the first one goes by it."""
        async with self._changing:
            fresh = self._sockets.bind(config.listen)
            workers = [worker for worker in self._seats.members() if worker.begun]
            try:
                if len(self._sockets.open) > MAX_SOCKETS:
                    raise ListenError(f"several workers cannot listen at more than {MAX_SOCKETS} addresses")
                await self._prepare(workers, config, fresh)
            except BaseException:
                with trio.CancelScope(shield=True):  # each answer has its deadline
                    await self._each(workers, lambda worker: tell(worker, "abandon"))
                for key in fresh:
                    self._sockets.let_go(key).close()
                raise
            with trio.CancelScope(shield=True):
                await self._commit(workers, config)

    async def _prepare(self, workers: Sequence[Member], config: Config, fresh: Sequence[Key]) -> None:
        refusals: list[ControlError] = []

        async def one(worker: Member) -> None:
            places, socks = self._seats.places(worker.slot, fresh)
            try:
                configuration = self._tidings.configuration(config)
                await worker.ask("prepare", socks, patience=LONG_PATIENCE, sockets=places, **configuration)
            except WorkerGone as exc:
                log.debug("%s", exc)  # the one that replaces it gets what counts then
            except ControlError as exc:
                refusals.append(exc)

        await self._each(workers, one)
        if refusals:
            raise refusals[0]

    async def _commit(self, workers: Sequence[Member], config: Config) -> None:
        gone = self._sockets.unwanted(config.listen)
        snapshot = self._snapshot(config)
        self._cell.update(lambda _: snapshot)
        places = [[kind, address.host, address.port] for kind, address in gone]

        async def one(worker: Member) -> None:
            try:
                await worker.ask("commit", gone=places)
            except WorkerGone as exc:
                log.debug("%s", exc)
            except ControlError as exc:
                worker.kill(f"could not go by the new configuration: {exc}")

        await self._each(workers, one)
        for key in gone:
            self._sockets.let_go(key).close()

    # ---- questions to all ---------------------------------------------------------------------------

    async def _each(self, workers: Sequence[Member], do: Callable[[Member], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(do, worker)

    async def _ask_all(self, word: str, **more: Any) -> list[dict[str, Any]]:
        """The answers of all who serve, and live to give one."""
        answers: dict[int, dict[str, Any]] = {}

        async def one(worker: Member) -> None:
            try:
                answers[worker.slot] = {"pid": worker.pid, **await worker.ask(word, **more)}
            except (WorkerGone, ControlError) as exc:
                log.debug("%s", exc)

        await self._each(self._seats.accepting(), one)
        return [answers[slot] for slot in sorted(answers)]

    async def census(self) -> Census:
        """See `Hands`."""
        answers = await self._ask_all("census")
        guests: Counter[tuple[str, str]] = Counter()
        for answer in answers:
            guests.update({(kind, name): count for kind, name, count in answer["guests"]})
        workers = tuple({"pid": answer["pid"], "connections": answer["open"]} for answer in answers)
        suspect = next((answer["suspect"] for answer in answers if answer["suspect"]), "")
        return Census(sum(answer["open"] for answer in answers), suspect, guests, workers)

    async def measure(self) -> Samples:
        """See `Hands`."""
        return self._tallies.total({answer["pid"]: answer["samples"] for answer in await self._ask_all("measure")})

    async def follow(self, name: str, tell: Callable[[Event], None]) -> None:
        """See `Hands`."""
        await tracing.gather(partial(self._ask_all, "trace", trace=next(self._traces), name=name), name, tell)

    async def connections(self, name: str) -> list[dict[str, Any]]:
        """See `Hands`."""
        return [each for answer in await self._ask_all("connections", name=name) for each in answer["connections"]]

    async def close(self, number: int) -> bool:
        """See `Hands`."""
        return any(answer["closed"] for answer in await self._ask_all("close", number=number))

    def healthy(self) -> bool:
        """See `Hands`."""
        now = trio.current_time()
        accepting = self._seats.accepting()
        return bool(accepting) and all(worker.heard > now - PULSE - LATE for worker in accepting)
