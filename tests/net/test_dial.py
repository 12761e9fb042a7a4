"""Connections to backends on this machine, which has 127.0.0.1, 127.0.0.2 and so on for as many backends."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.net.sockets import no_more_descriptors, open_descriptors, receive_exactly, running, trio_stream
from trioproxy.config.model import HostPort
from trioproxy.errors import CannotBeClient, OutOfDescriptors, UpstreamTimeout, UpstreamUnreachable
from trioproxy.net.dial import ATTEMPT_DELAY, Dialler
from trioproxy.net.resolve import Address, NoAddress, Resolver
from trioproxy.net.sock import Reaper, Stream
from trioproxy.net.transparent import allowed

ONE, TWO, THREE, FOUR = (f"127.0.0.{number}" for number in (1, 2, 3, 4))


@contextmanager
def backends(*hosts: str) -> Iterator[tuple[int, list[socket.socket]]]:
    """Listeners at these addresses, all on one port."""
    with ExitStack() as stack:
        listeners: list[socket.socket] = []
        port = 0
        for host in hosts:
            listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
            port = listener.getsockname()[1]
            listener.setblocking(False)
            listeners.append(stack.enter_context(listener))
        yield port, listeners


@contextmanager
def silent(host: str, port: int = 0) -> Iterator[tuple[int, Callable[[], None]]]:
    """A listener whose queue is full drops further attempts, as a host behind a firewall does, until it is woken."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((host, port), backlog=0))
        port = listener.getsockname()[1]
        waiting = [stack.enter_context(socket.socket()) for _ in range(4)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex((host, port))

        def wake() -> None:
            listener.listen(100)
            listener.setblocking(False)
            while connection := accepted(listener):
                stack.enter_context(connection)

        yield port, wake


def accepted(listener: socket.socket) -> socket.socket | None:
    """The next connection of a listener, None when there is none."""
    try:
        return listener.accept()[0]
    except BlockingIOError:
        return None


def reached(stream: Stream) -> str:
    """The address that a stream is connected to; closes it."""
    host: str = stream.sock.getpeername()[0]
    stream.close()
    return host


class Directory:
    """What the resolver says, which can be changed."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: Sequence[str] = hosts
        self.asked = 0

    def look_up(self, _name: str) -> list[Address]:
        self.asked += 1
        if not self.hosts:
            raise NoAddress("no such name")
        return [Address(host) for host in self.hosts]

    def dialler(self, reaper: Reaper | None = None) -> Dialler:
        return Dialler(reaper or Reaper(), Resolver(self.look_up))


# ---- one address --------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_addresses_and_names_are_connected_to(host: str) -> None:
    reaper = Reaper()
    with backends("::1" if host == "::1" else ONE) as (port, [listener]):
        stream = await Dialler(reaper).dial(HostPort(host, port))
        connection = accepted(listener)
        assert connection is not None
        connection.setblocking(False)
        async with trio_stream(connection) as peer:
            await stream.send_all(b"here")
            assert await receive_exactly(peer, 4) == b"here"
    assert stream.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    stream.close()
    assert reaper.watched == set()


async def test_a_refused_connection_says_so_and_leaves_nothing_behind() -> None:
    reaper = Reaper()
    dialler = Dialler(reaper)
    with backends(ONE) as (port, _):
        pass
    for host in (ONE, "localhost"):
        with pytest.raises(UpstreamUnreachable, match=f"^{host}:{port}: .*Connection refused"):
            await dialler.dial(HostPort(host, port))
    before = open_descriptors()
    with pytest.raises(UpstreamUnreachable):
        await dialler.dial(HostPort(ONE, port))
    assert reaper.watched == set()
    assert open_descriptors() == before


async def test_a_connection_that_stands_at_once_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(_: object) -> None:  # noqa: ASYNC124 - it stands in for one that waits
        raise AssertionError("waited")

    monkeypatch.setattr(Stream, "wait_writable", wait)
    with backends(ONE) as (port, _):
        (await Dialler(Reaper()).dial(HostPort(ONE, port))).close()


@pytest.mark.parametrize("host", [ONE, "pbx.lan"])
async def test_a_backend_that_does_not_answer_is_given_up_at_the_deadline(host: str) -> None:
    reaper = Reaper()
    directory = Directory(ONE)
    with silent(ONE) as (port, _):
        before = open_descriptors()
        async with running(reaper):
            with trio.fail_after(5), pytest.raises(UpstreamTimeout, match=f"^{host}:{port}: no answer"):
                await directory.dialler(reaper).dial(HostPort(host, port), trio.current_time() + 0.2)
        assert open_descriptors() <= before
    assert reaper.watched == set()


@pytest.mark.parametrize("host", [ONE, "pbx.lan"])
async def test_a_cancelled_dial_leaves_nothing_behind(host: str) -> None:
    reaper = Reaper()
    dialler = Directory(ONE, TWO).dialler(reaper)
    with silent(ONE) as (port, _), silent(TWO, port):
        before = open_descriptors()
        with trio.move_on_after(ATTEMPT_DELAY + 0.1):
            await dialler.dial(HostPort(host, port))
        assert open_descriptors() == before
    assert reaper.watched == set()


# ---- names --------------------------------------------------------------------------------------------


async def test_a_name_that_does_not_resolve_says_so() -> None:
    with pytest.raises(UpstreamUnreachable, match=r"^nowhere\.invalid:80: the name does not resolve \(.+\)$"):
        await Dialler(Reaper()).dial(HostPort("nowhere.invalid", 80))


async def test_a_resolver_that_is_silent_costs_no_more_than_the_deadline() -> None:
    go = trio.Event()

    def look_up(_: str) -> list[Address]:
        trio.from_thread.run(go.wait, trio_token=token)
        return [Address(ONE)]

    token = trio.lowlevel.current_trio_token()
    with trio.fail_after(5), pytest.raises(UpstreamTimeout):
        await Dialler(Reaper(), Resolver(look_up)).dial(HostPort("pbx.lan", 80), trio.current_time() + 0.05)
    go.set()


async def test_the_first_address_is_preferred() -> None:
    dialler = Directory(TWO, ONE).dialler()
    with backends(ONE, TWO) as (port, [first, _]):
        assert reached(await dialler.dial(HostPort("pbx.lan", port))) == TWO
        assert accepted(first) is None


async def test_the_next_address_is_tried_at_once_when_one_refuses() -> None:
    dialler = Directory(THREE, "::1", TWO).dialler()
    with backends(TWO) as (port, _):
        with trio.fail_after(ATTEMPT_DELAY):
            assert reached(await dialler.dial(HostPort("pbx.lan", port))) == TWO


async def test_the_next_address_is_tried_beside_one_that_does_not_answer() -> None:
    reaper = Reaper()
    dialler = Directory(ONE, TWO, THREE).dialler(reaper)
    with silent(ONE) as (port, _), silent(TWO, port), socket.create_server((THREE, port)):
        before, began = open_descriptors(), trio.current_time()
        with trio.fail_after(10):
            stream = await dialler.dial(HostPort("pbx.lan", port))
        assert trio.current_time() - began >= 2 * ATTEMPT_DELAY
        assert reached(stream) == THREE
        assert open_descriptors() == before
    assert reaper.watched == set()


async def test_one_that_answers_late_may_still_win() -> None:
    dialler = Directory(ONE, TWO).dialler()
    with silent(ONE) as (port, wake), trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _wake_when_the_second_has_refused() -> None:
                await trio.sleep(2 * ATTEMPT_DELAY)
                wake()  # the kernel asks again a second after its first attempt

            assert reached(await dialler.dial(HostPort("pbx.lan", port))) == ONE


async def test_all_that_failed_are_told() -> None:
    with backends(ONE) as (port, _):
        pass
    with pytest.raises(UpstreamUnreachable) as caught:
        await Directory(ONE, TWO).dialler().dial(HostPort("pbx.lan", port))
    assert str(caught.value) == f"pbx.lan:{port}: Connection refused (127.0.0.1), Connection refused (127.0.0.2)"


async def test_an_address_of_a_family_that_this_machine_lacks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def no_ipv6(family: int, *rest: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    with backends(ONE) as (port, _):
        monkeypatch.setattr(socket, "socket", no_ipv6)
        assert reached(await Directory("::1", ONE).dialler().dial(HostPort("pbx.lan", port))) == ONE


async def test_a_name_that_moved_is_asked_again_at_once(mock_clock: MockClock) -> None:
    directory = Directory(ONE)
    dialler = directory.dialler()
    with backends(ONE) as (port, _):
        (await dialler.dial(HostPort("pbx.lan", port))).close()
    directory.hosts = [TWO]
    mock_clock.jump(1)
    with socket.create_server((TWO, port)):
        assert reached(await dialler.dial(HostPort("pbx.lan", port))) == TWO
    assert directory.asked == 2


async def test_a_backend_that_is_down_has_its_name_asked_for_once_a_second(mock_clock: MockClock) -> None:
    directory = Directory(ONE)
    dialler = directory.dialler()
    with backends(ONE) as (port, _):
        pass
    for moment in range(1, 4):
        for _ in range(3):
            with pytest.raises(UpstreamUnreachable, match="Connection refused"):
                await dialler.dial(HostPort("pbx.lan", port))
        assert directory.asked == moment
        mock_clock.jump(1)


async def test_a_name_that_is_gone_when_asked_again_says_so(mock_clock: MockClock) -> None:
    directory = Directory(ONE)
    dialler = directory.dialler()
    with backends(ONE) as (port, _):
        (await dialler.dial(HostPort("pbx.lan", port))).close()
    directory.hosts = []
    mock_clock.jump(1)
    with pytest.raises(UpstreamUnreachable, match=r"does not resolve \(no such name\)"):
        await dialler.dial(HostPort("pbx.lan", port))


async def test_a_name_whose_backend_was_silent_is_asked_again_next_time() -> None:
    directory = Directory(ONE)
    dialler = directory.dialler()
    with silent(ONE) as (port, _), pytest.raises(UpstreamTimeout):
        await dialler.dial(HostPort("pbx.lan", port), trio.current_time() + 0.05)
    directory.hosts = [TWO]
    with socket.create_server((TWO, port)):
        assert reached(await dialler.dial(HostPort("pbx.lan", port))) == TWO


# ---- the first of several ------------------------------------------------------------------------------


async def test_the_first_of_several_is_taken_as_long_as_it_answers() -> None:
    dialler = Dialler(Reaper())
    with backends(ONE, TWO) as (port, [_, second]):
        for _ in range(3):
            assert reached((await dialler.dial_first([HostPort(ONE, port), HostPort(TWO, port)], 5))[1]) == ONE
        assert accepted(second) is None


async def test_one_that_refuses_is_set_aside_and_taken_again_later(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    dialler = Dialler(Reaper())
    with backends(ONE) as (port, _):
        pass
    both = [HostPort(ONE, port), HostPort(TWO, port)]
    with socket.create_server((TWO, port)):
        assert reached((await dialler.dial_first(both, 5))[1]) == TWO
        with socket.create_server((ONE, port)):
            mock_clock.jump(9)
            assert reached((await dialler.dial_first(both, 5))[1]) == TWO, "it is set aside for ten seconds"
            mock_clock.jump(2)
            assert reached((await dialler.dial_first(both, 5))[1]) == ONE
    assert [r.getMessage() for r in caplog.records] == [
        f"127.0.0.1:{port}: Connection refused: set aside, others are tried first for 10 s",
        f"127.0.0.1:{port} answers again",
    ]


async def test_all_are_tried_when_all_are_set_aside() -> None:
    dialler = Dialler(Reaper())
    with backends(ONE) as (port, _):
        pass
    both = [HostPort(ONE, port), HostPort(TWO, port)]
    with pytest.raises(UpstreamUnreachable, match=f"{TWO}:{port}: Connection refused"):
        await dialler.dial_first(both, 5)
    for host in (ONE, TWO):
        with socket.create_server((host, port)):
            assert reached((await dialler.dial_first(both, 5))[1]) == host


async def test_each_of_several_has_its_own_patience() -> None:
    reaper = Reaper()
    dialler = Dialler(reaper)
    with silent(ONE) as (port, _), socket.create_server((TWO, port)):
        async with running(reaper):
            with trio.fail_after(5):
                _, stream = await dialler.dial_first([HostPort(ONE, port), HostPort(TWO, port)], 0.1)
        assert reached(stream) == TWO


async def test_while_one_tries_a_silent_backend_again_others_go_on(mock_clock: MockClock) -> None:
    dialler = Directory(ONE).dialler()
    silent_one = "silent.lan"
    with silent(ONE) as (port, _), socket.create_server((TWO, port)):
        both = [HostPort(silent_one, port), HostPort(TWO, port)]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _finds_out() -> None:
                assert reached((await dialler.dial_first(both, 5))[1]) == TWO

            await wait_all_tasks_blocked()
            mock_clock.jump(5.1)
        mock_clock.jump(10.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialler.dial_first, both, 5)
            await wait_all_tasks_blocked()
            assert reached((await dialler.dial_first(both, 5))[1]) == TWO
            nursery.cancel_scope.cancel()


async def test_a_single_one_is_never_set_aside(caplog: pytest.LogCaptureFixture) -> None:
    dialler = Dialler(Reaper())
    with backends(ONE) as (port, _):
        pass
    for _ in range(3):
        with pytest.raises(UpstreamUnreachable):
            await dialler.dial_first([HostPort(ONE, port)], 5)
    assert caplog.records == []


# ---- without descriptors ------------------------------------------------------------------------------


async def test_it_is_known_whether_an_address_could_be_reached_the_last_time(tmp_path: Path) -> None:
    reaper = Reaper()
    dialler = Dialler(reaper)
    with backends(ONE) as (port, _):
        address = HostPort(ONE, port)
        (await dialler.dial(address)).close()
        assert dialler.reached == {address: True}
    for unreachable in (address, tmp_path / "no.sock"):
        with pytest.raises(UpstreamUnreachable):
            await dialler.dial(unreachable)
    assert dialler.reached == {address: False, tmp_path / "no.sock": False}
    with silent(TWO) as (port, wake):
        silence = HostPort(TWO, port)
        async with running(reaper):
            with pytest.raises(UpstreamTimeout):
                await dialler.dial(silence, trio.current_time() + 0.01)
        assert dialler.reached.pop(silence) is False
        wake()
    with no_more_descriptors(), pytest.raises(OutOfDescriptors):
        await dialler.dial(silence)
    assert silence not in dialler.reached, "a lack of ours says nothing about the backend"


@pytest.mark.parametrize("host", [ONE, "pbx.lan"])
async def test_a_lack_of_descriptors_is_told_apart_and_blamed_on_no_backend(
    host: str, caplog: pytest.LogCaptureFixture
) -> None:
    dialler = Directory(ONE).dialler()
    with backends(ONE) as (port, _), socket.create_server((TWO, port)):
        both = [HostPort(host, port), HostPort(TWO, port)]
        (await dialler.dial(both[0])).close()  # the resolver's thread needs descriptors too
        with no_more_descriptors(), pytest.raises(OutOfDescriptors, match="Too many open files"):
            await dialler.dial_first(both, 5)
        assert reached((await dialler.dial_first(both, 5))[1]) == ONE
    assert caplog.records == []


@pytest.mark.parametrize("host", [ONE, "pbx.lan"])
async def test_idle_connections_make_room_for_a_new_one(host: str) -> None:
    dialler = Directory(ONE).dialler()
    with backends(ONE) as (port, _):
        idle = [await dialler.dial(HostPort(host, port)) for _ in range(2)]

        def make_room() -> int:
            for stream in idle:
                stream.close()
            return len(idle)

        dialler.make_room = make_room
        with no_more_descriptors():
            (await dialler.dial(HostPort(host, port))).close()


# ---- from the client's own address --------------------------------------------------------------------

transparency = pytest.mark.skipif(not allowed(socket.AF_INET), reason="only root may speak from others' addresses")


@transparency
@pytest.mark.parametrize("host", [ONE, "pbx.lan"])
async def test_the_backend_sees_the_client(host: str) -> None:
    dialler = Directory("::1", ONE).dialler()
    with backends(ONE) as (port, [listener]):
        stream = await dialler.dial(HostPort(host, port), client=FOUR)
        connection, address = listener.accept()
        connection.close()
        stream.close()
    assert address[0] == FOUR


@transparency
@pytest.mark.parametrize(
    ("host", "client", "words"),
    [
        (ONE, "2001:db8::5", "has only IPv4, and the client's own address is IPv6"),
        ("::1", "198.51.100.5", "has only IPv6, and the client's own address is IPv4"),
        ("pbx.lan", "2001:db8::5", "pbx.lan:443 has only IPv4"),
        ("::1", "fe80::5", "this machine cannot speak from fe80::5: Invalid argument"),
    ],
)
async def test_a_client_that_cannot_be_passed_on_is_not_passed_on_in_disguise(
    host: str, client: str, words: str
) -> None:
    reaper = Reaper()
    before = open_descriptors()
    with pytest.raises(CannotBeClient, match=words):
        await Directory(ONE).dialler(reaper).dial(HostPort(host, 443), client=client)
    assert reaper.watched == set()
    assert open_descriptors() == before


@transparency
async def test_a_backend_that_cannot_be_called_as_the_client_is_passed_over_and_not_set_aside() -> None:
    dialler = Dialler(Reaper())
    with backends("::1", ONE) as (port, _):
        both = [HostPort("::1", port), HostPort(ONE, port)]
        assert reached((await dialler.dial_first(both, 5, client=FOUR))[1]) == ONE
        assert reached((await dialler.dial_first(both, 5))[1]) == "::1"
