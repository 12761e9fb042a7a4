"""The entries of `[passthrough]` and `[sites]`: tables whose keys are host names.

TOML makes two mistakes easy here. A host name without quotes becomes tables within tables, one for each label; and an
entry that is written below the header of another one becomes part of it. Both are told apart from a misspelt option
by how the key was written, and both are answered with what was meant.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from trioproxy.config.keys import PASSTHROUGH, SITE, TIMEOUTS, access
from trioproxy.config.lines import Place, dotted_key, header
from trioproxy.config.loops import LOOP, endless_redirects, leads_back
from trioproxy.config.model import HostPort, KeyType, Listen, Passthrough, Site, Timeouts
from trioproxy.config.reading import Keys, Reading
from trioproxy.config.sites import SiteReader
from trioproxy.config.values import address, entry_name, quoted


class Entries:
    """Reads both tables, and sees to it that each name is taken once."""

    def __init__(self, reading: Reading, listen: Listen, timeouts: Timeouts, key_type: KeyType) -> None:
        self.passthrough: dict[str, Passthrough] = {}
        self.sites: dict[str, Site] = {}
        self._reading = reading
        self._listen = listen
        self._site = SiteReader(reading, listen, timeouts, key_type)
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
            found.append((place, *self._site.read(place, name or "", item)))
        for place, site, aliases in found:
            names = [self._claim((*place, "aliases", index), alias) for index, alias in enumerate(aliases)]
            if site is None or not site.name:
                continue
            self.sites[site.name] = site
            for alias in filter(None, names):
                self.sites[alias] = attrs.evolve(site, name=alias, alias_of=site.name)
        for site, route in endless_redirects(self.sites, self._listen):
            place = (*self._taken[site.name], route.prefix, "redirect")
            self._reading.wrong(
                place, f"{quoted(route.redirect)} leads back here, and browsers would go round for ever"
            )

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
        if isinstance(value, dict) and value.keys() & TIMEOUTS.keys():
            return False  # `timeouts`, misspelt: no host has a domain `connect`
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
        return Passthrough(name, access=access(found), **{**defaults, **found})

    def _refuse_loop(self, place: Place, to: HostPort) -> None:
        if leads_back(self._listen, to.host, to.port):
            self._reading.wrong(place, f"{to} {LOOP}")
