"""One issuance, from the order to the chain, in a way that survives a crash at any point (RFC 8555 section 7.4).

An order is counted by the CA as soon as it is made, and a validation as soon as it is asked for. So the order's URL and
the leaf's key go into the journal before anything is presented, and whoever comes next, after a crash, a cancelled
attempt or a CA that did not finish in time, goes on with that order instead of making another:

    journal -> newOrder -> journal -> [each authorisation: present the token, ask, wait] -> finalize -> fetch -> check

The first entry has the key, and keeps room for the URL: a disk that is full is found out before the CA is asked.
What stands behind the journal may be asked again as often as need be, so passing trouble (a connection that broke, a CA
that is overloaded) is waited out there until the order's time is up. An order that can lead nowhere any more is
taken out of the journal. One that succeeded stays in it: the caller clears the journal once key and chain are stored.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Set
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import attrs
import trio
from cryptography import x509

from trioproxy.acme.ari import certificate_id
from trioproxy.acme.certificate import (
    checked_chain,
    new_key,
    proof_in_tls,
    signing_request,
    top_issuer,
    type_of,
    well_worn,
)
from trioproxy.acme.client import AcmeClient, Report
from trioproxy.acme.journal import Journal, OrderRecord, Origin
from trioproxy.acme.problems import VALIDATION, AcmeProblem, AcmeProtocolError, Problem, passing, plain
from trioproxy.acme.protocol import TLSALPN01, Authorization, Challenge, Order
from trioproxy.acme.remedies import explain_validation, failure_of
from trioproxy.acme.waiting import OrderUnfinished, Pauses, persist
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import CHALLENGES, AccountId, ChallengeType, KeyType
from trioproxy.errors import AcmeError

__all__ = ["Issued", "Journal", "OrderFailed", "OrderRecord", "Origin", "Report", "Wanted", "obtain"]

log = logging.getLogger("trioproxy.acme")

ORDER_DEADLINE = 300.0
"""Seconds for everything together."""

PLACING = 2.0
"""Seconds for which a cancellation waits for the journal."""

OVER_REPLACES = frozenset({"alreadyReplaced", "conflict", "malformed", "unauthorized"})
"""What CAs call their refusals of `replaces`: 409, or the certificate being unknown, or another account's."""

T = TypeVar("T")


@attrs.frozen
class Wanted:
    """What is to be ordered. What the CA is asked beside it (profile, chain) is in the client's settings.

    Attributes:
        name: A normalised host name, no wildcard.
        key_type: Of the leaf's key, which is fresh for each certificate.
        challenges: How to prove the name: of these the first that the CA offers. One kind for one order: a proof that
            fails ends the order, and whether another one is worth a further order is the caller's to say.
        replaces: The certificate that this one is to replace; told to the CA and account that issued it, no other.
    """

    name: str
    key_type: KeyType = "ecdsa-p256"
    challenges: tuple[ChallengeType, ...] = CHALLENGES
    replaces: Origin | None = None


@attrs.frozen
class Issued:
    """A key and its certificate chain, PEM: the leaf first, without the root; where they came from, and by which proof.

    The challenge is None where the CA wanted none, for it remembered an earlier one.
    """

    key_pem: bytes = attrs.field(repr=False)
    chain_pem: bytes
    origin: Origin
    challenge: ChallengeType | None = None


class OrderFailed(AcmeError):
    """No certificate; the message names the host name and the reason, and the cause is the error behind it.

    Attributes:
        challenge: How the name was to be proved when that failed; None when it had not come to that.
    """

    def __init__(self, name: str, cause: AcmeError, challenge: ChallengeType | None = None) -> None:
        super().__init__(f"no certificate for {name}: {cause}", cause.failure, retry_after=cause.retry_after)
        self.challenge = challenge


class OrderSpent(AcmeError):
    """The order can lead to no certificate any more."""


async def obtain(client: AcmeClient, wanted: Wanted, board: ChallengeBoard, journal: Journal, report: Report) -> Issued:
    """Get a certificate for a host name.

    Args:
        client: The CA to ask.
        wanted: What for.
        board: Where the proxy finds the answers to challenges.
        journal: Of this name. The caller clears it when what is returned has been stored, and not before.
        report: Is told what goes on, in lines for a person.

    Raises:
        OrderFailed: there is no certificate, or not within `ORDER_DEADLINE` seconds; its `failure` says of which kind
            the trouble is, its `retry_after` what the CA asks for.
        StoreError: the journal or the account cannot be kept.
    """
    issuance = _Issuance(client, wanted, board, journal, report, trio.current_time() + ORDER_DEADLINE)
    try:
        with trio.CancelScope(deadline=issuance.deadline):
            async with client.in_use():
                return await issuance.run()
        raise OrderUnfinished(
            f"the CA did not finish within {ORDER_DEADLINE:.0f} seconds; the order is kept and gone on with"
        )
    except AcmeError as exc:
        raise OrderFailed(wanted.name, exc, issuance.challenge) from exc
    finally:
        client.close()


@attrs.define
class _Issuance:
    client: AcmeClient
    wanted: Wanted
    board: ChallengeBoard
    journal: Journal
    report: Report
    deadline: float
    challenge: ChallengeType | None = None

    @property
    def name(self) -> str:
        return self.wanted.name

    async def run(self) -> Issued:
        await self.client.register(self.report)
        record = self.journal.read()
        if record is not None and not self._fits(record):
            await self.journal.clear()
            record = None
        if record is not None and record.order_url and (order := await self._resume(record)):
            issued = await self._carry_through(record, order, resumed=True)
            if not well_worn(issued.chain_pem, datetime.now(UTC)):
                return issued
            self.report("the certificate of the order begun before is old already; ordering another")
            await self.journal.clear()
            record = None
        # A key that was only meant for an order, or whose order the CA dropped unsigned, is as good as a fresh one.
        key_pem = record.key_pem if record is not None and not record.order_url else await self._new_key()
        return await self._carry_through(*await self._begin(key_pem), resumed=False)

    # ---- the order --------------------------------------------------------------------------------------

    def _fits(self, record: OrderRecord) -> bool:
        return record.directory == self.client.directory_url and type_of(record.key_pem) == self.wanted.key_type

    async def _resume(self, record: OrderRecord) -> Order | None:
        """The order in the journal as the CA knows it now; one that is of no use is cleared away."""
        try:
            order, _ = await self.client.order(record.order_url)
        except (AcmeProblem, AcmeProtocolError) as exc:
            if passing(exc):
                raise
        else:
            if order.status != "invalid" and order.names == (self.name,):
                self.report("going on with the order begun before")
                return order
        await self.journal.clear()
        return None

    async def _new_key(self) -> bytes:
        if self.wanted.key_type.startswith("rsa"):  # up to some seconds of work, during which the proxy goes on
            return await trio.to_thread.run_sync(new_key, self.wanted.key_type, abandon_on_cancel=True)
        return new_key(self.wanted.key_type)

    async def _begin(self, key_pem: bytes) -> tuple[OrderRecord, Order]:
        self.report("ordering a certificate")
        directory = self.client.directory_url
        await self.journal.intend(directory, key_pem)
        failure: AcmeError | None = None
        try:
            order = await self._new_order()
            if order.names != (self.name,):
                raise AcmeProtocolError(f"the CA took an order for {', '.join(order.names) or 'no name'}")
        except AcmeError as exc:
            failure = exc
        if failure is not None:
            if not passing(failure):
                await self.journal.clear()
            raise failure
        # There is an order from here on: not even a cancellation may keep its URL from being written down.
        with trio.move_on_after(PLACING) as scope:
            scope.shield = True
            await self.journal.place(order.url)
        return OrderRecord(directory, order.url, key_pem), order

    async def _new_order(self) -> Order:
        """Order, with what makes it better where the CA takes that, and without where it does not."""
        directory = await self.client.directory()
        profile, replaces = self.client.settings.profile, ""
        if profile and profile not in directory.profiles:
            offered = ", ".join(directory.profiles) or "none"
            self._warn(f"the CA does not offer the profile {profile} (but: {offered}); going without it")
            profile = ""
        old = self.wanted.replaces
        if old is not None and directory.renewal_info and (old.account, old.account_url) == self._we:
            replaces = old.certificate_id
        while True:
            try:
                return await self.client.new_order(self.name, profile, replaces)
            except AcmeProblem as exc:
                kind = exc.problem.core
                if profile and kind == "invalidProfile":
                    self._warn(f"the CA refuses the profile {profile}; going without it")
                    profile = ""
                elif replaces and (exc.problem.status == 409 or kind in OVER_REPLACES):
                    self.report(f"ordering without saying what is replaced, for the CA does not like that: {exc}")
                    replaces = ""
                else:
                    raise

    def _warn(self, line: str) -> None:
        """Say what a person should know although it keeps nothing from working."""
        log.warning("%s  %s", self.name, line)
        self.report(f"warning: {line}")

    @property
    def _we(self) -> tuple[AccountId, str]:
        return self.client.settings.account, self.client.account_url

    async def _carry_through(self, record: OrderRecord, order: Order, *, resumed: bool) -> Issued:
        try:
            order = await self._complete(order, signing_request(record.key_pem, self.name))
            self.report("the CA has signed; fetching the certificate")
            chain_pem = await self._fetch(order.certificate, record.key_pem)
        except AcmeError as exc:
            failure = exc
        else:
            return Issued(record.key_pem, chain_pem, self._origin(chain_pem), self.challenge)
        # What a refusal or a senseless answer met once, it would meet each time. And what is still not done after twice
        # the whole time is stuck, unless the CA itself speaks of longer times.
        lasts = (failure.retry_after or 0.0) >= ORDER_DEADLINE or not resumed
        if not passing(failure) and not (failure.failure == "unfinished" and lasts):
            await self.journal.clear()
        raise failure

    def _origin(self, chain_pem: bytes) -> Origin:
        leaf = x509.load_pem_x509_certificate(chain_pem)
        return Origin(*self._we, certificate_id(leaf), self.client.settings.profile)

    async def _fetch(self, url: str, key_pem: bytes) -> bytes:
        """The chain to serve: the CA's default, or of its others the one with the root that is preferred."""
        chain = await self._persist(partial(self.client.certificate, url))
        default = checked_chain(chain.pem, key_pem, self.name)
        wish = self.client.settings.preferred_chain
        if not wish or top_issuer(default) == wish:
            return default
        roots = [top_issuer(default)]
        for alternate in chain.alternates:
            try:
                other = await self._persist(partial(self.client.certificate, alternate))
                checked = checked_chain(other.pem, key_pem, self.name)
            except (AcmeProblem, AcmeProtocolError) as exc:
                self.report(f"one of the CA's other chains is of no use: {exc}")
                continue
            if top_issuer(checked) == wish:
                return checked
            roots.append(top_issuer(checked))
        names = ", ".join(dict.fromkeys(map(plain, roots)))
        self._warn(f"no chain of the CA's leads to {wish} (they lead to: {names}); taking its default")
        return default

    async def _complete(self, order: Order, csr: bytes) -> Order:
        """Bring an order from whatever state it is in to `valid`."""
        pauses = Pauses(self.deadline)
        authorised = False
        wait: float | None = None
        while True:
            if order.status == "pending" and not authorised:
                for url in order.authorizations:
                    await self._authorise(url)
                authorised = True
            elif order.status == "ready":
                self.report("asking the CA to sign")
                order, wait = await self._finalize(order, csr)
                if order.status == "valid":
                    continue
                await pauses.pause(wait)
            elif order.status == "valid":
                if not order.certificate:
                    raise AcmeProtocolError("the CA's order is valid and names no certificate")
                return order
            elif order.status == "invalid":
                raise self._invalid(order)
            else:
                await pauses.pause(wait)
            order, wait = await self._persist(partial(self.client.order, order.url))

    async def _finalize(self, order: Order, csr: bytes) -> tuple[Order, float | None]:
        try:
            return await self._persist(partial(self.client.finalize, order, csr))
        except AcmeProblem as exc:
            # Either the CA is not as far as it said, or an earlier request that seemed lost has arrived.
            if exc.problem.kind != "orderNotReady":
                raise
            return order, exc.retry_after

    def _invalid(self, order: Order) -> OrderSpent:
        error = order.error
        if error is not None and error.core in VALIDATION:
            return self._not_proved(error)
        said = "" if error is None else f": {error.words()}"
        return OrderSpent(f"the CA has given the order up{said}")

    def _not_proved(self, error: Problem | None) -> OrderSpent:
        explained = explain_validation(self.name, error, self.challenge or self.wanted.challenges[0])
        return OrderSpent(explained, failure_of(error))

    # ---- authorisations ---------------------------------------------------------------------------------

    async def _authorise(self, url: str) -> None:
        authorization, _ = await self._persist(partial(self.client.authorization, url))
        if authorization.status == "pending":
            wanted = self.wanted.challenges
            challenge = next((found for kind in wanted if (found := authorization.challenge(kind))), None)
            if challenge is None:
                offered = ", ".join(sorted(offer.type for offer in authorization.challenges)) or "nothing"
                raise OrderSpent(f"the CA does not offer {' or '.join(wanted)} for this name, only {plain(offered)}")
            self.challenge = next(kind for kind in wanted if kind == challenge.type)
            authorization = await self._answer(url, challenge)
            if authorization.status == "valid":
                self.report("the CA has found the answer")
        if authorization.status == "invalid":
            raise self._not_proved(authorization.error())
        if authorization.status != "valid":
            raise OrderSpent(f"the CA's authorisation for this name is {authorization.status}")

    async def _answer(self, url: str, challenge: Challenge) -> Authorization:
        """Keep the answer to a challenge in place until the CA has made up its mind."""
        pauses = Pauses(self.deadline)
        with self._present(challenge) as shown:
            await self.board.seen()
            if challenge.status == "pending":  # else it was asked before a crash
                self.report("the answer to the CA's challenge is in place; asking the CA to look")
                await self._persist(partial(self.client.respond, challenge))
            while True:
                authorization, wait = await self._persist(partial(self.client.authorization, url))
                if authorization.status != "pending":
                    break
                await pauses.pause(wait)
        if shown:
            port = 443 if challenge.type == TLSALPN01 else 80
            who = "1 address" if len(shown) == 1 else f"{len(shown)} addresses"
            log.info("%s  port %d: challenge fetched from %s, answered", self.name, port, who)
        return authorization

    def _present(self, challenge: Challenge) -> AbstractContextManager[Set[str]]:
        answer = self.client.key_authorization(challenge.token)
        if challenge.type == TLSALPN01:
            return self.board.present_in_tls(self.name, proof_in_tls(self.name, answer))
        return self.board.present(self.name, challenge.token, answer)

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        return await persist(ask, self.deadline)
