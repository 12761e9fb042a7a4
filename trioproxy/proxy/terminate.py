"""A site: TLS ends here, on the very socket whose ClientHello was looked at, with that site's own certificate."""

from __future__ import annotations

import math

import trio

from trioproxy.config.model import Site
from trioproxy.net.listen import Peer
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext, Visit, arrival
from trioproxy.proxy.serve_h1 import serve_h1
from trioproxy.proxy.site import answer_site


async def serve_site(ctx: ProxyContext, stream: Stream, peer: Peer, site: Site, *, by_default: bool) -> None:
    """Do the handshake with the context of `site`, then serve what ALPN chose of that which its context offers.

    Raises:
        StreamError: the handshake failed, or the client was lost.
    """
    snapshot = ctx.cell.current
    stream.deadline = trio.current_time() + snapshot.config.timeouts.hello
    await stream.start_tls_server(snapshot.contexts.of(site))
    stream.deadline = math.inf
    listen = snapshot.config.listen
    visit = Visit(peer, arrival(listen, peer, "https", listen.public_https_port), site, by_default)
    if stream.alpn() == "h2":
        from trioproxy.proxy.serve_h2 import serve_h2  # offered only where ngh2 is there

        await serve_h2(ctx, stream, visit, answer_site)
    else:
        await serve_h1(ctx, stream, visit, answer_site)
