"""Fields of requests as backends get them, and how a client that repeats itself is spared the writing.

Most clients say the same fields with request after request of a connection. The readers of heads notice that, and then
give out the very list that they gave out before (`RequestReader`, `RequestHeads`); so here nothing is compared but
which object it is.
"""

from __future__ import annotations

from trioproxy.http.forwarded import Arrival
from trioproxy.http.h1_write import encode_fields
from trioproxy.http.headers import METHODS_WITH_BODY, request_headers
from trioproxy.http.messages import Headers, RequestHead


class WrittenFields:
    """Fields to be sent, which HTTP/1.1 writes at most once, however often it sends them.

    Attributes:
        headers: The fields, for HTTP/2. They stay as they are.
    """

    __slots__ = ("_block", "headers")

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self._block = b""

    def block(self) -> bytes:
        """The lines of HTTP/1.1, with the empty one. Raises ValueError when a part holds CR, LF or NUL."""
        block = self._block
        if not block:
            block = self._block = encode_fields(self.headers)
        return block


class Rewriter:
    """`request_headers` for the requests of one connection."""

    __slots__ = ("_arrival", "_authority", "_fields", "_prefix", "_pseudonym", "_written")

    def __init__(self, arrival: Arrival, pseudonym: bytes) -> None:
        self._arrival = arrival
        self._pseudonym = pseudonym
        self._fields: Headers | None = None  # of the last request that asked for nothing special,
        self._authority = b""  # its authority
        self._prefix: bytes | None = None  # and what it was to be told of its path,
        self._written = WrittenFields([])  # and what that came to

    def written(self, head: RequestHead, prefix: bytes | None) -> WrittenFields:
        """The fields for a backend. `prefix` and what is raised are as with `request_headers`."""
        plain = _asks_for_nothing_more(head)
        if plain and head.headers is self._fields and head.authority == self._authority and prefix == self._prefix:
            return self._written
        written = WrittenFields(request_headers(head, self._arrival, prefix, self._pseudonym))
        if plain:
            self._fields, self._authority, self._prefix, self._written = head.headers, head.authority, prefix, written
        return written


def _asks_for_nothing_more(head: RequestHead) -> bool:
    """Whether what is written for `head` follows from its fields, its authority and its connection alone."""
    if head.body_length != 0 or head.method in METHODS_WITH_BODY:
        return False
    return not (head.upgrade or head.expect_continue or head.http_version == (1, 0))
