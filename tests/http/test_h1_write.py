from __future__ import annotations

import pytest

from tests.http.transcript import requests, response
from trioproxy.http.h1 import (
    chunk_prefix,
    encode_chunk,
    encode_last_chunk,
    encode_request_head,
    encode_response_head,
)
from trioproxy.http.messages import End, Headers, RequestHead, ResponseHead


def test_heads() -> None:
    assert encode_request_head(b"GET", b"/x?y", [(b"host", b"a"), (b"x", b"")]) == (
        b"GET /x?y HTTP/1.1\r\nhost: a\r\nx: \r\n\r\n"
    )
    assert encode_response_head(404, b"Not Found", [(b"a", b"b")]) == b"HTTP/1.1 404 Not Found\r\na: b\r\n\r\n"
    assert encode_response_head(299, b"", []) == b"HTTP/1.1 299 \r\n\r\n"


def test_chunks() -> None:
    assert encode_chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert chunk_prefix(65_536) == b"10000\r\n"
    assert encode_last_chunk() == b"0\r\n\r\n"
    assert encode_last_chunk([(b"a", b"b")]) == b"0\r\na: b\r\n\r\n"


def test_an_empty_chunk_is_never_written() -> None:
    with pytest.raises(ValueError, match="end the body"):
        encode_chunk(b"")
    with pytest.raises(ValueError, match="end the body"):
        chunk_prefix(0)


@pytest.mark.parametrize("bad", [b"\r\n", b"\r", b"\n", b"\0", b"a\r\nb: c", b"\n\r"])
def test_line_ends_and_nul_are_never_written(bad: bytes) -> None:
    fields: list[Headers] = [[(b"a", b"x" + bad + b"y")], [(b"a" + bad, b"b")], [(b"a", b"b"), (b"c", bad)]]
    for headers in fields:
        with pytest.raises(ValueError, match="line end or NUL"):
            encode_request_head(b"GET", b"/", headers)
        with pytest.raises(ValueError, match="line end or NUL"):
            encode_response_head(200, b"OK", headers)
        with pytest.raises(ValueError, match="line end or NUL"):
            encode_last_chunk(headers)
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_request_head(b"GET", b"/" + bad, [])
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_request_head(b"G" + bad, b"/", [])
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_response_head(200, bad, [])


def test_our_reader_reads_what_we_write() -> None:
    fields = [(b"x-a", b"1"), (b"transfer-encoding", b"chunked")]
    chunks = encode_chunk(b"hello") + chunk_prefix(6) + b" world" + b"\r\n" + encode_last_chunk([(b"sum", b"9")])
    assert requests(encode_request_head(b"POST", b"/x", [(b"host", b"a"), *fields]) + chunks) == [
        RequestHead(b"POST", b"/x", b"a", fields, body_length=None),
        b"hello world",
        End(((b"sum", b"9"),)),
    ]
    assert response(encode_response_head(200, b"OK", fields) + chunks) == [
        ResponseHead(200, b"OK", fields, body_length=None),
        b"hello world",
        End(((b"sum", b"9"),)),
    ]
