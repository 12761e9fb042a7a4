from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from trioproxy.certs import files
from trioproxy.errors import StoreError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- replacing ----------------------------------------------------------------------------------------


def test_a_new_file_is_its_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        files.replace(tmp_path / "x", b"secret", None)
    finally:
        os.umask(before)
    assert mode(tmp_path / "x") == 0o600
    assert (tmp_path / "x").read_bytes() == b"secret"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


STEPS = ["open", "write", "fsync", "check", "replace", "fsync folder"]


def break_at(step: str, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Let one step of `files.replace` fail as a disk would."""
    real_fsync, real_open = os.fsync, os.open

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    def fail_folder(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            fail()
        real_fsync(fd)

    def fail_file(fd: int) -> None:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            fail()
        real_fsync(fd)

    def open_full(path: str, flags: int, mode: int = 0o777) -> int:
        fd = real_open(path, flags, mode)
        if flags & os.O_EXCL:  # what is written to it goes to a disk that is full
            os.dup2(full := real_open("/dev/full", os.O_WRONLY), fd)
            os.close(full)
        return fd

    match step:
        case "open":
            monkeypatch.setattr(os, "open", fail)
        case "write":
            monkeypatch.setattr(os, "open", open_full)
        case "fsync":
            monkeypatch.setattr(os, "fsync", fail_file)
        case "replace":
            monkeypatch.setattr(Path, "replace", fail)
        case "fsync folder":
            monkeypatch.setattr(os, "fsync", fail_folder)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("there_before", [True, False])
def test_a_failure_at_any_step_leaves_one_whole_file_and_no_litter(
    step: str, there_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    if there_before:
        path.write_bytes(b"old")

    def check(_: Path) -> None:
        if step == "check":
            raise StoreError("no")

    break_at(step, monkeypatch, errno.ENOSPC)
    with pytest.raises(StoreError):
        files.replace(path, b"new", None, check)
    monkeypatch.undo()
    # Only when all but the last step is done may the new file be there, and then it must be.
    left = b"new" if step == "fsync folder" else b"old" if there_before else None
    assert (path.read_bytes() if path.exists() else None) == left
    assert [p.name for p in tmp_path.iterdir()] == ([] if left is None else ["x"])


@pytest.mark.parametrize("step", ["fsync", "replace", "fsync folder"])
def test_a_crash_at_any_step_leaves_one_whole_file(step: str, tmp_path: Path) -> None:
    """With a real process that really dies there."""
    path = tmp_path / "x"
    path.write_bytes(b"old")
    program = f"""
import os, signal, stat
from pathlib import Path
from trioproxy.certs import files

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

real = os.fsync
if {step!r} == "replace":
    Path.replace = die
else:
    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode) == ({step!r} == "fsync folder"):
            die()
        real(fd)
    os.fsync = fsync
files.replace(Path({str(path)!r}), b"new", None)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" if step == "fsync folder" else b"old")
    litter = [p for p in tmp_path.iterdir() if p != path]
    assert all(mode(p) == 0o600 for p in litter)
    assert len(litter) == (0 if step == "fsync folder" else 1)
    files.sweep(tmp_path, older_than=0.0)
    assert len(list(tmp_path.iterdir())) == 1 + len(litter)  # it may be another process's, at work
    files.sweep(tmp_path, older_than=2e9)
    assert list(tmp_path.iterdir()) == [path]


def test_the_check_sees_the_finished_file_before_it_is_in_place(tmp_path: Path) -> None:
    path = tmp_path / "x"
    seen = []

    def check(aside: Path) -> None:
        seen.append((aside.read_bytes(), aside.parent, path.exists(), mode(aside)))

    files.replace(path, b"new", None, check)
    assert seen == [(b"new", tmp_path, False, 0o600)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "No space left on device: make room"),
        (errno.EROFS, "Read-only file system: .*read-only"),
        (errno.EACCES, "Permission denied: run as the user"),
        (errno.EIO, "Input/output error: the disk reports errors"),
        (errno.ELOOP, "Too many levels of symbolic links"),
    ],
)
def test_an_error_names_path_cause_and_remedy(
    code: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_at("fsync", monkeypatch, code)
    with pytest.raises(StoreError, match=f"^{tmp_path}/x cannot be written: {words}") as caught:
        files.replace(tmp_path / "x", b"", None)
    assert isinstance(caught.value.__cause__, OSError)


# ---- folders and reading ------------------------------------------------------------------------------


def test_a_folder_is_its_owners_alone_and_one_that_was_open_is_closed(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a", None)
    assert mode(tmp_path / "a") == 0o700
    (tmp_path / "a").chmod(0o755)
    files.make_folder(tmp_path / "a", None)
    assert mode(tmp_path / "a") == 0o700


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file")
    with pytest.raises(StoreError, match="a/b cannot be made: Not a directory: a file stands"):
        files.make_folder(tmp_path / "a" / "b", None)


def test_a_file_that_was_open_to_others_is_closed_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"secret")
    path.chmod(0o644)
    assert files.read(path) == b"secret"
    assert mode(path) == 0o600
    assert "was open to other users" in caplog.text


def test_a_missing_file_is_none_and_an_unreadable_one_an_error(tmp_path: Path) -> None:
    assert files.read(tmp_path / "x") is None
    (tmp_path / "x").mkdir()
    with pytest.raises(StoreError, match="x cannot be read: Is a directory"):
        files.read(tmp_path / "x")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_gives_files_and_folders_to_the_owner(tmp_path: Path) -> None:
    files.make_folder(tmp_path / "a", (1234, 2345))
    files.replace(tmp_path / "a" / "x", b"", (1234, 2345))
    for path in (tmp_path / "a", tmp_path / "a" / "x"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


# ---- locks --------------------------------------------------------------------------------------------

HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(fd, fcntl.LOCK_EX)
os.write(1, b"held")
sys.stdin.read()
"""


async def test_tasks_take_turns(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    inside = 0
    turns = []

    async def take(number: int) -> None:
        nonlocal inside
        async with files.locked(tmp_path / "lock", None):
            inside += 1
            assert inside == 1
            await trio.sleep(1)
            turns.append(number)
            inside -= 1

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(take, number)
    assert sorted(turns) == [0, 1, 2]


async def test_waiting_for_a_lock_can_be_cancelled(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with files.locked(tmp_path / "lock", None):
        with trio.move_on_after(10) as scope:
            async with files.locked(tmp_path / "lock", None):
                pytest.fail("two hold one lock")
        assert scope.cancelled_caught
    async with files.locked(tmp_path / "lock", None):
        pass


async def test_another_process_is_waited_for_until_it_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    async with trio.open_nursery() as nursery:
        holder: trio.Process = await nursery.start(
            partial(
                trio.run_process,
                [sys.executable, "-c", HOLD, str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                check=False,
            )
        )
        assert holder.stdout is not None
        assert await holder.stdout.receive_some() == b"held"
        with trio.move_on_after(3 * files.LOOK_AGAIN) as scope:
            async with files.locked(path, None):
                pytest.fail("it is held by another process")
        assert scope.cancelled_caught
        holder.kill()
        with trio.fail_after(10):
            async with files.locked(path, None):
                pass


def test_the_brief_lock_excludes_others(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as other:
        with files.locked_briefly(path, None), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_a_lock_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be locked: No such file"):
        async with files.locked(tmp_path / "missing" / "lock", None):
            pass
