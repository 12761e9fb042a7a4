"""Backends of every temper, and what trying them tells. They are real servers; two of them take PROXY headers."""

from __future__ import annotations

import functools
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
import trustme

from tests.net.sockets import open_descriptors
from trioproxy.config.model import HostPort
from trioproxy.net import probe as probe_module
from trioproxy.net.probe import Form, Trial, judged, probe
from trioproxy.wire.alerts import fatal_alert

NAME = "pbx.myname.com"

Server = Callable[[trio.SocketStream], Awaitable[None]]


@functools.cache
def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert(NAME).configure_cert(made)
    return made


async def tls(stream: trio.SocketStream) -> None:
    """Speaks TLS, and so complains of everything else."""
    try:
        await trio.SSLStream(stream, context(), server_side=True).do_handshake()
    except trio.BrokenResourceError:
        return


async def take_v1(stream: trio.SocketStream) -> bool:
    line = b""
    while not line.endswith(b"\r\n") and len(line) < 107:
        line += bytes(await stream.receive_some(1)) or b"\r\n"
    return line.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")


async def take_v2(stream: trio.SocketStream) -> bool:
    head = b""
    while len(head) < 16 and (more := await stream.receive_some(16 - len(head))):
        head += more
    if not head.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11"):
        return False
    (length,) = struct.unpack(">H", head[14:])
    body = b""
    while len(body) < length:
        body += await stream.receive_some(length - len(body))
    return NAME.encode() in body


async def only_v1(stream: trio.SocketStream) -> None:
    if await take_v1(stream):
        await tls(stream)


async def only_v2(stream: trio.SocketStream) -> None:
    if await take_v2(stream):
        await tls(stream)


async def alert(stream: trio.SocketStream, number: int) -> None:
    await stream.receive_some()
    await stream.send_all(fatal_alert(number))


async def plain(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad\x1b[2J Request\r\nServer: x\r\n\r\n")


async def closing(stream: trio.SocketStream) -> None:
    await stream.receive_some()


async def resetting(stream: trio.SocketStream) -> None:
    await stream.receive_some(1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def silent(stream: trio.SocketStream) -> None:
    while await stream.receive_some():
        pass


async def tried(server: Server, name: str = NAME) -> list[Trial]:
    """What trying a server tells."""
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, server, 0, host="127.0.0.1"))
        address = HostPort(*listeners[0].socket.getsockname())
        before = open_descriptors()
        with trio.fail_after(20):
            trials = await probe(address, name, 5)
        while open_descriptors() > before:  # the server's own ends  # noqa: ASYNC110 - nothing tells
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert [trial.form for trial in trials] == ["none", "proxy-v1", "proxy-v2"]
    return trials


@pytest.mark.parametrize(("server", "form"), [(tls, "none"), (only_v1, "proxy-v1"), (only_v2, "proxy-v2")])
async def test_each_backend_accepts_its_own_form_and_no_other(server: Server, form: Form) -> None:
    trials = await tried(server)
    assert [trial.form for trial in trials if trial.accepted] == [form]
    (accepted,) = [trial for trial in trials if trial.accepted]
    assert (accepted.answer, accepted.hello) == ("begins a TLS handshake", True)


async def test_the_name_is_asked_for() -> None:
    asked: list[str | None] = []
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.sni_callback = lambda _sock, name, _context: asked.append(name)

    async def server(stream: trio.SocketStream) -> None:
        with pytest.raises(trio.BrokenResourceError):
            await trio.SSLStream(stream, own, server_side=True).do_handshake()

    await tried(server)
    assert asked == [NAME]
    await tried(server, "")
    assert asked == [NAME, None]


@pytest.mark.parametrize(
    ("server", "answer"),
    [
        (plain, r"says something that is no TLS: 'HTTP/1.1 400 Bad\x1b[2J Request'"),
        (closing, "closes the connection"),
        (resetting, "resets the connection"),
        (functools.partial(alert, number=50), "answers with the TLS alert decode_error"),
        (functools.partial(alert, number=22), "answers with the TLS alert record_overflow"),
    ],
)
async def test_what_is_no_handshake_is_refused_in_words(server: Server, answer: str) -> None:
    trials = await tried(server)
    assert {(trial.accepted, trial.answer) for trial in trials} == {(False, answer)}


async def test_a_backend_that_says_nothing_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "PATIENCE", 0.05)
    trials = await tried(silent)
    assert {(trial.accepted, trial.answer) for trial in trials} == {(False, "says nothing within 0.05 s")}


@pytest.mark.parametrize(("number", "name"), [(112, "unrecognized_name"), (80, "internal_error"), (239, "239")])
async def test_an_alert_about_what_was_asked_for_is_acceptance(number: int, name: str) -> None:
    trials = await tried(functools.partial(alert, number=number))
    assert {(t.accepted, t.hello, t.answer) for t in trials} == {(True, False, f"answers with the TLS alert {name}")}


async def test_one_that_cannot_be_reached_is_said_to_be() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = HostPort(*listener.getsockname())
    trials = await probe(address, NAME, 5)
    assert {(t.accepted, t.reached, t.answer) for t in trials} == {
        (False, False, f"cannot be reached: {address}: Connection refused")
    }


async def test_a_connection_that_does_not_come_about_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        trials = await probe(HostPort(*listener.getsockname()), NAME, 0.05)
        for sock in waiting:
            sock.close()
    assert {(t.reached, t.answer) for t in trials} == {(False, "cannot be reached within 0.05 s")}


def test_an_alert_where_there_is_a_hello_without_a_header_is_about_the_header() -> None:
    hello = Trial("none", accepted=True, answer="hello", hello=True)
    alerted = Trial("proxy-v1", accepted=True, answer="alert")
    both = Trial("proxy-v2", accepted=True, answer="hello", hello=True)
    assert [t.accepted for t in judged([hello, alerted, both])] == [True, False, True]
    assert [t.accepted for t in judged([Trial("none", accepted=True, answer="alert"), alerted])] == [True, True]
    assert [t.accepted for t in judged([Trial("none", accepted=False, answer="closes"), alerted])] == [False, True]
