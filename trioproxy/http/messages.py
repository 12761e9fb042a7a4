"""What an HTTP message is to the rest of the house, whichever version carried it.

Codecs turn bytes into these values and back; `proxy/exchange.py` moves them from one side to the other and
never learns whether it was HTTP/1.1 or HTTP/2. A message is a head, then pieces of body (`bytes`, never empty),
then one `End`.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs

Header = tuple[bytes, bytes]
"""A field: its name in lower case, its value without surrounding white space."""

Headers = list[Header]


@attrs.define(slots=True, eq=True)
class RequestHead:
    """A request before its body.

    Attributes:
        method: As sent; methods are case-sensitive.
        target: Path and query, byte for byte as sent, beginning with "/" (or "*" for OPTIONS).
        authority: Host and port as the client named them, from Host, the absolute form or `:authority`.
        headers: All fields but Host, in order.
        http_version: (1, 0), (1, 1) or (2, 0).
        body_length: Bytes of the body when known (0: there is none), None when it is delimited by framing.
        keep_alive: Whether this connection may carry another request (HTTP/1 only).
        upgrade: The protocol asked for by Connection and Upgrade, in lower case, or by `:protocol`; None.
        expect_continue: The client waits for 100 Continue before it sends the body.
    """

    method: bytes
    target: bytes
    authority: bytes
    headers: Headers
    http_version: tuple[int, int] = (1, 1)
    body_length: int | None = 0
    keep_alive: bool = True
    upgrade: bytes | None = None
    expect_continue: bool = False


@attrs.define(slots=True, eq=True)
class ResponseHead:
    """A response before its body; 1xx ones have no body and are followed by another head.

    Attributes:
        status: 100 to 599 (999 at most, as some backends send).
        reason: The reason phrase, b"" when there is none.
        headers: All fields, in order; framing fields (Content-Length, Transfer-Encoding) included as sent.
        body_length: Bytes when known (0: there is none), None when it is chunked or ends with the connection.
        keep_alive: Whether this backend connection may carry another request afterwards.
    """

    status: int
    reason: bytes
    headers: Headers
    http_version: tuple[int, int] = (1, 1)
    body_length: int | None = 0
    keep_alive: bool = True


@attrs.frozen(slots=True)
class End:
    """The end of a message, with the trailer fields that came."""

    trailers: Sequence[Header] = ()


END = End()
"""An end without trailers, as nearly all are."""


Event = RequestHead | ResponseHead | bytes | End
