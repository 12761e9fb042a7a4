"""What a single value of the configuration may be.

Each reader takes what TOML gave and returns a value in the model's own type, or raises `Wrong`, which says what would
be right. None converts silently: `1` is no text and `"1"` no number, because a file that says one thing and means
another is noticed only on the day it hurts.
"""

from __future__ import annotations

import difflib
import ipaddress
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trioproxy.access import Network
from trioproxy.config.model import CATCH_ALL, LETSENCRYPT, ZEROSSL, HostPort
from trioproxy.errors import InvalidName, TrioproxyError
from trioproxy.names import MAX_NAME, normalise

Reader = Callable[[Any], Any]
"""What reads a value, whatever TOML made of it."""

CAS = {"letsencrypt": LETSENCRYPT, "zerossl": ZEROSSL}
"""Certificate authorities that `acme.directory` may name by a word."""

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LAN = "lan"
"""What stands for the networks nearby where it is said who may connect."""

BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

# Nine digits keep every product finite and are more than anybody's file needs.
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_SIZE = re.compile(r"([0-9]{1,9})(B|KiB|MiB|GiB)")
URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(\?[^#]*)?(#.*)?", re.DOTALL)

# RFC 6068 and RFC 8555 section 7.3: a contact is one plain address. What a mailto URL would have to escape is left out.
_LOCAL_PART = re.compile(r"[A-Za-z0-9.!#$&'*+/=^_`{|}~-]{1,64}")

# Backends are called by names that no certificate could carry, too: Docker's have underscores.
_BACKEND_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_BACKEND = re.compile(rf"{_BACKEND_LABEL}(?:\.{_BACKEND_LABEL})*")


class Wrong(TrioproxyError):
    """A value that cannot be used; the text says why and what would be right. Never leaves `config`."""


# ---- saying it ----------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """`text` in quotes for a message of one line: what cannot be seen is escaped."""
    return '"' + "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text) + '"'


def near(word: str, known: Iterable[str], likeness: float = 0.6) -> str:
    """`; did you mean "hello"?` when one of `known` is like `word` (0: not at all, 1: the same), else ""."""
    close = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=likeness)
    return f"; did you mean {quoted(close[0])}?" if close else ""


def _kind(value: object) -> str:
    if isinstance(value, str):
        return "a text"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return "a date or time"


# ---- plain values -------------------------------------------------------------------------------------


def text(value: object) -> str:
    """A text without anything that cannot be seen: line breaks, control and bidi characters."""
    if not isinstance(value, str):
        raise Wrong(f"write one text in quotes, not {_kind(value)}")
    if not value.isprintable():
        raise Wrong(f"{quoted(value)} holds a line break or another character that cannot be seen: leave it out")
    return value


def one_of(*words: str) -> Reader:
    """A reader of one of `words`."""

    def read(value: object) -> str:
        word = text(value)
        if word not in words:
            raise Wrong(f"{quoted(word)} is none of {', '.join(map(quoted, words))}{near(word, words)}")
        return word

    return read


# What useradd(8) of Debian takes; a number would be taken for a name, and names nobody.
_USER = re.compile(r"[a-z_][a-z0-9_.-]{0,30}[a-z0-9_$-]?", re.IGNORECASE)


def user_name(value: object) -> str:
    """The name of a user of this machine; whether there is one is not known here."""
    name = text(value)
    if not _USER.fullmatch(name):
        raise Wrong(f"{quoted(name)} is no name of a user")
    if name == "root":
        raise Wrong('"root" gives nothing up: name an ordinary user, or leave this out')
    return name


def integer(low: int, high: int) -> Reader:
    """A reader of whole numbers from `low` to `high`."""

    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong(f"write a whole number without quotes, not {_kind(value)}")
        if not low <= value <= high:
            raise Wrong(f"{value} is not between {low} and {high}")
        return value

    return read


def duration(value: object) -> float:
    """Seconds, from `"10s"`, `"5m"` and the like; `math.inf` from `"off"`."""
    if value == "off":
        return math.inf
    seconds = length(value, ', or "off"')
    if seconds == 0:
        raise Wrong(f'"{value}" would end everything at once: write "off" if there should be no limit')
    return seconds


def length(value: object, more: str = "") -> float:
    """Seconds, from a number and its unit; `more` is what else may stand there."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        meant = f"{value}s" if value > 0 and _DURATION.fullmatch(f"{value}s") else "10s"
        raise Wrong(f"write a duration in quotes with its unit, such as {quoted(meant)}")
    word = text(value)
    found = _DURATION.fullmatch(word)
    if not found:
        raise Wrong(f'{quoted(word)} is no duration: write a number and ms, s, m, h or d, such as "10s"{more}')
    return float(found[1]) * SECONDS[found[2]]


def size(low: int, high: int) -> Reader:
    """A reader of sizes such as `"64KiB"`, as bytes from `low` to `high`."""

    def read(value: object) -> int:
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise Wrong('write a size in quotes with its unit, such as "64KiB"')
        word = text(value)
        found = _SIZE.fullmatch(word)
        if not found:
            raise Wrong(f'{quoted(word)} is no size: write a whole number and B, KiB, MiB or GiB, such as "64KiB"')
        number = int(found[1]) * BYTES[found[2]]
        if not low <= number <= high:
            raise Wrong(f"{quoted(word)} is not between {_size(low)} and {_size(high)}")
        return number

    return read


def _size(number: int) -> str:
    unit = max((u for u in BYTES if number % BYTES[u] == 0), key=BYTES.__getitem__)
    return f'"{number // BYTES[unit]}{unit}"'


def file_path(value: object) -> Path:
    """The path of a file or folder, as written."""
    word = text(value)
    if not word:
        raise Wrong("write the path of a file")
    return Path(word)


def log_file(value: object) -> Path | str:
    """The path of a file, `-` for standard output, or nothing at all."""
    return file_path(value) if value not in ("", "-") else text(value)


# ---- names and addresses ------------------------------------------------------------------------------


def entry_name(value: object) -> str:
    """The name of a site or passthrough entry: a host name, `*.` and a host name, or `*`; normalised."""
    if not isinstance(value, str):
        raise Wrong(f"write one name in quotes, not {_kind(value)}")
    if value == CATCH_ALL:
        return value
    if value.startswith("*."):
        return "*." + host_name(value[2:])
    if "*" in value:
        raise Wrong(f'{quoted(value)}: a wildcard stands for the whole first label, such as "*.myname.com"')
    return host_name(value)


def host_name(name: str) -> str:
    """A host name, normalised."""
    try:
        return normalise(_ascii(name))
    except InvalidName:
        pass
    if literal_address(name.strip("[]")) is not None:
        raise Wrong(f"{quoted(name)} is an IP address, and clients name no address: use the host's name")
    bare = re.sub(r"^[A-Za-z]+://", "", name).partition("/")[0].rpartition("@")[2]
    bare = re.sub(r":[0-9]*$", "", bare)
    try:
        remedy = f"write the name alone, {quoted(normalise(_ascii(bare)))}"
    except (InvalidName, Wrong):
        remedy = "its labels are letters, digits and hyphens, joined by dots"
    raise Wrong(f"{quoted(name)} is no host name: {remedy}")


def _ascii(name: str) -> str:
    """A name in A-labels (RFC 5891), lower-cased as UTS 46 says."""
    if name.isascii():
        return name
    import idna  # here, because most files have no such name, and its tables take their time

    try:
        return idna.encode(name, uts46=True).decode()
    except idna.IDNAError as exc:
        raise Wrong(f"{quoted(name)} is no host name: {quoted(str(exc))[1:-1]}") from None


def literal_address(literal: str) -> str | None:
    """An IP address as its canonical text; None when it is none, or one that is only valid on one interface."""
    try:
        return str(ipaddress.ip_address(literal)) if "%" not in literal else None
    except ValueError:
        return None


def backend_host(host: str) -> str:
    """Where to connect to: an IP address or a name, normalised."""
    if address := literal_address(host):
        return address
    name = _ascii(host).lower().removesuffix(".")
    if len(name) > MAX_NAME or not _BACKEND.fullmatch(name):
        raise Wrong(f"{quoted(host)} is neither a host name nor an IP address")
    if name.rpartition(".")[2].isdigit():
        raise Wrong(f"{quoted(host)} is no IP address: four numbers from 0 to 255, joined by dots")
    return name


def split_port(word: str) -> tuple[str, str | None]:
    """Host (without brackets) and port of `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address."""
    if word.startswith("["):
        host, bracket, rest = word[1:].partition("]")
        address = literal_address(host)
        if not bracket or address is None or ":" not in address or (rest and not rest.startswith(":")):
            raise Wrong(f'{quoted(word)} is no IPv6 address: write it as "[2001:db8::1]" or "[2001:db8::1]:443"')
        return address, rest[1:] if rest else None
    if word.count(":") > 1:
        if (address := literal_address(word)) is None:
            raise Wrong(f'{quoted(word)} is no address: write "host:port", and IPv6 as "[2001:db8::1]:443"')
        return address, None
    host, colon, port = word.partition(":")
    return host, port if colon else None


def port_number(port: str, word: str, low: int = 1) -> int:
    """A port, which stands in `word`."""
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and low <= int(port) < 65536):
        raise Wrong(f"{quoted(word)}: {quoted(port)} is no port: write a number from 1 to 65535")
    return int(port)


def address(default_port: int) -> Reader:
    """A reader of where to connect to, `host[:port]`."""

    def read(value: object) -> HostPort:
        word = text(value)
        if url := URL.fullmatch(word):
            host = url[2].rpartition("@")[2]
            raise Wrong(f"write host and port without {quoted(url[1] + '://')}: {quoted(host or '10.1.2.3:443')}")
        host, port = split_port(word)
        return HostPort(backend_host(host), default_port if port is None else port_number(port, word))

    return read


def listen_address(value: object) -> HostPort:
    """An IP address and a port to listen on; port 0 is any that is free."""
    word = text(value)
    remedy = 'write an IP address and a port, such as "0.0.0.0:443" or "[::]:443" (every address of this machine)'
    if re.fullmatch(r"\*?:?[0-9]+", word):
        raise Wrong(f"{quoted(word)} names no address: {remedy}")
    host, port = split_port(word)
    if (literal := literal_address(host)) is None:
        raise Wrong(f"{quoted(word)} names no address: {remedy}")
    if port is None:
        raise Wrong(f"{quoted(word)} names no port: {remedy}")
    return HostPort(literal, port_number(port, word, low=0))


def network(value: object) -> Network:
    """An IP network as `192.168.1.0/24`; an address alone is a network of one."""
    word = text(value)
    try:
        if "%" in word:
            raise ValueError  # an interface's scope
        found = ipaddress.ip_interface(word)
    except ValueError:
        remedy = 'write one such as "192.168.1.0/24" or "2001:db8::/32", or a single address'
        raise Wrong(f"{quoted(word)} is no network: {remedy}") from None
    mapped = getattr(found.ip, "ipv4_mapped", None)
    if mapped and found.network.prefixlen >= 96:  # clients' addresses are compared as IPv4
        remedy = f"{mapped}/{found.network.prefixlen - 96}"
        raise Wrong(f"{quoted(word)} is IPv4 inside IPv6: write {quoted(remedy)}")
    if "/" in word and found.ip != found.network.network_address:
        meant = f"{quoted(str(found.network))} for the network or {quoted(str(found.ip))} for the one address"
        raise Wrong(f"{quoted(word)} is an address with the size of a network: write {meant}")
    return found.network


def network_or_lan(value: object) -> Network | str:
    """A network, or `LAN`."""
    return LAN if value == LAN else network(value)


# ---- URLs and the like --------------------------------------------------------------------------------


def email(value: object) -> str:
    """An e-mail address, for the CA."""
    word = text(value)
    local, _, domain = word.rpartition("@")
    if _LOCAL_PART.fullmatch(local):
        try:
            return f"{local}@{normalise(_ascii(domain))}"
        except (InvalidName, Wrong):
            pass
    raise Wrong(f'{quoted(word)} is no e-mail address: write one such as "me@myname.com"')


def directory(value: object) -> str:
    """The URL of an ACME directory, or the word for one."""
    word = text(value)
    if word in CAS:
        return CAS[word]
    words = " or ".join(map(quoted, CAS))
    return directory_url(word, f"write {words}, or the URL of another one{near(word, CAS)}")


def directory_url(word: str, remedy: str) -> str:
    """The URL of an ACME directory; `remedy` is what to write instead of what is no URL."""
    url = URL.fullmatch(word)
    if not url:
        raise Wrong(f"{quoted(word)} is no directory: {remedy}")
    if "@" in url[2] or url[5] is not None:
        raise Wrong("the URL of a directory holds neither a user name nor a #: leave them out")
    host, port = split_port(url[2])
    host = backend_host(host)
    if port is not None:
        port_number(port, word)
    scheme = url[1].lower()
    if scheme != "https" and not (scheme == "http" and is_loopback(host)):
        raise Wrong(f"{quoted(word)}: a directory is asked over https:// alone")
    return word


def is_loopback(host: str) -> bool:
    """Whether a normalised host is this machine itself."""
    if literal := literal_address(host):
        return ipaddress.ip_address(literal).is_loopback
    return host == "localhost" or host.endswith(".localhost")
