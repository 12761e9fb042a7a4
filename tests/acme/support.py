"""What an issuance needs around it: keepers in memory, and a port 80 that answers from the challenge board."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from trioproxy.acme.account import Account
from trioproxy.acme.client import AcmeClient
from trioproxy.acme.journal import OrderRecord, Origin
from trioproxy.acme.order import Issued, OrderFailed, Wanted, obtain
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import AccountId, Acme, ChallengeType, KeyType
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper

Clock = trio.testing.MockClock

PATIENCE = 60.0
"""Seconds for an issuance that takes one: a busy machine must not fail a test."""


class MemoryAccounts:
    """Keeps accounts, and every one that was ever written."""

    def __init__(self) -> None:
        self.kept: dict[AccountId, Account] = {}
        self.history: list[Account] = []
        self.on_write: Callable[[], None] = lambda: None
        self._locks: dict[AccountId, trio.Lock] = {}

    def read(self, account: AccountId) -> Account | None:
        return self.kept.get(account)

    async def write(self, account: AccountId, kept: Account) -> None:
        await trio.lowlevel.checkpoint()
        self.kept[account] = kept
        self.history.append(kept)
        self.on_write()

    @asynccontextmanager
    async def lock(self, account: AccountId) -> AsyncIterator[None]:
        async with self._locks.setdefault(account, trio.Lock()):
            yield

    @property
    def only(self) -> Account:
        (account,) = self.kept.values()
        return account


class MemoryJournal:
    """Keeps an order, and every one that was ever intended or made."""

    def __init__(self) -> None:
        self.kept: OrderRecord | None = None
        self.intended: list[OrderRecord] = []
        self.history: list[OrderRecord] = []
        self.on_intention: Callable[[], None] = lambda: None
        self.on_write: Callable[[], None] = lambda: None

    def read(self) -> OrderRecord | None:
        return self.kept

    async def intend(self, directory: str, key_pem: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.on_intention()
        self.kept = OrderRecord(directory, "", key_pem)
        self.intended.append(self.kept)

    async def place(self, order_url: str) -> None:
        await trio.lowlevel.checkpoint()
        assert self.kept is not None
        self.kept = attrs.evolve(self.kept, order_url=order_url)
        self.history.append(self.kept)
        self.on_write()

    async def clear(self) -> None:
        await trio.lowlevel.checkpoint()
        self.kept = None

    @property
    def orders(self) -> list[str]:
        """The URLs of all orders there were."""
        return [record.order_url for record in self.history]


@attrs.define
class Port80:
    """Answers challenges as trioproxy's port 80 does.

    Attributes:
        port: Where it really listens.
        asked: The names and paths it was asked for.
        deaf: Whether it answers 404 to everything.
    """

    board: ChallengeBoard
    port: int = 0
    asked: list[tuple[str, str]] = attrs.Factory(list)
    deaf: bool = False

    async def handle(self, stream: trio.SocketStream) -> None:
        async with stream:
            request = b""
            while b"\r\n\r\n" not in request:
                data = await stream.receive_some()
                if not data:
                    return
                request += data
            path = request.split(b" ", 2)[1].decode()
            found = re.search(rb"\r\nhost: *([^:\r]+)", request, re.IGNORECASE)
            name = found[1].decode() if found else ""
            self.asked.append((name, path))
            answer = None if self.deaf else self.board.answer(name, path)
            status = b"404 Not Found" if answer is None else b"200 OK"
            body = (answer or "").encode()
            await stream.send_all(
                b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
            )


@asynccontextmanager
async def port80() -> AsyncIterator[Port80]:
    """A port 80 with a board of its own, on a free port of 127.0.0.1, as long as the block."""
    server = Port80(ChallengeBoard())
    async with trio.open_nursery() as nursery:
        listeners: Sequence[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, server.handle, 0, host="127.0.0.1")
        )
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


@attrs.define
class Customer:
    """Somebody who wants certificates: all that `obtain` is given, and what was reported.

    Attributes:
        http: What stands in for the HTTP client, and lives in mock time.
        settings: What else is to be in `[acme]`.
        replaces: What the next certificate is to replace.
        challenges: How to prove the name.
    """

    directory: str
    ca_file: Path | None
    board: ChallengeBoard
    email: str = "me@example.org"
    accounts: MemoryAccounts = attrs.Factory(MemoryAccounts)
    journal: MemoryJournal = attrs.Factory(MemoryJournal)
    said: list[str] = attrs.Factory(list)
    on_report: Callable[[str], None] = lambda _: None
    http: HttpClient | None = None
    settings: Acme = attrs.Factory(Acme)
    replaces: Origin | None = None
    challenges: tuple[ChallengeType, ...] = ("http-01",)

    def client(self) -> AcmeClient:
        """A client as a start of the server makes it: it knows nothing but what is kept."""
        settings = attrs.evolve(self.settings, email=self.email, directory=self.directory, ca_file=self.ca_file)
        return AcmeClient(settings, self.http or HttpClient(self.ca_file, Reaper()), self.accounts)

    def report(self, line: str) -> None:
        self.said.append(line)
        self.on_report(line)

    async def obtain(
        self, name: str = "cloud.test", key_type: KeyType = "ecdsa-p256", client: AcmeClient | None = None
    ) -> Issued:
        """Get a certificate with a client of its own, or the given one."""
        with trio.fail_after(PATIENCE if self.http is None else math.inf):
            wanted = Wanted(name, key_type, self.challenges, self.replaces)
            return await obtain(client or self.client(), wanted, self.board, self.journal, self.report)


async def failure(customer: Customer, name: str = "cloud.test") -> OrderFailed:
    """The error of an issuance that must fail."""
    with pytest.raises(OrderFailed, match=rf"^no certificate for {name}: ") as caught:
        await customer.obtain(name)
    assert not customer.board._answers
    assert not customer.board._in_tls
    return caught.value
