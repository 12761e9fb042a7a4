"""RFC 8555's objects as they come in, and requests as they go out."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from trioproxy.acme import protocol
from trioproxy.acme.problems import AcmeProtocolError
from trioproxy.acme.protocol import AccountKey, Authorization, Directory, Order
from trioproxy.errors import AcmeError

DIRECTORY: dict[str, Any] = {
    "newNonce": "https://ca.test/nonce",
    "newAccount": "https://ca.test/account",
    "newOrder": "https://ca.test/order",
    "keyChange": "https://ca.test/key",
    "meta": {"termsOfService": "https://ca.test/terms", "externalAccountRequired": True},
}
ORDER: dict[str, Any] = {
    "status": "valid",
    "identifiers": [{"type": "dns", "value": "Cloud.Test"}],
    "authorizations": ["https://ca.test/authz/1"],
    "finalize": "https://ca.test/finalize/1",
    "certificate": "https://ca.test/certificate/1",
}
CHALLENGE: dict[str, Any] = {
    "type": "http-01",
    "url": "https://ca.test/chall/1",
    "token": "abc_-9",
    "status": "pending",
}
AUTHORIZATION: dict[str, Any] = {"status": "pending", "challenges": [{"type": "dns-01", "url": "u"}, CHALLENGE]}


def as_json(fields: dict[str, Any], **changes: Any) -> bytes:
    """The object with members replaced, or left out (None)."""
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not None}).encode()


def test_a_directory() -> None:
    assert Directory.parse(as_json(DIRECTORY)) == Directory(
        "https://ca.test/nonce", "https://ca.test/account", "https://ca.test/order", "https://ca.test/terms", True
    )
    bare = Directory.parse(as_json(DIRECTORY, meta=None))
    assert (bare.terms_of_service, bare.external_account_required) == ("", False)


@pytest.mark.parametrize("key", ["newNonce", "newAccount", "newOrder"])
def test_a_directory_that_lacks_something_names_it(key: str) -> None:
    with pytest.raises(AcmeProtocolError, match=f"the CA's directory has no valid '{key}'"):
        Directory.parse(as_json(DIRECTORY, **{key: None}))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"7", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_an_error_of_the_ca(body: bytes) -> None:
    with pytest.raises(AcmeProtocolError, match="is no JSON object"):
        Directory.parse(body)


def test_an_order() -> None:
    order = Order.parse("https://ca.test/order/1", as_json(ORDER))
    assert order.url == "https://ca.test/order/1"
    assert order.status == "valid"
    assert order.names == ("cloud.test",)
    assert order.authorizations == ("https://ca.test/authz/1",)
    assert (order.finalize, order.certificate) == ("https://ca.test/finalize/1", "https://ca.test/certificate/1")
    assert order.error is None


def test_an_order_that_failed() -> None:
    failed = as_json(ORDER, status="invalid", certificate=None, error={"type": "x", "detail": "no"})
    order = Order.parse("u", failed)
    assert order.certificate == ""
    assert order.error is not None
    assert order.error.detail == "no"


@pytest.mark.parametrize(
    "change",
    [
        {"status": "lost"},
        {"status": None},
        {"status": ["valid"]},
        {"identifiers": None},
        {"identifiers": ["cloud.test"]},
        {"identifiers": [{"type": "dns"}]},
        {"authorizations": [1]},
        {"authorizations": "https://ca.test/authz/1"},
        {"finalize": 3},
        {"certificate": {}},
    ],
)
def test_an_order_that_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(AcmeProtocolError, match="the CA's order has no valid"):
        Order.parse("u", as_json(ORDER, **change))


def test_an_authorisation() -> None:
    authorization = Authorization.parse(as_json(AUTHORIZATION))
    assert authorization.status == "pending"
    assert [challenge.type for challenge in authorization.challenges] == ["dns-01", "http-01"]
    challenge = authorization.challenge("http-01")
    assert challenge is not None
    assert (challenge.token, challenge.status, challenge.error) == ("abc_-9", "pending", None)
    assert authorization.challenge("tls-alpn-01") is None
    assert authorization.error() is None


def test_the_error_of_an_authorisation_is_that_of_the_challenge_that_has_one() -> None:
    failed = {**CHALLENGE, "status": "invalid", "error": {"detail": "refused"}}
    authorization = Authorization.parse(as_json(AUTHORIZATION, challenges=[{"type": "dns-01", "url": "u"}, failed]))
    error = authorization.error()
    assert error is not None
    assert error.detail == "refused"


@pytest.mark.parametrize(
    "token", ["", "../../etc/passwd", "a b", "a/b", "a\r\nb", "x" * 129, "\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_a_token_that_is_none_never_gets_as_far_as_port_80(token: str) -> None:
    with pytest.raises(AcmeProtocolError, match="token"):
        Authorization.parse(as_json(AUTHORIZATION, challenges=[{**CHALLENGE, "token": token}]))


@pytest.mark.parametrize("change", [{"status": "?"}, {"status": None}, {"challenges": None}, {"challenges": [1]}])
def test_an_authorisation_that_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(AcmeProtocolError, match="the CA's authorization has no valid"):
        Authorization.parse(as_json(AUTHORIZATION, **change))


# ---- signing --------------------------------------------------------------------------------------------


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
        verify({**jws, "payload": protocol.base64url(b'{"a": 2}')}, private.public_key())


def test_a_request_for_an_account_carries_the_key(key: AccountKey, private: ec.EllipticCurvePrivateKey) -> None:
    jws = json.loads(key.sign("https://ca.test/account", "bm9uY2U", b"{}"))
    header = json.loads(decode(jws["protected"]))
    assert set(header) == {"alg", "jwk", "nonce", "url"}
    numbers = private.public_key().public_numbers()
    assert header["jwk"] == {
        "kty": "EC",
        "crv": "P-256",
        "x": protocol.base64url(numbers.x.to_bytes(32, "big")),
        "y": protocol.base64url(numbers.y.to_bytes(32, "big")),
    }
    verify(jws, private.public_key())


def test_post_as_get_has_an_empty_payload(key: AccountKey) -> None:
    assert json.loads(key.sign("https://ca.test/order/1", "bm9uY2U", b"", "https://ca.test/account/1"))["payload"] == ""


def test_a_key_authorisation_is_the_token_and_the_thumbprint() -> None:
    private = ec.derive_private_key(12345, ec.SECP256R1())
    key = AccountKey(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    numbers = private.public_key().public_numbers()
    x, y = (protocol.base64url(n.to_bytes(32, "big")) for n in (numbers.x, numbers.y))
    digest = hashes.Hash(hashes.SHA256())
    digest.update(f'{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}'.encode())  # RFC 7638 section 3
    assert key.key_authorization("tok-en") == f"tok-en.{protocol.base64url(digest.finalize())}"


def test_account_keys_are_p256() -> None:
    AccountKey(protocol.new_account_key())
    for other in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        with pytest.raises(AcmeError, match="no P-256 key"):
            AccountKey(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(AcmeError, match="cannot be read"):
        AccountKey(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")


@pytest.mark.parametrize("nonce", ["bm9uY2U", "a-_0", "AA", "AAA"])
def test_nonces_that_can_be_used_come_back_as_they_were(key: AccountKey, nonce: str) -> None:
    assert protocol.usable_nonce(nonce)
    assert json.loads(decode(json.loads(key.sign("u", nonce, b""))["protected"]))["nonce"] == nonce


@pytest.mark.parametrize(
    "nonce",
    ["", "A", "AAAAA", "ab+/", "abc=", "a b", "a\nb", "\N{LATIN SMALL LETTER E WITH ACUTE}abc", "AB", "x" * 1004],
)
def test_nonces_that_cannot_are_ignored(nonce: str) -> None:
    assert not protocol.usable_nonce(nonce)


def test_payloads() -> None:
    assert json.loads(protocol.account_payload("me@x.test", agree=True)) == {
        "contact": ["mailto:me@x.test"],
        "termsOfServiceAgreed": True,
    }
    assert json.loads(protocol.account_payload("", agree=False)) == {"contact": []}
    assert json.loads(protocol.order_payload("a.test")) == {"identifiers": [{"type": "dns", "value": "a.test"}]}
    assert json.loads(protocol.finalize_payload(b"\xff\xfe")) == {"csr": "__4"}


def test_importing_brings_in_neither_requests_nor_what_signs() -> None:
    program = "import sys, trioproxy.acme.order; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"acme", "josepy", "requests", "OpenSSL"} & set(loaded)


def test_signing_does_not_bring_in_requests() -> None:
    program = (
        "import sys; from trioproxy.acme.protocol import AccountKey, new_account_key;"
        "AccountKey(new_account_key()).sign('https://ca.test/', 'AAAA', b'');"
        "assert 'josepy' in sys.modules; assert 'requests' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
