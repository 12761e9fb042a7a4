"""What leads back to where it began: backends that are trioproxy itself, and redirects that never arrive."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from trioproxy.config.model import Listen, Route, Site
from trioproxy.config.values import is_loopback

LOOP = "is trioproxy itself, which would call itself without end"

MAX_REDIRECTS = 20
"""After as many in a row browsers give up (the Fetch standard, HTTP-redirect fetch)."""


def leads_back(listen: Listen, host: str, port: int) -> bool:
    """Whether a connection to `host` and `port` would come to our own listeners, as far as the texts can tell."""
    return any(_is_same(own.host, host) for own in (*listen.https, *listen.http) if own.port == port != 0)


def _is_same(own: str, host: str) -> bool:
    if own == host:
        return True
    listening = ipaddress.ip_address(own)
    if host == "localhost":
        return listening.is_unspecified or listening.is_loopback
    # `[::]` is IPv6 only, so an address reaches the unspecified one of its own family.
    return listening.is_unspecified and is_loopback(host) and (":" in own) == (":" in host)


def endless_redirects(sites: Mapping[str, Site], listen: Listen) -> Iterator[tuple[Site, Route]]:
    """The redirects whose clients never arrive anywhere, as far as these sites can tell; aliases' are their site's."""
    for site in sites.values():
        for route in site.routes:
            if not route.redirect or site.alias_of:
                continue
            # A longer route may take what lies below and leave the prefix itself, so both are tried. No route can have
            # a prefix with a question mark in it, so no longer one is meant by the example.
            examples = (route.prefix, route.prefix.rstrip("/") + "/?")
            if any(_is_endless(sites, listen, site, path) for path in examples):
                yield site, route


def _is_endless(sites: Mapping[str, Site], listen: Listen, site: Site, path: str) -> bool:
    """Whether a client that asks `site` for `path` would be sent on until it gives up."""
    for _ in range(MAX_REDIRECTS):
        route = next((route for route in site.routes if route.covers(path)), None)
        if route is None or not route.redirect:
            return False
        origin, base = route.redirect_parts
        if base is not None:
            stripped, stem = route.prefix.rstrip("/"), base.rstrip("/")
            path = stem + path[len(stripped) :] if len(path) > len(stripped) else base
        if origin:
            there = _site_at(sites, listen, origin)
            if there is None:
                return False
            site = there
    return True


def _site_at(sites: Mapping[str, Site], listen: Listen, origin: str) -> Site | None:
    """Our site at an origin, `https://cloud.myname.com`; of http, if it leads to the same routes in the end."""
    scheme, _, authority = origin.partition("://")
    host, _, port = authority.partition(":")
    site = sites.get(host) or sites.get("*." + host.partition(".")[2])
    if site is None or (port or {"https": "443", "http": "80"}[scheme]) != (
        str(listen.public_https_port) if scheme == "https" else "80"
    ):
        return None
    return None if scheme == "http" and site.http == "off" else site
