"""Runs a reader over input in pieces and writes down what it says."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from trioproxy.config.model import Limits
from trioproxy.errors import RequestError, UpstreamProtocolError
from trioproxy.http.h1 import RequestReader, ResponseReader
from trioproxy.http.messages import Event

Said = Event | RequestError | UpstreamProtocolError
Transcript = list[Said]


def read(reader: RequestReader | ResponseReader, pieces: Iterable[bytes], *, eof: bool = False) -> Transcript:
    """All events of the input, an error last; neighbouring pieces of body are joined."""
    said: Transcript = []
    try:
        for piece in pieces:
            reader.feed(piece)
            _drain(reader, said)
        if eof:
            reader.feed_eof()
            _drain(reader, said)
    except (RequestError, UpstreamProtocolError) as exc:
        said.append(exc)
    return said


def _drain(reader: RequestReader | ResponseReader, said: Transcript) -> None:
    while (event := reader.next()) is not None:
        if isinstance(event, bytes):
            assert event
            if said and isinstance(said[-1], bytes):
                event = said.pop() + event  # type: ignore[operator]
        said.append(event)


def comparable(said: Transcript) -> list[object]:
    """A transcript whose errors compare by type and status: a text may tell of what was met first."""
    return [(type(e), e.status) if isinstance(e, Exception) else e for e in said]


def single_bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data cut at these places, which may lie outside it."""
    bounds = [0, *sorted({p for p in places if 0 < p < len(data)}), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


def requests(data: bytes, *, eof: bool = False, limits: Limits | None = None) -> Transcript:
    """What a request reader says about the input, which must not depend on how it is split."""
    limits = limits or Limits()
    said = read(RequestReader(limits), [data], eof=eof)
    assert comparable(read(RequestReader(limits), single_bytes(data), eof=eof)) == comparable(said)
    return said


def response(data: bytes, method: bytes = b"GET", *, upgrade: bool = False, eof: bool = False) -> Transcript:
    """What a response reader says about the input, which must not depend on how it is split."""
    said = read(_expecting(method, upgrade), [data], eof=eof)
    assert comparable(read(_expecting(method, upgrade), single_bytes(data), eof=eof)) == comparable(said)
    return said


def _expecting(method: bytes, upgrade: bool) -> ResponseReader:
    reader = ResponseReader()
    reader.expect(method, upgrade)
    return reader
