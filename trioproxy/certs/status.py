"""What is said of certificates: to `certs list`, to `certs renew`, and in the log. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import attrs

from trioproxy.certs.bundle import Leaf
from trioproxy.certs.policy import SHORT_LIFETIME, Paced, Rule, Trouble, emergency_at
from trioproxy.certs.records import Provenance
from trioproxy.config.model import LETSENCRYPT, ZEROSSL

State = Literal["good", "waiting", "due", "renewing", "failing", "expiring", "expired", "unreadable", "amiss"]
"""How a certificate is, in one word.

`waiting`: it is to come from the CA and none has come yet. `due`: it is time to renew it. `expiring`: a file of the
user's, which nobody but the user renews, ends soon. `unreadable`: a file, or the store, cannot be read. `amiss`: it is
good, but not what is served, or those who use it were not told.
"""

NEEDS_A_PERSON = frozenset({"expiring", "expired", "unreadable", "amiss"})

PASSING = frozenset({"unreachable", "limit", "unfinished"})
"""Failures that mostly pass without anybody's doing: they are a matter for a person once they have lasted."""

LASTING = 5
"""Attempts in a row, two hours of them, after which a name without a certificate is a matter for a person."""

EXPIRING = timedelta(days=14)

Result = Literal["renewed", "rehearsed", "kept", "waiting", "failed"]


@attrs.frozen
class Outcome:
    """What came of the wish to renew one name.

    Attributes:
        name: The site.
        result: `kept`: it was not due. `waiting`: an earlier failure says not to try yet.
        detail: In words, what was done or why not.
    """

    name: str
    result: Result
    detail: str


@attrs.frozen
class CertificateStatus:
    """One managed certificate, as JSON can say it (`attrs.asdict`). Moments are ISO 8601, UTC.

    Attributes:
        name: The site.
        source: Where its certificate is to come from: "acme", "internal" or "files".
        state: How it is, one of `State`.
        names: The names in the certificate; empty when there is none yet.
        issuer: Who signed it, "" when there is none yet.
        challenge: How the name was proved to its CA, "" where that is not known.
        not_after: When it expires.
        days_left: Until then; negative afterwards.
        renews: When it is to be renewed; None where nobody but the user does that.
        rule: What decides that moment: "ARI" (the CA suggests it), "lifetime", "emergency", "revoked", or "".
        why: The reason for that moment, in words.
        error: What went wrong last, "" if nothing did.
        waits_for: The limit of the CA's that is reached, "" for none.
        next_attempt: When a failed renewal is tried again, or there is room within that limit.
        needs_a_person: Whether somebody should look at it.
        pem: The folder with its PEM files for other programs, "" while there are none.
    """

    name: str
    source: Literal["acme", "internal", "files"]
    state: State
    names: tuple[str, ...] = ()
    issuer: str = ""
    challenge: str = ""
    not_after: str | None = None
    days_left: float | None = None
    renews: str | None = None
    rule: Rule | Literal[""] = ""
    why: str = ""
    error: str = ""
    waits_for: str = ""
    next_attempt: str | None = None
    needs_a_person: bool = False
    pem: str = ""


def status_of(
    name: str,
    source: Literal["acme", "internal", "files"],
    now: datetime,
    leaf: Leaf | None,
    *,
    renewal: tuple[datetime, Rule] | None = None,
    trouble: Trouble | None = None,
    problem: str = "",
    busy: bool = False,
    where: Provenance | None = None,
    paced: Paced | None = None,
) -> CertificateStatus:
    """Put the status of one certificate together.

    Args:
        name: The site.
        source: Where its certificate is to come from.
        now: The wall clock, UTC.
        leaf: The certificate that it has of its own, if it has one.
        renewal: When that is to be renewed, and by which rule.
        trouble: Attempts that failed.
        problem: Why the certificate cannot be read.
        busy: Whether it is being renewed at this moment.
        where: Where the certificate came from.
        paced: Which limit of the CA's it waits for.
    """
    renews = max(renewal[0], leaf.not_before) if renewal and leaf else None
    rule = _rule(renewal, leaf, now)
    state = _state(source, now, leaf, renews, trouble, problem, busy=busy)
    moments = [each for each in (trouble and trouble.next_attempt, paced and paced.until) if each]
    again = max(moments, default=None)
    return CertificateStatus(
        name=name,
        source=source,
        state=state,
        names=leaf.names if leaf else (),
        issuer=leaf.issuer if leaf else "",
        challenge=where.challenge if where else "",
        not_after=leaf.not_after.isoformat() if leaf else None,
        days_left=round((leaf.not_after - now) / timedelta(days=1), 2) if leaf else None,
        renews=renews.isoformat() if renews else None,
        rule=rule,
        why=f"it has been revoked ({where.revoked})" if where and where.revoked else _why(source, leaf, rule),
        error=problem or (trouble.error if trouble else ""),
        waits_for=paced.words if paced else "",
        next_attempt=again.isoformat() if again else None,
        needs_a_person=_needs_a_person(state, leaf, renewal and renewal[0], trouble, max(again or now, now)),
    )


def _state(
    source: str,
    now: datetime,
    leaf: Leaf | None,
    renews: datetime | None,
    trouble: Trouble | None,
    problem: str,
    *,
    busy: bool,
) -> State:
    if problem:
        return "unreadable"
    if leaf is not None and leaf.not_after <= now:
        return "expired"
    if trouble is not None:
        return "failing"
    if busy:
        return "renewing"
    if leaf is None:
        return "waiting" if source == "acme" else "good"
    if source == "files":
        return "expiring" if leaf.not_after - now < EXPIRING else "good"
    return "due" if renews is not None and renews <= now else "good"


def _needs_a_person(
    state: State, leaf: Leaf | None, due: datetime | None, trouble: Trouble | None, again: datetime
) -> bool:
    """Whether somebody should look at it.

    Args:
        state: How it is.
        leaf: The certificate that it has.
        due: When that is to be renewed, None where there is none or nobody but the user renews it.
        trouble: Attempts that failed.
        again: The next attempt, or now, whichever is later.
    """
    if state in NEEDS_A_PERSON:
        return True
    if state == "failing" and trouble is not None:
        if not trouble.at or any(setback.failure not in PASSING for setback in trouble.at):
            return True
        if leaf is None:
            return trouble.failures >= LASTING
    if leaf is None or due is None or state == "renewing":
        return False
    return again >= due + (leaf.not_after - due) / 2  # half of the time that was left for trouble is gone


def _rule(renewal: tuple[datetime, Rule] | None, leaf: Leaf | None, now: datetime) -> Rule | Literal[""]:
    if renewal is None or leaf is None:
        return ""
    rule = renewal[1]
    return "emergency" if rule != "revoked" and emergency_at(leaf.not_before, leaf.not_after) <= now else rule


def _why(source: str, leaf: Leaf | None, rule: Rule | Literal[""]) -> str:
    if source == "files":
        return "you renew it: replace the files"
    if leaf is None:
        return "the first one is to come" if source == "acme" else "made when somebody first asks for the name"
    if rule == "ARI":
        return "ARI: its CA suggests it"
    if rule == "emergency":
        return "emergency: a twentieth of its lifetime is left then"
    short = leaf.not_after - leaf.not_before < SHORT_LIFETIME
    return f"lifetime: {'half' if short else 'a third'} of it is left then"


def authority(directory: str) -> str:
    """The name of the CA behind the URL of an ACME directory, as people know it."""
    known = {LETSENCRYPT: "Let's Encrypt", ZEROSSL: "ZeroSSL"}
    return known.get(directory) or directory.partition("://")[2].partition("/")[0] or directory


def day(moment: datetime, now: datetime) -> str:
    """`20 Feb`, in local time; with the year where that could be mistaken."""
    local = moment.astimezone()
    far = abs(moment - now) > timedelta(days=300)
    return f"{local.day} {local:%b %Y}" if far else f"{local.day} {local:%b}"


def time_of_day(moment: datetime, now: datetime) -> str:
    """`14:05`, in local time; with the day where it is not today."""
    local = moment.astimezone()
    clock = f"{local:%H:%M}"
    return clock if local.date() == now.astimezone().date() else f"{clock} on {day(moment, now)}"
