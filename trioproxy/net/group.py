"""Several sockets that listen at one address, for as many processes: the kernel spreads connections over them.

Each has a queue of its own. What waits in it is lost when the last descriptor of that socket is closed, so somebody
keeps all of them open whoever comes and goes.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Sequence

from trioproxy.config.model import HostPort
from trioproxy.errors import ListenError
from trioproxy.net.listen import BACKLOG, bind, prepare

log = logging.getLogger("trioproxy.listen")


def bind_group(address: HostPort, count: int, *, optional: bool) -> tuple[socket.socket, ...]:
    """Listen on an address with `count` sockets, over which the kernel spreads connections; raises as `bind`.

    Returns:
        The sockets; none if the address is skipped.
    """
    first = bind([address], optional=optional)
    if count == 1 or not first:
        return tuple(first)
    try:
        return (*first, *_beside(first[0], count - 1))
    except OSError as exc:
        first[0].close()
        raise ListenError(f"{address}: cannot listen with {count} sockets: {exc.strerror or exc}") from exc


def extend(group: Sequence[socket.socket], count: int) -> tuple[socket.socket, ...]:
    """Up to `count` more sockets that listen where `group` does.

    None come where that is not possible: whoever has bound the first ones was another user.
    """
    try:
        return _beside(group[0], count)
    except OSError as exc:
        log.info("%s: no further sockets can listen there: %s", HostPort(*group[0].getsockname()[:2]), exc.strerror)
        return ()


def _beside(first: socket.socket, count: int) -> tuple[socket.socket, ...]:
    """So many more sockets where `first` listens, or none and an OSError.

    `first` was bound without SO_REUSEPORT, so it has found out whether the address was free. It gets the option only
    now, and then takes part in the group like all others.
    """
    first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    with contextlib.ExitStack() as undo:
        more = [undo.enter_context(_one_more(first)) for _ in range(count)]
        undo.pop_all()
    return tuple(more)


def _one_more(first: socket.socket) -> socket.socket:
    sock = socket.socket(first.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        prepare(sock)
        sock.bind(first.getsockname())
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
