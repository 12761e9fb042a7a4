"""Certificates, sites and configurations for the tests of this room."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from trioproxy.certs.bundle import Bundle
from trioproxy.config.model import (
    Acme,
    CertificateFiles,
    Config,
    Limits,
    Listen,
    Passthrough,
    Route,
    Site,
    Target,
    Timeouts,
)

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)

DAY = timedelta(days=1)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def subject(organisation: str, common_name: str) -> x509.Name:
    parts = ((NameOID.ORGANIZATION_NAME, organisation), (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])


def chain_pem(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[str],
    *,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + 89 * DAY,
    issuer: x509.Name | None = None,
    serial: int | None = None,
) -> bytes:
    """A leaf for `names` and one certificate above it."""
    issuer = subject("Test Authority", "T1") if issuer is None else issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if names:
        names_extension = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(names_extension, critical=True)
    ca_key = new_key()
    above = (
        x509.CertificateBuilder()
        .subject_name(issuer)
        .issuer_name(issuer)
        .public_key(ca_key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = builder.sign(ca_key, hashes.SHA256())
    return leaf.public_bytes(Encoding.PEM) + above.public_bytes(Encoding.PEM)


def bundle(
    *names: str, not_before: datetime = NOW - DAY, not_after: datetime = NOW + 89 * DAY, serial: int | None = None
) -> Bundle:
    """A key and chain for `names`; fresh, with most of 90 days before it, unless told otherwise."""
    key = new_key()
    return Bundle.of(key_pem(key), chain_pem(key, names, not_before=not_before, not_after=not_after, serial=serial))


def due_bundle(*names: str) -> Bundle:
    """One that has ten of its 90 days left."""
    return bundle(*names, not_before=NOW - 80 * DAY, not_after=NOW + 10 * DAY)


def acme_site(name: str) -> Site:
    return Site(name, (Route("/", Target("http", "127.0.0.1", 1)),))


def internal_site(name: str) -> Site:
    return Site(name, (Route("/", Target("http", "127.0.0.1", 1)),), tls="internal")


def files_site(name: str, files: CertificateFiles) -> Site:
    return Site(name, (Route("/", Target("http", "127.0.0.1", 1)),), tls=files)


def config(storage: Path, *sites: Site, passthrough: Sequence[Passthrough] = (), acme: Acme | None = None) -> Config:
    return Config(
        path=Path("config.toml"),
        listen=Listen(),
        acme=acme or Acme(),
        passthrough={entry.name: entry for entry in passthrough},
        sites={site.name: site for site in sites},
        timeouts=Timeouts(),
        limits=Limits(),
        storage=storage,
        control_socket=storage / "control.sock",
    )
