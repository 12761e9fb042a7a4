"""How workers come to know what is published: challenges, and certificates that were replaced.

What a worker is told is how things are when it is told, not what has happened to them. So nothing is queued but names,
whatever happens twice meanwhile is told once, and a worker that comes later needs no history.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Set
from typing import Any

from trioproxy.config.model import Config
from trioproxy.life.member import Member
from trioproxy.life.shared import SharedBoard, SharedCell, SharedSource

log = logging.getLogger("trioproxy.workers")

AT_ONCE = 500
"""Names that one message tells of: making a context takes a millisecond, in which a worker does nothing else."""


class Tidings:
    """Tells workers.

    Args:
        cell: Its changes are told.
        board: The same.
        source: Knows what users' files held.

    Attributes:
        cell: The first of them.
        members: Lists all workers there are at the moment.
    """

    def __init__(self, cell: SharedCell, board: SharedBoard, source: SharedSource) -> None:
        self.cell = cell
        self.members: Callable[[], Iterable[Member]] = tuple
        self._board = board
        self._source = source
        self._published = 0
        cell.changed = self._note
        board.changed = lambda: self._note(frozenset())
        board.settled = self.settled

    def _note(self, names: Set[str]) -> None:
        self._published += 1
        for member in self.members():
            member.unseen |= names
            member.wanted.set()

    async def settled(self) -> None:
        """Wait until every worker that accepts has what was published before, or is gone."""
        published = self._published
        for member in list(self.members()):
            while member.accepting and member.acknowledged < published:
                await member.moved.wait()

    async def bring(self, member: Member) -> None:
        """Tell one worker all that it does not have. Raises WorkerGone and ControlError."""
        while member.acknowledged < self._published:
            published = self._published
            names = set(itertools.islice(member.unseen, AT_ONCE))
            member.unseen -= names
            certificates = [self._certificate(name) for name in names]
            answer = await member.ask("update", board=self._board.contents(), certificates=certificates)
            for name, problem in answer["problems"].items():
                log.error("%s  %s does not serve its new certificate yet: %s", name, member, problem)
            if not member.unseen:
                member.acknowledged = published
                member.tell_moved()
            member.unseen |= answer["problems"].keys()  # to be tried again, with whatever comes next

    def _certificate(self, name: str) -> dict[str, Any]:
        pem = self._source.of_files.get(name, b"")
        return {"name": name, "awaiting": name in self.cell.current.awaiting, "pem": pem.decode()}

    def configuration(self, config: Config) -> dict[str, Any]:
        """What a worker needs to go by `config`."""
        return {"text": config.text, "path": str(config.path), "storage": str(config.storage)}

    def everything(self, member: Member) -> dict[str, Any]:
        """What a new worker needs to know."""
        member.acknowledged = self._published
        return {
            **self.configuration(self.cell.current.config),
            "board": self._board.contents(),
            "awaiting": sorted(self.cell.current.awaiting),
            "certificates": [self._certificate(name) for name in self._source.of_files],
        }
