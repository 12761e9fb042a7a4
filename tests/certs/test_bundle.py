from __future__ import annotations

import subprocess
from datetime import UTC, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.certs.making import DAY, NOW, bundle, chain_pem, key_pem, new_key, subject
from trioproxy.certs.bundle import Bundle
from trioproxy.errors import CertificateError

KEY = new_key()
CHAIN = chain_pem(KEY, ["cloud.example.com"])


def test_what_a_certificate_says() -> None:
    leaf = bundle("cloud.example.com", "WWW.Example.com", "*.apps.example.com", serial=4711).leaf
    assert leaf.names == ("cloud.example.com", "www.example.com", "*.apps.example.com")
    assert (leaf.not_before, leaf.not_after) == (NOW - DAY, NOW + 89 * DAY)
    assert leaf.not_after.tzinfo is UTC
    assert leaf.serial == 4711
    assert leaf.issuer == "Test Authority, T1"


@pytest.mark.parametrize(
    ("issuer", "text"),
    [
        (subject("Let's Test", "R13"), "Let's Test, R13"),
        (subject("Test", "Test Authority 4"), "Test Authority 4"),
        (subject("", "R13"), "R13"),
        (subject("Test", ""), "Test"),
        (x509.Name([x509.NameAttribute(x509.NameOID.COUNTRY_NAME, "DE")]), "C=DE"),
        (x509.Name([]), "nobody"),
        (subject("", "R\x1b[2J\n13"), "R [2J 13"),
    ],
)
def test_the_issuer_in_words(issuer: x509.Name, text: str) -> None:
    assert Bundle.of(key_pem(KEY), chain_pem(KEY, ["a.example"], issuer=issuer)).leaf.issuer == text


@pytest.mark.parametrize(
    ("name", "fits"),
    [
        ("cloud.example.com", True),
        ("example.com", False),
        ("other.example.com", False),
        ("x.apps.example.com", True),
        ("*.apps.example.com", True),
        ("apps.example.com", False),
        ("y.x.apps.example.com", False),
        ("com", False),
        ("*", False),
        ("", False),
    ],
)
def test_names_are_matched_by_label(name: str, fits: bool) -> None:
    assert bundle("cloud.example.com", "*.apps.example.com").leaf.matches(name) is fits


def test_a_certificate_without_names_matches_none() -> None:
    leaf = Bundle.of(key_pem(KEY), chain_pem(KEY, [])).leaf
    assert leaf.names == ()
    assert not leaf.matches("cloud.example.com")


def test_one_file_holds_the_key_then_the_chain_and_reads_back() -> None:
    made = bundle("cloud.example.com")
    assert made.pem == made.key_pem + made.chain_pem
    assert made.pem.startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert made.pem.count(b"-----BEGIN CERTIFICATE-----") == 2
    assert made.pem.endswith(b"-----END CERTIFICATE-----\n")
    assert Bundle.parse(made.pem) == made


def test_text_around_the_blocks_is_left_out() -> None:
    noisy = b"Bag Attributes\n  friendlyName: x\n" + CHAIN.replace(b"-----END", b"-----END")
    made = Bundle.of(b"a key\r\n" + key_pem(KEY) + CHAIN, noisy + key_pem(new_key()) + b"the end")
    assert made == Bundle.of(key_pem(KEY), CHAIN)


def test_a_key_as_openssl_writes_it_with_its_parameters() -> None:
    made = subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey"], capture_output=True, check=True)
    assert b"EC PARAMETERS" in made.stdout
    with pytest.raises(CertificateError, match="does not belong"):  # so it was read
        Bundle.of(made.stdout, CHAIN)


def test_a_bundle_does_not_show_its_key() -> None:
    made = bundle("cloud.example.com")
    assert "PRIVATE" not in repr(made)
    assert made.key_pem.decode().splitlines()[1] not in repr(made)


def pem_of(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


ENCRYPTED = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


@pytest.mark.parametrize(
    ("key", "chain", "words"),
    [
        pytest.param(b"", CHAIN, "no private key", id="no key"),
        pytest.param(CHAIN, CHAIN, "no private key", id="a certificate for a key"),
        pytest.param(key_pem(KEY), b"", "no certificate", id="no certificate"),
        pytest.param(key_pem(KEY), key_pem(KEY), "no certificate", id="a key for a certificate"),
        pytest.param(key_pem(new_key()), CHAIN, "does not belong", id="another key"),
        pytest.param(pem_of(ed25519.Ed25519PrivateKey.generate()), CHAIN, "does not belong", id="another type"),
        pytest.param(key_pem(KEY) * 2, CHAIN, "2 private keys", id="two keys"),
        pytest.param(ENCRYPTED, CHAIN, "without one", id="a passphrase"),
        pytest.param(key_pem(KEY).replace(b"M", b"!", 1), CHAIN, "key cannot be read", id="a damaged key"),
        pytest.param(key_pem(KEY), CHAIN.replace(b"MI", b"II", 1), "certificate cannot be read", id="a damaged leaf"),
        pytest.param(
            key_pem(KEY),
            CHAIN[: CHAIN.rindex(b"MI")] + CHAIN[CHAIN.rindex(b"MI") + 4 :],
            "certificate cannot be read",
            id="a damaged issuer",
        ),
        pytest.param(key_pem(KEY), CHAIN[: len(CHAIN) // 4], "cut off", id="cut off in the leaf"),
        pytest.param(key_pem(KEY)[:-20], CHAIN, "cut off", id="cut off in the key"),
        pytest.param(b"\x00\xff" * 100, b"\x00\xff" * 100, "no private key", id="noise"),
    ],
)
def test_what_is_no_pair_says_so_in_words(key: bytes, chain: bytes, words: str) -> None:
    with pytest.raises(CertificateError, match=words):
        Bundle.of(key, chain)


def test_every_cut_of_a_file_is_noticed_except_between_its_blocks() -> None:
    pem = bundle("cloud.example.com").pem
    between = pem.rindex(b"-----BEGIN ")
    for length in [*range(0, len(pem) - 2, 7), between - 1, between + 12]:
        if between - 1 <= length < between + len(b"-----BEGIN "):
            assert Bundle.parse(pem[:length]).leaf == Bundle.parse(pem).leaf
        else:
            with pytest.raises(CertificateError):
                Bundle.parse(pem[:length])


def test_an_rsa_pair() -> None:
    key = rsa.generate_private_key(65537, 2048)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject("", "x"))
        .issuer_name(subject("", "x"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    assert Bundle.of(pem_of(key), certificate.public_bytes(Encoding.PEM)).leaf.serial == 1
