"""One entry of `[sites]`: its options, and its routes with what they take over from the site."""

from __future__ import annotations

from typing import Any

import attrs

from trioproxy.config.keys import FILES, ROUTE, ROUTE_TIMEOUTS, SITE, SITE_TIMEOUTS, TIMEOUTS, TRUST, access
from trioproxy.config.lines import Place
from trioproxy.config.loops import LOOP, leads_back
from trioproxy.config.model import (
    DEFAULT_TLS,
    CertificateFiles,
    KeyType,
    Listen,
    Route,
    Site,
    Target,
    Timeouts,
    UpstreamTLS,
)
from trioproxy.config.reading import Keys, Reading
from trioproxy.config.targets import route_prefix, target
from trioproxy.config.values import quoted

ELSEWHERE = {
    "hello": "counts before the name is known, so it is the same for all: write it under [timeouts]",
    "drain": "counts for all names together: write it under [timeouts]",
    "header": "counts before the route is known: write it in the timeouts of the site, or under [timeouts]",
}
"""What to say of a limit that a site or route cannot have."""


@attrs.frozen
class _Shared:
    """What the routes of a site take over where they do not say otherwise.

    Attributes:
        timeouts: The site's own over the general ones.
        trust: The site's keys of `TRUST`.
    """

    timeouts: Timeouts
    trust: dict[str, Any]


class SiteReader:
    """Reads entries of `[sites]`; names are the caller's business.

    Args:
        reading: The file, where mistakes are noted.
        listen: Our own listeners, which no target may lead to.
        timeouts: The general ones.
        key_type: The general one.
    """

    def __init__(self, reading: Reading, listen: Listen, timeouts: Timeouts, key_type: KeyType) -> None:
        self._reading = reading
        self._listen = listen
        self._timeouts = timeouts
        self._key_type = key_type

    def read(self, place: Place, name: str, value: object) -> tuple[Site | None, tuple[str, ...]]:
        """The site that is called `name`, None if there is a mistake in it, and its aliases."""
        before = len(self._reading.mistakes)
        options: dict[str, Any] = {}
        table: dict[str, Any] = {}
        if isinstance(value, dict):
            table = {key: item for key, item in value.items() if key.startswith("/")}
            options = self._options(place, {key: item for key, item in value.items() if key not in table})
        elif not isinstance(value, str):
            self._reading.wrong(place, 'write where it goes: "http://10.2.3.4", or a table of routes')
        aliases = options.pop("aliases", ())
        options["access"] = access(options)
        options["timeouts"] = attrs.evolve(self._timeouts, **options.get("timeouts", {}))
        shared = _Shared(options["timeouts"], {key: options.pop(key) for key in TRUST if key in options})
        routes = [self._route((*place, key), item, shared) for key, item in table.items()]
        if isinstance(value, str):
            to = self._reading.value(place, target, value)
            routes = [self._to(place, "/", (to,), {}, shared)] if to else []
        if options.get("tls", "acme") == "acme":
            self._refuse_wildcards(place, name, aliases)
        if len(self._reading.mistakes) > before:
            return None, aliases
        good = sorted(filter(None, routes), key=lambda route: len(route.prefix), reverse=True)
        if not good:
            self._reading.wrong(place, 'write at least one route, such as "/" = "http://10.2.3.4"')
        if not any(_https(route.to) for route in good):
            self._refuse_trust(place, shared.trust, "this site")
        return Site(name, tuple(good), **{"key_type": self._key_type, **options}), aliases

    # ---- options ------------------------------------------------------------------------------------

    def _options(self, place: Place, table: dict[str, Any]) -> dict[str, Any]:
        files = table.pop("tls") if isinstance(table.get("tls"), dict) else None
        for key in [key for key, item in table.items() if key not in SITE and (key in ROUTE or _is_target(item))]:
            prefix = "/" if key in ROUTE else f"/{key}"
            long = key in ROUTE and not (key == "to" and isinstance(table[key], str))
            form = f"{{ {key} = … }}" if long else "…"
            self._reading.unknown((*place, key), SITE, f'; a route begins with "/": {quoted(prefix)} = {form}')
            del table[key]
        options = self._reading.table(place, self._without_limits(place, table, SITE, SITE_TIMEOUTS), SITE)
        self._refuse_two_proofs(place, options)
        if files is not None:
            at = (*place, "tls")
            found = self._reading.table(at, files, FILES)
            if files.keys() < FILES.keys():
                self._reading.wrong(at, 'write both files: tls = { certificate = "x.pem", key = "x.key" }')
            if len(found) == len(FILES):
                options["tls"] = CertificateFiles(**found)
        return options

    def _without_limits(self, place: Place, table: dict[str, Any], known: Keys, limits: Keys) -> dict[str, Any]:
        """A table of options without limits that cannot stand there; those are noted."""
        good = dict(table)
        for key in [key for key in table if key in TIMEOUTS and key not in known]:
            more = f"; it belongs in timeouts = {{ {key} = … }}" if key in limits else ""
            self._reading.unknown((*place, key), known, more)
            del good[key]
        inner = table.get("timeouts")
        if isinstance(inner, dict):
            for key in [key for key in inner if key in TIMEOUTS and key not in limits]:
                self._reading.wrong((*place, "timeouts", key), ELSEWHERE[key])
            good["timeouts"] = {key: item for key, item in inner.items() if key in limits or key not in TIMEOUTS}
        return good

    def _refuse_wildcards(self, place: Place, name: str, aliases: tuple[str, ...]) -> None:
        named = [(place, name), *(((*place, "aliases", index), alias) for index, alias in enumerate(aliases))]
        for at, each in named:
            if each.startswith("*"):
                problem = (
                    "wildcards need DNS-01, and trioproxy gets its certificates by HTTP-01: "
                    'write each name, or set tls = "internal" or tls = { certificate = "x.pem", key = "x.key" }'
                )
                self._reading.wrong(at, problem if at == place else f"{quoted(each)}: {problem}")

    # ---- routes -------------------------------------------------------------------------------------

    def _route(self, place: Place, value: object, shared: _Shared) -> Route | None:
        prefix = self._reading.value(place, route_prefix, place[-1])
        if not isinstance(value, dict):
            to = self._reading.value(place, target, value)
            return self._to(place, prefix, (to,), {}, shared) if to else None
        found = self._reading.table(place, self._without_limits(place, value, ROUTE, ROUTE_TIMEOUTS), ROUTE)
        if "redirect" in value:
            return self._redirect(place, prefix, value, found, shared)
        if "to" not in value and value.keys() <= ROUTE.keys():
            self._reading.wrong(place, 'write where it goes: { to = "http://10.2.3.4" }')
        if found.get("to") == ():
            self._reading.wrong((*place, "to"), 'write at least one target, such as "http://10.2.3.4"')
        return self._to((*place, "to"), prefix, found.pop("to", ()), found, shared)

    def _redirect(
        self, place: Place, prefix: str | None, written: dict[str, Any], found: dict[str, Any], shared: _Shared
    ) -> Route | None:
        for key in written:
            if key == "to":
                self._reading.wrong(
                    (*place, "redirect"), "a route has either `to` or `redirect`: leave out one of them"
                )
            elif key in ROUTE and key != "redirect" and "to" not in written:
                self._reading.wrong((*place, key), "is for backends, and a redirect calls none: leave it out")
        if prefix is None or "redirect" not in found:
            return None
        return Route(prefix, (), found["redirect"], shared.timeouts)

    def _to(
        self, place: Place, prefix: str | None, to: tuple[Target, ...], options: dict[str, Any], shared: _Shared
    ) -> Route | None:
        """The route to these targets, which stand at `place`; the options of its table stand beside it."""
        for index, each in enumerate(to):
            at = (*place, index)
            if leads_back(self._listen, each.host, each.port):
                self._reading.wrong(at, f"{each} {LOOP}")
            if each in to[:index]:
                self._reading.wrong(at, f"{each} is there twice: keep one")
            elif each.path != to[0].path:
                problem = f"{each} has another path than {to[0]}, and one path takes the prefix's place: write the same"
                self._reading.wrong(at, problem)
        if prefix is None or not to:
            return None
        trust = {key: options.pop(key) for key in TRUST if key in options}
        self._refuse_two_proofs(place[:-1], trust)
        tls = DEFAULT_TLS
        if _https(to):
            tls = _merged(shared.trust, trust)
        else:
            self._refuse_trust(place[:-1], trust, "this route")
        timeouts = attrs.evolve(shared.timeouts, **options.pop("timeouts", {}))
        return Route(prefix, to, timeouts=timeouts, tls=tls, **options)

    # ---- what backends must prove -------------------------------------------------------------------

    def _refuse_trust(self, place: Place, trust: dict[str, Any], what: str) -> None:
        for key in trust:
            self._reading.wrong((*place, key), f"is about backends with https://, and {what} has none: leave it out")

    def _refuse_two_proofs(self, place: Place, trust: dict[str, Any]) -> None:
        verify = trust.get("verify", True)
        if "ca_file" in trust and verify is not True:
            said = "names the one certificate that is good" if verify else "= false takes any certificate"
            self._reading.wrong((*place, "ca_file"), f"is never asked, for verify {said}: leave out one of them")


def _https(to: tuple[Target, ...]) -> bool:
    return any(each.scheme == "https" for each in to)


def _is_target(item: object) -> bool:
    return isinstance(item, str) and ("://" in item or item.startswith("unix:/"))


def _merged(site: dict[str, Any], route: dict[str, Any]) -> UpstreamTLS:
    """A route's keys over its site's. Who says how to verify takes no part of that from the site."""
    if "verify" in route or "ca_file" in route:
        site = {key: item for key, item in site.items() if key == "server_name"}
    return UpstreamTLS(**{**site, **route})
