"""What `trioproxy check --network` adds: where the names of sites lead, as DNS tells this machine."""

from __future__ import annotations

import trio

from trioproxy.certs.first_order import PATIENCE, records
from trioproxy.config.model import Config
from trioproxy.net.lan import Interface, public_addresses
from trioproxy.net.resolve import Resolver


def network_warnings(config: Config) -> list[str]:
    """What is worth a warning in the records of sites that get their certificates from a CA. Takes seconds at most."""
    names = [site.name for site in config.sites.values() if site.tls == "acme"]
    return trio.run(_ask, names, Resolver(), public_addresses())


async def _ask(names: list[str], resolver: Resolver, own: tuple[Interface, ...]) -> list[str]:
    found: dict[str, list[str]] = {}

    async def ask(name: str) -> None:
        found[name] = await records(name, resolver, own)

    with trio.move_on_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
    silent = [name for name in names if name not in found]
    told = [warning for name in names for warning in found.get(name, [])]
    if silent:
        rest = f" and {len(silent) - 1} more" if len(silent) > 1 else ""
        told.append(f"no answer came within {PATIENCE:g} s from the name servers about {silent[0]}{rest}")
    return told
