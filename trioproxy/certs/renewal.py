"""One site's certificate, from looking at what there is to serving what came; and what is done when nothing came.

The order of things is the whole of it. Under the name's lock the store is looked at again, for another process may have
done the work meanwhile. What the CA issued is stored first, then a context is built from it and published in one
synchronous update, so handshakes from then on get it and connections that stand go on with the old one. The order under
way and the failures in a row are on disk, so a restart neither orders twice nor begins the ladder anew.
"""

from __future__ import annotations

import logging
import random
from datetime import datetime, timedelta
from functools import partial

import attrs
import trio

from trioproxy.acme.order import Issued, Origin, Report
from trioproxy.certs import policy
from trioproxy.certs.aftercare import Aftercare
from trioproxy.certs.authorities import Authorities
from trioproxy.certs.bundle import Bundle, Leaf
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import Clock
from trioproxy.certs.known import Known
from trioproxy.certs.ledger import Ledger
from trioproxy.certs.records import Provenance
from trioproxy.certs.rounds import SEEN_BY_ALL, NobodyIssued, NotYet, Obtain, Rounds, setbacks
from trioproxy.certs.status import Outcome, authority, day, time_of_day
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import AccountId, Acme, Site
from trioproxy.errors import AcmeError, CertificateError, ControlError, StoreError, TrioproxyError
from trioproxy.snapshot import Cell, Snapshot

log = logging.getLogger("trioproxy.certs")


class Renewals:
    """Does the work on one name at a time; `Manager` says which and when.

    Args:
        cell: Where the configuration is read and new contexts are published.
        board: Where challenges are answered.
        store: Keys, certificates, failures.
        source: Makes contexts.
        authorities: Whom to ask.
        clock: The wall clock, UTC.
        rng: Spreads attempts after failures.
        obtain: Carries out an order.
        ledger: What has been asked of CAs; the store's own where none is given.
        aftercare: Looks what a first order will meet, and sees to what is done after a swap.

    Attributes:
        known: What `look_at` found and what came of later work, by name.
    """

    def __init__(
        self,
        cell: Cell,
        board: ChallengeBoard,
        store: Store,
        source: ContextSource,
        authorities: Authorities,
        clock: Clock,
        rng: random.Random,
        obtain: Obtain,
        aftercare: Aftercare,
        ledger: Ledger | None = None,
    ) -> None:
        self.known: dict[str, Known] = {}
        self._cell = cell
        self._store = store
        self._source = source
        self._authorities = authorities
        self._clock = clock
        self._rng = rng
        self._rounds = Rounds(board, store, authorities, clock, ledger or Ledger(store, clock), obtain)
        self.attempts = self._rounds.attempts
        self._aftercare = aftercare

    def look_at(self, site: Site) -> Known:
        """Learn what the store has for `site`, and have it served if another certificate is.

        Raises:
            StoreError: it cannot be read; what was known before stays.
        """
        bundle = self._store.load(site.name)
        trouble = self._store.trouble(site.name)
        leaf = bundle.leaf if bundle is not None and bundle.leaf.matches(site.name) else None
        before = self.known.get(site.name)
        if before is not None and before.trouble is not None and before.leaf == leaf:
            # A failure that could not be written down, on a full disk perhaps, counts all the same.
            trouble = max(before.trouble, trouble or before.trouble, key=lambda t: t.failed_at)
        if trouble is not None and self._somebody_new(trouble):
            # Whoever changed the authorities after a failure need not wait for the end of its pause.
            trouble = attrs.evolve(trouble, next_attempt=trouble.failed_at, rate_limited=False)
        problem = ""
        if bundle is not None and leaf is not None and self._is_news(site.name, leaf, before):
            try:
                self._publish(site, bundle)
                self._aftercare.want({site.name: leaf})
            except CertificateError as exc:
                leaf, problem = None, str(exc)
        if leaf is None and site.name not in self._cell.current.awaiting:
            self._cell.update(lambda s: attrs.evolve(s, awaiting=s.awaiting | {site.name}))
        where = None if leaf is None else self._store.origin(site.name, leaf)
        if before is not None and before.leaf == leaf and before.revoked:
            where = before.where  # it may be that this, too, could not be written down
        suggestion = None if leaf is None else self._store.suggestion(site.name, leaf)
        paced = before.paced if before else None
        known = self.known[site.name] = Known(leaf, trouble, problem, where, suggestion, paced)
        return known

    def _is_news(self, name: str, leaf: Leaf, before: Known | None) -> bool:
        if name in self._cell.current.awaiting:
            return True
        served = self._source.served.get(name)
        # Where other processes serve, contexts are made there, and what was seen before is all that is known here.
        seen = served.leaf if served is not None else before.leaf if before is not None else None
        return seen is not None and seen != leaf

    def look_at_first(self, site: Site) -> None:
        """As `look_at`; what cannot be read is due at once, and fails then as all else does, with its next attempt."""
        try:
            self.look_at(site)
        except StoreError as exc:
            self.known[site.name] = Known(problem=str(exc))

    def reconsider(self) -> None:
        """The configuration has been read again: what an account was refused for may have been mended there."""
        for name, known in self.known.items():
            trouble = known.trouble
            if trouble is not None and any(each.failure == "account" for each in trouble.at):
                at = tuple(
                    attrs.evolve(each, next_attempt=each.failed_at) if each.failure == "account" else each
                    for each in trouble.at
                )
                mended = attrs.evolve(trouble, next_attempt=trouble.failed_at, rate_limited=False, at=at)
                self.known[name] = attrs.evolve(known, trouble=mended)

    async def attend(self, name: str, report: Report, *, force: bool = False, wished: bool = False) -> Outcome:
        """Renew the certificate of `name` if that is due. Only one at a time for each name.

        Args:
            name: A site.
            report: Gets lines of progress.
            force: Renew it although it is not due, or an earlier failure says to wait.
            wished: A person asked: what waits for nothing but our own patience is tried at once.
        """
        await trio.lowlevel.checkpoint()  # a job that is done at once must not keep others from their turn
        site = self._cell.current.config.sites.get(name)
        if site is None or site.tls != "acme":
            self.known.pop(name, None)
            return Outcome(name, "kept", "it is no longer configured to have a certificate of a public CA")
        try:
            before = self.look_at(site).leaf
            async with self._store.lock(name):
                known, now = self.look_at(site), self._clock()
                if known.leaf is not None and known.renews > now and (not force or known.leaf != before):
                    await self._all_is_well(name)  # perhaps because another process has seen to it meanwhile
                    return Outcome(name, "kept", self._dates(known.leaf, known.renews))
                trouble = known.trouble
                if trouble is not None and trouble.holds(now) and not force and (trouble.rate_limited or not wished):
                    again = time_of_day(trouble.next_attempt, now)
                    return Outcome(name, "waiting", f"not before {again}: {trouble.error}")
                try:
                    whom = await self._rounds.plan(name, known, force=force, wished=wished)
                    return await self._renew(site, known, whom, report, force=force)
                except NotYet as exc:
                    self.known[name] = attrs.evolve(known, paced=exc.paced)
                    return Outcome(name, "waiting", f"not before {time_of_day(exc.paced.until, now)}: {exc}")
                except TrioproxyError as exc:
                    return await self.failed(name, exc)
        except StoreError as exc:
            return await self.failed(name, exc)

    # ---- inside -------------------------------------------------------------------------------------

    async def _renew(self, site: Site, known: Known, whom: list[Acme], report: Report, *, force: bool) -> Outcome:
        """Order a certificate, keep it and serve it. TrioproxyError says why not; the old one is served then."""
        name = site.name
        first = known.leaf is None and known.trouble is None
        await self._announce(name, known, whom[0], first=first)
        order = partial(self._obtain, site, known, whom, report, force)
        bundle, issued = await self._aftercare.beside_first(name, report, order, first=first)
        await self._store.save(name, bundle)
        self._publish(site, bundle)
        now, leaf, where = (
            self._clock(),
            bundle.leaf,
            Provenance(bundle.leaf.serial, issued.origin, challenge=issued.challenge or ""),
        )
        await self._note_origin(name, where)
        self.known[name] = Known(leaf, known.trouble, where=where)
        dates = self._dates(leaf, self.known[name].renews)
        log.info("%s  %s; %s", name, dates, await self._aftercare.swapped(site, leaf))
        if self.known[name].renews <= now:
            # Only the ladder then keeps us from ordering again at once, and again.
            wrong = "the new certificate is due for renewal from the start: is this machine's clock right?"
            await self.failed(name, CertificateError(wrong))
        else:
            await self._all_is_well(name)
        return Outcome(name, "renewed", dates)

    async def _obtain(
        self, site: Site, known: Known, whom: list[Acme], report: Report, force: bool
    ) -> tuple[Bundle, Issued]:
        journal, present = self._store.journal(site.name), self._store.load(site.name)
        if present is not None and (record := journal.read()) and record.key_pem.strip() == present.key_pem.strip():
            await journal.clear()  # that order brought the present certificate; a crash kept it from being crossed out
        issued = await self._rounds.order(site, known, whom, report, force=force)
        bundle = Bundle.of(issued.key_pem, issued.chain_pem)
        if bundle.leaf.not_after <= self._clock():
            raise CertificateError("the CA issued a certificate that has expired: is this machine's clock right?")
        return bundle, issued

    async def rehearse(self, name: str, report: Report) -> Outcome:
        """Go the whole way for `name` at the first CA's staging, and keep nothing of it."""
        site, acme = self._cell.current.config.sites.get(name), self._authorities.configured[0]
        if site is None or site.tls != "acme":
            return Outcome(name, "kept", "its certificate is of the internal CA: there is nothing to rehearse")
        if acme.rehearsal is None:
            return Outcome(name, "failed", f"{authority(acme.directory)} has no staging here: set acme.staging")
        try:
            issued = await self._rounds.rehearse(site, acme.rehearsal, report)
            leaf = Bundle.of(issued.key_pem, issued.chain_pem).leaf
        except TrioproxyError as exc:
            return Outcome(name, "failed", f"the rehearsal failed: {exc}")
        return Outcome(name, "rehearsed", f"{leaf.issuer} would have issued; nothing was kept")

    async def _note_origin(self, name: str, where: Provenance) -> None:
        """The certificate is in its place, so what is told of it beside that must not be called a failure."""
        try:
            await self._store.note_origin(name, where)
        except StoreError as exc:
            log.warning("%s  where its certificate came from is not kept: %s", name, exc)

    async def revoke(self, name: str, reason: str, report: Report) -> None:
        """Have the certificate of `name` revoked, so that it is due; it is served until another one is there.

        Raises:
            ControlError: there is none that could be revoked.
            AcmeError: the CA does not do it.
            StoreError: the store cannot be read.
        """
        async with self._store.lock(name):
            bundle = self._store.load(name)
            if bundle is None:
                raise ControlError(f"{name} has no certificate of a public CA that could be revoked")
            where = self._store.origin(name, bundle.leaf)
            try:
                await self._authorities.revoke(bundle, where, reason, report)
            except AcmeError as exc:
                remedy = f"to have another one all the same: `certs renew {name} --force`"
                raise AcmeError(f"{exc}; {remedy}", exc.failure, retry_after=exc.retry_after) from exc
            log.warning("%s  its certificate has been revoked (%s)", name, reason)
            if where is None:
                settings = self._authorities.configured[0]
                where = Provenance(bundle.leaf.serial, Origin(settings.account, "", ""))
            where = attrs.evolve(where, revoked=reason)
            self.known[name] = attrs.evolve(self.known.get(name) or Known(), leaf=bundle.leaf, where=where)
            await self._note_origin(name, where)

    def _publish(self, site: Site, bundle: Bundle) -> None:
        """Let handshakes from now on get `bundle`, unless a reload has given the site other certificates meanwhile.

        Raises:
            CertificateError: TLS does not take it; nothing has changed then.
        """
        now = self._cell.current.config.sites.get(site.name)
        if now is None or now.tls != "acme":
            return
        context = self._source.context_of(site, bundle)

        def change(snapshot: Snapshot) -> Snapshot:
            contexts = snapshot.contexts.replaced(site.name, context)
            return attrs.evolve(snapshot, contexts=contexts, awaiting=snapshot.awaiting - {site.name})

        self._cell.update(change)

    # ---- what went well, what went wrong ------------------------------------------------------------

    async def _all_is_well(self, name: str) -> None:
        """Forget what went wrong before. The certificate is in its place, so nothing here may call that a failure."""
        self.known[name] = attrs.evolve(self.known[name], trouble=None)
        try:
            await self._store.journal(name).clear()
            self._store.forget_trouble(name)
        except StoreError as exc:
            log.warning("%s  has its certificate, but earlier notes about it are not removed: %s", name, exc)

    async def failed(self, name: str, exc: TrioproxyError) -> Outcome:
        """Say what went wrong with `name`, and keep on disk when it is tried again."""
        now = self._clock()
        known = self.known.get(name) or Known()
        if known.leaf is not None and known.renews > now:
            # A person wished for it. Nothing is due, so nothing is to be tried again.
            log.warning("%s  %s; it needs no new certificate yet", name, exc)
            return Outcome(name, "failed", str(exc))
        trouble = self._one_more(known, exc)
        self.known[name] = attrs.evolve(known, trouble=trouble)
        try:
            await self._store.note_trouble(name, trouble)
        except StoreError as store_exc:
            log.error("%s  a restart will not know of this failure: %s", name, store_exc)
        again = f"next attempt at {time_of_day(trouble.next_attempt, now)}"
        if known.leaf is None:
            level, until = logging.ERROR, "browsers warn until then"
        elif known.leaf.not_after <= now:
            level, until = logging.ERROR, "its certificate has expired, and browsers warn"
        else:
            level, until = logging.WARNING, f"the present one is valid to {day(known.leaf.not_after, now)}"
        log.log(level, "%s  %s; %s; %s", name, exc, again, until)
        return Outcome(name, "failed", f"{exc}; {again}")

    def _one_more(self, known: Known, exc: TrioproxyError) -> policy.Trouble:
        now = self._clock()
        failures = 1 + (known.trouble.failures if known.trouble else 0)
        remaining = known.leaf.not_after - now if known.leaf else timedelta()
        retry_at = partial(policy.retry_at, now=now, remaining=remaining, pick=self._rng.random())
        before = known.trouble.at if known.trouble else ()
        if not isinstance(exc, NobodyIssued):
            return policy.Trouble(failures, now, retry_at(failures), str(exc), at=before)

        def one_more(old: policy.Setback | None, acme: Acme, failure: AcmeError) -> policy.Setback:
            count = 1 + (old.failures if old else 0)
            again = retry_at(count, ca_retry_after=failure.retry_after)
            return policy.Setback(acme.account, count, now, again, failure.failure)

        at = setbacks(before, exc, one_more)
        blocked = {each.account: each for each in at}
        moments = [
            blocked[acme.account].next_attempt if acme.account in blocked else now
            for acme in self._authorities.configured
        ]
        again = max(min(moments), retry_at(failures)) if exc.failure in SEEN_BY_ALL else max(min(moments), now)
        limited = all(account in blocked and blocked[account].failure == "limit" for account in self._accounts())
        return policy.Trouble(failures, now, again, str(exc), limited, at)

    def _somebody_new(self, trouble: policy.Trouble) -> bool:
        """Whether an authority is configured that has not been asked, for a failure that another one need not see."""
        if not trouble.at or trouble.at[-1].failure in SEEN_BY_ALL:
            return False
        return not {each.account for each in trouble.at}.issuperset(self._accounts())

    def _accounts(self) -> list[AccountId]:
        return [acme.account for acme in self._authorities.configured]

    # ---- words --------------------------------------------------------------------------------------

    async def _announce(self, name: str, known: Known, acme: Acme, *, first: bool) -> None:
        snapshot, ca = self._cell.current, authority(acme.directory)
        if first and (terms := await self._authorities.client(acme).terms()):
            ca += f"; terms: {terms}"
        if known.leaf is not None:
            until, now = known.leaf.not_after, self._clock()
            is_so = "valid to" if until > now else "expired on"
            log.info("%s  %s %s; asking %s for the next one", name, is_so, day(until, now), ca)
        elif snapshot.routes.catch_all() is not None:
            log.info('%s  stays with "*" while I ask %s', name, ca)
        else:
            log.info("%s  temporary certificate (browsers warn) while I ask %s", name, ca)

    def _dates(self, leaf: Leaf, renews: datetime) -> str:
        now = self._clock()
        return f"valid to {day(leaf.not_after, now)}, renews about {day(renews, now)}"
