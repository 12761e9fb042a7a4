"""Looking at ClientHellos on real sockets: nothing is taken, nothing is missed, and waiting is quiet."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
import trustme
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import receive_exactly, reset, running, tcp_pair, trio_stream
from tests.wire import hellos
from tests.wire.hellos import record, records
from trioproxy.errors import (
    BadServerName,
    ConnectionLost,
    HelloTimeout,
    MalformedHello,
    NotTLS,
    SilentPeer,
    StreamInterrupted,
    StreamTimeout,
    TrioproxyError,
    TruncatedHello,
    UnknownServerName,
)
from trioproxy.net.peek import peek_client_hello, refuse
from trioproxy.net.sock import Reaper, Stream
from trioproxy.wire.alerts import Alert, fatal_alert
from trioproxy.wire.client_hello import ClientHello, ClientHelloReader

HELLO = hellos.message(hellos.server_name(b"cloud.example.com"), (21, bytes(100)))
WIRE = record(HELLO)
BROWSER = record(hellos.as_a_browser())
DRIBBLE = records(HELLO, *[1] * len(HELLO))


class Watched(Stream):
    """A stream that counts how often it was woken."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, Reaper())
        self.waits = 0

    async def wait_readable(self) -> None:
        self.waits += 1
        await super().wait_readable()

    def low_water(self) -> int:
        return self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT)


class Quick(Reaper):
    PERIOD = 0.01


@asynccontextmanager
async def connection(receive_buffer: int = 0) -> AsyncIterator[tuple[Watched, trio.SocketStream]]:
    """Our stream and the client's."""
    near, far = tcp_pair()
    if receive_buffer:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    stream = Watched(near)
    client = trio_stream(far)
    try:
        async with client:
            yield stream, client
    finally:
        stream.close()


@attrs.define
class Peeking:
    """A look that goes on in a task of its own, and what came of it."""

    hello: ClientHello | None = None
    error: Exception | None = None
    done: trio.Event = attrs.Factory(trio.Event)


@asynccontextmanager
async def peeking(stream: Stream) -> AsyncIterator[Peeking]:
    """Begins to look before anything came, and waits for the result at the end of the block."""
    result = Peeking()

    async def look() -> None:
        try:
            result.hello = await peek_client_hello(stream)
        except TrioproxyError as exc:
            result.error = exc
        result.done.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await wait_all_tasks_blocked()
            yield result
            await result.done.wait()


async def everything_queued(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.receive_some()
    return data


# ---- what it finds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", [WIRE, BROWSER, records(HELLO, 1, 2, 3), WIRE + record(b"early data", 23)])
async def test_nothing_is_taken(wire: bytes) -> None:
    async with connection() as (stream, client):
        await client.send_all(wire)
        hello = await peek_client_hello(stream)
        assert hello.server_name == "cloud.example.com"
        assert await everything_queued(stream, len(wire)) == wire


async def test_what_is_there_is_found_without_waiting() -> None:
    async with connection() as (stream, client):
        await client.send_all(WIRE)
        await trio.lowlevel.wait_readable(stream.sock)
        with trio.testing.assert_no_checkpoints():
            await peek_client_hello(stream)
        assert stream.waits == 0


async def test_the_same_socket_goes_on_to_tls() -> None:
    ca = trustme.CA()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("cloud.example.com").configure_cert(server_context)
    client_context = ssl.create_default_context()
    ca.configure_trust(client_context)
    async with connection() as (stream, client):

        async def serve() -> None:
            assert (await peek_client_hello(stream)).server_name == "cloud.example.com"
            await stream.start_tls_server(server_context)
            await stream.send_all(b"through")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            tls = trio.SSLStream(client, client_context, server_hostname="cloud.example.com")
            assert await tls.receive_some() == b"through"


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        (b"G", NotTLS),
        (b"\x80", NotTLS),
        (record(HELLO + b"\0"), MalformedHello),
        (record(hellos.message(hellos.server_name(b"192.0.2.1"))), BadServerName),
        (record(HELLO[:50]) + record(b"\1\0", 21), MalformedHello),
    ],
)
async def test_what_is_wrong_is_said_at_once(wire: bytes, error: type[Exception]) -> None:
    async with connection() as (stream, client):
        await client.send_all(wire)
        with trio.fail_after(5), pytest.raises(error):
            await peek_client_hello(stream)
        assert stream.low_water() == 1


# ---- how it waits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wire", [WIRE, BROWSER, DRIBBLE], ids=["small", "browser", "dribble"])
async def test_one_byte_at_a_time_wakes_it_rarely_and_leaves_all(wire: bytes) -> None:
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            for at in range(len(wire)):
                assert not result.done.is_set()
                await client.send_all(wire[at : at + 1])
                await wait_all_tasks_blocked()
        assert result.hello is not None
        assert result.hello.size == len(wire)
        assert stream.waits < 40  # of hundreds of bytes
        assert stream.low_water() == 1
        assert await everything_queued(stream, len(wire)) == wire


async def test_what_may_complete_it_is_looked_at_without_a_pause() -> None:
    reader = ClientHelloReader()
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            at = 0
            while not result.done.is_set():
                piece = DRIBBLE[at : at + (reader.missing if at else 1)]
                await client.send_all(piece)
                await wait_all_tasks_blocked()
                at += len(piece)
                assert stream.low_water() == (1 if reader.feed(piece) else at + reader.missing)
        assert at == len(DRIBBLE)


async def test_a_large_hello_that_comes_in_pieces() -> None:
    wire = records(hellos.message(hellos.server_name(b"a.example"), (99, bytes(60_000))))
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            for at in range(0, len(wire), 5000):
                await client.send_all(wire[at : at + 5000])
                await wait_all_tasks_blocked()
        assert result.hello is not None
        assert result.hello.size == len(wire)
        assert await everything_queued(stream, len(wire)) == wire


async def test_a_hello_that_the_receive_buffer_cannot_hold_is_no_busy_loop() -> None:
    wire = records(hellos.message(hellos.server_name(b"a.example"), (99, bytes(60_000))))
    async with connection(receive_buffer=4096) as (stream, client), trio.open_nursery() as nursery:
        async with peeking(stream) as result:
            nursery.start_soon(client.send_all, wire)
            await trio.sleep(0.2)
            stream.interrupt(StreamTimeout("no progress in time"))
        assert isinstance(result.error, HelloTimeout)
        assert stream.waits < 60  # a busy loop makes thousands
        nursery.cancel_scope.cancel()


# ---- when nothing more comes --------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [WIRE[:1], WIRE[:5], WIRE[:50], WIRE[:-1]])
@pytest.mark.parametrize("at_once", [True, False])
async def test_an_end_within_the_hello_is_noticed_at_once(sent: bytes, at_once: bool) -> None:
    async with connection() as (stream, client):
        if at_once:
            await client.send_all(sent)
            await client.send_eof()
        async with peeking(stream) as result:
            if not at_once:
                await client.send_all(sent)
                await wait_all_tasks_blocked()
                assert not result.done.is_set()
                await client.send_eof()
        assert isinstance(result.error, TruncatedHello)
        assert stream.waits < 5
        assert stream.low_water() == 1


@pytest.mark.parametrize("at_once", [True, False])
async def test_an_end_behind_the_hello_is_none(at_once: bool) -> None:
    async with connection() as (stream, client):
        if at_once:
            await client.send_all(WIRE)
            await client.send_eof()
        async with peeking(stream) as result:
            if not at_once:
                await client.send_all(WIRE[:50])
                await wait_all_tasks_blocked()
                await client.send_all(WIRE[50:])
                await client.send_eof()
        assert result.hello is not None
        assert await everything_queued(stream, len(WIRE)) == WIRE
        assert await stream.receive_some() == b""


async def test_an_end_without_a_byte() -> None:
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            await client.send_eof()
        assert isinstance(result.error, SilentPeer)


@pytest.mark.parametrize(("sent", "error"), [(b"", ConnectionLost), (WIRE[:50], TruncatedHello)])
async def test_a_reset(sent: bytes, error: type[Exception]) -> None:
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            if sent:
                await client.send_all(sent)
                await wait_all_tasks_blocked()
            await reset(client)
        assert isinstance(result.error, error)


@pytest.mark.parametrize(("sent", "error"), [(b"", SilentPeer), (WIRE[:1], HelloTimeout), (WIRE[:-1], HelloTimeout)])
async def test_the_streams_own_deadline(sent: bytes, error: type[Exception]) -> None:
    near, far = tcp_pair()
    reaper = Quick()
    stream = Stream(near, reaper)
    async with trio_stream(far) as client, running(reaper):
        await client.send_all(sent)
        stream.deadline = trio.current_time() + 0.02
        with trio.fail_after(5), pytest.raises(error) as caught:
            await peek_client_hello(stream)
        assert isinstance(caught.value.__cause__, StreamTimeout)
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1
        stream.close()


async def test_an_interruption_is_passed_on() -> None:
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            await client.send_all(WIRE[:50])
            await wait_all_tasks_blocked()
            stream.interrupt()
        assert isinstance(result.error, StreamInterrupted)


async def test_cancelled_it_leaves_the_socket_as_it_was() -> None:
    async with connection() as (stream, client):
        await client.send_all(WIRE[:50])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peek_client_hello, stream)
            await wait_all_tasks_blocked()
            assert stream.low_water() > 50
            nursery.cancel_scope.cancel()
        assert stream.low_water() == 1
        assert await stream.receive_some() == WIRE[:50]


# ---- refusing -----------------------------------------------------------------------------------------


async def test_the_alert_arrives_though_the_client_sends_one_more_record() -> None:
    async with connection() as (stream, client):
        await client.send_all(WIRE)
        await peek_client_hello(stream)
        closed = trio.Event()

        async def turn_away() -> None:
            await refuse(stream, UnknownServerName.alert)
            stream.close()
            closed.set()

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(turn_away)
                await wait_all_tasks_blocked()
                await client.send_all(record(b"\1", 20))
                await wait_all_tasks_blocked()
                assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                assert await receive_exactly(client, 100) == fatal_alert(Alert.UNRECOGNIZED_NAME)
                assert not closed.is_set()  # closing before the client does means RST for what it still sends
                await client.aclose()


async def test_the_alert_arrives_though_much_was_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioproxy.net.sock.LINGER", 0.05)
    async with connection() as (stream, client):
        await client.send_all(WIRE + record(bytes(16_000), 23) * 6)
        await peek_client_hello(stream)
        await refuse(stream, Alert.UNRECOGNIZED_NAME)
        stream.close()
        assert await receive_exactly(client, 100) == fatal_alert(Alert.UNRECOGNIZED_NAME)


async def test_a_tls_client_understands_it() -> None:
    context = ssl.create_default_context()
    async with connection() as (stream, client), trio.open_nursery() as nursery:

        async def turn_away() -> None:
            await peek_client_hello(stream)
            await refuse(stream, Alert.UNRECOGNIZED_NAME)
            stream.close()

        nursery.start_soon(turn_away)
        with pytest.raises(trio.BrokenResourceError) as caught:
            await trio.SSLStream(client, context, server_hostname="cloud.example.com").do_handshake()
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        assert caught.value.__cause__.reason == "TLSV1_UNRECOGNIZED_NAME"
        await client.aclose()


async def test_a_peer_that_does_not_speak_tls_gets_an_end_and_nothing_else() -> None:
    async with connection() as (stream, client):
        await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(NotTLS) as caught:
            await peek_client_hello(stream)
        await refuse(stream, caught.value.alert)
        stream.close()
        assert await client.receive_some() == b""


async def test_after_a_timeout_the_alert_is_still_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trioproxy.net.sock.LINGER", 0.05)
    async with connection() as (stream, client):
        async with peeking(stream) as result:
            await client.send_all(WIRE[:50])
            await wait_all_tasks_blocked()
            stream.interrupt(StreamTimeout("no progress in time"))
        assert isinstance(result.error, HelloTimeout)
        await refuse(stream, result.error.alert)
        stream.close()
        assert await receive_exactly(client, 100) == fatal_alert(Alert.DECODE_ERROR)


async def test_refusing_a_client_that_is_gone_is_no_error() -> None:
    async with connection() as (stream, client):
        await client.send_all(WIRE)
        await peek_client_hello(stream)
        await reset(client)
        await refuse(stream, Alert.UNRECOGNIZED_NAME)
