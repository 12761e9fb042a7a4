"""Where a name and a path lead. Pure, and the same cost for ten names as for ten thousand.

Names come normalised (`trioproxy.names`). An exact name wins over a wildcard, a wildcard over the catch-all;
a wildcard covers exactly one label.
"""

from __future__ import annotations

import attrs

from trioproxy.config.model import CATCH_ALL, Config, Passthrough, Route, Site

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
    for route in site.routes:  # longest first
        prefix = route.prefix
        if path.startswith(prefix) and (prefix.endswith("/") or len(path) == len(prefix) or path[len(prefix)] == "/"):
            return route
    return None
