"""TLS alerts that are sent before there is any TLS: to a client whose ClientHello leads nowhere."""

from __future__ import annotations

import enum


class Alert(enum.IntEnum):
    """The AlertDescriptions that we answer with, by their names in RFC 8446 section 6 and RFC 6066 section 3."""

    UNEXPECTED_MESSAGE = 10
    RECORD_OVERFLOW = 22
    ILLEGAL_PARAMETER = 47
    ACCESS_DENIED = 49
    DECODE_ERROR = 50
    PROTOCOL_VERSION = 70
    INTERNAL_ERROR = 80
    MISSING_EXTENSION = 109
    UNRECOGNIZED_NAME = 112


_HEADER = bytes([21, 3, 3, 0, 2])  # an alert record of two bytes; the version that RFC 8446 section 5.1 asks for
_FATAL = 2


def fatal_alert(description: int) -> bytes:
    """The record that ends a handshake (RFC 8446 section 6), as it goes on the wire: seven bytes, in the clear.

    Args:
        description: The AlertDescription, 0 to 255.
    """
    return _HEADER + bytes([_FATAL, description])
