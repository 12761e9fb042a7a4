"""The leaf's key, the request for its certificate, and a look at what comes back.

A CA's answer is served to the world as soon as it is stored, so it is not taken on trust: it must be for our key and
our name, and nothing but certificates in the order in which TLS wants them goes further.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID, ObjectIdentifier

from trioproxy.acme.problems import AcmeProtocolError
from trioproxy.config.model import KeyType

MAX_CHAIN = 10
"""Certificates in a chain; real ones have two or three."""

LeafKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_ACME_IDENTIFIER = ObjectIdentifier("1.3.6.1.5.5.7.1.31")

_CURVES: dict[KeyType, type[ec.EllipticCurve]] = {"ecdsa-p256": ec.SECP256R1, "ecdsa-p384": ec.SECP384R1}
_SIZES: dict[KeyType, int] = {"rsa-2048": 2048, "rsa-4096": 4096}


def new_key(key_type: KeyType) -> bytes:
    """A fresh private key as PKCS#8 PEM. RSA takes from a tenth of a second to several."""
    key: LeafKey
    if key_type in _SIZES:
        key = rsa.generate_private_key(65537, _SIZES[key_type])
    else:
        key = ec.generate_private_key(_CURVES[key_type]())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def type_of(key_pem: bytes) -> KeyType | None:
    """Which type a private key is; None for one that cannot be read or is none of ours."""
    key = _load(key_pem)
    if isinstance(key, rsa.RSAPrivateKey):
        return next((known for known, size in _SIZES.items() if size == key.key_size), None)
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return next((known for known, curve in _CURVES.items() if isinstance(key.curve, curve)), None)
    return None


def signing_request(key_pem: bytes, name: str) -> bytes:
    """A CSR in DER: the name stands in subjectAltName alone, as RFC 8555 section 7.4 allows and CAs prefer.

    Args:
        key_pem: A key of which `type_of` knows the type.
        name: A normalised host name.
    """
    key = _load(key_pem)
    if key is None:
        raise ValueError("not a private key for a certificate")
    strong = isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA384() if strong else hashes.SHA256())
        .public_bytes(Encoding.DER)
    )


def checked_chain(pem: bytes, key_pem: bytes, name: str) -> bytes:
    """The chain to serve: the leaf, and after each certificate the one that signed it, without the root.

    Args:
        pem: What the CA sent.
        key_pem: The key that the certificate must be for.
        name: The host name that it must be for.

    Raises:
        AcmeProtocolError: it is something else; the message says what.
    """
    try:
        certificates = x509.load_pem_x509_certificates(pem)
        leaf = certificates[0]
        fits = _spki_of_key(key_pem) == leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [host.lower() for host in names.get_values_for_type(x509.DNSName)]
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound) as exc:
        raise AcmeProtocolError(f"the CA sent something that is no certificate of use ({exc})") from exc
    if len(certificates) > MAX_CHAIN:
        raise AcmeProtocolError(f"the CA sent a chain of {len(certificates)} certificates")
    if not fits:
        raise AcmeProtocolError("the CA sent a certificate for another key than ours")
    if name not in hosts:
        raise AcmeProtocolError(f"the CA sent a certificate for {', '.join(hosts) or 'no name'}")
    chain = [leaf]
    others = certificates[1:]
    while others:
        issuer = next((other for other in others if _signed(chain[-1], other)), None)
        if issuer is None and len(chain) == 1:
            raise AcmeProtocolError("the CA sent a certificate and others, none of which signed it")
        if issuer is None or issuer.issuer == issuer.subject:  # the root: whoever trusts it has it
            break
        chain.append(issuer)
        others.remove(issuer)
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)


def top_issuer(chain_pem: bytes) -> str:
    """The common name of the root that a chain leads to: who issued its last certificate; "" for one without."""
    names = x509.load_pem_x509_certificates(chain_pem)[-1].issuer.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def proof_in_tls(name: str, key_authorization: str) -> bytes:
    """The certificate that answers a tls-alpn-01 challenge (RFC 8737 section 3), and its key, PEM.

    Args:
        name: The host name.
        key_authorization: What the certificate has to carry, as a digest.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ACME challenge")])
    # acmeIdentifier ::= OCTET STRING (SIZE (32)): tag, length, SHA-256.
    digest = b"\x04\x20" + hashlib.sha256(key_authorization.encode("ascii")).digest()
    certificate = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.UnrecognizedExtension(_ACME_IDENTIFIER, digest), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + certificate.public_bytes(Encoding.PEM)


def well_worn(chain_pem: bytes, now: datetime) -> bool:
    """Whether the leaf has spent a third of its life already: too much for one that is to be used from now on."""
    leaf = x509.load_pem_x509_certificate(chain_pem)
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    return now > start + (end - start) / 3


def _signed(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _load(key_pem: bytes) -> LeafKey | None:
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) else None


def _spki_of_key(key_pem: bytes) -> bytes:
    return (
        load_pem_private_key(key_pem, None).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
