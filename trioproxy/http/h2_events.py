"""What an HTTP/2 connection tells: calls of whoever listens, each naming its stream."""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

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


class Listener(Protocol):
    """What both roles are told."""

    def on_body(self, stream: int, data: bytes) -> None:
        """A piece of body, never empty, on which flow control waits until `consumed` is told of it."""

    def on_end(self, stream: int, end: End) -> None:
        """The peer's message is whole; `end` holds its trailers."""

    def on_closed(self, stream: int, code: int) -> None:
        """The stream is gone, and its number means nothing more.

        After both messages are through, that is all. Before, whoever works for it has lost its peer: it was reset.

        Args:
            stream: Which one.
            code: Why. NO_ERROR too can come before the messages are through.
        """

    def on_over(self, code: int, reason: str) -> None:
        """The connection has ended: nothing more will be told, and what `outgoing` still has is the last.

        Args:
            code: NO_ERROR after an orderly end.
            reason: What was wrong, for the log.
        """


class ServerListener(Listener, Protocol):
    """What a server is told beside that."""

    def on_request(self, stream: int, head: RequestHead, ended: bool) -> None:
        """The head of a request that has passed every check.

        Args:
            stream: Names it from now on.
            head: The request. An extended CONNECT (RFC 8441) comes as a GET whose `upgrade` is its `:protocol`.
            ended: There is no body; no `on_end` follows.
        """

    def on_refused(self, stream: int, error: RequestError, method: bytes) -> None:
        """A request breaks a rule and can still be answered, with the error's status.

        Args:
            stream: Where to answer.
            error: What is wrong with it.
            method: b"HEAD" gets no body with its answer.
        """


class ClientListener(Listener, Protocol):
    """What a client is told beside that."""

    def on_response(self, stream: int, head: ResponseHead, ended: bool) -> None:
        """The head of a response; heads below 200 come before the final one.

        Args:
            stream: As `ClientCodec.request` returned it.
            head: The response; its version is (2, 0), its reason b"".
            ended: There is no body; no `on_end` follows.
        """
