"""What our own listener really serves for a name: after a swap we go and look, as a client would.

A renewal that fails in silence while the old certificate is still served is what users of proxies complain of most.
So the handshake is a real one, with a listening address of ours: never with the public one, which many a router does
not let its own network reach.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal

import attrs
import trio
from cryptography import x509

from trioproxy.access import parse, within
from trioproxy.certs.bundle import Leaf
from trioproxy.config.model import Config, HostPort, Site
from trioproxy.errors import StreamError, UpstreamError
from trioproxy.net.dial import Dialler
from trioproxy.net.lan import on_link_networks
from trioproxy.net.sock import Reaper, Stream

PATIENCE = 5.0
"""Seconds for the handshake with ourselves: a busy machine takes a while, but the next renewal must not wait for it."""

Addresses = Callable[[], Sequence[HostPort]]


async def _at_once() -> None:
    """Who publishes serves, too."""


@attrs.frozen
class Listening:
    """Where this process listens at the moment, by what was really bound.

    Attributes:
        https: Asked for the addresses of TLS listeners.
        http: Asked for those of plain ones.
        settled: Returns when all processes that accept there serve what has been published.
    """

    https: Addresses
    http: Addresses
    settled: Callable[[], Awaitable[None]] = _at_once


@attrs.frozen
class Verdict:
    """What came of looking.

    Attributes:
        result: `unknown`: it could not be looked at from here.
        words: That in words, to stand after the name and behind "new handshakes".
    """

    result: Literal["good", "unknown", "wrong"]
    words: str


def reachable(addresses: Sequence[HostPort]) -> HostPort | None:
    """Where we can call one of our own listeners: over loopback where it is bound to every address. IPv4 first."""
    for address in sorted(addresses, key=lambda address: ":" in address.host):
        own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
        return HostPort(own, address.port)
    return None


def must_announce(config: Config, address: HostPort) -> bool:
    """Whether a listener wants a PROXY header of us. Who calls an address of this machine's own calls from it."""
    return within(parse(address.host), config.listen.proxy_protocol_from)


async def look(config: Config, site: Site, leaf: Leaf, addresses: Sequence[HostPort]) -> Verdict:
    """Shake hands with our own listener, and compare the certificate that comes with `leaf`."""
    address = reachable(addresses)
    if address is None:
        return _unknown("nothing listens here")
    if must_announce(config, address):
        return _unknown(f"connections from {address.host} must begin with a PROXY header")
    if not site.access.permits(address.host, on_link_networks()):
        return _unknown(f"{address.host} may not connect to it")
    try:
        with trio.fail_after(PATIENCE):
            serial = await _serial(address, site.name)
    except (UpstreamError, StreamError) as exc:
        return Verdict("wrong", f"fail, as a trial with our own listener at {address} shows: {exc}")
    except trio.TooSlowError:
        return Verdict("wrong", f"hang, as a trial with our own listener at {address} shows")
    if serial != leaf.serial:
        return Verdict("wrong", f"get another certificate at {address} (serial number {serial:x}, not {leaf.serial:x})")
    return Verdict("good", "already get it (checked)")


def _unknown(why: str) -> Verdict:
    return Verdict("unknown", f"already get it (not checked: {why})")


async def _serial(address: HostPort, name: str) -> int:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # it is compared with what we know; a stand-in is to be seen, not refused
    stream: Stream = await Dialler(Reaper()).dial(address)
    try:
        await stream.start_tls_client(context, name)
        shown = stream.sock.getpeercert(binary_form=True) if isinstance(stream.sock, ssl.SSLSocket) else None
    finally:
        stream.close()
    return x509.load_der_x509_certificate(shown or b"").serial_number
