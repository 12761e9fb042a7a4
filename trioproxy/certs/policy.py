"""When to renew and when to try again. Pure: the moment, the dice and the certificate are handed in.

The rules and their reasons: a third of the lifetime is what Let's Encrypt advises to leave for trouble, half where that
would be a matter of days. After a failure each further attempt costs a new order and a validation, of which a CA allows
few (Let's Encrypt: five failed validations per name and hour), so the pauses grow; but they must not grow beyond
what the certificate has left.

A CA may suggest a moment of its own (RFC 9773), and it knows why: it may be about to revoke, or spread its load. It
is gone by, unless next to nothing would be left then.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import attrs

from trioproxy.config.model import AccountId
from trioproxy.errors import AcmeFailure

Rule = Literal["ARI", "lifetime", "emergency", "revoked"]
"""Why a certificate is renewed when it is: `ARI`, the CA suggests it; `emergency`, hardly anything is left."""

EMERGENCY = 20
"""With less than this part of the lifetime left nobody's suggestion counts any more."""

AT_LEAST_USED = timedelta(days=1)
"""How old a certificate gets whatever its CA suggests: one whose every suggestion is "now" would be asked in a ring."""

SHORT_LIFETIME = timedelta(days=10)
"""Certificates below this are renewed when half of their lifetime is left, the others at a third."""

SPREAD = 0.02
"""The part of the lifetime by which renewals are moved forward at most, so that names of one day part ways."""

LADDER = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(minutes=30),
    timedelta(hours=1),
    timedelta(hours=3),
    timedelta(hours=6),
)
"""Pauses after the first, second … failure in a row; the last repeats."""

JITTER = 0.1
"""The part of a pause by which it may be shorter or longer."""

LEAST = timedelta(minutes=10)
"""Never shorter than this after the first failure, however little is left: validations are counted by the hour."""

LONGEST_WISH = timedelta(days=8)
"""What we believe of a Retry-After: a week is the longest window of any CA's limit, more is a mistake of somebody's."""


@attrs.frozen
class Paced:
    """A limit of the CA's that is reached by our own count, so nobody has been asked.

    Attributes:
        since: When that was found; UTC.
        until: When there is room again; UTC.
        words: Which limit.
    """

    since: datetime
    until: datetime
    words: str


@attrs.frozen
class Setback:
    """Failures in a row at one CA, for one name.

    Attributes:
        account: Where.
        failures: How many; at least 1.
        failed_at: When the last one failed; UTC.
        next_attempt: When that CA may be asked again; UTC.
        failure: Of which kind the last one was.
    """

    account: AccountId
    failures: int
    failed_at: datetime
    next_attempt: datetime
    failure: AcmeFailure

    def holds(self, now: datetime) -> bool:
        """As `Trouble.holds`."""
        return self.failed_at <= now < self.next_attempt

    @property
    def validation_failed(self) -> bool:
        """Whether the CA did not find what it looked for."""
        return self.failure in ("validation", "dns", "caa")


@attrs.frozen
class Trouble:
    """Attempts in a row that failed, for one name. It is kept on disk: a restart must not begin the ladder anew.

    Attributes:
        failures: How many; at least 1.
        failed_at: When the last one failed; UTC.
        next_attempt: When to try again; UTC.
        error: Why the last one failed, in words.
        rate_limited: The CA itself said to wait, so not even a person's request goes ahead of `next_attempt`.
        at: What there was at each CA, the last one last.
    """

    failures: int
    failed_at: datetime
    next_attempt: datetime
    error: str
    rate_limited: bool = False
    at: tuple[Setback, ...] = ()

    def holds(self, now: datetime) -> bool:
        """Whether it is too early for another attempt.

        A failure in the future means that the clock was wrong then, and so was the time of the next attempt.
        """
        return self.failed_at <= now < self.next_attempt


def dice_of(serial: int) -> float:
    """A number from 0 up to 1 that is the certificate's own: the same whoever asks, and after every restart.

    Args:
        serial: A serial number, of which a CA makes at least 64 bits at random (Baseline Requirements, 7.1).
    """
    return serial % 65521 / 65521


def renew_at(not_before: datetime, not_after: datetime, pick: float) -> datetime:
    """When to renew a certificate.

    Args:
        not_before: Its validity; UTC.
        not_after: Its validity; UTC.
        pick: From 0 up to 1, which point of the spread to take; 0 is the latest.
    """
    lifetime = not_after - not_before
    left = lifetime / 2 if lifetime < SHORT_LIFETIME else lifetime / 3
    return not_after - left - lifetime * SPREAD * pick


def emergency_at(not_before: datetime, not_after: datetime) -> datetime:
    """From when on a certificate is renewed whatever the CA suggests."""
    return not_after - (not_after - not_before) / EMERGENCY


def renew_when(
    not_before: datetime, not_after: datetime, pick: float, suggested: datetime | None
) -> tuple[datetime, Rule]:
    """When to renew a certificate, and by which rule.

    Args:
        not_before: Its validity; UTC.
        not_after: Its validity; UTC.
        pick: As for `renew_at`.
        suggested: The moment picked from the window that the CA suggests, None where it suggests none.
    """
    if suggested is None:
        return renew_at(not_before, not_after, pick), "lifetime"
    emergency = emergency_at(not_before, not_after)
    suggested = max(suggested, not_before + min(AT_LEAST_USED, (not_after - not_before) / 6))
    return (suggested, "ARI") if suggested <= emergency else (emergency, "emergency")


def retry_at(
    failures: int, now: datetime, remaining: timedelta, pick: float, ca_retry_after: float | None = None
) -> datetime:
    """When to try again.

    Args:
        failures: How many attempts in a row have failed, this one included.
        now: The moment of the failure; UTC.
        remaining: What the present certificate has left; zero or less when there is none that is good.
        pick: From 0 up to 1, where to land between a tenth less and a tenth more.
        ca_retry_after: Seconds that the CA asked to wait (Retry-After), which outranks everything else here.
    """
    pause = LADDER[min(failures, len(LADDER)) - 1] * (1 - JITTER + 2 * JITTER * pick)
    if remaining > timedelta():
        pause = min(pause, remaining / 8)
    if failures > 1:
        pause = max(pause, LEAST)
    if ca_retry_after is not None:
        pause = max(pause, timedelta(seconds=min(ca_retry_after, LONGEST_WISH.total_seconds())))
    return now + pause
