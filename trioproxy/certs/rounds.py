"""Who is asked for a certificate, in which order, and by which proof.

A round goes through the authorities of the configuration. A failure that is the CA's own, or our account's there (it
cannot be reached, a limit of its, the account, a CAA record), has the next one asked at once. What every CA would see
as well (the answer to a challenge that is not found, a name that does not resolve) ends the round: the ladder comes
first, and the next round begins with the next CA. An order that is under way is gone on with before any other.

A CA whose last validation of the name failed is asked for nothing that counts before its `staging`, where it has one,
has issued: the limit on failed validations is a handful an hour. A rehearsal that could not take place (the staging
cannot be reached, or has limits of its own) says nothing about the name, and keeps nobody.

Each way of proving a name is an order of its own; the next one is tried at once where the answer was not found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import nullcontext

import attrs
import trio

from trioproxy.acme.client import AcmeClient
from trioproxy.acme.journal import OrderRecord
from trioproxy.acme.order import Issued, Journal, OrderFailed, Origin, Report, Wanted
from trioproxy.certs.authorities import Authorities
from trioproxy.certs.internal_ca import Clock
from trioproxy.certs.known import Known
from trioproxy.certs.ledger import Ledger
from trioproxy.certs.policy import Paced, Setback
from trioproxy.certs.status import authority
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Site
from trioproxy.errors import AcmeError

Obtain = Callable[[AcmeClient, Wanted, ChallengeBoard, Journal, Report], Awaitable[Issued]]
"""`trioproxy.acme.order.obtain`, or what stands in for it."""

SEEN_BY_ALL = frozenset({"validation", "dns", "unfinished"})
"""Failures that end a round: of the name, or of an order that goes on."""


class NobodyIssued(AcmeError):
    """A round without a certificate.

    Attributes:
        failures: What each CA that was asked said, in order.
    """

    def __init__(self, failures: tuple[tuple[Acme, AcmeError], ...]) -> None:
        last = failures[-1][1]
        words = str(last)
        if len(failures) > 1:
            words = "; ".join(f"{authority(acme.directory)}: {exc}" for acme, exc in failures)
        super().__init__(words, last.failure, retry_after=last.retry_after)
        self.failures = failures


class NotYet(Exception):
    """The ledger says to wait. No failure: nobody was asked, nothing went wrong."""

    def __init__(self, paced: Paced) -> None:
        super().__init__(paced.words)
        self.paced = paced


class Forgotten:
    """A journal for what is not to be kept: rehearsals."""

    def read(self) -> OrderRecord | None:
        """There never is one."""
        return None

    async def intend(self, directory: str, key_pem: bytes) -> None:  # noqa: ARG002 - as the protocol has it
        """Nothing is kept."""
        await trio.lowlevel.checkpoint()

    async def place(self, order_url: str) -> None:  # noqa: ARG002
        """Nothing is kept."""
        await trio.lowlevel.checkpoint()

    async def clear(self) -> None:
        """Nothing was kept."""
        await trio.lowlevel.checkpoint()


@attrs.frozen
class Counted:
    """A journal whose orders are counted: each intention stands before exactly one order."""

    _journal: Journal
    _count: Callable[[], Awaitable[None]]

    def read(self) -> OrderRecord | None:
        """As the journal."""
        return self._journal.read()

    async def intend(self, directory: str, key_pem: bytes) -> None:
        """As the journal. Raises AcmeError where the ledger has no place for it."""
        await self._count()
        await self._journal.intend(directory, key_pem)

    async def place(self, order_url: str) -> None:
        """As the journal."""
        await self._journal.place(order_url)

    async def clear(self) -> None:
        """As the journal."""
        await self._journal.clear()


@attrs.frozen
class Rounds:
    """Asks the authorities for certificates.

    Args:
        board: Where challenges are answered.
        store: Where orders are written down.
        authorities: Whom to ask.
        clock: The wall clock, UTC.
        ledger: What has been asked for.
        obtain: Carries out an order.

    Attributes:
        attempts: How often each name was ordered at an authority, and what came of it: "issued", or the kind of the
            failure.
    """

    _board: ChallengeBoard
    _store: Store
    _authorities: Authorities
    _clock: Clock
    _ledger: Ledger
    _obtain: Obtain
    attempts: Counter[tuple[str, str]] = attrs.field(factory=Counter, init=False)

    async def plan(self, name: str, known: Known, *, force: bool, wished: bool) -> list[Acme]:
        """Whom to ask for a certificate for `name` now, in this order.

        Args:
            name: The site.
            known: What is known of it.
            force: Nothing keeps us from asking.
            wished: A person asked: what waits for nothing but our own patience is tried at once.

        Raises:
            NotYet: nobody, as all limits that are known are reached.
            StoreError: the store cannot be read.
        """
        now, found, paced = self._clock(), [], []
        for acme in self._sequence(name, known):
            setback = known.setback(acme.account)
            held = setback is not None and setback.holds(now) and (setback.failure == "limit" or not wished)
            exempt, renewal = _replaced(known, acme) is not None, _renews(known, acme)
            wait = await self._ledger.pace(acme.account, name, exempt=exempt, renewal=renewal)
            if force or (wait is None and not held):
                found.append(acme)
            elif wait is not None:
                paced.append(wait)
        if not found and paced:
            raise NotYet(min(paced, key=lambda each: each.until))
        return found or list(self._authorities.configured[:1])

    async def order(self, site: Site, known: Known, whom: list[Acme], report: Report, *, force: bool) -> Issued:
        """Get a certificate of one of `whom`.

        Raises:
            NobodyIssued: none of them did it.
            StoreError: the store cannot be written.
        """
        failures: list[tuple[Acme, AcmeError]] = []
        for acme in whom:
            report(f"asking {authority(acme.directory)}")
            try:
                issued = await self._ask(site, known, acme, report, force=force)
            except AcmeError as exc:
                self.attempts[site.name, exc.failure] += 1
                failures.append((acme, exc))
                if exc.failure in SEEN_BY_ALL:
                    break
            else:
                self.attempts[site.name, "issued"] += 1
                return issued
        raise NobodyIssued(tuple(failures))

    async def rehearse(self, site: Site, acme: Acme, report: Report) -> Issued:
        """Get a certificate that nobody keeps, of the staging `acme`. Raises AcmeError, StoreError."""
        report(f"rehearsing at {authority(acme.directory)}")
        return await self._prove(site, acme, None, Forgotten(), report)

    # ---- inside -------------------------------------------------------------------------------------

    def _sequence(self, name: str, known: Known) -> list[Acme]:
        every = list(self._authorities.configured)
        first = 0
        last = known.trouble.at[-1] if known.trouble and known.trouble.at else None
        if last is not None and last.failure in ("validation", "dns"):
            at = next((index for index, acme in enumerate(every) if acme.account == last.account), len(every) - 1)
            first = (at + 1) % len(every)
        every = every[first:] + every[:first]
        record = self._store.journal(name).read()
        begun = record.directory if record is not None and record.order_url else ""
        return sorted(every, key=lambda acme: acme.directory != begun)

    async def _ask(self, site: Site, known: Known, acme: Acme, report: Report, *, force: bool) -> Issued:
        setback, staging, name = known.setback(acme.account), acme.rehearsal, site.name
        if setback is not None and setback.validation_failed and staging is not None:
            try:
                await self.rehearse(site, staging, report)
            except AcmeError as exc:
                if exc.validation_failed:
                    raise
                report(f"the rehearsal could not take place: {exc}")
            else:
                report("the rehearsal worked; now in earnest")
        replaces = _replaced(known, acme)

        async def count() -> None:
            if replaces is None:
                await self._ledger.order(acme.account, name, enforce=not force)

        renewal, journal = _renews(known, acme), Counted(self._store.journal(name), count)
        with nullcontext() if renewal else self._ledger.under_way(acme.account, name):
            issued = await self._prove(site, acme, replaces, journal, report)
            if replaces is None:
                await self._ledger.issued(acme.account, name, renewal=renewal)
        return issued

    async def _prove(self, site: Site, acme: Acme, replaces: Origin | None, journal: Journal, report: Report) -> Issued:
        """Order, with one way of proving the name after the other; the first one's failure is the one that is told."""
        client, challenges = self._authorities.client(acme), acme.challenges
        told: AcmeError | None = None
        while True:
            wanted = Wanted(site.name, site.key_type, challenges, replaces)
            try:
                return await self._obtain(client, wanted, self._board, journal, report)
            except AcmeError as exc:
                told, failure = told or exc, exc
            if failure.validation_failed:
                await self._ledger.failed(acme.account, site.name)
            tried = failure.challenge if isinstance(failure, OrderFailed) else None
            challenges = challenges[challenges.index(tried) + 1 :] if tried in challenges else ()
            if failure.failure != "validation" or not challenges or await self._full(acme, site.name):
                raise told
            report(f"{tried} did not prove the name; trying {challenges[0]}")

    async def _full(self, acme: Acme, name: str) -> bool:
        return await self._ledger.pace(acme.account, name, exempt=True) is not None


def _replaced(known: Known, acme: Acme) -> Origin | None:
    """What an order at `acme` replaces: only who issued the certificate is told."""
    origin = known.where.origin if known.leaf and known.where else None
    return origin if origin is not None and origin.account == acme.account and origin.certificate_id else None


def _renews(known: Known, acme: Acme) -> bool:
    """Whether a certificate of `acme` would be the second one that this CA issues for the name."""
    origin = known.where.origin if known.leaf and known.where else None
    return origin is not None and origin.account.directory == acme.directory


def setbacks(
    before: tuple[Setback, ...], exc: NobodyIssued, one_more: Callable[[Setback | None, Acme, AcmeError], Setback]
) -> tuple[Setback, ...]:
    """Those of a name after another round, the last one last."""
    kept = {setback.account: setback for setback in before}
    for acme, failure in exc.failures:
        kept[acme.account] = one_more(kept.pop(acme.account, None), acme, failure)
    return tuple(kept.values())
