"""What is known of a site whose certificate comes from a CA, and when something is to be done about it. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property

import attrs

from trioproxy.certs import policy
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.records import Provenance, Suggestion
from trioproxy.config.model import AccountId

LONG_AGO = datetime.min.replace(tzinfo=UTC)
"""When a certificate that is not there was due: before every other, whatever becomes of the clock."""


def renews(leaf: Leaf | None) -> datetime:
    """When a certificate is to be renewed by its lifetime alone; `LONG_AGO`, where there is none."""
    return LONG_AGO if leaf is None else policy.renew_at(leaf.not_before, leaf.not_after, policy.dice_of(leaf.serial))


@attrs.frozen
class Known:
    """What is known of a site whose certificate comes from the CA.

    Attributes:
        leaf: Its own certificate; None while there is none that is for its name.
        trouble: Attempts that failed.
        problem: Why what the store has cannot be read or used, "" when it can.
        where: Where the certificate came from, None if that is not known.
        suggestion: When its CA would like it to be renewed, None while it has not been asked.
        paced: Which limit it waits for, None for none.
    """

    leaf: Leaf | None = None
    trouble: policy.Trouble | None = None
    problem: str = ""
    where: Provenance | None = None
    suggestion: Suggestion | None = None
    paced: policy.Paced | None = None

    @property
    def revoked(self) -> str:
        """Why the certificate has been revoked, "" if it has not."""
        return self.where.revoked if self.where else ""

    @cached_property
    def renewal(self) -> tuple[datetime, policy.Rule]:
        """When to renew the certificate, whatever went wrong, and by which rule."""
        leaf = self.leaf
        if leaf is None:
            return LONG_AGO, "lifetime"
        if self.revoked:
            return LONG_AGO, "revoked"
        suggested = self.suggestion.moment if self.suggestion else None
        return policy.renew_when(leaf.not_before, leaf.not_after, policy.dice_of(leaf.serial), suggested)

    @property
    def renews(self) -> datetime:
        """When to renew the certificate, whatever went wrong."""
        return self.renewal[0]

    def setback(self, account: AccountId) -> policy.Setback | None:
        """What went wrong at one CA."""
        return (
            next((setback for setback in self.trouble.at if setback.account == account), None) if self.trouble else None
        )

    def waits(self, now: datetime) -> policy.Paced | None:
        """Which limit it waits for now."""
        return self.paced if self.paced and self.paced.since <= now < self.paced.until else None

    def due(self, now: datetime) -> datetime:
        """When to do something about it."""
        moments = [self.renews]
        if self.trouble is not None and self.trouble.holds(now):
            moments.append(self.trouble.next_attempt)
        if paced := self.waits(now):
            moments.append(paced.until)
        return max(moments)
