"""A client connection: what a request says about it, and how one request follows another."""

from __future__ import annotations

import pytest

from tests.http.transcript import read, requests
from tests.http.vectors import GET, GET10, POST, head_of, refused
from trioproxy.config.model import Limits
from trioproxy.errors import RequestError
from trioproxy.http.h1 import RequestReader
from trioproxy.http.messages import End, RequestHead

# ---- Connection, Expect, Upgrade ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "keep_alive"),
    [
        (GET, True),
        (GET + b"Connection: keep-alive\r\n", True),
        (GET + b"Connection: close\r\n", False),
        (GET + b"Connection: x, CLOSE ,y\r\n", False),
        (GET + b"Connection: keep-alive\r\nConnection: close\r\n", False),
        (GET + b"Connection: closed\r\n", True),
        (GET10, False),
        (GET10 + b"Connection: Keep-Alive\r\n", True),
        (GET10 + b"Connection: keep-alive, close\r\n", False),
    ],
)
def test_keep_alive(data: bytes, keep_alive: bool) -> None:
    assert head_of(data + b"\r\n").keep_alive is keep_alive
    second = requests((data + b"\r\n") * 2)[2:]
    assert [type(event) for event in second] == ([RequestHead, End] if keep_alive else [])


def test_closed_after_the_last_request() -> None:
    reader = RequestReader(Limits())
    read(reader, [GET + b"Connection: close\r\n\r\n" + GET])
    assert reader.closed


def test_expect() -> None:
    assert head_of(POST + b"Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n").expect_continue
    assert head_of(POST + b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n").expect_continue
    assert not head_of(POST + b"Content-Length: 0\r\nExpect: 100-continue\r\n\r\n").expect_continue
    assert not head_of(b"POST / HTTP/1.0\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").expect_continue


@pytest.mark.parametrize("value", [b"", b"200-ok", b"100-continue, x", b"100-continuex"])
def test_other_expectations(value: bytes) -> None:
    refused(POST + b"Content-Length: 5\r\nExpect: " + value + b"\r\n\r\n", 417)


def upgrade(token: bytes, method: bytes = b"GET", more: bytes = b"", connection: bytes = b"Upgrade") -> bytes | None:
    data = b"%b / HTTP/1.1\r\nHost: a\r\nConnection: %b\r\nUpgrade: %b\r\n%b\r\n" % (method, connection, token, more)
    return head_of(data).upgrade


def test_upgrades() -> None:
    assert upgrade(b"WebSocket") == b"websocket"
    assert upgrade(b"websocket", connection=b"keep-alive, upgrade") == b"websocket"
    assert upgrade(b"websocket", more=b"Content-Length: 0\r\n") == b"websocket"
    assert upgrade(b"SPDY/3.1", method=b"POST") == b"spdy/3.1"


@pytest.mark.parametrize("token", [b"h2c", b"H2C", b"HTTP/2.0", b"http/1.1", b"TLS/1.0", b"tls/1.3", b"h2c, TLS/1.2"])
def test_upgrades_that_are_never_passed_on(token: bytes) -> None:
    assert upgrade(token) is None


def test_upgrade_wants_its_conditions() -> None:
    assert upgrade(b"websocket", method=b"POST") is None
    assert upgrade(b"websocket", connection=b"keep-alive") is None
    assert upgrade(b"websocket", more=b"Content-Length: 5\r\n") is None
    assert upgrade(b"websocket", more=b"Transfer-Encoding: chunked\r\n") is None
    assert upgrade(b"other", more=b"Content-Length: 5\r\n") is None
    assert head_of(GET10 + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n").upgrade is None


def test_a_body_is_not_lost_behind_an_upgrade() -> None:
    said = requests(POST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello" + GET + b"\r\n")
    assert said[1:3] == [b"hello", End()]
    assert isinstance(said[3], RequestHead)


def test_what_follows_an_upgrade_waits() -> None:
    reader = RequestReader(Limits())
    reader.feed(GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05he")
    assert isinstance(reader.next(), RequestHead)
    assert reader.next() == End()
    reader.feed(b"llo")
    assert reader.rest() == b"\x81\x05hello"
    assert reader.rest() == b""
    assert reader.next() is None


def test_a_declined_upgrade_leaves_the_next_request() -> None:
    said = requests(GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n" + GET + b"\r\n")
    assert [type(event) for event in said] == [RequestHead, End, RequestHead, End]


# ---- between requests ---------------------------------------------------------------------------------


def test_pipelined_requests_come_one_at_a_time() -> None:
    reader = RequestReader(Limits())
    reader.feed(POST + b"Content-Length: 2\r\n\r\nhi" + b"GET /2 HTTP/1.1\r\nHost: b\r\n\r\n" + b"GET /3 HT")
    first, body, end = reader.next(), reader.next(), reader.next()
    assert isinstance(first, RequestHead)
    assert (first.body_length, body, end) == (2, b"hi", End())
    second = reader.next()
    assert isinstance(second, RequestHead)
    assert (second.target, second.authority) == (b"/2", b"b")
    assert reader.next() == End()
    assert reader.next() is None
    assert reader.unread


def test_unread() -> None:
    reader = RequestReader(Limits())
    for data, events, unread in (
        (b"", 0, False),
        (b"G", 0, True),
        (b"ET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 2, False),
        (b"\r\n", 0, False),
        (GET, 0, True),
        (b"Content-Length: 5\r\n\r\nhe", 2, False),
    ):
        assert len(read(reader, [data])) == events
        assert reader.unread is unread


def test_one_empty_line_before_a_request() -> None:
    request = GET + b"\r\n"
    assert [type(event) for event in requests(b"\r\n" + request + b"\r\n" + request)] == [RequestHead, End] * 2


@pytest.mark.parametrize("start", [b"\r\n\r\n", b"\n", b"\r", b"\rX", b" \r\n"])
def test_anything_else_before_a_request(start: bytes) -> None:
    refused(start + GET + b"\r\n", 400)


def test_eof_between_requests() -> None:
    for data in (b"", b"\r\n", GET + b"\r\n", POST + b"Content-Length: 1\r\n\r\nx\r\n"):
        reader = RequestReader(Limits())
        said = read(reader, [data], eof=True)
        assert not any(isinstance(event, RequestError) for event in said)
        assert reader.closed
        assert reader.next() is None


@pytest.mark.parametrize("cut_at", range(1, len(GET) + 2))
def test_eof_inside_a_head(cut_at: int) -> None:
    reader = RequestReader(Limits())
    said = read(reader, [(GET + b"\r\n")[:cut_at]], eof=True)
    assert [type(event) for event in said] == [RequestError]
    assert not reader.closed


def test_a_request_is_answered_after_eof() -> None:
    reader = RequestReader(Limits())
    reader.feed(GET + b"\r\n" + GET + b"\r\n")
    reader.feed_eof()
    events = [reader.next() for _ in range(4)]
    assert [type(event) for event in events] == [RequestHead, End, RequestHead, End]
    assert not reader.closed
    assert reader.next() is None
    assert reader.closed


def test_a_broken_reader_stays_broken() -> None:
    reader = RequestReader(Limits())
    reader.feed(b"GET / HTTP/1.1\r\n\r\n" + GET + b"\r\n")
    for _ in range(3):
        with pytest.raises(RequestError):
            reader.next()
