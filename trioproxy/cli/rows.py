"""What `trioproxy check` shows of each name: where it leads, on what terms, and who may come."""

from __future__ import annotations

import math
from collections.abc import Iterator

import attrs

from trioproxy.access import Access
from trioproxy.config.model import (
    LETSENCRYPT,
    ZEROSSL,
    CertificateFiles,
    Config,
    Passthrough,
    Route,
    Site,
    Timeouts,
)
from trioproxy.config.values import SECONDS
from trioproxy.routing import Choice, Redirect, choose

FINGERPRINT_SHOWN = 8
"""Digits of a fingerprint in the table; enough to tell two apart."""

CLIENT_IP = {
    "none": "",
    "proxy-v1": " (PROXY v1)",
    "proxy-v2": " (PROXY v2)",
    "transparent": " (from the client's own address)",
}


@attrs.frozen
class Way:
    """Where a request or connection goes: `/someservice/x` to `http://10.2.3.6/x`; a passthrough's request is "".

    Attributes:
        request: An example, or the route's prefix where there is none that leads nowhere else.
        target: Where it goes first, or is redirected to.
        then: Where it goes when that cannot be reached, in this order.
        redirect: Whether the client is told to go there.
        proxy_protocol: The version of the PROXY header that the backend gets, or "".
        verify: Of https backends as in the configuration: whether, or by which fingerprint.
        ca_file: Who is trusted to say who they are in place of the system's authorities, or "".
        server_name: The name that they are asked for where it is not the URL's, or "".
        timeouts: Those that are not the site's own.
    """

    request: str
    target: str
    then: tuple[str, ...] = ()
    redirect: bool = False
    proxy_protocol: str = ""
    verify: bool | str = True
    ca_file: str = ""
    server_name: str = ""
    timeouts: dict[str, str] = attrs.field(factory=dict)

    def __str__(self) -> str:
        text = ", then ".join([self.target, *self.then])
        if self.redirect:
            text = f"redirect to {text}"
        if terms := "; ".join(self._terms()):
            text += f" ({terms})"
        return f"{self.request} -> {text}" if self.request else text

    def _terms(self) -> Iterator[str]:
        if self.proxy_protocol:
            yield f"PROXY {self.proxy_protocol}"
        if self.verify is False:
            yield "not verified"
        elif self.verify is not True:
            yield f"by fingerprint {self.verify.removeprefix('sha256:')[:FINGERPRINT_SHOWN]}…"
        if self.ca_file:
            yield f"verified by {self.ca_file}"
        if self.server_name:
            yield f"as {self.server_name}"
        if self.timeouts:
            yield _listed(self.timeouts)


@attrs.frozen
class Row:
    """One name and what happens to it.

    Attributes:
        name: As clients send it, normalised.
        kind: "site", "passthrough", or "alias of" another site.
        routes: Where it leads; of a passthrough one for each address, in the order in which they are tried.
        certificate: Where its certificate comes from.
        http: What port 80 does.
        open_to: Who may connect.
        client_ip: How a passthrough's backend learns the client's address; "" for a site.
        hsts: For how long browsers are told to use https alone, or "".
        timeouts: Those that are not the general ones.
    """

    name: str
    kind: str
    routes: tuple[Way, ...]
    certificate: str
    http: str
    open_to: str
    client_ip: str = ""
    hsts: str = ""
    timeouts: dict[str, str] = attrs.field(factory=dict)

    def cells(self) -> tuple[str, ...]:
        """What the table shows."""
        ways = [*map(str, self.routes)]
        if self.client_ip:
            ways = [", then ".join(ways) + CLIENT_IP[self.client_ip]]
        if self.timeouts:
            ways.append(f"timeouts: {_listed(self.timeouts)}")
        http = f"{self.http}; HSTS {self.hsts}" if self.hsts else self.http
        return self.name, self.kind, "\n".join(ways), self.certificate, http, self.open_to


TITLES = ("NAME", "KIND", "GOES TO", "CERTIFICATE", "PORT 80", "OPEN TO")


def rows(config: Config) -> list[Row]:
    """One row for each name, in the file's order."""
    return [*map(_passthrough_row, config.passthrough.values()), *(_site_row(config, s) for s in config.sites.values())]


def _passthrough_row(entry: Passthrough) -> Row:
    http = {
        "challenges": f"/.well-known/, /.freepbx-known/ -> {entry.http_to}; the rest: redirect to https",
        "all": f"-> {entry.http_to}",
        "off": "404",
    }[entry.http]
    return Row(
        name=entry.name,
        kind="passthrough",
        routes=tuple(Way("", str(address)) for address in entry.to),
        certificate="the backend's own",
        http=http,
        open_to=who(entry.access),
        client_ip=entry.client_ip,
    )


def _site_row(config: Config, site: Site) -> Row:
    return Row(
        name=site.name,
        kind=f"alias of {site.alias_of}" if site.alias_of else "site",
        routes=tuple(_way(site, route) for route in reversed(site.routes)),
        certificate=_certificate(config, site),
        http={"redirect": "redirect to https", "serve": "the same as https", "off": "404"}[site.http],
        open_to=who(site.access),
        hsts=span(site.hsts) if site.hsts else "",
        timeouts=_changed(site.timeouts, config.timeouts),
    )


def _way(site: Site, route: Route) -> Way:
    """Where an example below the route goes, as the proxy itself would decide."""
    request = route.prefix.rstrip("/") + "/x"
    # A longer route may be called just like the example.
    taken = any(other.prefix in (request, request + "/") for other in site.routes)
    choice = None if taken else choose(site, request.encode())
    if route.redirect:
        location = choice.location.decode() if isinstance(choice, Redirect) else route.redirect
        return Way(route.prefix if taken else request, location, redirect=True)
    to = route.to
    if isinstance(choice, Choice):
        to = tuple(attrs.evolve(each, path=choice.target.decode()) for each in to)
    return Way(
        request=route.prefix if taken else request,
        target=str(to[0]),
        then=tuple(map(str, to[1:])),
        proxy_protocol=route.proxy_protocol,
        verify=f"sha256:{route.tls.verify}" if isinstance(route.tls.verify, str) else route.tls.verify,
        ca_file=str(route.tls.ca_file or ""),
        server_name=route.tls.server_name,
        timeouts=_changed(route.timeouts, site.timeouts),
    )


def _certificate(config: Config, site: Site) -> str:
    if isinstance(site.tls, CertificateFiles):
        return f"{site.tls.certificate}"
    if site.tls == "internal":
        return "internal CA"
    directory = {LETSENCRYPT: "Let's Encrypt", ZEROSSL: "ZeroSSL"}.get(config.acme.directory, config.acme.directory)
    return f"{directory}, {site.key_type}"


def who(access: Access) -> str:
    """Who may connect: "everyone", "lan only", "everyone but 192.0.2.66"."""
    allow = [*(["lan"] if access.allow_lan else []), *map(_network, access.allow)]
    deny = [*(["lan"] if access.deny_lan else []), *map(_network, access.deny)]
    if allow:
        return f"{', '.join(allow)} only" + (f", not {', '.join(deny)}" if deny else "")
    return "everyone" + (f" but {', '.join(deny)}" if deny else "")


def _network(network: object) -> str:
    return str(network).removesuffix("/32") if "." in str(network) else str(network).removesuffix("/128")


def _changed(limits: Timeouts, usual: Timeouts) -> dict[str, str]:
    """The limits that are not the usual ones, as the configuration has them."""
    before = attrs.asdict(usual)
    return {key: span(value) for key, value in attrs.asdict(limits).items() if value != before[key]}


def _listed(timeouts: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in timeouts.items())


def span(seconds: float) -> str:
    """Seconds as a duration of the configuration, in the largest unit that makes it a whole number."""
    if seconds == math.inf:
        return "off"
    for unit, size in reversed(SECONDS.items()):
        number = seconds / size
        if number >= 1 and math.isclose(number, round(number)):
            return f"{round(number)}{unit}"
    return f"{seconds / SECONDS['ms']:g}ms"
