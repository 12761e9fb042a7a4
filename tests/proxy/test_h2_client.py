"""How long a stream may stand still: told by looks a second apart, between which anything may have happened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio
import trio.testing

from trioproxy.config.model import Timeouts
from trioproxy.errors import StreamTimeout
from trioproxy.http.messages import RequestHead
from trioproxy.proxy.h2_client import H2Client
from trioproxy.witness.records import Exchange


def stream(queued: list[int]) -> tuple[H2Client, list[int]]:
    """A stream of a connection whose codec holds `queued[0]` bytes for it, and the codes by which it was reset."""
    resets: list[int] = []
    codec = SimpleNamespace(
        queued=lambda _: queued[0],
        reset=lambda _, code: resets.append(code),
        consumed=lambda *_: None,
        body=lambda *_, **__: None,
    )
    shared: Any = SimpleNamespace(codec=codec, timeouts=Timeouts(idle=5.0), ring=lambda: None, stuck=set())
    request = RequestHead(b"POST", b"/", b"a", [], (2, 0), None)
    return H2Client(shared, 1, request, Exchange(1, "192.0.2.1", "https", 0.0, request), ended=False), resets


def test_a_fast_download_whose_queue_is_always_full_goes_on() -> None:
    client, resets = stream([65536])
    for now in range(100, 200):
        client.body(bytes(65536))
        client.look(float(now))
    assert resets == []
    for now in range(200, 206):
        client.look(float(now))
    assert resets == [8]


async def test_a_fast_upload_that_is_always_found_waiting_goes_on() -> None:
    client, _ = stream([0])
    ended: list[object] = []

    async def take() -> None:
        try:
            while True:
                await client.receive()
        except StreamTimeout as exc:
            ended.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        for now in range(1000, 1100):  # the first look comes late, as seen from a clock that began long ago
            client.look(float(now))
            client.feed(b"x")
            await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        for now in range(1100, 1107):
            client.look(float(now))
    assert len(ended) == 1
