"""What a request to a site gets: its authority checked, its route found, and the exchange with the backend."""

from __future__ import annotations

import functools

from trioproxy.config.model import Site
from trioproxy.errors import InvalidName, RequestError
from trioproxy.http.messages import RequestHead
from trioproxy.names import split_authority
from trioproxy.proxy.admission import permitted
from trioproxy.proxy.asking import Asking
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import ProxyContext, Visit
from trioproxy.proxy.exchange import prepare, strict_transport
from trioproxy.routing import RouteTable


async def answer_site(ctx: ProxyContext, visit: Visit, request: RequestHead, client: Client) -> None:
    """Answer one request that came over a terminated connection.

    Raises:
        RequestError: with the status to answer: 421 for an authority that does not belong here, 403 for a client that
            may not ask, 404 for no route.
        UpstreamError: the backend failed before its response was passed on.
        ResponseAborted: it failed later.
    """
    asking = prepare_site(ctx, visit, request, client)
    if asking is not None:
        await asking.run()


def prepare_site(ctx: ProxyContext, visit: Visit, request: RequestHead, client: Client) -> Asking | None:
    """Find out who is to be asked; None for a redirect, which is answered. Raises RequestError as `answer_site`."""
    routes, found = ctx.cell.current.routes, visit.found
    if found is None or found[0] is not routes or found[1] != request.authority:
        found = visit.found = (routes, request.authority, _site_for(routes, visit, request.authority))
    site = found[2]
    client.record.name = site.name
    if site.hsts:
        client.own_fields = strict_transport(visit, site)
    # Asked again: a reload may have changed the rule.
    if not site.access.open and not permitted(ctx, site, visit.peer):
        raise RequestError(f"{site.name} is not open to this client", 403)
    return prepare(ctx, visit, site, request, client)


@functools.lru_cache(maxsize=4096)  # which every request asks, and few ask for something new
def requested_name(authority: bytes) -> str | None:
    """The normalised host of an authority, None when it is empty (HTTP/1.0 without Host)."""
    if not authority:
        return None
    try:
        return split_authority(authority.decode("ascii"))[0]
    except (InvalidName, UnicodeDecodeError):
        raise RequestError("the Host header is not a host name") from None


def _site_for(routes: RouteTable, visit: Visit, authority: bytes) -> Site:
    name = requested_name(authority)
    entry = visit.entry
    if entry is None or (name is not None and not visit.may_ask_for(name, routes)):
        raise RequestError(f"this connection is not for {name}", 421)
    site = routes.entries.get(entry.name)  # looked up again: a reload may have changed it since the handshake
    if not isinstance(site, Site):
        raise RequestError(f"{entry.name} is no longer served here", 421)
    return site
