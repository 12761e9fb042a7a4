"""Bodies, which both directions read alike: by length, in chunks, to the end of the connection."""

from __future__ import annotations

import pytest

from tests.http.transcript import Transcript, read, requests, response
from trioproxy.config.model import Limits
from trioproxy.errors import RequestError, UpstreamProtocolError
from trioproxy.http.h1 import RequestReader, ResponseReader
from trioproxy.http.h1_body import MAX_CHUNK_LINE, MAX_EXTENSIONS, MAX_TRAILERS
from trioproxy.http.messages import End, RequestHead

SIZED = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n"


def body(data: bytes) -> Transcript:
    """What comes of a chunked request after its head."""
    said = requests(CHUNKED + data)
    assert isinstance(said[0], RequestHead)
    assert said[0].body_length is None
    return said[1:]


def broken(data: bytes, after: bytes = b"", status: int = 400) -> None:
    """The body breaks after these bytes, and no End is said."""
    said = body(data)
    error = said.pop()
    assert isinstance(error, RequestError)
    assert error.status == status
    assert b"".join(event for event in said if isinstance(event, bytes)) == after
    assert End() not in said


def test_content_length() -> None:
    said = requests(SIZED % 5 + b"hello" + NEXT)
    assert [said[0].body_length, *said[1:3]] == [5, b"hello", End()]  # type: ignore[union-attr]
    assert said[3].target == b"/next"  # type: ignore[union-attr]


def test_content_length_zero_ends_at_once() -> None:
    assert requests(SIZED % 0)[1:] == [End()]


def test_the_largest_content_length_is_counted() -> None:
    reader = RequestReader(Limits())
    reader.feed(SIZED % ((1 << 63) - 1))
    head = reader.next()
    assert isinstance(head, RequestHead)
    assert head.body_length == (1 << 63) - 1


def test_chunks() -> None:
    assert body(b"5\r\nhello\r\n00000000000000Ab\r\n" + b"x" * 0xAB + b"\r\n0\r\n\r\n") == [
        b"hello" + b"x" * 0xAB,
        End(),
    ]


def test_a_chunked_message_ends_where_the_next_begins() -> None:
    said = body(b"2\r\nhi\r\n0\r\n\r\n" + NEXT)
    assert said[:2] == [b"hi", End()]
    assert said[2].target == b"/next"  # type: ignore[union-attr]


def test_a_chunked_body_inside_a_chunk_is_data() -> None:
    inner = b"0\r\n\r\n" + NEXT
    assert body(b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner)) == [inner, End()]


CHUNK_SIZES = {
    "not hex": b"g\r\n",
    "empty": b"\r\n",
    "0x": b"0x5\r\nhello\r\n",
    "plus": b"+5\r\nhello\r\n",
    "minus": b"-5\r\nhello\r\n",
    "underscore": b"1_0\r\n",
    "leading space": b" 5\r\nhello\r\n",
    "trailing space": b"5 \r\nhello\r\n",
    "space before an extension": b"5 ;x\r\nhello\r\n",
    "17 digits": b"00000000000000005\r\nhello\r\n",
    "17 significant digits": b"10000000000000005\r\nhello\r\n",
    "LF alone": b"5\nhello\r\n",
    "CR alone": b"5\rhello\r\n",
    "CR CR LF": b"5\r\r\nhello\r\n",
    "NUL": b"5\0\r\nhello\r\n",
    "comma": b"5,5\r\nhello\r\n",
    "non-ASCII digit": b"\xb2\r\n",
    "bare CR in an extension": b"5;a\rb\r\nhello\r\n",
    "LF alone after an extension": b"5;a\nhello\r\n",
    "NUL in an extension": b"5;a\0\r\nhello\r\n",
}


@pytest.mark.parametrize("line", CHUNK_SIZES.values(), ids=CHUNK_SIZES)
def test_invalid_chunk_sizes(line: bytes) -> None:
    broken(line + b"0\r\n\r\n")
    broken(b"2\r\nhi\r\n" + line + b"0\r\n\r\n", after=b"hi")


@pytest.mark.parametrize("end", [b"\n", b"\r", b"", b"x\r\n", b"\r\r\n", b" \r\n", b"\n\r\n"])
def test_a_chunk_ends_with_crlf_where_its_size_says(end: bytes) -> None:
    broken(b"5\r\nhello" + end + b"0\r\n\r\n", after=b"hello")


@pytest.mark.parametrize("end", [b"0\n\r\n", b"0\r\n\n", b"0\r\n\r\r\n\r\n", b"0\r\nX: y\n\r\n\r\n"])
def test_the_last_chunk_ends_with_crlf(end: bytes) -> None:
    broken(b"2\r\nhi\r\n" + end, after=b"hi")


def test_chunk_extensions_are_dropped() -> None:
    assert body(b'5;a=b;c="d e"\r\nhello\r\n0;x\r\n\r\n') == [b"hello", End()]


def test_a_chunk_line_has_a_cap() -> None:
    fits = b"2;" + b"x" * (MAX_CHUNK_LINE - 4) + b"\r\n"
    assert len(fits) == MAX_CHUNK_LINE
    assert body(fits + b"hi\r\n0\r\n\r\n") == [b"hi", End()]
    broken(b"2;" + b"x" * (MAX_CHUNK_LINE - 3) + b"\r\nhi\r\n0\r\n\r\n")
    broken(b"2;" + b"x" * MAX_CHUNK_LINE)  # refused without its end
    parts = [CHUNKED, b"2;" + b"x" * (MAX_CHUNK_LINE - 100), b"x" * 100 + b"\r\nhi\r\n0\r\n\r\n"]
    assert isinstance(read(RequestReader(Limits()), parts)[-1], RequestError)


def test_the_extensions_of_a_body_have_a_cap() -> None:
    chunk = b"1;" + b"x" * 999 + b"\r\na\r\n"
    fitting = MAX_EXTENSIONS // 1000
    assert body(chunk * fitting + b"0\r\n\r\n") == [b"a" * fitting, End()]
    broken(chunk * (fitting + 1) + b"0\r\n\r\n", after=b"a" * fitting)
    two = body(chunk * fitting + b"0\r\n\r\n" + CHUNKED + chunk * fitting + b"0\r\n\r\n")
    assert two[-2:] == [b"a" * fitting, End()]  # the cap is one body's, not the connection's


def test_trailers() -> None:
    said = body(b"2\r\nhi\r\n0\r\nX-Sum:  abc \r\nY:\r\nX-SUM: def\r\n\r\n" + NEXT)
    assert said[:2] == [b"hi", End(((b"x-sum", b"abc"), (b"y", b""), (b"x-sum", b"def")))]
    assert said[2].target == b"/next"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "name",
    [
        b"Content-Length",
        b"Transfer-Encoding",
        b"Host",
        b"Authorization",
        b"Proxy-Authorization",
        b"Cookie",
        b"Set-Cookie",
        b"Connection",
        b"Trailer",
        b"TE",
        b"Upgrade",
        b"Expect",
        b"Content-Encoding",
        b"Content-Type",
        b"X-Forwarded-For",
        b"X_Forwarded_For",
        b"X-Real-IP",
        b"Forwarded",
        b"Via",
    ],
)
def test_trailers_that_are_dropped(name: bytes) -> None:
    assert body(b"0\r\nA: 1\r\n" + name + b": x\r\nB: 2\r\n\r\n") == [End(((b"a", b"1"), (b"b", b"2")))]


@pytest.mark.parametrize(
    "line", [b"X : y\r\n", b" X: y\r\n", b"X: y\r\n z\r\n", b"X\r\n", b": y\r\n", b"X: y\0\r\n", b"X: y\rz\r\n"]
)
def test_broken_trailers(line: bytes) -> None:
    broken(b"2\r\nhi\r\n0\r\n" + line + b"\r\n", after=b"hi")


def test_trailers_have_caps() -> None:
    fits = b"X: " + b"y" * (MAX_TRAILERS - 9) + b"\r\n\r\n"
    assert body(b"0\r\n" + fits) == [End(((b"x", b"y" * (MAX_TRAILERS - 9)),))]
    broken(b"0\r\nX: " + b"y" * MAX_TRAILERS, status=431)
    broken(b"0\r\n" + b"X: y\r\n" * 101 + b"\r\n", status=431)
    assert len(body(b"0\r\n" + b"X: y\r\n" * 100 + b"\r\n")[0].trailers) == 100  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "message", [SIZED % 5 + b"hello", CHUNKED + b"5;x\r\nhello\r\n0\r\nA: b\r\n\r\n"], ids=["sized", "chunked"]
)
def test_eof_inside_a_request(message: bytes) -> None:
    for length in range(1, len(message)):
        said = read(RequestReader(Limits()), [message[:length]], eof=True)
        assert isinstance(said[-1], RequestError)
        assert End() not in said


@pytest.mark.parametrize(
    "message",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nA: b\r\n\r\n",
    ],
    ids=["sized", "chunked"],
)
def test_eof_inside_a_response(message: bytes) -> None:
    for length in range(len(message)):
        said = response(message[:length], eof=True)
        assert isinstance(said[-1], UpstreamProtocolError)
        assert End() not in said


def test_a_body_to_the_end_of_the_connection() -> None:
    data = b"HTTP/1.1 200 OK\r\n\r\nhello"
    assert response(data)[1:] == [b"hello"]
    assert response(data, eof=True)[1:] == [b"hello", End()]
    assert response(b"HTTP/1.1 200 OK\r\n\r\n", eof=True)[1:] == [End()]


# ---- copies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [SIZED % 200_000, CHUNKED + b"%x\r\n" % 200_000], ids=["sized", "chunked"])
def test_large_pieces_of_a_request_are_not_copied(start: bytes) -> None:
    reader = RequestReader(Limits())
    read(reader, [start])
    for size in (65_536, 65_536, 65_536):
        piece = bytes(size)
        reader.feed(piece)
        assert reader.next() is piece
        assert reader.next() is None


def test_large_pieces_of_a_response_are_not_copied() -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    read(reader, [b"HTTP/1.0 200 OK\r\n\r\n"])
    piece = bytes(65_536)
    reader.feed(piece)
    assert reader.next() is piece


def test_pieces_fed_while_others_wait_are_not_joined() -> None:
    reader = RequestReader(Limits())
    pieces = [SIZED % 9, b"abc", b"", b"def", b"ghi" + NEXT]
    for piece in pieces:
        reader.feed(piece)
    assert isinstance(reader.next(), RequestHead)
    assert reader.next() is pieces[1]
    assert reader.next() is pieces[3]
    assert reader.next() == b"ghi"
    assert reader.next() == End()
    assert isinstance(reader.next(), RequestHead)
