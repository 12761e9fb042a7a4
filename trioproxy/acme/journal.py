"""What of an issuance is kept by whoever asks for it: the order under way, and where a certificate came from."""

from __future__ import annotations

from typing import Protocol

import attrs

from trioproxy.config.model import AccountId


@attrs.frozen
class OrderRecord:
    """What must survive a crash.

    Attributes:
        directory: The URL of the CA's directory.
        order_url: The order; "" for one that is only meant to be made, or that was made and did not get as far.
        key_pem: The leaf's private key, PKCS#8 PEM.
    """

    directory: str
    order_url: str
    key_pem: bytes = attrs.field(repr=False)


class Journal(Protocol):
    """Keeps the order that is under way for one name.

    An order is counted by the CA as soon as it is made. So what may fail for want of room is written before: `intend`
    keeps the key and makes room for the URL, and `place` only fills that in. Whoever counts orders counts `intend`, for
    each call stands before exactly one newOrder that the CA may count.
    """

    def read(self) -> OrderRecord | None:
        """The order under way, None when there is none."""

    async def intend(self, directory: str, key_pem: bytes) -> None:
        """Keep what is about to be ordered, in place of an earlier order. It has to be on disk when this returns."""

    async def place(self, order_url: str) -> None:
        """Add the URL of the order that was made of the intention; likewise."""

    async def clear(self) -> None:
        """Forget it; nothing happens when there is none."""


@attrs.frozen
class Origin:
    """Where a certificate came from: who can revoke it, and be told that another one replaces it.

    Attributes:
        account: Settings with this id speak for the account that ordered it.
        account_url: That account at the CA. It is another one after the CA has forgotten the first.
        certificate_id: What the CA calls the certificate (RFC 9773 section 4.1), "" where it has no such name.
        profile: The profile that was asked for, "" for the CA's default.
    """

    account: AccountId
    account_url: str
    certificate_id: str
    profile: str = ""
