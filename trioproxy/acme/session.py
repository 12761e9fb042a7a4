"""Requests to one certificate authority: its directory, its nonces, and signatures over both.

How a request goes. Every POST is signed with the account's key over a nonce that the CA gave out. Nonces come with each
response and the freshest is used first; one that the CA refuses all the same (it may: it restarted, or has several
servers) costs another round with the nonce that came with the refusal, as often as it takes until the request's time is
up. Every request, with all its rounds, has `REQUEST_DEADLINE` seconds.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urljoin

import attrs
import trio

from trioproxy.acme import protocol, signing
from trioproxy.acme.problems import (
    AcmeProblem,
    AcmeProtocolError,
    AcmeUnreachable,
    Problem,
    plain,
    retry_after,
)
from trioproxy.acme.protocol import Directory
from trioproxy.acme.signing import AccountKey, LeafKey
from trioproxy.errors import StreamError, UpstreamError
from trioproxy.net.http_client import HttpClient, Response

REQUEST_DEADLINE = 30.0
"""Seconds for one request, nonces and all."""

DIRECTORY_AGE = 3600.0
"""Seconds for which a directory is believed before it is read again."""

MAX_NONCES = 16
"""Nonces kept. Each request uses one and brings one, so more come only with many orders at the same time."""

FREE_ROUNDS = 5
"""Refused nonces after which further rounds wait a little: a CA that refuses everything must not be stormed."""

ROUND_PAUSE = 0.5
"""Seconds of that wait."""

MAX_ALTERNATES = 8
"""Links to other chains that are looked at; CAs have one or two."""

T = TypeVar("T")


@attrs.frozen
class Reply:
    """A response of the CA that is no refusal.

    Attributes:
        location: The Location field, absolute, "" when there is none.
        retry_after: Seconds that the CA wants to be left alone, None when it does not say.
        alternates: The targets of its links with the relation `alternate`, absolute.
    """

    status: int
    body: bytes
    location: str
    retry_after: float | None
    alternates: tuple[str, ...] = ()


class Session:
    """Speaks with one CA; of accounts it knows no more than the key that it is told to sign with.

    All methods that wait raise AcmeProblem (the CA refused), AcmeProtocolError (its answer makes no sense) or
    AcmeUnreachable.

    Attributes:
        url: Of the CA's directory.
    """

    def __init__(self, url: str, http: HttpClient) -> None:
        self.url = url
        self._http = http
        self._directory: tuple[float, Directory] | None = None
        self._nonces: list[str] = []

    def close(self) -> None:
        """Close idle connections. The session can be used again."""
        self._http.close()

    async def directory(self) -> Directory:
        """Where the CA takes which request."""
        if self._directory is not None and trio.current_time() - self._directory[0] < DIRECTORY_AGE:
            return self._directory[1]
        reply = await self.get(self.url, "to show its directory")
        try:
            directory = Directory.parse(reply.body)
        except AcmeProtocolError as exc:
            raise AcmeProtocolError(f"{self.url} is no ACME directory: {exc}") from exc
        self._directory = (trio.current_time(), directory)
        return directory

    async def get(self, url: str, doing: str) -> Reply:
        """Ask for what everybody may see."""
        return await self._in_time(lambda: self._request(b"GET", url, doing))

    async def post(self, url: str, payload: bytes, key: AccountKey | LeafKey, account_url: str, doing: str) -> Reply:
        """Sign and send.

        Args:
            url: Where to.
            payload: JSON, or b"" for POST-as-GET.
            key: Signs.
            account_url: Whose key it is; "" lets the request carry the key itself.
            doing: What it is for, to stand after "the CA refused".
        """

        async def rounds() -> Reply:
            refused = 0
            while True:
                body = key.sign(url, await self._nonce(), payload, account_url)
                try:
                    return await self._request(b"POST", url, doing, body)
                except AcmeProblem as exc:
                    if exc.problem.kind != "badNonce":
                        raise
                refused += 1
                if refused >= FREE_ROUNDS:
                    await trio.sleep(ROUND_PAUSE)

        return await self._in_time(rounds)

    async def _nonce(self) -> str:
        if not self._nonces:
            directory = await self.directory()
            await self._request(b"HEAD", directory.new_nonce, "a nonce")
            if not self._nonces:
                raise AcmeProtocolError("the CA gives out no nonce that can be used")
        return self._nonces.pop()

    async def _in_time(self, do: Callable[[], Awaitable[T]]) -> T:
        with trio.move_on_after(REQUEST_DEADLINE):
            return await do()
        raise AcmeUnreachable(f"the CA at {self.url} did not answer within {REQUEST_DEADLINE:.0f} seconds")

    async def _request(self, method: bytes, url: str, doing: str, body: bytes = b"") -> Reply:
        if self.url.startswith("https:") and not url.startswith("https:"):
            raise AcmeProtocolError(f"the CA names an address that is not https: {plain(url)}")
        headers = [(b"accept-language", b"en")]
        if body:
            headers.append((b"content-type", b"application/jose+json"))
        try:
            response = await self._http.request(method, url, headers, body)
        except (UpstreamError, StreamError) as exc:
            raise AcmeUnreachable(f"the CA at {self.url} cannot be asked: {exc}") from exc
        return self._read(response, url, doing)

    def _read(self, response: Response, url: str, doing: str) -> Reply:
        nonce = response.field(b"replay-nonce")
        if nonce is not None and signing.usable_nonce(nonce):
            self._nonces = [*self._nonces[1 - MAX_NONCES :], nonce]
        wait = retry_after(response.field(b"retry-after"), response.field(b"date"), time.time())
        if not 200 <= response.status < 300:
            raise AcmeProblem(doing, Problem.parse(protocol.decode(response.body), response.status, wait))
        location = response.field(b"location")
        fields = [value.decode("latin-1") for name, value in response.headers if name == b"link"]
        others = [urljoin(url, link) for link in protocol.links(fields, "alternate")]
        return Reply(
            response.status,
            response.body,
            urljoin(url, location) if location else "",
            wait,
            tuple(others[:MAX_ALTERNATES]),
        )
