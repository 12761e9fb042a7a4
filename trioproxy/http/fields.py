"""Field lines of an HTTP/1.1 head: reading them, and what those that govern a message say together.

llhttp reads the lines, fast and strict about their grammar. It is given nothing else: request and status lines, framing
and every other policy are decided by us, on what it returns. So each head is handed to it below a request line of our
own making, and whatever llhttp concludes from the fields about bodies or upgrades is thrown away with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from trioproxy.http.messages import Header, Headers

_ANY_REQUEST = b"GET / HTTP/1.1\r\n"

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
"""RFC 9110 section 5.6.2, as a regular expression."""

_FIELD_LINE = re.compile(rb"(" + TOKEN + rb"):([\t\x20-\x7e\x80-\xff]*)\r\n")


FIELD_OVERHEAD = 32
"""Bytes that a field counts besides its own (RFC 9113 section 6.5.2)."""


MAX_REPEATED = 4096
"""Bytes of fields that are remembered of a connection's last request, for the next to say them again. Of thousands of
idle connections each keeps so many."""


class FieldError(ValueError):
    """Field lines that break the grammar, or contradict each other."""


class _Sink:
    """What llhttp reports to."""

    __slots__ = ("fields",)

    def __init__(self) -> None:
        self.fields: Headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp takes off leading white space only; of what rstrip() takes off it lets pass but space and tab.
        self.fields.append((name.lower(), value.rstrip()))


def parse_fields(block: bytes) -> Headers:
    """The fields of a head in order, names in lower case, values without surrounding white space.

    Args:
        block: The field lines with the empty line that ends them.

    Raises:
        FieldError: the lines break RFC 9112 section 5, or frame a body in a way that llhttp refuses.
    """
    sink = _Sink()
    try:
        # A new parser costs 0.2 µs. A used one waits for a body, or for another protocol, or swallows all that comes
        # after `Connection: close`.
        HttpRequestParser(sink).feed_data(_ANY_REQUEST + block)
    except HttpParserUpgrade:
        pass  # said after the last field, and not llhttp's to decide
    except HttpParserError as exc:
        raise FieldError(str(exc)) from None
    return sink.fields


def parse_trailers(block: bytes) -> list[Header]:
    """The trailer fields of a chunked message (RFC 9112 section 7.1.2).

    They do not pass through llhttp, which would draw conclusions from fields that mean nothing in this place.

    Args:
        block: The field lines, each with its CRLF, without the empty line.

    Raises:
        FieldError: a line that is no field.
    """
    fields: list[Header] = []
    pos = 0
    while pos < len(block):
        line = _FIELD_LINE.match(block, pos)
        if line is None:
            raise FieldError("a trailer line is no field")
        fields.append((line[1].lower(), line[2].strip(b" \t")))
        pos = line.end()
    return fields


def framing(lengths: list[bytes], codings: list[bytes], version: tuple[int, int]) -> int | Literal["chunked"] | None:
    """How a message's body is delimited (RFC 9112 section 6), without the exceptions by method and status.

    llhttp refuses most of this as well. Two readings of one message are what request smuggling is made of, so the
    decision does not hang on a parser's version or leniency.

    Args:
        lengths: The values of all Content-Length fields.
        codings: The values of all Transfer-Encoding fields.
        version: The message's HTTP version.

    Returns:
        Bytes of the body, "chunked", or None when no field says anything.

    Raises:
        FieldError: the fields are invalid or contradict each other.
    """
    if codings:
        if version < (1, 1):
            raise FieldError("Transfer-Encoding in HTTP/1.0")
        if lengths:
            raise FieldError("Transfer-Encoding and Content-Length")
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            raise FieldError("a Transfer-Encoding other than chunked")
        return "chunked"
    if not lengths:
        return None
    if len(lengths) != 1:
        raise FieldError("several Content-Length fields")
    digits = lengths[0]
    if not digits.isdigit() or len(digits) > 19 or (length := int(digits)) >= 1 << 63:
        raise FieldError("an invalid Content-Length")
    return length


def options(values: list[bytes]) -> list[bytes]:
    """The members of a comma-separated field such as Connection, in lower case."""
    return [member for value in values for part in value.lower().split(b",") if (member := part.strip(b" \t"))]


def head_size(fields: Sequence[Header]) -> int:
    """Bytes that a head takes, as HTTP/2 counts them, and never 0: one without fields is something as well."""
    return FIELD_OVERHEAD + sum([FIELD_OVERHEAD + len(name) + len(value) for name, value in fields])
