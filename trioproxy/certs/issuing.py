"""How the internal CA's certificates are made: root, intermediate, leaf. Nothing is read or kept here.

The root signs intermediates and nothing else, an intermediate signs leaves. What each may do is written into it:

    root            CA, pathlen 1    keyCertSign, cRLSign
    intermediate    CA, pathlen 0    keyCertSign, cRLSign, for TLS servers only (extended key usage)
    leaf            no CA            digitalSignature, for TLS servers only

There are no name constraints. A root is imported by hand on every device, and names come and go with each reload: one
that permitted only today's would have to be imported anew for the next. In the intermediate they would bind nobody who
has this folder, and the TLS stacks of small devices (mbedTLS) refuse a chain that has the extension at all.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from trioproxy.certs.bundle import Bundle
from trioproxy.errors import CertificateError

ROOT_LIFETIME = timedelta(days=3650)
"""As long as people keep a machine: each new root has to be imported by hand again."""

INTERMEDIATE_LIFETIME = timedelta(days=90)

LEAF_LIFETIME = timedelta(days=7)

LEAST = timedelta(days=30)
"""A root or intermediate with less than this left gets a successor: far more than any leaf below it has."""

BACKDATED = timedelta(hours=1)
"""How far the clocks of clients may be behind ours."""

MAX_COMMON_NAME = 64
"""RFC 5280, ub-common-name; a longer host name stands in the subjectAltName alone."""

_DIRECT = 0
"""The pathlen of roots that versions before the first release made: they permit no intermediate below them."""


class Signer:
    """A root or an intermediate that is ready to sign.

    Args:
        bundle: Its key and certificate.

    Attributes:
        bundle: The same.

    Raises:
        CertificateError: `bundle` is none that was made here.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        key = load_pem_private_key(bundle.key_pem, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise CertificateError("its key is not one for ECDSA")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(bundle.chain_pem)
        extensions = self._certificate.extensions
        try:
            limits = extensions.get_extension_for_class(x509.BasicConstraints).value
            identifier = extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        except x509.ExtensionNotFound as exc:
            raise CertificateError("it is not the certificate of an authority") from exc
        if not limits.ca:
            raise CertificateError("it is not the certificate of an authority")
        self._path_length = limits.path_length
        self._authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)

    @property
    def signs_leaves(self) -> bool:
        """Whether it can sign nothing but leaves: an intermediate, or a root of an early version."""
        return self._path_length == _DIRECT

    def lasts(self, now: datetime) -> bool:
        """Whether it is to be used now.

        A root is, though it be not valid yet: a machine without a battery starts in 1970, and what people imported must
        survive that. An intermediate costs nothing to replace, and clients would refuse it.
        """
        begun = self._certificate.issuer == self._certificate.subject or self.bundle.leaf.not_before <= now
        return begun and self.bundle.leaf.not_after - now > LEAST

    def signed(self, other: Signer) -> bool:
        """Whether `other` is below this one."""
        try:
            other._certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def intermediate(self, now: datetime) -> Signer:
        """A new intermediate below this root. Its chain is itself alone: clients have the root, or do not trust it."""
        key = _new_key()
        certificate = (
            self._below(_authority_name("internal CA, intermediate of", now), key, now)
            .not_valid_after(min(now + INTERMEDIATE_LIFETIME, self.bundle.leaf.not_after))
            .add_extension(x509.BasicConstraints(ca=True, path_length=_DIRECT), critical=True)
            .add_extension(_usage(of_ca=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        return Signer(Bundle.of(_key_pem(key), certificate.public_bytes(Encoding.PEM)))

    def leaf(self, name: str, now: datetime) -> Bundle:
        """A new key and certificate for `name`: a host name, `*.suffix` or `*`. About 0.2 ms.

        Its chain is the leaf and what signed it. With a lone leaf OpenSSL would search and verify a chain at every
        handshake.
        """
        key = _new_key()
        common_name = [x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= MAX_COMMON_NAME else []
        certificate = (
            self._below(x509.Name(common_name), key, now)
            .not_valid_after(now + LEAF_LIFETIME)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=not common_name)
            .sign(self._key, hashes.SHA256())
        )
        return Bundle.of(_key_pem(key), certificate.public_bytes(Encoding.PEM) + self.bundle.chain_pem)

    def _below(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime) -> x509.CertificateBuilder:
        return (
            _begun(subject, self._certificate.subject, key, now)
            .add_extension(self._authority, critical=False)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        )


def new_root(now: datetime) -> Signer:
    """A root that nobody trusts yet."""
    key = _new_key()
    name = _authority_name("internal CA", now)
    certificate = (
        _begun(name, name, key, now)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=_DIRECT + 1), critical=True)
        .add_extension(_usage(of_ca=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Signer(Bundle.of(_key_pem(key), certificate.public_bytes(Encoding.PEM)))


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _authority_name(what: str, now: datetime) -> x509.Name:
    """A name of its own: two authorities of one name but different keys confuse those who look for an issuer by it."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "trioproxy"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"trioproxy {what} {now:%Y-%m-%d %H:%M:%S}"),
        ]
    )


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


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
