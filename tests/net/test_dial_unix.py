"""Connections to unix sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.net.sockets import no_more_descriptors
from trioproxy.errors import OutOfDescriptors, UpstreamTimeout, UpstreamUnreachable
from trioproxy.net.dial import Dialler
from trioproxy.net.sock import Reaper


def _listener(path: Path, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener


async def _fill(dialler: Dialler, path: Path) -> None:
    while True:  # the kernel's idea of no queue at all is one or two
        (await dialler.dial(path, trio.current_time() + 0.1)).close()


async def test_bytes_pass_both_ways(tmp_path: Path) -> None:
    with _listener(tmp_path / "s", 5) as listener:
        stream = await Dialler(Reaper()).dial(tmp_path / "s")
        accepted, _ = listener.accept()
        with accepted:
            await stream.send_all(b"there")
            assert accepted.recv(10) == b"there"
            accepted.sendall(b"back")
            assert await stream.receive_some() == b"back"
        stream.close()


async def test_one_whose_queue_is_full_is_tried_until_it_has_room(tmp_path: Path) -> None:
    with _listener(tmp_path / "s", 0) as listener:
        dialler = Dialler(Reaper())
        first = await dialler.dial(tmp_path / "s")
        with pytest.raises(UpstreamTimeout):
            await _fill(dialler, tmp_path / "s")
        async with trio.open_nursery() as nursery:

            async def make_room() -> None:
                await trio.testing.wait_all_tasks_blocked()
                listener.listen(5)

            nursery.start_soon(make_room)
            with trio.fail_after(5):
                (await dialler.dial(tmp_path / "s", trio.current_time() + 5)).close()
        first.close()


@pytest.mark.parametrize("name", ["nobody", "long" * 50])
async def test_one_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(UpstreamUnreachable, match=name):
        await Dialler(Reaper()).dial(tmp_path / name)


async def test_without_descriptors_it_is_not_the_backends_fault(tmp_path: Path) -> None:
    with _listener(tmp_path / "s", 5), no_more_descriptors(), pytest.raises(OutOfDescriptors):
        await Dialler(Reaper()).dial(tmp_path / "s")
