"""Whom we trust when it is us who connect with TLS.

A backend proves who it is in one of three ways: by a certificate of an authority that is trusted (the system's, or
those of a file), by being the one certificate whose fingerprint is written down, or not at all. A fingerprint is looked
at after the handshake, in which the backend has proved that it holds the certificate's key, and before it is sent a
byte of a request.
"""

from __future__ import annotations

import hashlib
import hmac
import ssl
from pathlib import Path

import trio

from trioproxy.config.model import UpstreamTLS
from trioproxy.errors import ConnectionLost, Untrusted, UpstreamUnreachable
from trioproxy.net.sock import Stream


def client_context() -> ssl.SSLContext:
    """A context that trusts what the system trusts, and takes no cut-off stream for a whole one.

    It takes some 40 ms, for the system's certificates are read: make it once, in a thread.
    """
    return _whole_streams_only(ssl.create_default_context())


def _trusts_everybody() -> ssl.SSLContext:
    context = _whole_streams_only(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _whole_streams_only(context: ssl.SSLContext) -> ssl.SSLContext:
    # Python before 3.11.4 lets OpenSSL take a missing close_notify for the end of the stream. A response body that ends
    # with the connection would look whole wherever it broke off.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


class _Made:
    """A context, and of which state of its file."""

    def __init__(self) -> None:
        self.lock = trio.Lock()  # who finds it missing waits for the one who makes it
        self.context: ssl.SSLContext | None = None
        self.state: tuple[int, int] | None = None


class Trust:
    """The contexts of connections to backends: one for each way of trusting, made when it is first needed.

    A file of certificates is looked at again for each new connection, so that a new one counts without a reload.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[bool, Path | None, tuple[str, ...]], _Made] = {}

    async def context(self, tls: UpstreamTLS, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """The context for backends that must prove what `tls` says and may choose one of `alpn`.

        Raises:
            UpstreamUnreachable: its file cannot be used.
        """
        by_authority = tls.verify is True
        ca_file = tls.ca_file if by_authority else None
        made = self._made.setdefault((by_authority, ca_file, alpn), _Made())
        if made.context is not None and ca_file is None:
            return made.context
        async with made.lock:
            # A file may lie on a drive that does not answer: whoever waits for it may leave, and the thread stays.
            await trio.to_thread.run_sync(_make, made, by_authority, ca_file, alpn, abandon_on_cancel=True)
        if made.context is None:
            raise TypeError("nothing was made, and nothing raised")
        return made.context


def _make(made: _Made, by_authority: bool, ca_file: Path | None, alpn: tuple[str, ...]) -> None:
    """Bring `made` up to date; in a thread, for files are read."""
    state = None
    if ca_file is None:
        if made.context is not None:
            return
        context = client_context() if by_authority else _trusts_everybody()
    else:
        try:
            stat = ca_file.stat()
            state = stat.st_mtime_ns, stat.st_size
            if state == made.state:
                return
            context = _whole_streams_only(ssl.create_default_context(cafile=ca_file))
        except OSError as exc:
            raise UpstreamUnreachable(f"ca_file {ca_file} cannot be used: {exc}") from exc
        # Home-made authorities lack extensions that strict checking wants, and the file may hold no authority at all
        # but the backend's own certificate.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(alpn)
    made.context, made.state = context, state


async def prove(stream: Stream, context: ssl.SSLContext, tls: UpstreamTLS, host: str) -> None:
    """Do the handshake with a backend; when this returns it has proved what `tls` asks for.

    Args:
        stream: Connected to it.
        context: Of `Trust`.
        tls: What it must prove.
        host: Whom the URL names.

    Raises:
        Untrusted: it is not trusted. What it was sent is a ClientHello, and with a fingerprint the end of a handshake.
        StreamError: the handshake failed otherwise.
    """
    try:
        await stream.start_tls_client(context, tls.server_name or host)
    except ConnectionLost as exc:
        if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
            raise Untrusted(f"its certificate is not trusted: {exc.__cause__.verify_message}") from exc
        raise
    if isinstance(tls.verify, str) and not hmac.compare_digest(fingerprint(stream), tls.verify):
        raise Untrusted("its certificate is not the one that `verify` names")


def fingerprint(stream: Stream) -> str:
    """SHA-256 of the certificate that the peer of a finished handshake has shown, 64 hexadecimal digits."""
    shown = stream.sock.getpeercert(binary_form=True) if isinstance(stream.sock, ssl.SSLSocket) else None
    return hashlib.sha256(shown or b"").hexdigest()
