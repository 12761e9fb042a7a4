"""RFC 8555 as values: what a certificate authority sends, read; what it is sent, signed. Pure.

Requests are signed by `acme.jws` and `josepy`, which are imported where they are used: together they take 30 ms
that no start should wait for.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any, Literal, TypeVar, get_args

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from trioproxy.acme.problems import AcmeProtocolError, Problem
from trioproxy.challenges import TOKEN
from trioproxy.errors import AcmeError

HTTP01 = "http-01"

OrderStatus = Literal["pending", "ready", "processing", "valid", "invalid"]
AuthorizationStatus = Literal["pending", "valid", "invalid", "deactivated", "expired", "revoked"]
ChallengeStatus = Literal["pending", "processing", "valid", "invalid"]

_NONCE = re.compile(r"[A-Za-z0-9_-]{1,1000}", re.ASCII)

T = TypeVar("T")


# ---- what is read ---------------------------------------------------------------------------------------


@attrs.frozen
class Directory:
    """Where a CA takes which request (section 7.1.1). URLs.

    Attributes:
        terms_of_service: Where the terms can be read, "" when there are none.
        external_account_required: The CA opens accounts only for customers that it knows from elsewhere.
    """

    new_nonce: str
    new_account: str
    new_order: str
    terms_of_service: str
    external_account_required: bool

    @classmethod
    def parse(cls, body: bytes) -> Directory:
        """Read a directory object. Raises AcmeProtocolError."""
        fields = _Fields.of(body, "directory")
        meta = fields.fields.get("meta")
        about = _Fields("directory", meta if isinstance(meta, dict) else {})
        return cls(
            new_nonce=fields.text("newNonce"),
            new_account=fields.text("newAccount"),
            new_order=fields.text("newOrder"),
            terms_of_service=about.text("termsOfService", ""),
            external_account_required=about.fields.get("externalAccountRequired") is True,
        )


@attrs.frozen
class Order:
    """A request for one certificate (section 7.1.3).

    Attributes:
        url: Its own address: the Location of the answer to newOrder.
        names: What it is for, in lower case.
        authorizations: URLs of what has to be valid before it is ready.
        finalize: The URL that takes the CSR.
        certificate: The URL of the chain, "" until it is there.
        error: Why it became invalid, if the CA says so.
    """

    url: str
    status: OrderStatus
    names: tuple[str, ...]
    authorizations: tuple[str, ...]
    finalize: str
    certificate: str
    error: Problem | None

    @classmethod
    def parse(cls, url: str, body: bytes) -> Order:
        """Read an order object. Raises AcmeProtocolError."""
        fields = _Fields.of(body, "order")
        return cls(
            url=url,
            status=fields.one_of("status", get_args(OrderStatus)),
            names=tuple(_Fields("order", item).text("value").lower() for item in fields.list_of("identifiers", dict)),
            authorizations=tuple(fields.list_of("authorizations", str)),
            finalize=fields.text("finalize"),
            certificate=fields.text("certificate", ""),
            error=fields.problem(),
        )


@attrs.frozen
class Challenge:
    """One way to show that a name is ours (section 7.1.5). `token` is "" for types that have none."""

    type: str
    url: str
    token: str
    status: ChallengeStatus
    error: Problem | None


@attrs.frozen
class Authorization:
    """What the CA knows of our right to a name (section 7.1.4)."""

    status: AuthorizationStatus
    challenges: tuple[Challenge, ...]

    @classmethod
    def parse(cls, body: bytes) -> Authorization:
        """Read an authorisation object. Raises AcmeProtocolError."""
        fields = _Fields.of(body, "authorization")
        return cls(
            status=fields.one_of("status", get_args(AuthorizationStatus)),
            challenges=tuple(_challenge(item) for item in fields.list_of("challenges", dict)),
        )

    def challenge(self, kind: str) -> Challenge | None:
        """Its challenge of a type such as `http-01`, None when the CA offers none."""
        return next((challenge for challenge in self.challenges if challenge.type == kind), None)

    def error(self) -> Problem | None:
        """What the CA says of the challenge that failed, if it says anything."""
        return next((challenge.error for challenge in self.challenges if challenge.error is not None), None)


def _challenge(item: dict[str, Any]) -> Challenge:
    fields = _Fields("challenge", item)
    kind, token = fields.text("type"), fields.text("token", "")
    if kind == HTTP01 and not TOKEN.fullmatch(token):
        # It becomes a path that port 80 answers: what is no token must not get near it.
        raise AcmeProtocolError("the CA's challenge has no valid 'token'")
    status: ChallengeStatus = fields.one_of("status", get_args(ChallengeStatus), "pending")
    return Challenge(kind, fields.text("url"), token, status, fields.problem())


@attrs.frozen
class _Fields:
    """A JSON object whose members are asked for by their type."""

    what: str
    fields: dict[str, Any]

    @classmethod
    def of(cls, body: bytes, what: str) -> _Fields:
        value = decode(body)
        if not isinstance(value, dict):
            raise AcmeProtocolError(f"the CA's {what} is no JSON object")
        return cls(what, value)

    def text(self, key: str, default: str | None = None) -> str:
        return self._get(key, str, default)

    def list_of(self, key: str, kind: type[T]) -> list[T]:
        items: list[Any] = self._get(key, list, None)
        if not all(isinstance(item, kind) for item in items):
            raise self._wrong(key)
        return items

    def one_of(self, key: str, values: tuple[T, ...], default: T | None = None) -> T:
        value = self.fields.get(key, default)
        found = next((known for known in values if known == value), None)
        if found is None:
            raise self._wrong(key)
        return found

    def problem(self) -> Problem | None:
        error = self.fields.get("error")
        return None if error is None else Problem.parse(error)

    def _get(self, key: str, kind: type[T], default: T | None) -> T:
        value = self.fields.get(key, default)
        if not isinstance(value, kind):
            raise self._wrong(key)
        return value

    def _wrong(self, key: str) -> AcmeProtocolError:
        return AcmeProtocolError(f"the CA's {self.what} has no valid {key!r}")


def decode(body: bytes) -> Any:
    """Decoded JSON, None when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


# ---- what is sent ---------------------------------------------------------------------------------------


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
        from acme.jws import JWS
        from josepy.json_util import decode_b64jose
        from josepy.jwa import ES256

        signed = JWS.sign(payload, self._jwk, ES256, decode_b64jose(nonce), url=url, kid=account_url or None)
        text: str = signed.json_dumps()
        return text.encode("ascii")

    def key_authorization(self, token: str) -> str:
        """What answers a challenge with this token (section 8.1): the token and the key's thumbprint (RFC 7638)."""
        return f"{token}.{base64url(self._jwk.thumbprint())}"


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


def account_payload(email: str, *, agree: bool) -> bytes:
    """What newAccount, or with `agree` off an update of the contact, is sent (sections 7.3 and 7.3.2)."""
    fields: dict[str, Any] = {"contact": [f"mailto:{email}"] if email else []}
    if agree:
        fields["termsOfServiceAgreed"] = True
    return json.dumps(fields).encode()


def order_payload(name: str) -> bytes:
    """What newOrder is sent (section 7.4)."""
    return json.dumps({"identifiers": [{"type": "dns", "value": name}]}).encode()


def finalize_payload(csr: bytes) -> bytes:
    """What an order's finalize URL is sent: the CSR in DER (section 7.4)."""
    return json.dumps({"csr": base64url(csr)}).encode()
