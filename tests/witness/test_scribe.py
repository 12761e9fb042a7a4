"""Events are written by a thread: whoever reads them, or does not, nobody waits."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
from collections.abc import Iterator, Sequence

import pytest

from trioproxy.logs import configure, write_to
from trioproxy.witness import scribe as module
from trioproxy.witness.destination import Destination
from trioproxy.witness.scribe import Scribe, events_aside

PAGE = 4096
LINE = "x" * 99 + "\n"


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Reader and writer of a pipe that holds a page, and is full."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PAGE)
    os.write(writer, bytes(PAGE))
    yield reader, writer
    os.close(reader)
    os.close(writer)


@pytest.fixture
def root_logger() -> Iterator[None]:
    """Trioproxy's logger, set up, and afterwards as it was."""
    logger = logging.getLogger("trioproxy")
    before = logger.handlers, logger.propagate, logger.level
    logger.handlers = []
    configure("info")
    yield
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])


def drain(reader: int, last: bytes) -> bytes:
    """What comes, up to and with `last`."""
    got = b""
    while last not in got:
        more = os.read(reader, 65536)
        assert more, got[-500:]
        got += more
    return got


def test_nobody_waits_for_a_full_pipe_and_what_was_lost_is_counted(
    pipe: tuple[int, int], root_logger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(module, "STDERR", writer)
    with events_aside():
        log = logging.getLogger("trioproxy.test")
        for number in range(20_000):
            log.info("%d %s", number, LINE.strip())
        log.info("the last")
        got = drain(reader, b"events were not written here").lstrip(b"\0").decode().splitlines()
    assert " 0 xxx" in got[0], "in order"
    lost = int(got[-1].split(" events")[0].split()[-1])
    assert 20_001 - lost == len(got) - 1
    assert lost > 5_000


def test_what_waits_at_the_end_is_written(root_logger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(module, "STDERR", writer)
    with events_aside():
        logging.getLogger("trioproxy.test").info("goodbye")
    os.close(writer)
    assert drain(reader, b"\n").endswith(b"goodbye\n")
    os.close(reader)


def test_after_the_end_events_are_written_at_once_unless_nobody_takes_them(
    pipe: tuple[int, int], root_logger: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(module, "LAST", 0.05)
    monkeypatch.setattr(module, "STDERR", writer)
    with events_aside():
        logging.getLogger("trioproxy.test").info("stuck")
    logging.getLogger("trioproxy.test").info("not waited for either")
    stuck = write_to(Scribe(Destination(writer)))
    assert isinstance(stuck, Scribe)
    drain(reader, b"stuck\n")  # and the thread ends
    assert stuck.close()


def test_what_was_folded_is_told_before_the_end(root_logger: None, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    monkeypatch.setattr(module, "STDERR", writer)
    with events_aside():
        for _ in range(3):
            logging.getLogger("trioproxy.test").warning("trouble")
    os.close(writer)
    assert b"2 more times in the last minute" in drain(reader, b"minute\n")
    os.close(reader)


def test_what_is_no_text_is_written_all_the_same() -> None:
    """Part of a traceback, say, whose message came from elsewhere."""
    reader, writer = os.pipe()
    scribe = Scribe(Destination(writer))
    scribe.write("ValueError: \udcff\n")
    assert drain(reader, b"\n") == b"ValueError: \\udcff\n"
    assert scribe.close()
    os.close(writer)
    os.close(reader)


@pytest.mark.parametrize("trouble", [OSError(errno.ENOSPC, "full"), MemoryError()])
def test_a_disk_that_fails_costs_lines_and_says_how_many(trouble: Exception, root_logger: None) -> None:
    class Failing(Destination):
        def __init__(self) -> None:
            super().__init__(1)
            self.full = True
            self.trouble = trouble
            self.asked = threading.Semaphore(0)
            self.written: list[str] = []

        def write(self, lines: Sequence[str]) -> None:
            self.asked.release()
            if self.full:
                raise self.trouble
            self.written += lines

    to = Failing()
    scribe = Scribe(to)
    write_to(scribe)
    for _ in range(3):
        scribe.write(LINE)
        assert to.asked.acquire(timeout=10)
    to.full = False
    scribe.write("again\n")
    assert to.asked.acquire(timeout=10)
    assert to.asked.acquire(timeout=10)  # what it says of itself
    assert scribe.close()
    assert to.written[0] == "again\n"
    assert "3 events were not written here" in to.written[1]
