"""Upgrades: which protocols a client may change to through us, and what a backend's 101 must say."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable

from trioproxy.errors import UpstreamProtocolError
from trioproxy.http.fields import options
from trioproxy.http.messages import Headers

_NEVER = (b"h2c", b"http", b"tls")
"""Protocols that would carry further requests past our eyes (h2c smuggling), or TLS inside TLS."""


def requested_upgrade(method: bytes, tokens: Iterable[bytes]) -> bytes | None:
    """The protocol to ask the backend for, out of those a request without a body names; None for none of them.

    Args:
        method: Of the request. WebSocket wants GET (RFC 6455 section 4.1).
        tokens: The members of Upgrade in lower case, in the client's order of preference.
    """
    for token in tokens:
        name = token.partition(b"/")[0]
        if name not in _NEVER and (name != b"websocket" or method == b"GET"):
            return token
    return None


def upgrade_as_sent(headers: Headers, token: bytes) -> bytes:
    """The spelling in which the client sent `token`: not every backend compares without regard to case."""
    for name, value in headers:
        if name == b"upgrade":
            for member in value.split(b","):
                if member.strip(b" \t").lower() == token:
                    return member.strip(b" \t")
    return token


def accepted_upgrade(headers: Headers, token: bytes | None) -> bytes:
    """The protocol that a 101 changes to, as the backend wrote it.

    Args:
        headers: Of the 101.
        token: What the client asked for, in lower case.

    Raises:
        UpstreamProtocolError: it names no protocol, or another one (RFC 9110 section 7.8).
    """
    values = [value for name, value in headers if name == b"upgrade"]
    if token is None or options(values) != [token]:
        raise UpstreamProtocolError("101 for a protocol that was not asked for")
    return values[0]


# ---- WebSocket over HTTP/2 ----------------------------------------------------------------------------
#
# RFC 8441 has no key and no answer to it: what the backend's HTTP/1.1 wants of them is between it and us.

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3


def websocket_key(randomness: bytes) -> bytes:
    """The value of Sec-WebSocket-Key, of 16 random bytes."""
    return base64.b64encode(randomness)


def websocket_accept(key: bytes) -> bytes:
    """What a server answers to a key (RFC 6455 section 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
