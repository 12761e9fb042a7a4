"""What a certificate authority is sent: keys of accounts, signatures (RFC 7515), and payloads of RFC 8555. Pure.

Requests are signed by `acme.jws` and `josepy`, which are imported where they are used: together they take 30 ms
that no start should wait for.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from trioproxy.config.model import Eab
from trioproxy.errors import AcmeError

_NONCE = re.compile(r"[A-Za-z0-9_-]{1,1000}", re.ASCII)

REASONS = {
    "unspecified": 0,
    "keyCompromise": 1,
    "affiliationChanged": 3,
    "superseded": 4,
    "cessationOfOperation": 5,
}
"""Why a certificate is revoked: RFC 5280's reasons as far as they are a subscriber's to give (Let's Encrypt's list)."""


def new_account_key() -> bytes:
    """A fresh P-256 key for an account, as PKCS#8 PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class AccountKey:
    """Signs an account's requests.

    Args:
        pem: A P-256 private key.

    Raises:
        AcmeError: it is none.
    """

    def __init__(self, pem: bytes) -> None:
        from josepy.jwk import JWKEC

        try:
            key = load_pem_private_key(pem, None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
            raise AcmeError("the key of the account at the CA cannot be read") from exc
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise AcmeError("the key of the account at the CA is no P-256 key")
        self._jwk = JWKEC(key=key)

    def sign(self, url: str, nonce: str, payload: bytes, account_url: str = "") -> bytes:
        """The body of a POST (section 6.2): a flattened JWS, ES256.

        Args:
            url: Where it is sent.
            nonce: A nonce that `usable_nonce` holds good.
            payload: JSON, or b"" for POST-as-GET (section 6.3).
            account_url: Names the signer; "" lets the request carry the public key, as newAccount wants it.
        """
        from josepy.json_util import decode_b64jose

        return self._sign(payload, decode_b64jose(nonce), url, account_url or None)

    def change_from(self, old: AccountKey, url: str, account_url: str) -> bytes:
        """The payload that puts this key in the place of `old` (section 7.3.5): a JWS of this one inside the other's.

        Args:
            old: The key that the CA knows now.
            url: The CA's keyChange.
            account_url: Of the account.
        """
        asked = json.dumps({"account": account_url, "oldKey": old.public()}).encode()
        return self._sign(asked, None, url, None)

    def bound_to(self, customer: Eab, url: str) -> dict[str, Any]:
        """What shows that this key's holder is that customer of the CA (section 7.3.4): HS256 over the public key."""
        from acme.jws import JWS
        from josepy.jwa import HS256
        from josepy.jwk import JWKOct

        key, payload = JWKOct(key=customer.hmac_key), json.dumps(self.public()).encode()
        signed: dict[str, Any] = json.loads(JWS.sign(payload, key, HS256, None, url, customer.key_id).json_dumps())
        return signed

    def public(self) -> dict[str, Any]:
        """The public key as a JWK."""
        public: dict[str, Any] = self._jwk.public_key().to_json()
        return public

    def _sign(self, payload: bytes, nonce: bytes | None, url: str, account_url: str | None) -> bytes:
        from acme.jws import JWS
        from josepy.jwa import ES256

        text: str = JWS.sign(payload, self._jwk, ES256, nonce, url=url, kid=account_url).json_dumps()
        return text.encode("ascii")

    def key_authorization(self, token: str) -> str:
        """What answers a challenge with this token (section 8.1): the token and the key's thumbprint (RFC 7638)."""
        return f"{token}.{base64url(self._jwk.thumbprint())}"


class LeafKey:
    """Signs what a certificate's own key may ask for without an account: its revocation (section 7.6).

    Args:
        pem: The certificate's private key.

    Raises:
        AcmeError: it is of no kind that ACME signs with.
    """

    def __init__(self, pem: bytes) -> None:
        from josepy import jwa, jwk

        key = load_pem_private_key(pem, None)
        self._jwk: jwk.JWK
        if isinstance(key, rsa.RSAPrivateKey):
            self._jwk, self._algorithm = jwk.JWKRSA(key=key), jwa.RS256
        elif isinstance(key, ec.EllipticCurvePrivateKey) and (known := _ALGORITHMS.get(key.curve.name)):
            self._jwk, self._algorithm = jwk.JWKEC(key=key), getattr(jwa, known)
        else:
            raise AcmeError("the certificate's key is of a kind that cannot sign for its revocation")

    def sign(self, url: str, nonce: str, payload: bytes, account_url: str = "") -> bytes:
        """As `AccountKey.sign`."""
        from acme.jws import JWS
        from josepy.json_util import decode_b64jose

        nonce_bytes = decode_b64jose(nonce)
        text: str = JWS.sign(payload, self._jwk, self._algorithm, nonce_bytes, url, account_url or None).json_dumps()
        return text.encode("ascii")


_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384"}


def usable_nonce(text: str) -> bool:
    """Whether a Replay-Nonce can be used; others are ignored, as section 6.5.1 wants.

    The signer decodes a nonce and encodes it again, so one in a form that this changes would come back as another.
    """
    if not _NONCE.fullmatch(text):
        return False
    try:
        return base64url(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))) == text
    except binascii.Error:
        return False


def base64url(data: bytes) -> str:
    """Base64url without padding (RFC 7515, appendix C)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def account_payload(email: str, *, agree: bool, binding: dict[str, Any] | None = None) -> bytes:
    """What newAccount, or with `agree` off an update of the contact, is sent (sections 7.3 and 7.3.2).

    Args:
        email: Where the CA can reach us, "" for nowhere.
        agree: To the CA's terms of service.
        binding: Of `AccountKey.bound_to`.
    """
    fields: dict[str, Any] = {"contact": [f"mailto:{email}"] if email else []}
    if agree:
        fields["termsOfServiceAgreed"] = True
    if binding is not None:
        fields["externalAccountBinding"] = binding
    return json.dumps(fields).encode()


ASK_FOR_ACCOUNT = b'{"onlyReturnExisting": true}'
"""What newAccount is sent to learn which account a key has, and to open none (section 7.3.1)."""


def order_payload(name: str, profile: str = "", replaces: str = "") -> bytes:
    """What newOrder is sent (section 7.4).

    Args:
        name: The host name.
        profile: A profile that the CA offers, "" for its default.
        replaces: The id of the certificate that this one is to replace (RFC 9773 section 5), "" for none.
    """
    fields: dict[str, Any] = {"identifiers": [{"type": "dns", "value": name}]}
    if profile:
        fields["profile"] = profile
    if replaces:
        fields["replaces"] = replaces
    return json.dumps(fields).encode()


def finalize_payload(csr: bytes) -> bytes:
    """What an order's finalize URL is sent: the CSR in DER (section 7.4)."""
    return json.dumps({"csr": base64url(csr)}).encode()


def revocation_payload(leaf: bytes, reason: str) -> bytes:
    """What revokeCert is sent (section 7.6): the certificate in DER, and one of `REASONS`.

    "unspecified" is left out, for RFC 5280 section 5.3.1 wants it so, and some CAs insist.
    """
    fields: dict[str, Any] = {"certificate": base64url(leaf)}
    if REASONS[reason]:
        fields["reason"] = REASONS[reason]
    return json.dumps(fields).encode()
