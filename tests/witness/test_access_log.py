"""The access log's task: soon, all of it, through reloads and to the end; and never in anybody's way."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from tests.net.sockets import until
from trioproxy.config.model import Log
from trioproxy.witness import access_log
from trioproxy.witness.access_log import COLLECT, AccessLog
from trioproxy.witness.destination import Destination
from trioproxy.witness.records import Exchange, Passage
from trioproxy.witness.witness import Witness


def settings(file: Path, **changes: str) -> Log:
    return Log(access=file, **changes)  # type: ignore[arg-type]


def exchange(number: int) -> Exchange:
    return Exchange(number, "192.0.2.1", "https", 0.0, None)


@asynccontextmanager
async def running(log: AccessLog) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)  # noqa: ASYNC113 - what it does it does whenever it begins
        yield
        nursery.cancel_scope.cancel()


def numbers(file: Path) -> list[int]:
    """The connections of a file's lines, in order."""
    return [int(line.split("#")[1].split()[0]) for line in file.read_text().splitlines()]


async def test_a_line_is_there_a_moment_after_its_event(tmp_path: Path, autojump_clock: MockClock) -> None:
    witness, file = Witness(), tmp_path / "access.log"
    async with running(AccessLog(witness, settings(file))):
        await trio.sleep(3)
        witness.exchange(exchange(1))
        began = autojump_clock.current_time()
        await trio.sleep(COLLECT)
        await until(lambda: file.exists() and file.read_text())  # which takes none of this clock's time
        assert autojump_clock.current_time() - began == pytest.approx(0.1)
        assert numbers(file) == [1]


async def test_many_lines_are_one_write_and_the_end_writes_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(Destination, "_put", _noting(written, Destination._put))
    witness, file = Witness(), tmp_path / "access.log"
    async with running(AccessLog(witness, settings(file))):
        for number in range(1000):
            witness.exchange(exchange(number))
        await until(lambda: written)
        witness.exchange(exchange(1000))
    assert len(written) == 2
    assert numbers(file) == [*range(1001)]


def _noting(written: list[int], real: Callable[[Destination, bytes], None]) -> Callable[[Destination, bytes], None]:
    def put(self: Destination, data: bytes) -> None:
        real(self, data)
        written.append(len(data))

    return put


async def test_a_reload_moves_the_log_without_losing_a_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one.log", tmp_path / "two.log"
    witness = Witness()
    log = AccessLog(witness, settings(one))
    async with running(log):
        witness.exchange(exchange(1))
        log.apply(settings(one))  # nothing that concerns it
        witness.exchange(exchange(2))
        log.apply(settings(two, access_format="combined"))
        witness.exchange(exchange(3))
        witness.passage(Passage(4, "192.0.2.1", "pbx.test", None, 0.0))
        log.apply(Log(access=""))
        assert witness.listeners == ()
        witness.exchange(exchange(5))
        log.apply(settings(one))
        witness.exchange(exchange(6))
    assert numbers(one) == [1, 2, 6]
    assert two.read_text().startswith("192.0.2.1 - - [")
    assert two.read_text().count("\n") == 1
    assert log.dropped == 0


async def test_a_new_file_is_there_as_soon_as_it_is_asked_for(tmp_path: Path) -> None:
    witness, file = Witness(), tmp_path / "access.log"
    log = AccessLog(witness, settings(file))
    async with running(log):
        witness.exchange(exchange(1))
        with trio.fail_after(5):
            await until(lambda: file.exists() and file.read_text())
        file.rename(tmp_path / "access.log.1")
        log.reopen()
        with trio.fail_after(5):
            await until(file.exists)
        witness.exchange(exchange(2))
    assert (numbers(tmp_path / "access.log.1"), numbers(file)) == ([1], [2])


async def test_a_disk_that_fails_is_told_of_once_and_lines_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    witness, file = Witness(), tmp_path / "access.log"
    log = AccessLog(witness, settings(file))
    tries: list[int] = []
    real, trouble = Destination.write, [True]

    def write(self: Destination, lines: Sequence[str]) -> None:
        tries.append(len(lines))
        if trouble[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(self, lines)

    monkeypatch.setattr(Destination, "write", write)
    async with running(log):
        for number in (1, 2):
            witness.exchange(exchange(number))
            with trio.fail_after(5):
                await until(lambda: len(tries) >= number)  # noqa: B023 - called before the next one
            await until(lambda: log.dropped == number)  # noqa: B023
        assert [record.getMessage() for record in caplog.records] == [
            f"access log: {file}: Input/output error. Lines are dropped until that is over; requests go on"
        ]
        trouble[0] = False
        witness.exchange(exchange(3))
    assert numbers(file) == [3]
    assert caplog.messages[1:] == [f"access log: {file} takes lines again; 2 were lost"]


async def test_what_has_no_line_does_not_end_the_trouble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that is passed through, where lines are as nginx writes them."""
    tries: list[int] = []

    def write(self: Destination, lines: Sequence[str]) -> None:
        tries.append(len(lines))
        if lines:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Destination, "write", write)
    witness = Witness()
    log = AccessLog(witness, settings(tmp_path / "access.log", access_format="combined"))
    async with running(log):
        witness.exchange(exchange(1))
        with trio.fail_after(5):
            await until(lambda: log.dropped == 1)
            witness.passage(Passage(2, "192.0.2.1", "pbx.test", None, 0.0))
            await until(lambda: 0 in tries)
    assert len(caplog.messages) == 1


async def test_a_pipe_that_nobody_reads_costs_lines_and_neither_memory_nor_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access_log, "LAST", 0.05)
    monkeypatch.setattr(access_log, "MOST", 10_000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    witness = Witness()
    log = AccessLog(witness, settings(fifo))
    with trio.fail_after(20):
        async with running(log):
            for _ in range(4):
                witness.exchange(exchange(1))
                await trio.sleep(2 * COLLECT)  # the first is in the thread by then, the others wait
            for number in range(20_000):
                witness.exchange(exchange(number))
            assert 19_000 < log.dropped < 20_000
            assert sum(map(len, log._lines)) <= 10_000
        assert "nobody takes what is written there" in caplog.messages[0]
        assert caplog.messages[1:] == [f"access log: {fifo} did not take the last lines within 0.05 s"]
    os.close(writer)
    os.close(reader)  # which the thread's write ends with
