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

from trioproxy.errors import AcmeError, AcmeFailure

NAMESPACE = "urn:ietf:params:acme:error:"

MAX_TEXT = 600
"""Characters of a text of the CA's that are shown."""

MAX_SUBPROBLEMS = 20

_SECONDS = re.compile(r"[0-9]{1,9}", re.ASCII)

VALIDATION = frozenset({"caa", "connection", "dns", "incorrectResponse", "tls", "unauthorized"})
"""Kinds of problems that mean, on an authorisation or an order, that a validation did not succeed."""

_ACCOUNT = frozenset(
    {
        "accountDoesNotExist",
        "badPublicKey",
        "externalAccountRequired",
        "invalidContact",
        "unsupportedContact",
        "userActionRequired",
    }
)
"""Kinds that are about the account, and so about every name."""


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
        instance: A URL where there is more about it, "" for none.
    """

    kind: str
    detail: str
    status: int
    subproblems: tuple[Problem, ...] = ()
    retry_after: float | None = None
    instance: str = ""

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
        instance = fields.get("instance")
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
            instance=plain(instance) if isinstance(instance, str) else "",
        )

    @property
    def core(self) -> str:
        """The kind that says most: of a compound problem (section 6.7.1) the first of its parts'."""
        return self.subproblems[0].kind if self.kind == "compound" and self.subproblems else self.kind

    def words(self) -> str:
        """The problem in one line, for people."""
        said = self.detail or self.kind or (f"HTTP status {self.status}" if self.status else "it gives no reason")
        parts = [part.words() for part in self.subproblems if part.detail and part.detail not in said]
        return f"{said} ({'; '.join(parts)})" if parts else said


class AcmeProblem(AcmeError):
    """The CA refused a request; `problem` is what it said.

    Args:
        doing: What it was asked for, to stand after "refused".
        problem: Its answer.
        failure: What kind of failure that is, where the request tells more of it than the answer.
    """

    def __init__(self, doing: str, problem: Problem, failure: AcmeFailure | None = None) -> None:
        said = problem.words()
        if problem.kind == "userActionRequired" and problem.instance:
            said += f". Open {problem.instance} in a browser and do what it asks for"
        super().__init__(
            f"the CA refused {doing}: {said}", failure or _failure(problem), retry_after=problem.retry_after
        )
        self.problem = problem


class AcmeProtocolError(AcmeError):
    """The CA's answer is not what RFC 8555 says."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "nonsense")


class AcmeUnreachable(AcmeError):
    """The CA cannot be reached, is not to be trusted, or does not answer in time."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "unreachable")


def _failure(problem: Problem) -> AcmeFailure:
    kind = problem.core
    if problem.status == 429 or kind == "rateLimited":
        return "limit"
    if problem.status >= 500:
        return "unreachable"
    if kind in _ACCOUNT:
        return "account"
    return "caa" if kind == "caa" else "dns" if kind == "dns" else "refused"


def passing(error: AcmeError) -> bool:
    """Whether the very same request may succeed a little later: the network's trouble, or the CA's own."""
    return error.failure in ("limit", "unreachable")


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
