"""Taking capabilities away from the running thread for a while (capset(2)), to see what happens without them."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

CAP_NET_ADMIN = 12
CAP_NET_RAW = 13

_VERSION_3 = 0x20080522  # linux/capability.h


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


@contextmanager
def without(*capabilities: int) -> Iterator[None]:
    """Lack these for as long as the block; nothing changes for who never had them."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = _Header(_VERSION_3, 0), (_Sets * 2)()

    def call(function: str) -> None:
        if getattr(libc, function)(ctypes.byref(header), sets):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    call("capget")
    before = sets[0].effective
    for capability in capabilities:
        sets[0].effective &= ~(1 << capability)
    call("capset")
    try:
        yield
    finally:
        sets[0].effective = before
        call("capset")
