"""A private key and its certificate chain, in one piece. Pure: nothing is read here, and no clock is asked.

The one file format of the store is the key's PEM block followed by those of the chain, leaf first. A pair that lives in
two files can be torn apart by a crash between two renames; one file cannot.
"""

from __future__ import annotations

import re
from datetime import datetime

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from trioproxy.acme.problems import plain
from trioproxy.errors import CertificateError

# RFC 7468. Text around the blocks is commentary (section 2), and OpenSSL writes EC PARAMETERS beside some keys.
_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----\s.*?-----END \1-----", re.DOTALL)


@attrs.frozen
class Leaf:
    """What a certificate says of itself, without its bytes: small enough to keep ten thousand of.

    Attributes:
        names: The host names of its subjectAltName, lower case, as A-labels; `*.suffix` for a wildcard.
        not_before: Valid from; UTC.
        not_after: Valid until; UTC.
        issuer: Who signed it, in words for people.
        serial: Its serial number.
    """

    names: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    issuer: str
    serial: int

    def matches(self, name: str) -> bool:
        """Whether it is good for `name`, a normalised host name or `*.suffix` (RFC 9525 section 6.3)."""
        _, dot, suffix = name.partition(".")
        return name in self.names or bool(dot and f"*.{suffix}" in self.names)


@attrs.frozen
class Bundle:
    """A private key and the chain that belongs to it.

    Attributes:
        key_pem: The key's PEM block; never shown in a repr.
        chain_pem: The certificates' PEM blocks, the leaf first.
        leaf: What the leaf says of itself.
    """

    key_pem: bytes = attrs.field(repr=False)
    chain_pem: bytes = attrs.field(repr=False)
    leaf: Leaf

    @classmethod
    def of(cls, key_pem: bytes, chain_pem: bytes) -> Bundle:
        """Put a key and a chain together, reduced to their PEM blocks.

        Args:
            key_pem: PEM with exactly one private key, not encrypted; whatever else it holds is left out.
            chain_pem: PEM with at least one certificate, the leaf first; whatever else it holds is left out.

        Raises:
            CertificateError: one of them is missing or cannot be read, or they do not fit each other.
        """
        key_block = _key_block(key_pem)
        blocks = pem_blocks(chain_pem, b"CERTIFICATE")
        if not blocks:
            raise CertificateError("there is no certificate in it (no BEGIN CERTIFICATE line)")
        leaf = _read_leaf(blocks)
        if _public_key_of(key_block) != _spki(leaf):
            raise CertificateError("the private key does not belong to the certificate")
        return cls(key_block + b"\n", b"".join(block + b"\n" for block in blocks), _facts(leaf))

    @classmethod
    def parse(cls, pem: bytes) -> Bundle:
        """Read the file format of the store. Raises as `of`."""
        return cls.of(pem, pem)

    @property
    def pem(self) -> bytes:
        """The file format of the store."""
        return self.key_pem + self.chain_pem

    def split_chain(self) -> tuple[bytes, bytes]:
        """The leaf's PEM block, and those of the certificates above it."""
        leaf, *above = pem_blocks(self.chain_pem, b"CERTIFICATE")
        return leaf + b"\n", b"".join(block + b"\n" for block in above)


def pem_blocks(pem: bytes, kind: bytes) -> list[bytes]:
    """The PEM blocks whose label ends with `kind`. CertificateError if any block, of whatever kind, has no end."""
    found = list(_BLOCK.finditer(pem))
    if len(found) != pem.count(b"-----BEGIN "):
        raise CertificateError("it is cut off or damaged (a BEGIN line without its END line)")
    return [match[0] for match in found if match[1].endswith(kind)]


def _key_block(pem: bytes) -> bytes:
    blocks = pem_blocks(pem, b"PRIVATE KEY")
    if not blocks:
        raise CertificateError("there is no private key in it (no BEGIN PRIVATE KEY line)")
    if len(blocks) > 1:
        raise CertificateError(f"there are {len(blocks)} private keys in it; leave only the one of the certificate")
    return blocks[0]


def _public_key_of(key_block: bytes) -> bytes:
    try:
        public_key = load_pem_private_key(key_block, None).public_key()
    except TypeError as exc:  # cryptography's way to say that it wants a passphrase
        raise CertificateError(
            "the private key is encrypted; nobody is there to type its passphrase: store it without one"
        ) from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CertificateError(f"the private key cannot be read: {_first_line(exc)}") from exc
    return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _read_leaf(blocks: list[bytes]) -> x509.Certificate:
    """The first certificate; the others must at least be certificates, for TLS to load them."""
    try:
        certificates = [x509.load_pem_x509_certificate(block) for block in blocks]
    except ValueError as exc:
        raise CertificateError(f"a certificate cannot be read: {_first_line(exc)}") from exc
    return certificates[0]


def _spki(certificate: x509.Certificate) -> bytes:
    try:
        return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CertificateError(f"the certificate's key cannot be read: {_first_line(exc)}") from exc


def _facts(certificate: x509.Certificate) -> Leaf:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        hosts = tuple(plain(name.lower()) for name in names.value.get_values_for_type(x509.DNSName))
    except x509.ExtensionNotFound:  # no client of today looks at the common name instead (RFC 9525 section 2)
        hosts = ()
    except ValueError as exc:
        raise CertificateError(f"the certificate's names cannot be read: {_first_line(exc)}") from exc
    return Leaf(
        names=hosts,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        issuer=_issuer(certificate.issuer),
        serial=certificate.serial_number,
    )


def _issuer(issuer: x509.Name) -> str:
    """`Let's Encrypt, R13`; whatever of organisation and common name there is, and does not say it twice."""
    organisation, common_name = (
        next((str(a.value) for a in issuer.get_attributes_for_oid(oid)), "")
        for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
    )
    if organisation in common_name:
        organisation = ""
    return plain(", ".join(filter(None, (organisation, common_name))) or issuer.rfc4514_string() or "nobody")


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0] or type(exc).__name__
