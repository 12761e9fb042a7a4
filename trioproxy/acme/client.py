"""One certificate authority, and what is asked of it in the name of our account there (RFC 8555).

Requests and nonces are `acme/session`, the account and its key `acme/account`; one issuance is `acme/order`.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

import attrs
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from trioproxy.acme import ari, signing
from trioproxy.acme.account import Account, AccountKeeper, Membership, Report
from trioproxy.acme.ari import Advice
from trioproxy.acme.gate import Gate
from trioproxy.acme.problems import AcmeProblem, AcmeProtocolError, plain
from trioproxy.acme.protocol import Authorization, Challenge, Directory, Order
from trioproxy.acme.session import Session
from trioproxy.config.model import Acme
from trioproxy.errors import AcmeError
from trioproxy.net.http_client import HttpClient

__all__ = ["Account", "AccountKeeper", "AcmeClient", "Chain", "Report"]

GLANCE = 2.0
"""Seconds for what only makes a message better."""


@attrs.frozen
class Chain:
    """A chain as the CA sends it, and where it has others for the same certificate."""

    pem: bytes
    alternates: tuple[str, ...]


class AcmeClient:
    """Speaks with one CA. Several orders may use it at the same time; a new key for the account waits for them.

    `register` comes first, except before `renewal_info`. All methods that wait raise AcmeProblem (the CA refused),
    AcmeProtocolError (its answer makes no sense) or AcmeUnreachable; and StoreError where the account has to be kept.

    Attributes:
        settings: Which CA it is, and on what terms.
    """

    def __init__(self, settings: Acme, http: HttpClient, accounts: AccountKeeper) -> None:
        self.settings = settings
        self._session = Session(settings.directory, http)
        self._member = Membership(settings, self._session, accounts)
        self._gate = Gate()

    @property
    def directory_url(self) -> str:
        """Which CA this is."""
        return self.settings.directory

    def close(self) -> None:
        """Close idle connections. The client can be used again."""
        self._session.close()

    async def directory(self) -> Directory:
        """What the CA offers."""
        return await self._session.directory()

    async def terms(self) -> str:
        """Where the CA's terms of service are; "" where there are none, or it cannot be asked quickly."""
        with trio.move_on_after(GLANCE):
            try:
                return plain((await self._session.directory()).terms_of_service)
            except AcmeError:
                return ""
        return ""

    # ---- the account ------------------------------------------------------------------------------------

    async def register(self, report: Report) -> None:
        """Make sure of an account: the one that is kept, with the email address as it is today, or a new one.

        Args:
            report: Is told of the CA's terms of service when an account is opened, for that accepts them.
        """
        await self._member.ensure(report)

    @property
    def account_url(self) -> str:
        """The account's address at the CA."""
        return self._member.account.url

    def key_authorization(self, token: str) -> str:
        """The answer to a challenge with this token."""
        return self._member.key.key_authorization(token)

    def in_use(self) -> AbstractAsyncContextManager[None]:
        """Keep the account's key as it is, as long as the block runs: answers to challenges are made of it."""
        return self._gate.together()

    async def roll_over(self, report: Report) -> None:
        """Give the account another key (section 7.3.5). Orders under way are waited for, new ones wait.

        Raises:
            AcmeError: the CA did not take it, or its answer was lost; then the next `register` finds out.
        """
        if self._gate.inside:
            report("waiting for orders that are under way")
        async with self._gate.alone():
            await self.register(report)
            await self._member.roll_over()

    # ---- orders -----------------------------------------------------------------------------------------

    async def new_order(self, name: str, profile: str = "", replaces: str = "") -> Order:
        """Order a certificate for a host name.

        Args:
            name: A normalised host name.
            profile: One that `directory` says the CA offers, "" for its default.
            replaces: The id of the certificate that it is to replace (RFC 9773 section 5), "" for none.
        """
        url = (await self._session.directory()).new_order
        payload = signing.order_payload(name, profile, replaces)
        doing = f"an order for {name}"
        try:
            reply = await self._member.post(url, payload, doing)
        except AcmeProblem as exc:
            if exc.problem.core == "unauthorized" and not replaces:  # that is, the account: it has been deactivated
                raise AcmeProblem(doing, exc.problem, "account") from exc
            raise
        if not reply.location:
            raise AcmeProtocolError("the CA took an order and did not say where it is")
        return Order.parse(reply.location, reply.body)

    async def order(self, url: str) -> tuple[Order, float | None]:
        """An order as it stands now, and the seconds until it is worth looking again, if the CA says so."""
        reply = await self._member.post(url, b"", "to show the order")
        return Order.parse(url, reply.body), reply.retry_after

    async def authorization(self, url: str) -> tuple[Authorization, float | None]:
        """An authorisation as it stands now, and the seconds until it is worth looking again, if the CA says so."""
        reply = await self._member.post(url, b"", "to show the authorisation")
        return Authorization.parse(reply.body), reply.retry_after

    async def respond(self, challenge: Challenge) -> None:
        """Tell the CA that the answer to a challenge is in place (section 7.5.1)."""
        await self._member.post(challenge.url, b"{}", "to look for the answer to its challenge")

    async def finalize(self, order: Order, csr: bytes) -> tuple[Order, float | None]:
        """Ask for the certificate of an order that is ready; `csr` in DER. Returns as `order`."""
        reply = await self._member.post(order.finalize, signing.finalize_payload(csr), "to sign the certificate")
        return Order.parse(order.url, reply.body), reply.retry_after

    async def certificate(self, url: str) -> Chain:
        """A chain, and the URLs of others for the same certificate (section 7.4.2)."""
        reply = await self._member.post(url, b"", "to hand out the certificate")
        return Chain(reply.body, reply.alternates)

    # ---- certificates that are there --------------------------------------------------------------------

    async def revoke(self, chain_pem: bytes, reason: str = "unspecified", key_pem: bytes = b"") -> None:
        """Have a certificate revoked (section 7.6); good if it is already.

        Args:
            chain_pem: The certificate, and perhaps its chain.
            reason: One of `signing.REASONS`.
            key_pem: The certificate's own key: it signs where another account ordered the certificate, one that is lost
                or another program's. b"" where only the account is to.
        """
        url = (await self._session.directory()).revoke_cert
        if not url:
            raise AcmeError(f"the CA at {self.directory_url} does not revoke certificates by ACME")
        leaf = x509.load_pem_x509_certificate(chain_pem).public_bytes(Encoding.DER)
        payload, doing = signing.revocation_payload(leaf, reason), "to revoke the certificate"
        try:
            try:
                await self._member.post(url, payload, doing)
            except AcmeProblem as exc:
                if exc.problem.core != "unauthorized" or not key_pem:
                    raise
                await self._session.post(url, payload, signing.LeafKey(key_pem), "", doing)
        except AcmeProblem as exc:
            if exc.problem.kind != "alreadyRevoked":
                raise

    async def renewal_info(self, chain_pem: bytes) -> Advice | None:
        """When the CA would like a certificate to be renewed (RFC 9773); it need not be this account's.

        Returns:
            None where the CA tells no such thing, or the certificate has no name to ask by.
        """
        directory = await self._session.directory()
        leaf = x509.load_pem_x509_certificate(chain_pem)
        name = ari.certificate_id(leaf)
        if not directory.renewal_info or not name:
            return None
        reply = await self._session.get(f"{directory.renewal_info.rstrip('/')}/{name}", "to say when to renew")
        return ari.read(reply.body, reply.retry_after, leaf.not_valid_before_utc, leaf.not_valid_after_utc)
