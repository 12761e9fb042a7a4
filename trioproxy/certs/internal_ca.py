"""The local certificate authority: stand-ins until a site's own certificate is there, and `tls = "internal"`.

People import the root, so it is made once and kept for ten years. Its key is read only to sign an intermediate, every
two months; the intermediate signs the leaves. How they look is `certs/issuing`.

Root and intermediate are made when they are first needed. Each is one file with its key, replaced whole, and an
intermediate is used only if the root beside it has signed it: whatever a crash leaves, the next one to look puts right.
Leaves are made when a context needs one and live in memory only, so they can be short-lived; each has its own key, for
making one takes a tenth of what signing its certificate does.

A root that permits no intermediate, as versions before the first release made them, goes on to sign leaves itself until
its end. A new one would have to be imported on every device again, and that is for their owner to begin.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime

from trioproxy.certs.bundle import Bundle
from trioproxy.certs.issuing import Signer, new_root
from trioproxy.certs.store import Store
from trioproxy.errors import CertificateError, StoreError

log = logging.getLogger("trioproxy.certs")

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock."""
    return datetime.now(UTC)


class InternalCA:
    """The authority of one store.

    Args:
        store: Where root and intermediate are kept.
        clock: The wall clock, UTC.
    """

    def __init__(self, store: Store, clock: Clock = utc_now) -> None:
        self._store = store
        self._clock = clock
        self._kept: Signer | None = None

    def prepare(self) -> None:
        """Have a signer of leaves at hand. It may wait for a disk, so it is best called in a thread. Never fails.

        Where the store cannot be read or written the root lives in memory: browsers warn of stand-ins anyway, and a
        site is served from the first second. Where only writing fails, the root that is there signs all the same.
        """
        self._signer()

    def issue(self, name: str) -> Bundle:
        """A new key and certificate for `name`: a host name, `*.suffix` or `*`. About 0.2 ms."""
        return self._signer().leaf(name, self._clock())

    def _signer(self) -> Signer:
        now = self._clock()
        signer = self._kept
        if signer is None or not signer.lasts(now):
            try:
                with self._store.internal_lock():
                    signer = self._stored(now)
            except (StoreError, CertificateError) as exc:  # the latter: what was written is not what is read back
                log.error("the internal CA cannot be kept, so it lasts until the next start: %s", exc)
                signer = self._unstored(now)
            self._kept = signer
        return signer

    def _stored(self, now: datetime) -> Signer:
        """What signs leaves, kept in the store; hold its lock."""
        root = self._root(now)
        if root is None:
            root = new_root(now)
            self._store.save_internal_ca(root.bundle)
        else:
            self._store.show_internal_ca(root.bundle)
        if root.signs_leaves:
            return root
        intermediate = self._intermediate(root, now)
        if intermediate is None:
            intermediate = root.intermediate(now)
            self._store.save_internal_intermediate(intermediate.bundle)
        return intermediate

    def _unstored(self, now: datetime) -> Signer:
        """The same without writing anything."""
        try:
            root = self._root(now)
        except StoreError:
            root = None
        root = root or new_root(now)
        return root if root.signs_leaves else root.intermediate(now)

    def _root(self, now: datetime) -> Signer | None:
        """The root of the store, None if there is none to be used; raises StoreError."""
        try:
            kept = self._store.internal_ca()
            root = None if kept is None else Signer(kept)
        except CertificateError as exc:
            log.error("the internal CA is damaged and gets a successor, to be imported anew: %s", exc)
            return None
        if root is not None and not root.lasts(now):
            log.warning("the internal CA has come to its end and gets a successor, to be imported anew")
            return None
        return root

    def _intermediate(self, root: Signer, now: datetime) -> Signer | None:
        """The intermediate of the store, None if there is none to be used; raises StoreError."""
        try:
            kept = self._store.internal_intermediate()
            found = None if kept is None else Signer(kept)
        except CertificateError as exc:
            log.error("the internal CA's intermediate is damaged and gets a successor: %s", exc)
            return None
        return found if found is not None and root.signed(found) and found.lasts(now) else None
