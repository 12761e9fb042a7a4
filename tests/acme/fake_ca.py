"""A certificate authority that does what a test tells it to, for what Pebble cannot do.

It stands in for the HTTP client, so there are no sockets, and time may be Trio's mock clock. Left alone it takes every
order, believes every challenge, and signs. A test puts other replies before that, per resource:

    ca = FakeCA()
    ca.script["newOrder"] = [problem(429, "rateLimited", retry_after="120")]

It does not check signatures: Pebble does.
"""

from __future__ import annotations

import base64
import datetime
import itertools
import json
from collections.abc import Callable
from typing import Any

import attrs
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.acme.support import Customer
from trioproxy.acme.problems import NAMESPACE
from trioproxy.challenges import ChallengeBoard
from trioproxy.http.messages import Headers
from trioproxy.net.http_client import HttpClient, Response
from trioproxy.net.sock import Reaper

BASE = "https://ca.test"
DIRECTORY = f"{BASE}/directory"

Reply = Response | Exception | None
"""What a script holds: a response, an error of the network, or None for no answer, ever."""


def answer(status: int, body: object = b"", **fields: str) -> Response:
    """A response; a body that is not bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Response(status, [(n.replace("_", "-").encode(), v.encode()) for n, v in fields.items()], content)


def problem(status: int, kind: str, detail: str = "", **fields: str) -> Response:
    """A refusal."""
    return answer(status, {"type": NAMESPACE + kind, "detail": detail or f"it is {kind}", "status": status}, **fields)


BUSY = answer(503, b"<html>busy</html>")


@attrs.define
class Asked:
    """A request: what it was for, what it held, and when it came (Trio time)."""

    resource: str
    payload: Any
    protected: dict[str, Any]
    at: float


class FakeCA(HttpClient):
    """See above.

    Attributes:
        script: Replies by resource, used up in order before the CA does its usual work.
        asked: Every request that came.
        authorization: The status of the only authorisation.
        status: The status of the only order.
        nonce: Makes the next nonce to give out, or None.
        lifetime: From when until when certificates are good.
    """

    def __init__(self) -> None:
        super().__init__(None, Reaper())
        self.script: dict[str, list[Reply]] = {}
        self.asked: list[Asked] = []
        self.authorization = "pending"
        self.status = "pending"
        self.order_error: object = None
        self.name = ""
        self.csr = b""
        self.orders = 0
        self.on_request: Callable[[str], None] = lambda _: None
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        self.lifetime = (now - datetime.timedelta(hours=1), now + datetime.timedelta(days=90))
        numbers = itertools.count()
        self.nonce: Callable[[], bytes | None] = lambda: base64.urlsafe_b64encode(b"%09d" % next(numbers))
        self._key = ec.generate_private_key(ec.SECP256R1())

    def customer(self) -> Customer:
        """Somebody who knows no other CA than this."""
        return Customer(DIRECTORY, None, ChallengeBoard(), http=self)

    def times(self, resource: str) -> list[float]:
        """When a resource was asked for."""
        return [asked.at for asked in self.asked if asked.resource == resource]

    async def request(self, method: bytes, url: str, headers: Headers, body: bytes = b"") -> Response:
        await trio.lowlevel.checkpoint()
        resource = url.removeprefix(BASE + "/").partition("/")[0]
        jws = json.loads(body) if body else {}
        payload = json.loads(decode(jws["payload"]) or b"null") if body else None
        protected = json.loads(decode(jws["protected"])) if body else {}
        self.asked.append(Asked(resource, payload, protected, trio.current_time()))
        self.on_request(resource)
        if scripted := self.script.get(resource):
            reply = scripted.pop(0)
            if reply is None:
                await trio.sleep_forever()
            if isinstance(reply, Exception):
                raise reply
            assert reply is not None
        else:
            reply = getattr(self, f"_{resource}")(payload)
        nonce = None if resource == "directory" else self.nonce()
        if nonce is None:
            return reply
        return attrs.evolve(reply, headers=[*reply.headers, (b"replay-nonce", nonce)])

    def order(self) -> dict[str, Any]:
        """The order as it stands."""
        if self.status == "pending" and self.authorization == "valid":
            self.status = "ready"
        return {
            "status": self.status,
            "identifiers": [{"type": "dns", "value": self.name}],
            "authorizations": [f"{BASE}/authorization/1"],
            "finalize": f"{BASE}/finalize/{self.orders}",
            **({"certificate": f"{BASE}/certificate/{self.orders}"} if self.status == "valid" else {}),
            **({"error": self.order_error} if self.order_error else {}),
        }

    def challenge(self) -> dict[str, Any]:
        """The only challenge."""
        return {"type": "http-01", "url": f"{BASE}/challenge/1", "token": "a-token", "status": "pending"}

    def sign(self, csr_der: bytes) -> bytes:
        """The chain for a CSR: a leaf, and nothing that it needs beside the root."""
        csr = x509.load_der_x509_csr(csr_der)
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        builder = x509.CertificateBuilder(
            issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Fake")]),
            subject_name=x509.Name([]),
            public_key=csr.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=self.lifetime[0],
            not_valid_after=self.lifetime[1],
        )
        return (
            builder.add_extension(names.value, critical=True)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )

    # ---- the usual work ---------------------------------------------------------------------------------

    def _directory(self, _: object) -> Response:
        resources = ("newNonce", "newAccount", "newOrder")
        return answer(
            200, {**{name: f"{BASE}/{name}" for name in resources}, "meta": {"termsOfService": f"{BASE}/tos"}}
        )

    def _newNonce(self, _: object) -> Response:  # noqa: N802 - named as the resource is
        return answer(200)

    def _newAccount(self, _: object) -> Response:  # noqa: N802
        return answer(201, {"status": "valid"}, location=f"{BASE}/account/1")

    def _account(self, payload: object) -> Response:
        return answer(200, {"status": "valid"})

    def _newOrder(self, payload: dict[str, Any]) -> Response:  # noqa: N802
        self.orders += 1
        self.status = "pending"
        self.name = payload["identifiers"][0]["value"]
        return answer(201, self.order(), location=f"{BASE}/order/{self.orders}")

    def _order(self, _: object) -> Response:
        return answer(200, self.order())

    def _authorization(self, _: object) -> Response:
        return answer(200, {"status": self.authorization, "challenges": [self.challenge()]})

    def _challenge(self, _: object) -> Response:
        self.authorization = "valid"
        return answer(200, self.challenge())

    def _finalize(self, payload: dict[str, Any]) -> Response:
        self.csr = decode(payload["csr"])
        self.status = "valid"
        return answer(200, self.order())

    def _certificate(self, _: object) -> Response:
        return answer(200, self.sign(self.csr))


def decode(text: str) -> bytes:
    """Base64url without padding."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
