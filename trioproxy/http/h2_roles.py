"""The two roles of an HTTP/2 connection: what begins a message, and what only one of them may do."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import ngh2

from trioproxy.config.model import Limits
from trioproxy.errors import RequestError, UpstreamError, UpstreamProtocolError
from trioproxy.http.fields import head_size
from trioproxy.http.h1_read import BACKEND_LIMITS
from trioproxy.http.h2_codec import MAX_STREAMS, Account, Codec
from trioproxy.http.h2_events import ClientListener, Code, ServerListener
from trioproxy.http.h2_heads import RequestHeads, fields_to_send, read_response
from trioproxy.http.h2_vigil import REFUSED
from trioproxy.http.messages import Header, Headers

HEADS_HELD = 256 * 1024
"""Bytes of decoded heads that a connection's open requests may hold at once, beside `HELD_PER_BYTE`."""

HELD_PER_BYTE = 5
"""What a byte received adds to that. HPACK makes 4 KiB of one byte, so a few packets could claim megabytes."""

_DRAINING = b"draining"


class ServerCodec(Codec):
    """The side that clients connect to.

    Calls `on_request` or `on_refused`, then `on_body` and `on_end`, and at last `on_closed`, for each stream.
    """

    _listener: ServerListener

    def __init__(self, limits: Limits, listener: ServerListener) -> None:
        super().__init__(
            ngh2.Role.SERVER,
            {
                ngh2.Setting.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                ngh2.Setting.ENABLE_CONNECT_PROTOCOL: 1,
                ngh2.Setting.NO_RFC7540_PRIORITIES: 1,  # libnghttp2 takes turns by RFC 9218 only then
            },
            limits,
            listener,
        )
        self._handlers[ngh2.RequestReceived] = self._on_request
        self._handlers[ngh2.PingAcknowledged] = self._on_ping
        self._heads = RequestHeads(limits)
        self._received = 0

    def receive(self, data: bytes) -> None:
        """See `Codec.receive`."""
        self._received += len(data)
        super().receive(data)

    def respond(self, stream: int, status: int, headers: Headers, *, end: bool = False) -> None:
        """Send the head of a response; with `end` there is no body.

        Raises:
            ValueError: a field that HTTP/2 does not allow.
        """
        fields = [(b":status", b"%d" % status), *fields_to_send(headers)]
        try:  # noqa: SIM105 - as each request passes here
            self._engine.send_response(stream, fields, end_stream=end)
        except ngh2.NGH2Error:
            pass

    def inform(self, stream: int, status: int, headers: Headers) -> None:
        """Send a head below 200. Raises as `respond`."""
        fields = [(b":status", b"%d" % status), *fields_to_send(headers)]
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_informational_response(stream, fields)

    def shutdown(self) -> None:
        """Begin to end the connection: streams that are on their way are still taken, for as long as a PING takes.

        Whoever does not hear of that PING calls `goaway` after a while (RFC 9113 section 6.8).
        """
        self.closing = True
        with contextlib.suppress(ngh2.NGH2Error):
            self._engine.send_shutdown_notice()
            self._engine.ping(_DRAINING)

    def _on_ping(self, _: ngh2.PingAcknowledged) -> None:
        self.goaway()

    def _on_request(self, event: ngh2.RequestReceived) -> None:
        stream, ended = event.stream_id, event.end_stream
        try:
            head = self._heads.read(event.headers, ended)
        except RequestError as exc:
            self._vigil.left -= REFUSED
            method = next((value for name, value in event.headers if name == b":method"), b"")
            self._streams[stream] = Account()
            self._listener.on_refused(stream, exc, method)
            return
        size = self._heads.size
        self._held += size
        if self._held > HEADS_HELD + HELD_PER_BYTE * self._received:
            self._held -= size
            self.reset(stream, Code.REFUSED_STREAM)
            return
        account = self._streams[stream] = Account()
        account.size = size
        self._listener.on_request(stream, head, ended)


class ClientCodec(Codec):
    """The side that connects to backends.

    Calls `on_response` (several times, if there are heads below 200), then `on_body` and `on_end`, and at last
    `on_closed`, for each stream.
    """

    _listener: ClientListener

    def __init__(self, listener: ClientListener, limits: Limits = BACKEND_LIMITS) -> None:
        super().__init__(
            ngh2.Role.CLIENT, {ngh2.Setting.ENABLE_PUSH: 0, ngh2.Setting.MAX_CONCURRENT_STREAMS: 0}, limits, listener
        )
        self._handlers[ngh2.ResponseReceived] = self._on_response
        self._handlers[ngh2.InformationalResponseReceived] = self._on_informational
        self._limit = limits.header_size

    @property
    def room(self) -> int:
        """How many more requests the backend takes at the moment; 100 in all before it has said so itself."""
        if self.closing or not self._engine.can_send_request:
            return 0
        allowed = self._engine.remote_settings.get(ngh2.Setting.MAX_CONCURRENT_STREAMS, 100)
        return max(min(allowed, MAX_STREAMS) - len(self._streams), 0)

    @property
    def extended_connect(self) -> bool:
        """Whether the backend has said that it takes extended CONNECT (RFC 8441)."""
        return self._engine.remote_settings.get(ngh2.Setting.ENABLE_CONNECT_PROTOCOL, 0) == 1

    def request(
        self,
        method: bytes,
        scheme: bytes,
        authority: bytes,
        target: bytes,
        headers: Headers,
        *,
        end: bool = False,
        protocol: bytes = b"",
    ) -> int:
        """Send the head of a request; with `end` there is no body.

        Args:
            method: Of the request.
            scheme: b"http" or b"https".
            authority: For `:authority`; left out when it is empty.
            target: For `:path`.
            headers: The fields; of an HTTP/1 head: what concerns a connection, and Host, are left out.
            end: Whether the message ends with them.
            protocol: For `:protocol`, with method b"CONNECT".

        Returns:
            The stream's number.

        Raises:
            ValueError: a field that HTTP/2 does not allow.
            UpstreamError: the connection takes no more requests.
        """
        pseudo = [(b":method", method), (b":scheme", scheme), (b":path", target)]
        if authority:
            pseudo.append((b":authority", authority))
        if protocol:
            pseudo.append((b":protocol", protocol))
        fields = [*pseudo, *fields_to_send(headers, method, target, authority, protocol)]
        try:
            stream = self._engine.send_request(fields, end_stream=end)
        except ngh2.NGH2Error as exc:
            raise UpstreamError(f"the connection takes no more requests: {exc}") from exc
        account = self._streams[stream] = Account()
        account.method = method
        return stream

    def _on_response(self, event: ngh2.ResponseReceived) -> None:
        self._on_head(event.stream_id, event.headers, event.end_stream)

    def _on_informational(self, event: ngh2.InformationalResponseReceived) -> None:
        account = self._streams.get(event.stream_id)
        if account is None or account.ours:
            return
        account.interim += head_size(event.headers)
        if account.interim > self._limit:
            self.reset(event.stream_id, Code.ENHANCE_YOUR_CALM)
        else:
            self._on_head(event.stream_id, event.headers, ended=False)

    def _on_head(self, stream: int, headers: Sequence[Header], ended: bool) -> None:
        account = self._streams.get(stream)
        if account is None:
            return
        try:
            head = read_response(headers, account.method, ended)
        except UpstreamProtocolError:
            self.reset(stream, Code.PROTOCOL_ERROR)
            return
        self._listener.on_response(stream, head, ended)
