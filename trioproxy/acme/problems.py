"""What a certificate authority says when it refuses, and when to come back. Pure.

Problem documents are RFC 7807's with the types of RFC 8555 section 6.7. Their texts come from outside and end in logs
and on terminals, so they are cleaned here, once.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_tz
from typing import Any

import attrs

from trioproxy.errors import AcmeError

NAMESPACE = "urn:ietf:params:acme:error:"

MAX_TEXT = 600
"""Characters of a text of the CA's that are shown."""

MAX_SUBPROBLEMS = 20

_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)

VALIDATION = frozenset({"caa", "connection", "dns", "incorrectResponse", "tls", "unauthorized"})
"""Kinds of problems that mean, on an authorisation or an order, that a validation did not succeed."""


@attrs.frozen
class Problem:
    """One problem document.

    Attributes:
        kind: `badNonce` and the like: the type without ACME's namespace; a type of another namespace as it is, ""
            when the answer was no problem document.
        detail: What the CA says to people; one line.
        status: The HTTP status; 0 for a problem inside another object that does not say.
        subproblems: One for each identifier that the CA has something to say of.
        retry_after: Seconds to wait, None when the CA names none.
    """

    kind: str
    detail: str
    status: int
    subproblems: tuple[Problem, ...] = ()
    retry_after: float | None = None

    @classmethod
    def parse(cls, value: Any, status: int = 0, retry_after: float | None = None) -> Problem:
        """Read a problem document, however incomplete: an error must never be lost for being badly written.

        Args:
            value: Decoded JSON of any shape.
            status: Of the response that carried it.
            retry_after: Of the response that carried it, in seconds.
        """
        fields = value if isinstance(value, dict) else {}
        kind, detail, subproblems = fields.get("type"), fields.get("detail"), fields.get("subproblems")
        if not status and type(fields.get("status")) is int:
            status = fields["status"]
        return cls(
            kind=plain(kind).removeprefix(NAMESPACE) if isinstance(kind, str) else "",
            detail=plain(detail) if isinstance(detail, str) else "",
            status=status,
            subproblems=tuple(
                cls(part.kind, part.detail, part.status)
                for part in map(cls.parse, subproblems[:MAX_SUBPROBLEMS] if isinstance(subproblems, list) else ())
            ),
            retry_after=retry_after,
        )

    def words(self) -> str:
        """The problem in one line, for people."""
        said = self.detail or self.kind or (f"HTTP status {self.status}" if self.status else "it gives no reason")
        parts = [part.words() for part in self.subproblems if part.detail and part.detail not in said]
        return f"{said} ({'; '.join(parts)})" if parts else said


class AcmeProblem(AcmeError):
    """The CA refused a request; `problem` is what it said."""

    def __init__(self, doing: str, problem: Problem) -> None:
        super().__init__(
            f"the CA refused {doing}: {problem.words()}",
            retry_after=problem.retry_after,
            rate_limited=problem.status == 429 or problem.kind == "rateLimited",
        )
        self.problem = problem


class AcmeProtocolError(AcmeError):
    """The CA's answer is not what RFC 8555 says."""


class AcmeUnreachable(AcmeError):
    """The CA cannot be reached, is not to be trusted, or does not answer in time."""


def passing(error: AcmeError) -> bool:
    """Whether the very same request may succeed a little later: the network's trouble, or the CA's own."""
    if isinstance(error, AcmeProblem):
        return error.rate_limited or error.problem.status >= 500
    return isinstance(error, AcmeUnreachable)


def plain(text: str) -> str:
    """A text from outside in one line without control characters, also those that only change how it looks."""
    line = "".join(c if c.isprintable() else " " for c in text[: MAX_TEXT + 1])
    return line if len(line) <= MAX_TEXT else line[: MAX_TEXT - 1] + "…"


def retry_after(value: str | None, date: str | None, now: float) -> float | None:
    """Seconds to wait according to Retry-After (RFC 9110 section 10.2.3).

    A moment is compared with the response's own Date where it has one: then it does not matter whose clock is wrong.

    Args:
        value: The field: a number of seconds or a date; None when there is none.
        date: The response's Date field.
        now: The present time, in seconds since 1970, where Date is missing.

    Returns:
        None when there is no field, or nothing that means anything.
    """
    if value is None:
        return None
    if _SECONDS.fullmatch(value):
        return float(value)
    until = http_date(value)
    if until is None:
        return None
    sent = http_date(date) if date is not None else None
    return max(0.0, until - (now if sent is None else sent))


def http_date(text: str) -> float | None:
    """Seconds since 1970 of a date in one of HTTP's three forms (RFC 9110 section 5.6.7), None when it is none.

    HTTP's dates are in UTC, said or unsaid: the zone of this machine has no part in it.
    """
    fields = parsedate_tz(text)
    if fields is None:
        return None
    try:
        moment = datetime(*fields[:6], tzinfo=UTC) - timedelta(seconds=fields[9] or 0)
    except (ValueError, OverflowError):
        return None
    return moment.timestamp()


def explain_validation(name: str, problem: Problem | None) -> str:
    """Why a validation by HTTP-01 did not succeed, what the CA says of it, and what to look at."""
    kind = "" if problem is None else problem.kind
    remedy = _REMEDIES.get(kind, "the CA did not accept the answer to its challenge").format(name=name)
    return f"{remedy}. The CA says: {'nothing' if problem is None else problem.words()}"


_REMEDIES = {
    "connection": (
        "the CA could not connect to port 80 of {name}. The likely cause is that the router does not forward port 80 to"
        " this machine, that a firewall or the provider blocks it, or that the name's A or AAAA record holds an old"
        " address"
    ),
    "dns": "the CA found no address for {name}. Look at its A and AAAA records, and at the DNS servers of its domain",
    "unauthorized": (
        "something answered the CA on port 80 of {name}, but not with the answer to its challenge. The likely cause is"
        " that the name's A or AAAA record, or the router's forwarding of port 80, leads elsewhere than to this"
        " trioproxy"
    ),
    "caa": "a CAA record of {name} or of its domain forbids this CA to issue. Add the CA there, or remove the record",
    "tls": (
        "the CA was led to an https address for {name} and could not speak TLS there. Look for a redirect on port 80"
        " in front of this trioproxy"
    ),
}
_REMEDIES["incorrectResponse"] = _REMEDIES["unauthorized"]
