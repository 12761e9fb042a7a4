"""The places of workers, each with sockets that are its own, and who accepts from those while nobody is there."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from typing import Any

import attrs
import trio

from trioproxy.errors import ControlError
from trioproxy.life.member import Member, WorkerGone
from trioproxy.life.sockets import Key, Sockets, share

log = logging.getLogger("trioproxy.workers")


@attrs.define
class Seat:
    """A worker's place.

    Attributes:
        number: From 0 on.
        member: Who has it, or had it last.
        stand_in: Who accepts from its sockets while nobody has it.
        served: Set when it has had a worker that serves.
    """

    number: int
    member: Member | None = None
    stand_in: Member | None = None
    served: trio.Event = attrs.field(factory=trio.Event)


class Seats:
    """All of them.

    Args:
        count: How many.
        sockets: Where connections come in.

    Attributes:
        all: Each seat.
        closed: Whoever leaves now is not missed.
    """

    def __init__(self, count: int, sockets: Sockets) -> None:
        self.all = [Seat(number) for number in range(count)]
        self.closed = False
        self._sockets = sockets
        self._turn = trio.Lock()

    def members(self) -> list[Member]:
        """The workers there are."""
        return [seat.member for seat in self.all if seat.member is not None]

    def accepting(self) -> list[Member]:
        """Those of them that serve."""
        return [member for member in self.members() if member.accepting]

    def places(self, slot: int, keys: Sequence[Key]) -> tuple[list[list[Any]], list[socket.socket]]:
        """The sockets of one seat among those of `keys`, and what they are, one by one."""
        places: list[list[Any]] = []
        socks: list[socket.socket] = []
        for kind, address in keys:
            mine = share(self._sockets.open[kind, address], slot, len(self.all))
            socks += mine
            places += [[kind, address.host, address.port]] * len(mine)
        return places, socks

    async def cover(self) -> None:
        """Have somebody accept in the place of each worker that does not."""
        async with self._turn:
            for seat in self.all:
                serving = self.accepting()
                if self.closed or not serving or not seat.served.is_set():
                    continue
                if seat.member not in serving and seat.stand_in not in serving:
                    await self._cover(seat, serving[seat.number % len(serving)])

    async def _cover(self, seat: Seat, other: Member) -> None:
        # Where workers share a socket, none of them is missed.
        keys = [key for key, bound in self._sockets.open.items() if len(bound.socks) >= len(self.all)]
        if keys:
            seat.stand_in = other
            places, socks = self.places(seat.number, keys)
            await tell(other, "stand_in", socks, slot=seat.number, sockets=places)

    async def relieve(self, seat: Seat) -> None:
        """Its worker is there."""
        async with self._turn:
            stand_in, seat.stand_in = seat.stand_in, None
        if stand_in is not None and stand_in.accepting:
            await tell(stand_in, "stand_down", slot=seat.number)
        await self.cover()  # where there was nobody to stand in before


async def tell(worker: Member, word: str, socks: Sequence[socket.socket] = (), **more: Any) -> None:
    """Have a worker do what is not missed if it does not."""
    try:
        await worker.ask(word, socks, **more)
    except (WorkerGone, ControlError) as exc:
        log.debug("%s", exc)
