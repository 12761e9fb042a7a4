"""Port 80: our own challenges, then what a passthrough's backend needs for its own, then the way to https.

The order is fixed in code and no setting changes it: a redirect or an access rule that swallows an ACME challenge is
how renewals fail silently.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Coroutine
from typing import Any

from trioproxy.challenges import HTTP01_PREFIX, TOKEN
from trioproxy.config.model import Config, HostPort, Passthrough, Route, Site, Target
from trioproxy.errors import RequestError
from trioproxy.http.messages import RequestHead
from trioproxy.http.rewriting import Rewriter
from trioproxy.net.listen import Peer
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Stream
from trioproxy.proxy.admission import admit, permitted
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import ProxyContext, Visit, arrival
from trioproxy.proxy.exchange import exchange
from trioproxy.proxy.serve_h1 import serve_h1
from trioproxy.proxy.site import requested_name
from trioproxy.routing import route_for

log = logging.getLogger("trioproxy.plain")

BACKENDS_OWN = ("/.well-known/", "/.freepbx-known/")
"""Where the backend of a passthrough name answers its own challenges. FreePBX has a folder of its own for them."""


def serve_plain(ctx: ProxyContext, sock: Socket, peer: Peer) -> Coroutine[Any, Any, None]:
    """Serve one connection that was accepted on an http listener; `sock` is closed when this returns."""
    return admit(ctx, sock, peer, "http", _converse)


def _converse(ctx: ProxyContext, stream: Stream, peer: Peer) -> Awaitable[None]:
    stream.deadline = math.inf  # requests have limits of their own
    came = arrival(ctx.cell.current.config.listen, peer, "http", 80)
    visit = Visit(peer, came, None, by_default=True, rewriter=Rewriter(came, ctx.pseudonym))
    return serve_h1(ctx, stream, visit, answer_plain)


async def answer_plain(ctx: ProxyContext, visit: Visit, request: RequestHead, client: Client) -> None:
    """Answer one request on port 80.

    Raises:
        RequestError: 404 for a name that is configured nowhere, or where port 80 is off; 403 for a client that may not
            ask, except for challenges.
        UpstreamError, ResponseAborted: as `exchange`.
    """
    snapshot = ctx.cell.current
    name = requested_name(request.authority)
    if name is not None and (answer := ctx.board.answer(name, _path(request))) is not None:
        client.record.name = name
        asker = visit.client(request)
        if not ctx.board.shown(answer, asker.host):
            log.info("%s  port 80: challenge answered to %s", name, asker)
        client.answer(200, [(b"content-type", b"application/octet-stream")], answer.encode())
        return

    entry = snapshot.entry_for(name)[0] if name is not None else snapshot.routes.catch_all()
    if entry is not None:
        client.record.name = entry.name
    if isinstance(entry, Passthrough):
        await _answer_for_passthrough(ctx, snapshot.config, visit, entry, request, client)
    elif isinstance(entry, Site):
        await _answer_for_site(ctx, snapshot.config, visit, entry, request, client)
    else:
        raise RequestError(f"{name or 'a request without Host'} is configured nowhere", 404)


async def _answer_for_passthrough(
    ctx: ProxyContext, config: Config, visit: Visit, entry: Passthrough, request: RequestHead, client: Client
) -> None:
    if entry.http == "off":
        raise RequestError(f"{entry.name}: port 80 is off", 404)
    to = Target("http", entry.http_to.host, entry.http_to.port)
    welcome = permitted(ctx, entry, visit.peer)
    prefixes = ("/",) if entry.http == "all" and welcome else BACKENDS_OWN
    backend = Site(entry.name, tuple(Route(prefix, to, timeouts=config.timeouts) for prefix in prefixes))
    if route_for(backend, _path(request)) is None:
        if not welcome:
            raise _not_open(entry)
        _redirect(config, request, client)
    else:
        # Routing as for a site also refuses a path that leaves the prefix again, `/.well-known/../admin`.
        await exchange(ctx, visit, backend, request, client)


async def _answer_for_site(
    ctx: ProxyContext, config: Config, visit: Visit, site: Site, request: RequestHead, client: Client
) -> None:
    if site.http == "off":
        raise RequestError(f"{site.name}: port 80 is off", 404)
    # A token that is not ours may be the backend's own: it gets the request, and nobody a redirect or a 403.
    if not _is_challenge(_path(request)):
        if not permitted(ctx, site, visit.peer):
            raise _not_open(site)
        if site.http == "redirect":
            _redirect(config, request, client)
            return
    await exchange(ctx, visit, site, request, client)


def _is_challenge(path: str) -> bool:
    """Whether a path can be nothing but a question for a token: whatever leaves the folder again is none."""
    return path.startswith(HTTP01_PREFIX) and TOKEN.fullmatch(path, len(HTTP01_PREFIX)) is not None


def _not_open(entry: Passthrough | Site) -> RequestError:
    return RequestError(f"{entry.name} is not open to this client", 403)


def _path(request: RequestHead) -> str:
    return request.target.partition(b"?")[0].decode("latin-1")


def _redirect(config: Config, request: RequestHead, client: Client) -> None:
    """308 to the same name and target on https. The name is one that led to an entry, so it is no open redirect."""
    name = requested_name(request.authority)
    if name is None:
        raise RequestError("a request without Host cannot be redirected", 400)
    port = config.listen.public_https_port
    authority = str(HostPort(name, port)).removesuffix(":443")
    target = b"/" if request.target == b"*" else request.target
    client.answer(308, [(b"location", b"https://" + authority.encode() + target)], b"")
