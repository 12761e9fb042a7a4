"""The first bytes that a server says to a ClientHello: is it TLS at all, and did it understand what it was told?

A server that takes a PROXY header for the beginning of TLS, or a ClientHello for a PROXY header, does one of four
things: it closes, it resets, it says something in plain text, or it sends a TLS alert that complains of bytes and not
of wishes. One that has understood sends a ServerHello, or an alert about what the ClientHello asks for.
"""

from __future__ import annotations

import attrs

_HANDSHAKE, _ALERT = 22, 21  # RFC 8446 section 5.1
_RECORD_HEADER = 5
_MAJOR_VERSION = b"\3"
_SERVER_HELLO = 2

MISREAD = frozenset({10, 20, 22, 50})
"""AlertDescriptions of a server that could not read its peer: unexpected_message, bad_record_mac, record_overflow,
decode_error (RFC 8446 section 6)."""


@attrs.frozen
class ServerAnswer:
    """What a server said first.

    Attributes:
        understood: Whether it has read a ClientHello.
        alert: The AlertDescription, if it was an alert.
        text: What it said, if it was no TLS.
    """

    understood: bool
    alert: int | None = None
    text: bytes = b""


def read_answer(data: bytes, *, ended: bool = False) -> ServerAnswer | None:
    """The answer that `data` begins with; None when more is needed to tell.

    Args:
        data: What the server has sent.
        ended: No more will come.
    """
    if not data:
        return ServerAnswer(understood=False) if ended else None
    needed = {_HANDSHAKE: _RECORD_HEADER + 1, _ALERT: _RECORD_HEADER + 2}.get(data[0])
    if needed is None or data[1:2] not in (b"", _MAJOR_VERSION):
        return ServerAnswer(understood=False, text=data)
    if len(data) < needed:
        return ServerAnswer(understood=False, text=data) if ended else None
    if data[0] == _ALERT:
        alert = data[_RECORD_HEADER + 1]  # behind its level
        return ServerAnswer(alert not in MISREAD, alert)
    if data[_RECORD_HEADER] != _SERVER_HELLO:
        return ServerAnswer(understood=False, text=data)
    return ServerAnswer(understood=True)
