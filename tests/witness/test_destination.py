"""Where lines go: whole, behind what others wrote, into a new file when the old one has gone, and past what fails."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from trioproxy.witness import destination
from trioproxy.witness.destination import ONE_PIECE, STDERR, STDOUT, Destination


def test_a_file_is_made_for_owner_and_group_whatever_the_umask(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    before = os.umask(0o077)
    try:
        to = Destination(file)
        to.write(["one\n", "two\n"])
    finally:
        os.umask(before)
    to.close()
    assert file.read_text() == "one\ntwo\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_one_that_is_there_keeps_what_it_holds_and_its_mode(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    file.write_text("before\n")
    file.chmod(0o604)
    first, second = Destination(file), Destination(file)
    for to, line in ((first, "one\n"), (second, "two\n"), (first, "three\n")):
        to.write([line])
    assert file.read_text() == "before\none\ntwo\nthree\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o604
    first.close()
    second.close()


def test_after_a_rotation_lines_go_to_a_new_file_even_if_there_are_none_yet(tmp_path: Path) -> None:
    file = tmp_path / "access.log"
    to = Destination(file)
    to.write(["old\n"])
    file.rename(tmp_path / "access.log.1")
    to.write(["still old\n"])
    to.reopen()
    to.write([])
    assert file.read_text() == ""
    to.write(["new\n"])
    to.close()
    assert (tmp_path / "access.log.1").read_text() == "old\nstill old\n"
    assert file.read_text() == "new\n"


def test_a_folder_that_is_not_there_yet_is_tried_again(tmp_path: Path) -> None:
    to = Destination(tmp_path / "folder" / "access.log")
    with pytest.raises(FileNotFoundError):
        to.write(["lost\n"])
    (tmp_path / "folder").mkdir()
    to.write(["kept\n"])
    to.close()
    assert (tmp_path / "folder" / "access.log").read_text() == "kept\n"


def test_a_line_that_broke_off_is_ended_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full takes part of what it is given, and refuses the rest."""
    file = tmp_path / "access.log"
    to = Destination(file)
    to.write(["first\n"])
    write, room = os.write, [8]

    def full(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = write(descriptor, data[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left on device"):
        to.write(["whole\n", "broken off\n"])
    with pytest.raises(OSError, match="No space left on device"):
        to.write(["never\n"])
    monkeypatch.undo()
    to.write(["second\n"])
    to.close()
    assert file.read_text() == "first\nwhole\nbr\nsecond\n"


def test_lines_of_a_pipe_go_in_pieces_that_stay_whole(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.mkfifo(tmp_path / "fifo")
    pieces: list[bytes] = []
    read = threading.Thread(target=_read_all, args=(tmp_path / "fifo", pieces))
    read.start()
    to = Destination(tmp_path / "fifo")
    lines = [f"{number:0{length}}\n" for number, length in enumerate([100] * 100 + [2 * ONE_PIECE, 10])]
    written: list[int] = []
    real = os.write

    def counting(descriptor: int, data: bytes) -> int:
        written.append(len(data))
        assert bytes(data).endswith(b"\n")
        return real(descriptor, data)

    destination.os.write = counting  # type: ignore[attr-defined]
    try:
        to.write(lines)
    finally:
        destination.os.write = real  # type: ignore[attr-defined]
    to.close()
    read.join(10)
    os.close(reader)
    os.close(writer)
    assert b"".join(pieces).decode() == "".join(lines)
    assert [size for size in written if size > ONE_PIECE] == [2 * ONE_PIECE + 1]
    assert len(written) < 10


def _read_all(path: Path, pieces: list[bytes]) -> None:
    with path.open("rb", buffering=0) as fifo:
        while data := fifo.read(65536):
            pieces.append(data)


def test_standard_output_that_does_not_block_is_waited_for() -> None:
    """Whoever started us may have made it so, and for a full pipe that is an error."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(ONE_PIECE))
    to = Destination(writer)
    done = threading.Thread(target=to.write, args=(["here\n"],))
    done.start()
    got = b""
    while not got.endswith(b"here\n"):
        got += os.read(reader, 65536)
    done.join(10)
    to.close()
    os.fstat(writer)  # it is not ours to close
    os.close(reader)
    with pytest.raises(BrokenPipeError):
        to.write(["nobody\n"])
    os.close(writer)


@pytest.mark.parametrize(("number", "name"), [(STDOUT, "__stdout__"), (STDERR, "__stderr__")])
def test_what_was_closed_at_the_start_is_not_written_to(
    number: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number may be that of a connection by now."""
    monkeypatch.setattr(sys, name, None)
    with pytest.raises(OSError, match="it is closed"):
        Destination(number).write(["line\n"])
