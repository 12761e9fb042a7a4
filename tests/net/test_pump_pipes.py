"""Busy relays through pipes: their bytes when pipes run out, for an ordinary user, and when a stream breaks off."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.net.sockets import open_descriptors, receive_exactly, running, stream_pair, until
from trioproxy.net import pipes
from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper

MEGABYTE = 1024 * 1024
NOBODY = 65534


async def carry(pump: Pump, reaper: Reaper, seed: int, size: int) -> None:
    """Relay `size` bytes both ways at once, in pieces of all sizes, and compare every one of them."""
    dice = random.Random(seed)
    there, back = dice.randbytes(size), dice.randbytes(size)
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)

    async def relay() -> None:
        await pump.relay(near, far, 60)
        near.close()
        far.close()

    async def send(stream: trio.SocketStream, content: bytes) -> None:
        position = 0
        while position < len(content):
            piece = dice.choice((1, 1400, 65536, MEGABYTE, 4 * MEGABYTE))
            await stream.send_all(content[position : position + piece])
            position += piece
        await stream.send_eof()

    async def check(stream: trio.SocketStream, content: bytes) -> None:
        assert await receive_exactly(stream, len(content) + 1) == content

    async with client, backend, trio.open_nursery() as nursery:
        nursery.start_soon(relay)
        nursery.start_soon(send, client, there)
        nursery.start_soon(send, backend, back)
        nursery.start_soon(check, backend, there)
        nursery.start_soon(check, client, back)


async def carry_all(streams: int, size: int) -> Pump:
    """Several such relays at once over one pump; returns it for a look at its pipes."""
    reaper = Reaper()
    pump = Pump(reaper)
    async with running(reaper, pump):
        async with trio.open_nursery() as nursery:
            for seed in range(streams):
                nursery.start_soon(carry, pump, reaper, seed, size)
        assert pump.pipes.lent == 0
    return pump


async def test_busy_streams_go_through_pipes_and_give_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[object] = []
    take = pipes.Pipes.take

    def taking(self: pipes.Pipes) -> pipes.Pipe | None:
        taken.append(pipe := take(self))
        return pipe

    monkeypatch.setattr(pipes.Pipes, "take", taking)
    await carry_all(4, 8 * MEGABYTE)
    assert any(taken)


async def test_a_thousand_relays_of_all_sizes_carry_every_byte_both_ways() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    at_once = trio.CapacityLimiter(100)

    async def one(seed: int) -> None:
        async with at_once:
            await carry(pump, reaper, seed, random.Random(seed).choice((1, 100, 10_000, 70_000, 700_000)))

    before = open_descriptors()
    async with running(reaper, pump), trio.open_nursery() as nursery:
        for seed in range(1000):
            nursery.start_soon(one, seed)
    assert reaper.watched == set()
    assert open_descriptors() <= before


async def test_bytes_are_the_same_when_there_are_fewer_pipes_than_busy_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "MOST", 2)
    await carry_all(8, 4 * MEGABYTE)


async def test_bytes_are_the_same_when_the_kernel_gives_no_pipes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: int) -> tuple[int, int]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "pipe2", refused)
    await carry_all(4, 4 * MEGABYTE)


async def test_a_pipe_with_bytes_in_it_is_never_lent_again() -> None:
    """A stream that breaks off while its bytes are in a pipe leaves them to nobody."""
    reaper = Reaper()
    pump = Pump(reaper)
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)
    scope = trio.CancelScope()

    async def relay() -> None:
        with scope:
            await pump.relay(near, far, 60)

    async with running(reaper, pump) as nursery, client, backend, trio.open_nursery() as peers:
        nursery.start_soon(relay)
        peers.start_soon(client.send_all, bytes(256 * MEGABYTE))
        await wait_all_tasks_blocked()
        forth, _ = pump._from.values()
        with trio.fail_after(20):
            while forth.pipe is None or not forth.pipe.held:  # until it is stuck, and while it goes through a pipe
                await receive_exactly(backend, MEGABYTE)
                await wait_all_tasks_blocked(0.01)
        scope.cancel()
        await until(lambda: not pump.pipes.lent)
        assert pump.pipes.free == 0
        peers.cancel_scope.cancel()
    near.close()
    far.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_an_ordinary_user_who_is_given_small_pipes_relays_the_same_bytes() -> None:
    """Beyond fs.pipe-user-pages-soft the kernel refuses to make a pipe larger for those who are not root."""
    program = (
        "import encodings.idna, os, trio\n"  # all that is needed, while the files may still be read
        "from tests.net.test_pump_pipes import carry_all, use_up_pipes\n"
        f"os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})\n"
        "kept = use_up_pipes()\n"
        "trio.run(carry_all, 4, 4 * 1024 * 1024)\n"
        "print('refused after', len(kept))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("refused after ")


def use_up_pipes() -> list[pipes.Pipe]:
    """Take pipes until the kernel refuses to make another one large."""
    kept: list[pipes.Pipe] = []
    while len(kept) < 1000:
        try:
            kept.append(pipes.Pipe())
        except OSError:
            return kept
    raise AssertionError("the kernel refuses nothing to this user")
