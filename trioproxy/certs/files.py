"""Files that are replaced whole or not at all, and locks that die with their holder.

How a file is replaced: written beside its place under a name of its own, 0600 from its first byte; fsynced; looked at
by whoever knows what it should be; renamed over the old one; the directory fsynced. A crash at any point leaves the
old file or the new one, and at worst a `.….new` that `sweep` removes later.

All of it is synchronous, for it may wait for a disk: callers on the event loop go through a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio

from trioproxy.errors import StoreError

log = logging.getLogger("trioproxy.certs")

_NEW = ".new"

LOOK_AGAIN = 0.2
"""Seconds between attempts at a lock that somebody else holds."""

_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "raise the quota, or make room",
    errno.EROFS: "the file system is mounted read-only; a disk error may have caused that, so look at `dmesg`",
    errno.EIO: "the disk reports errors; look at `dmesg`, and at your backup",
    errno.EACCES: "run as the user that the folder belongs to, or give it to this one with `chown -R`",
    errno.EPERM: "run as the user that the folder belongs to, or give it to this one with `chown -R`",
    errno.ENOTDIR: "a file stands where a folder should be; move it away, or set storage.path to another place",
    errno.EMFILE: "too many files are open; raise LimitNOFILE",
    errno.ENOLCK: "the file system has no locks; set storage.path to a local disk",
}


@contextmanager
def explained(path: Path, doing: str) -> Iterator[None]:
    """Turn what the system has against an operation on `path` into a StoreError with cause and remedy.

    Args:
        path: The file or folder.
        doing: The operation, to stand after "cannot": "be read".
    """
    try:
        yield
    except OSError as exc:
        remedy = _REMEDIES.get(exc.errno or 0, "")
        cause = exc.strerror or str(exc)
        raise StoreError(f"{path} cannot {doing}: {cause}{f': {remedy}' if remedy else ''}") from exc


def make_folder(folder: Path, owner: tuple[int, int] | None) -> None:
    """Make `folder`, 0700, if it is not there; close it to others if it is ours and was open.

    Args:
        folder: Its parent must exist.
        owner: User and group to give it to; None keeps this process's.

    Raises:
        StoreError: it cannot be made.
    """
    with explained(folder, "be made"):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            if stat.S_IMODE(folder.stat().st_mode) & 0o077:
                folder.chmod(0o700)
        else:
            if owner is not None:
                os.chown(folder, *owner)


def replace(
    path: Path, data: bytes, owner: tuple[int, int] | None, check: Callable[[Path], object] | None = None
) -> None:
    """Put `data` at `path`, 0600; on any error what was there before stays.

    Args:
        path: In a folder that exists.
        data: The whole content.
        owner: User and group of the file; None keeps this process's.
        check: Called with the path of the finished file before it takes its place; what it raises stops that.

    Raises:
        StoreError: it cannot be written. If only the last step failed, the new file is in its place, but a loss of
            power may still undo that.
    """
    aside = path.with_name(f".{secrets.token_hex(8)}{_NEW}")
    try:
        with explained(path, "be written"):
            fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                if owner is not None:
                    os.fchown(fd, *owner)
                file.write(data)
                file.flush()
                os.fsync(fd)
        if check is not None:
            check(aside)
        with explained(path, "be written"):
            aside.replace(path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def write_into(path: Path, at: int, data: bytes) -> None:
    """Overwrite a part of a file that is there, and wait until that would survive a loss of power.

    It takes no new room, except where the file system never writes in place.

    Raises:
        StoreError: it cannot be written; what the part holds then is not known.
    """
    with explained(path, "be written"):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            while data:
                done = os.pwrite(fd, data, at)
                data, at = data[done:], at + done
            os.fsync(fd)
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` would survive a loss of power; OSError as it comes."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read(path: Path) -> bytes | None:
    """The content of a file of ours, None if there is none; closed to others if it was open to them.

    Raises:
        StoreError: it is there and cannot be read.
    """
    with explained(path, "be read"):
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with file:
            if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
                os.fchmod(file.fileno(), 0o600)
                log.warning("%s was open to other users of this machine; now it is not", path)
            return file.read()


def remove(path: Path) -> None:
    """Remove a file that may not be there. Raises StoreError if it stays."""
    with explained(path, "be removed"):
        path.unlink(missing_ok=True)


def sweep(folder: Path, older_than: float) -> None:
    """Remove what interrupted writers left behind. Never fails: it is only tidiness.

    Args:
        folder: Where to look; need not exist.
        older_than: Unix time; younger ones may be another process's, at work.
    """
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.startswith(".") and path.name.endswith(_NEW) and path.stat().st_mtime < older_than:
                path.unlink()


# ---- locks --------------------------------------------------------------------------------------------


def _take(path: Path, owner: tuple[int, int] | None, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of `path`; None if somebody else does and we are not to wait."""
    with explained(path, "be locked"):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if owner is not None:
                os.fchown(fd, *owner)
            fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        return fd


@asynccontextmanager
async def locked(path: Path, owner: tuple[int, int] | None) -> AsyncIterator[None]:
    """Hold the lock file `path` as long as the block runs, against other processes and other tasks of this one.

    It is flock(2): the kernel frees it when its holder ends, however that comes about. The file itself stays, for a
    lock on a file that somebody removes excludes nobody.

    Raises:
        StoreError: the file cannot be made or locked.
    """
    while (fd := _take(path, owner, wait=False)) is None:  # noqa: ASYNC110 - another process sets no event
        await trio.sleep(LOOK_AGAIN)
    try:
        yield
    finally:
        os.close(fd)


@contextmanager
def locked_briefly(path: Path, owner: tuple[int, int] | None) -> Iterator[None]:
    """The same for synchronous code; only for what all holders finish within milliseconds."""
    fd = _take(path, owner, wait=True)
    try:
        yield
    finally:
        if fd is not None:
            os.close(fd)
