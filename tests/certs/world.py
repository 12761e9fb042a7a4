"""A manager in a world of its own: a fake authority, a wall clock that follows Trio's, a store in a folder."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import trio
from cryptography import x509

from tests.certs.making import NOW, bundle, config
from trioproxy.acme.ari import Advice
from trioproxy.acme.client import AcmeClient
from trioproxy.acme.order import Issued, Journal, Origin, Report, Wanted
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.manager import Manager
from trioproxy.certs.store import Store
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Config, Passthrough, Site
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper
from trioproxy.routing import RouteTable
from trioproxy.snapshot import Cell, Contexts, Snapshot


class WallClock:
    """Follows Trio's clock, unless somebody sets it."""

    def __init__(self) -> None:
        self._offset = NOW - timedelta(seconds=trio.current_time())

    def __call__(self) -> datetime:
        return self._offset + timedelta(seconds=trio.current_time())

    def jump(self, by: timedelta) -> None:
        self._offset += by


class SameDice(random.Random):
    """Always the middle: neither a tenth less nor a tenth more."""

    def random(self) -> float:
        return 0.5


class Authority:
    """Stands in for `acme.order.obtain` and the CA behind it.

    Attributes:
        orders: Name and moment of each order.
        directories: Where each was ordered.
        replaced: What each was said to replace.
        seconds: How long an order takes, by name; two seconds unless told otherwise.
        errors: What comes of the next orders of a name, one after the other; after them they work.
        issue: Makes the certificate for a name.
        broken: What comes of every order at a directory, as long as it is there.
        suggest: What is said about the renewal of a certificate.
        asked: When that was asked for.
        terms: Where its terms of service are.
        most: The most orders that were under way at one time.
    """

    def __init__(self, clock: WallClock) -> None:
        self.clock = clock
        self.orders: list[tuple[str, datetime]] = []
        self.directories: list[str] = []
        self.replaced: list[Origin | None] = []
        self.broken: dict[str, Callable[[], Exception]] = {}
        self.suggest: Callable[[x509.Certificate], Advice | None] = lambda _: None
        self.asked: list[datetime] = []
        self.terms = ""
        self.seconds: dict[str, float] = {}
        self.errors: dict[str, list[Exception]] = {}
        self.issue: Callable[[str], Bundle] = self.issue_for_90_days
        self.issued: dict[str, list[Bundle]] = {}
        self.most = 0
        self._now = 0

    def issue_for_90_days(self, name: str) -> Bundle:
        return bundle(name, not_before=self.clock(), not_after=self.clock() + timedelta(days=90))

    def times(self, name: str) -> list[float]:
        """Minutes from the beginning to each order of `name`."""
        return [round((when - NOW) / timedelta(minutes=1), 1) for ordered, when in self.orders if ordered == name]

    async def obtain(
        self,
        client: AcmeClient,
        wanted: Wanted,
        board: ChallengeBoard,
        journal: Journal,
        report: Report,
    ) -> Issued:
        name = wanted.name
        self.orders.append((name, self.clock()))
        self.directories.append(client.directory_url)
        self.replaced.append(wanted.replaces)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            report("ordering a certificate")
            await trio.sleep(self.seconds.get(name, 2.0))
            if errors := self.errors.get(name):
                raise errors.pop(0)
            if client.directory_url in self.broken:
                raise self.broken[client.directory_url]()
            made = self.issue(name)
            await journal.intend(client.directory_url, made.key_pem)
            await journal.place("https://ca/order/1")
            self.issued.setdefault(name, []).append(made)
            origin = Origin(client.settings.account, "https://ca/account/1", f"id-{made.leaf.serial:x}")
            return Issued(made.key_pem, made.chain_pem, origin, wanted.challenges[0])
        finally:
            self._now -= 1


class FakeClient(AcmeClient):
    """Asks the authority about renewals, and nobody anything else."""

    def __init__(self, settings: Acme, authority: Authority, store: Store) -> None:
        super().__init__(settings, HttpClient(None, Reaper()), store.accounts)
        self._authority = authority

    async def terms(self) -> str:
        await trio.lowlevel.checkpoint()
        return self._authority.terms

    async def renewal_info(self, chain_pem: bytes) -> Advice | None:
        await trio.lowlevel.checkpoint()
        self._authority.asked.append(self._authority.clock())
        leaf = x509.load_pem_x509_certificate(chain_pem)
        return self._authority.suggest(leaf)


@attrs.frozen
class World:
    store: Store
    clock: WallClock
    authority: Authority
    source: ContextSource
    cell: Cell
    manager: Manager

    @property
    def config(self) -> Config:
        return self.cell.current.config

    def reload(self, new: Config) -> None:
        """As the server does it."""
        self.cell.update(lambda _: snapshot(self.source, new))
        self.manager.wake()

    def restarted(self) -> World:
        """Another process on the same store, with the same authority."""
        sites, acme = self.config.sites.values(), self.config.acme
        return world(self.store.path, *sites, clock=self.clock, authority=self.authority, acme=acme)

    def serial(self, name: str) -> int:
        """Of the certificate that the next handshake gets."""
        from tests.certs.test_contexts import served_by

        return served_by(self.cell.current.contexts.of(self.config.sites[name]), name)

    def newest(self, name: str) -> int:
        """The serial number of what the authority issued last."""
        return self.authority.issued[name][-1].leaf.serial


def snapshot(source: ContextSource, new: Config) -> Snapshot:
    return Snapshot(new, RouteTable.of(new), Contexts(source.context_for), source.awaiting(new))


def world(
    folder: Path,
    *sites: Site,
    passthrough: tuple[Passthrough, ...] = (),
    clock: WallClock | None = None,
    authority: Authority | None = None,
    acme: Acme | None = None,
) -> World:
    clock = clock or WallClock()
    authority = authority or Authority(clock)
    store = Store(folder)
    source = ContextSource(store, InternalCA(store, clock))
    cell = Cell(snapshot(source, config(folder, *sites, passthrough=passthrough, acme=acme)))

    def client(settings: Acme) -> AcmeClient:
        return FakeClient(settings, authority, store)

    manager = Manager(cell, ChallengeBoard(), store, source, client, clock, SameDice(), authority.obtain)
    return World(store, clock, authority, source, cell, manager)


async def run_for(seconds: float, *worlds: World) -> None:
    """Let managers run for so long, all beginning at once."""
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for each in worlds:
                nursery.start_soon(each.manager.run)
