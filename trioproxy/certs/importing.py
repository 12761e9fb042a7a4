"""Taking over the certificates of another program (`foreign`), as the configuration and the store want them.

For each site with `tls = "acme"` that a certificate covers, the one that is valid for longest is stored as the site's
own, by the same way as one that a CA has just issued, unless what the store has is valid for longer still.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

import attrs
import trio

from trioproxy.acme.order import Report
from trioproxy.certs.contexts import server_context
from trioproxy.certs.foreign import Candidate, Found
from trioproxy.certs.manager import Manager
from trioproxy.certs.status import day
from trioproxy.certs.store import Store
from trioproxy.certs.wishes import Handler
from trioproxy.errors import CertificateError, StoreError

Result = Literal[
    "imported",
    "kept",
    "covers nothing configured",
    "expired",
    "not valid yet",
    "self-signed",
    "key missing",
    "key does not match",
    "encrypted key",
    "unreadable",
    "failed",
]

TROUBLE = frozenset({"key missing", "key does not match", "encrypted key", "unreadable", "failed"})
"""Results that somebody should look at; the others are as one would expect them after some years of certbot."""

PATIENCE = 30.0
"""Seconds to wait for a name that somebody is renewing at this moment."""


@attrs.frozen
class Row:
    """What came of one certificate, for one site where it covers several.

    Attributes:
        path: The file that it was found in.
        site: The configured name that it was judged for, "" if there is none.
        names: The names in it.
        not_after: When it expires, ISO 8601, UTC; None if it could not be read.
        detail: In words, why.
    """

    path: str
    site: str
    result: Result
    detail: str = ""
    names: tuple[str, ...] = ()
    not_after: str | None = None

    @property
    def trouble(self) -> bool:
        """Whether somebody should look at it."""
        return self.result in TROUBLE


# ---- judging ------------------------------------------------------------------------------------------


def judge(found: Found, sites: Iterable[str], now: datetime) -> tuple[list[Row], dict[str, Candidate]]:
    """What each certificate is good for.

    Args:
        found: Of a folder.
        sites: The names whose certificates come from a CA.
        now: The wall clock, UTC.

    Returns:
        The rows of those that cannot be used, and by site the one to be taken, valid for longest.
    """
    sites = list(sites)
    rows: list[Row] = []
    best: dict[str, Candidate] = {}
    for candidate in sorted(found.candidates, key=lambda c: c.not_after, reverse=True):
        covered = [name for name in sites if candidate.matches(name)]
        if not covered:
            rows.append(row_of(candidate, "", "covers nothing configured"))
        for name in covered:
            if candidate.not_after <= now:
                rows.append(row_of(candidate, name, "expired"))
            elif candidate.self_signed:
                rows.append(row_of(candidate, name, "self-signed", "browsers warn of it; a CA is asked for another"))
            elif candidate.problem:
                rows.append(row_of(candidate, name, candidate.problem, candidate.detail))
            elif candidate.not_before > now:
                rows.append(row_of(candidate, name, "not valid yet", "is this machine's clock right?"))
            elif name in best:
                rows.append(row_of(candidate, name, "kept", f"{best[name].path} is valid for longer"))
            else:
                best[name] = candidate
    return [*rows, *(Row(str(path), "", "unreadable", why) for path, why in found.unreadable)], best


def row_of(candidate: Candidate, site: str, result: Result, detail: str = "") -> Row:
    """The row of one certificate for one site."""
    return Row(str(candidate.path), site, result, detail, candidate.names, candidate.not_after.isoformat())


async def take_over(store: Store, best: dict[str, Candidate], now: datetime) -> list[Row]:
    """Put each certificate in its site's place in the store; what came of each."""
    return [await _take_over(store, name, candidate, now) for name, candidate in best.items()]


async def _take_over(store: Store, name: str, candidate: Candidate, now: datetime) -> Row:
    bundle = candidate.bundle
    if bundle is None:
        raise TypeError("a certificate without its key was to be taken over")
    try:
        with trio.fail_after(PATIENCE):
            async with store.lock(name):
                present = store.load(name)
                if (
                    present is not None
                    and present.leaf.matches(name)
                    and present.leaf.not_after >= bundle.leaf.not_after
                ):
                    same = present.leaf.serial == bundle.leaf.serial
                    until = f"trioproxy's own is valid to {day(present.leaf.not_after, now)}"
                    return row_of(candidate, name, "kept", "it is there already" if same else until)
                server_context(bundle)  # what TLS does not take must not come into the place of what it does
                await store.save(name, bundle)
                store.forget_trouble(name)
    except trio.TooSlowError:
        return row_of(candidate, name, "failed", "it is being renewed at this moment: try again when that is done")
    except (StoreError, CertificateError) as exc:
        return row_of(candidate, name, "failed", str(exc))
    return row_of(candidate, name, "imported", f"valid to {day(bundle.leaf.not_after, now)}")


def handlers(manager: Manager) -> dict[str, Handler]:
    """What the control socket carries out for `certs import`."""

    async def look(arguments: dict[str, Any], _: Report) -> dict[str, Any]:
        """Have what was put into the store for these names served; tells what new handshakes get."""
        manager.wake()
        await manager.look()
        told: dict[str, str] = {}
        for name in map(str, arguments["names"]):
            told[name] = "it is being renewed at this moment"
            with trio.move_on_after(PATIENCE):
                site, leaf = manager.site(name), await manager.leaf_of(name)
                if site is None or leaf is None:
                    told[name] = "the running server goes by another configuration or storage: reload it"
                else:
                    told[name] = await manager.aftercare.check(site, leaf)
        return {"served": told}

    return {"certs.look": look}
