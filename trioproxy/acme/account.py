"""Our account at a certificate authority (RFC 8555 sections 7.3 and 7.1.2), and the keys that it has had.

The account's key is stored before the CA hears of it. A crash in between leaves a key that asks again and is told its
account, never an account whose key is lost. An account that the CA no longer knows is opened anew with the same key.

A key is replaced in three steps, and each is on disk before the next: the new key is stored beside the old one; the CA
is told; the new one takes the old one's place. Whoever finds both keys, after a crash or an answer that was lost, asks
the CA which one it knows (`onlyReturnExisting`) and keeps that. Several processes may use one account, so what is on
disk counts, and one at a time opens it or changes its key.

Accounts that are bound to a customer of the CA (EAB) are kept apart from the one that is not, and from each other: a
changed key id is another customer, and so another account.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import attrs
import trio

from trioproxy.acme import signing
from trioproxy.acme.problems import AcmeProblem, AcmeProtocolError, Problem, plain
from trioproxy.acme.session import Reply, Session
from trioproxy.acme.signing import AccountKey
from trioproxy.config.model import AccountId, Acme
from trioproxy.errors import AcmeError

log = logging.getLogger("trioproxy.acme")

Report = Callable[[str], None]
"""Takes a line of progress for a person."""


@attrs.frozen
class Account:
    """An account at a CA.

    Attributes:
        key_pem: Its private key, P-256.
        url: Its address at the CA, "" until it is registered.
        contact: The email address that the CA was given, "" for none.
        next_key_pem: The key that is about to take the place of `key_pem`, b"" for none. While there is one, the CA
            may know either.
    """

    key_pem: bytes = attrs.field(repr=False)
    url: str
    contact: str
    next_key_pem: bytes = attrs.field(default=b"", repr=False)


class AccountKeeper(Protocol):
    """Keeps accounts where a restart finds them again."""

    def read(self, account: AccountId) -> Account | None:
        """What is kept of an account, None when there is none yet."""

    async def write(self, account: AccountId, kept: Account) -> None:
        """Keep it, in place of what was there; it has to be on disk when this returns."""

    def lock(self, account: AccountId) -> AbstractAsyncContextManager[None]:
        """Have it alone, among all processes, as long as the block runs."""


class Membership:
    """Our account at one CA. `ensure` comes first; the methods raise as those of `Session`, and StoreError."""

    def __init__(self, settings: Acme, session: Session, keeper: AccountKeeper) -> None:
        self._settings = settings
        self._session = session
        self._keeper = keeper
        self._opening = trio.Lock()
        self._account: Account | None = None
        self._key: AccountKey | None = None

    @property
    def account(self) -> Account:
        """As it is kept."""
        if self._account is None:
            raise RuntimeError("register() comes first")
        return self._account

    @property
    def key(self) -> AccountKey:
        """What signs for it."""
        if self._key is None:
            raise RuntimeError("register() comes first")
        return self._key

    async def ensure(self, report: Report) -> None:
        """Make sure of an account: the one that is kept, with the email address as it is today, or a new one."""
        async with self._opening:
            account = self._kept()
            if account is None or not account.url or account.next_key_pem:
                async with self._keeper.lock(self._settings.account):
                    account = await self._ready(self._kept(), report)
            self._use(account)
        await self._update_contact(report)

    async def _ready(self, account: Account | None, report: Report) -> Account:
        """An account with an address and one key, of whatever was kept; hold its lock."""
        if account is None:
            account = await self._keep(Account(signing.new_account_key(), "", self._settings.email))
        if account.url and account.next_key_pem:
            account = await self._settle(account)
        return account if account.url else await self._open(account, report)

    async def post(self, url: str, payload: bytes, doing: str) -> Reply:
        """Sign for the account and send; one that the CA no longer knows is opened anew, once."""
        account = self.account
        try:
            return await self._session.post(url, payload, self.key, account.url, doing)
        except AcmeProblem as exc:
            if exc.problem.kind != "accountDoesNotExist":
                raise
        await self._open_anew(account)
        return await self._session.post(url, payload, self.key, self.account.url, doing)

    # ---- opening ----------------------------------------------------------------------------------------

    async def _open(self, account: Account, report: Report) -> Account:
        directory = await self._session.directory()
        key, binding = AccountKey(account.key_pem), None
        if self._settings.eab is not None:
            binding = key.bound_to(self._settings.eab, directory.new_account)
        elif directory.external_account_required:
            raise AcmeError(
                f"the CA at {self._session.url} opens accounts only for its customers (external account binding): write"
                " the key id and the HMAC key that it gave you as acme.eab, or choose another directory",
                "account",
            )
        if directory.terms_of_service:
            report(f"opening an account, which accepts the CA's terms of service: {plain(directory.terms_of_service)}")
        payload = signing.account_payload(self._settings.email, agree=True, binding=binding)
        try:
            reply = await self._session.post(directory.new_account, payload, key, "", "to open an account")
        except AcmeProblem as exc:
            if exc.problem.kind not in ("unauthorized", "malformed"):  # no other names it knows for a wrong binding
                raise
            doing = "to open an account"
            if binding is not None:
                doing += " with acme.eab (compare its key id and HMAC key with what the CA shows you)"
            raise AcmeProblem(doing, exc.problem, "account") from exc
        if not reply.location:
            raise AcmeProtocolError("the CA opened an account and did not say where")
        # Section 7.3.1: 200 means that the key had an account already, and then the contact it knows is the old one.
        contact = self._settings.email if reply.status == 201 else account.contact
        return await self._keep(Account(account.key_pem, reply.location, contact))

    async def _open_anew(self, unknown: Account) -> None:
        async with self._opening:
            if self._account is unknown:  # else another order was quicker
                self._use(await self._open(attrs.evolve(unknown, url=""), lambda _: None))

    async def _update_contact(self, report: Report) -> None:
        account = self.account
        if account.contact == self._settings.email:
            return
        payload = signing.account_payload(self._settings.email, agree=False)
        try:
            await self._session.post(account.url, payload, self.key, account.url, "the account's new email address")
        except AcmeProblem as exc:
            if exc.problem.kind == "accountDoesNotExist":
                await self._open_anew(account)
                return
            # Certificates do not depend on it; it is tried again with the next one.
            report(str(exc))
            return
        self._use(await self._keep(attrs.evolve(account, contact=self._settings.email)))

    # ---- another key ------------------------------------------------------------------------------------

    async def roll_over(self) -> None:
        """Give the account a new key (section 7.3.5); no request of the account may be under way meanwhile.

        Raises:
            AcmeError: the CA did not take it, or did not say whether it did. In that case both keys are kept, and the
                next `ensure` finds out.
        """
        async with self._opening, self._keeper.lock(self._settings.account):
            directory, account = await self._session.directory(), self._kept() or self.account
            if not directory.key_change:
                raise AcmeError(f"the CA at {self._session.url} has no way to change an account's key", "refused")
            account = await self._keep(attrs.evolve(account, next_key_pem=signing.new_account_key()))
            self._use(account)
            new = AccountKey(account.next_key_pem)
            payload = new.change_from(self.key, directory.key_change, account.url)
            refusal: Problem | None = None
            try:
                await self._session.post(directory.key_change, payload, self.key, account.url, "the account's new key")
            except AcmeProblem as exc:
                refusal = exc.problem
            if refusal is None:
                self._use(await self._keep(attrs.evolve(account, key_pem=account.next_key_pem, next_key_pem=b"")))
                return
            # It says no; but a round before this one, whose answer was lost, may have done it.
            settled = await self._settle(account)
            self._use(settled)
            if settled.key_pem == account.key_pem:
                raise AcmeProblem("the account's new key", refusal)

    async def _settle(self, account: Account) -> Account:
        """Of two keys keep the one that the CA knows; the old one if it knows neither, for it opens accounts anew."""
        directory = await self._session.directory()
        known = account.key_pem
        for pem in (account.next_key_pem, account.key_pem):
            key = AccountKey(pem)
            try:
                await self._session.post(directory.new_account, signing.ASK_FOR_ACCOUNT, key, "", "to find an account")
            except AcmeProblem as exc:
                if exc.problem.kind != "accountDoesNotExist":
                    raise
            else:
                known = pem
                break
        return await self._keep(attrs.evolve(account, key_pem=known, next_key_pem=b""))

    # ---- keeping ----------------------------------------------------------------------------------------

    def _kept(self) -> Account | None:
        """What is on disk, for another process may have replaced the key; else what was known last."""
        account = self._keeper.read(self._settings.account)
        if account is None or account == self._account:
            return self._account
        try:
            AccountKey(account.key_pem)
        except AcmeError as exc:
            log.error("%s: %s; another account is opened", self._session.url, exc)
            return self._account
        return account

    async def _keep(self, account: Account) -> Account:
        await self._keeper.write(self._settings.account, account)
        return account

    def _use(self, account: Account) -> None:
        if self._key is None or self._account is None or self._account.key_pem != account.key_pem:
            self._key = AccountKey(account.key_pem)
        self._account = account
