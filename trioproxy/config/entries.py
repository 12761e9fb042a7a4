"""The entries of `[passthrough]` and `[sites]`: tables whose keys are host names.

TOML makes two mistakes easy here. A host name without quotes becomes tables within tables, one for each label; and an
entry that is written below the header of another one becomes part of it. Both are told apart from a misspelt option
by how the key was written, and both are answered with what was meant.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any

import attrs

from trioproxy.access import Access
from trioproxy.config.lines import Place, dotted_key, header
from trioproxy.config.model import CertificateFiles, HostPort, KeyType, Listen, Passthrough, Route, Site, Target
from trioproxy.config.reading import Key, Keys, Reading
from trioproxy.config.values import (
    LAN,
    Wrong,
    address,
    entry_name,
    file_path,
    is_loopback,
    near,
    network_or_lan,
    one_of,
    quoted,
    route_prefix,
    target,
    text,
)

KEY_TYPES: tuple[KeyType, ...] = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096")


def _tls(value: object) -> str:
    word = text(value)
    if word not in ("acme", "internal"):
        files = '{ certificate = "x.pem", key = "x.key" }'
        raise Wrong(f'{quoted(word)} is none of "acme", "internal", {files}{near(word, ("acme", "internal"))}')
    return word


WHO: Keys = {"allow": Key(network_or_lan, many=True), "deny": Key(network_or_lan, many=True)}

PASSTHROUGH: Keys = {
    "to": Key(address(443), many=True, lone=True),
    "client_ip": Key(one_of("none", "proxy-v1", "proxy-v2", "transparent")),
    "http": Key(one_of("challenges", "all", "off")),
    "http_to": Key(address(80), empty=True),
    **WHO,
}

SITE: Keys = {
    "aliases": Key(entry_name, many=True),
    "tls": Key(_tls),
    "key_type": Key(one_of(*KEY_TYPES)),
    "http": Key(one_of("redirect", "serve", "off")),
    **WHO,
}

ROUTE: Keys = {"to": Key(target)}

FILES: Keys = {"certificate": Key(file_path), "key": Key(file_path)}


def _access(options: dict[str, Any]) -> Access:
    """Who may connect, taken out of an entry's options."""
    allow, deny = options.pop("allow", ()), options.pop("deny", ())
    return Access(
        allow=tuple(item for item in allow if item != LAN),
        deny=tuple(item for item in deny if item != LAN),
        allow_lan=LAN in allow,
        deny_lan=LAN in deny,
    )


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


class Entries:
    """Reads both tables, and sees to it that each name is taken once."""

    def __init__(self, reading: Reading, listen: Listen, key_type: KeyType) -> None:
        self.passthrough: dict[str, Passthrough] = {}
        self.sites: dict[str, Site] = {}
        self._reading = reading
        self._listen = listen
        self._key_type = key_type
        self._taken: dict[str, Place] = {}

    def read_passthrough(self, value: object) -> None:
        """Read the table `[passthrough]`."""
        for place, item in self._names("passthrough", value, PASSTHROUGH):
            name = self._claim(place)
            entry = self._passthrough(place, name or "", item)
            if name and entry:
                self.passthrough[name] = entry

    def read_sites(self, value: object) -> None:
        """Read the table `[sites]`; aliases come last, so that a name which is taken twice is blamed on the alias."""
        found = []
        for place, item in self._names("sites", value, SITE):
            name = self._claim(place)
            found.append((place, *self._site(place, name or "", item)))
        for place, site, aliases in found:
            names = [self._claim((*place, "aliases", index), alias) for index, alias in enumerate(aliases)]
            if site is None or not site.name:
                continue
            self.sites[site.name] = site
            for alias in filter(None, names):
                self.sites[alias] = attrs.evolve(site, name=alias, alias_of=site.name)

    def knows(self, name: str) -> bool:
        """Whether the file has an entry of that name, be it a good one or not."""
        return name in self._taken

    # ---- names --------------------------------------------------------------------------------------

    def _names(self, section: str, value: object, known: Keys) -> Iterator[tuple[Place, object]]:
        """The entries of a section, without the host names that are misplaced in it; those are noted."""
        if not isinstance(value, dict):
            self._reading.table((section,), value, {})
            return
        for key, item in value.items():
            place = (section, key)
            if isinstance(item, dict):
                hosts = [inner for inner in item if self._is_host((*place, inner), item[inner], known)]
                for inner in hosts:
                    self._misplaced(place, inner, item[inner], known)
                options = {inner: each for inner, each in item.items() if inner not in hosts}
                if options or not hosts:
                    yield place, options
            else:
                yield place, item

    def _is_host(self, place: Place, value: object, known: Keys) -> bool:
        """Whether a key inside an entry is a host name, or a label of one, rather than a misspelt option."""
        key = str(place[-1])
        if key in known or key.startswith("/"):
            return False
        return "." in key or isinstance(value, dict) or self._reading.lines.dotted(place)

    def _misplaced(self, place: Place, key: str, value: object, known: Keys) -> None:
        section, entry = str(place[0]), str(place[1])
        for leaf, item in self._leaves((*place, key), value, known):
            labels = [str(label) for label in leaf[2:]]
            if "." in entry or "." in key:
                name = ".".join(labels)
                keys = 'options or begin with "/"' if section == "sites" else "options"
                kind = "a site" if section == "sites" else "a passthrough entry"
                problem = (
                    f"{quoted(name)} is inside {header(place)}, where keys are {keys}. "
                    f"If it is {kind}, move it up under {header((section,))}"
                )
                self._reading.wrong(leaf, problem, key="")
            else:
                name = ".".join([entry, *labels])
                meant = header((section, name)) if isinstance(item, dict) else f"{quoted(name)} = …"
                self._reading.wrong(leaf, f"quote the host name: {meant}", key=dotted_key(place))

    def _leaves(self, place: Place, value: object, known: Keys) -> Iterator[tuple[Place, object]]:
        """Where the labels end of the host names that dots without quotes have split, and what stands there."""
        inner = value if isinstance(value, dict) else {}
        labels = [key for key in inner if self._is_host((*place, key), inner[key], known)]
        if not labels:
            yield place, value
        for key in labels:
            yield from self._leaves((*place, key), inner[key], known)

    def _claim(self, place: Place, alias: str | None = None) -> str | None:
        """The name of an entry, None if it is none or is taken; of an alias, which is normalised already, likewise."""
        name = self._reading.value(place, entry_name, place[1]) if alias is None else alias
        if name is None:
            return None
        first = self._taken.setdefault(name, place)
        if first == place:
            return str(name)
        there = f"{dotted_key(first)} in line {self._reading.lines.of(first)}"
        if alias is not None:
            self._reading.wrong(place, f"{quoted(alias)} is taken by {there}: a name leads to one place")
        elif first[0] != place[0]:
            self._reading.wrong(place, f"is also {there}: a name is either a site or passed through, keep one of them")
        else:
            self._reading.wrong(place, f"is the same name as {there}: keep one of them")
        return None

    # ---- passthrough --------------------------------------------------------------------------------

    def _passthrough(self, place: Place, name: str, value: object) -> Passthrough | None:
        if isinstance(value, dict):
            if value.keys() <= PASSTHROUGH.keys() - {"to"}:
                self._reading.wrong(place, 'write where it goes: to = "10.1.2.3"')
            routes = [key for key in value if key.startswith("/")]
            for key in routes:
                more = "; a passthrough entry has no routes: if TLS should end here, move it to [sites]"
                self._reading.unknown((*place, key), PASSTHROUGH, more)
            options = {key: item for key, item in value.items() if key not in routes}
            found = self._reading.table(place, options, PASSTHROUGH)
        elif isinstance(value, str):
            to = self._reading.value(place, address(443), value)
            found = {} if to is None else {"to": (to,)}
        else:
            self._reading.wrong(place, 'write where it goes: "10.1.2.3", or a table with `to`')
            found = {}
        if "to" not in found:
            return None
        if not found["to"]:
            self._reading.wrong((*place, "to"), 'write at least one address, such as "10.1.2.3"')
            return None
        for index, address_ in enumerate(found["to"]):
            self._refuse_loop((*place, "to", index), address_)
        if "http_to" in found:
            self._refuse_loop((*place, "http_to"), found["http_to"])
        defaults = {"http": "challenges", "http_to": HostPort(found["to"][0].host, 80)}
        return Passthrough(name, access=_access(found), **{**defaults, **found})

    def _refuse_loop(self, place: Place, to: HostPort | Target) -> None:
        if leads_back(self._listen, to.host, to.port):
            self._reading.wrong(place, f"{to} is trioproxy itself, which would call itself without end")

    # ---- sites --------------------------------------------------------------------------------------

    def _site(self, place: Place, name: str, value: object) -> tuple[Site | None, tuple[str, ...]]:
        """The site that is called `name`, None if there is a mistake in it, and its aliases."""
        before = len(self._reading.mistakes)
        options: dict[str, Any] = {}
        routes: list[Route | None] = []
        if isinstance(value, dict):
            routes = [self._route((*place, key), item) for key, item in value.items() if key.startswith("/")]
            options = self._options(place, {key: item for key, item in value.items() if not key.startswith("/")})
        elif isinstance(value, str):
            routes = [self._route_to(place, "/", self._reading.value(place, target, value))]
        else:
            self._reading.wrong(place, 'write where it goes: "http://10.2.3.4", or a table of routes')
        aliases = options.pop("aliases", ())
        options["access"] = _access(options)
        if options.get("tls", "acme") == "acme":
            self._refuse_wildcards(place, name, aliases)
        if len(self._reading.mistakes) > before:
            return None, aliases
        good = sorted(filter(None, routes), key=lambda route: len(route.prefix), reverse=True)
        if not good:
            self._reading.wrong(place, 'write at least one route, such as "/" = "http://10.2.3.4"')
        return Site(name, tuple(good), **{"key_type": self._key_type, **options}), aliases

    def _options(self, place: Place, table: dict[str, Any]) -> dict[str, Any]:
        files = table.pop("tls") if isinstance(table.get("tls"), dict) else None
        targets = [key for key, item in table.items() if key not in SITE and isinstance(item, str) and "://" in item]
        for key in targets:
            prefix = "/" if key == "to" else f"/{key}"
            self._reading.unknown((*place, key), SITE, f'; a route begins with "/": {quoted(prefix)} = …')
            del table[key]
        options = self._reading.table(place, table, SITE)
        if files is not None:
            at = (*place, "tls")
            found = self._reading.table(at, files, FILES)
            if files.keys() < FILES.keys():
                self._reading.wrong(at, 'write both files: tls = { certificate = "x.pem", key = "x.key" }')
            if len(found) == len(FILES):
                options["tls"] = CertificateFiles(**found)
        return options

    def _refuse_wildcards(self, place: Place, name: str, aliases: tuple[str, ...]) -> None:
        named = [(place, name), *(((*place, "aliases", index), alias) for index, alias in enumerate(aliases))]
        for at, each in named:
            if each.startswith("*"):
                problem = (
                    "wildcards need DNS-01, and trioproxy gets its certificates by HTTP-01: "
                    'write each name, or set tls = "internal" or tls = { certificate = "x.pem", key = "x.key" }'
                )
                self._reading.wrong(at, problem if at == place else f"{quoted(each)}: {problem}")

    def _route(self, place: Place, value: object) -> Route | None:
        prefix = self._reading.value(place, route_prefix, place[-1])
        if isinstance(value, dict):
            if not value:
                self._reading.wrong(place, 'write where it goes: { to = "http://10.2.3.4" }')
            to = self._reading.table(place, value, ROUTE).get("to")
        else:
            to = self._reading.value(place, target, value)
        return self._route_to(place, prefix, to)

    def _route_to(self, place: Place, prefix: str | None, to: Target | None) -> Route | None:
        if to is None or prefix is None:
            return None
        self._refuse_loop(place, to)
        return Route(prefix, to)
