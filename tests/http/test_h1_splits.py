"""What a reader says does not depend on where its input is cut, for good messages and for broken ones."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.transcript import comparable, cut, read, single_bytes
from trioproxy.config.model import Limits
from trioproxy.http.h1 import RequestReader, ResponseReader, encode_chunk, encode_last_chunk
from trioproxy.http.messages import End, ResponseHead

bounded = settings(derandomize=True, max_examples=150, deadline=None)

FIELDS = [b"A: b\r\n", b"X-Long: " + b"y" * 40 + b"\r\n", b"Cookie: a=b\r\n", b"Connection: keep-alive\r\n"]
NOISE = [b"\r", b"\n", b"\r\n", b"\0", b" ", b"\t", b":", b";", b"0", b"f", b",", b"\xff", b"A: b\r\n", b"HTTP/1.1"]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A framing field and the body that it frames."""
    pieces = draw(st.lists(st.binary(min_size=1, max_size=30), max_size=4))
    if draw(st.booleans()):
        whole = b"".join(pieces)
        return b"Content-Length: %d\r\n" % len(whole), whole
    trailers = draw(st.sampled_from([[], [(b"sum", b"1")], [(b"a", b"1"), (b"host", b"x")]]))
    chunks = b"".join(encode_chunk(piece) for piece in pieces)
    extended = chunks.replace(b"\r\n", b";ext=1\r\n", 1) if chunks and draw(st.booleans()) else chunks
    return b"Transfer-Encoding: chunked\r\n", extended + encode_last_chunk(trailers)


@st.composite
def messages(draw: st.DrawFn, first: bytes) -> bytes:
    framing, body = draw(st.one_of(st.just((b"", b"")), bodies()))
    fields = draw(st.lists(st.sampled_from(FIELDS), max_size=4))
    return first + b"".join(fields) + framing + b"\r\n" + body


@st.composite
def with_noise(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Input with at most one thing put in, taken out or replaced."""
    data = draw(good)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data)))
        taken = draw(st.integers(0, 2))
        data = data[:at] + draw(st.sampled_from([b"", *NOISE])) + data[at + taken :]
    return data


POST = b"POST /x?y HTTP/1.1\r\nHost: a.example\r\n"
pipelines = st.lists(messages(POST), min_size=1, max_size=3).map(b"".join)
places = st.lists(st.integers(0, 600), max_size=12)


@bounded
@given(data=with_noise(pipelines), places=places, eof=st.booleans())
def test_requests(data: bytes, places: list[int], eof: bool) -> None:
    def said(pieces: list[bytes]) -> list[object]:
        return comparable(read(RequestReader(Limits()), pieces, eof=eof))

    whole = said([data])
    assert said(single_bytes(data)) == whole
    assert said(cut(data, places)) == whole


@bounded
@given(
    data=with_noise(messages(b"HTTP/1.1 200 OK\r\nVary: x\r\n")),
    early=st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Hints\r\nLink: x\r\n\r\n"]),
    places=places,
    method=st.sampled_from([b"GET", b"HEAD"]),
    eof=st.booleans(),
)
def test_responses(data: bytes, early: bytes, places: list[int], method: bytes, eof: bool) -> None:
    def said(pieces: list[bytes]) -> list[object]:
        reader = ResponseReader()
        reader.expect(method)
        return comparable(read(reader, pieces, eof=eof))

    whole = said([early + data])
    assert said(single_bytes(early + data)) == whole
    assert said(cut(early + data, places)) == whole


@bounded
@given(data=pipelines, places=places)
def test_pieces_fed_at_once_are_the_same_as_pieces_fed_in_turn(data: bytes, places: list[int]) -> None:
    reader = RequestReader(Limits())
    for piece in cut(data, places):
        reader.feed(piece)
    said = read(reader, [b""])
    assert comparable(said) == comparable(read(RequestReader(Limits()), [data]))


@bounded
@given(data=messages(b"HTTP/1.1 200 OK\r\n"), places=places)
def test_no_part_of_a_response_looks_whole(data: bytes, places: list[int]) -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    head = read(reader, [data])[0]
    assert isinstance(head, ResponseHead)
    if head.body_length is None and b"chunked" not in data:
        return  # it ends with the connection, wherever that is
    for length in places:
        if length < len(data):
            reader = ResponseReader()
            reader.expect(b"GET")
            said = read(reader, [data[:length]], eof=True)
            assert not any(isinstance(event, End) for event in said)
