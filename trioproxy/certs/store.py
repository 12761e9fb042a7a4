"""The storage folder: keys, certificates, accounts, orders under way, and what went wrong last.

    certificates/NAME.pem                   key and chain of a name (certs/bundle.py says how)
    certificates/NAME.pem.previous          the pair before that
    certificates/NAME.pem.corrupt-TIME      a pair that did not load, set aside for a person to look at
    origins/NAME.json                       which account at which CA ordered the certificate, and whether it is revoked
    renewals/NAME.json                      when the CA would like it to be renewed, and when to ask it again
    orders/NAME.json                        an order under way, so that a crash resumes it instead of ordering again
    trouble/NAME.json                       failures in a row and the time of the next attempt (certs/policy.py)
    accounts/HOST-HASH.json                 the account at one ACME directory, as one customer of its (EAB)
    counts/NAME.json                        what CAs with known limits have counted of a name (certs/ledger.py)
    counts/_HASH.domains.json               and of registered domains (certs/domains.py)
    accounts/HASH.orders.json               and of an account
    locks/NAME.lock                         who works on a name (flock)
    internal/ca.pem                         key and certificate of the internal CA's root
    internal/ca.crt                         its certificate alone, to be imported into browsers
    internal/intermediate.pem               key and certificate of what signs for it
    pem/NAME                                a link to the folder with key and chain for others (certs/handing_out.py)
    on_renew/NAME.json                      for which certificate `on_renew` has been run, and how that ended

Folders are 0700 and files 0600. NAME is the host name with `_wildcard` for `*`; host names hold no underscore, slash
or doubled dot, so no two come out as one file, and none leads out of its folder. Each name has files of its own: what
happens to one touches no other, and a start with ten thousand names lists one folder instead of opening them.

What is written waits for the disk in a thread; reading is synchronous, a matter of microseconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import trio

from trioproxy.certs import files
from trioproxy.certs.bundle import Bundle, Leaf
from trioproxy.certs.policy import Trouble
from trioproxy.certs.records import (
    Accounts,
    OrderJournal,
    Provenance,
    Suggestion,
    as_json,
    provenance,
    suggestion,
    suggestion_json,
    trouble,
    trouble_json,
)
from trioproxy.errors import CertificateError
from trioproxy.names import MAX_NAME

log = logging.getLogger("trioproxy.certs")

T = TypeVar("T")

CERTIFICATES, ORIGINS, RENEWALS, ORDERS, TROUBLE, COUNTS, ACCOUNTS, LOCKS, INTERNAL = (
    "certificates",
    "origins",
    "renewals",
    "orders",
    "trouble",
    "counts",
    "accounts",
    "locks",
    "internal",
)

MAX_STEM = 200
"""Bytes of NAME: a host name may have 253, a file name 255, and `.pem.corrupt-TIME` needs its part of those."""

LEFT_BEHIND = 3600.0
"""Seconds after which a file that a writer left half done is taken to be nobody's."""

_NAME = re.compile(r"\*|(?:\*\.)?[a-z0-9-]+(?:\.[a-z0-9-]+)*")


def stem_of(name: str) -> str:
    """The file name of a host name, without its suffix.

    Args:
        name: A normalised name, `*.suffix`, or `*`.
    """
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise ValueError(f"not a host name: {name!r}")
    stem = name.replace("*", "_wildcard")
    if len(stem) > MAX_STEM:
        return f"{stem[: MAX_STEM - 65]}_{hashlib.sha256(stem.encode()).hexdigest()}"
    return stem


class Store:
    """One storage folder. Nothing is made or opened before it is needed.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    # ---- certificates -------------------------------------------------------------------------------

    def stored(self, names: Iterable[str]) -> frozenset[str]:
        """Those of `names` that have a certificate file here. It lists one folder and opens no file.

        Raises:
            StoreError: the folder cannot be read.
        """
        with files.explained(self.path / CERTIFICATES, "be read"):
            try:
                there = frozenset(path.name for path in (self.path / CERTIFICATES).iterdir())
            except FileNotFoundError:
                return frozenset()
        return frozenset(name for name in names if f"{stem_of(name)}.pem" in there)

    def load(self, name: str) -> Bundle | None:
        """The key and chain of `name`, None if there are none.

        A file that does not load is renamed, so that it is looked at once and not again, and logged as an error.

        Raises:
            StoreError: the file is there and cannot be read, or not renamed.
        """
        path = self._certificate(name)
        pem = files.read(path)
        if pem is None:
            return None
        try:
            return Bundle.parse(pem)
        except CertificateError as exc:
            aside = path.with_name(f"{path.name}.corrupt-{datetime.now(UTC):%Y%m%dT%H%M%SZ}")
            with files.explained(path, "be set aside"):
                path.replace(aside)
            log.error(
                "%s  its certificate file is damaged: %s; it is kept as %s, and I ask for a new one", name, exc, aside
            )
            return None

    async def save(self, name: str, bundle: Bundle) -> None:
        """Put `bundle` in the place of what `name` has; that is kept as the previous one. Hold the name's lock.

        Raises:
            StoreError: it could not be written; what was there before is still there.
            CertificateError: what was written does not load, or is not for `name`; as above.
        """
        if not bundle.leaf.matches(name):
            raise CertificateError(
                f"the certificate is for {', '.join(bundle.leaf.names) or 'no name'}, not for {name}"
            )
        await trio.to_thread.run_sync(self._save, name, bundle)

    def _save(self, name: str, bundle: Bundle) -> None:
        path = self._certificate(name)
        old = self.load(name)
        if old is not None and old != bundle:
            self.write(path.with_name(f"{path.name}.previous"), old.pem)
        self.write(path, bundle.pem, bundle)

    def _certificate(self, name: str) -> Path:
        return self.path / CERTIFICATES / f"{stem_of(name)}.pem"

    # ---- one name's other files ---------------------------------------------------------------------

    def lock(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold the lock of `name`, against other tasks and other processes, as long as the block runs.

        Raises:
            StoreError: the lock file cannot be made.
        """
        return files.locked(self.folder(LOCKS) / f"{stem_of(name)}.lock", self.owner())

    def journal(self, name: str) -> OrderJournal:
        """Where the order of `name` that is under way is written down."""
        return OrderJournal(self, self.path / ORDERS / f"{stem_of(name)}.json")

    def trouble(self, name: str) -> Trouble | None:
        """What went wrong last for `name`, None if its last attempt worked. Raises StoreError."""
        return self.read_json(self._trouble(name), trouble)

    async def note_trouble(self, name: str, found: Trouble) -> None:
        """Write down what went wrong for `name`. Raises StoreError."""
        await trio.to_thread.run_sync(self.write_json, self._trouble(name), trouble_json(found))

    def forget_trouble(self, name: str) -> None:
        """All is well with `name` again. Raises StoreError."""
        files.remove(self._trouble(name))

    def _trouble(self, name: str) -> Path:
        return self.path / TROUBLE / f"{stem_of(name)}.json"

    def origin(self, name: str, leaf: Leaf) -> Provenance | None:
        """Where the certificate `leaf` of `name` came from, None if that is not known. Raises StoreError."""
        found = self.read_json(self._origin(name), provenance)
        return found if found is not None and found.serial == leaf.serial else None

    async def note_origin(self, name: str, where: Provenance) -> None:
        """Write down where the certificate of `name` came from. Raises StoreError."""
        await trio.to_thread.run_sync(self.write_json, self._origin(name), as_json(where))

    def _origin(self, name: str) -> Path:
        return self.path / ORIGINS / f"{stem_of(name)}.json"

    def suggestion(self, name: str, leaf: Leaf) -> Suggestion | None:
        """When the CA would like the certificate `leaf` of `name` to be renewed. Raises StoreError."""
        found = self.read_json(self._renewal(name), suggestion)
        return found if found is not None and found.serial == leaf.serial else None

    async def note_suggestion(self, name: str, found: Suggestion) -> None:
        """Write down when the CA would like the certificate of `name` to be renewed. Raises StoreError."""
        await trio.to_thread.run_sync(self.write_json, self._renewal(name), suggestion_json(found))

    def _renewal(self, name: str) -> Path:
        return self.path / RENEWALS / f"{stem_of(name)}.json"

    # ---- all names' ---------------------------------------------------------------------------------

    @property
    def accounts(self) -> Accounts:
        """The accounts at ACME directories."""
        return Accounts(self, self.path / ACCOUNTS)

    def internal_ca(self) -> Bundle | None:
        """Key and certificate of the internal CA's root. Raises StoreError, or CertificateError if it is damaged."""
        return self._internal_bundle("ca.pem")

    def internal_intermediate(self) -> Bundle | None:
        """Key and certificate of the internal CA's intermediate. Raises as `internal_ca`."""
        return self._internal_bundle("intermediate.pem")

    def _internal_bundle(self, name: str) -> Bundle | None:
        pem = files.read(self.path / INTERNAL / name)
        return None if pem is None else Bundle.parse(pem)

    def save_internal_ca(self, bundle: Bundle) -> None:
        """Keep `bundle` as the internal CA's root; hold `internal_lock`. Raises StoreError."""
        path = self.path / INTERNAL / "ca.pem"
        old = files.read(path)
        if old is not None:
            self.write(path.with_name("ca.pem.previous"), old)
        self.write(path, bundle.pem, bundle)
        self.show_internal_ca(bundle)

    def show_internal_ca(self, bundle: Bundle) -> None:
        """Have the root's certificate alone beside it, as it is now; hold `internal_lock`. Raises StoreError."""
        path = self.internal_ca_certificate
        with files.explained(path, "be read"):
            shown = path.read_bytes() if path.exists() else b""
        if shown != bundle.chain_pem:
            self.write(path, bundle.chain_pem)

    def save_internal_intermediate(self, bundle: Bundle) -> None:
        """Keep `bundle` as the internal CA's intermediate; hold `internal_lock`. Raises StoreError."""
        self.write(self.path / INTERNAL / "intermediate.pem", bundle.pem, bundle)

    @property
    def internal_ca_certificate(self) -> Path:
        """The file with the root's certificate alone, once there is one."""
        return self.path / INTERNAL / "ca.crt"

    def internal_lock(self) -> AbstractContextManager[None]:
        """Keeps two processes from making an internal CA at the same time."""
        return files.locked_briefly(self.folder(LOCKS) / "_internal.lock", self.owner())

    def sweep(self) -> None:
        """Remove what interrupted writers left behind. Never fails."""
        for folder in (CERTIFICATES, ORIGINS, RENEWALS, ORDERS, TROUBLE, COUNTS, ACCOUNTS, INTERNAL):
            files.sweep(self.path / folder, time.time() - LEFT_BEHIND)

    # ---- inside -------------------------------------------------------------------------------------

    def owner(self) -> tuple[int, int] | None:
        """User and group whose files these are, where root writes into another user's store. Raises StoreError."""
        if os.geteuid() != 0:
            return None
        with files.explained(self.path, "be read"):
            status = self.path.stat()
        return (status.st_uid, status.st_gid) if (status.st_uid, status.st_gid) != (0, os.getegid()) else None

    def folder(self, name: str) -> Path:
        """The folder `name` of the store, 0700, made if it is not there. Raises StoreError."""
        with files.explained(self.path, "be made"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.make_folder(self.path / name, self.owner())
        return self.path / name

    def write(self, path: Path, data: bytes, bundle: Bundle | None = None) -> None:
        """Put a file in its place; a bundle only after it was read back and TLS took it. Raises StoreError."""

        def check(aside: Path) -> None:
            if bundle is not None and Bundle.parse(files.read(aside) or b"") != bundle:
                raise CertificateError("what was written differs from what is read back: the disk is failing")
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(aside)
            except ssl.SSLError as exc:
                raise CertificateError(f"TLS does not take the certificate: {exc.reason or exc}") from exc

        self.folder(path.parent.name)
        files.replace(path, data, self.owner(), None if bundle is None else check)

    def read_json(self, path: Path, build: Callable[[Mapping[str, Any]], T]) -> T | None:
        """What `build` makes of a JSON file; None if there is none, or none that makes sense. Raises StoreError."""
        data = files.read(path)
        return None if data is None else self.built(path, data, build)

    def built(self, path: Path, data: bytes, build: Callable[[Mapping[str, Any]], T]) -> T | None:
        """What `build` makes of JSON that was read from `path`; None, and an error in the log, if it makes no sense."""
        try:
            values = json.loads(data)
            if not isinstance(values, dict):
                raise TypeError("not an object")
            return build(values)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            log.error("%s is damaged and is not used", path)
            return None

    def write_json(self, path: Path, values: Mapping[str, Any]) -> None:
        """Replace a JSON file. Raises StoreError."""
        self.write(path, json.dumps(values, indent=1).encode() + b"\n")
