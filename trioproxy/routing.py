"""Where a name and a path lead. Pure, and the same cost for ten names as for ten thousand.

Names come normalised (`trioproxy.names`). An exact name wins over a wildcard, a wildcard over the catch-all;
a wildcard covers exactly one label.

Paths match by prefix on segment boundaries. What a backend gets is what the client sent, byte for byte, but backends
decode percent-encodings and resolve dots, each in its own way. So the route is chosen twice: on the raw path, and on a
*resolved* one that takes the widest view of what a backend might do. Where both lead to the same route, nothing
depends on who reads the path; where they do not, the request is refused. Only a path with a percent sign, a backslash,
`/.` or `//` can have two readings, so all others are looked at once.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import attrs

from trioproxy.config.model import CATCH_ALL, Config, Passthrough, Route, Site
from trioproxy.errors import RequestError

Entry = Passthrough | Site


@attrs.frozen
class RouteTable:
    """Every configured name, and the entry for clients that send none."""

    entries: dict[str, Entry]
    no_sni: Entry | None

    @classmethod
    def of(cls, config: Config) -> RouteTable:
        """The table of a configuration, which the loader has checked for names that are taken twice."""
        entries: dict[str, Entry] = {**config.passthrough, **config.sites}
        return cls(entries, entries[config.listen.no_sni] if config.listen.no_sni else None)

    def configured(self, name: str) -> Entry | None:
        """The entry of a name that is configured, exactly or by a wildcard; the catch-all does not count."""
        entry = self.entries.get(name)
        if entry is None:
            _, dot, suffix = name.partition(".")
            if dot:
                entry = self.entries.get("*." + suffix)
        return entry

    def catch_all(self) -> Entry | None:
        """The entry `*`, if there is one."""
        return self.entries.get(CATCH_ALL)

    def for_name(self, name: str | None) -> Entry | None:
        """The entry for a client that sent `name` in its ClientHello or Host, or none (None)."""
        if name is None:
            return self.no_sni
        return self.configured(name) or self.catch_all()


def route_for(site: Site, path: str) -> Route | None:
    """The route with the longest prefix of `path`, on segment boundaries; None when none matches."""
    return next((route for route in site.routes if route.covers(path)), None)  # longest first


class Choice(NamedTuple):
    """Where a request goes.

    Attributes:
        route: The route that was chosen.
        target: What the backend gets as its request target: path and query.
        prefix: What was taken off the path, for X-Forwarded-Prefix; None if nothing was.
    """

    route: Route
    target: bytes
    prefix: bytes | None


@attrs.frozen
class Redirect:
    """A request to be answered with 308 and this Location: a URL, or a path and query on the same host."""

    location: bytes


_UNUSUAL = re.compile(rb"%|/\.|//|\\")
"""What only a path has that can be read in two ways. (`in` would ask four times, and with bytes on both sides it tries
to take the left one for a number first, and fails.)"""


def choose(site: Site, target: bytes) -> Choice | Redirect:
    """The way of a request within `site`.

    The path of a route's targets or redirect takes the place of the matched prefix, as with nginx's `proxy_pass`;
    where they have none, the request's path goes on unchanged.

    Args:
        site: The site that the request's authority led to.
        target: The request target in origin form, or `*` (RFC 9112 section 3.2).

    Raises:
        RequestError: 404 when there is no route; 400 when the route depends on how the path is read, or when the
            path, resolved, leaves what the route's target opens to the world.
    """
    path, mark, query = target.partition(b"?")
    raw = path.decode("latin-1")
    route = _nearest(site, raw)
    unusual = _UNUSUAL.search(path)
    if unusual and _nearest(site, _resolved(raw)) is not route:
        raise RequestError(f"the path {raw!r} leads elsewhere when it is resolved")
    if route is None:
        if raw[:1] != "/":
            return _choose_asterisk(site, target)
        raise RequestError(f"no route for the path {raw!r}", 404)
    base = route.path
    if base is None:
        return _moved(route, target) if route.redirect else Choice(route, target, None)
    prefix = route.prefix
    if len(prefix) > len(raw):
        return Redirect(prefix.encode() + mark + query)
    stripped, stem = prefix.rstrip("/"), base.rstrip("/")
    rest = raw[len(stripped) :]  # empty, or it begins with a slash: the one that joins
    if unusual:
        _resolved(rest)
    joined = (stem + rest if rest else base).encode("latin-1") + mark + query
    if route.redirect:
        return _moved(route, joined)
    if stripped == stem:
        return Choice(route, target, None)
    return Choice(route, joined, stripped.encode() or None)


_NO_URL = re.compile(rb"[^!-~]")


def _moved(route: Route, target: bytes) -> Redirect:
    """The answer of a redirect, with path and query of the new place. It says nothing that Host could change."""
    origin = route.redirect_parts[0].encode()
    # Bytes that no URL may hold go encoded, for some clients drop a tab or take another encoding for granted.
    target = _NO_URL.sub(lambda found: b"%%%02X" % ord(found[0]), target)
    return Redirect(origin + target if origin else _on_this_host(target))


def _on_this_host(target: bytes) -> bytes:
    """A path as the Location of the same host; of `//x` a client would take x for a host (RFC 3986 section 4.2)."""
    return b"/." + target if target[1:2] in (b"/", b"\\") else target


def _choose_asterisk(site: Site, target: bytes) -> Choice:
    """OPTIONS of the server as a whole goes where its root goes, unchanged (RFC 9110 section 9.3.7)."""
    if target != b"*":
        raise RequestError(f"{target!r} is no request target")
    route = route_for(site, "/")
    if route is None or route.redirect:
        raise RequestError("no route for *", 404)
    return Choice(route, target, None)


def _nearest(site: Site, path: str) -> Route | None:
    """As `route_for`, except that `/api` finds `/api/` where that replaces its prefix and there is no route `/api`.

    Such a path has no place below the target: its route is longer than itself, which asks for a redirect.
    """
    slashed = None
    for route in site.routes:  # longest first
        prefix = route.prefix
        if path.startswith(prefix):
            exact = len(path) == len(prefix)
            if exact or prefix[-1] == "/" or path[len(prefix)] == "/":
                return route if exact or slashed is None else slashed
        elif len(prefix) == len(path) + 1 and route.path is not None and prefix == path + "/":
            slashed = route
    return slashed


_NO_ENCODING = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ENCODING = re.compile(r"%([0-9A-Fa-f]{2})")


def _resolved(path: str) -> str:
    """A path as the most obliging backend might read it.

    Percent-encodings are decoded once, backslashes are slashes, empty segments vanish (nginx's `merge_slashes`), and
    dot segments are resolved (RFC 3986 section 5.2.4), also those with a parameter, `/..;x/` (servlet containers).

    Raises:
        RequestError: it climbs above its beginning, or a percent sign begins no encoding.
    """
    if _NO_ENCODING.search(path):
        raise RequestError(f"the path {path!r} holds a percent sign that encodes nothing")
    segments: list[str] = []
    last = ""
    for segment in _ENCODING.sub(lambda found: chr(int(found[1], 16)), path).replace("\\", "/").split("/"):
        last = segment.partition(";")[0]
        if last == "..":
            if not segments:
                raise RequestError(f"the path {path!r} climbs above where it begins")
            segments.pop()
        elif last not in ("", "."):
            segments.append(segment)
    slash = "/" if segments and last in ("", ".", "..") else ""
    return "/" + "/".join(segments) + slash


# ---- the way back -------------------------------------------------------------------------------------

_SPOKEN = {"http": "http", "https": "https", "h2c": "http", "unix": ""}
"""How a backend that is called by a target's scheme names its own in URLs."""

# Of an http URL: scheme, host, port, and the rest, in which a space or tab could change what it means to a client.
_ABSOLUTE = re.compile(rb"(https?)://([^/?#@]*?)(?::([0-9]{0,5}))?(?=[/?#]|$)([!-~]*)", re.IGNORECASE)


def map_location(route: Route, location: bytes) -> bytes:
    """A backend's Location as the client must see it.

    One that begins with any of the route's targets (on segment boundaries, the default port written or not) becomes a
    path below the route's prefix; any other is returned unchanged. Behind a unix socket there is no URL to begin with.
    """
    found = _ABSOLUTE.fullmatch(location)
    if not found:
        return location
    scheme, host = found[1].decode().lower(), found[2].decode("latin-1").lower().strip("[]")
    port = int(found[3] or {"http": 80, "https": 443}[scheme])
    if not any((scheme, host, port) == (_SPOKEN[to.scheme], to.host, to.port) for to in route.to):
        return location
    rest = found[4]
    if route.path is not None:
        stem = route.path.rstrip("/").encode()
        below = rest[len(stem) :]
        if not rest.startswith(stem) or below[:1] not in (b"", b"/", b"?", b"#"):
            return location
        prefix = route.prefix.rstrip("/") if below[:1] == b"/" else route.prefix
        rest = prefix.encode() + below
    return _on_this_host(rest if rest[:1] == b"/" else b"/" + rest)
