"""How many certificates the names of one registered domain may still get, as Let's Encrypt counts them.

A registered domain is what somebody can register: one label more than a public suffix, `example.co.uk` or
`me.duckdns.org`, so it takes the list of those to know it. The list is parsed where the first certificate is counted,
in a thread, and looked at again only while some domain is near its limit.

What is used up comes back steadily, not all at once after a week: of fifty places each is free again after a fiftieth
of the week. So one moment says all that there is to say of a domain: when every place of its will be free again.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trioproxy.certs import files
from trioproxy.certs.store import COUNTS, LOCKS, Store

if TYPE_CHECKING:
    from publicsuffixlist import PublicSuffixList


NEAR = 10
"""Places left with which a domain is looked at: more orders than that do not begin within one moment."""

KEPT = timedelta(minutes=10)
"""How long a place is kept for a name that may go on: until its order is under way it may queue, or rehearse."""

LEEWAY = timedelta(hours=1)
"""How far a clock may be set back without what it has noted losing its sense."""


@attrs.frozen
class Limit:
    """So many within so long."""

    most: int
    within: timedelta


class Domains:
    """Counts for one store. CAs are told apart by their directories: they count a domain whosever the account is.

    Args:
        store: Where it is written down.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[tuple[str, str], dict[str, datetime]] = {}  # by name: when there is or was a place for it
        self._under_way: list[tuple[str, str]] = []

    async def place(self, directory: str, name: str, limit: Limit, now: datetime) -> tuple[datetime, str]:
        """When there is room for a certificate for `name`, and which domain's it is.

        Each has a place of its own then, whoever is free to go for as long as it may take to begin.

        Returns:
            `now` or a later moment, and the registered domain; "" for that where no domain is near the limit.

        Raises:
            StoreError: the store cannot be read.
        """
        claimed = len(self._under_way) + NEAR
        if not any(_free_at(full, claimed, limit, now) > now for full in self._full(directory).values()):
            return now, ""
        await trio.to_thread.run_sync(_suffixes)
        domain = registered_domain(name)
        queue = self._waiting.get((directory, domain), {})
        queue = {other: moment for other, moment in queue.items() if moment > now - KEPT and other != name}
        ordering = {
            other for where, other in self._under_way if where == directory and registered_domain(other) == domain
        }
        beside = ordering.union(other for other, moment in queue.items() if moment <= now) - {name}
        until = _free_at(self._full(directory).get(domain, now), len(beside), limit, now)
        if until > now:
            until += sum(moment > now for moment in queue.values()) * limit.within / limit.most
        queue[name] = until
        self._waiting[directory, domain] = queue
        return until, domain

    @contextmanager
    def under_way(self, directory: str, name: str) -> Iterator[None]:
        """Hold a place for a certificate for `name`, as long as the block runs."""
        self._under_way.append((directory, name))
        try:
            yield
        finally:
            self._under_way.remove((directory, name))
            for (where, _), queue in self._waiting.items():
                if where == directory:
                    queue.pop(name, None)

    async def spend(self, directory: str, name: str, limit: Limit, now: datetime) -> None:
        """A certificate for `name` has been issued. Raises StoreError."""
        await trio.to_thread.run_sync(self._spend, directory, name, limit, now)

    def _spend(self, directory: str, name: str, limit: Limit, now: datetime) -> None:
        domain = registered_domain(name)
        lock = self._store.folder(LOCKS) / f"_{_digest(directory)}.domains.lock"
        with files.locked_briefly(lock, self._store.owner()):
            full = self._full(directory)
            # Never later than if all were used up now: what is more than that, the CA has not counted either.
            full[domain] = min(_sane(full.get(domain, now), limit, now) + limit.within / limit.most, now + limit.within)
            kept = {key: moment.timestamp() for key, moment in full.items() if _sane(moment, limit, now) > now}
            self._store.write_json(self._path(directory), {"full": kept})

    def _full(self, directory: str) -> dict[str, datetime]:
        """When all places will be free again, by domain; a domain that is not here has them all."""

        def read(values: Mapping[str, Any]) -> dict[str, datetime]:
            return {domain: datetime.fromtimestamp(float(when), UTC) for domain, when in dict(values["full"]).items()}

        return self._store.read_json(self._path(directory), read) or {}

    def _path(self, directory: str) -> Path:
        return self._store.path / COUNTS / f"_{_digest(directory)}.domains.json"


def _free_at(full: datetime, taken: int, limit: Limit, now: datetime) -> datetime:
    """When there is one place more than `taken`, if all will be free at `full`: `now`, or later."""
    return max(now, _sane(full, limit, now) + (taken + 1) * limit.within / limit.most - limit.within)


def _sane(full: datetime, limit: Limit, now: datetime) -> datetime:
    """`full` or `now`, whichever is later. What was noted by a clock that was wrong says nothing."""
    return now if full > now + limit.within + LEEWAY else max(full, now)


@functools.lru_cache(maxsize=4096)
def registered_domain(name: str) -> str:
    """The registered domain of a normalised name or `*.suffix`; a public suffix counts as its own.

    The first call takes a tenth of a second.
    """
    name = name.removeprefix("*.")
    return _suffixes().privatesuffix(name) or name


@functools.cache
def _suffixes() -> PublicSuffixList:
    from publicsuffixlist import PublicSuffixList

    return PublicSuffixList()


def _digest(directory: str) -> str:
    return hashlib.sha256(directory.encode()).hexdigest()[:16]
