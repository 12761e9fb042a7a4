"""A listener that remembers."""

from __future__ import annotations

import trio

from tests.net.sockets import until
from trioproxy.wire.client_hello import ClientHello
from trioproxy.witness.records import Exchange, Passage
from trioproxy.witness.witness import Listener


class Ear(Listener):
    """Keeps what it was told: the records, and of all else the words."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.passages: list[Passage] = []
        self.heard: list[tuple[object, ...]] = []

    def opened(self, connection: int, client: str, scheme: str) -> None:
        self.heard.append(("opened", connection, client, scheme))

    def named(self, connection: int, client: str, hello: ClientHello, name: str) -> None:
        self.heard.append(("named", connection, client, hello.server_name, name))

    def refused(self, connection: int, client: str, name: str, reason: str) -> None:
        self.heard.append(("refused", connection, client, name, reason))

    def handshake(self, connection: int, client: str, name: str, protocol: str, seconds: float, outcome: str) -> None:
        assert seconds >= 0
        self.heard.append(("handshake", connection, client, name, protocol, outcome))

    def exchange(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)

    def passing(self, connection: int, client: str, name: str, backend: object) -> None:
        self.heard.append(("passing", connection, client, name, str(backend)))

    def passage(self, passage: Passage) -> None:
        self.passages.append(passage)

    def closed(self, connection: int) -> None:
        self.heard.append(("closed", connection))

    async def next_exchange(self) -> Exchange:
        """The only one that was not asked for yet."""
        with trio.fail_after(5):
            await until(lambda: self.exchanges)
        [exchange] = self.exchanges
        self.exchanges.clear()
        return exchange

    async def next_passage(self) -> Passage:
        """Likewise."""
        with trio.fail_after(5):
            await until(lambda: self.passages)
        [passage] = self.passages
        self.passages.clear()
        return passage
