"""A name whose TLS ends at its backend: dial, hand both sockets to the pump, and sleep until they are done."""

from __future__ import annotations

import logging

import trio

from trioproxy.config.model import Passthrough, Timeouts
from trioproxy.errors import ConnectionLost, StreamTimeout, UpstreamError
from trioproxy.net.dial import dial
from trioproxy.net.peek import refuse
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext
from trioproxy.wire.alerts import Alert

log = logging.getLogger("trioproxy.passthrough")


async def serve_passthrough(ctx: ProxyContext, client: Stream, entry: Passthrough, timeouts: Timeouts) -> None:
    """Connect `client`, whose ClientHello still lies unread in the kernel, with the backend of `entry`.

    For a backend that cannot be reached the client gets the alert internal_error: it then says that the server
    failed, and not that TLS is broken.
    """
    client.deadline = float("inf")  # the dial has its own, and what follows is the pump's
    try:
        backend = await dial(entry.to, ctx.reaper, trio.current_time() + timeouts.connect)
    except UpstreamError as exc:
        log.warning("%s: the backend cannot be reached: %s", entry.name, exc)
        await refuse(client, Alert.INTERNAL_ERROR)
        return
    try:
        await ctx.pump.relay(client, backend, timeouts.tunnel)
    except ConnectionLost:
        # A reset is passed on as one: an end would make what has arrived look whole.
        backend.abort()
        client.abort()
    except StreamTimeout:
        log.info("%s: closed, silent for %g s", entry.name, timeouts.tunnel)
    finally:
        backend.close()
