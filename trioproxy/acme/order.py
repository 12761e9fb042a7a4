"""One issuance, from the order to the chain, in a way that survives a crash at any point (RFC 8555 section 7.4).

An order is counted by the CA as soon as it is made, and a validation as soon as it is asked for. So the order's URL and
the leaf's key go into the journal before anything is presented, and whoever comes next, after a crash, a cancelled
attempt or a CA that did not finish in time, goes on with that order instead of making another:

    newOrder -> journal -> [each authorisation: present the token, ask, wait] -> finalize -> download -> check

What stands behind the journal may be asked again as often as need be, so passing trouble (a connection that broke, a CA
that is overloaded) is waited out there until the order's time is up. An order that can lead nowhere any more is
taken out of the journal. One that succeeded stays in it: the caller clears the journal once key and chain are stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Protocol, TypeVar

import attrs
import trio

from trioproxy.acme.certificate import checked_chain, new_key, signing_request, type_of, well_worn
from trioproxy.acme.client import AcmeClient, Report
from trioproxy.acme.problems import VALIDATION, AcmeProblem, AcmeProtocolError, explain_validation, passing, plain
from trioproxy.acme.protocol import HTTP01, Authorization, Challenge, Order
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import KeyType
from trioproxy.errors import AcmeError

__all__ = ["Issued", "Journal", "OrderFailed", "OrderRecord", "Report", "obtain"]

ORDER_DEADLINE = 300.0
"""Seconds for everything together."""

FIRST_PAUSE = 0.25
LAST_PAUSE = 5.0
GROWTH = 1.6
"""Seconds between two looks at what the CA has not finished, where it does not name a time itself."""

T = TypeVar("T")


@attrs.frozen
class OrderRecord:
    """What must survive a crash.

    Attributes:
        directory: The URL of the CA's directory.
        order_url: The order.
        key_pem: The leaf's private key, PKCS#8 PEM.
    """

    directory: str
    order_url: str
    key_pem: bytes = attrs.field(repr=False)


class Journal(Protocol):
    """Keeps the order that is under way for one name."""

    def read(self) -> OrderRecord | None:
        """The order under way, None when there is none."""

    def write(self, record: OrderRecord) -> None:
        """Keep it, in place of another; it has to be on disk when this returns."""

    def clear(self) -> None:
        """Forget it; nothing happens when there is none."""


@attrs.frozen
class Issued:
    """A key and its certificate chain, PEM: the leaf first, without the root."""

    key_pem: bytes = attrs.field(repr=False)
    chain_pem: bytes


class OrderFailed(AcmeError):
    """No certificate; the message names the host name and the reason, and the cause is the error behind it."""

    def __init__(self, name: str, cause: AcmeError) -> None:
        super().__init__(
            f"no certificate for {name}: {cause}",
            retry_after=cause.retry_after,
            validation_failed=cause.validation_failed,
            rate_limited=cause.rate_limited,
        )


class OrderSpent(AcmeError):
    """The order can lead to no certificate any more."""


class OrderUnfinished(AcmeError):
    """The CA works on the order for longer than we wait."""


async def obtain(
    client: AcmeClient, name: str, key_type: KeyType, board: ChallengeBoard, journal: Journal, report: Report
) -> Issued:
    """Get a certificate for a host name by HTTP-01.

    Args:
        client: The CA to ask.
        name: A normalised host name, no wildcard.
        key_type: Of the leaf's key, which is fresh for each order.
        board: Where port 80 finds the answers to challenges.
        journal: Of this name. The caller clears it when what is returned has been stored, and not before.
        report: Is told what goes on, in lines for a person.

    Raises:
        OrderFailed: there is no certificate, or not within `ORDER_DEADLINE` seconds.
        StoreError: the journal or the account cannot be kept.
    """
    deadline = trio.current_time() + ORDER_DEADLINE
    try:
        with trio.CancelScope(deadline=deadline):
            return await _Issuance(client, name, key_type, board, journal, report, deadline).run()
        raise AcmeError(
            f"the CA did not finish within {ORDER_DEADLINE:.0f} seconds; the order is kept and gone on with"
        )
    except AcmeError as exc:
        raise OrderFailed(name, exc) from exc
    finally:
        client.close()


@attrs.frozen
class _Issuance:
    client: AcmeClient
    name: str
    key_type: KeyType
    board: ChallengeBoard
    journal: Journal
    report: Report
    deadline: float

    async def run(self) -> Issued:
        await self.client.register(self.report)
        resumed = await self._resume()
        if resumed is not None:
            issued = await self._carry_through(*resumed, resumed=True)
            if not well_worn(issued.chain_pem, datetime.now(UTC)):
                return issued
            self.report("the certificate of the order begun before is old already; ordering another")
            self.journal.clear()
        return await self._carry_through(*await self._begin(), resumed=False)

    # ---- the order --------------------------------------------------------------------------------------

    async def _resume(self) -> tuple[OrderRecord, Order] | None:
        """The order in the journal as the CA knows it now; one that is of no use is cleared away."""
        record = self.journal.read()
        if record is None:
            return None
        if record.directory == self.client.directory_url and type_of(record.key_pem) == self.key_type:
            try:
                order, _ = await self.client.order(record.order_url)
            except (AcmeProblem, AcmeProtocolError) as exc:
                if passing(exc):
                    raise
            else:
                if order.status != "invalid" and order.names == (self.name,):
                    self.report("going on with the order begun before")
                    return record, order
        self.journal.clear()
        return None

    async def _begin(self) -> tuple[OrderRecord, Order]:
        self.report("ordering a certificate")
        if self.key_type.startswith("rsa"):  # up to some seconds of work, during which the proxy goes on
            key_pem = await trio.to_thread.run_sync(new_key, self.key_type, abandon_on_cancel=True)
        else:
            key_pem = new_key(self.key_type)
        order = await self.client.new_order(self.name)
        if order.names != (self.name,):
            raise AcmeProtocolError(f"the CA took an order for {', '.join(order.names) or 'no name'}")
        record = OrderRecord(self.client.directory_url, order.url, key_pem)
        self.journal.write(record)
        return record, order

    async def _carry_through(self, record: OrderRecord, order: Order, *, resumed: bool) -> Issued:
        try:
            order = await self._complete(order, signing_request(record.key_pem, self.name))
            self.report("the CA has signed; fetching the certificate")
            pem = await self._persist(partial(self.client.certificate, order.certificate))
            return Issued(record.key_pem, checked_chain(pem, record.key_pem, self.name))
        except OrderUnfinished as exc:
            # Twice the whole time and still not done: it is stuck, unless the CA itself speaks of longer times.
            if resumed and (exc.retry_after or 0.0) < ORDER_DEADLINE:
                self.journal.clear()
            raise
        except (OrderSpent, AcmeProtocolError, AcmeProblem) as exc:
            # What a refusal or a senseless answer met once, it would meet each time.
            if not passing(exc):
                self.journal.clear()
            raise

    async def _complete(self, order: Order, csr: bytes) -> Order:
        """Bring an order from whatever state it is in to `valid`."""
        pauses = _Pauses(self.deadline)
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
        failed = error is not None and error.kind in VALIDATION
        if failed:
            return OrderSpent(explain_validation(self.name, error), validation_failed=True)
        said = "" if error is None else f": {error.words()}"
        return OrderSpent(f"the CA has given the order up{said}")

    # ---- authorisations ---------------------------------------------------------------------------------

    async def _authorise(self, url: str) -> None:
        authorization, _ = await self._persist(partial(self.client.authorization, url))
        if authorization.status == "pending":
            challenge = authorization.challenge(HTTP01)
            if challenge is None:
                offered = ", ".join(sorted(offer.type for offer in authorization.challenges)) or "nothing"
                raise OrderSpent(f"the CA does not offer {HTTP01} for this name, only {plain(offered)}")
            authorization = await self._answer(url, challenge)
            if authorization.status == "valid":
                self.report("the CA has found the answer")
        if authorization.status == "invalid":
            raise OrderSpent(explain_validation(self.name, authorization.error()), validation_failed=True)
        if authorization.status != "valid":
            raise OrderSpent(f"the CA's authorisation for this name is {authorization.status}")

    async def _answer(self, url: str, challenge: Challenge) -> Authorization:
        """Keep the answer to a challenge in place until the CA has made up its mind."""
        pauses = _Pauses(self.deadline)
        with self.board.present(self.name, challenge.token, self.client.key_authorization(challenge.token)):
            if challenge.status == "pending":  # else it was asked before a crash
                self.report("the answer to the CA's challenge is in place; asking the CA to look")
                await self._persist(partial(self.client.respond, challenge))
            while True:
                authorization, wait = await self._persist(partial(self.client.authorization, url))
                if authorization.status != "pending":
                    return authorization
                await pauses.pause(wait)

    async def _persist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask until passing trouble has passed."""
        pauses = _Pauses(self.deadline)
        while True:
            try:
                return await ask()
            except AcmeError as exc:
                if not passing(exc):
                    raise
                await pauses.pause(exc.retry_after, exc)


@attrs.define
class _Pauses:
    """Waits between two looks at the same thing, ever longer, and never shorter than the CA wishes."""

    deadline: float
    _next: float = FIRST_PAUSE

    async def pause(self, wish: float | None, because: AcmeError | None = None) -> None:
        seconds = max(self._next, wish or 0.0)
        if trio.current_time() + seconds >= self.deadline:
            if because is not None:
                raise because
            raise OrderUnfinished("the CA has not finished in time", retry_after=wish)
        await trio.sleep(seconds)
        self._next = min(self._next * GROWTH, LAST_PAUSE)
