"""The certificate authorities that the configuration names, and our accounts there."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from trioproxy.acme.client import AcmeClient, Report
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.records import Provenance
from trioproxy.certs.status import authority
from trioproxy.config.model import AccountId, Acme
from trioproxy.errors import ControlError
from trioproxy.snapshot import Cell


@attrs.define
class Authorities:
    """A client for each authority, made when it is first asked for.

    One client for one account: what it knows of the account's key must not be known otherwise elsewhere.

    Args:
        cell: Where the configuration is read.
        make_client: A client for an ACME directory.
    """

    _cell: Cell
    _make_client: Callable[[Acme], AcmeClient]
    _clients: dict[Acme, AcmeClient] = attrs.field(factory=dict, init=False)

    @property
    def configured(self) -> tuple[Acme, ...]:
        """All that issue, in the order in which they are asked."""
        acme = self._cell.current.config.acme
        return (acme, *acme.fallback)

    def of(self, account: AccountId) -> Acme | None:
        """The settings by which a certificate was ordered, None where the configuration has them no more."""
        return next((acme for acme in self.configured if acme.account == account), None)

    def client(self, settings: Acme) -> AcmeClient:
        """The client for one of them, or for the rehearsals of one."""
        if settings not in self._clients:
            known = {*self.configured, *(acme.rehearsal for acme in self.configured)}
            self._clients = {acme: client for acme, client in self._clients.items() if acme in known}
            self._clients[settings] = self._make_client(settings)
        return self._clients[settings]

    async def revoke(self, bundle: Bundle, where: Provenance | None, reason: str, report: Report) -> None:
        """Have a certificate revoked by the account that ordered it; where that is not ours, by its own key.

        Args:
            bundle: The certificate.
            where: Where it came from; None where that is not known, and then it is the first authority's.
            reason: One of `acme.signing.REASONS`.
            report: Gets lines of progress.

        Raises:
            ControlError: none of the authorities in the configuration issued it.
            AcmeError: the CA does not revoke it.
        """
        settings = self.configured[0]
        if where is not None:
            account = where.origin.account
            found = self.of(account)
            if found is None:
                raise ControlError(
                    f"this certificate was ordered at {account.directory}, which the configuration does not name any"
                    " more: add it to acme.fallback, reload, and revoke again"
                )
            settings = found
        client = self.client(settings)
        report(f"asking {authority(settings.directory)} to revoke")
        try:
            async with client.in_use():
                await client.register(report)
                await client.revoke(bundle.chain_pem, reason, bundle.key_pem)
        finally:
            client.close()

    async def roll_over(self, directory: str, report: Report) -> str:
        """Give the account at a directory another key.

        Args:
            directory: Its URL; "" for the first authority's.
            report: Gets lines of progress.

        Returns:
            What was done, in words.

        Raises:
            ControlError: the configuration names no such directory.
            AcmeError: the CA did not take the key.
        """
        settings = [acme for acme in self.configured if acme.directory == directory or not directory]
        if not settings:
            known = ", ".join(dict.fromkeys(acme.directory for acme in self.configured))
            raise ControlError(f"the configuration has no authority {directory}; it has: {known}")
        for acme in settings if directory else settings[:1]:
            client = self.client(acme)
            report(f"giving {authority(acme.directory)} a new key for our account")
            try:
                await client.roll_over(report)
            finally:
                client.close()
        return f"the account at {authority(settings[0].directory)} has a new key"
