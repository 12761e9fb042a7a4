"""Upgrades: which protocols a client may change to through us, and what a backend's 101 must say."""

from __future__ import annotations

from collections.abc import Iterable

_NEVER = (b"h2c", b"http", b"tls")
"""Protocols that would carry further requests past our eyes (h2c smuggling), or TLS inside TLS."""


def requested_upgrade(method: bytes, tokens: Iterable[bytes]) -> bytes | None:
    """The protocol to ask the backend for, out of those a request without a body names; None for none of them.

    Args:
        method: Of the request. WebSocket wants GET (RFC 6455 section 4.1).
        tokens: The members of Upgrade in lower case, in the client's order of preference.
    """
    for token in tokens:
        if token.partition(b"/")[0] not in _NEVER and (token != b"websocket" or method == b"GET"):
            return token
    return None
