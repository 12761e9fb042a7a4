"""A backend that speaks HTTP/2 by hyper's h2, which is not ours, as a script tells it to."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio

from tests.proxy.stage import Recording, Script, authority

EventT = TypeVar("EventT")

Fields = Sequence[tuple[str, str]]


class H2Peer:
    """One connection of such a backend.

    Attributes:
        h2: Its state; `flush` sends what is done with it.
        recording: What the backend has seen; `received` holds the bodies.
    """

    def __init__(self, stream: trio.abc.Stream, recording: Recording) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self.recording = recording
        self._stream = stream
        self._events: deque[object] = deque()

    async def flush(self) -> None:
        """Send what there is to send."""
        if data := self.h2.data_to_send():
            await self._stream.send_all(data)

    async def next(self, kind: type[EventT]) -> EventT:
        """The next event of this kind; others are dropped, but bodies are recorded and acknowledged.

        Raises:
            EOFError: the proxy has closed the connection.
        """
        while True:
            while self._events:
                event: Any = self._events.popleft()
                if isinstance(event, h2.events.DataReceived):
                    self.recording.received += event.data
                    if event.flow_controlled_length:
                        self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                        await self.flush()
                if isinstance(event, kind):
                    return event
            data = await self._stream.receive_some()
            if not data:
                raise EOFError
            self._events += self.h2.receive_data(data)
            await self.flush()

    async def request(self) -> tuple[int, dict[str, str]]:
        """The next request: its stream and its fields."""
        event = await self.next(h2.events.RequestReceived)
        return event.stream_id, dict(event.headers)  # type: ignore[arg-type]  # decoded, as configured

    async def respond(
        self, stream: int, body: bytes = b"", *, status: str = "200", fields: Fields = (), end: bool = True
    ) -> None:
        """Send a response, or with `end=False` the beginning of one."""
        self.h2.send_headers(stream, [(":status", status), *fields], end_stream=end and not body)
        if body:
            self.h2.send_data(stream, body, end_stream=end)
        await self.flush()


def speaking_h2(converse: Callable[[H2Peer], Awaitable[None]], **settings: int) -> Script:
    """A script for `stage.backend`: HTTP/2 from the first byte, with these SETTINGS of h2's names."""

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        await _speak(stream, recording, converse, settings)

    return script


async def _speak(
    stream: trio.abc.Stream,
    recording: Recording,
    converse: Callable[[H2Peer], Awaitable[None]],
    settings: dict[str, int],
) -> None:
    peer = H2Peer(stream, recording)
    values = {getattr(h2.settings.SettingCodes, name): value for name, value in settings.items()}
    peer.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
    peer.h2.initiate_connection()
    try:
        await peer.flush()
        await converse(peer)
    except EOFError:
        pass


def secured(script: Script, *protocols: str, name: str = "localhost") -> Script:
    """A script whose connections are TLS, with a certificate for `name`, choosing among `protocols`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return with_context(script, context)


def with_context(script: Script, context: ssl.SSLContext) -> Script:
    """As `secured`, with a context of the test's own."""

    async def secure(stream: trio.SocketStream, recording: Recording) -> None:
        inner = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        try:
            await inner.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError):
            return  # what it showed was not good enough
        await script(inner, recording)  # type: ignore[arg-type]  # any stream will do

    return secure
