"""Keys, requests for certificates, and what is accepted as an answer."""

from __future__ import annotations

import datetime

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from trioproxy.acme.certificate import (
    MAX_CHAIN,
    checked_chain,
    new_key,
    signing_request,
    type_of,
    well_worn,
)
from trioproxy.acme.problems import AcmeProtocolError
from trioproxy.config.model import KeyType

NOW = datetime.datetime(2026, 11, 21, 9, tzinfo=datetime.UTC)
DAY = datetime.timedelta(days=1)


@attrs.frozen
class Issuer:
    """Somebody who signs."""

    name: str
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str, by: Issuer | None = None) -> Issuer:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = certificate(name, by.name if by else name, key.public_key())
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return cls(name, key, builder.sign(by.key if by else key, hashes.SHA256()))

    def issue(self, key_pem: bytes, *names: str) -> x509.Certificate:
        key = load_pem_private_key(key_pem, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        builder = certificate("", self.name, key.public_key())
        if names:
            hosts = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            builder = builder.add_extension(hosts, critical=True)
        return builder.sign(self.key, hashes.SHA256())


def certificate(subject: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    names = [
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)] if name else []) for name in (subject, issuer)
    ]
    return x509.CertificateBuilder(names[1], names[0], key, x509.random_serial_number(), NOW - 30 * DAY, NOW + 60 * DAY)


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


ROOT = Issuer.make("root")
UPPER = Issuer.make("upper", ROOT)
LOWER = Issuer.make("lower", UPPER)
STRANGER = Issuer.make("stranger")
KEY = new_key("ecdsa-p256")
LEAF = LOWER.issue(KEY, "cloud.test")


@pytest.mark.parametrize("key_type", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
def test_keys_are_of_the_type_that_was_asked_for_and_never_the_same(key_type: KeyType) -> None:
    key = new_key(key_type)
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----"), "PKCS#8"
    assert type_of(key) == key_type
    assert new_key(key_type) != key


@pytest.mark.parametrize(
    "key",
    [
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ec.generate_private_key(ec.SECP521R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
        ),
    ],
    ids=["nothing", "broken", "Ed25519", "P-521", "encrypted"],
)
def test_other_keys_are_of_no_type(key: bytes) -> None:
    assert type_of(key) is None


@pytest.mark.parametrize(
    ("key_type", "digest"),
    [("ecdsa-p256", hashes.SHA256), ("ecdsa-p384", hashes.SHA384), ("rsa-2048", hashes.SHA256)],
)
def test_a_request_names_the_host_in_subject_alt_name_alone(
    key_type: KeyType, digest: type[hashes.HashAlgorithm]
) -> None:
    key = new_key(key_type)
    csr = x509.load_der_x509_csr(signing_request(key, "cloud.test"))
    assert csr.is_signature_valid
    assert isinstance(csr.signature_hash_algorithm, digest)
    assert list(csr.subject) == []
    (extension,) = csr.extensions
    assert isinstance(extension.value, x509.SubjectAlternativeName)
    assert extension.value.get_values_for_type(x509.DNSName) == ["cloud.test"]


@pytest.mark.parametrize(
    "sent",
    [
        pem(LEAF, LOWER.certificate, UPPER.certificate),
        pem(LEAF, LOWER.certificate, UPPER.certificate, ROOT.certificate),
        pem(LEAF, UPPER.certificate, LOWER.certificate),
        pem(LEAF, LOWER.certificate, STRANGER.certificate, UPPER.certificate),
        pem(LEAF, LOWER.certificate, UPPER.certificate, STRANGER.certificate),
        b"some text\n" + pem(LEAF) + b"more\n" + KEY + pem(LOWER.certificate, UPPER.certificate),
    ],
    ids=["as it should be", "with the root", "out of order", "with a stranger", "stranger last", "with other things"],
)
def test_a_chain_is_brought_into_the_form_that_tls_wants(sent: bytes) -> None:
    assert checked_chain(sent, KEY, "cloud.test") == pem(LEAF, LOWER.certificate, UPPER.certificate)


def test_a_leaf_that_the_root_signed_needs_nothing_else() -> None:
    leaf = ROOT.issue(KEY, "cloud.test")
    assert checked_chain(pem(leaf, ROOT.certificate), KEY, "cloud.test") == pem(leaf)
    assert checked_chain(pem(leaf), KEY, "cloud.test") == pem(leaf)


def test_case_does_not_matter_in_names_and_more_names_do_no_harm() -> None:
    leaf = ROOT.issue(KEY, "www.cloud.test", "Cloud.TEST")
    assert checked_chain(pem(leaf), KEY, "cloud.test") == pem(leaf)


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "no certificate of use"),
        (b"<html>", "no certificate of use"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no certificate of use"),
        (pem(ROOT.issue(new_key("ecdsa-p256"), "cloud.test")), "for another key than ours"),
        (pem(LOWER.certificate, LEAF), "no certificate of use"),
        (pem(ROOT.issue(KEY, "other.test")), "a certificate for other.test"),
        (pem(ROOT.issue(KEY)), "no certificate of use"),
        (pem(LEAF, STRANGER.certificate), "none of which signed it"),
        (pem(LEAF, *[STRANGER.certificate] * MAX_CHAIN), "a chain of 11"),
    ],
    ids=["nothing", "a page", "broken", "key", "leaf not first", "name", "no name", "strangers", "too long"],
)
def test_what_is_not_ours_is_refused(sent: bytes, reason: str) -> None:
    with pytest.raises(AcmeProtocolError, match=reason):
        checked_chain(sent, KEY, "cloud.test")


def test_an_issuer_of_the_same_name_with_another_key_is_a_stranger() -> None:
    with pytest.raises(AcmeProtocolError, match="none of which signed it"):
        checked_chain(pem(LEAF, Issuer.make("lower", UPPER).certificate), KEY, "cloud.test")


@pytest.mark.parametrize(("days", "worn"), [(-30, False), (-1, False), (1, True), (59, True)])
def test_a_certificate_is_well_worn_after_a_third_of_its_life(days: int, worn: bool) -> None:
    assert well_worn(pem(LEAF, LOWER.certificate), NOW + days * DAY) is worn
