"""HTTP/2 for tests: frames written by hand, and a codec connected to hyper's h2, which is not ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import attrs
import h2.config
import h2.connection
import h2.events
import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from trioproxy.config.model import Limits
from trioproxy.errors import RequestError
from trioproxy.http.h2 import ClientCodec, ServerCodec
from trioproxy.http.messages import End, RequestHead, ResponseHead

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Fields = Sequence[tuple[str, str]]

GET: list[tuple[str, str]] = [
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/"),
    (":authority", "cloud.test"),
]
POST = [(":method", "POST"), *GET[1:]]


def changed(fields: Fields, **values: str) -> list[tuple[str, str]]:
    """`fields` with other pseudo-header fields: `changed(GET, path="/x")`."""
    return [(name, values.get(name[1:], value) if name[:1] == ":" else value) for name, value in fields]


class Frames:
    """Writes frames as bytes; header blocks share one HPACK state, as those of a connection do."""

    def __init__(self) -> None:
        self.hpack = hpack.Encoder()

    def start(self, **settings: int) -> bytes:
        """The preface and SETTINGS; names as h2's `SettingCodes`, values by number would do as well."""
        return PREFACE + self.settings({getattr(SettingsFrame, name): value for name, value in settings.items()})

    def block(self, fields: Fields) -> bytes:
        return bytes(self.hpack.encode(fields))

    def headers(self, stream: int, fields: Fields = GET, *, end: bool = True, done: bool = True) -> bytes:
        """HEADERS, and CONTINUATION as far as the block is too large for it; `done` ends the block."""
        block = self.block(fields)
        parts = [block[start : start + 16384] for start in range(0, len(block), 16384)] or [b""]
        whole = done and len(parts) == 1
        data = _bytes(HeadersFrame(stream, parts[0], flags=["END_STREAM"] * end + ["END_HEADERS"] * whole))
        for number, part in enumerate(parts[1:], 2):
            data += self.continuation(stream, part, done=done and number == len(parts))
        return data

    @staticmethod
    def continuation(stream: int, data: bytes = b"", *, done: bool = False) -> bytes:
        return _bytes(ContinuationFrame(stream, data, flags=["END_HEADERS"] * done))

    @staticmethod
    def data(stream: int, data: bytes = b"", *, end: bool = False) -> bytes:
        return _bytes(DataFrame(stream, data, flags=["END_STREAM"] * end))

    @staticmethod
    def padding(stream: int, size: int = 255) -> bytes:
        return _bytes(DataFrame(stream, b"", pad_length=size, flags=["PADDED"]))

    @staticmethod
    def reset(stream: int, code: int = 8) -> bytes:
        return _bytes(RstStreamFrame(stream, code))

    @staticmethod
    def settings(values: dict[int, int] | None = None, *, ack: bool = False) -> bytes:
        return _bytes(SettingsFrame(0, values or {}, flags=["ACK"] * ack))

    @staticmethod
    def ping(data: bytes = b"01234567", *, ack: bool = False) -> bytes:
        return _bytes(PingFrame(0, data, flags=["ACK"] * ack))

    @staticmethod
    def window(stream: int, increment: int) -> bytes:
        return _bytes(WindowUpdateFrame(stream, increment))

    @staticmethod
    def priority(stream: int, on: int = 0) -> bytes:
        return _bytes(PriorityFrame(stream, depends_on=on, stream_weight=16))

    @staticmethod
    def goaway(last: int = 0, code: int = 0) -> bytes:
        return _bytes(GoAwayFrame(0, last, code))


def _bytes(frame: Any) -> bytes:
    return bytes(frame.serialize())


def parse(data: bytes) -> list[Any]:
    """Whole frames, as hyperframe reads them."""
    frames = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(frame)
        data = data[9 + length :]
    return frames


@attrs.frozen
class Request:
    """`ServerListener.on_request` was called; the others are named likewise."""

    stream: int
    head: RequestHead
    ended: bool


@attrs.frozen
class Refused:
    stream: int
    error: RequestError
    method: bytes


@attrs.frozen
class Response:
    stream: int
    head: ResponseHead
    ended: bool


@attrs.frozen
class Body:
    stream: int
    data: bytes


@attrs.frozen
class Ended:
    stream: int
    end: End


@attrs.frozen
class Closed:
    stream: int
    code: int


@attrs.frozen
class Over:
    code: int
    reason: str


Event = Request | Refused | Response | Body | Ended | Closed | Over


class Told:
    """A listener of either role that writes down what it is told."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def events(self) -> list[Event]:
        """What it was told since it was asked last."""
        events, self._events = self._events, []
        return events

    def on_request(self, stream: int, head: RequestHead, ended: bool) -> None:
        self._events.append(Request(stream, head, ended))

    def on_refused(self, stream: int, error: RequestError, method: bytes) -> None:
        self._events.append(Refused(stream, error, method))

    def on_response(self, stream: int, head: ResponseHead, ended: bool) -> None:
        self._events.append(Response(stream, head, ended))

    def on_body(self, stream: int, data: bytes) -> None:
        self._events.append(Body(stream, data))

    def on_end(self, stream: int, end: End) -> None:
        self._events.append(Ended(stream, end))

    def on_closed(self, stream: int, code: int) -> None:
        self._events.append(Closed(stream, code))

    def on_over(self, code: int, reason: str) -> None:
        self._events.append(Over(code, reason))


class Server(ServerCodec):
    """One that keeps what it tells; `events` has it."""

    def __init__(self, limits: Limits | None = None) -> None:
        listener = Told()
        super().__init__(limits or Limits(), listener)
        self.events = listener.events


class Client(ClientCodec):
    """Likewise."""

    def __init__(self) -> None:
        listener = Told()
        super().__init__(listener)
        self.events = listener.events


Codec = Server | Client


def told(codec: Codec, data: bytes, *, size: int = 0) -> list[Event]:
    """What a codec says about input that comes whole, or in pieces of `size`."""
    events: list[Event] = []
    for start in range(0, len(data), size or len(data) or 1):
        codec.receive(data[start : start + (size or len(data))])
        events += codec.events()
    return events


def sent(codec: Codec, events: list[Event] | None = None) -> bytes:
    """All that a codec sends at the moment; what it tells meanwhile is added to `events`."""
    data = b""
    quiet = not codec.restless
    while more := codec.outgoing(65536):
        assert not quiet
        data += more
        if events is not None:
            events += codec.events()
    if events is not None:
        events += codec.events()
    return data


def server(limits: Limits | None = None, frames: Frames | None = None) -> Server:
    """A server whose client has said its preface."""
    codec = Server(limits)
    codec.receive((frames or Frames()).start())
    sent(codec)
    assert codec.events() == []
    return codec


class Pair:
    """A codec of ours and a connection of h2, and nothing between them but memory.

    Attributes:
        ours: What our codec has told.
        theirs: What h2 has.
    """

    def __init__(self, codec: Codec, *, single_bytes: bool = False) -> None:
        self.codec = codec
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=isinstance(codec, ServerCodec), header_encoding=None)
        )
        self.h2.initiate_connection()
        self.ours: list[Event] = []
        self.theirs: list[h2.events.Event] = []
        self._size = 1 if single_bytes else 0
        self.pump()

    def pump(self) -> None:
        """Carry bytes both ways until nobody has any."""
        while True:
            to_codec = self.h2.data_to_send()
            self.ours += told(self.codec, to_codec, size=self._size)
            to_h2 = sent(self.codec, self.ours)
            if not to_codec and not to_h2:
                return
            for start in range(0, len(to_h2), self._size or len(to_h2) or 1):
                self.theirs += self.h2.receive_data(to_h2[start : start + (self._size or len(to_h2))])

    def of(self, kind: type[Any]) -> list[Any]:
        """What has been told of that kind, by either, taken out."""
        found = [event for event in [*self.ours, *self.theirs] if type(event) is kind]
        self.ours = [event for event in self.ours if type(event) is not kind]
        self.theirs = [event for event in self.theirs if type(event) is not kind]
        return found


def client_pair(*, single_bytes: bool = False) -> Pair:
    """Our client and h2's server."""
    return Pair(Client(), single_bytes=single_bytes)


def server_pair(*, single_bytes: bool = False, limits: Limits | None = None) -> Pair:
    """Our server and h2's client."""
    return Pair(Server(limits), single_bytes=single_bytes)


def each(kinds: Iterable[type[Any]], events: Iterable[Any]) -> list[Any]:
    """Those of `events` that are of one of these kinds."""
    wanted = tuple(kinds)
    return [event for event in events if isinstance(event, wanted)]
