"""What stands in a route: its prefix, its targets, and how a target proves who it is."""

from __future__ import annotations

import re
from typing import Literal

from trioproxy.config.model import HostPort, Target
from trioproxy.config.values import (
    URL,
    Wrong,
    backend_host,
    host_name,
    length,
    literal_address,
    near,
    one_of,
    port_number,
    quoted,
    split_port,
    text,
)

SUN_PATH = 107
"""Bytes of a unix socket's path, of which the kernel keeps 108 with the NUL at the end (unix(7))."""

SHA256 = 64
"""Hexadecimal digits of a certificate's fingerprint."""

SCHEMES: dict[str, Literal["http", "https", "h2c"]] = {"http": "http", "https": "https", "h2c": "h2c"}

PORTS = {"http": 80, "https": 443, "h2c": 80}

MEANT = {"grpc": "h2c", "grpcs": "https", "http2": "h2c", "ws": "http", "wss": "https"}
"""Schemes that other programs have for the same backends."""

_PCHAR = r"[A-Za-z0-9._~!$&'()*+,;=:@-]"  # RFC 3986 section 3.3, without percent-encodings
_PREFIX = re.compile(rf"/(?:{_PCHAR}+/)*{_PCHAR}*")
_PATH = re.compile(rf"/(?:(?:{_PCHAR}|%[0-9A-Fa-f]{{2}})+/)*(?:{_PCHAR}|%[0-9A-Fa-f]{{2}})*")

# Sockets as nginx ("http://unix:/run/x:/uri"), Caddy ("unix//run/x") and Python's clients ("http+unix://%2Frun%2Fx")
# have them, or with the slashes that a URL would have.
_FOREIGN_SOCKET = re.compile(r"(?:https?://)?unix(?:/|:/*)/([^:]+)(?::/.*)?|http\+unix://(.+)", re.IGNORECASE)

_FINGERPRINT = re.compile(r"sha256:([0-9a-f]{2}(?::?[0-9a-f]{2})*)", re.IGNORECASE)
_OPENSSL = re.compile(r"(?:sha256 fingerprint=)?((?:[0-9a-f]{2}:?){31}[0-9a-f]{2})", re.IGNORECASE)


# ---- where to -----------------------------------------------------------------------------------------


def target(value: object) -> Target:
    """Where a route leads: `http://host[:port][/path]`, also with https or h2c, or `unix:/path`."""
    if isinstance(value, list):
        raise Wrong('write several targets as { to = ["http://10.2.3.4", …] }')
    word = text(value)
    if word.lower().startswith("unix:") and not word[5:].startswith("//"):
        return _socket(word[5:])
    if found := _FOREIGN_SOCKET.fullmatch(word):
        path = found[1] or re.sub("%2f", "/", found[2], flags=re.IGNORECASE).lstrip("/")
        raise Wrong(f"{quoted(word)} is no target: write a unix socket as {quoted('unix:/' + path)}")
    url = URL.fullmatch(word)
    if not url:
        remedy = quoted("http://" + (word if re.fullmatch(r"[\w.-]+(?::[0-9]+)?(?:/.*)?", word) else "10.2.3.4"))
        raise Wrong(f"{quoted(word)} is no target: write it with http:// or https://, such as {remedy}")
    if "@" in url[2]:
        raise Wrong("a target holds no user name or password: leave out what stands before the @")
    scheme = SCHEMES.get(url[1].lower())
    if scheme is None:
        known = MEANT.get(url[1].lower())
        meant = f"{known}://" if known else "http://, https://, h2c:// or unix:/path"
        raise Wrong(f"{quoted(url[1].lower() + '://')} is no scheme of a target: write {meant}")
    if url[4] is not None or url[5] is not None:
        raise Wrong(f"{quoted(word)}: a target has neither ? nor #: leave out what begins with it")
    host, port = split_port(url[2])
    number = PORTS[scheme] if port is None else port_number(port, word)
    return Target(scheme, backend_host(host), number, _path(url[3], "a target"))


def _socket(path: str) -> Target:
    if not path.startswith("/"):
        raise Wrong(f'"unix:{quoted(path)[1:]}: the path of a socket begins with a slash, such as "unix:/run/app.sock"')
    before, colon, _ = path.partition(":/")
    if colon:
        raise Wrong(f"a target that is a unix socket has no path of a URL: write {quoted('unix:' + before)}")
    if path.endswith("/"):
        raise Wrong(f'"unix:{quoted(path)[1:]} is a folder: write the socket in it, such as "unix:/run/app.sock"')
    if len(path.encode()) > SUN_PATH:
        raise Wrong(f"the path of a unix socket has at most {SUN_PATH} bytes, and this one {len(path.encode())}")
    return Target("unix", path, 0)


def _path(path: str, what: str) -> str | None:
    if path and (not _PATH.fullmatch(path) or _has_dots(path)):
        raise Wrong(f"{quoted(path)} is no path of {what}: no //, . or .. in it, and other characters as %XX")
    return path or None


def redirect(value: object) -> str:
    """Where a route's clients are sent: a path of the same host, or a URL; with neither ? nor #."""
    word = text(value)
    url = URL.fullmatch(word)
    if url and "@" in url[2]:
        raise Wrong("a redirect holds no user name or password: leave out what stands before the @")
    if re.search(r"[?#]", word):
        raise Wrong(f"{quoted(word)}: the request's own query is kept, so there is neither ? nor # in a redirect")
    if word.startswith("/") and not word.startswith("//"):
        _path(word, "a redirect")
        return word
    if not url:
        bare = word.lstrip("/") or "new/"
        meant = ("https://" if word.startswith("//") or "." in bare.partition("/")[0] else "/") + bare
        raise Wrong(f"{quoted(word)} is no redirect: write a path or a URL, such as {quoted(meant)}")
    scheme = url[1].lower()
    if scheme not in ("http", "https"):
        raise Wrong(f"{quoted(scheme + '://')} is no scheme of a redirect: write http:// or https://")
    host, port = split_port(url[2])
    number = PORTS[scheme] if port is None else port_number(port, word)
    authority = str(HostPort(backend_host(host), number)).removesuffix(f":{PORTS[scheme]}")
    return f"{scheme}://{authority}{_path(url[3], 'a redirect') or ''}"


def route_prefix(key: str) -> str:
    """The path prefix of a route, which the keys of a site that begin with "/" are."""
    if "*" in key:
        raise Wrong(f"a route is a prefix and needs no *: write {quoted(key.partition('*')[0])}")
    if not _PREFIX.fullmatch(key) or _has_dots(key):
        raise Wrong("no route can be that: letters, digits and punctuation, but no %, ?, #, space, //, . or .. in it")
    return key


def _has_dots(path: str) -> bool:
    return any(segment in (".", "..") for segment in path.split("/"))


# ---- on what terms ------------------------------------------------------------------------------------


def verify(value: object) -> bool | str:
    """How the certificate of a backend is judged: true, false, or the fingerprint of the one that is good."""
    if isinstance(value, bool):
        return value
    word = text(value)
    if word.lower() in ("true", "false"):
        raise Wrong(f"write {word.lower()} without quotes")
    found = _FINGERPRINT.fullmatch(word)
    digits = found[1].replace(":", "").lower() if found else ""
    if len(digits) == SHA256:
        return digits
    if digits:
        raise Wrong(f"a SHA-256 fingerprint has {SHA256} hexadecimal digits, and this one {len(digits)}")
    if bare := _OPENSSL.fullmatch(word):
        raise Wrong(f"say which fingerprint it is: {quoted('sha256:' + bare[1].replace(':', '').lower())}")
    remedy = 'true, false, or the fingerprint that `openssl x509 -noout -fingerprint -sha256` prints, as "sha256:ab12…"'
    raise Wrong(f"{quoted(word)} says nothing about a certificate: write {remedy}")


def tls_name(value: object) -> str:
    """The name that an https backend is asked for and has in its certificate, or its address."""
    word = text(value)
    if address := literal_address(word.removeprefix("[").removesuffix("]")):
        return address
    return host_name(word)


_VERSION = one_of("v1", "v2")


def proxy_version(value: object) -> str:
    """The version of the PROXY headers that a backend gets."""
    word = text(value)
    short = word.lower().replace("proxy-", "").replace("proxy_", "")
    if word != short and short in ("v1", "v2"):
        raise Wrong(f"{quoted(word)} is none of {quoted('v1')}, {quoted('v2')}{near(short, ('v1', 'v2'))}")
    return str(_VERSION(word))


def hsts(value: object) -> float:
    """Whole seconds for which browsers are to use https alone."""
    if value == "off":
        raise Wrong('"off" would mean for ever: write a duration such as "180d", or leave hsts out to send none')
    seconds = length(value)
    if seconds == 0:
        raise Wrong(f'"{value}": leave hsts out to send none; to be forgotten soon by browsers, write "1s"')
    if seconds < 1:
        raise Wrong(f'"{value}" is less than a second, which browsers count by: write "180d"')
    return float(int(seconds))
