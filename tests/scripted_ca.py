"""A certificate authority for tests that does what it is told: over real HTTPS, for what Pebble does not do.

    async with scripted_ca(tmp_path) as ca:
        settings = Acme(directory=ca.directory, ca_file=ca.ca_file)
        ca.script["newOrder"] = [problem(429, "rateLimited", retry_after="120"), Hang(), Drip()]
        ...
        assert [order.name for order in ca.orders] == ["cloud.test"]

Left alone it does its work as RFC 8555 says: it knows its nonces, checks every signature, keeps accounts apart, and
believes challenges without looking, or looks for HTTP-01 at `http_port`. It has renewal information and `replaces`
(RFC 9773), profiles, alternate chains, revocation, changes of keys and bound accounts. What stands in `script` for a
resource is used up first, one entry for each request: an answer, or one of `Hang`, `Drop`, `Drip`, `Change`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import h11
import trio
import trustme
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from trioproxy.acme.ari import certificate_id
from trioproxy.acme.problems import NAMESPACE

Json = dict[str, Any]


# ---- what a script holds ----------------------------------------------------------------------------------


@attrs.frozen
class Answer:
    """A response; a body that is not bytes is sent as JSON."""

    status: int
    body: object = b""
    fields: Mapping[str, str] = attrs.field(factory=dict)

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@attrs.frozen
class Hang:
    """No answer, ever."""


@attrs.frozen
class Drop:
    """The connection ends; `after` says whether the usual work has been done by then."""

    after: bool = False


@attrs.frozen
class Drip:
    """The usual answer, or another one, a byte at a time."""

    seconds: float = 1.0
    answer: Answer | None = None


@attrs.frozen
class Change:
    """The usual answer, changed."""

    change: Callable[[Answer], Answer]


Act = Answer | Hang | Drop | Drip | Change


def answer(status: int, body: object = b"", **fields: str) -> Answer:
    """A response; fields with `_` for `-`."""
    return Answer(status, body, {name.replace("_", "-"): value for name, value in fields.items()})


def problem(status: int, kind: str, detail: str = "", **fields: str) -> Answer:
    """A refusal."""
    return answer(status, {"type": NAMESPACE + kind, "detail": detail or f"it is {kind}", "status": status}, **fields)


def with_body(**members: object) -> Change:
    """The usual answer, some of whose members are others; None takes one away."""

    def change(usual: Answer) -> Answer:
        assert isinstance(usual.body, dict)
        body = {**usual.body, **members}
        return attrs.evolve(usual, body={key: value for key, value in body.items() if value is not None})

    return Change(change)


class Refused(Exception):
    """Ends the usual work with a refusal."""

    def __init__(self, status: int, kind: str, detail: str = "") -> None:
        super().__init__(detail)
        self.answer = problem(status, kind, detail)


# ---- what it knows ----------------------------------------------------------------------------------------


@attrs.frozen
class Asked:
    """A request: what for, what it held, and when it came (Trio time)."""

    resource: str
    url: str
    payload: Any
    protected: Json
    at: float


@attrs.define
class Member:
    """An account."""

    url: str
    jwk: Json
    contact: list[str]
    customer: str = ""


@attrs.define
class Ordered:
    """An order, and all that came of it.

    Attributes:
        status: As the CA tells it; a test may set it.
        validations: How often it was asked to look for the answer to a challenge.
    """

    number: int
    name: str
    member: Member
    replaces: str = ""
    profile: str = ""
    status: str = "pending"
    authorization: str = "pending"
    error: Json | None = None
    validations: int = 0
    leaf: x509.Certificate | None = None


class Authority:
    """Roots that all have signed the one intermediate certificate, as Let's Encrypt's have."""

    def __init__(self, *names: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = _called("Scripted Intermediate")
        self.intermediates = []
        self.roots = []
        for name in names:
            root = ec.generate_private_key(ec.SECP256R1())
            self.roots.append(self._issue(_called(name), root.public_key(), _called(name), root))
            self.intermediates.append(self._issue(self._subject, self._key.public_key(), _called(name), root))

    @staticmethod
    def _issue(
        subject: x509.Name, key: ec.EllipticCurvePublicKey, issuer: x509.Name, by: ec.EllipticCurvePrivateKey
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = x509.CertificateBuilder(
            issuer, subject, key, x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=3650)
        )
        return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(
            by, hashes.SHA256()
        )

    def sign(self, names: Sequence[str], key: Any, start: datetime, end: datetime) -> x509.Certificate:
        """A leaf for `names`."""
        sans = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder(self._subject, x509.Name([]), key, x509.random_serial_number(), start, end)
            .add_extension(sans, critical=True)
            .add_extension(aki, critical=False)
            .sign(self._key, hashes.SHA256())
        )


class ScriptedCA:
    """See above.

    Attributes:
        directory: The URL of its directory.
        ca_file: Whom to trust for its TLS.
        script: What to do with the next requests for a resource.
        on_request: Is called with the resource of each request, before anything else happens.
        asked: Every request.
        orders: Every order that it took.
        members: Every account.
        customers: HMAC keys by key id; where there are any, nobody else can open an account.
        profiles: What it offers, and for how long each is good.
        lifetime: For how long certificates without a profile are good.
        backdated: How long before their issuance they begin.
        names_of: Makes of an order's name what stands in the certificate.
        key_of: Makes of a CSR's key that in the certificate.
        window: Makes the renewal window of a certificate.
        ask_again: Retry-After of renewal information, "" for none.
        skew: Seconds by which its clock, and so its Date, is wrong.
        http_port: Where it looks for HTTP-01 on 127.0.0.1; None believes everybody.
        revoked: Serial numbers, and the reasons.
        authority: Who signs.
    """

    def __init__(self, base: str, ca_file: Path) -> None:
        self.base = base
        self.directory = f"{base}/directory"
        self.ca_file = ca_file
        self.script: dict[str, list[Act]] = {}
        self.on_request: Callable[[str], None] = lambda _: None
        self.asked: list[Asked] = []
        self.orders: list[Ordered] = []
        self.members: list[Member] = []
        self.customers: dict[str, bytes] = {}
        self.profiles: dict[str, timedelta] = {}
        self.lifetime = timedelta(days=90)
        self.backdated = timedelta(hours=1)
        self.names_of: Callable[[str], list[str]] = lambda name: [name]
        self.key_of: Callable[[Any], Any] = lambda key: key
        self.window: Callable[[x509.Certificate], tuple[str, str]] = last_third
        self.ask_again = "21600"
        self.skew = 0.0
        self.http_port: int | None = None
        self.revoked: dict[int, int] = {}
        self.authority = Authority("Scripted Root", "Other Root")
        self._nonces: set[str] = set()

    # ---- for tests ------------------------------------------------------------------------------------

    def ordered(self, name: str) -> list[Ordered]:
        """The orders for a name."""
        return [order for order in self.orders if order.name == name]

    def validations(self, name: str) -> int:
        """How often it was asked to look for a name's answer."""
        return sum(order.validations for order in self.ordered(name))

    def times(self, resource: str) -> list[float]:
        """When a resource was asked for."""
        return [asked.at for asked in self.asked if asked.resource == resource]

    def forget(self) -> None:
        """Lose all accounts, orders and nonces, as a test instance does that restarts."""
        self.members.clear()
        self.orders.clear()
        self._nonces.clear()

    # ---- requests -------------------------------------------------------------------------------------

    async def handle(self, method: str, target: str, body: bytes) -> tuple[Act, Answer]:
        """What to do with a request, and what the answer to it is."""
        resource, _, rest = target.removeprefix("/").partition("/")
        jws = json.loads(body) if body else {}
        payload = json.loads(decode(jws["payload"]) or b"null") if jws else None
        protected = json.loads(decode(jws["protected"])) if jws else {}
        self.asked.append(Asked(resource, target, payload, protected, trio.current_time()))
        self.on_request(resource)
        act = self.script[resource].pop(0) if self.script.get(resource) else Change(lambda usual: usual)
        done = answer(500)
        if isinstance(act, Answer):
            done = act
        elif isinstance(act, Change | Drip) or (isinstance(act, Drop) and act.after):
            try:
                member = self._admit(resource, target, jws, protected) if method == "POST" else None
                done = await getattr(self, f"_{resource}", self._nothing)(rest, payload, member, protected)
            except Refused as exc:
                done = exc.answer
            if isinstance(act, Change):
                done = act.change(done)
            elif isinstance(act, Drip) and act.answer is not None:
                done = act.answer
        fields = {
            "date": format_datetime(datetime.now(UTC) + timedelta(seconds=self.skew), usegmt=True),
            "content-type": "application/json",
            **done.fields,
        }
        if resource != "directory" and method != "GET":
            nonce = base64url(f"nonce {len(self.asked)}".encode())
            self._nonces.add(nonce)
            fields["replay-nonce"] = nonce
        return act, attrs.evolve(done, fields=fields)

    def _admit(self, resource: str, target: str, jws: Json, protected: Json) -> Member | None:
        """Check what RFC 8555 section 6 wants of every POST; whose it is, None for one that carries its key."""
        if protected.get("url") != self.base + target or set(jws) != {"protected", "payload", "signature"}:
            raise Refused(400, "malformed", "not for this url")
        nonce = protected.get("nonce")
        if nonce not in self._nonces:
            raise Refused(400, "badNonce")
        self._nonces.discard(nonce)
        if ("jwk" in protected) != (resource == "newAccount"):
            raise Refused(400, "malformed", "the wrong one of jwk and kid")
        if "jwk" in protected:
            verify(jws, protected["jwk"])
            return None
        member = next((member for member in self.members if member.url == protected["kid"]), None)
        if member is None:
            raise Refused(400, "accountDoesNotExist")
        verify(jws, member.jwk)
        return member

    async def _nothing(self, *_: object) -> Answer:
        await trio.lowlevel.checkpoint()
        return problem(404, "malformed", "there is nothing")

    async def _directory(self, *_: object) -> Answer:
        await trio.lowlevel.checkpoint()
        resources = ("newNonce", "newAccount", "newOrder", "keyChange", "revokeCert", "renewalInfo")
        meta: Json = {"termsOfService": f"{self.base}/terms"}
        if self.customers:
            meta["externalAccountRequired"] = True
        if self.profiles:
            meta["profiles"] = dict.fromkeys(self.profiles, f"{self.base}/profiles")
        return answer(200, {**{name: f"{self.base}/{name}" for name in resources}, "meta": meta})

    async def _newNonce(self, *_: object) -> Answer:  # noqa: N802 - named as the resource is
        await trio.lowlevel.checkpoint()
        return answer(200)

    async def _newAccount(self, _: str, payload: Json, __: None, protected: Json) -> Answer:  # noqa: N802
        await trio.lowlevel.checkpoint()
        known = next((member for member in self.members if member.jwk == protected["jwk"]), None)
        if known is not None:
            return answer(200, {"status": "valid", "contact": known.contact}, location=known.url)
        if payload.get("onlyReturnExisting"):
            raise Refused(400, "accountDoesNotExist")
        customer = self._customer(payload.get("externalAccountBinding"), protected)
        url = f"{self.base}/account/{len(self.members) + 1}-{len(self.asked)}"
        self.members.append(Member(url, protected["jwk"], payload["contact"], customer))
        return answer(201, {"status": "valid", "contact": payload["contact"]}, location=url)

    def _customer(self, binding: Json | None, protected: Json) -> str:
        if not self.customers:
            return ""
        if binding is None:
            raise Refused(403, "externalAccountRequired")
        head = json.loads(decode(binding["protected"]))
        secret = self.customers.get(head["kid"])
        signed = f"{binding['protected']}.{binding['payload']}".encode()
        if (
            secret is None
            or set(head) != {"alg", "kid", "url"}
            or (head["alg"], head["url"]) != ("HS256", protected["url"])
            or json.loads(decode(binding["payload"])) != protected["jwk"]
            or hmac.new(secret, signed, hashlib.sha256).digest() != decode(binding["signature"])
        ):
            raise Refused(403, "unauthorized", "the binding does not verify")
        return str(head["kid"])

    async def _account(self, _: str, payload: Json | None, member: Member, __: Json) -> Answer:
        await trio.lowlevel.checkpoint()
        member.contact = (payload or {}).get("contact", member.contact)
        return answer(200, {"status": "valid", "contact": member.contact})

    async def _keyChange(self, _: str, payload: Json, member: Member, protected: Json) -> Answer:  # noqa: N802
        await trio.lowlevel.checkpoint()
        head, inner = json.loads(decode(payload["protected"])), json.loads(decode(payload["payload"]))
        verify(payload, head["jwk"])
        if "nonce" in head or head["url"] != protected["url"] or inner != {"account": member.url, "oldKey": member.jwk}:
            raise Refused(400, "malformed", "the inner JWS does not fit the outer one")
        if other := next((other for other in self.members if other.jwk == head["jwk"]), None):
            return attrs.evolve(
                problem(409, "malformed", "the key is another account's"), fields={"location": other.url}
            )
        member.jwk = head["jwk"]
        return answer(200, {"status": "valid"})

    # ---- orders ---------------------------------------------------------------------------------------

    async def _newOrder(self, _: str, payload: Json, member: Member, __: Json) -> Answer:  # noqa: N802
        await trio.lowlevel.checkpoint()
        replaces, profile = payload.get("replaces", ""), payload.get("profile", "")
        if profile and profile not in self.profiles:
            raise Refused(400, "invalidProfile")
        if replaces:
            self._check_replaced(replaces, member)
        name = payload["identifiers"][0]["value"]
        order = Ordered(len(self.orders) + 1, name, member, replaces, profile)
        self.orders.append(order)
        return answer(201, self._shown(order), location=f"{self.base}/order/{order.number}")

    def _check_replaced(self, name: str, member: Member) -> None:
        old = next((o for o in self.orders if o.leaf is not None and certificate_id(o.leaf) == name), None)
        if old is None:
            raise Refused(404, "malformed", "no certificate is called so")
        if old.member is not member:
            raise Refused(403, "unauthorized", "it is another account's certificate")
        if any(order.replaces == name and order.status != "invalid" for order in self.orders):
            raise Refused(409, "alreadyReplaced")

    def _shown(self, order: Ordered) -> Json:
        if order.status == "pending" and order.authorization in ("valid", "invalid"):
            order.status = "ready" if order.authorization == "valid" else "invalid"
        shown = {
            "status": order.status,
            "identifiers": [{"type": "dns", "value": order.name}],
            "authorizations": [f"{self.base}/authorization/{order.number}"],
            "finalize": f"{self.base}/finalize/{order.number}",
        }
        if order.status == "valid":
            shown["certificate"] = f"{self.base}/certificate/{order.number}"
        return {**shown, "error": order.error} if order.error else shown

    def _of(self, rest: str, member: Member | None) -> Ordered:
        number = int(re.sub(r"/.*", "", rest))
        if not 0 < number <= len(self.orders):
            raise Refused(404, "malformed", "no such order")
        order = self.orders[number - 1]
        if order.member is not member:
            raise Refused(403, "unauthorized", "it is another account's order")
        return order

    async def _order(self, rest: str, _: None, member: Member, __: Json) -> Answer:
        await trio.lowlevel.checkpoint()
        return answer(200, self._shown(self._of(rest, member)))

    async def _authorization(self, rest: str, _: None, member: Member, __: Json) -> Answer:
        await trio.lowlevel.checkpoint()
        order = self._of(rest, member)
        kinds = ("dns-01", "http-01", "tls-alpn-01")
        return answer(
            200, {"status": order.authorization, "challenges": [self._challenge_of(order, kind) for kind in kinds]}
        )

    def _challenge_of(self, order: Ordered, kind: str) -> Json:
        error = {"error": order.error} if order.error else {}
        url = f"{self.base}/challenge/{order.number}/{kind}"
        return {"type": kind, "url": url, "token": f"token-{order.number}", "status": order.authorization, **error}

    async def _challenge(self, rest: str, _: Json, member: Member, __: Json) -> Answer:
        order, kind = self._of(rest, member), rest.partition("/")[2]
        order.validations += 1
        if kind == "http-01" and self.http_port is not None:
            seen = await self._look(order)
            order.error = None if seen is None else {"type": NAMESPACE + seen[0], "detail": seen[1]}
        order.authorization = "invalid" if order.error else "valid"
        return answer(200, self._challenge_of(order, kind))

    async def _look(self, order: Ordered) -> tuple[str, str] | None:
        """Look for the answer to HTTP-01; kind and words of what is wrong with it."""
        token = f"token-{order.number}"
        head = f"GET /.well-known/acme-challenge/{token} HTTP/1.1\r\nHost: {order.name}\r\nConnection: close\r\n\r\n"
        data = b""
        try:
            with trio.fail_after(10):
                async with await trio.open_tcp_stream("127.0.0.1", self.http_port or 80) as stream:
                    await stream.send_all(head.encode())
                    async for piece in stream:
                        data += piece
        except (OSError, trio.TooSlowError):
            return "connection", "127.0.0.1: Connection refused"
        expected = f"{token}.{thumbprint(order.member.jwk)}".encode()
        found = data.partition(b"\r\n\r\n")[2].strip() == expected and b" 200 " in data.partition(b"\r\n")[0]
        return None if found else ("unauthorized", f"127.0.0.1: Invalid response: {data[:60]!r}")

    async def _finalize(self, rest: str, payload: Json, member: Member, __: Json) -> Answer:
        await trio.lowlevel.checkpoint()
        order = self._of(rest, member)
        if self._shown(order)["status"] != "ready":
            raise Refused(403, "orderNotReady")
        csr = x509.load_der_x509_csr(decode(payload["csr"]))
        sans = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if sans.get_values_for_type(x509.DNSName) != [order.name] or not csr.is_signature_valid:
            raise Refused(400, "badCSR")
        start = datetime.now(UTC) - self.backdated
        end = start + self.profiles.get(order.profile, self.lifetime)
        order.leaf = self.authority.sign(self.names_of(order.name), self.key_of(csr.public_key()), start, end)
        order.status = "valid"
        return answer(200, self._shown(order))

    # ---- certificates ---------------------------------------------------------------------------------

    async def _certificate(self, rest: str, _: None, member: Member, __: Json) -> Answer:
        await trio.lowlevel.checkpoint()
        order, which = self._of(rest, member), int(rest.partition("/")[2] or 0)
        assert order.leaf is not None
        chain = [order.leaf, self.authority.intermediates[which]]
        here = f"{self.base}/certificate/{order.number}"
        others = range(1, len(self.authority.intermediates)) if which == 0 else ()
        link = ", ".join([f'<{self.base}/directory>;rel="index"', *(f'<{here}/{n}>;rel="alternate"' for n in others)])
        return answer(200, b"".join(one.public_bytes(Encoding.PEM) for one in chain), link=link)

    async def _revokeCert(self, _: str, payload: Json, member: Member, __: Json) -> Answer:  # noqa: N802
        await trio.lowlevel.checkpoint()
        leaf = x509.load_der_x509_certificate(decode(payload["certificate"]))
        order = next((order for order in self.orders if order.leaf == leaf), None)
        if order is None or order.member is not member:
            raise Refused(403, "unauthorized", "it is not this account's certificate")
        if leaf.serial_number in self.revoked:
            raise Refused(400, "alreadyRevoked")
        self.revoked[leaf.serial_number] = payload.get("reason", 0)
        return answer(200)

    async def _renewalInfo(self, rest: str, *_: object) -> Answer:  # noqa: N802
        await trio.lowlevel.checkpoint()
        leaf = next((o.leaf for o in self.orders if o.leaf is not None and certificate_id(o.leaf) == rest), None)
        if leaf is None:
            raise Refused(404, "malformed", "no certificate is called so")
        start, end = self.window(leaf)
        if leaf.serial_number in self.revoked:
            now = datetime.now(UTC)
            start, end = (now - timedelta(hours=1)).isoformat(), (now - timedelta(minutes=30)).isoformat()
        fields = {"retry_after": self.ask_again} if self.ask_again else {}
        return answer(200, {"suggestedWindow": {"start": start, "end": end}}, **fields)


def last_third(leaf: x509.Certificate) -> tuple[str, str]:
    """A day of a certificate's life, with a third of it left."""
    start, end = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    middle = end - (end - start) / 3
    return (middle - (end - start) / 90).isoformat(), middle.isoformat()


# ---- small things -----------------------------------------------------------------------------------------


def _called(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def base64url(data: bytes) -> str:
    """Without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def thumbprint(jwk: Json) -> str:
    """RFC 7638."""
    return base64url(hashlib.sha256(json.dumps(jwk, sort_keys=True, separators=(",", ":")).encode()).digest())


def verify(jws: Json, jwk: Json) -> None:
    """ES256 by hand: RFC 7518 section 3.4."""
    x, y = (int.from_bytes(decode(jwk[part]), "big") for part in "xy")
    signature = decode(jws["signature"])
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    try:
        signed = f"{jws['protected']}.{jws['payload']}".encode()
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Refused(400, "malformed", "the signature does not verify") from None


def spki(certificate: x509.Certificate) -> bytes:
    """A certificate's public key."""
    return certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


# ---- HTTPS ------------------------------------------------------------------------------------------------


@asynccontextmanager
async def scripted_ca(folder: Path) -> AsyncIterator[ScriptedCA]:
    """A CA on a free port of 127.0.0.1, as long as the block; `folder` gets the file of whom to trust."""
    issuer = trustme.CA()
    await trio.Path(folder).mkdir(parents=True, exist_ok=True)
    ca_file = folder / "scripted-ca.pem"
    issuer.cert_pem.write_to_path(ca_file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer.issue_cert("127.0.0.1").configure_cert(context)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    ca = ScriptedCA(f"https://127.0.0.1:{port}", ca_file)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            trio.serve_listeners, partial(_serve, ca), [trio.SSLListener(one, context) for one in listeners]
        )
        yield ca
        nursery.cancel_scope.cancel()


async def _serve(ca: ScriptedCA, stream: trio.SSLStream[trio.SocketStream]) -> None:
    try:
        connection = h11.Connection(h11.SERVER)
        while await _one(ca, stream, connection):
            connection.start_next_cycle()
    except (trio.BrokenResourceError, h11.RemoteProtocolError):
        pass  # the client has gone, in the middle of something perhaps
    finally:
        await trio.aclose_forcefully(stream)


async def _one(ca: ScriptedCA, stream: trio.SSLStream[trio.SocketStream], connection: h11.Connection) -> bool:
    """Serve one request; whether there may be another one on this connection."""
    request: h11.Request | None = None
    body = b""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            return False
    assert request is not None
    act, done = await ca.handle(request.method.decode(), request.target.decode(), body)
    if isinstance(act, Hang):
        await trio.sleep_forever()
    if isinstance(act, Drop):
        return False
    content = b"" if request.method == b"HEAD" else done.content
    head = h11.Response(status_code=done.status, headers=[*done.fields.items(), ("content-length", str(len(content)))])
    message = (connection.send(head) or b"") + (connection.send(h11.Data(data=content)) or b"")
    message += connection.send(h11.EndOfMessage()) or b""
    if isinstance(act, Drip):
        for number in range(len(message)):
            await stream.send_all(message[number : number + 1])
            await trio.sleep(act.seconds)
    else:
        await stream.send_all(message)
    return connection.our_state is h11.DONE
