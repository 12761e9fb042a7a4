"""tls-alpn-01: a CA asks on port 443 whether a name is ours, and is shown a certificate made for it (RFC 8737)."""

from __future__ import annotations

import functools
import logging
import ssl

from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Site
from trioproxy.errors import ConnectionLost
from trioproxy.net.credentials import load_pem
from trioproxy.net.listen import Peer
from trioproxy.net.sock import Stream
from trioproxy.proxy.context import ProxyContext
from trioproxy.routing import Entry
from trioproxy.wire.client_hello import ClientHello

log = logging.getLogger("trioproxy.front_door")

PROTOCOL = "acme-tls/1"
_ASKS = (PROTOCOL.encode(),)


def asked_for(ctx: ProxyContext, hello: ClientHello, entry: Entry) -> bytes | None:
    """The proof, PEM, that this client wants to see; None for one that wants something else, or when there is none.

    A passthrough name's goes to its backend like all else that is its own.
    """
    if hello.alpn != _ASKS or hello.server_name is None or not isinstance(entry, Site):
        return None
    return ctx.board.answer_in_tls(hello.server_name)


async def show(board: ChallengeBoard, stream: Stream, peer: Peer, name: str, pem: bytes) -> None:
    """Do the handshake, which is all there is to it. Raises StreamError or CertificateError.

    Args:
        board: Where the proof hangs.
        stream: A connection whose ClientHello is unread, with a deadline. The caller closes it.
        peer: The CA.
        name: What it asks about.
        pem: A certificate and its key.
    """
    await stream.start_tls_server(_context(pem))
    if stream.alpn() != PROTOCOL:  # RFC 8737 section 3: without it the proof proves nothing
        raise ConnectionLost(f"{PROTOCOL} was offered and then not spoken")
    if not board.shown(pem, peer.host):
        log.info("%s  port 443: challenge answered to %s", name, peer.host)
    stream.send_eof()
    await stream.drain()


@functools.lru_cache(maxsize=16)  # a CA looks from several places at once
def _context(pem: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([PROTOCOL])
    load_pem(context, pem)
    return context
