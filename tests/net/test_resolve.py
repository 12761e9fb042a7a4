"""Names and their addresses: what is asked, how often, and how long it counts. The lookups run in real threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from trioproxy.net import resolve
from trioproxy.net.resolve import Address, NoAddress, Resolver, interleaved, literal, look_up

ONE, TWO, SIX, SEVEN = map(Address, ("192.0.2.1", "192.0.2.2", "2001:db8::6", "2001:db8::7"))


class Directory:
    """Stands in for the system's resolver: what it says can be changed, and it can be made to take its time."""

    def __init__(self, *addresses: Address) -> None:
        self.addresses: Sequence[Address] = addresses
        self.error: Exception | None = None
        self.asked: list[str] = []
        self.thread: threading.Thread | None = None
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._go.set()

    def hold(self) -> Callable[[], None]:
        """Answer nobody until the returned function is called."""
        self._go.clear()
        return self._go.set

    def look_up(self, name: str) -> Sequence[Address]:
        with self._lock:
            self.asked.append(name)
            self.thread = threading.current_thread()
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        self._go.wait(30)
        with self._lock:
            self._at_once -= 1
        if self.error:
            raise self.error
        return self.addresses


async def test_an_answer_is_kept_for_ten_seconds(autojump_clock: MockClock) -> None:
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    assert (await resolver.resolve("pbx.lan")).addresses == (ONE,)
    directory.addresses = [TWO]
    await trio.sleep(9.9)
    assert (await resolver.resolve("pbx.lan")).addresses == (ONE,)
    await trio.sleep(0.2)
    assert (await resolver.resolve("pbx.lan")).addresses == (TWO,)
    assert directory.asked == ["pbx.lan", "pbx.lan"]


async def test_a_failure_is_kept_for_a_second(autojump_clock: MockClock) -> None:
    directory = Directory(ONE)
    directory.error = NoAddress("no such name")
    resolver = Resolver(directory.look_up)
    answer = await resolver.resolve("pbx.lan")
    assert (answer.addresses, answer.problem) == ((), "no such name")
    directory.error = None
    await trio.sleep(0.9)
    assert (await resolver.resolve("pbx.lan")).problem
    await trio.sleep(0.2)
    assert (await resolver.resolve("pbx.lan")).addresses == (ONE,)


async def test_a_name_without_any_address_has_a_problem() -> None:
    answer = await Resolver(Directory().look_up).resolve("pbx.lan")
    assert (answer.addresses, answer.problem) == ((), "it has no address")


async def test_a_newer_answer_can_be_asked_for(autojump_clock: MockClock) -> None:
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    first = await resolver.resolve("pbx.lan")
    directory.addresses = [TWO]
    await trio.sleep(1)
    newer = await resolver.resolve("pbx.lan", since=trio.current_time())
    assert (newer.addresses, newer.came - first.came) == ((TWO,), 1)
    assert await resolver.resolve("pbx.lan") is newer


async def test_what_is_forgotten_is_asked_again() -> None:
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    await resolver.resolve("pbx.lan")
    resolver.forget("pbx.lan")
    resolver.forget("unknown.lan")
    await resolver.resolve("pbx.lan")
    assert len(directory.asked) == 2


async def test_one_lookup_serves_all_who_wait_for_it() -> None:
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    answers: list[Sequence[Address]] = []

    async def ask() -> None:
        answers.append((await resolver.resolve("pbx.lan")).addresses)

    go = directory.hold()
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        go()
    assert answers == [(ONE,)] * 50
    assert directory.asked == ["pbx.lan"]


async def test_who_gives_up_takes_the_lookup_from_nobody() -> None:
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    go = directory.hold()
    async with trio.open_nursery() as impatient:
        impatient.start_soon(resolver.resolve, "pbx.lan")
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as patient:
            patient.start_soon(resolver.resolve, "pbx.lan")
            await wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
            patient.cancel_scope.shield = True
            go()
    assert (await resolver.resolve("pbx.lan")).addresses == (ONE,)
    assert directory.asked == ["pbx.lan"]


async def test_a_lookup_that_nobody_waits_for_any_more_still_counts() -> None:
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    go = directory.hold()
    for _ in range(3):
        with trio.move_on_after(0.01):
            await resolver.resolve("pbx.lan")
    go()
    assert (await resolver.resolve("pbx.lan")).addresses == (ONE,)
    assert directory.asked == ["pbx.lan"]


async def test_dead_servers_take_a_bounded_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MAX_LOOKUPS", 3)
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    go = directory.hold()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            for _ in range(2):
                nursery.start_soon(resolver.resolve, f"host{number}.lan")
        await wait_all_tasks_blocked()
        assert len(resolver._under_way) == 3
        go()
    assert directory.most_at_once <= 3
    assert sorted(directory.asked) == [f"host{number}.lan" for number in range(10)]


async def test_the_oldest_answer_goes_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "MAX_NAMES", 2)
    directory = Directory(ONE)
    resolver = Resolver(directory.look_up)
    for name in ("a.lan", "b.lan"):
        await resolver.resolve(name)
    await resolver.resolve("a.lan", since=trio.current_time())  # now b's is the older one
    for name in ("c.lan", "a.lan", "c.lan", "b.lan"):
        await resolver.resolve(name)
    assert directory.asked == ["a.lan", "b.lan", "a.lan", "c.lan", "b.lan"]


async def test_a_bug_in_a_lookup_is_a_problem_of_its_name_alone(caplog: pytest.LogCaptureFixture) -> None:
    directory = Directory()
    directory.error = ZeroDivisionError("oops")
    answer = await Resolver(directory.look_up).resolve("pbx.lan")
    assert answer.problem == "a bug in trioproxy, see the log"
    assert [(r.levelno, bool(r.exc_info)) for r in caplog.records] == [(logging.ERROR, True)]


def test_an_answer_that_comes_after_the_end_disturbs_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    directory = Directory(ONE)
    go = directory.hold()

    async def leave_early() -> None:
        with trio.move_on_after(0.01):
            await Resolver(directory.look_up).resolve("pbx.lan")

    async def workers(count: int) -> list[threading.Thread]:
        """So many threads at once: those of Trio's that have nothing to do, the latest first, and then new ones."""
        meeting = threading.Barrier(count)
        found: list[threading.Thread] = []

        def meet() -> None:
            meeting.wait()
            found.append(threading.current_thread())

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(trio.to_thread.run_sync, meet)
        return found

    trio.run(leave_early)
    go()
    count = 1
    while directory.thread not in trio.run(workers, count):  # it takes new work when its answer is delivered
        count = min(count + 1, 40)  # as many as Trio allows
    assert capfd.readouterr().err == ""


def test_the_families_take_turns_and_the_preferred_one_begins() -> None:
    assert interleaved([SIX, SEVEN, ONE, TWO]) == [SIX, ONE, SEVEN, TWO]
    assert interleaved([ONE, TWO, SIX]) == [ONE, SIX, TWO]
    assert interleaved([ONE, TWO]) == [ONE, TWO]
    assert interleaved([]) == []


def test_addresses_are_told_from_names() -> None:
    assert literal("192.0.2.1") == ONE
    assert literal("2001:db8::6") == SIX
    assert literal("pbx.lan") is None
    assert (ONE.at(80), SIX.at(80)) == (("192.0.2.1", 80), ("2001:db8::6", 80))
    assert Address("fe80::1", 3).at(80) == ("fe80::1", 80, 0, 3)


def test_the_system_is_asked() -> None:
    assert Address("127.0.0.1") in look_up("localhost")
    with pytest.raises(NoAddress):
        look_up("nowhere.invalid")
    with pytest.raises(NoAddress):
        look_up("a" * 64 + ".lan")
