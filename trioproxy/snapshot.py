"""What the proxy goes by at one moment, and the cell that holds the current one.

The proxy reads the cell once for each connection or request and keeps what it got; the certificate manager and a
reload publish a new value in one assignment. Nobody changes a snapshot in place, so nobody needs a lock.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

import attrs

from trioproxy.config.model import Config, Site
from trioproxy.routing import Entry, RouteTable

MakeContext = Callable[[Site], ssl.SSLContext]
"""Builds the context of a site from its certificate, or from a stand-in of the internal CA. Never fails."""


class Contexts:
    """TLS contexts by site, each made when it is first needed and kept.

    A context costs 21 KB and a millisecond, a stand-in certificate a signature: ten thousand names that nobody calls
    must not cost a start of ten seconds. Filling in what is missing is memory, not change: the answer is the same.
    """

    def __init__(self, make: MakeContext, made: dict[str, ssl.SSLContext] | None = None) -> None:
        self._make = make
        self._made = {} if made is None else made

    def of(self, site: Site) -> ssl.SSLContext:
        """The context to terminate connections to `site` with."""
        context = self._made.get(site.name)
        if context is None:
            context = self._made[site.name] = self._make(site)
        return context

    def replaced(self, name: str, context: ssl.SSLContext) -> Contexts:
        """These contexts with another one for the site `name`."""
        return Contexts(self._make, {**self._made, name: context})

    def unlike(self, other: Contexts) -> set[str]:
        """Names of the sites whose contexts were made, and are not those of `other`."""
        return {name for name, context in self._made.items() if other._made.get(name) is not context}


@attrs.frozen
class Snapshot:
    """A configuration, its routes and its certificates.

    Attributes:
        awaiting: Names of the sites that have no certificate of their own yet. Where a catch-all exists they stay
            with it until they have, so that moving from an old proxy leaves no gap.
    """

    config: Config
    routes: RouteTable
    contexts: Contexts
    awaiting: frozenset[str] = frozenset()

    def entry_for(self, name: str | None) -> tuple[Entry | None, bool]:
        """Where a connection or request for `name` belongs at this moment.

        Args:
            name: A normalised name, or None for a client that sent none.

        Returns:
            The entry, and whether it was reached by default (no name, or by the catch-all) rather than by the name.
        """
        if name is None:
            return self.routes.no_sni, True
        entry = self.routes.configured(name)
        catch_all = self.routes.catch_all()
        if entry is None or (catch_all is not None and entry.name in self.awaiting):
            return catch_all, True
        return entry, False


class Cell:
    """Holds the current snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.current = snapshot

    def update(self, change: Callable[[Snapshot], Snapshot]) -> None:
        """Publish what `change` makes of the current snapshot; synchronous, so nothing comes between."""
        self.current = change(self.current)
