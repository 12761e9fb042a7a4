"""Port 443: look at the ClientHello without taking it, and show the connection to its place."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from time import perf_counter
from typing import Any

from trioproxy.config.model import Passthrough
from trioproxy.errors import AccessDenied, HelloError, MissingServerName, SilentPeer, UnknownServerName
from trioproxy.net.listen import Peer
from trioproxy.net.peek import peek_client_hello, refuse
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Stream
from trioproxy.proxy import proof
from trioproxy.proxy.admission import Rest, admit, permitted
from trioproxy.proxy.context import Guest, ProxyContext
from trioproxy.proxy.passthrough import announcement, serve_passthrough
from trioproxy.proxy.terminate import serve_site
from trioproxy.wire.client_hello import ClientHello

log = logging.getLogger("trioproxy.front_door")


def serve_tls(ctx: ProxyContext, sock: Socket, peer: Peer) -> Coroutine[Any, Any, None]:
    """Serve one connection that was accepted on an https listener, from its first byte to its last.

    It is `admit`'s own coroutine that is returned: another one around it would be kept as long as a tunnel lasts.

    Args:
        ctx: The running proxy.
        sock: The accepted socket, non-blocking; closed when this returns.
        peer: Where it comes from.
    """
    return admit(ctx, sock, peer, "https", _show_in)


async def _show_in(ctx: ProxyContext, stream: Stream, peer: Peer) -> Rest:
    snapshot = ctx.cell.current
    hello: ClientHello | None = None
    try:
        hello = await peek_client_hello(stream)
        entry, by_default = snapshot.entry_for(hello.server_name)
        if entry is None:
            raise _nowhere_to_go(hello)
        if (pem := proof.asked_for(ctx, hello, entry)) is not None:
            return proof.show(ctx.board, stream, peer, hello.server_name or "", pem)
        if not (entry.access.open or permitted(ctx, entry, peer)):
            raise AccessDenied(f"{hello.server_name or entry.name} is not open to this client")
    except SilentPeer:
        raise
    except HelloError as exc:
        name = (hello.server_name if hello is not None else None) or ""
        log.info("%s: refused: %s", peer, exc, extra={"site": name})
        ctx.witness.refused(peer.number, peer.host, name, str(exc))
        await refuse(stream, exc.alert)
        return None
    ctx.witness.named(peer.number, peer.host, hello, entry.name)
    ctx.guests[stream] = Guest(peer, entry, perf_counter())  # until `admit` sees them out
    if isinstance(entry, Passthrough):
        header = announcement(ctx, stream, peer, hello, entry)
        return serve_passthrough(ctx, stream, peer, entry, header, snapshot.config.timeouts)
    return serve_site(ctx, stream, peer, entry, by_default=by_default)


def _nowhere_to_go(hello: ClientHello) -> HelloError:
    if hello.server_name is None:
        return MissingServerName("the client sent no server name, and listen.no_sni names no entry for such clients")
    return UnknownServerName(f"{hello.server_name} is configured nowhere")
