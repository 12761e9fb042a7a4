"""What the watch tells of is level-triggered: what nobody takes would be told for ever, at the price of a processor.

So in each state in which something has come that nobody wants yet, the proxy must come to rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from tests.net.sockets import reset, until
from tests.proxy.h2_caller import H2Caller, calling
from tests.proxy.stage import HELLO, Recording, Stage, backend, make_config, read_until, site, stage
from trioproxy.net.watch import Watch

NAME = "cloud.test"

ASK = b"GET %s HTTP/1.1\r\nHost: cloud.test\r\n\r\n"

BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"

Tell = Callable[[Watch], None]


class Told:
    """Counts how often the watch had something to tell."""

    def __init__(self, tell: Tell) -> None:
        self.times = 0
        self._tell = tell

    def tell(self, watch: Watch) -> None:
        self.times += 1
        self._tell(watch)

    async def comes_to_rest(self) -> None:
        """Fails unless soon nothing runs at all, and hardly anything was told until then."""
        self.times = 0
        with trio.fail_after(5):
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert self.times < 50


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    count = Told(Watch._tell)
    monkeypatch.setattr(Watch, "_tell", lambda watch: count.tell(watch))
    return count


class Backend:
    """Says hello when it is asked for `/`, and then does as the test says.

    Attributes:
        streams: Its connections.
    """

    def __init__(self) -> None:
        self.streams: list[trio.SocketStream] = []

    async def serve(self, stream: trio.SocketStream, recording: Recording) -> None:
        self.streams.append(stream)
        with suppress(trio.ClosedResourceError):  # by the test
            while head := await read_until(stream, recording, b"\r\n\r\n"):
                if head.startswith(b"GET / "):
                    await stream.send_all(HELLO)
            await trio.sleep_forever()  # what is closed is the test's to say


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[Stage, Backend, Recording]]:
    there = Backend()
    async with backend(there.serve) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        yield proxy, there, seen


async def asked(proxy: Stage, there: Recording) -> trio.SSLStream[trio.SocketStream]:
    """A client of HTTP/1.1 that has had an answer, and waits for another."""
    client = await proxy.tls(NAME)
    await client.send_all(ASK % b"/")
    await read_until(client, Recording(), b"hello")
    await client.send_all(ASK % b"/slow")
    await soon(lambda: b"/slow" in there.received)
    return client


async def soon(condition: Callable[[], object]) -> None:
    with trio.fail_after(5):
        await until(condition)


# ---- connections to backends ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["it ends", "it is reset", "it says what nobody has asked"])
async def test_an_idle_connection_to_a_backend(how: str, told: Told) -> None:
    async with serving() as (proxy, there, _), calling(proxy, NAME) as caller:
        for _ in range(2):  # the second is asked at once
            assert (await caller.ask("GET", "/", NAME)).status == 200
        (stream,) = there.streams
        if how == "it ends":
            await stream.send_eof()
        elif how == "it is reset":
            await reset(stream)
        else:
            await stream.send_all(HELLO)
        await told.comes_to_rest()
        assert proxy.ctx.watch._heeds == {}
        assert (await caller.ask("GET", "/", NAME)).status == 200
        assert len(there.streams) == 2


@pytest.mark.parametrize("protocol", ["http/1.1", "h2"])
async def test_a_backend_that_waits_inside_of_its_answer(protocol: str, told: Told) -> None:
    async with serving() as (proxy, there, seen), calling(proxy, NAME) as caller:
        client = await _asked(protocol, proxy, seen, caller)
        await there.streams[0].send_all(BEGUN)
        await client(b"hello")
        await told.comes_to_rest()
        await there.streams[0].send_all(b"there")
        await client(b"there")
        await told.comes_to_rest()


async def _asked(
    protocol: str, proxy: Stage, seen: Recording, caller: H2Caller
) -> Callable[[bytes], Awaitable[object]]:
    """A client of either protocol that has asked; what waits for what it gets."""
    if protocol == "http/1.1":
        plain = await asked(proxy, seen)
        return lambda awaited: read_until(plain, Recording(), awaited)
    await caller.ask("GET", "/", NAME)
    answer = caller.answers[await caller.begin("GET", "/slow", NAME)]
    await soon(lambda: b"/slow" in seen.received)
    return lambda awaited: caller.until(lambda: answer.body.endswith(awaited))


async def test_a_backend_that_says_more_than_the_client_takes(told: Told) -> None:
    """A task hands on the rest, and stops where the client does; what has come then is nobody's for a while."""
    async with serving() as (proxy, there, seen), calling(proxy, NAME) as caller, trio.open_nursery() as nursery:
        caller.reading = False
        await _asked("h2", proxy, seen, caller)
        nursery.start_soon(there.streams[0].send_all, b"HTTP/1.1 200 OK\r\n\r\n" + bytes(30_000_000))
        await caller.until(lambda: any(len(answer.body) == 65_530 for answer in caller.answers.values()))
        await told.comes_to_rest()
        nursery.cancel_scope.cancel()


# ---- clients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["says more", "ends its side", "is gone"])
async def test_a_client_whose_answer_has_not_come(how: str, told: Told) -> None:
    async with serving() as (proxy, there, seen):
        client = await asked(proxy, seen)
        if how == "says more":
            await client.send_all(ASK % b"/")
        elif how == "ends its side":
            await client.transport_stream.send_eof()
        else:
            await reset(client.transport_stream)
        await told.comes_to_rest()
        if how == "says more":
            await there.streams[0].send_all(HELLO)
            await read_until(client, Recording(), b"hello")
            await read_until(client, Recording(), b"hello")
            await told.comes_to_rest()


async def test_a_client_that_ends_its_side_between_two_requests_is_closed(told: Told) -> None:
    async with serving() as (proxy, _, _):
        client = await proxy.tls(NAME)
        await client.send_all(ASK % b"/")
        await read_until(client, Recording(), b"hello")
        await client.transport_stream.send_eof()
        with trio.fail_after(5):
            await proxy.until_idle()
        await told.comes_to_rest()
