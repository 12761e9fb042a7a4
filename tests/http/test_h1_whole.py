"""Messages that are taken at their heads: `over` for those without a body, `whole` for bodies that are there."""

from __future__ import annotations

import pytest

from trioproxy.config.model import Limits
from trioproxy.errors import UpstreamProtocolError
from trioproxy.http.h1 import RequestReader, ResponseReader
from trioproxy.http.messages import END, RequestHead, ResponseHead

GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"

POST = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2\r\n\r\n"

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def requests(data: bytes) -> RequestReader:
    """A reader whose first head has been read."""
    reader = RequestReader(Limits())
    reader.feed(data)
    assert isinstance(reader.next(), RequestHead)
    return reader


def responses(*pieces: bytes, method: bytes = b"GET") -> ResponseReader:
    """The same, of a response that came in these pieces."""
    reader = ResponseReader()
    reader.expect(method)
    for piece in pieces:
        reader.feed(piece)
    assert isinstance(reader.next(), ResponseHead)
    return reader


def test_a_request_without_a_body_is_over_with_its_head() -> None:
    reader = requests(GET + GET)
    assert reader.over()
    assert not reader.over()  # the next one has not begun
    assert isinstance(reader.next(), RequestHead)  # and no End comes between
    assert reader.next() is END
    assert not reader.over()


def test_the_last_request_is_over_and_nothing_follows() -> None:
    reader = requests(GET.replace(b"Host", b"Connection: close\r\nHost") + GET)
    assert reader.over()
    assert reader.closed
    assert reader.next() is None


def test_a_request_with_a_body_is_over_behind_it() -> None:
    reader = requests(POST)
    assert not reader.over()
    reader.feed(b"hi" + GET)
    assert not reader.over()
    assert reader.next() == b"hi"
    assert reader.over()
    assert isinstance(reader.next(), RequestHead)


def test_a_chunked_body_is_not_over_before_its_trailers() -> None:
    reader = responses(CHUNKED + b"0\r\n")
    assert reader.next() is None
    assert not reader.over()
    assert reader.whole() is None
    reader.feed(b"\r\n")
    assert reader.next() is END
    assert reader.reusable


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_response_without_a_body_is_whole(method: bytes) -> None:
    head = OK if method == b"HEAD" else b"HTTP/1.1 204 No Content\r\n\r\n"
    reader = responses(head, method=method)
    assert reader.whole() == b""
    assert reader.reusable
    assert reader.next() is None


@pytest.mark.parametrize("pieces", [(OK + b"hello",), (OK[:-1], OK[-1:] + b"hello")])
def test_a_body_that_is_all_there_is_whole(pieces: tuple[bytes, ...]) -> None:
    reader = responses(*pieces)
    assert reader.whole() == b"hello"
    assert reader.reusable
    assert reader.next() is None
    assert reader._data == b""  # an idle connection keeps nothing
    reader.expect(b"GET")
    reader.feed(OK + b"again")
    assert isinstance(reader.next(), ResponseHead)
    assert reader.whole() == b"again"


@pytest.mark.parametrize("pieces", [(OK,), (OK + b"hell",), (OK + b"hel", b"lo")])
def test_a_body_in_parts_is_had_part_by_part(pieces: tuple[bytes, ...]) -> None:
    reader = responses(*pieces)
    assert reader.whole() is None
    if b"".join(pieces) != OK + b"hello":
        reader.feed((OK + b"hello")[len(b"".join(pieces)) :])
    body = b""
    while (event := reader.next()) is not END:
        assert isinstance(event, bytes)
        body += event
    assert body == b"hello"
    assert reader.reusable


@pytest.mark.parametrize("pieces", [(OK + b"hello!",), (OK + b"hello", b"!")])
def test_what_stands_behind_a_body_is_not_part_of_it(pieces: tuple[bytes, ...]) -> None:
    reader = responses(*pieces)
    whole = reader.whole()
    assert whole in (None, b"hello")
    if whole is None:
        assert [reader.next(), reader.next()] == [b"hello", END]
    assert not reader.reusable
    with pytest.raises(UpstreamProtocolError):
        reader.expect(b"GET")


def test_a_body_that_ends_with_the_connection_is_never_whole_before() -> None:
    reader = responses(b"HTTP/1.1 200 OK\r\n\r\nhello")
    assert reader.whole() is None
    assert reader.next() == b"hello"
    assert reader.whole() is None
    reader.feed_eof()
    assert reader.next() is END
    assert not reader.reusable
