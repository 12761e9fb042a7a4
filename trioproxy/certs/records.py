"""What the store keeps of our dealings with CAs.

Orders under way, accounts, and of each certificate where it came from and when its CA would like it to be renewed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trioproxy.acme.account import Account
from trioproxy.acme.ari import Window
from trioproxy.acme.journal import OrderRecord, Origin
from trioproxy.certs import files
from trioproxy.certs.policy import Setback, Trouble
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
        challenge: How the name was proved, "" where that is not known or was not wanted.
    """

    serial: int
    origin: Origin
    revoked: str = ""
    challenge: str = ""


def provenance(values: Mapping[str, Any]) -> Provenance:
    """Of what `as_json` made."""
    account = AccountId(str(values["directory"]), str(values["eab_key_id"]))
    origin = Origin(account, str(values["account"]), str(values["certificate_id"]), str(values["profile"]))
    return Provenance(int(values["serial"], 16), origin, str(values["revoked"]), str(values.get("challenge", "")))


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
        "challenge": where.challenge,
    }


@attrs.frozen
class Suggestion:
    """When a CA would like a certificate to be renewed, and the moment that was picked of that, once.

    Attributes:
        serial: The certificate's serial number: what is told here is of no other.
        asked_at: When the CA was asked last; UTC.
        ask_at: When to ask it again; UTC.
        window: What it suggested; None for nothing, or nothing to go by.
        moment: Which moment of the window was picked; None without one.
    """

    serial: int
    asked_at: datetime
    ask_at: datetime
    window: Window | None = None
    moment: datetime | None = None

    def stale(self, now: datetime) -> bool:
        """Whether to ask again. An answer from the future was noted by a clock that was wrong."""
        return not self.asked_at <= now < self.ask_at


def suggestion(values: Mapping[str, Any]) -> Suggestion:
    """Of what `suggestion_json` made."""
    window, moment = values["window"], values["moment"]
    return Suggestion(
        int(values["serial"], 16),
        moment_of(values["asked_at"]),
        moment_of(values["ask_at"]),
        Window(*map(moment_of, window)) if window else None,
        moment_of(moment) if window else None,
    )


def suggestion_json(found: Suggestion) -> dict[str, Any]:
    """As JSON can say it."""
    return {
        "serial": f"{found.serial:x}",
        "asked_at": found.asked_at.isoformat(),
        "ask_at": found.ask_at.isoformat(),
        "window": [found.window.start.isoformat(), found.window.end.isoformat()] if found.window else None,
        "moment": found.moment.isoformat() if found.moment else None,
    }


def trouble(values: Mapping[str, Any]) -> Trouble:
    """Of what `trouble_json` made."""
    return Trouble(
        failures=max(1, int(values["failures"])),
        failed_at=moment_of(values["failed_at"]),
        next_attempt=moment_of(values["next_attempt"]),
        error=str(values["error"]),
        rate_limited=bool(values["rate_limited"]),
        at=tuple(
            Setback(
                AccountId(str(each["directory"]), str(each["eab_key_id"])),
                max(1, int(each["failures"])),
                moment_of(each["failed_at"]),
                moment_of(each["next_attempt"]),
                each["failure"],
            )
            for each in values.get("at", ())
        ),
    )


def trouble_json(found: Trouble) -> dict[str, Any]:
    """As JSON can say it."""
    return {
        "failures": found.failures,
        "failed_at": found.failed_at.isoformat(),
        "next_attempt": found.next_attempt.isoformat(),
        "error": found.error,
        "rate_limited": found.rate_limited,
        "at": [
            {
                "directory": each.account.directory,
                "eab_key_id": each.account.eab_key_id,
                "failures": each.failures,
                "failed_at": each.failed_at.isoformat(),
                "next_attempt": each.next_attempt.isoformat(),
                "failure": each.failure,
            }
            for each in found.at
        ],
    }


def moment_of(text: str) -> datetime:
    """A moment that was written with its offset from UTC; ValueError for one without."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a moment without its offset from UTC")
    return moment


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
    except (LookupError, RecursionError, TypeError, ValueError):
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

    def lock(self, account: AccountId) -> AbstractAsyncContextManager[None]:
        """Have it alone, among all processes, as long as the block runs. Raises StoreError."""
        name = self._path(account).with_suffix(".lock").name
        return files.locked(self._store.folder("locks") / f"_{name}", self._store.owner())

    def _path(self, account: AccountId) -> Path:
        directory = account.directory
        host = re.sub(r"[^a-z0-9.-]", "_", directory.lower().partition("://")[2].partition("/")[0])
        known_as = f"{directory}\n{account.eab_key_id}" if account.eab_key_id else directory
        digest = hashlib.sha256(known_as.encode()).hexdigest()
        return self._folder / f"{host[:100]}-{digest[:16]}.json"
