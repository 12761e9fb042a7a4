"""One certificate authority, and our account there (RFC 8555).

How a request goes. Every POST is signed with the account's key over a nonce that the CA gave out. Nonces come with each
response and the freshest is used first; one that the CA refuses all the same (it may: it restarted, or has several
servers) costs another round with the nonce that came with the refusal, as often as it takes until the request's time is
up. Every request, with all its rounds, has `REQUEST_DEADLINE` seconds.

The account's key is stored before the CA hears of it. A crash in between leaves a key that asks again and is told its
account, never an account whose key is lost. An account that the CA no longer knows is opened anew with the same key.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar
from urllib.parse import urljoin

import attrs
import trio

from trioproxy.acme import protocol
from trioproxy.acme.problems import (
    AcmeProblem,
    AcmeProtocolError,
    AcmeUnreachable,
    Problem,
    plain,
    retry_after,
)
from trioproxy.acme.protocol import AccountKey, Authorization, Challenge, Directory, Order
from trioproxy.config.model import Acme
from trioproxy.errors import AcmeError, StreamError, UpstreamError
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

Report = Callable[[str], None]
"""Takes a line of progress for a person."""

T = TypeVar("T")


@attrs.frozen
class Account:
    """An account at a CA.

    Attributes:
        key_pem: Its private key, P-256.
        url: Its address at the CA, "" until it is registered.
        contact: The email address that the CA was given, "" for none.
    """

    key_pem: bytes = attrs.field(repr=False)
    url: str
    contact: str


class AccountKeeper(Protocol):
    """Keeps accounts where a restart finds them again."""

    def read(self, directory: str) -> Account | None:
        """The account at the CA of a directory URL, None when there is none yet."""

    def write(self, directory: str, account: Account) -> None:
        """Keep it, in place of what was there; it has to be on disk when this returns."""


@attrs.frozen
class Reply:
    """A response of the CA that is no refusal.

    Attributes:
        location: The Location field, absolute, "" when there is none.
        retry_after: Seconds that the CA wants to be left alone, None when it does not say.
    """

    status: int
    body: bytes
    location: str
    retry_after: float | None


class AcmeClient:
    """Speaks with one CA. Several orders may use it at the same time.

    `register` comes first. All methods that wait raise AcmeProblem (the CA refused), AcmeProtocolError (its answer
    makes no sense) or AcmeUnreachable; and StoreError where the account has to be kept.
    """

    def __init__(self, settings: Acme, http: HttpClient, accounts: AccountKeeper) -> None:
        self._settings = settings
        self._http = http
        self._accounts = accounts
        self._directory: tuple[float, Directory] | None = None
        self._nonces: list[str] = []
        self._opening = trio.Lock()
        self._account: Account | None = None
        self._key: AccountKey | None = None

    @property
    def directory_url(self) -> str:
        """Which CA this is."""
        return self._settings.directory

    def close(self) -> None:
        """Close idle connections. The client can be used again."""
        self._http.close()

    # ---- the account ------------------------------------------------------------------------------------

    async def register(self, report: Report) -> None:
        """Make sure of an account: the one that is kept, with the email address as it is today, or a new one.

        Args:
            report: Is told of the CA's terms of service when an account is opened, for that accepts them.
        """
        async with self._opening:
            account = self._account or self._accounts.read(self.directory_url)
            if account is None:
                account = Account(protocol.new_account_key(), "", self._settings.email)
                self._accounts.write(self.directory_url, account)
            self._use(account if account.url else await self._open(account, report))
        await self._update_contact(report)

    def key_authorization(self, token: str) -> str:
        """The answer to a challenge with this token."""
        return self._signer().key_authorization(token)

    async def _open(self, account: Account, report: Report) -> Account:
        directory = await self._read_directory()
        if directory.external_account_required:
            raise AcmeError(
                f"the CA at {self.directory_url} opens accounts only with an external account binding (EAB), which"
                " trioproxy does not have; choose another directory"
            )
        if directory.terms_of_service:
            report(f"opening an account, which accepts the CA's terms of service: {plain(directory.terms_of_service)}")
        key = AccountKey(account.key_pem)
        payload = protocol.account_payload(self._settings.email, agree=True)
        reply = await self._send(directory.new_account, payload, key, "", "to open an account")
        if not reply.location:
            raise AcmeProtocolError("the CA opened an account and did not say where")
        # Section 7.3.1: 200 means that the key had an account already, and then the contact it knows is the old one.
        contact = self._settings.email if reply.status == 201 else account.contact
        opened = Account(account.key_pem, reply.location, contact)
        self._accounts.write(self.directory_url, opened)
        return opened

    async def _open_anew(self, unknown: Account) -> None:
        async with self._opening:
            if self._account is unknown:  # else another order was quicker
                self._use(await self._open(attrs.evolve(unknown, url=""), lambda _: None))

    async def _update_contact(self, report: Report) -> None:
        account = self._known_account()
        if account.contact == self._settings.email:
            return
        payload = protocol.account_payload(self._settings.email, agree=False)
        try:
            await self._send(account.url, payload, self._signer(), account.url, "the account's new email address")
        except AcmeProblem as exc:
            if exc.problem.kind == "accountDoesNotExist":
                await self._open_anew(account)
                return
            # Certificates do not depend on it; it is tried again with the next one.
            report(str(exc))
            return
        changed = attrs.evolve(account, contact=self._settings.email)
        self._accounts.write(self.directory_url, changed)
        self._use(changed)

    def _use(self, account: Account) -> None:
        if self._key is None or self._account is None or self._account.key_pem != account.key_pem:
            self._key = AccountKey(account.key_pem)
        self._account = account

    def _known_account(self) -> Account:
        if self._account is None:
            raise RuntimeError("register() comes first")
        return self._account

    def _signer(self) -> AccountKey:
        if self._key is None:
            raise RuntimeError("register() comes first")
        return self._key

    # ---- orders -----------------------------------------------------------------------------------------

    async def new_order(self, name: str) -> Order:
        """Order a certificate for a host name."""
        directory = await self._read_directory()
        reply = await self._post(directory.new_order, protocol.order_payload(name), f"an order for {name}")
        if not reply.location:
            raise AcmeProtocolError("the CA took an order and did not say where it is")
        return Order.parse(reply.location, reply.body)

    async def order(self, url: str) -> tuple[Order, float | None]:
        """An order as it stands now, and the seconds until it is worth looking again, if the CA says so."""
        reply = await self._post(url, b"", "to show the order")
        return Order.parse(url, reply.body), reply.retry_after

    async def authorization(self, url: str) -> tuple[Authorization, float | None]:
        """An authorisation as it stands now, and the seconds until it is worth looking again, if the CA says so."""
        reply = await self._post(url, b"", "to show the authorisation")
        return Authorization.parse(reply.body), reply.retry_after

    async def respond(self, challenge: Challenge) -> None:
        """Tell the CA that the answer to a challenge is in place (section 7.5.1)."""
        await self._post(challenge.url, b"{}", "to look for the answer to its challenge")

    async def finalize(self, order: Order, csr: bytes) -> tuple[Order, float | None]:
        """Ask for the certificate of an order that is ready; `csr` in DER. Returns as `order`."""
        reply = await self._post(order.finalize, protocol.finalize_payload(csr), "to sign the certificate")
        return Order.parse(order.url, reply.body), reply.retry_after

    async def certificate(self, url: str) -> bytes:
        """The chain as the CA sends it."""
        return (await self._post(url, b"", "to hand out the certificate")).body

    # ---- requests ---------------------------------------------------------------------------------------

    async def _post(self, url: str, payload: bytes, doing: str) -> Reply:
        account = self._known_account()
        try:
            return await self._send(url, payload, self._signer(), account.url, doing)
        except AcmeProblem as exc:
            if exc.problem.kind != "accountDoesNotExist":
                raise
        await self._open_anew(account)
        return await self._send(url, payload, self._signer(), self._known_account().url, doing)

    async def _send(self, url: str, payload: bytes, key: AccountKey, account_url: str, doing: str) -> Reply:
        """Sign and send; an `account_url` of "" signs with the key itself."""

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

    async def _read_directory(self) -> Directory:
        if self._directory is not None and trio.current_time() - self._directory[0] < DIRECTORY_AGE:
            return self._directory[1]
        reply = await self._in_time(lambda: self._request(b"GET", self.directory_url, "to show its directory"))
        try:
            directory = Directory.parse(reply.body)
        except AcmeProtocolError as exc:
            raise AcmeProtocolError(f"{self.directory_url} is no ACME directory: {exc}") from exc
        self._directory = (trio.current_time(), directory)
        return directory

    async def _nonce(self) -> str:
        if not self._nonces:
            directory = await self._read_directory()
            await self._request(b"HEAD", directory.new_nonce, "a nonce")
            if not self._nonces:
                raise AcmeProtocolError("the CA gives out no nonce that can be used")
        return self._nonces.pop()

    async def _in_time(self, do: Callable[[], Awaitable[T]]) -> T:
        with trio.move_on_after(REQUEST_DEADLINE):
            return await do()
        raise AcmeUnreachable(f"the CA at {self.directory_url} did not answer within {REQUEST_DEADLINE:.0f} seconds")

    async def _request(self, method: bytes, url: str, doing: str, body: bytes = b"") -> Reply:
        if self.directory_url.startswith("https:") and not url.startswith("https:"):
            raise AcmeProtocolError(f"the CA names an address that is not https: {plain(url)}")
        headers = [(b"accept-language", b"en")]
        if body:
            headers.append((b"content-type", b"application/jose+json"))
        try:
            response = await self._http.request(method, url, headers, body)
        except (UpstreamError, StreamError) as exc:
            raise AcmeUnreachable(f"the CA at {self.directory_url} cannot be asked: {exc}") from exc
        return self._read(response, url, doing)

    def _read(self, response: Response, url: str, doing: str) -> Reply:
        nonce = response.field(b"replay-nonce")
        if nonce is not None and protocol.usable_nonce(nonce):
            self._nonces = [*self._nonces[1 - MAX_NONCES :], nonce]
        wait = retry_after(response.field(b"retry-after"), response.field(b"date"), time.time())
        if not 200 <= response.status < 300:
            raise AcmeProblem(doing, Problem.parse(protocol.decode(response.body), response.status, wait))
        location = response.field(b"location")
        return Reply(response.status, response.body, urljoin(url, location) if location else "", wait)
