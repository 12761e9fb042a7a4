"""Keeps every site's certificate good.

One loop sleeps until the earliest moment at which something is due, or until the wall clock jumps (`jumps`), and never
longer than an hour. What is due becomes a job; a few run at once, one for each name, and each ends by itself: in a
certificate, or in words about why not and a moment for the next attempt (`renewal`). The loop never waits for a job.

A person's wish (`renew`) is a job like any other; who wishes for what is under way waits for that.
"""

from __future__ import annotations

import difflib
import heapq
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

import attrs
import trio

from trioproxy.acme.client import AcmeClient
from trioproxy.acme.order import Report, obtain
from trioproxy.certs.advisor import Advisor
from trioproxy.certs.aftercare import Aftercare
from trioproxy.certs.authorities import Authorities
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import Clock, utc_now
from trioproxy.certs.known import Known, renews
from trioproxy.certs.ledger import Ledger
from trioproxy.certs.overview import Leaves, overview
from trioproxy.certs.renewal import Renewals
from trioproxy.certs.rounds import Obtain
from trioproxy.certs.served import Listening
from trioproxy.certs.status import CertificateStatus, Outcome
from trioproxy.certs.store import Store
from trioproxy.certs.watch import FileWatch
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, CertificateFiles, Config, Site
from trioproxy.errors import ControlError, InvalidName, TrioproxyError
from trioproxy.names import normalise
from trioproxy.snapshot import Cell

log = logging.getLogger("trioproxy.certs")

AT_ONCE = 4
"""Names that are renewed at the same time, and as many again that a person asked for."""

NAP = 3600.0
"""Seconds after which the wall clock is looked at again, whatever is due when."""


class _Job:
    """One name being renewed, and who wants to hear of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.listeners: list[Report] = []
        self.done = trio.Event()
        self.outcome: Outcome | None = None  # still None when done: whoever ran it was cancelled

    def tell(self, line: str) -> None:
        log.debug("%s  %s", self.name, line)
        for report in self.listeners:
            report(line)


class Manager:
    """Renews the certificates of one running server, or of one command.

    Args:
        cell: Where the configuration is read and new contexts are published.
        board: Where challenges are answered.
        store: Keys, certificates, failures.
        source: Makes contexts.
        make_client: A client for an ACME directory.
        clock: The wall clock, UTC.
        rng: Spreads attempts after failures.
        obtain: Carries out an order.
        listening: Where this process listens; None where it serves nothing.
        ledger: Counts what CAs count; the store's own where none is given.

    Attributes:
        aftercare: Sees to what is done after a swap.
        attempts: See `rounds.Rounds`.
        leaves: The certificates that there are.
    """

    def __init__(
        self,
        cell: Cell,
        board: ChallengeBoard,
        store: Store,
        source: ContextSource,
        make_client: Callable[[Acme], AcmeClient],
        clock: Clock = utc_now,
        rng: random.Random | None = None,
        obtain: Obtain = obtain,
        listening: Listening | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.aftercare = Aftercare(cell, board, store, listening)
        self._watch = FileWatch(cell, source, self.aftercare.check, clock)
        rng = rng or random.Random()  # noqa: S311 - it spreads load, it keeps no secret
        self._authorities = Authorities(cell, make_client)
        self._work = Renewals(cell, board, store, source, self._authorities, clock, rng, obtain, self.aftercare, ledger)
        self.attempts = self._work.attempts
        self.leaves = Leaves(self._work.known, self._watch.leaves, source.served)
        self._advisor = Advisor(self._work.known, store, self._authorities, clock, rng, self._hurry)
        self._cell = cell
        self._store = store
        self._source = source
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._in_background: set[str] = set()
        self._wished = trio.CapacityLimiter(AT_ONCE)
        self._woken = trio.Event()
        self._looking = trio.Lock()
        self._seen: Config | None = None
        self._ready_for: Config | None = None

    # ---- the loop -----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep certificates good until cancelled."""
        await trio.to_thread.run_sync(self._store.sweep)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.aftercare.run)
            nursery.start_soon(self._watch.run)
            nursery.start_soon(self._advisor.run)
            while True:
                if self._config is not self._ready_for:
                    await self.look()
                    await self._make_ready()
                await self._renew_internal()
                for name in self._due(AT_ONCE - len(self._in_background)):
                    self._in_background.add(name)
                    nursery.start_soon(self._run_in_background, self._begin(name))
                with trio.move_on_after(self._pause()):
                    await self._woken.wait()
                self._woken = trio.Event()

    def wake(self) -> None:
        """Look at the configuration and the store again: called after a reload."""
        self._seen = self._ready_for = None
        self._work.reconsider()
        self._watch.wake()
        self._hurry()

    def clock_jumped(self) -> None:
        """Look at once what is due by the wall clock."""
        self._advisor.wake()
        self._hurry()

    def _hurry(self) -> None:
        self._woken.set()

    async def look(self) -> None:
        """Read what the store holds for every site, unless that has been done since `wake`. Nothing is written."""
        async with self._looking:
            config = self._config
            if self._seen is config:
                return
            wanted = [site for site in config.sites.values() if site.tls == "acme"]
            for name in self._work.known.keys() - {site.name for site in wanted}:
                del self._work.known[name]
                self.aftercare.forget(name)
            for site in wanted:
                await trio.lowlevel.checkpoint()  # ten thousand small files are a second's work: not in one piece
                if site.name not in self._jobs:
                    self._work.look_at_first(site)
            self._seen = config
            self._advisor.wake()

    async def _make_ready(self) -> None:
        """Do at the start and after a reload what should not wait until somebody calls."""
        snapshot = self._cell.current
        self._ready_for, sites = snapshot.config, snapshot.config.sites
        if snapshot.awaiting or any(site.tls == "internal" for site in sites.values()):
            await trio.to_thread.run_sync(self._source.prepare)
        self.aftercare.want({name: known.leaf for name, known in self._work.known.items() if known.leaf})
        for name in self._source.served.keys() - sites.keys():
            del self._source.served[name]
        for site in sites.values():
            if isinstance(site.tls, CertificateFiles):
                await trio.lowlevel.checkpoint()
                snapshot.contexts.of(site)  # reads them, and logs what is wrong with them

    @property
    def _config(self) -> Config:
        return self._cell.current.config

    def _due(self, most: int) -> list[str]:
        """Names to begin with now, the longest overdue first."""
        now = self._clock()
        due = ((known.due(now), name) for name, known in self._idle())
        return [name for when, name in heapq.nsmallest(most, due) if when <= now]

    def _pause(self) -> float:
        """Seconds until something is due; while as much runs as may, only the end of a job changes anything."""
        now = self._clock()
        moments = [when for _, _, when in self._internal()]
        if len(self._in_background) < AT_ONCE:
            moments += [known.due(now) for _, known in self._idle()]
        until = min(moments, default=now + timedelta(seconds=NAP)) - now
        return min(max(0.0, until.total_seconds()), NAP)

    def _idle(self) -> Iterator[tuple[str, Known]]:
        return ((name, known) for name, known in self._work.known.items() if name not in self._jobs)

    # ---- jobs ---------------------------------------------------------------------------------------

    def _begin(self, name: str) -> _Job:
        job = self._jobs[name] = _Job(name)
        return job

    async def _run_in_background(self, job: _Job) -> None:
        try:
            await self._run(job)
        finally:
            self._in_background.discard(job.name)

    async def _run(self, job: _Job, *, force: bool = False, wished: bool = False) -> None:
        """Do a job to its end, whatever that is; only a cancellation comes out of here."""
        try:
            job.outcome = await self._work.attend(job.name, job.tell, force=force, wished=wished)
        except Exception as exc:
            log.exception("%s  a bug in trioproxy kept its certificate from being renewed", job.name)
            job.outcome = await self._work.failed(job.name, TrioproxyError(f"a bug in trioproxy: {exc!r}"))
        finally:
            del self._jobs[job.name]
            job.done.set()
            self._hurry()
            self._advisor.wake()

    # ---- certificates of the internal CA ------------------------------------------------------------

    def _internal(self) -> Iterator[tuple[Site, Leaf, datetime]]:
        """Sites that are served with a certificate of the internal CA, and when that is to be renewed."""
        now = self._clock()
        for name, served in self._source.served.items():
            site, leaf = self._config.sites.get(name), served.leaf
            if site is not None and served.by == "internal":
                # One that begins later was made while the clock was ahead.
                yield site, leaf, renews(leaf) if leaf.not_before <= now else now

    async def _renew_internal(self) -> None:
        now = self._clock()
        if any(when <= now for _, _, when in self._internal()):
            await trio.to_thread.run_sync(self._source.prepare)  # what signs may be due itself, and waits for a disk
        for site in [site for site, _, when in self._internal() if when <= now]:
            self._publish_internal(site)

    def _publish_internal(self, site: Site) -> None:
        context = self._source.context_for(site)
        self._cell.update(lambda s: attrs.evolve(s, contexts=s.contexts.replaced(site.name, context)))

    # ---- for people ---------------------------------------------------------------------------------

    async def renew(self, names: Sequence[str], force: bool, report: Report) -> list[Outcome]:
        """Renew what is due of `names`, or of all names.

        Args:
            names: Sites; none for all of those whose certificates come from the CA.
            force: Renew what is not due, too, and what an earlier failure says to leave alone.
            report: Gets each line of progress, beginning with the name it is about.

        Returns:
            What came of each name, in the order of `names`; for no names, what came of each that was tried.

        Raises:
            ControlError: a name is none of a site with a certificate that is ours to renew. Nothing was done then.
        """
        wanted = self.named(names)
        await self.look()
        if not names:
            now = self._clock()
            wanted = [name for name, known in self._work.known.items() if force or known.renews <= now]
        outcomes: dict[str, Outcome] = {}

        async def one(name: str) -> None:
            outcomes[name] = await self._wish(name, force, lambda line: report(f"{name}: {line}"))

        async with trio.open_nursery() as nursery:
            for name in wanted:
                nursery.start_soon(one, name)
        return [outcomes[name] for name in wanted]

    async def rehearse(self, names: Sequence[str], report: Report) -> list[Outcome]:
        """Go the whole way at the staging of the first CA, for `names` or for all, and keep nothing of it.

        Raises:
            ControlError: as `renew`.
        """
        wanted = self.named(names) or [site.name for site in self._config.sites.values() if site.tls == "acme"]
        outcomes: dict[str, Outcome] = {}

        async def one(name: str) -> None:
            async with self._wished:
                outcomes[name] = await self._work.rehearse(name, lambda line: report(f"{name}: {line}"))

        async with trio.open_nursery() as nursery:
            for name in wanted:
                nursery.start_soon(one, name)
        return [outcomes[name] for name in wanted]

    async def revoke(self, text: str, reason: str, report: Report) -> Outcome:
        """Have a site's certificate revoked, and another one ordered at once. It is served until that is there.

        Args:
            text: The site, as a person calls it.
            reason: One of `acme.signing.REASONS`.
            report: Gets each line of progress, beginning with the name.

        Raises:
            ControlError: there is no such site, or it has no certificate that could be revoked.
            AcmeError: the CA does not revoke it.
            StoreError: the store cannot be read.
        """
        (name,) = self.named([text])
        if self._config.sites[name].tls != "acme":
            raise ControlError(f"{name} has a certificate of the internal CA: `certs renew {name}` replaces it")
        await self._work.revoke(name, reason, lambda line: report(f"{name}: {line}"))
        report(f"{name}: it is revoked; ordering another one")
        outcome = await self._wish(name, True, lambda line: report(f"{name}: {line}"))
        if outcome.result == "renewed":
            return attrs.evolve(outcome, detail=f"the revoked certificate is replaced: {outcome.detail}")
        still = "it is revoked, and still served, for there is no other one yet"
        return attrs.evolve(outcome, detail=f"{still}: {outcome.detail}")

    async def roll_over(self, directory: str, report: Report) -> str:
        """`Authorities.roll_over`."""
        return await self._authorities.roll_over(directory, report)

    async def _wish(self, name: str, force: bool, report: Report) -> Outcome:
        site = self._config.sites.get(name)
        if site is not None and site.tls == "internal":
            self._publish_internal(site)
            return Outcome(name, "renewed", "a new certificate of the internal CA")
        while True:
            job = self._jobs.get(name)
            if job is not None:
                report("is being renewed already; waiting for that")
                job.listeners.append(report)
                await job.done.wait()
            else:
                async with self._wished:
                    if name in self._jobs:
                        continue
                    job = self._begin(name)
                    job.listeners.append(report)
                    await self._run(job, force=force, wished=True)
            if job.outcome is not None:
                return job.outcome

    def named(self, names: Sequence[str]) -> list[str]:
        """The sites that a person calls `names`, each once.

        Raises:
            ControlError: a name is none of a site with a certificate that is ours to renew.
        """
        return list(dict.fromkeys(map(self._named, names)))

    def _named(self, text: str) -> str:
        config = self._config
        try:
            name = text if text in config.sites else normalise(text)
        except InvalidName:
            name = text
        site = config.sites.get(name)
        if site is None and name in config.passthrough:
            raise ControlError(f"{name} is passed through: its certificate is its backend's own affair")
        if site is None:
            near = difflib.get_close_matches(name, config.sites, 1)
            raise ControlError(f"there is no site {name}{f'; did you mean {near[0]}?' if near else ''}")
        if isinstance(site.tls, CertificateFiles):
            raise ControlError(f"{name} has its certificate from {site.tls.certificate}: replace that, then reload")
        return name

    def site(self, name: str) -> Site | None:
        """The site of that name, as it is configured now."""
        return self._config.sites.get(name)

    async def leaf_of(self, name: str) -> Leaf | None:
        """The certificate that a site has from a CA, as `look` has seen it, or whoever is at work on it has left it."""
        if job := self._jobs.get(name):
            await job.done.wait()
        known = self._work.known.get(name)
        return known.leaf if known else None

    def listing(self) -> list[CertificateStatus]:
        """Every managed certificate, as far as `look` has seen it, by name."""
        return [self.aftercare.annotated(self._overview(site)) for _, site in sorted(self._config.sites.items())]

    def _overview(self, site: Site) -> CertificateStatus:
        known, busy = self._work.known.get(site.name), site.name in self._jobs
        return overview(site, self._clock(), known or Known(), self._source.served.get(site.name), busy=busy)
