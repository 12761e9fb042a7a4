"""One request and its response: the request goes to the backend of its route, the response comes back, both streamed.

Here its way is chosen; `asking` goes it.
"""

from __future__ import annotations

from collections.abc import Sequence

from trioproxy.config.model import Route, Site
from trioproxy.http.messages import Header, RequestHead
from trioproxy.net.listen import Peer
from trioproxy.proxy.asking import Asking
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.routing import Redirect, choose
from trioproxy.wire.proxy_protocol import Endpoint, encode_v1, encode_v2


async def exchange(ctx: ProxyContext, visit: Visit, site: Site, request: RequestHead, client: Client) -> None:
    """Route `request` within `site` and answer it.

    Raises:
        RequestError: no route, or one that depends on how the path is read.
        UpstreamError: the backend failed before its response was passed on.
        ResponseAborted: the backend failed later.
        StreamError: the client was lost.
    """
    asking = prepare(ctx, visit, site, request, client)
    if asking is not None:
        await asking.run()


def prepare(ctx: ProxyContext, visit: Visit, site: Site, request: RequestHead, client: Client) -> Asking | None:
    """Route `request` within `site`. None when it leads to a redirect, which is answered.

    Raises:
        RequestError: no route, or one that depends on how the path is read.
    """
    hsts = strict_transport(visit, site) if site.hsts else ()
    choice = choose(site, request.target)
    if isinstance(choice, Redirect):
        client.answer(308, [(b"location", choice.location), *hsts], b"")
        return None
    route = client.record.route = choice.route
    if ctx.witness.followers:
        ctx.witness.under_way(client.record, "routed")
    if route.timeouts.idle != site.timeouts.idle:
        client.bear(route.timeouts.idle)
    fields = visit.rewriter.written(request, choice.prefix)
    header = announcement(route, visit.peer, client) if route.proxy_protocol else b""
    return Asking(ctx, request, choice, fields, client, header, hsts)


def strict_transport(visit: Visit, site: Site) -> Sequence[Header]:
    """The field Strict-Transport-Security, where it is due: RFC 6797 section 7.2 forbids it over http."""
    if not site.hsts or visit.arrival.scheme != "https":
        return ()
    return ((b"strict-transport-security", b"max-age=%d" % site.hsts),)


def announcement(route: Route, peer: Peer, client: Client) -> bytes:
    """The PROXY header of a route, which speaks for one connection of one client. Raises ConnectionLost."""
    reached = peer.local or client.local()
    encode = encode_v1 if route.proxy_protocol == "v1" else encode_v2
    return encode(Endpoint(peer.host, peer.port), Endpoint(reached.host, reached.port))
