"""Parts of a server that more than one kind of process is made of."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

from trioproxy.certs.contexts import ContextSource
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Config
from trioproxy.net.dial import Dialler
from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper
from trioproxy.proxy.context import Drain, ProxyContext
from trioproxy.proxy.pool import Pool
from trioproxy.routing import RouteTable
from trioproxy.snapshot import Cell, Contexts, Snapshot


def pseudonym() -> bytes:
    """A name for Via that no other proxy has."""
    return b"trioproxy-" + secrets.token_hex(4).encode()


def proxy_context(
    cell: Cell,
    board: ChallengeBoard,
    reaper: Reaper,
    *,
    called: bytes | None = None,
    numbers: Iterator[int] | None = None,
) -> ProxyContext:
    """The parts of a proxy that goes by `cell` and answers the challenges of `board`.

    Args:
        cell: Holds what it goes by.
        board: Where challenges are answered.
        reaper: Looks after its streams.
        called: Its pseudonym; by default one of its own.
        numbers: For its connections; by default all from 1 on.
    """
    dialler = Dialler(reaper)
    return ProxyContext(
        cell=cell,
        board=board,
        reaper=reaper,
        pump=Pump(reaper),
        dialler=dialler,
        pool=Pool(dialler, reaper),
        drain=Drain(),
        pseudonym=called or pseudonym(),
        numbers=numbers or itertools.count(1),
    )


def snapshot_of(config: Config, source: ContextSource) -> Snapshot:
    """What a proxy goes by, with contexts that `source` makes when they are needed."""
    return Snapshot(config, RouteTable.of(config), Contexts(source.context_for), source.awaiting(config))
