"""What a CA has counted of ours, counted beside it, so that its limits are kept before it has to say so.

Only the limits of Let's Encrypt are known; of every other CA nothing is written down, and its Retry-After is all there
is to go by. Counted are, on disk, the moments of

- orders, for each account: whoever has used them up waits for the one that is the first to be forgotten, and each who
  waits is given a moment of its own, so that a thousand names that start at once are not all woken for each place;
- certificates and failed validations, for each name,
- certificates, for each registered domain (`domains`).

Orders that name the certificate they replace are exempt from the limits on orders and certificates, and not counted.
A renewal that does not name it, for a name that the CA has issued for before, is exempt from the limit of the
registered domain.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import trio

from trioproxy.certs import files
from trioproxy.certs.domains import Domains, Limit
from trioproxy.certs.internal_ca import Clock
from trioproxy.certs.policy import Paced
from trioproxy.certs.store import ACCOUNTS, COUNTS, LOCKS, Store, stem_of
from trioproxy.config.model import LETSENCRYPT, AccountId
from trioproxy.errors import AcmeError

log = logging.getLogger("trioproxy.certs")

KEPT = timedelta(minutes=10)
"""How long a place is kept for a name whose turn it is: until it orders it may queue, or rehearse."""

BESIDE = timedelta(minutes=1)
"""How much later than ours a moment may be that counts: who orders beside us may have taken its own after we took ours,
and still have written it before we could."""


@attrs.frozen
class Limits:
    """What one CA allows.

    Attributes:
        orders: For each account.
        certificates: For each name.
        failures: Failed validations for each name.
        domain: Certificates for each registered domain, renewals not counted.
    """

    orders: Limit
    certificates: Limit
    failures: Limit
    domain: Limit


KNOWN: Mapping[str, Limits] = {
    LETSENCRYPT: Limits(
        orders=Limit(300, timedelta(hours=3)),
        certificates=Limit(5, timedelta(days=7)),
        failures=Limit(5, timedelta(hours=1)),
        domain=Limit(50, timedelta(days=7)),
    )
}
"""By directory; letsencrypt.org/docs/rate-limits, as of autumn 2026."""


class Ledger:
    """Counts for one store.

    Args:
        store: Where it is written down.
        clock: The wall clock, UTC.
        known: The limits, by directory.
    """

    def __init__(self, store: Store, clock: Clock, known: Mapping[str, Limits] = KNOWN) -> None:
        self._store = store
        self._clock = clock
        self._known = known
        self._waiting: dict[AccountId, dict[str, datetime]] = {}  # by name: when there is or was a place for it
        self._domains = Domains(store)

    async def pace(self, account: AccountId, name: str, *, exempt: bool, renewal: bool = False) -> Paced | None:
        """Until when to wait with an order of `name`, None for not at all. Raises StoreError.

        Args:
            account: Who would order.
            name: What for.
            exempt: Whether the order will name the certificate that it replaces.
            renewal: Whether the CA has issued a certificate for `name` before.
        """
        limits, now = self._known.get(account.directory), self._clock()
        if limits is None:
            return None
        counts = self._counts(account, name)
        found = [(_until(counts["failures"], limits.failures, now), "of failed validations of one name")]
        if not exempt:
            found.append((_until(counts["certificates"], limits.certificates, now), "of certificates for one name"))
            found.append((self._place(account, name, limits.orders, now), "of orders of one account"))
        if not exempt and not renewal:
            until, domain = await self._domains.place(account.directory, name, limits.domain, now)
            found.append((until, f"of new certificates for {domain} and all names below it"))
        until, what = max(found, key=lambda each: each[0])
        return Paced(now, until, f"the CA's limit {what} is reached") if until > now else None

    async def order(self, account: AccountId, name: str, *, enforce: bool) -> None:
        """An order is about to be made.

        Args:
            account: Who makes it.
            name: What for.
            enforce: Whether to refuse it where the limit is reached, by another process perhaps.

        Raises:
            AcmeError: it is refused.
            StoreError: it cannot be written down.
        """
        limits = self._known.get(account.directory)
        if limits is not None:
            await trio.to_thread.run_sync(self._order, account, limits.orders, self._clock(), enforce)
            self._waiting.get(account, {}).pop(name, None)

    async def failed(self, account: AccountId, name: str) -> None:
        """A validation of `name` has failed. Raises StoreError."""
        await self._count(account, name, "failures")

    def under_way(self, account: AccountId, name: str) -> AbstractContextManager[None]:
        """Around an order of a first certificate for `name`: it is counted with its domain before it is issued."""
        return self._domains.under_way(account.directory, name)

    async def issued(self, account: AccountId, name: str, *, renewal: bool = False) -> None:
        """A certificate for `name` has been issued that was not said to replace one. Raises StoreError.

        Args:
            account: Who ordered it.
            name: What for.
            renewal: As for `pace`.
        """
        await self._count(account, name, "certificates")
        limits = self._known.get(account.directory)
        if limits is not None and not renewal:
            await self._domains.spend(account.directory, name, limits.domain, self._clock())

    # ---- orders of an account -----------------------------------------------------------------------

    def _place(self, account: AccountId, name: str, limit: Limit, now: datetime) -> datetime:
        """When there is a place for an order of `name`: now, or when the next one is free that nobody waits for."""
        waiting = self._waiting.setdefault(account, {})
        waiting.pop(name, None)
        for other in [other for other, until in waiting.items() if until <= now - KEPT]:
            del waiting[other]
        promised = [until for until in waiting.values() if until <= now]
        taken = sorted([*_recent(self._orders(account), limit, now), *promised])
        if len(taken) < limit.most:
            waiting[name] = now
            return now
        ahead = len(waiting) - len(promised)
        if not ahead:
            log.info("%d orders within %s are used up; names without a certificate wait", limit.most, limit.within)
        rounds, index = divmod(ahead + len(taken) - limit.most, len(taken))
        until = waiting[name] = taken[index] + limit.within * (rounds + 1)
        return until

    def _order(self, account: AccountId, limit: Limit, now: datetime, enforce: bool) -> None:
        with files.locked_briefly(self._store.folder(LOCKS) / f"_{_digest(account)}.lock", self._store.owner()):
            used = _recent(self._orders(account), limit, now)
            if enforce and len(used) >= limit.most:
                wait = (used[len(used) - limit.most] + limit.within - now).total_seconds()
                raise AcmeError("the CA's limit of orders of one account is reached", "limit", retry_after=wait)
            moments = [moment.timestamp() for moment in (*used, now)]
            self._store.write_json(self._orders_path(account), {"orders": moments})

    def _orders(self, account: AccountId) -> list[datetime]:
        return self._store.read_json(self._orders_path(account), lambda values: _moments(values["orders"])) or []

    def _orders_path(self, account: AccountId) -> Path:
        return self._store.path / ACCOUNTS / f"{_digest(account)}.orders.json"

    # ---- what is counted of a name ------------------------------------------------------------------

    def _counts(self, account: AccountId, name: str) -> dict[str, list[datetime]]:
        def read(values: Mapping[str, Any]) -> dict[str, list[datetime]]:
            own = values.get(_digest(account), {})
            return {kind: _moments(own.get(kind, [])) for kind in ("certificates", "failures")}

        return self._store.read_json(self._path(name), read) or {"certificates": [], "failures": []}

    async def _count(self, account: AccountId, name: str, kind: str) -> None:
        limits, now = self._known.get(account.directory), self._clock()
        if limits is None:
            return
        counts = self._counts(account, name)
        counts[kind].append(now)
        kept = {
            "certificates": _recent(counts["certificates"], limits.certificates, now),
            "failures": _recent(counts["failures"], limits.failures, now),
        }
        before = self._store.read_json(self._path(name), dict) or {}
        own = {key: [moment.timestamp() for moment in moments] for key, moments in kept.items()}
        await trio.to_thread.run_sync(self._store.write_json, self._path(name), {**before, _digest(account): own})

    def _path(self, name: str) -> Path:
        return self._store.path / COUNTS / f"{stem_of(name)}.json"


def _digest(account: AccountId) -> str:
    return hashlib.sha256(f"{account.directory}\n{account.eab_key_id}".encode()).hexdigest()[:16]


def _moments(values: Any) -> list[datetime]:
    return [datetime.fromtimestamp(float(value), UTC) for value in values]


def _recent(moments: list[datetime], limit: Limit, now: datetime) -> list[datetime]:
    """Those that count, in order. One far in the future was noted by a clock that was wrong, and says nothing."""
    return sorted(moment for moment in moments if now - limit.within < moment <= now + BESIDE)


def _until(moments: list[datetime], limit: Limit, now: datetime) -> datetime:
    recent = _recent(moments, limit, now)
    return now if len(recent) < limit.most else recent[len(recent) - limit.most] + limit.within
