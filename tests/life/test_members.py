"""What a supervisor does about its workers, with workers that the tests play themselves: slow, silent, gone."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
import trio.testing

from tests.proxy.stage import make_config, site
from trioproxy.config.model import HostPort, Listen, Process
from trioproxy.errors import ControlError
from trioproxy.life.channel import FORMAT, Channel, ChannelClosed
from trioproxy.life.member import Member, WorkerGone
from trioproxy.life.shared import SharedBoard, SharedCell, SharedSource
from trioproxy.life.sockets import Bound, share
from trioproxy.life.tidings import Tidings
from trioproxy.routing import RouteTable
from trioproxy.server import Server
from trioproxy.snapshot import Contexts, Snapshot


@attrs.define
class Played:
    """A worker, of which the test has the other end."""

    member: Member
    channel: Channel

    async def asked(self) -> dict[str, Any]:
        """The next thing that it is asked."""
        with trio.fail_after(5):
            message, _ = await self.channel.receive()
        return message

    async def answer(self, message: dict[str, Any], **more: Any) -> None:
        await self.channel.send({"id": message["id"], **more})


@asynccontextmanager
async def played(slot: int = 0) -> AsyncIterator[Played]:
    """A process that does nothing, for it is to be killed."""
    near, far = socket.socketpair()
    process = await trio.lowlevel.open_process(["sleep", "600"])
    member, channel = Member(slot, process, Channel(near)), Channel(far)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(member.listen)
            yield Played(member, channel)
            nursery.cancel_scope.cancel()
    finally:
        member.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
        member.close()
        channel.close()


async def test_a_worker_that_does_not_answer_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    async with played() as worker:
        with pytest.raises(WorkerGone):
            await worker.member.ask("ping", patience=0.1)
        assert await worker.member.process.wait() == -9
        assert "has not answered within 0.1 s, and is killed" in caplog.text
        with pytest.raises(WorkerGone):
            await worker.member.ask("ping")


async def test_a_worker_that_does_not_listen_is_killed(caplog: pytest.LogCaptureFixture) -> None:
    async with played() as worker:
        with pytest.raises(WorkerGone):
            await worker.member.ask("prepare", patience=0.1, text="x" * 10_000_000)
        assert await worker.member.process.wait() == -9
        assert "has not listened for 0.1 s" in caplog.text


async def test_whoever_asks_a_worker_that_ends_hears_of_it() -> None:
    async with played() as worker, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(WorkerGone):
                await worker.member.ask("census")

        nursery.start_soon(ask)
        await worker.asked()
        worker.channel.close()


async def test_a_refusal_is_not_an_end() -> None:
    async with played() as worker, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ControlError, match="no such thing"):
                await worker.member.ask("nonsense")
            assert (await worker.member.ask("ping"))["id"] == 2

        nursery.start_soon(ask)
        await worker.answer(await worker.asked(), error="no such thing")
        await worker.answer(await worker.asked())


async def test_a_worker_of_another_version_is_told_from_one_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    for said, fit in (({"format": FORMAT}, True), ({"format": FORMAT + 1}, False), ({}, False)):
        near, far = socket.socketpair()
        process = await trio.lowlevel.open_process(["sleep", "600"])
        member, channel = Member(0, process, Channel(near)), Channel(far)
        await channel.send(said)
        if fit:
            await member.hello()
        else:
            with pytest.raises(WorkerGone, match="of another version"):
                await member.hello()
            assert "`trioproxy upgrade` replaces both" in caplog.text
        member.kill()
        await process.wait()
        member.close()
        channel.close()


async def test_a_worker_that_talks_nonsense_is_as_good_as_gone() -> None:
    async with played() as worker, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(WorkerGone):
                await worker.member.ask("ping")

        nursery.start_soon(ask)
        await worker.asked()
        await worker.channel._sock.send(b"nonsense\n")
        assert await worker.member.process.wait() == -9


async def test_a_server_that_nothing_can_start_anew_cannot_have_workers(tmp_path: Path) -> None:
    config = make_config(site("cloud.test", 9, tls="internal"))
    listen = Listen(https=(HostPort("127.0.0.1", 0),), http=(), https_written=True, http_written=True)
    config = attrs.evolve(
        config, listen=listen, storage=tmp_path, control_socket=tmp_path / "control.sock", process=Process(workers=2)
    )
    with trio.fail_after(10), pytest.raises(WorkerGone, match="not started by `trioproxy serve`"):
        await Server(config, lambda: config).run()


# ---- what is published -----------------------------------------------------------------------------------


@attrs.define
class Desk:
    """A supervisor's boards, and the workers who are told of them."""

    board: SharedBoard
    cell: SharedCell
    tidings: Tidings
    workers: list[Played]


@asynccontextmanager
async def desk(*names: str) -> AsyncIterator[Desk]:
    """With two workers that accept, and are told what is published as a crew does it."""
    config = make_config(*(site(name, 9) for name in names))
    contexts = Contexts(cast(Any, lambda site: object()))
    cell, board = SharedCell(Snapshot(config, RouteTable.of(config), contexts)), SharedBoard()

    async def tell(member: Member) -> None:
        try:
            while True:
                member.wanted = trio.Event()
                await tidings.bring(member)
                await member.wanted.wait()
        except WorkerGone:
            pass

    async with played(0) as one, played(1) as two, trio.open_nursery() as nursery:
        tidings = Tidings(cell, board, cast(SharedSource, attrs.make_class("Source", ["of_files"])({})))
        tidings.members = lambda: (one.member, two.member)
        for worker in (one, two):
            worker.member.accepting = True
            nursery.start_soon(tell, worker.member)
        yield Desk(board, cell, tidings, [one, two])
        nursery.cancel_scope.cancel()


async def test_the_authority_is_told_when_the_last_worker_has_the_answer() -> None:
    async with desk("cloud.test") as office, trio.open_nursery() as nursery:
        told: list[str] = []

        async def order() -> None:
            with office.board.present("cloud.test", "token", "answer"):
                await office.board.seen()
                told.append("told")
                await trio.sleep_forever()

        nursery.start_soon(order)
        for number, worker in enumerate(office.workers):
            message = await worker.asked()
            assert message["board"]["answers"] == [["cloud.test", "token", "answer"]]
            await trio.testing.wait_all_tasks_blocked()
            assert told == [], f"{number} of 2 workers have it"
            await worker.answer(message, problems={})
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert told == ["told"]
        nursery.cancel_scope.cancel()
        for worker in office.workers:
            assert (await worker.asked())["board"]["answers"] == [], "it is taken away again"


async def test_a_worker_that_dies_keeps_no_authority_waiting() -> None:
    async with desk("cloud.test") as office, trio.open_nursery() as nursery:
        nursery.start_soon(office.tidings.settled)
        with office.board.present_in_tls("cloud.test", b"proof"):
            message = await office.workers[0].asked()
            assert message["board"]["in_tls"] == {"cloud.test": "proof"}
            await office.workers[0].answer(message, problems={})
            office.workers[1].member.kill()
            with trio.fail_after(1):
                await office.board.seen()


async def test_names_are_told_once_and_as_they_are_then() -> None:
    async with desk("one.test", "two.test") as office:
        first, _ = office.workers
        office.cell.update(lambda s: attrs.evolve(s, awaiting=frozenset({"one.test"})))
        message = await first.asked()
        assert message["certificates"] == [{"name": "one.test", "awaiting": True, "pem": ""}]
        for _ in range(3):  # while it is at work
            context = cast(Any, object())
            office.cell.update(lambda s: attrs.evolve(s, contexts=s.contexts.replaced("two.test", context)))  # noqa: B023
        office.cell.update(lambda s: attrs.evolve(s, awaiting=frozenset()))
        await first.answer(message, problems={})
        message = await first.asked()
        assert sorted(message["certificates"], key=lambda each: str(each["name"])) == [
            {"name": "one.test", "awaiting": False, "pem": ""},
            {"name": "two.test", "awaiting": False, "pem": ""},
        ]
        await first.answer(message, problems={"two.test": "out of descriptors"})
        office.cell.update(lambda s: attrs.evolve(s, awaiting=frozenset({"one.test"})))
        again = {certificate["name"] for certificate in (await first.asked())["certificates"]}
        assert again == {"one.test", "two.test"}, "what it could not do is told again"


async def test_a_worker_that_comes_later_is_given_how_things_are() -> None:
    async with desk("one.test", "two.test") as office:
        office.cell.update(lambda s: attrs.evolve(s, awaiting=frozenset({"two.test", "one.test"})))
        with office.board.present("one.test", "token", "answer"):
            given = office.tidings.everything(office.workers[0].member)
        assert given["awaiting"] == ["one.test", "two.test"]
        assert given["board"]["answers"] == [["one.test", "token", "answer"]]


# ---- the channel, and who gets which socket --------------------------------------------------------------


async def test_sockets_arrive_with_their_line() -> None:
    near, far = socket.socketpair()
    sender, receiver = Channel(near), Channel(far)
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await sender.send({"none": "x" * 500_000})
            await sender.send({"two": "y" * 500_000}, listeners[:2])
            await sender.send({"one": ""}, listeners[2:])
            sender.close()

        nursery.start_soon(send)
        names = []
        for count in (0, 2, 1):
            message, socks = await receiver.receive()
            assert len(socks) == count, message.keys()
            for sock in socks:
                assert not sock.get_inheritable()
                names.append(sock.getsockname())
                sock.close()
        assert names == [listener.getsockname() for listener in listeners]
        with pytest.raises(ChannelClosed):
            await receiver.receive()
    receiver.close()
    with pytest.raises(ChannelClosed):
        await receiver.send({})
    for listener in listeners:
        listener.close()


@pytest.mark.parametrize(("count", "processes"), [(1, 1), (2, 2), (1, 3), (3, 1), (3, 2), (2, 3), (5, 2)])
def test_every_socket_is_accepted_from_and_every_worker_has_one(count: int, processes: int) -> None:
    socks = tuple(cast(socket.socket, number) for number in range(count))
    shares = [share(Bound(socks), slot, processes) for slot in range(processes)]
    assert all(shares)
    assert {sock for each in shares for sock in each} == set(socks)
    if count >= processes:
        assert sum(len(each) for each in shares) == count, "none is shared without need"
