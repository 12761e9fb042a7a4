"""A certificate for all proxies alike: an ECDSA P-256 leaf with an intermediate, as Let's Encrypt issues them."""

from __future__ import annotations

import datetime
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID = datetime.timedelta(days=1)
"""For so long before and after the moment they are made."""


@attrs.frozen
class Files:
    """Where it is.

    Attributes:
        root: The anchor that a client trusts.
        chain: Leaf, then intermediate.
        key: The leaf's.
        both: Key and chain in one file, which HAProxy wants.
    """

    root: Path
    chain: Path
    key: Path
    both: Path


def issue(name: str, folder: Path, valid: datetime.timedelta = VALID) -> Files:
    """A certificate for `name`, in `folder`, that is `valid` for so long before and after this moment."""
    root_key, issuer_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = _certificate("bench root", root_key, "bench root", root_key, valid, authority=True)
    issuer = _certificate("bench intermediate", issuer_key, "bench root", root_key, valid, authority=True)
    leaf = _certificate(name, key, "bench intermediate", issuer_key, valid, authority=False)
    files = Files(*(folder / file for file in ("root.pem", "chain.pem", "key.pem", "both.pem")))
    files.root.write_bytes(_pem(root))
    files.chain.write_bytes(_pem(leaf) + _pem(issuer))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for file in (files.key, files.both):
        file.touch(0o600)
    files.key.write_bytes(secret)
    files.both.write_bytes(secret + files.chain.read_bytes())
    return files


def _certificate(
    subject: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: ec.EllipticCurvePrivateKey,
    valid: datetime.timedelta,
    *,
    authority: bool,
) -> x509.Certificate:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - valid)
        .not_valid_after(now + valid)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
