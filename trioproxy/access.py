"""Who may connect: `allow` and `deny` of an entry. Pure; what "lan" is at the moment is handed in."""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence

import attrs

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PRIVATE: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",  # RFC 1918
        "169.254.0.0/16",
        "fe80::/10",  # link-local
        "fc00::/7",  # RFC 4193
        "127.0.0.0/8",
        "::1/128",
    )
)
"""What "lan" means everywhere, beside the networks that this machine is on: addresses that stay inside."""


@attrs.frozen
class Access:
    """The rule of one entry.

    Attributes:
        allow: Networks that may connect; empty, with `allow_lan` unset, is everyone.
        deny: Networks that may not, whatever `allow` says.
        allow_lan: "lan" stands in `allow`.
        deny_lan: "lan" stands in `deny`.
        open: Whether everyone may connect. It follows from the others, and is kept: each connection asks for it.
    """

    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    allow_lan: bool = False
    deny_lan: bool = False
    open: bool = attrs.field(init=False, eq=False, repr=False)

    @open.default
    def _open_to_all(self) -> bool:
        return not (self.allow or self.deny or self.allow_lan or self.deny_lan)

    def permits(self, host: str, on_link: Sequence[Network]) -> bool:
        """Whether a client at the address literal `host` may connect.

        Args:
            host: IPv4 or IPv6; an IPv4 address inside IPv6 counts as the former.
            on_link: The networks that this machine is on at the moment, for "lan".
        """
        if self.open:
            return True
        address = parse(host)
        lan = self.allow_lan or self.deny_lan
        near = lan and (within(address, PRIVATE) or within(address, on_link))
        if (self.deny_lan and near) or within(address, self.deny):
            return False
        if not self.allow and not self.allow_lan:
            return True
        return (self.allow_lan and near) or within(address, self.allow)


EVERYONE = Access()
"""The rule of an entry that has none."""


@functools.lru_cache(maxsize=4096)
def parse(host: str) -> Address:
    """An address literal as a value; IPv4 inside IPv6 counts as IPv4, so that it passes no rule in disguise."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def within(address: Address, networks: Sequence[Network]) -> bool:
    """Whether any of `networks` holds `address`."""
    return any(address in network for network in networks)
