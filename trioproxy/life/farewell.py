"""Seeing out those whose name a reload has taken away.

Connections that wait for a next request end at once, the others within `timeouts.drain`.
"""

from __future__ import annotations

import trio

from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext
from trioproxy.proxy.guests import ask_to_leave, homeless, show_out


class Farewell:
    """Sees out whom a reload has made homeless.

    Attributes:
        asked: To be set after each reload.
    """

    def __init__(self, ctx: ProxyContext) -> None:
        self.asked = trio.Event()
        self._ctx = ctx

    async def run(self) -> None:
        """See them out, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self.asked.wait()
                self.asked = trio.Event()
                if leaving := homeless(self._ctx):
                    ask_to_leave(self._ctx, leaving)
                    nursery.start_soon(self._give_time, leaving)

    async def _give_time(self, leaving: list[Stream]) -> None:
        """Whoever is still homeless after `timeouts.drain` is shown out; a name may have come back meanwhile."""
        await trio.sleep(self._ctx.cell.current.config.timeouts.drain)
        still = set(homeless(self._ctx)) & set(leaving)
        await show_out(self._ctx, still, "its name is not configured any more")
