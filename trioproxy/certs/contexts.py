"""TLS contexts for sites, each from the best certificate that there is at the moment.

A context is never changed once it is in use: a `load_cert_chain` that fails half-way leaves one behind that can serve
nobody. A new certificate gets a new context, and connections keep the one they began with.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
from collections.abc import Sequence
from typing import Literal

import attrs

from trioproxy.certs.bundle import Bundle, Leaf
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store
from trioproxy.config.model import CertificateFiles, Config, Site
from trioproxy.errors import CertificateError, StoreError
from trioproxy.http.alpn import HTTP11
from trioproxy.net.credentials import load_pem

log = logging.getLogger("trioproxy.certs")

# With TLS 1.2 only what has forward secrecy and no padding to attack; TLS 1.3 has no others.
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"

_TICKETS = 1
"""Session tickets that each client gets. OpenSSL's two cost a twentieth of a handshake each; the second is for clients
that open several connections at once, and these have HTTP/2."""


def server_context(bundle: Bundle, alpn: Sequence[str] = HTTP11) -> ssl.SSLContext:
    """A fresh context that serves `bundle`. About a millisecond.

    Args:
        bundle: Key and chain.
        alpn: The protocols to offer, the preferred one first.

    Raises:
        CertificateError: TLS does not take the key or the chain (too short a key, a signature it distrusts), or the
            process is out of descriptors.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.num_tickets = _TICKETS
    context.set_ciphers(_TLS12_CIPHERS)
    context.set_alpn_protocols(alpn)
    load_pem(context, bundle.pem)
    return context


def read_files(files: CertificateFiles) -> Bundle:
    """The certificate and key that a user keeps in files of their own.

    Raises:
        CertificateError: a file cannot be read or every user of the machine can read the key, or the two are no pair.
    """
    try:
        chain = files.certificate.read_bytes()
        with files.key.open("rb") as file:
            key, mode = file.read(), stat.S_IMODE(os.fstat(file.fileno()).st_mode)
    except OSError as exc:
        raise CertificateError(f"{exc.filename} cannot be read: {exc.strerror}") from exc
    if mode & stat.S_IROTH:
        raise CertificateError(f"every user of this machine can read {files.key}: `chmod o= {files.key}`")
    try:
        return Bundle.of(key, chain)
    except CertificateError as exc:
        raise CertificateError(f"{files.certificate} with {files.key}: {exc}") from exc


@attrs.frozen
class Served:
    """What a context was made of.

    Attributes:
        leaf: Its certificate.
        by: "acme" or "files" for the site's own; "internal" for the internal CA's.
        problem: Why it is not the site's own, where it should be; "" if all is as it should be.
    """

    leaf: Leaf
    by: Literal["acme", "files", "internal"]
    problem: str = ""


class ContextSource:
    """Makes the context of any site; `context_for` is what `snapshot.Contexts` asks.

    Args:
        store: Where the sites' own certificates are.
        internal_ca: Signs for sites that have none, or want none of their own.
        alpn: The protocols that sites offer.

    Attributes:
        served: What the latest context of each site, by name, was made of; only sites that were asked for.
    """

    def __init__(self, store: Store, internal_ca: InternalCA, alpn: Sequence[str] = HTTP11) -> None:
        self._store = store
        self._internal_ca = internal_ca
        self._alpn = alpn
        self.served: dict[str, Served] = {}

    def context_for(self, site: Site) -> ssl.SSLContext:
        """A fresh context for `site`. It never fails: where all else does, the internal CA signs.

        A certificate of the site's own is served even when it has expired. Clients warn of either, but whoever looks at
        it then sees what is the matter, and a client that pinned its key goes on.
        """
        try:
            own, by = self._own(site)
            if own is not None:
                return self._make(site.name, own, by)
        except (StoreError, CertificateError) as exc:
            log.error("%s  gets a certificate of the internal CA (browsers warn) for now: %s", site.name, exc)
            return self._make(site.name, self._internal_ca.issue(site.name), "internal", str(exc))
        return self._make(site.name, self._internal_ca.issue(site.name), "internal")

    def context_of(self, site: Site, bundle: Bundle, by: Literal["acme", "files"] = "acme") -> ssl.SSLContext:
        """A fresh context for a `site` whose new certificate is at hand. Raises as `server_context`."""
        return self._make(site.name, bundle, by)

    def complain(self, name: str, problem: str) -> bool:
        """Note that what should be served for `name` cannot be, for `problem`; whether that was not known yet."""
        served = self.served.get(name)
        if served is None or served.problem == problem:
            return False
        self.served[name] = attrs.evolve(served, problem=problem)
        return True

    def awaiting(self, config: Config) -> frozenset[str]:
        """Names of the sites that are to have an ACME certificate and have none yet. Lists one folder."""
        names = [site.name for site in config.sites.values() if site.tls == "acme"]
        try:
            return frozenset(names) - self._store.stored(names)
        except StoreError as exc:
            log.error("no certificate of a site can be found: %s", exc)
            return frozenset(names)

    def prepare(self) -> None:
        """Have the internal CA at hand; may wait for a disk, so call it in a thread. Never fails."""
        self._internal_ca.prepare()

    def _own(self, site: Site) -> tuple[Bundle | None, Literal["acme", "files"]]:
        if isinstance(site.tls, CertificateFiles):
            return read_files(site.tls), "files"
        if site.tls == "internal":
            return None, "acme"
        bundle = self._store.load(site.name)
        if bundle is not None and not bundle.leaf.matches(site.name):
            raise CertificateError(f"the certificate in its place is for {', '.join(bundle.leaf.names) or 'no name'}")
        return bundle, "acme"

    def _make(
        self, name: str, bundle: Bundle, by: Literal["acme", "files", "internal"], problem: str = ""
    ) -> ssl.SSLContext:
        context = server_context(bundle, self._alpn)
        self.served[name] = Served(bundle.leaf, by, problem)
        return context
