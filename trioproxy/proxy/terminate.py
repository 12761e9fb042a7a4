"""A site: TLS ends here, on the very socket whose ClientHello was looked at, with that site's own certificate."""

from __future__ import annotations

import math
from time import perf_counter

from trioproxy.config.model import Site
from trioproxy.errors import StreamError
from trioproxy.http.rewriting import Rewriter
from trioproxy.net.listen import Peer
from trioproxy.net.sock import Stream
from trioproxy.proxy.admission import Rest
from trioproxy.proxy.context import ProxyContext, Visit, arrival
from trioproxy.proxy.serve_h1 import serve_h1
from trioproxy.proxy.site import answer_site, prepare_site
from trioproxy.witness.records import DONE


async def serve_site(ctx: ProxyContext, stream: Stream, peer: Peer, site: Site, *, by_default: bool) -> Rest:
    """Do the handshake with the context of `site`; what is left is to serve what ALPN chose of that which it offers.

    Raises:
        StreamError: the handshake failed, or the client was lost.
    """
    snapshot = ctx.cell.current
    stream.deadline = ctx.reaper.now() + snapshot.config.timeouts.hello
    began = perf_counter()
    try:
        await stream.start_tls_server(snapshot.contexts.of(site))
    except StreamError as exc:
        ctx.witness.handshake(peer.number, peer.host, site.name, "", perf_counter() - began, str(exc))
        raise
    protocol = stream.alpn()
    ctx.witness.handshake(peer.number, peer.host, site.name, protocol or "", perf_counter() - began, DONE)
    stream.deadline = math.inf
    listen = snapshot.config.listen
    came = arrival(listen, peer, "https", listen.public_https_port)
    visit = Visit(peer, came, site, by_default, Rewriter(came, ctx.pseudonym))
    if protocol == "h2":
        from trioproxy.proxy.serve_h2 import serve_h2  # offered only where ngh2 is there

        return serve_h2(ctx, stream, visit, prepare_site)
    return serve_h1(ctx, stream, visit, answer_site, prepare_site)
