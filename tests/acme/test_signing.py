"""What a CA is sent: signatures, checked by hand, and payloads."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trioproxy.acme import signing
from trioproxy.acme.signing import AccountKey
from trioproxy.config.model import Eab
from trioproxy.errors import AcmeError


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def verify(jws: dict[str, str], key: ec.EllipticCurvePublicKey) -> None:
    """RFC 7515 section 5.2 and RFC 7518 section 3.4, by hand."""
    signature = decode(jws["signature"])
    assert len(signature) == 64
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    signed = f"{jws['protected']}.{jws['payload']}".encode()
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))


@pytest.fixture
def private() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def key(private: ec.EllipticCurvePrivateKey) -> AccountKey:
    return AccountKey(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_a_request_of_an_account(key: AccountKey, private: ec.EllipticCurvePrivateKey) -> None:
    body = key.sign("https://ca.test/order", "bm9uY2U", b'{"a": 1}', "https://ca.test/account/1")
    jws = json.loads(body)
    assert set(jws) == {"protected", "payload", "signature"}, "a flattened JWS without an unprotected header"
    assert json.loads(decode(jws["protected"])) == {
        "alg": "ES256",
        "kid": "https://ca.test/account/1",
        "nonce": "bm9uY2U",
        "url": "https://ca.test/order",
    }
    assert decode(jws["payload"]) == b'{"a": 1}'
    verify(jws, private.public_key())
    with pytest.raises(InvalidSignature):
        verify({**jws, "payload": signing.base64url(b'{"a": 2}')}, private.public_key())


def test_a_request_for_an_account_carries_the_key(key: AccountKey, private: ec.EllipticCurvePrivateKey) -> None:
    jws = json.loads(key.sign("https://ca.test/account", "bm9uY2U", b"{}"))
    header = json.loads(decode(jws["protected"]))
    assert set(header) == {"alg", "jwk", "nonce", "url"}
    numbers = private.public_key().public_numbers()
    assert header["jwk"] == {
        "kty": "EC",
        "crv": "P-256",
        "x": signing.base64url(numbers.x.to_bytes(32, "big")),
        "y": signing.base64url(numbers.y.to_bytes(32, "big")),
    }
    verify(jws, private.public_key())


def test_post_as_get_has_an_empty_payload(key: AccountKey) -> None:
    assert json.loads(key.sign("https://ca.test/order/1", "bm9uY2U", b"", "https://ca.test/account/1"))["payload"] == ""


def test_a_key_authorisation_is_the_token_and_the_thumbprint() -> None:
    private = ec.derive_private_key(12345, ec.SECP256R1())
    key = AccountKey(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    numbers = private.public_key().public_numbers()
    x, y = (signing.base64url(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    digest = hashes.Hash(hashes.SHA256())
    digest.update(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode())  # RFC 7638 section 3
    assert key.key_authorization("tok-en") == f"tok-en.{signing.base64url(digest.finalize())}"


def test_a_binding_is_an_hmac_over_the_public_key(key: AccountKey) -> None:
    secret = b"a secret of the CA's and the customer's"
    url = "https://ca.test/account"
    binding = key.bound_to(Eab("kid-1", secret), url)
    assert set(binding) == {"protected", "payload", "signature"}
    assert json.loads(decode(binding["protected"])) == {"alg": "HS256", "kid": "kid-1", "url": url}
    opening = json.loads(key.sign(url, "bm9uY2U", b"{}"))
    assert json.loads(decode(binding["payload"])) == json.loads(decode(opening["protected"]))["jwk"]
    signed = f"{binding['protected']}.{binding['payload']}".encode()
    assert decode(binding["signature"]) == hmac.new(secret, signed, hashlib.sha256).digest()
    assert json.loads(signing.account_payload("", agree=True, binding=binding))["externalAccountBinding"] == binding


def test_a_change_of_keys_is_signed_by_the_new_one_and_names_the_old_one(
    key: AccountKey, private: ec.EllipticCurvePrivateKey
) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    new = AccountKey(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    inner = json.loads(new.change_from(key, "https://ca.test/key", "https://ca.test/account/1"))
    verify(inner, other.public_key())
    protected = json.loads(decode(inner["protected"]))
    assert protected == {"alg": "ES256", "jwk": new.public(), "url": "https://ca.test/key"}
    assert json.loads(decode(inner["payload"])) == {"account": "https://ca.test/account/1", "oldKey": key.public()}
    assert "d" not in key.public(), "a private key"


def test_account_keys_are_p256() -> None:
    AccountKey(signing.new_account_key())
    for other in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(AcmeError, match="no P-256 key"):
            AccountKey(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(AcmeError, match="cannot be read"):
        AccountKey(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


@pytest.mark.parametrize("nonce", ["bm9uY2U", "a-_0", "AA", "AAA"])
def test_nonces_that_can_be_used_come_back_as_they_were(key: AccountKey, nonce: str) -> None:
    assert signing.usable_nonce(nonce)
    assert json.loads(decode(json.loads(key.sign("u", nonce, b""))["protected"]))["nonce"] == nonce


@pytest.mark.parametrize(
    "nonce",
    ["", "A", "AAAAA", "ab+/", "abc=", "a b", "a\nb", "\N{LATIN SMALL LETTER E WITH ACUTE}abc", "AB", "x" * 1004],
)
def test_nonces_that_cannot_are_ignored(nonce: str) -> None:
    assert not signing.usable_nonce(nonce)


def test_payloads() -> None:
    assert json.loads(signing.account_payload("me@x.test", agree=True)) == {
        "contact": ["mailto:me@x.test"],
        "termsOfServiceAgreed": True,
    }
    assert json.loads(signing.account_payload("", agree=False)) == {"contact": []}
    assert json.loads(signing.order_payload("a.test")) == {"identifiers": [{"type": "dns", "value": "a.test"}]}
    assert json.loads(signing.order_payload("a.test", "short", "aki.serial")) == {
        "identifiers": [{"type": "dns", "value": "a.test"}],
        "profile": "short",
        "replaces": "aki.serial",
    }
    assert json.loads(signing.revocation_payload(b"\xff\xfe", "superseded")) == {"certificate": "__4", "reason": 4}
    assert json.loads(signing.revocation_payload(b"\xff\xfe", "unspecified")) == {"certificate": "__4"}
    assert json.loads(signing.finalize_payload(b"\xff\xfe")) == {"csr": "__4"}


def test_importing_brings_in_neither_requests_nor_what_signs() -> None:
    program = "import sys, trioproxy.acme.order; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"acme", "josepy", "requests", "OpenSSL"} & set(loaded)


def test_signing_does_not_bring_in_requests() -> None:
    program = (
        "import sys; from trioproxy.acme.signing import AccountKey, new_account_key;"
        "AccountKey(new_account_key()).sign('https://ca.test/', 'AAAA', b'');"
        "assert 'josepy' in sys.modules; assert 'requests' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
