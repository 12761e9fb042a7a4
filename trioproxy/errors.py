"""Every error that trioproxy raises on purpose.

Each error carries its own answer: a TLS alert where a handshake fails, an HTTP status where a request
does. Whoever catches one only sends what the error says, so the choice is made where the reason is known.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import attrs


class TrioproxyError(Exception):
    """The root: catching this catches what trioproxy itself raises, and no bug."""


# ---- configuration ------------------------------------------------------------------------------------


@attrs.frozen
class Mistake:
    """One thing that is wrong in a configuration file.

    Attributes:
        line: Where it stands, counted from 1; 0 when it has no line (a missing file).
        key: The dotted key as the user wrote it, or "" for the file as a whole.
        problem: What is wrong and what would be right, in one sentence.
    """

    line: int
    key: str
    problem: str


class ConfigError(TrioproxyError):
    """A configuration file that cannot be used; it holds all of the file's mistakes."""

    def __init__(self, path: Path, mistakes: tuple[Mistake, ...]) -> None:
        self.path = path
        self.mistakes = mistakes
        super().__init__("\n".join(self.lines()))

    def lines(self) -> list[str]:
        """One line for each mistake, `config.toml:9: sites.cloud: quote the host name`."""
        return [
            f"{self.path}{f':{m.line}' if m.line else ''}: {f'{m.key}: ' if m.key else ''}{m.problem}"
            for m in self.mistakes
        ]


class InvalidName(TrioproxyError, ValueError):
    """A text that is no host name."""


# ---- before TLS ---------------------------------------------------------------------------------------


class HelloError(TrioproxyError):
    """A connection whose first bytes lead nowhere.

    `alert` is the TLS AlertDescription (RFC 8446, section 6) to answer with; None when the peer does not
    speak TLS and gets no answer but the end of the connection.
    """

    alert: int | None = 50  # decode_error

    def __init__(self, reason: str = "", alert: int | None = None) -> None:
        super().__init__(reason)
        if alert is not None:
            self.alert = alert


class NotTLS(HelloError):
    """The first bytes are no TLS record that could hold a ClientHello: SSLv2, HTTP, noise."""

    alert = None


class MalformedHello(HelloError):
    """A ClientHello that breaks the grammar of RFC 8446 section 4.1.2, or is larger than we read."""


class BadServerName(HelloError):
    """A server_name extension that holds no usable host name."""

    alert = 47  # illegal_parameter


class UnknownServerName(HelloError):
    """A good name that is configured nowhere."""

    alert = 112  # unrecognized_name, RFC 6066 section 3


class MissingServerName(HelloError):
    """No name at all, where `listen.no_sni` names no entry for such clients."""

    alert = 109  # missing_extension: RFC 8446 section 9.2 asks for this one


class AccessDenied(HelloError):
    """A client that the entry's `allow` and `deny` keep out."""

    alert = 49  # access_denied


class HelloTimeout(HelloError):
    """The ClientHello was not complete within `timeouts.hello`."""

    alert = 50


class TruncatedHello(HelloError):
    """The peer ended its direction before its ClientHello was complete."""

    alert = None


class SilentPeer(HelloError):
    """A peer that sent nothing at all, until it left or its time was up: a port scan, a browser's spare connection."""

    alert = None


class BadProxyHeader(HelloError):
    """A PROXY header that is missing where it is due, or that breaks its format. It gets no answer."""

    alert = None


# ---- connections --------------------------------------------------------------------------------------


class StreamError(TrioproxyError):
    """A connection that can carry nothing more; raised by `net` alone."""


class ConnectionLost(StreamError):
    """The peer reset the connection, the network lost it, or TLS broke."""


class HandshakeFailed(ConnectionLost):
    """The peer and we did not agree on TLS: a version, a cipher, a certificate. It did not merely go away."""


class ClientLeft(StreamError):
    """The client ended its connection while a backend was to be waited for on its behalf."""


class StreamTimeout(StreamError):
    """The stream's own deadline passed while it waited."""


class StreamInterrupted(StreamError):
    """Somebody of ours asked the stream to stop waiting: the server is draining."""


class ConnectionShed(StreamInterrupted):
    """It was idle, and had to make room for another connection."""


class ListenError(TrioproxyError):
    """A listener that could not be bound; the message names who holds the port."""


# ---- requests -----------------------------------------------------------------------------------------


class RequestError(TrioproxyError):
    """A request that is answered by us, with `status` and the header `fields`, and reaches no backend."""

    status = 400
    fields: tuple[tuple[bytes, bytes], ...] = ()

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        if status is not None:
            self.status = status


class UpstreamError(TrioproxyError):
    """A backend that did not do its part, before anything of its answer was passed on.

    The client is answered with `status` and the header `fields`.
    """

    status = 502
    fields: tuple[tuple[bytes, bytes], ...] = ()


class Unanswered(UpstreamError):
    """A request of which the backend has said nothing, because the connection, or its room for requests, was at an end.

    Attributes:
        untouched: The backend has assured that it did nothing with the request (RFC 9113 section 8.7), so that any
            request may be sent again; else only one that may be done twice.
    """

    def __init__(self, reason: str, *, untouched: bool = False) -> None:
        super().__init__(reason)
        self.untouched = untouched


class NoBackendLeft(UpstreamError):
    """All backends of a route have failed, now or a moment ago; `fields` say when to ask again."""

    status = 503

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.fields = ((b"retry-after", b"%d" % max(1, math.ceil(seconds))),)


class UpstreamProtocolError(UpstreamError):
    """A backend whose answer is no valid HTTP."""


class UpstreamUnreachable(UpstreamError):
    """A backend whose name does not resolve, or that refuses connections, or whose TLS fails."""


class Untrusted(UpstreamUnreachable):
    """A backend whose certificate is not one that its route trusts."""


class OutOfDescriptors(UpstreamError):
    """A backend that was not called, because this process or machine has no descriptor or memory left for it."""


class CannotBeClient(UpstreamError):
    """A backend that was not called, because it could not be called from the client's own address."""


class UpstreamTimeout(UpstreamError):
    """A backend that stayed silent for longer than `timeouts.connect` or `timeouts.response`."""

    status = 504


class ResponseAborted(TrioproxyError):
    """The response broke off after its head went out: the client's connection must not look complete."""


# ---- certificates -------------------------------------------------------------------------------------


class CertificateError(TrioproxyError):
    """A key and certificate that do not load, do not fit each other, or do not fit the name."""


class StoreError(TrioproxyError):
    """The storage folder cannot be read or written; the message names the path and the cause."""


AcmeFailure = Literal[
    "validation", "dns", "caa", "limit", "account", "unreachable", "refused", "nonsense", "unfinished"
]
"""What kept an order from succeeding, as far as that decides what is done about it.

`validation`, `dns`, `caa`: the CA looked for the answer to a challenge and did not find it, found no address for the
name, or is forbidden to issue for it; CAs count all three, and none passes by itself. `limit`: one of the CA's limits;
its `retry_after` outranks every habit. `account`: the CA does not let the account do anything, so it concerns every
name. `unreachable`: the network's trouble, or the CA's own, which concerns every name there and costs nothing.
`refused`: any other refusal. `nonsense`: the CA's answer is not what RFC 8555 says. `unfinished`: the CA works on
the order for longer than an attempt may take; the order is kept.
"""


class AcmeError(TrioproxyError):
    """An order that did not succeed; the message says why in words for the user.

    Attributes:
        failure: What kind of failure it is.
        retry_after: Seconds that the CA asked to wait before another attempt; None when it asked for nothing.
    """

    def __init__(self, message: str, failure: AcmeFailure = "refused", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.failure: AcmeFailure = failure
        self.retry_after = retry_after

    @property
    def validation_failed(self) -> bool:
        """Whether the CA counts it as a validation that failed."""
        return self.failure in ("validation", "dns", "caa")

    @property
    def rate_limited(self) -> bool:
        """Whether the CA refused because of one of its limits."""
        return self.failure == "limit"


# ---- commands -----------------------------------------------------------------------------------------


class ControlError(TrioproxyError):
    """The running server could not be asked, or refused what was asked."""
