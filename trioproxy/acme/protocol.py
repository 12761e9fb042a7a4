"""RFC 8555 as values: what a certificate authority sends, read. What it is sent is `acme/signing`. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args

import attrs

from trioproxy.acme.problems import AcmeProtocolError, Problem, plain
from trioproxy.challenges import TOKEN

HTTP01 = "http-01"
TLSALPN01 = "tls-alpn-01"

OrderStatus = Literal["pending", "ready", "processing", "valid", "invalid"]
AuthorizationStatus = Literal["pending", "valid", "invalid", "deactivated", "expired", "revoked"]
ChallengeStatus = Literal["pending", "processing", "valid", "invalid"]

MAX_PROFILES = 50

_LINK = re.compile(r'<([^<>\s]*)>((?:\s*;\s*[!#$%&\'*+.^_`|~\w-]+\s*(?:=\s*(?:"[^"]*"|[^\s;,"]*))?)*)')
_REL = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]*))', re.IGNORECASE)

T = TypeVar("T")


# ---- what is read ---------------------------------------------------------------------------------------


@attrs.frozen
class Directory:
    """Where a CA takes which request (section 7.1.1). URLs.

    Attributes:
        terms_of_service: Where the terms can be read, "" when there are none.
        external_account_required: The CA opens accounts only for customers that it knows from elsewhere.
        key_change: Takes a new key for an account, "" where the CA has no such thing.
        revoke_cert: Takes what is to be revoked, "" likewise.
        renewal_info: Tells when to renew (RFC 9773), "" likewise.
        profiles: What kinds of certificates the CA offers by name (draft-ietf-acme-profiles), and what it says of each.
    """

    new_nonce: str
    new_account: str
    new_order: str
    terms_of_service: str = ""
    external_account_required: bool = False
    key_change: str = ""
    revoke_cert: str = ""
    renewal_info: str = ""
    profiles: Mapping[str, str] = attrs.field(factory=dict)

    @classmethod
    def parse(cls, body: bytes) -> Directory:
        """Read a directory object. Raises AcmeProtocolError."""
        fields = Fields.of(body, "directory")
        meta = fields.fields.get("meta")
        about = Fields("directory", meta if isinstance(meta, dict) else {})
        return cls(
            new_nonce=fields.text("newNonce"),
            new_account=fields.text("newAccount"),
            new_order=fields.text("newOrder"),
            terms_of_service=about.text("termsOfService", ""),
            external_account_required=about.fields.get("externalAccountRequired") is True,
            key_change=fields.text("keyChange", ""),
            revoke_cert=fields.text("revokeCert", ""),
            renewal_info=fields.text("renewalInfo", ""),
            profiles=_profiles(about.fields.get("profiles")),
        )


def _profiles(value: object) -> dict[str, str]:
    """Profiles that are no object, or none that makes sense, are as good as none: an order goes without them."""
    if not isinstance(value, dict):
        return {}
    items = [(plain(name), said) for name, said in value.items()]
    return {name: plain(said) if isinstance(said, str) else "" for name, said in items[:MAX_PROFILES]}


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
        fields = Fields.of(body, "order")
        return cls(
            url=url,
            status=fields.one_of("status", get_args(OrderStatus)),
            names=tuple(Fields("order", item).text("value").lower() for item in fields.list_of("identifiers", dict)),
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
        fields = Fields.of(body, "authorization")
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
    fields = Fields("challenge", item)
    kind, token = fields.text("type"), fields.text("token", "")
    if kind == HTTP01 and not TOKEN.fullmatch(token):
        # It becomes a path that port 80 answers: what is no token must not get near it.
        raise AcmeProtocolError("the CA's challenge has no valid 'token'")
    status: ChallengeStatus = fields.one_of("status", get_args(ChallengeStatus), "pending")
    return Challenge(kind, fields.text("url"), token, status, fields.problem())


@attrs.frozen
class Fields:
    """A JSON object whose members are asked for by their type; what is missing or another is an AcmeProtocolError.

    Attributes:
        what: What of the CA's it is, for messages.
        fields: As it was decoded.
    """

    what: str
    fields: dict[str, Any]

    @classmethod
    def of(cls, body: bytes, what: str) -> Fields:
        """Decode one."""
        value = decode(body)
        if not isinstance(value, dict):
            raise AcmeProtocolError(f"the CA's {what} is no JSON object")
        return cls(what, value)

    def text(self, key: str, default: str | None = None) -> str:
        """A text; `default` where there is none and that is given."""
        return self._get(key, str, default)

    def object(self, key: str) -> dict[str, Any]:
        """An object."""
        found: dict[str, Any] = self._get(key, dict, None)
        return found

    def list_of(self, key: str, kind: type[T]) -> list[T]:
        """A list of which each item is of one kind."""
        items: list[Any] = self._get(key, list, None)
        if not all(isinstance(item, kind) for item in items):
            raise self._wrong(key)
        return items

    def one_of(self, key: str, values: tuple[T, ...], default: T | None = None) -> T:
        """One of some values."""
        value = self.fields.get(key, default)
        found = next((known for known in values if known == value), None)
        if found is None:
            raise self._wrong(key)
        return found

    def problem(self) -> Problem | None:
        """Its error, if it has one."""
        error = self.fields.get("error")
        return None if error is None else Problem.parse(error)

    def _get(self, key: str, kind: type[T], default: T | None) -> T:
        value = self.fields.get(key, default)
        if not isinstance(value, kind):
            raise self._wrong(key)
        return value

    def _wrong(self, key: str) -> AcmeProtocolError:
        return AcmeProtocolError(f"the CA's {self.what} has no valid {key!r}")


def links(fields: Iterable[str], rel: str) -> list[str]:
    """The targets, absolute or not, of those in Link fields (RFC 8288) that have the relation `rel`."""
    found = []
    for field in fields:
        for target, parameters in _LINK.findall(field):
            relation = _REL.search(parameters)
            if relation and rel in (relation[1] or relation[2] or "").lower().split():
                found.append(target)
    return found


def decode(body: bytes) -> Any:
    """Decoded JSON, None when it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
