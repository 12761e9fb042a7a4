"""Readers of HTTP/1.1 and 1.0: requests from clients, responses from backends. Strict, and without I/O.

A reader answers every `next()` with an event, with None for "more data", or with an error after which it is broken and
the connection good for nothing but the error's answer. How bytes are kept and bodies read is told in `h1_body`;
here are the heads: the first line by a regular expression, the fields by llhttp, then our policy.
"""

from __future__ import annotations

import re
from typing import Literal, NoReturn

from trioproxy.config.model import Limits
from trioproxy.errors import InvalidName, RequestError, UpstreamProtocolError
from trioproxy.http.fields import MAX_REPEATED, TOKEN, FieldError, framing, head_size, options, parse_fields
from trioproxy.http.h1_body import BROKEN, END, HEAD, STOPPED, MessageReader
from trioproxy.http.messages import End, Headers, RequestHead, ResponseHead
from trioproxy.http.upgrade import requested_upgrade
from trioproxy.names import split_authority

MAX_TARGET = 8 * 1024
"""Bytes in a request target; RFC 9112 section 3 wants at least 8000 to be possible."""

BACKEND_LIMITS = Limits(header_size=128 * 1024, header_fields=500)
"""Backends are ours and may set many cookies; this only keeps a broken one from filling our memory. The heads below 200
of a response share one such size: they are passed on as they come, and the client need not take them as fast."""

_REQUEST_LINE = re.compile(rb"(" + TOKEN + rb") ([\x21\x22\x24-\x7e]+) HTTP/1\.([01])\r\n")
_ABSOLUTE_FORM = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\r\n")

_REQUEST_POLICY = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"expect"))
_RESPONSE_POLICY = frozenset((b"content-length", b"transfer-encoding", b"connection"))

_NOT_DONE = frozenset((b"CONNECT", b"TRACE"))
_SLASH = ord("/")

_GOVERN_NOTHING = {b"host", b"connection"}
"""Of what is judged of a request that another one follows on its connection: the first is, with its authority, and the
second can have said nothing but that without an Upgrade."""
_VERSIONS = {b"0": (1, 0), b"1": (1, 1)}


class RequestReader(MessageReader[RequestHead]):
    """Reads the requests of one client connection.

    `next()` gives a RequestHead, the body's pieces, an End, and then the same for the next request. It reads no
    further than it is asked to, so pipelined requests wait, and what follows an upgrade stays for `rest()`.

    Attributes:
        closed: No further request will come: the client closed between requests, or its last one said so.

    Raises:
        RequestError: from `next()`; its status is the answer, and the connection must be closed after it.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.closed = False
        self._empty_line_seen = False
        self._keep_alive = True
        self._host: bytes | None = None  # the last one found valid; a connection's requests rarely name another
        self._plain_block = b""  # the last fields that govern nothing but the host,
        self._plain_fields: Headers = []  # what they are without it,
        self._plain_authority = b""  # and the host

    def _refuse(self, reason: str, status: int | None = None) -> NoReturn:
        self._state = BROKEN
        raise RequestError(reason, status)

    def _too_large(self, head: bytearray) -> NoReturn:
        if self._state == HEAD and b"\r\n" not in head:
            self._refuse("the request line is too long", 414)
        self._refuse("the header fields are too large", 431)

    def _ended(self) -> None:
        self._empty_line_seen = False
        if self._keep_alive:
            self._state = HEAD
        else:
            self._state = STOPPED
            self.closed = True

    def _at_eof(self) -> RequestHead | bytes | End | None:
        if self._state == HEAD and not self._partial:
            self.closed = True
            self._state = STOPPED
            return None
        return super()._at_eof()

    def _read_head(self) -> RequestHead | None:
        if (self._partial or self._data[self._pos : self._pos + 1]) == b"\r" and not self._skip_empty_line():
            return None
        head = self._take_block(self._limits.header_size)
        if head is None:
            return None
        line = _REQUEST_LINE.match(head)
        if line is None:
            # 400 and not 505 for another version too: what is behind such a line need not be framed as we think.
            self._refuse("an invalid request line, or an HTTP version that is not spoken here")
        method, target, minor = line.groups()
        if len(target) > MAX_TARGET:
            self._refuse("the request target is too long", 414)
        block = head[line.end() :]
        if block == self._plain_block and minor == b"1" and target[0] == _SLASH and method not in _NOT_DONE:
            # Word for word what the last request had: to be read, and judged, as then.
            self._keep_alive = True
            self._state = END
            return RequestHead(method, target, self._plain_authority, self._plain_fields)
        try:
            return self._judge(method, target, _VERSIONS[minor], block)
        except FieldError as exc:
            self._refuse(str(exc))

    def _skip_empty_line(self) -> bool:
        """RFC 9112 section 2.2: one empty line before a request is ignored. False when it ends the input."""
        start = bytes(self._partial) + self._data[self._pos : self._pos + 2 - len(self._partial)]
        if start == b"\r":
            self._partial += self._data[self._pos :]
            self._pos = len(self._data)
            return False
        if start != b"\r\n" or self._empty_line_seen:
            self._refuse("an invalid request line")
        self._empty_line_seen = True
        self._pos += 2 - len(self._partial)
        self._partial.clear()
        return self._pos < len(self._data)

    def _judge(self, method: bytes, target: bytes, version: tuple[int, int], block: bytes) -> RequestHead:
        fields = parse_fields(block)
        if len(fields) > self._limits.header_fields:
            self._refuse("too many header fields", 431)
        said: dict[bytes, list[bytes]] = {}
        for name, value in [field for field in fields if field[0] in _REQUEST_POLICY]:
            said.setdefault(name, []).append(value)
        hosts = said.get(b"host", [])
        expect = said.get(b"expect")
        framed: int | Literal["chunked"] = 0
        if b"content-length" in said or b"transfer-encoding" in said:
            framed = framing(said.get(b"content-length", []), said.get(b"transfer-encoding", []), version) or 0
        authority = self._authority(hosts, version)
        if method in _NOT_DONE:
            self._refuse(f"{method.decode()} is not done here", 405)
        if not target.startswith(b"/"):
            target, authority = self._other_form(method, target, authority)
        if hosts:
            fields.remove((b"host", hosts[0]))
            plain = said.keys() <= _GOVERN_NOTHING and version == (1, 1) and target[0] == _SLASH
            if plain and len(block) <= MAX_REPEATED:
                self._plain_block, self._plain_fields, self._plain_authority = block, fields, hosts[0]
        wishes = options(said[b"connection"]) if b"connection" in said else []
        keep_alive = b"close" not in wishes and (version == (1, 1) or b"keep-alive" in wishes)
        upgrade = None
        if b"upgrade" in said and framed == 0 and version == (1, 1) and b"upgrade" in wishes:
            upgrade = requested_upgrade(method, options(said[b"upgrade"]))
        if expect and options(expect) != [b"100-continue"]:
            self._refuse("an expectation that is not met here", 417)
        self._keep_alive = keep_alive
        length = self._await_body(framed)
        return RequestHead(
            method,
            target,
            authority,
            fields,
            version,
            length,
            keep_alive,
            upgrade,
            # RFC 9110 section 10.1.1: to be ignored from HTTP/1.0, and pointless without a body.
            bool(expect) and version == (1, 1) and length != 0,
        )

    def _authority(self, hosts: list[bytes], version: tuple[int, int]) -> bytes:
        if len(hosts) != 1:
            if not hosts and version == (1, 0):
                return b""
            self._refuse("Host is missing" if not hosts else "several Host fields")
        host = hosts[0]
        if host != self._host:
            self._split(host)
            self._host = host
        return host

    def _split(self, authority: bytes) -> tuple[str, int | None]:
        try:
            return split_authority(authority.decode("ascii"))
        except (InvalidName, UnicodeDecodeError):
            self._refuse("an invalid host")

    def _other_form(self, method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes]:
        """Target and authority of a request in asterisk or absolute form (RFC 9112 section 3.2)."""
        if target == b"*" and method == b"OPTIONS":
            return target, host
        absolute = _ABSOLUTE_FORM.fullmatch(target)
        if absolute is None:
            self._refuse("an invalid request target")
        authority, path = absolute.groups()
        # The sender has to write both alike; two names for one request are never a choice of ours.
        if self._split(authority) != self._split(host or authority):
            self._refuse("Host is not the target's")
        if not path:
            path = b"*" if method == b"OPTIONS" else b"/"
        elif path.startswith(b"?"):
            path = b"/" + path
        return path, host or authority


class ResponseReader(MessageReader[ResponseHead]):
    """Reads the responses of one backend connection.

    Before each, `expect()` says what was asked. `next()` then gives heads below 200, if there are any, without End;
    the final head; the body's pieces; an End. After a 101 the reader stops, and `rest()` has what followed.

    Raises:
        UpstreamProtocolError: from `next()`; the connection is good for nothing more.
    """

    def __init__(self, limits: Limits = BACKEND_LIMITS) -> None:
        super().__init__(limits)
        self._method = b""
        self._upgrade = False
        self._keep_alive = True
        self._interim = 0  # bytes of heads below 200, of the awaited response
        self._state = STOPPED

    def expect(self, method: bytes, upgrade: bool = False) -> None:
        """Await the response to a request.

        Args:
            method: Of the request; the response to HEAD has no body.
            upgrade: Whether the request asked for an upgrade, so that 101 is an answer.

        Raises:
            UpstreamProtocolError: the backend sent something before it was asked, which must not be taken
                for the answer, or the connection carries no further request.
        """
        if not self.reusable:
            self._refuse("the backend's connection is not at a message's beginning")
        self._method = method
        self._upgrade = upgrade
        self._interim = 0
        self._state = HEAD

    @property
    def reusable(self) -> bool:
        """Whether the connection can carry another request: between messages, kept alive, and nothing unread."""
        return self._state == STOPPED and self._keep_alive and not self._eof and not self.unread

    def rest(self) -> bytes:
        """Everything fed and not consumed, taken out: what a backend sent behind its 101. The reader then stops."""
        self._keep_alive = False
        return super().rest()

    def _refuse(self, reason: str, status: int | None = None) -> NoReturn:  # noqa: ARG002 - it is always 502
        self._state = BROKEN
        raise UpstreamProtocolError(reason)

    def _too_large(self, head: bytearray) -> NoReturn:  # noqa: ARG002 - only requests are told why
        self._refuse("the header fields are too large")

    def _ended(self) -> None:
        self._state = STOPPED

    def _read_head(self) -> ResponseHead | None:
        head = self._take_block(self._limits.header_size)
        if head is None:
            return None
        line = _STATUS_LINE.match(head)
        if line is None:
            self._refuse("an invalid status line")
        minor, code, reason = line.groups(b"")
        try:
            return self._judge(int(code), reason, _VERSIONS[minor], parse_fields(head[line.end() :]))
        except FieldError as exc:
            self._refuse(str(exc))

    def _judge(self, status: int, reason: bytes, version: tuple[int, int], fields: Headers) -> ResponseHead:
        if len(fields) > self._limits.header_fields:
            self._refuse("too many header fields")
        said: dict[bytes, list[bytes]] = {}
        for name, value in [field for field in fields if field[0] in _RESPONSE_POLICY]:
            said.setdefault(name, []).append(value)
        framed: int | Literal["chunked", "to end"] | None
        framed = framing(said.get(b"content-length", []), said.get(b"transfer-encoding", []), version)
        wishes = options(said[b"connection"]) if b"connection" in said else []
        keep_alive = b"close" not in wishes and (version == (1, 1) or b"keep-alive" in wishes)
        if status < 200:
            if status == 101:
                if not self._upgrade:
                    self._refuse("101 without a request to upgrade")
                self._state = STOPPED
                self._keep_alive = keep_alive = False
            self._interim += head_size(fields)
            if self._interim > self._limits.header_size:
                self._refuse("heads below 200 without end")
            return ResponseHead(status, reason, fields, version, 0, keep_alive)
        if self._method == b"HEAD" or status in (204, 304):
            if status == 204 and framed:
                keep_alive = False  # it has no body, but its sender seems to think otherwise
            framed = 0
        elif framed is None:
            keep_alive = False
            framed = "to end"
        length = self._await_body(framed)
        self._keep_alive = keep_alive
        return ResponseHead(status, reason, fields, version, length, keep_alive)
