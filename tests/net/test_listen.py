"""Binding and accepting."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import no_more_descriptors, open_descriptors, receive_all, until
from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError
from trioproxy.net.limits import Shedder
from trioproxy.net.listen import PATIENCE, Peer, accept_forever, bind, port_holder
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Reaper, Stream


def test_a_port_that_is_taken_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        assert port_holder(port) is not None
        with pytest.raises(ListenError, match=rf"^{port} is held by .+ \(pid {os.getpid()}\): stop it$"):
            bind([HostPort("127.0.0.1", port)], optional=False)


def test_when_one_address_cannot_be_bound_none_is_kept() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder, socket.create_server(("127.0.0.1", 0)) as probe:
        taken, free = holder.getsockname()[1], probe.getsockname()[1]
        probe.close()
        with pytest.raises(ListenError):
            bind([HostPort("127.0.0.1", free), HostPort("127.0.0.1", taken)], optional=False)
        for sock in bind([HostPort("127.0.0.1", free)], optional=False):
            sock.close()


def test_an_address_of_no_interface_is_refused_unless_it_is_a_default(caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = HostPort("192.0.2.1", 0)  # TEST-NET-1, RFC 5737
    with pytest.raises(ListenError, match="no interface of this machine"):
        bind([elsewhere], optional=False)
    with caplog.at_level("INFO"):
        assert bind([elsewhere], optional=True) == []
    assert "192.0.2.1:0" in caplog.text


def test_ipv6_leaves_room_for_ipv4_on_the_same_port() -> None:
    four = bind([HostPort("0.0.0.0", 0)], optional=False)[0]
    try:
        six = bind([HostPort("::", four.getsockname()[1])], optional=True)
        for sock in six:
            assert sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
            sock.close()
    finally:
        four.close()


async def test_accepted_sockets_are_non_blocking_and_come_with_their_address() -> None:
    (listener,) = bind([HostPort("127.0.0.1", 0)], optional=False)
    accepted: list[tuple[socket.socket, Peer]] = []
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_forever, listener, lambda sock, peer: accepted.append((sock, peer)))
            clients = [await trio.open_tcp_stream(*listener.getsockname()) for _ in range(3)]
            for client in clients:
                await client.send_all(b"x")  # the kernel keeps a connection to itself until its client has spoken
            await until(lambda: len(accepted) == 3)
            nursery.cancel_scope.cancel()
    ports = {client.socket.getsockname()[1] for client in clients}
    assert {peer.port for _, peer in accepted} == ports
    for sock, peer in accepted:
        assert peer.host == "127.0.0.1"
        assert sock.gettimeout() == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        sock.close()
    for client in clients:
        await client.aclose()


class _Exhausted(socket.socket):
    """A listener of a process whose descriptors have run out, for three attempts."""

    failures = 3

    def _accept(self) -> tuple[int, Any]:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super()._accept()  # type: ignore[misc, no-any-return]


async def test_exhausted_descriptors_are_logged_once_and_accepting_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    (listener,) = bind([HostPort("127.0.0.1", 0)], optional=False)
    done = trio.Event()

    def handle(sock: Socket, peer: Peer) -> None:
        sock.close()
        done.set()

    with _Exhausted(fileno=listener.detach()) as exhausted, caplog.at_level("WARNING"):
        async with trio.open_nursery() as nursery, await trio.open_tcp_stream(*exhausted.getsockname()) as client:
            await client.send_all(b"x")
            nursery.start_soon(accept_forever, exhausted, handle)
            await done.wait()
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "cannot accept connections",
        "accepting connections again",
    ]


async def test_while_room_is_made_accepting_is_tried_again_soon(caplog: pytest.LogCaptureFixture) -> None:
    (bound,) = bind([HostPort("127.0.0.1", 0)], optional=False)
    listener = _Exhausted(fileno=bound.detach())
    listener.setblocking(False)
    asked = []
    done = trio.Event()

    def handle(sock: Socket, peer: Peer) -> None:
        sock.close()
        done.set()

    def spare() -> int:
        asked.append(listener.failures)
        return 1

    with listener:
        async with trio.open_nursery() as nursery, await trio.open_tcp_stream(*listener.getsockname()) as client:
            await client.send_all(b"x")
            nursery.start_soon(accept_forever, listener, handle, Shedder(spare=spare))
            with trio.fail_after(1):
                await done.wait()
            nursery.cancel_scope.cancel()
    assert asked == [2, 1, 0]


# ---- with the descriptors of this process really used up ----------------------------------------------


async def test_idle_connections_make_room_when_descriptors_run_out(caplog: pytest.LogCaptureFixture) -> None:
    (listener,) = bind([HostPort("127.0.0.1", 0)], optional=False)
    idle: set[Stream] = set()
    ends: list[bytes] = []

    async def serve(sock: socket.socket) -> None:
        stream = Stream(sock, Reaper())
        idle.add(stream)
        try:
            while data := await stream.receive_some():
                await stream.send_all(data)
        finally:
            idle.discard(stream)
            stream.close()

    async def serve_politely(sock: socket.socket) -> None:
        try:
            await serve(sock)
        except Exception as exc:
            ends.append(type(exc).__name__.encode())

    async with trio.open_nursery() as nursery:
        shedder = Shedder((lambda: idle, 0))
        nursery.start_soon(accept_forever, listener, lambda sock, _: nursery.start_soon(serve_politely, sock), shedder)
        clients = [trio.socket.socket() for _ in range(4)]
        for client in clients[:3]:
            await client.connect(listener.getsockname())
            await client.send(b"hello")
            assert await client.recv(5) == b"hello"
        with no_more_descriptors():
            await clients[3].connect(listener.getsockname())
            await clients[3].send(b"hello")
            with trio.fail_after(1):
                assert await clients[3].recv(5) == b"hello"
        assert ends == [b"ConnectionShed"] * 3
        for client in clients:
            client.close()
        nursery.cancel_scope.cancel()
    listener.close()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "cannot accept connections",
        "accepting connections again",
    ]


async def test_who_cannot_be_accepted_for_long_is_turned_away_and_the_next_one_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (listener,) = bind([HostPort("127.0.0.1", 0)], optional=False)
    accepted: list[socket.socket] = []
    before = open_descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_forever, listener, lambda sock, _: accepted.append(sock))
        await wait_all_tasks_blocked()
        sockets = [trio.socket.socket() for _ in range(5)]
        first, *others = [trio.SocketStream(client) for client in sockets]
        began = trio.current_time()
        with no_more_descriptors():
            for client in sockets[:4]:
                await client.connect(listener.getsockname())
                await client.send(b"hello")
            with trio.fail_after(PATIENCE + 1):
                for stream in (first, *others[:3]):
                    with pytest.raises(trio.BrokenResourceError):  # unread bytes: a reset, which is clear enough
                        await receive_all(stream)
        assert trio.current_time() - began >= PATIENCE
        assert accepted == []
        await sockets[4].connect(listener.getsockname())
        await sockets[4].send(b"hello")
        with trio.fail_after(1):
            await until(lambda: accepted)
        for client in sockets:
            client.close()
        accepted[0].close()
        nursery.cancel_scope.cancel()
    assert open_descriptors() == before
    listener.close()
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "cannot accept connections",
        "accepting connections again",
    ]
