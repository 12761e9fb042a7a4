"""Host names: the one normaliser for SNI, Host, `:authority` and the configuration.

Two spellings of one name must never lead to two different places, so there is one function that decides what a
name is, and everything that compares names compares what it returns.
"""

from __future__ import annotations

import functools
import ipaddress
import re

from trioproxy.errors import InvalidName

MAX_NAME = 253  # RFC 1035 section 2.3.4, without the trailing dot

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")


@functools.lru_cache(maxsize=16_384)  # a proxy meets the same names again and again
def normalise(text: str) -> str:
    """A host name in the form in which names are compared: lower case, no trailing dot, A-labels.

    Args:
        text: A name as a client sent it; ASCII (an internationalised name arrives as A-labels).

    Raises:
        InvalidName: not letters, digits and hyphens (RFC 952, RFC 1123), too long, or an IP address.
    """
    name = text.lower()
    if name.endswith("."):
        name = name[:-1]
    if not text.isascii() or len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise InvalidName(f"{text!r} is not a host name")
    # A last label of digits alone is how URL parsers tell an IPv4 address, in any of its odd spellings.
    if name.rpartition(".")[2].isdigit():
        raise InvalidName(f"{text!r} is an IP address, not a host name")
    return name


@functools.lru_cache(maxsize=16_384)
def split_authority(authority: str) -> tuple[str, int | None]:
    """The host and port of a Host header or `:authority` (RFC 9110 section 7.2).

    Returns:
        The normalised name (an IP literal as its canonical text) and the port, None when none is given.

    Raises:
        InvalidName: the text is no `host [":" port]`; user information is refused with it.
    """
    if authority.startswith("["):
        literal, bracket, rest = authority[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise InvalidName(f"{authority!r} is not a host")
        return _address(literal, authority, version=6), _port(rest[1:], authority) if rest else None
    host, colon, port = authority.partition(":")
    number = _port(port, authority) if colon else None
    if host.rpartition(".")[2].isdigit():
        return _address(host, authority, version=4), number
    return normalise(host), number


def _address(literal: str, authority: str, version: int) -> str:
    try:
        address = ipaddress.ip_address(literal)
    except ValueError:
        raise InvalidName(f"{authority!r} is not a host") from None
    if address.version != version or "%" in literal:
        raise InvalidName(f"{authority!r} is not a host")
    return str(address)


def _port(text: str, authority: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise InvalidName(f"{authority!r} has no valid port")
    return int(text)
