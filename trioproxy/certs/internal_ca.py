"""The local certificate authority: stand-ins until a site's own certificate is there, and `tls = "internal"`.

A root that signs leaves directly. An intermediate would protect a root key that lies elsewhere; here both would lie in
the same folder. The chain still holds the root beside the leaf, for with a lone leaf OpenSSL searches and verifies a
chain at every handshake, and half a kilobyte is cheaper than that.

The root is made when it is first needed and kept. Leaves are made when a context needs one and live in memory only, so
they can be short-lived; each has its own key, for making one takes a tenth of what signing its certificate does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trioproxy.certs.bundle import Bundle
from trioproxy.certs.store import Store
from trioproxy.errors import CertificateError, StoreError

log = logging.getLogger("trioproxy.certs")

Clock = Callable[[], datetime]

ROOT_LIFETIME = timedelta(days=3650)
"""As long as people keep a machine: each new root has to be imported by hand again."""

ROOT_LEAST = timedelta(days=30)
"""A root with less than this left is replaced: its leaves must not outlive it."""

LEAF_LIFETIME = timedelta(days=7)

BACKDATED = timedelta(hours=1)
"""How far the clocks of clients may be behind ours."""

MAX_COMMON_NAME = 64
"""RFC 5280, ub-common-name; a longer host name stands in the subjectAltName alone."""


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class InternalCA:
    """The authority of one store.

    Args:
        store: Where the root is kept.
        clock: The wall clock, UTC.
    """

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self._store = store
        self._clock = clock
        self._kept: _Root | None = None

    def prepare(self) -> None:
        """Have the root at hand. It may wait for a disk once, so it is best called in a thread. Never fails.

        Where the store cannot be read or written the root lives in memory: browsers warn of stand-ins anyway, and a
        site is served from the first second.
        """
        self._root()

    def issue(self, name: str) -> Bundle:
        """A new key and certificate for `name`: a host name, `*.suffix` or `*`. About 0.2 ms."""
        return self._root().issue(name, self._clock())

    def _root(self) -> _Root:
        root = self._kept
        if root is None or not root.lasts(self._clock()):
            try:
                root = self._stored_root()
            except (StoreError, CertificateError) as exc:  # the latter: what was written is not what is read back
                log.error("the internal CA cannot be kept, so it lasts until the next start: %s", exc)
                root = _Root(_new_root(self._clock()))
            self._kept = root
        return root

    def _stored_root(self) -> _Root:
        with self._store.internal_lock():
            try:
                kept = self._store.internal_ca()
                root = None if kept is None else _Root(kept)
            except CertificateError as exc:
                log.error("the internal CA is damaged and gets a successor, to be imported anew: %s", exc)
                root = None
            if root is not None and not root.lasts(self._clock()):
                log.warning("the internal CA has come to its end and gets a successor, to be imported anew")
                root = None
            if root is None:
                root = _Root(_new_root(self._clock()))
                self._store.save_internal_ca(root.bundle)
        return root


class _Root:
    """A root that is ready to sign. CertificateError if `bundle` is none that `_new_root` could have made."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        key = load_pem_private_key(bundle.key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError("its key is not one for ECDSA")
        self._key = key
        self._subject = x509.load_pem_x509_certificate(bundle.chain_pem).subject

    def lasts(self, now: datetime) -> bool:
        return self.bundle.leaf.not_after - now > ROOT_LEAST

    def issue(self, name: str, now: datetime) -> Bundle:
        key = ec.generate_private_key(ec.SECP256R1())
        common_name = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= MAX_COMMON_NAME else []
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(common_name))
            .issuer_name(self._subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATED)
            .not_valid_after(now + LEAF_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=not common_name)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Bundle.of(_key_pem(key), certificate.public_bytes(Encoding.PEM) + self.bundle.chain_pem)


def _new_root(now: datetime) -> Bundle:
    key = ec.generate_private_key(ec.SECP256R1())
    # Two authorities with one name but different keys confuse those who look for an issuer by name.
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "trioproxy"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"trioproxy internal CA {now:%Y-%m-%d %H:%M:%S}"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(of_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Bundle.of(_key_pem(key), certificate.public_bytes(Encoding.PEM))


def _usage(*, of_ca: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not of_ca,
        key_cert_sign=of_ca,
        crl_sign=of_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
