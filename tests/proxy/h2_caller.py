"""Clients that speak HTTP/2 to a staged proxy: an honest one by hyper's h2, and one that writes its frames by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h2.config
import h2.connection
import h2.events
import trio

from tests.http.h2_support import Frames, parse
from tests.proxy.stage import Recording, Script, Stage, backend, make_config, site, stage
from trioproxy.config.model import Timeouts


@attrs.define
class Answer:
    """What has come of a response."""

    status: int = 0
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytearray = attrs.field(factory=bytearray)
    trailers: dict[str, str] = attrs.field(factory=dict)
    informational: list[int] = attrs.field(factory=list)
    ended: bool = False
    reset: int | None = None


class H2Caller:
    """An HTTP/2 client over a TLS connection to a site; see `calling`.

    Attributes:
        h2: The connection's state.
        reading: Whether what comes is acknowledged, so that windows open again.
        terminated: GOAWAYs that came: last stream and code.
        closed: The proxy has ended the connection.
    """

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.reading = True
        self.terminated: list[tuple[int, int]] = []
        self.closed = False
        self.answers: dict[int, Answer] = {}
        self._changed = trio.Event()
        self._sending = trio.Lock()

    async def send(self) -> None:
        """Send what h2 has to say."""
        async with self._sending:
            data = self.h2.data_to_send()
            if data:
                await self.stream.send_all(data)

    async def read(self) -> None:
        """Heed what comes, until the proxy ends the connection."""
        try:
            while data := await self.stream.receive_some(65536):
                for event in self.h2.receive_data(bytes(data)):
                    self._heed(event)
                self._change()
                await self.send()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        self.closed = True
        self._change()

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _heed(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.terminated.append((event.last_stream_id or 0, int(event.error_code or 0)))
            return
        answer = self.answers.get(getattr(event, "stream_id", None) or 0)
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = dict(event.headers)  # type: ignore[arg-type]  # decoded, as configured
            answer.status = int(answer.headers[":status"])
        elif isinstance(event, h2.events.InformationalResponseReceived):
            answer.informational.append(int(dict(event.headers)[":status"]))  # type: ignore[index]
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data or b""
            if self.reading and event.flow_controlled_length:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.TrailersReceived):
            answer.trailers = dict(event.headers)  # type: ignore[arg-type]
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = int(event.error_code or 0)

    async def begin(
        self, method: str, path: str, authority: str, headers: Sequence[tuple[str, str]] = (), *, end: bool = True
    ) -> int:
        """Send a request's head; returns its stream."""
        pseudo = [(":method", method), (":scheme", "https"), (":path", path), (":authority", authority)]
        return await self.open([*pseudo, *headers], end=end)

    async def open(self, fields: Sequence[tuple[str, str]], *, end: bool = False) -> int:
        """Send any head; returns its stream."""
        stream = self.queue(fields, end=end)
        await self.send()
        return stream

    def queue(self, fields: Sequence[tuple[str, str]], *, end: bool = False) -> int:
        """Have any head sent with what is sent next; returns its stream."""
        stream = self.h2.get_next_available_stream_id()
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, fields, end_stream=end)
        return stream

    async def body(self, stream: int, data: bytes = b"", *, end: bool = False) -> None:
        """Send a piece of body, as fast as the windows allow."""
        start = 0
        while start < len(data):
            size = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data) - start)
            if size <= 0:
                await self._changed.wait()
                continue
            self.h2.send_data(stream, data[start : start + size])
            start += size
            await self.send()
        if end:
            self.h2.end_stream(stream)
            await self.send()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until what has come fulfils `condition`."""
        with trio.fail_after(10):
            while not condition():
                assert not self.closed, "the proxy closed the connection"
                await self._changed.wait()

    async def until_closed(self) -> None:
        """Wait until the proxy has ended the connection."""
        with trio.fail_after(10):
            while not self.closed:
                await self._changed.wait()

    async def answer(self, stream: int) -> Answer:
        """A response, when it is whole or was broken off."""
        answer = self.answers[stream]
        await self.until(lambda: answer.ended or answer.reset is not None)
        return answer

    async def ask(
        self, method: str, path: str, authority: str, headers: Sequence[tuple[str, str]] = (), body: bytes = b""
    ) -> Answer:
        """Send a request and wait for its response."""
        stream = await self.begin(method, path, authority, headers, end=not body)
        if body:
            await self.body(stream, body, end=True)
        return await self.answer(stream)


@asynccontextmanager
async def calling(proxy: Stage, sni: str, *, source: str = "127.0.0.1") -> AsyncIterator[H2Caller]:
    """An honest client of the site `sni`, for which a task reads as long as the block lasts."""
    stream = await proxy.tls(sni, source=source, protocol="h2")
    assert stream.selected_alpn_protocol() == "h2"
    caller = H2Caller(stream)
    caller.h2.initiate_connection()
    await caller.send()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(caller.read)
        yield caller
        nursery.cancel_scope.cancel()
    stream.transport_stream.socket.close()


@asynccontextmanager
async def served(script: Script, *, timeouts: Timeouts | None = None) -> AsyncIterator[tuple[H2Caller, Recording]]:
    """An honest client of the site `cloud.test`, and what its backend records."""
    async with (
        backend(script) as (port, seen),
        stage(make_config(site("cloud.test", port), timeouts=timeouts)) as proxy,
        calling(proxy, "cloud.test") as caller,
    ):
        yield caller, seen


class Raw:
    """A client that sends whatever bytes it likes; what comes is parsed by hyperframe.

    Attributes:
        frames: Writes frames.
        seen: All that came.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.frames = Frames()
        self.seen: list[Any] = []
        self._stream = stream
        self._looked_at = 0
        self._rest = b""

    @classmethod
    async def connect(cls, proxy: Stage, sni: str, *, source: str = "127.0.0.1") -> Raw:
        """One that has said nothing yet, not even the preface."""
        return cls(await proxy.tls(sni, source=source, protocol="h2"))

    async def send(self, *parts: bytes) -> bool:
        """Send these bytes. False if the proxy has closed the connection."""
        try:
            await self._stream.send_all(b"".join(parts))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def until(self, kind: int, stream: int | None = None) -> Any:
        """The next frame of that type, on that stream if one is named; those before it are passed over."""
        with trio.fail_after(10):
            while True:
                while self._looked_at < len(self.seen):
                    frame = self.seen[self._looked_at]
                    self._looked_at += 1
                    if frame.type == kind and stream in (None, frame.stream_id):
                        return frame
                await self._more()

    async def until_end(self) -> list[Any]:
        """All frames until the proxy ends the connection."""
        with trio.fail_after(10):
            try:
                while True:
                    await self._more()
            except (EOFError, trio.BrokenResourceError):
                return self.seen

    async def _more(self) -> None:
        data = await self._stream.receive_some(65536)
        if not data:
            raise EOFError
        data = self._rest + bytes(data)
        size = 0
        while len(data) >= size + 9 and len(data) >= size + 9 + int.from_bytes(data[size : size + 3], "big"):
            size += 9 + int.from_bytes(data[size : size + 3], "big")
        self._rest = data[size:]
        self.seen += parse(data[:size])

    def goaways(self) -> list[int]:
        """The codes of the GOAWAYs that came."""
        return [frame.error_code for frame in self.seen if frame.type == 7]
