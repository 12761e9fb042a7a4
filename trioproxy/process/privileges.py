"""Root binds, and then there is no root any more: the way down, and the proof of having arrived.

Linux keeps users and capabilities for each thread. `setresuid` and its kin are told to all threads by the C library;
capabilities are not, so this must happen before a second thread is started. Threads inherit from the one that starts
them.

What is kept is kept as ambient capabilities too: only those survive an exec by an ordinary user, which `trioproxy
upgrade` does. There is no libcap here: four system calls by ctypes are all that is needed.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import logging
import os
import pwd
import resource
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

import attrs

from trioproxy.errors import TrioproxyError

log = logging.getLogger("trioproxy.process")

CAP_NET_BIND_SERVICE = 10  # linux/capability.h
CAP_NET_RAW = 13

NAMES = {CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE", CAP_NET_RAW: "CAP_NET_RAW"}

# linux/prctl.h
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP = 3, 4, 8, 24
_PR_SET_NO_NEW_PRIVS, _PR_GET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 38, 39, 47
_AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 4

_VERSION_3 = 0x20080522


class PrivilegeError(TrioproxyError):
    """Privileges that cannot be given up as the configuration says; nothing is served then."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_libc = ctypes.CDLL(None, use_errno=True)


@attrs.frozen
class Account:
    """A user of this machine.

    Attributes:
        groups: All of them, the first one too.
    """

    name: str
    uid: int
    gid: int
    groups: frozenset[int]


def account(user: str) -> Account:
    """The user of that name. Raises PrivilegeError if there is none, or if it is root."""
    try:
        found = pwd.getpwnam(user)
    except KeyError as exc:
        raise PrivilegeError(
            f"process.user: there is no user {user} on this machine: `trioproxy install-service` makes one, "
            f"or `adduser --system --group {user}`"
        ) from exc
    if found.pw_uid == 0:
        raise PrivilegeError(f"process.user: {user} is root, and to become root is to give nothing up")
    return Account(user, found.pw_uid, found.pw_gid, frozenset(os.getgrouplist(user, found.pw_gid)))


def forbid_dumps() -> None:
    """Keep keys out of core files, and other processes of the same user out of our memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def drop(user: str, keep: Collection[int]) -> None:
    """Become `user` for good, with the capabilities `keep`, as far as we have them, and no others.

    For a process that is that user already, only what it has beyond that is given up.

    Raises:
        PrivilegeError: there is no such user, or it cannot be done; or it does not look done.
    """
    who = account(user)
    if os.geteuid() not in (0, who.uid):
        raise PrivilegeError(f"process.user: only root can become {user}; run this as root, or as {user}, or unset it")
    kept = _permitted() & sum(1 << capability for capability in keep)
    try:
        if os.geteuid() == 0:
            _bound(kept)
            _prctl(_PR_SET_KEEPCAPS, 1)  # else the permitted ones would go with root
            os.setgroups(sorted(who.groups))
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
            _prctl(_PR_SET_KEEPCAPS, 0)
            _capset(kept)
        else:
            kept = _reduce(kept)
        _prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL)
        for capability in keep:
            if kept >> capability & 1:
                _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, capability)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        forbid_dumps()
    except OSError as exc:
        raise PrivilegeError(f"process.user: {user} cannot be become: {exc.strerror or exc}") from exc
    _prove(who, kept)
    having = ", ".join(name for number, name in NAMES.items() if kept >> number & 1) or "no capability"
    log.info("running as %s (uid %d), with %s; no new privileges, no core dumps", user, who.uid, having)
    if CAP_NET_BIND_SERVICE in keep and not kept >> CAP_NET_BIND_SERVICE & 1:
        log.warning("this process had no CAP_NET_BIND_SERVICE to keep: a reload cannot bind ports below 1024")


def give_folder(folder: Path, user: str) -> None:
    """As root, see to it that `user` owns `folder`: it is made, 0700, where it is missing, and given where it is empty.

    Raises:
        PrivilegeError: it belongs to another user, and holds something.
    """
    who = account(user)
    if os.geteuid() != 0:
        return
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.stat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid == who.uid:
            return
        if any(folder.iterdir()):
            raise PrivilegeError(
                f"{folder} belongs to {_called(status.st_uid)}, and process.user is {user}, who could not use it: "
                f"`chown -R {user}:{grp.getgrgid(who.gid).gr_name} {folder}`"
            )
        os.chown(folder, who.uid, who.gid)
    except OSError as exc:
        raise PrivilegeError(f"{folder} cannot be given to {user}: {exc.strerror or exc}") from exc


@contextlib.contextmanager
def acting_as(user: str) -> Iterator[None]:
    """As root, see files with the eyes of `user` as long as the block runs; for anybody else nothing changes.

    Only for a process of one thread. Raises PrivilegeError if there is no such user.
    """
    if not user or os.geteuid() != 0:
        yield
        return
    who = account(user)
    group, groups = os.getegid(), os.getgroups()
    os.setgroups(sorted(who.groups))
    os.setresgid(who.gid, who.gid, -1)
    # The way back is the saved user. access(2) goes by the real one, and no capability is effective meanwhile.
    os.setresuid(who.uid, who.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(group, group, -1)
        os.setgroups(groups)


def _called(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# ---- the proof ----------------------------------------------------------------------------------------


def _prove(who: Account, kept: int) -> None:
    """Look whether all is as it was asked for, in every thread. Raises PrivilegeError."""
    wrong = []
    if os.getresuid() != (who.uid,) * 3 or os.getresgid() != (who.gid,) * 3:
        wrong.append(f"it is {os.getresuid()}, {os.getresgid()}")
    if frozenset(os.getgroups()) - who.groups:
        wrong.append(f"it is in the groups {sorted(os.getgroups())}")
    if not _prctl(_PR_GET_NO_NEW_PRIVS) or _prctl(_PR_GET_DUMPABLE):
        wrong.append("it could still gain privileges, or leave a core file")
    for thread in Path("/proc/self/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        fields = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        if set(fields["Uid"]) != {str(who.uid)} or int(fields["CapPrm"][0], 16) & ~kept:
            wrong.append(f"its thread {thread.name} has uids {fields['Uid']} and capabilities {fields['CapPrm'][0]}")
    if wrong:
        raise PrivilegeError(f"process.user: this process should be {who.name} and no more, but {'; '.join(wrong)}")


# ---- the system calls ---------------------------------------------------------------------------------


def _prctl(option: int, *arguments: int) -> int:
    values = (*arguments, 0, 0, 0, 0)[:4]
    result: int = _libc.prctl(option, *(ctypes.c_ulong(value) for value in values))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def may(capability: int) -> bool:
    """Whether this process has `capability`, by its number."""
    return bool(_permitted() >> capability & 1)


def _permitted() -> int:
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()
    if _libc.capget(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(sets[0].permitted) | int(sets[1].permitted) << 32


def _capset(kept: int) -> None:
    low, high = kept & 0xFFFFFFFF, kept >> 32
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)(_Sets(low, low, low), _Sets(high, high, high))
    if _libc.capset(ctypes.byref(header), sets):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _reduce(kept: int) -> int:
    """As an ordinary user, have no capabilities but `kept`. Returns what has come of it.

    A unit's SystemCallFilter= may forbid to change them, and then the unit's own choice stands.
    """
    permitted = _permitted()
    if permitted == kept:
        return kept
    try:
        _capset(kept)
    except PermissionError:
        return permitted
    return kept


def _bound(kept: int) -> None:
    """Take all other capabilities out of what an exec can ever give. Without CAP_SETPCAP that must do without."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    with contextlib.suppress(PermissionError):
        for capability in range(last + 1):
            if not kept >> capability & 1:
                _prctl(_PR_CAPBSET_DROP, capability)
