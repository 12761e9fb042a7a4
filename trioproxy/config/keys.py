"""The keys that entries may have, and what reads the value of each."""

from __future__ import annotations

from typing import Any

from trioproxy.access import Access
from trioproxy.config.model import KeyType
from trioproxy.config.reading import Key, Keys
from trioproxy.config.targets import hsts, proxy_version, redirect, target, tls_name, verify
from trioproxy.config.values import (
    LAN,
    Wrong,
    address,
    duration,
    entry_name,
    file_path,
    near,
    network_or_lan,
    one_of,
    quoted,
    text,
)

KEY_TYPES: tuple[KeyType, ...] = ("ecdsa-p256", "ecdsa-p384", "rsa-2048", "rsa-4096")


def _tls(value: object) -> str:
    word = text(value)
    if word not in ("acme", "internal"):
        files = '{ certificate = "x.pem", key = "x.key" }'
        raise Wrong(f'{quoted(word)} is none of "acme", "internal", {files}{near(word, ("acme", "internal"))}')
    return word


TIMEOUTS: Keys = {key: Key(duration) for key in ("hello", "header", "connect", "response", "idle", "tunnel", "drain")}

# What is counted before the name is known, or for the whole server, is the same for all names; and so with routes.
SITE_TIMEOUTS: Keys = {key: TIMEOUTS[key] for key in ("header", "connect", "response", "idle", "tunnel")}

ROUTE_TIMEOUTS: Keys = {key: TIMEOUTS[key] for key in ("connect", "response", "idle", "tunnel")}

WHO: Keys = {"allow": Key(network_or_lan, many=True), "deny": Key(network_or_lan, many=True)}

TRUST: Keys = {
    "verify": Key(verify),
    "ca_file": Key(file_path, empty=True),
    "server_name": Key(tls_name, empty=True),
}
"""What https backends must prove; of a site the default of its routes."""

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
    "hsts": Key(hsts, empty=True),
    "timeouts": Key(duration, inner=SITE_TIMEOUTS),
    **TRUST,
    **WHO,
}

ROUTE: Keys = {
    "to": Key(target, many=True, lone=True),
    "redirect": Key(redirect),
    "timeouts": Key(duration, inner=ROUTE_TIMEOUTS),
    **TRUST,
    "proxy_protocol": Key(proxy_version, empty=True),
}

FILES: Keys = {"certificate": Key(file_path), "key": Key(file_path)}


def access(options: dict[str, Any]) -> Access:
    """Who may connect, taken out of an entry's options."""
    allow, deny = options.pop("allow", ()), options.pop("deny", ())
    return Access(
        allow=tuple(item for item in allow if item != LAN),
        deny=tuple(item for item in deny if item != LAN),
        allow_lan=LAN in allow,
        deny_lan=LAN in deny,
    )
