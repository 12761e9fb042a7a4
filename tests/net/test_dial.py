"""Connecting to backends."""

from __future__ import annotations

import socket

import pytest
import trio

from tests.net.sockets import receive_exactly, running, trio_stream
from trioproxy.config.model import HostPort
from trioproxy.errors import UpstreamTimeout, UpstreamUnreachable
from trioproxy.net.dial import dial
from trioproxy.net.sock import Reaper


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_addresses_and_names_are_connected_to(host: str) -> None:
    reaper = Reaper()
    address = "::1" if host == "::1" else "127.0.0.1"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as listener:
        stream = await dial(HostPort(host, listener.getsockname()[1]), reaper)
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        async with trio_stream(accepted) as peer:
            await stream.send_all(b"here")
            assert await receive_exactly(peer, 4) == b"here"
    stream.close()
    assert reaper.watched == set()


async def test_a_refused_connection_says_so_and_leaves_nothing_behind() -> None:
    reaper = Reaper()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        with pytest.raises(UpstreamUnreachable, match=f"{host}:{port}: "):
            await dial(HostPort(host, port), reaper)
    assert reaper.watched == set()


async def test_a_name_that_does_not_resolve_says_so() -> None:
    with pytest.raises(UpstreamUnreachable, match=r"nowhere\.invalid:80: the name does not resolve"):
        await dial(HostPort("nowhere.invalid", 80), Reaper())


async def test_a_backend_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    reaper = Reaper()
    # A listener whose queue is full drops further attempts, as a host behind a silent firewall does.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        async with running(reaper):
            with trio.fail_after(5), pytest.raises(UpstreamTimeout):
                await dial(HostPort("127.0.0.1", listener.getsockname()[1]), reaper, trio.current_time() + 0.2)
        for sock in waiting:
            sock.close()
    assert reaper.watched == set()
