"""The fields of a message on its way through us: what goes, what stays, what we add.

The order is always the same: first everything is taken out that concerned the hop that ends here or that only we may
say, then ours is put in. So nothing that a client names in Connection can remove what we add, and nothing that it
makes up survives beside it.
"""

from __future__ import annotations

import functools
import html
import string
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import Enum
from http import HTTPStatus

from trioproxy.errors import RequestError
from trioproxy.http.fields import options
from trioproxy.http.forwarded import Arrival as Arrival  # part of what these functions are called with
from trioproxy.http.forwarded import extended
from trioproxy.http.messages import Header, Headers, RequestHead, ResponseHead
from trioproxy.http.upgrade import accepted_upgrade, upgrade_as_sent

_HOP_BY_HOP = frozenset(
    b"""
    connection keep-alive proxy-connection proxy-authenticate proxy-authorization proxy-authentication-info
    te transfer-encoding upgrade http2-settings
    """.split()
)
"""RFC 9110 section 7.6.1 and 11.7, RFC 7540 section 3.2.1. Trailer is none of them: it announces what we do pass on."""

# Framing and Via are written anew. Proxy is a field that no one sends but to set HTTP_PROXY in a CGI (CVE-2016-5385).
_FROM_US = frozenset(b"content-length host expect via forwarded x-real-ip proxy".split())

_NOT_FROM_CLIENTS = _HOP_BY_HOP | _FROM_US
_FORWARDING = b"x-forwarded"
_NEXT_FORWARDING = b"\n" + _FORWARDING
_NOT_FROM_BACKENDS = _HOP_BY_HOP | {b"content-length", b"via"}

# Gateways from HTTP to environment variables know no difference between these, so a name is judged as they see it.
# No name holds a line feed, which therefore may stand between two of them.
_FOLDED = bytes(c if chr(c) in string.ascii_lowercase + string.digits + "\n" else ord("-") for c in range(256))

_USUAL_OPTIONS = frozenset((b"keep-alive", b"close", b"upgrade", b"te", b"http2-settings"))
METHODS_WITH_BODY = frozenset((b"POST", b"PUT", b"PATCH"))
"""Methods that say how long their body is even when there is none (RFC 9110 section 8.6)."""

_NOT_IN_TRAILERS = _NOT_FROM_CLIENTS | frozenset(
    b"""
    trailer max-forwards range if-match if-none-match if-modified-since if-unmodified-since if-range
    cache-control pragma age date expires location retry-after vary warning
    authorization www-authenticate authentication-info cookie set-cookie
    content-encoding content-type content-range content-location
    """.split()
)


class Framing(Enum):
    """How a response's body goes out to the client."""

    EMPTY = "empty"
    """Nothing follows the head, whatever Content-Length it carries."""
    LENGTH = "length"
    CHUNKED = "chunked"
    UNTIL_CLOSE = "until close"
    """As it comes, and closing the connection ends it."""


def request_headers(head: RequestHead, arrival: Arrival, prefix: bytes | None, pseudonym: bytes) -> Headers:
    """The fields of a request to a backend, Host first.

    The body is framed by `head.body_length`: that many bytes, or chunks when it is None. Expect goes on, and the
    backend's 100 comes back: only the backend knows whether it wants the body.

    Args:
        head: The client's request.
        arrival: Where it came from. Only a trusted proxy's forwarding fields are believed.
        prefix: For X-Forwarded-Prefix, where the backend sees a path that lacks it.
        pseudonym: Our name in Via, of this process alone, so that meeting it again is a loop.

    Raises:
        RequestError: 508, the request has been here before.
    """
    named: set[bytes] = set()
    received = b""
    length_sent = trailers_wanted = False
    kept: Headers = [(b"host", head.authority), *head.headers]
    # All names in one go: they are looked through one by one only where there is something to find.
    names = b"\n".join([name for name, _ in kept]).translate(_FOLDED)
    folded = names.split(b"\n")
    if names.find(_NEXT_FORWARDING) >= 0 or not _NOT_FROM_CLIENTS.isdisjoint(folded[1:]):
        del kept[1:]
        for field, name in zip(head.headers, folded[1:], strict=True):
            if name in _NOT_FROM_CLIENTS:
                name, value = field
                if name == b"connection":
                    named.update(options([value]))
                elif name == b"via":
                    received += value + b", "
                elif name == b"content-length":
                    length_sent = True
                elif name == b"te":
                    trailers_wanted = trailers_wanted or b"trailers" in options([value])
            elif not name.startswith(_FORWARDING):
                kept.append(field)
        if not named <= _USUAL_OPTIONS:
            kept[1:] = [field for field in kept[1:] if field[0] not in named]
    if received and pseudonym in received.replace(b",", b" ").split():
        raise RequestError("the request comes back to this proxy", 508)

    if arrival.trusted:
        kept += extended(head, arrival, prefix)
    else:
        kept += arrival.fields
        forwarded = arrival.forwarded
        if head.authority:
            kept.append((b"x-forwarded-host", head.authority))
            forwarded += b';host="%b"' % head.authority
        kept.append((b"forwarded", forwarded))
        if prefix is not None:
            kept.append((b"x-forwarded-prefix", prefix))
    kept.append((b"via", received + _via(head.http_version, pseudonym)))

    if head.expect_continue:
        kept.append((b"expect", b"100-continue"))
    if head.upgrade is not None:
        kept += [(b"connection", b"upgrade"), (b"upgrade", upgrade_as_sent(head.headers, head.upgrade))]
    elif trailers_wanted:
        kept += [(b"connection", b"te"), (b"te", b"trailers")]  # RFC 9110 section 10.1.4 wants both
    if head.body_length is None:
        kept.append((b"transfer-encoding", b"chunked"))
    elif head.body_length or length_sent or head.method in METHODS_WITH_BODY:
        kept.append((b"content-length", b"%d" % head.body_length))
    return kept


def response_headers(
    head: ResponseHead, request: RequestHead, *, pseudonym: bytes, date: bytes, close: bool
) -> tuple[Headers, Framing]:
    """The fields of a response to an HTTP/1 client, and how its body is to be sent.

    Also for heads below 200, which must not be sent to an HTTP/1.0 client at all (RFC 9110 section 15.2).

    Args:
        head: The backend's response.
        request: The client's request.
        pseudonym: Our name in Via.
        date: For Date, when the backend sent none.
        close: Whether this connection ends after the response. It does in any case when the request was its
            last (`request.keep_alive`) or the framing is UNTIL_CLOSE.

    Raises:
        UpstreamProtocolError: a 101 that changes to another protocol than the client asked for.
    """
    kept, length_sent, dated = _passed_on(head, pseudonym)
    status = head.status
    if status < 200:
        if status == 101:
            kept += [(b"connection", b"upgrade"), (b"upgrade", accepted_upgrade(head.headers, request.upgrade))]
        return kept, Framing.EMPTY
    if not dated:
        kept.append((b"date", date))
    if request.method == b"HEAD" or status in (204, 304):
        framing = Framing.EMPTY
        if length_sent and status != 204:  # RFC 9110 section 8.6 forbids it there
            kept.append((b"content-length", length_sent))
    elif head.body_length is not None:
        framing = Framing.LENGTH
        kept.append((b"content-length", b"%d" % head.body_length))
    elif request.http_version == (1, 1):
        framing = Framing.CHUNKED
        kept.append((b"transfer-encoding", b"chunked"))
    else:
        framing = Framing.UNTIL_CLOSE
    if close or not request.keep_alive or framing is Framing.UNTIL_CLOSE:
        kept.append((b"connection", b"close"))
    elif request.http_version == (1, 0):
        kept.append((b"connection", b"keep-alive"))
    return kept, framing


def response_headers_h2(
    head: ResponseHead, request: RequestHead, *, pseudonym: bytes, date: bytes
) -> tuple[Headers, bool]:
    """The fields of a response to an HTTP/2 client, and whether the message ends with them.

    Args:
        head: The backend's response, or a head below 200.
        request: The client's request.
        pseudonym: Our name in Via.
        date: For Date, when the backend sent none.
    """
    kept, length_sent, dated = _passed_on(head, pseudonym)
    status = head.status
    if status < 200:
        return kept, False
    if not dated:
        kept.append((b"date", date))
    bodiless = request.method == b"HEAD" or status in (204, 304)
    if not bodiless and head.body_length is not None:
        length_sent = b"%d" % head.body_length
    if length_sent and status != 204:
        kept.append((b"content-length", length_sent))
    return kept, bodiless or head.body_length == 0


def _passed_on(head: ResponseHead, pseudonym: bytes) -> tuple[Headers, bytes, bool]:
    """The fields that go on, with our Via; the Content-Length that came; and whether there is a Date."""
    said = dict(head.headers)
    dated = b"date" in said
    kept = [field for field in head.headers if field[0] not in _NOT_FROM_BACKENDS]
    if b"connection" in said:
        named = options([value for name, value in head.headers if name == b"connection"])
        if not _USUAL_OPTIONS.issuperset(named):
            kept = [field for field in kept if field[0] not in named]
            dated = dated and b"date" not in named
    via = _via(head.http_version, pseudonym)
    if b"via" in said:
        via = b", ".join([*(value for name, value in head.headers if name == b"via"), via])
    kept.append((b"via", via))
    return kept, said.get(b"content-length", b""), dated


def clean_trailers(trailers: Iterable[Header]) -> list[Header]:
    """The trailer fields that may be passed on: none that frame, route, authorise or change a message's meaning.

    RFC 9110 section 6.5.1; what only we may say and its look-alikes are dropped as in heads.
    """
    return [
        field
        for field in trailers
        if (name := field[0].translate(_FOLDED)) not in _NOT_IN_TRAILERS and not name.startswith(_FORWARDING)
    ]


def reason_phrase(status: int) -> bytes:
    """The usual phrase of a status, b"" for one that has none."""
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


def error_page(status: int, text: str) -> tuple[Headers, bytes]:
    """A small HTML page for an answer of our own: its fields, and the body (which HEAD leaves out).

    Args:
        status: The answer's status.
        text: What happened, for people; it is escaped.
    """
    title = f"{status} {reason_phrase(status).decode()}".rstrip()
    body = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f"<title>{title}</title>\n<h1>{title}</h1>\n<p>{html.escape(text)}</p>\n</html>\n"
    ).encode()
    return [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ], body


_DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]


def http_date(timestamp: float) -> bytes:
    """The value of Date (RFC 9110 section 5.6.7) at a Unix time; strftime() would write it in the locale's language."""
    at = datetime.fromtimestamp(timestamp, UTC)
    return (
        f"{_DAYS[at.weekday()]}, {at.day:02} {_MONTHS[at.month - 1]} {at.year:04} "
        f"{at.hour:02}:{at.minute:02}:{at.second:02} GMT"
    ).encode()


@functools.cache  # three versions, and one pseudonym a process
def _via(version: tuple[int, int], pseudonym: bytes) -> bytes:
    return b"%d.%d %b" % (*version, pseudonym)
