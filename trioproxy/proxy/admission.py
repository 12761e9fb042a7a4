"""The door: every connection comes in here, on whichever port, and leaves here.

`admit` owns the socket from beginning to end. It finds out who calls (a proxy in front may say so, and must where the
configuration says that it does), lets in no more than the limits allow, and hands the connection to the port's own
conversation. It is the one place where a connection's errors end: whatever happens to one connection is logged here
and touches no other.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from trioproxy.access import PRIVATE, parse, within
from trioproxy.config.model import HostPort, Listen, Passthrough, Site
from trioproxy.errors import BadProxyHeader, ClientLeft, ConnectionLost, HandshakeFailed, SilentPeer, TrioproxyError
from trioproxy.net.limits import SAME_IN_A_ROW
from trioproxy.net.listen import Peer
from trioproxy.net.peek import take_proxy_header
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext

log = logging.getLogger("trioproxy.door")

Rest = Awaitable["Rest"] | None
"""What is left to do at the end of something, to be awaited by whoever awaited that; None when nothing is. A tunnel
sleeps for hours, and each frame below it would be kept as long: a quarter of a kilobyte in each of thousands."""

Conversation = Callable[[ProxyContext, Stream, Peer], Awaitable[Rest]]
"""Serves a connection that was let in. `timeouts.hello` runs already, as the stream's deadline."""


async def admit(ctx: ProxyContext, sock: Socket, peer: Peer, scheme: str, converse: Conversation) -> None:
    """Serve one connection from its first byte to its last.

    Args:
        ctx: The running proxy.
        sock: The accepted socket, non-blocking; closed when this returns.
        peer: Where it comes from.
        scheme: The port's: "https" or "http".
        converse: What to do with it, once it is known who calls and that there is room.
    """
    stream = Stream(sock, ctx.reaper)
    config = ctx.cell.current.config
    key: str | None = None
    entered = ctx.admission.enter(config.limits.connections)
    try:
        if not entered:
            return
        stream.deadline = ctx.reaper.now() + config.timeouts.hello
        if config.listen.proxy_protocol_from:
            peer = await _who_calls(config.listen, stream, peer)
        key = ctx.admission.introduce(peer.host, config.limits.connections_per_ip)
        if ctx.admission.in_a_row == SAME_IN_A_ROW:
            _suspect(ctx, config.listen, peer)
        if key is None:
            return
        ctx.witness.opened(peer.number, peer.host, scheme)
        rest: Rest = converse(ctx, stream, peer)
        while rest is not None:
            rest = await rest
    except SilentPeer:  # a port scan or a browser's spare connection: nothing to answer, nothing to report
        pass
    except BadProxyHeader as exc:
        log.info("%s: refused: %s", peer, exc)
    except HandshakeFailed as exc:  # a ConnectionLost that somebody can mend
        log.info("%s: %s", peer, exc)
    except (ConnectionLost, ClientLeft) as exc:  # clients go when they like; most tell nobody
        log.debug("%s: %s", peer, exc)
    except TrioproxyError as exc:
        log.info("%s: %s", peer, exc)
    except Exception:
        log.exception("%s: a bug in trioproxy ended this connection", peer)
    finally:
        if key is not None:
            ctx.admission.part(key)
            ctx.witness.closed(peer.number)
        if entered:
            ctx.admission.leave()
        ctx.guests.pop(stream, None)
        stream.close()


def permitted(ctx: ProxyContext, entry: Passthrough | Site, peer: Peer) -> bool:
    """Whether `allow` and `deny` of an entry let this client in, as the machine's networks are now."""
    return entry.access.permits(peer.host, ctx.lan.networks)


async def _who_calls(listen: Listen, stream: Stream, peer: Peer) -> Peer:
    """The client that a proxy in front announces, or the peer itself.

    Raises:
        BadProxyHeader: the peer must begin with a PROXY header, and does not.
        SilentPeer, StreamError: it says nothing, or was lost.
    """
    if not within(parse(peer.host), listen.proxy_protocol_from):
        return peer
    header = await take_proxy_header(stream)
    if header.source is None or header.destination is None:  # the proxy speaks for itself: a health check
        return peer
    told = HostPort(header.destination.host, header.destination.port)
    return Peer(header.source.host, header.source.port, peer.number, told)


def _suspect(ctx: ProxyContext, listen: Listen, peer: Peer) -> None:
    """Say so, once, when the one address from which all connections have come may hide who they are."""
    address = parse(peer.host)
    proxies = (*listen.trusted_proxies, *listen.proxy_protocol_from)
    if ctx.admission.suspect or address.is_loopback or not within(address, PRIVATE) or within(address, proxies):
        return
    ctx.admission.suspect = peer.host
    log.warning(
        "the last %d connections have all come from %s, a private address. If not all your clients are behind it, "
        "something on the way hides them (Docker's gateway, a router that rewrites addresses): then backends see no "
        'other address, and "lan" in `allow` means everyone. Let trioproxy have the host\'s own network, or let what '
        "is in front send PROXY headers and name it in listen.proxy_protocol_from",
        SAME_IN_A_ROW,
        peer.host,
    )
