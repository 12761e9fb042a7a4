"""What an HTTP/2 connection tells: small values, each naming its stream."""

from __future__ import annotations

from enum import IntEnum

import attrs

from trioproxy.errors import RequestError
from trioproxy.http.messages import End, RequestHead, ResponseHead


class Code(IntEnum):
    """Error codes of RST_STREAM and GOAWAY (RFC 9113 section 7); those that we say or look for."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    CONNECT_ERROR = 0xA
    ENHANCE_YOUR_CALM = 0xB
    HTTP_1_1_REQUIRED = 0xD


@attrs.define(slots=True)
class Request:
    """To a server: the head of a request that has passed every check.

    Attributes:
        stream: Names it from now on.
        head: The request. An extended CONNECT (RFC 8441) comes as a GET whose `upgrade` is its `:protocol`.
        ended: There is no body; no End follows.
    """

    stream: int
    head: RequestHead
    ended: bool


@attrs.define(slots=True)
class Refused:
    """To a server: a request that breaks a rule and can still be answered, with the error's status.

    Attributes:
        stream: Where to answer.
        error: What is wrong with it.
        method: b"HEAD" gets no body with its answer.
    """

    stream: int
    error: RequestError
    method: bytes


@attrs.define(slots=True)
class Response:
    """To a client: the head of a response; heads below 200 come before the final one.

    Attributes:
        stream: As `ClientCodec.request` returned it.
        head: The response; its version is (2, 0), its reason b"".
        ended: There is no body; no End follows.
    """

    stream: int
    head: ResponseHead
    ended: bool


@attrs.define(slots=True)
class Body:
    """A piece of body, never empty, on which flow control waits until `consumed` is told of it."""

    stream: int
    data: bytes


@attrs.define(slots=True)
class Ended:
    """The peer's message is whole; `end` holds its trailers."""

    stream: int
    end: End


@attrs.define(slots=True)
class Closed:
    """The stream is gone, and its number means nothing more.

    After both messages are through, that is all. Before, whoever works for it has lost its peer: it was reset.

    Attributes:
        stream: Which one.
        code: Why. NO_ERROR too can come before the messages are through.
        ours: It was `reset` on this side.
    """

    stream: int
    code: int
    ours: bool


@attrs.define(slots=True)
class GoingAway:
    """The peer takes no stream after `last`; those above, that it has not looked at, are told as Closed."""

    last: int
    code: int


@attrs.define(slots=True)
class Over:
    """The connection has ended: nothing more will be read or told, and what `outgoing` still has is the last.

    Attributes:
        code: NO_ERROR after an orderly end.
        reason: What was wrong, for the log.
    """

    code: int
    reason: str


Event = Request | Refused | Response | Body | Ended | Closed | GoingAway | Over
