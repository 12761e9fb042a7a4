"""Connections by the names that they came for: counted, listed, and shown out when their name is no longer here."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import trio

from trioproxy.errors import ConnectionShed
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext

AT_LAST = 2.0
"""Seconds after which a connection that was told to end, and waits for something else, is reset."""


LOOK_AGAIN = 0.02
"""Seconds between two looks whether they have ended."""


def homeless(ctx: ProxyContext) -> list[Stream]:
    """Connections whose entry is not configured now, or is a site now and was none, or the other way round."""
    configured = ctx.cell.current.routes.entries
    return [
        stream
        for stream, guest in ctx.guests.items()
        if type(configured.get(guest.entry.name)) is not type(guest.entry)
    ]


def ask_to_leave(ctx: ProxyContext, streams: Iterable[Stream]) -> None:
    """End those that wait for a next request; the others are at work, and may finish it.

    Connections that carry several requests at once look for themselves whether their entry is still there.
    """
    for stream in streams:
        if stream in ctx.drain.idle:
            stream.interrupt()


async def show_out(ctx: ProxyContext, streams: Collection[Stream], why: str) -> None:
    """End connections whatever they are at. Returns when they have ended, or were reset."""
    staying = [stream for stream in streams if stream in ctx.guests]
    sockets = {stream.sock for stream in staying}
    for relay in list(ctx.pump.relays()):
        if relay.forth.source in sockets:
            relay.interrupt(ConnectionShed(why))
    for stream in staying:
        stream.interrupt(ConnectionShed(why))
    if not staying:
        return
    with trio.move_on_after(AT_LAST):
        while any(stream in ctx.guests for stream in staying):  # noqa: ASYNC110 - there is no event
            await trio.sleep(LOOK_AGAIN)
    for stream in staying:
        if stream in ctx.guests:  # it waits for its backend, and would not notice otherwise
            stream.abort()
