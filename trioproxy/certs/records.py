"""What the store keeps of our dealings with CAs: orders under way, accounts, and where certificates came from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trioproxy.acme.account import Account
from trioproxy.acme.journal import OrderRecord, Origin
from trioproxy.certs import files
from trioproxy.config.model import AccountId

if TYPE_CHECKING:
    from trioproxy.certs.store import Store

ROOM = 2048
"""Bytes that an order's file keeps free for its URL."""


@attrs.frozen
class Provenance:
    """Where a certificate came from, and what has become of it.

    Attributes:
        serial: Its serial number: what is told here is of no other.
        origin: Who ordered it where.
        revoked: The reason for which it has been revoked, "" if it has not.
    """

    serial: int
    origin: Origin
    revoked: str = ""


def provenance(values: Mapping[str, Any]) -> Provenance:
    """Of what `as_json` made."""
    account = AccountId(str(values["directory"]), str(values["eab_key_id"]))
    origin = Origin(account, str(values["account"]), str(values["certificate_id"]), str(values["profile"]))
    return Provenance(int(values["serial"], 16), origin, str(values["revoked"]))


def as_json(where: Provenance) -> dict[str, Any]:
    """As JSON can say it; the serial number in hexadecimal, which is how everybody else writes it."""
    return {
        "serial": f"{where.serial:x}",
        "directory": where.origin.account.directory,
        "eab_key_id": where.origin.account.eab_key_id,
        "account": where.origin.account_url,
        "certificate_id": where.origin.certificate_id,
        "profile": where.origin.profile,
        "revoked": where.revoked,
    }


@attrs.frozen
class OrderJournal:
    """The order of one name that is under way: `trioproxy.acme.journal.Journal`.

    The file has two lines of JSON. The second one, with the order's URL, is written into room that the first writing of
    the file has taken up already, so that a disk which fills in between does not lose an order. A second line that a
    crash cut off makes the record one of an intention.
    """

    _store: Store
    _path: Path

    def read(self) -> OrderRecord | None:
        """The order that was written down last and not cleared. Raises StoreError."""
        data = files.read(self._path)
        if data is None:
            return None
        first, _, second = data.partition(b"\n")
        url = _order_url(second)
        return self._store.built(
            self._path,
            first,
            lambda values: OrderRecord(str(values["directory"]), url, str(values["key_pem"]).encode("ascii")),
        )

    async def intend(self, directory: str, key_pem: bytes) -> None:
        """Write down what is about to be ordered; when this returns it survives a crash. Raises StoreError."""
        line = json.dumps({"directory": directory, "key_pem": key_pem.decode("ascii")}).encode()
        await trio.to_thread.run_sync(self._store.write, self._path, line + b"\n" + b" " * ROOM + b"\n")

    async def place(self, order_url: str) -> None:
        """Add the order's URL; likewise."""
        await trio.to_thread.run_sync(self._place, json.dumps({"order_url": order_url}).encode())

    def _place(self, line: bytes) -> None:
        data = files.read(self._path) or b""
        at = data.find(b"\n") + 1
        if len(line) <= ROOM:
            files.write_into(self._path, at, line)
        else:
            self._store.write(self._path, data[:at] + line + b"\n")

    async def clear(self) -> None:
        """There is no order under way any more. Raises StoreError."""
        await trio.to_thread.run_sync(files.remove, self._path)


def _order_url(line: bytes) -> str:
    try:
        return str(json.loads(line)["order_url"])
    except (KeyError, TypeError, ValueError):
        return ""


@attrs.frozen
class Accounts:
    """The accounts at ACME directories, one file each: `trioproxy.acme.account.AccountKeeper`."""

    _store: Store
    _folder: Path

    def read(self, account: AccountId) -> Account | None:
        """What is kept of an account, None if there is nothing. Raises StoreError."""
        return self._store.read_json(
            self._path(account),
            lambda values: Account(
                key_pem=str(values["key_pem"]).encode("ascii"),
                url=str(values["url"]),
                contact=str(values["contact"]),
                next_key_pem=str(values.get("next_key_pem", "")).encode("ascii"),
            ),
        )

    async def write(self, account: AccountId, kept: Account) -> None:
        """Keep an account; when this returns it survives a crash. Raises StoreError."""
        values = {
            "directory": account.directory,
            "eab_key_id": account.eab_key_id,
            "key_pem": kept.key_pem.decode("ascii"),
            "url": kept.url,
            "contact": kept.contact,
        }
        if kept.next_key_pem:
            values["next_key_pem"] = kept.next_key_pem.decode("ascii")
        await trio.to_thread.run_sync(self._store.write_json, self._path(account), values)

    def _path(self, account: AccountId) -> Path:
        directory = account.directory
        host = re.sub(r"[^a-z0-9.-]", "_", directory.lower().partition("://")[2].partition("/")[0])
        known_as = f"{directory}\n{account.eab_key_id}" if account.eab_key_id else directory
        digest = hashlib.sha256(known_as.encode()).hexdigest()
        return self._folder / f"{host[:100]}-{digest[:16]}.json"
