"""Heads of HTTP/2 messages: fields to our values and back, and every rule that libnghttp2 leaves to its user.

libnghttp2 itself resets a stream whose fields have upper case, characters that are not allowed, pseudo-header fields
doubled, unknown or out of place, connection-specific fields, or a Content-Length that its body does not keep to. What
it lets pass is judged here. What we send is looked at here too, for ngh2 sends whatever it is given.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from trioproxy.config.model import Limits
from trioproxy.errors import InvalidName, RequestError, UpstreamProtocolError
from trioproxy.http.fields import FIELD_OVERHEAD, MAX_REPEATED, TOKEN, FieldError, framing, options
from trioproxy.http.h1_read import MAX_TARGET
from trioproxy.http.messages import Header, Headers, RequestHead, ResponseHead
from trioproxy.names import split_authority

VERSION = (2, 0)

_METHOD = re.compile(TOKEN)
_TARGET = re.compile(rb"/[\x21\x22\x24-\x7e]*")

_CONNECTION_SPECIFIC = frozenset(b"connection keep-alive proxy-connection transfer-encoding upgrade".split())
"""RFC 9113 section 8.2.2. TE is one of them, and may still say `trailers`."""

_JUDGED = _CONNECTION_SPECIFIC | frozenset(
    b":method :scheme :authority :path :protocol host cookie content-length expect te".split()
)

_PSEUDO_FIELDS = frozenset((b":method", b":scheme", b":authority", b":path"))
_PSEUDO = len(_PSEUDO_FIELDS)

_NOT_SENT = _CONNECTION_SPECIFIC | {b"host", b"http2-settings", b"te"}
_TRAILERS_WANTED = (b"te", b"trailers")

_NO_NAME = re.compile(rb"[^!#$%&'*+.^_`|~0-9a-z-]")
_NO_VALUE = re.compile(rb"[^\t\x20-\x7e\x80-\xff]")


class RequestHeads:
    """Reads the heads of the requests of one connection.

    Attributes:
        size: Of the last head, as its sender has to count it.
    """

    __slots__ = ("_authority", "_fields", "_kept", "_limits", "_pseudo", "_size", "size")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._authority: bytes | None = None  # the last one found valid; a connection's requests rarely name another
        self.size = 0
        # Of the last request without a body, if it was a usual one:
        self._pseudo: dict[bytes, bytes] | None = None  # the pseudo-header fields but :path,
        self._fields: Sequence[Header] = ()  # those behind them,
        self._size = 0  # the size of both,
        self._kept: Headers = []  # and what was made of the latter

    def read(self, fields: Sequence[Header], ended: bool) -> RequestHead:
        """The head that `fields` make.

        Args:
            fields: As decoded.
            ended: Whether the stream ends with them.

        Raises:
            RequestError: they break a rule; its status is the answer.
        """
        if ended and fields[_PSEUDO:] == self._fields and (head := self._again(dict(fields[:_PSEUDO]))) is not None:
            return head
        method = scheme = path = authority = protocol = host = b""
        cookies: list[bytes] = []
        lengths: list[bytes] = []
        expect: list[bytes] = []
        size = _size(fields)
        kept = [field for field in fields if field[0] not in _JUDGED]
        for name, value in [field for field in fields if field[0] in _JUDGED]:
            if name == b":method":
                method = value
            elif name == b":path":
                path = value
            elif name == b":scheme":
                scheme = value
            elif name == b":authority":
                authority = value
            elif name == b":protocol":
                protocol = value.lower()
            elif name == b"cookie":
                cookies.append(value)
            elif name == b"content-length":
                lengths.append(value)
            elif name == b"expect":
                expect.append(value)
            elif name == b"host":
                if host:
                    raise RequestError("several Host fields")
                host = value
            elif name == b"te" and options([value]) == [b"trailers"]:
                kept.append((name, value))
            else:
                raise RequestError(f"the field {name.decode()} has no place in HTTP/2")
        self.size = size
        if cookies:
            kept.append((b"cookie", b"; ".join(cookies)))  # RFC 9113 section 8.2.3
        if size > self._limits.header_size or len(kept) > self._limits.header_fields:
            raise RequestError("the header fields are too large or too many", 431)
        if method == b"CONNECT" and protocol:
            method = b"GET"  # the head of the handshake that it stands for (RFC 8441 section 5)
        elif method in (b"CONNECT", b"TRACE"):
            raise RequestError(f"{method.decode()} is not done here", 405)
        elif protocol:
            raise RequestError(":protocol without CONNECT")
        if len(path) > MAX_TARGET:
            raise RequestError("the request target is too long", 414)
        if not _METHOD.fullmatch(method) or scheme.lower() not in (b"https", b"http"):
            raise RequestError("an invalid method or scheme")
        if not _TARGET.fullmatch(path) and not (path == b"*" and method == b"OPTIONS"):
            raise RequestError("an invalid request target")
        if expect and options(expect) != [b"100-continue"]:
            raise RequestError("an expectation that is not met here", 417)
        authority = self._judged(authority, host)
        pseudo = dict(fields[:_PSEUDO])
        if ended and size <= MAX_REPEATED and not host and not protocol and pseudo.keys() == _PSEUDO_FIELDS:
            del pseudo[b":path"]
            self._pseudo, self._fields, self._kept = pseudo, fields[_PSEUDO:], kept
            self._size = size - len(path)
        return RequestHead(
            method,
            path,
            authority,
            kept,
            VERSION,
            0 if ended or protocol else _length(lengths),
            upgrade=protocol or None,
            expect_continue=bool(expect) and not ended,
        )

    def _again(self, pseudo: dict[bytes, bytes]) -> RequestHead | None:
        """The head of a request without a body that says the fields of the last one again, but for its path.

        Clients do that with nearly every request, and what was found good once is not looked at again. None if it does
        not, or if anything is wrong with the path.
        """
        path = pseudo.pop(b":path", b"")
        size = self._size + len(path)
        if pseudo != self._pseudo or len(path) > MAX_TARGET or size > self._limits.header_size:
            return None
        if not _TARGET.fullmatch(path):
            return None
        self.size = size
        return RequestHead(pseudo[b":method"], path, pseudo[b":authority"], self._kept, VERSION)

    def _judged(self, authority: bytes, host: bytes) -> bytes:
        """The authority; Host, if there is one too, must say the same (RFC 9113 section 8.3.1)."""
        named = authority or host
        if named != self._authority:
            _split(named)
            self._authority = named
        if host and host != named and _split(host) != _split(named):
            raise RequestError("Host is not the authority")
        return named


def _size(fields: Collection[Header]) -> int:
    return sum([len(name) + len(value) for name, value in fields]) + FIELD_OVERHEAD * len(fields)


def _split(authority: bytes) -> tuple[str, int | None]:
    try:
        return split_authority(authority.decode("ascii"))
    except (InvalidName, UnicodeDecodeError):
        raise RequestError("an invalid authority") from None


def _length(lengths: list[bytes]) -> int | None:
    try:
        length = framing(lengths, [], VERSION)
    except FieldError as exc:
        raise RequestError(str(exc)) from None
    return None if length is None else int(length)


def read_response(fields: Sequence[Header], method: bytes, ended: bool) -> ResponseHead:
    """The head of a response to a request with `method`; `ended`: the stream ends with it.

    Raises:
        UpstreamProtocolError: it breaks a rule.
    """
    names = [name for name, _ in fields]
    if not _CONNECTION_SPECIFIC.isdisjoint(names):
        name = next(name for name in names if name in _CONNECTION_SPECIFIC)
        raise UpstreamProtocolError(f"the field {name.decode()} has no place in HTTP/2")
    status = b"".join([value for name, value in fields if name == b":status"])
    headers = [field for field in fields if field[0] != b":status"]
    lengths = [value for name, value in fields if name == b"content-length"] if b"content-length" in names else []
    if not (len(status) == 3 and status.isdigit() and status >= b"100") or status == b"101":
        raise UpstreamProtocolError("an invalid status")
    try:
        length = framing(lengths, [], VERSION)
    except FieldError as exc:
        raise UpstreamProtocolError(str(exc)) from None
    code = int(status)
    bodiless = ended or method == b"HEAD" or code < 200 or code in (204, 304)
    return ResponseHead(code, b"", headers, VERSION, 0 if bodiless else None if length is None else int(length))


def fields_to_send(headers: Sequence[Header], *pseudo: bytes) -> Sequence[Header]:
    """A head as HTTP/2 has it: what concerns an HTTP/1 connection is left out, and all is looked at.

    Args:
        headers: Of the message.
        pseudo: The values of its pseudo-header fields, to be looked at as well.

    Raises:
        ValueError: a name or value that HTTP/2 does not allow.
    """
    names, values = zip(*headers, strict=True) if headers else ((), ())
    if not _NOT_SENT.isdisjoint(names):
        headers = [field for field in headers if field[0] not in _NOT_SENT or field == _TRAILERS_WANTED]
        names, values = zip(*headers, strict=True) if headers else ((), ())
    if b"" in names or _NO_NAME.search(b"".join(names)) or _NO_VALUE.search(b"".join((*pseudo, *values))):
        raise ValueError("a name or value that HTTP/2 does not allow")
    return headers
