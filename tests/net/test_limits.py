"""Limits: who is counted as whom, which connections make room, and how often that is told."""

from __future__ import annotations

import resource
from collections.abc import Iterator

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.net.sockets import running, stream_pair, until
from trioproxy.errors import ConnectionShed, StreamError
from trioproxy.net.limits import (
    AT_ONCE,
    CANDIDATES,
    FRUITLESS,
    SPARE_DESCRIPTORS,
    Admission,
    Idle,
    Shedder,
    Tally,
    raise_descriptor_limit,
)
from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper


@attrs.define(eq=False)
class Fake:
    """A connection that waits since a moment, or is busy (None)."""

    idle_since: float | None
    error: StreamError | None = None

    def interrupt(self, error: StreamError) -> None:
        self.error = error
        self.idle_since = None


def shed_of(members: list[Fake]) -> list[bool]:
    return [isinstance(member.error, ConnectionShed) for member in members]


def since(connection: Idle) -> float | None:
    """What it says now, whatever it said before."""
    return connection.idle_since


# ---- making room --------------------------------------------------------------------------------------


async def test_the_longest_idle_goes_first_of_all_groups(autojump_clock: MockClock) -> None:
    await trio.sleep(100)
    now = trio.current_time()
    requests = [Fake(now - 5), Fake(None), Fake(now - 50)]
    tunnels = [Fake(now - 60), Fake(now - 20), Fake(now - 5)]
    shedder = Shedder((lambda: requests, 1), (lambda: tunnels, 10))
    for expected in (
        ([False, False, False], [True, False, False]),
        ([False, False, True], [True, False, False]),
        ([False, False, True], [True, True, False]),
        ([True, False, True], [True, True, False]),
    ):
        assert shedder.shed() == 1
        assert (shed_of(requests), shed_of(tunnels)) == expected
    assert shedder.shed() == 0  # a busy request and a tunnel that was silent for 5 s only are left


async def test_who_has_moved_since_the_search_is_not_closed(autojump_clock: MockClock) -> None:
    await trio.sleep(100)
    now = trio.current_time()
    members = [Fake(now - 3), Fake(now - 2), Fake(now - 1)]
    shedder = Shedder((lambda: members, 0))
    assert shedder.shed() == 1
    members[1].idle_since = now
    assert shedder.shed() == 1
    assert shed_of(members) == [True, False, True]


async def test_many_are_searched_once_for_many(autojump_clock: MockClock) -> None:
    await trio.sleep(100)
    searches = 0
    members = [Fake(float(number % 50)) for number in range(3 * CANDIDATES)]

    def listed() -> Iterator[Fake]:
        nonlocal searches
        searches += 1
        return iter(members)

    shedder = Shedder((listed, 0))
    assert sum(shedder.shed() for _ in range(CANDIDATES)) == CANDIDATES
    assert searches == 1
    assert sum(shedder.shed() for _ in range(3 * CANDIDATES)) == 2 * CANDIDATES
    assert all(shed_of(members))


async def test_a_fruitless_search_is_not_repeated_at_once(autojump_clock: MockClock) -> None:
    members = [Fake(None)]
    shedder = Shedder((lambda: members, 0))
    assert shedder.shed() == 0
    members[0].idle_since = trio.current_time()
    assert shedder.shed() == 0
    await trio.sleep(FRUITLESS)
    assert shedder.shed() == 1


async def test_without_descriptors_what_nobody_misses_goes_first(autojump_clock: MockClock) -> None:
    await trio.sleep(1)
    members = [Fake(0.0) for _ in range(AT_ONCE + 1)]
    spare = [3]
    shedder = Shedder((lambda: members, 0), spare=lambda: spare.pop() if spare else 0)
    assert shedder.make_room() == 3
    assert not any(shed_of(members))
    assert shedder.make_room() == AT_ONCE
    assert sum(shed_of(members)) == AT_ONCE
    assert shedder.make_room() == 1
    assert shedder.make_room() == 0


async def test_a_stream_is_idle_while_it_waits_to_read_and_until_it_is_told_to_end() -> None:
    reaper = Reaper()
    stream, peer = stream_pair(reaper)
    errors: list[Exception] = []

    async def read() -> None:
        try:
            await stream.receive_some()
        except StreamError as exc:
            errors.append(exc)

    async with peer, trio.open_nursery() as nursery:
        assert since(stream) is None
        began = trio.current_time()
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        assert began <= (since(stream) or 0) <= trio.current_time()
        assert Shedder((lambda: [stream], 0)).shed() == 1
        assert since(stream) is None
    assert [type(error) for error in errors] == [ConnectionShed]
    stream.close()


async def test_a_relay_is_idle_since_its_last_byte_and_ends_in_its_own_task() -> None:
    reaper = Reaper()
    pump = Pump(reaper)
    near, client = stream_pair(reaper)
    far, backend = stream_pair(reaper)
    errors: list[Exception] = []

    async def relay() -> None:
        try:
            await pump.relay(near, far, 60)
        except StreamError as exc:
            errors.append(exc)

    async with running(reaper, pump) as nursery, client, backend:
        nursery.start_soon(relay)
        await until(pump.relays)
        [tunnel] = pump.relays()
        began = since(tunnel)
        assert began is not None
        await client.send_all(b"x")
        assert await backend.receive_some() == b"x"
        assert (since(tunnel) or 0) > began
        assert Shedder((pump.relays, 0)).shed() == 1
        await until(lambda: errors)
        assert since(tunnel) is None
        assert pump.relays() == set()
    assert [type(error) for error in errors] == [ConnectionShed]
    near.close()
    far.close()


# ---- counting -----------------------------------------------------------------------------------------


def admission(*members: Fake) -> Admission:
    return Admission(Shedder((lambda: members, 0)))


async def test_beyond_the_limit_an_idle_connection_makes_room_for_each_new_one(autojump_clock: MockClock) -> None:
    await trio.sleep(1)
    idle = Fake(0.0)
    door = admission(idle)
    assert door.enter(2)
    assert door.enter(2)
    assert shed_of([idle]) == [False]
    assert door.enter(2)
    assert shed_of([idle]) == [True]
    assert not door.enter(2)  # nobody else is idle
    door.leave()  # the one that was shed
    await trio.sleep(FRUITLESS)
    assert not door.enter(2)
    door.leave()
    assert door.enter(2)


async def test_without_descriptors_for_as_many_the_limit_is_lower(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    await trio.sleep(1)
    door = admission()
    door.possible = 1
    assert door.enter(10)
    assert not door.enter(10)
    [said] = caplog.messages
    assert said.startswith("1 connections are open, which is all that there are descriptors for")


def test_each_address_has_a_limit_of_its_own() -> None:
    door = admission()
    first = door.introduce("192.0.2.1", 2)
    assert first is not None
    assert door.introduce("192.0.2.1", 2) is not None
    assert door.introduce("192.0.2.1", 2) is None
    assert door.introduce("192.0.2.2", 2) is not None
    door.part(first)
    assert door.introduce("192.0.2.1", 2) is not None
    assert door.introduce("192.0.2.1", 2) is None


def test_all_addresses_of_an_ipv6_network_are_one_client() -> None:
    door = admission()
    assert door.introduce("2001:db8:0:1::1", 2) is not None
    assert door.introduce("2001:db8:0:1:ffff::2", 2) is not None
    assert door.introduce("2001:db8:0:1::3", 2) is None
    assert door.introduce("2001:db8:0:2::1", 2) is not None


def test_nothing_is_kept_of_those_who_have_left() -> None:
    door = admission()
    for number in range(300):
        key = door.introduce(f"2001:db8:0:{number:x}::1", 1)
        assert key is not None
        door.part(key)
    assert door._by_address == {}


def test_connections_in_a_row_from_one_address_are_counted() -> None:
    door = admission()
    for host in ("192.0.2.1", "192.0.2.2", "192.0.2.2", "192.0.2.2"):
        door.introduce(host, 2)  # the last one is one too many, and still came
    assert door.in_a_row == 3


# ---- telling ------------------------------------------------------------------------------------------


async def test_what_happens_often_is_told_once_and_summed_up_every_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tally.run)
        for _ in range(10_000):
            tally.note("floods", "a flood")
        tally.note("droughts", "a drought")
        assert caplog.messages == ["a flood", "a drought"]
        await trio.sleep(61)
        assert caplog.messages[2:] == ["floods: 9999 more in the last minute"]
        for _ in range(5):
            tally.note("floods", "a flood")
        tally.note("droughts", "a drought")
        assert len(caplog.messages) == 3
        await trio.sleep(60)
        assert caplog.messages[3:] == [
            "floods: 5 more in the last minute",
            "droughts: 1 more in the last minute",
        ]
        await trio.sleep(120)
        tally.note("floods", "a flood")
        assert caplog.messages[5:] == ["a flood"]
        nursery.cancel_scope.cancel()


async def test_the_first_time_is_told_only_once_across_the_end_of_a_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tally.run)
        await trio.sleep(59.5)
        tally.note("floods", "a flood")
        await trio.sleep(1)
        tally.note("floods", "a flood")
        assert caplog.messages == ["a flood"]
        nursery.cancel_scope.cancel()


# ---- descriptors --------------------------------------------------------------------------------------


@pytest.fixture
def _soft_limit() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1024), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("_soft_limit")
def test_descriptors_are_allowed_for_as_many_connections_as_are(caplog: pytest.LogCaptureFixture) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    connections = min(hard, 5000) // 2 - SPARE_DESCRIPTORS
    assert raise_descriptor_limit(connections) == connections
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == max(1024, 2 * connections + SPARE_DESCRIPTORS)
    assert raise_descriptor_limit(1) == 1
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == max(1024, 2 * connections + SPARE_DESCRIPTORS)
    assert caplog.messages == []


@pytest.mark.usefixtures("_soft_limit")
def test_too_few_descriptors_are_told_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard == resource.RLIM_INFINITY:
        pytest.skip("this process may have any number")
    possible = raise_descriptor_limit(hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    assert hard // 4 < possible < hard // 2
    [said] = caplog.messages
    assert f"enough for {possible} connections" in said
    assert said.startswith(f"limits.connections = {hard} takes up to {2 * hard + SPARE_DESCRIPTORS} descriptors")
    assert "LimitNOFILE=" in said
