"""What a supervisor publishes for its workers: the two notice boards, each of which tells when it has changed."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Literal

from trioproxy.certs.bundle import Bundle
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.snapshot import Cell, Snapshot


async def _nobody_to_wait_for() -> None:
    """Until there are workers."""


def _nobody_to_tell(_: Set[str]) -> None:
    """The same."""


class SharedBoard(ChallengeBoard):
    """The board of challenges, of which workers have copies.

    Attributes:
        changed: Called after each change.
        settled: Returns when all copies are as this was when it was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed: Callable[[], None] = lambda: None
        self.settled: Callable[[], Awaitable[None]] = _nobody_to_wait_for

    @contextmanager
    def present(self, name: str, token: str, key_authorization: str) -> Iterator[Set[str]]:
        """See `ChallengeBoard`."""
        with self._telling(), super().present(name, token, key_authorization) as shown:
            self.changed()
            yield shown

    @contextmanager
    def present_in_tls(self, name: str, pem: bytes) -> Iterator[Set[str]]:
        """See `ChallengeBoard`."""
        with self._telling(), super().present_in_tls(name, pem) as shown:
            self.changed()
            yield shown

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.changed()

    async def seen(self) -> None:
        """See `ChallengeBoard`."""
        await self.settled()


class SharedCell(Cell):
    """The cell of a snapshot, of which workers have copies.

    Attributes:
        changed: Called with the names whose certificate, or whose lack of one, is another now. A new configuration as a
            whole is not told here.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__(snapshot)
        self.changed: Callable[[Set[str]], None] = _nobody_to_tell

    def update(self, change: Callable[[Snapshot], Snapshot]) -> None:
        """See `Cell`."""
        before = self.current
        super().update(change)
        if self.current.config is before.config:
            names = self.current.contexts.unlike(before.contexts) | (self.current.awaiting ^ before.awaiting)
            if names:
                self.changed(names)


class SharedSource(ContextSource):
    """Makes contexts, and keeps what those from users' files were made of: a file may be half written when read again.

    Attributes:
        of_files: Key and chain, PEM, by site.
    """

    def __init__(self, store: Store, internal_ca: InternalCA, alpn: Sequence[str]) -> None:
        super().__init__(store, internal_ca, alpn)
        self.of_files: dict[str, bytes] = {}

    def _make(
        self, name: str, bundle: Bundle, by: Literal["acme", "files", "internal"], problem: str = ""
    ) -> ssl.SSLContext:
        context = super()._make(name, bundle, by, problem)
        if by == "files":
            self.of_files[name] = bundle.pem
        else:
            self.of_files.pop(name, None)
        return context
