"""A name whose TLS ends at its backend: dial, say who calls, hand both sockets to the pump, sleep until they are done.

How the backend learns the client's address is the entry's `client_ip`. "transparent" is the dial's business: the
connection itself comes from that address. The PROXY header of "proxy-v1" and "proxy-v2" is `_announcement`, sent whole
before anything of the client's. With "none" it learns nothing.
"""

from __future__ import annotations

import logging
import math
from time import perf_counter

import trio

from trioproxy.config.model import HostPort, Passthrough, Timeouts
from trioproxy.errors import ConnectionLost, ConnectionShed, StreamTimeout, UpstreamError
from trioproxy.net.listen import Peer
from trioproxy.net.peek import refuse
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext
from trioproxy.proxy.failure import outcome
from trioproxy.wire.alerts import Alert
from trioproxy.wire.client_hello import ClientHello
from trioproxy.wire.proxy_protocol import Endpoint, encode_v1, encode_v2
from trioproxy.witness.records import BROKEN_OFF, DONE, ENDED_HERE, Passage

log = logging.getLogger("trioproxy.passthrough")


async def serve_passthrough(
    ctx: ProxyContext, client: Stream, peer: Peer, entry: Passthrough, header: bytes, timeouts: Timeouts
) -> None:
    """Connect `client`, whose ClientHello still lies unread in the kernel, with a backend of `entry`.

    `header` (see `announcement`) goes to the backend first. When none can be reached the client gets the alert
    internal_error: it then says that the server failed, and not that TLS is broken.
    """
    client.deadline = math.inf  # the dial has its own, and what follows is the pump's
    try:
        whom, backend = await ctx.dialler.dial_first(
            entry.to, timeouts.connect, client=peer.host if entry.client_ip == "transparent" else ""
        )
    except UpstreamError as exc:
        log.warning("%s: the backend cannot be reached: %s (%s)", entry.name, exc, peer, extra={"site": entry.name})
        _tell(ctx, client, peer, entry, None, (0, 0), outcome(exc), str(exc))
        await refuse(client, Alert.INTERNAL_ERROR)
        return
    ctx.witness.passing(peer.number, peer.host, entry.name, whom)
    client.carried = backend.carried = 0
    how, why = DONE, ""
    try:
        if header:
            await backend.send_all(header)
        await ctx.pump.relay(client, backend, timeouts.tunnel)
    except ConnectionLost as exc:
        # A reset is passed on as one: an end would make what has arrived look whole.
        how, why = BROKEN_OFF, str(exc)
        backend.abort()
        client.abort()
    except StreamTimeout:
        how, why = ENDED_HERE, f"silent for {timeouts.tunnel:g} s"
        log.info("%s: closed, %s (%s)", entry.name, why, peer)
    except ConnectionShed as exc:
        how, why = ENDED_HERE, str(exc)
    except trio.Cancelled:
        how, why = ENDED_HERE, "the server stops"
        raise
    finally:
        backend.close()
        _tell(ctx, client, peer, entry, whom, (client.carried, backend.carried), how, why)


def _tell(  # apart, for what a frame can name takes room as long as it sleeps
    ctx: ProxyContext,
    client: Stream,
    peer: Peer,
    entry: Passthrough,
    whom: HostPort | None,
    carried: tuple[int, int],
    how: str,
    why: str,
) -> None:
    up, down = carried
    began = ctx.guests[client].since
    passage = Passage(peer.number, peer.host, entry.name, whom, began, perf_counter(), up, down, how, why)
    ctx.witness.passage(passage)


def announcement(ctx: ProxyContext, client: Stream, peer: Peer, hello: ClientHello, entry: Passthrough) -> bytes:
    """The PROXY header for the backend; b"" where none is due."""
    if entry.client_ip not in ("proxy-v1", "proxy-v2"):
        return b""
    source = Endpoint(peer.host, peer.port)
    reached = peer.local or client.local()
    destination = Endpoint(reached.host, reached.port)
    if entry.client_ip == "proxy-v1":
        return encode_v1(source, destination)
    unique_id = b"%b-%d" % (ctx.pseudonym, peer.number)
    log.debug("%s: %s is %s at %s", entry.name, peer, unique_id.decode(), entry.to[0])
    return encode_v2(
        source,
        destination,
        # Of several protocols it is the backend's TLS that chooses, so only a single one can be told.
        alpn=hello.alpn[0] if len(hello.alpn) == 1 else b"",
        authority=(hello.server_name or "").encode(),
        unique_id=unique_id,
    )
