"""WebSocket through a site: handshakes, byte identity, and the verdicts of a server that knows nothing of a proxy.

Frames are not looked at here, so what a server says to good and to broken ones must be the same, byte for byte, whether
it is called directly or through us. The server is wsproto; `make autobahn` does the same with Autobahn's cases.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, Request
from wsproto.extensions import PerMessageDeflate
from wsproto.utilities import RemoteProtocolError

from tests.net.sockets import receive_exactly
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Recording,
    Stage,
    answering,
    backend,
    make_config,
    read_until,
    site,
    stage,
)

NAME = "cloud.test"
MASK = b"\x01\x02\x03\x04"
HANDSHAKE = (
    b"GET /live HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """A frame as a client sends it (RFC 6455 section 5.2)."""
    first = (fin << 7) | (rsv << 4) | opcode
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", first, masked << 7 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, masked << 7 | 126, size)
    else:
        head = struct.pack("!BBQ", first, masked << 7 | 127, size)
    if not masked:
        return head + payload
    pad = MASK * (size // 4 + 1)
    mixed = (int.from_bytes(payload, "big") ^ int.from_bytes(pad[:size], "big")).to_bytes(size, "big")
    return head + MASK + mixed


MORE, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
BYE = frame(CLOSE, struct.pack("!H", 1000))


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


def deflated(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH)).removesuffix(b"\0\0\xff\xff")


EURO = "€".encode()
CASES = {
    "text": frame(TEXT, b"hello") + BYE,
    "empty messages": frame(TEXT) + frame(BINARY) + BYE,
    "lengths of 16 and 64 bits": frame(BINARY, b"x" * 126) + frame(BINARY, b"y" * 65_536) + BYE,
    "fragments": frame(TEXT, b"a", fin=False) + frame(MORE, b"b", fin=False) + frame(MORE, b"c") + BYE,
    "control frames between fragments": frame(TEXT, b"a", fin=False) + frame(PING, b"1") + frame(MORE, b"b") + BYE,
    "pings and an unasked pong": frame(PING) + frame(PONG, b"?") + frame(PING, b"x" * 125) + BYE,
    "a ping that is too long": frame(PING, b"x" * 126),
    "a fragmented ping": frame(PING, b"1", fin=False) + frame(MORE, b"2"),
    "a continuation of nothing": frame(MORE, b"a"),
    "a message inside another": frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"),
    "UTF-8 cut between fragments": frame(TEXT, EURO[:1], fin=False) + frame(MORE, EURO[1:]) + BYE,
    "invalid UTF-8": frame(TEXT, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80"),
    "UTF-8 that ends in the middle": frame(TEXT, EURO[:2]),
    **{f"reserved bits {rsv}": frame(TEXT, b"a", rsv=rsv) for rsv in range(1, 8)},
    **{f"reserved opcode {opcode}": frame(opcode, b"a") for opcode in (3, 7, 11, 15)},
    "an unmasked frame": frame(TEXT, b"a", masked=False),
    "close without a code": frame(CLOSE),
    "close with half a code": frame(CLOSE, b"\x03"),
    "close with an invalid reason": close(1000, b"\xff"),
    "data behind close": BYE + frame(TEXT, b"a"),
    **{
        f"close {code}": close(code, b"why")
        for code in (0, 999, 1000, 1003, 1004, 1005, 1006, 1011, 1015, 2999, 3000, 4999, 5000)
    },
}
COMPRESSED = {
    "a compressed message": frame(TEXT, deflated(b"hello " * 1000), rsv=4) + BYE,
    "compressed and plain": frame(TEXT, b"plain") + frame(TEXT, deflated(b"packed"), rsv=4) + BYE,
    "a compressed message in fragments": (
        frame(TEXT, deflated(b"hello")[:3], fin=False, rsv=4) + frame(MORE, deflated(b"hello")[3:]) + BYE
    ),
    "compressed invalid UTF-8": frame(TEXT, deflated(b"\xff\xff"), rsv=4),
    "what is no deflate": frame(TEXT, b"\xff" * 8, rsv=4),
    "a compressed continuation": frame(TEXT, b"a", fin=False) + frame(MORE, b"b", rsv=4),
}


async def serve(stream: trio.SocketStream, recording: Recording) -> None:
    """Echo messages as wsproto reads them, until it says that the connection is over."""
    server = WSConnection(ConnectionType.SERVER)
    while data := await stream.receive_some():
        try:
            server.receive_data(bytes(data))
            for event in server.events():
                if isinstance(event, Request):
                    answer = AcceptConnection(extensions=[PerMessageDeflate()])
                    await stream.send_all(server.send(answer))
                elif isinstance(event, Message):
                    echo = Message(data=event.data, message_finished=event.message_finished)
                    await stream.send_all(server.send(echo))
                elif isinstance(event, Ping | CloseConnection):
                    await stream.send_all(server.send(event.response()))
                    if isinstance(event, CloseConnection):
                        return
        except RemoteProtocolError as exc:
            if exc.event_hint is not None:
                await stream.send_all(server.send(exc.event_hint))
            return


async def verdict(stream: trio.abc.Stream, fields: bytes, frames: bytes) -> bytes:
    """Everything that the server says to `frames`, until it ends the connection."""
    await stream.send_all(HANDSHAKE + fields + b"\r\n")
    answer = await read_until(stream, Recording(), b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101 ")
    await stream.send_all(frames)
    try:
        said = await read_until(stream, Recording(), b"never")
    finally:
        await stream.aclose()
    return answer.partition(b"\r\n\r\n")[2] + said


@asynccontextmanager
async def scene() -> AsyncIterator[tuple[Stage, int]]:
    async with backend(serve) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        yield proxy, port


@pytest.mark.parametrize("case", [*CASES, *COMPRESSED])
async def test_a_servers_verdicts_are_those_without_a_proxy(case: str) -> None:
    fields, frames = (b"", CASES[case]) if case in CASES else (DEFLATE, COMPRESSED[case])
    async with scene() as (proxy, port):
        with trio.fail_after(5):
            direct = await verdict(await trio.open_tcp_stream(LOOPBACK, port), fields, frames)
            assert await verdict(await proxy.tls(NAME), fields, frames) == direct
            await proxy.until_idle()


# ---- bytes --------------------------------------------------------------------------------------------


async def _mirror(stream: trio.SocketStream, recording: Recording) -> None:
    """Switch, then send back every byte."""
    await read_until(stream, recording, b"\r\n\r\n")
    await stream.send_all(SWITCHED)
    async for data in stream:
        await stream.send_all(data)


async def _switched(stream: trio.abc.Stream) -> None:
    await stream.send_all(HANDSHAKE + b"\r\n")
    assert (await read_until(stream, Recording(), b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")


async def test_frames_of_one_byte_come_back_as_they_are() -> None:
    frames = b"".join(frame(BINARY, bytes([number])) for number in range(256))
    async with backend(_mirror) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await _switched(stream)
        for position in range(len(frames)):
            await stream.send_all(frames[position : position + 1])
        assert await receive_exactly(stream, len(frames)) == frames


async def test_a_frame_of_16_mib_comes_back_as_it_is() -> None:
    whole = frame(BINARY, bytes(range(251)) * (16 * 1024 * 1024 // 251))
    async with backend(_mirror) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await _switched(stream)
        back = bytearray()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, whole)
            while len(back) < len(whole):
                back += await stream.receive_some(1 << 20)
        assert back == whole


# ---- the end ------------------------------------------------------------------------------------------


async def test_a_close_of_the_client_is_answered_before_the_connection_ends() -> None:
    async with scene() as (proxy, _):
        stream = await proxy.tls(NAME)
        assert await verdict(stream, b"", close(1001, b"bye")) == frame(CLOSE, b"\x03\xe9bye", masked=False)
        await proxy.until_idle()


async def test_a_close_of_the_server_is_answered_before_the_connection_ends() -> None:
    first = frame(CLOSE, b"\x03\xe9bye", masked=False)

    async def closing(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(SWITCHED + first)
        await read_until(stream, recording, close(1001))

    async with backend(closing) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(HANDSHAKE + b"\r\n")
        assert (await read_until(stream, Recording(), first)).endswith(b"\r\n\r\n" + first)
        await stream.send_all(close(1001))
        assert await read_until(stream, Recording(), b"never") == b""
        await stream.transport_stream.aclose()
        assert seen.received.endswith(close(1001))
        await proxy.until_idle()


# ---- handshakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
        b"connection: UPGRADE\r\nupgrade: WebSocket\r\n",
        b"Connection: keep-alive\r\nConnection: upgrade\r\nUpgrade: websocket\r\n",
        b"Upgrade: websocket\r\nConnection: ,upgrade,\r\n",
        b"Connection: Upgrade\r\nUpgrade: h2c, websocket\r\n",
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
    ],
)
async def test_spellings_of_the_handshake(fields: bytes) -> None:
    named = (
        b"Sec-WebSocket-Protocol: chat, superchat\r\nSec-WebSocket-Extensions: x; y=z\r\nOrigin: https://cloud.test\r\n"
    )
    async with backend(_mirror) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(b"GET /live HTTP/1.1\r\nHost: cloud.test\r\n" + fields + named + b"\r\nearly")
        answer = await read_until(stream, Recording(), b"early")
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert answer.endswith(b"\r\n\r\nearly")
        asked = bytes(seen.received).lower()
        assert asked.count(b"\r\nconnection: upgrade\r\n") == asked.count(b"\r\nconnection:") == 1
        assert b"\r\nupgrade: websocket\r\n" in asked
        assert all(line in asked for line in named.lower().splitlines())


@pytest.mark.parametrize(
    "request_",
    [
        b"POST / HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: cloud.test\r\nConnection: Upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cloud.test\r\nUpgrade: websocket\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\n\r\n",
        b"PUT / HTTP/1.1\r\nHost: cloud.test\r\nConnection: Upgrade\r\nUpgrade: chat\r\nContent-Length: 4\r\n\r\nbody",
    ],
    ids=["POST", "HTTP/1.0", "not in Connection", "no Upgrade", "with a body"],
)
async def test_what_is_no_handshake_is_an_ordinary_request(request_: bytes) -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(request_)
        assert (await read_until(stream, Recording(), b"hello")).startswith(b"HTTP/1.1 200 ")
        assert b"upgrade" not in bytes(seen.received).lower()


async def test_a_refusal_of_the_backend_is_passed_on_with_its_body() -> None:
    refusal = b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 13\r\nContent-Length: 5\r\n\r\nhello"
    async with backend(answering(refusal)) as (port, _), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        for _ in range(2):
            await stream.send_all(HANDSHAKE + b"\r\n")
            answer = await read_until(stream, Recording(), b"hello")
            assert answer.startswith(b"HTTP/1.1 426 ")
            assert b"\r\nsec-websocket-version: 13\r\n" in answer.lower()


async def test_tailscales_control_protocol_upgrades_a_post() -> None:
    """A Headscale behind us: POST without a body, a token of its own, and bytes that do not wait for the 101."""

    async def control(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
            b"Upgrade: tailscale-control-protocol\r\n\r\n\x02"
        )
        async for data in stream:
            await stream.send_all(data)

    async with backend(control) as (port, seen), stage(make_config(site(NAME, port))) as proxy:
        stream = await proxy.tls(NAME)
        await stream.send_all(
            b"POST /ts2021 HTTP/1.1\r\nHost: cloud.test\r\nConnection: upgrade\r\n"
            b"Upgrade: tailscale-control-protocol\r\nX-Tailscale-Handshake: AAEC\r\nContent-Length: 0\r\n\r\n\x00\x01"
        )
        answer = await read_until(stream, Recording(), b"\x02\x00\x01")
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nupgrade: tailscale-control-protocol\r\n" in bytes(seen.received).lower()
        assert b"\r\nx-tailscale-handshake: aaec\r\n" in bytes(seen.received).lower()
