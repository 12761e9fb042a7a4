"""A proxy whose backend says what the test says, for what happens between two of its words."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio
from trio.testing import wait_all_tasks_blocked

from tests.proxy.stage import HELLO, Recording, Stage, backend, make_config, read_until, site, stage
from tests.witness.hearing import Ear
from trioproxy.net.sock import Stream
from trioproxy.proxy.upstream_h1 import H1Upstream
from trioproxy.witness.records import Exchange

NAME = "cloud.test"

ASK = b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n"

Client = trio.SSLStream[trio.SocketStream]


@attrs.frozen
class Desk:
    """What the test has before it.

    Attributes:
        proxy: With one site.
        ear: What its witness was told.
    """

    proxy: Stage
    ear: Ear
    _calls: trio.MemoryReceiveChannel[trio.SocketStream]

    async def called(self) -> trio.SocketStream:
        """The backend's end of the next connection to it, when a request has been read there."""
        there = await self._calls.receive()
        assert await asked(there)
        return there

    async def acquainted(self) -> tuple[Client, trio.SocketStream]:
        """A client that was answered once, so that there is an idle connection to the backend; and the end of that."""
        client = await self.proxy.tls(NAME)
        await client.send_all(ASK)
        there = await self.called()
        await there.send_all(HELLO)
        await hears(client, b"hello")
        await self.ear.next_exchange()
        return client, there

    async def begun(self, request: bytes = ASK) -> tuple[Client, trio.SocketStream]:
        """The same two, when the client has asked again, and waits without its task."""
        client, there = await self.acquainted()
        await client.send_all(request)
        assert await asked(there)
        assert self.at_once
        return client, there

    @property
    def stream(self) -> Stream:
        """The proxy's end of its only client's connection."""
        [stream] = self.proxy.ctx.guests
        return stream

    @property
    def upstream(self) -> H1Upstream:
        """The proxy's only connection to the backend."""
        [upstream] = [one for one in self.proxy.ctx.reaper.watched if isinstance(one, H1Upstream)]
        return upstream

    @property
    def at_once(self) -> bool:
        """Whether the backend is listened to without a task."""
        return self.upstream._heed is not None

    @property
    def watched(self) -> int:
        """How many connections the watch tells of."""
        return len(self.proxy.ctx.watch._heeds)

    async def end(self) -> Exchange:
        """The exchange that ends next. Nobody must hear of it twice."""
        exchange = await self.ear.next_exchange()
        await wait_all_tasks_blocked()
        assert not self.ear.exchanges
        return exchange

    async def over(self) -> None:
        """Wait until no client is left. Nothing of it must be; connections to the backend may."""
        with trio.fail_after(5):
            await self.proxy.until_idle()
        ctx = self.proxy.ctx
        assert not ctx.drain.idle
        upstreams = [one for one in ctx.reaper.watched if isinstance(one, H1Upstream)]
        assert len(ctx.reaper.watched) == 2 * len(upstreams)  # each has a stream
        assert self.watched <= len(upstreams)
        assert all(one._asker is None and one._heed is None for one in upstreams)


async def asked(there: trio.SocketStream) -> bytes:
    """The next head that the backend gets."""
    return await read_until(there, Recording(), b"\r\n\r\n")


async def hears(client: trio.abc.ReceiveStream, last: bytes) -> bytes:
    """What the client gets, which must end in `last`."""
    with trio.fail_after(5):
        data = await read_until(client, Recording(), last)
    assert data.endswith(last), data
    return data


async def ends(there: trio.SocketStream) -> None:
    """Wait until the proxy has ended its connection to the backend, whichever way."""
    try:
        with trio.fail_after(5):
            assert not await there.receive_some()
    except trio.BrokenResourceError:
        pass


@asynccontextmanager
async def desk(*, site_is: dict[str, Any] | None = None, **config: Any) -> AsyncIterator[Desk]:
    """A proxy, and a backend that leaves its connections to the test.

    Args:
        site_is: How the site differs from the usual one.
        config: As for `make_config`.
    """
    send, calls = trio.open_memory_channel[trio.SocketStream](16)

    async def leave(stream: trio.SocketStream, _: Recording) -> None:
        await send.send(stream)
        await trio.sleep_forever()

    with send, calls:
        with trio.fail_after(10):
            async with (
                backend(leave) as (port, _),
                stage(make_config(site(NAME, port, **(site_is or {})), **config)) as proxy,
            ):
                ear = Ear()
                proxy.ctx.witness.add(ear)
                yield Desk(proxy, ear, calls)
