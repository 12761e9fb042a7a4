"""Heads of responses, and which of them have no body."""

from __future__ import annotations

import pytest

from tests.http.transcript import read, response
from tests.http.vectors import FRAMING, LINES
from trioproxy.errors import UpstreamProtocolError
from trioproxy.http.h1 import BACKEND_LIMITS, ResponseReader
from trioproxy.http.messages import End, ResponseHead

OK = b"HTTP/1.1 200 OK\r\n"


def refused(data: bytes, *, upgrade: bool = False) -> None:
    said = response(data, upgrade=upgrade)
    assert [type(event) for event in said] == [UpstreamProtocolError]


def head_of(data: bytes, method: bytes = b"GET") -> ResponseHead:
    head = response(data, method)[0]
    assert isinstance(head, ResponseHead), head
    return head


def test_a_response() -> None:
    assert response(OK + b"Server: x\r\nSet-Cookie: a=b\r\nSET-COOKIE: c=d\r\nContent-Length: 2\r\n\r\nhi") == [
        ResponseHead(
            status=200,
            reason=b"OK",
            headers=[(b"server", b"x"), (b"set-cookie", b"a=b"), (b"set-cookie", b"c=d"), (b"content-length", b"2")],
            http_version=(1, 1),
            body_length=2,
            keep_alive=True,
        ),
        b"hi",
        End(),
    ]


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 404 Not Found", 404, b"Not Found"),
        (b"HTTP/1.1 404 ", 404, b""),
        (b"HTTP/1.1 404", 404, b""),
        (b"HTTP/1.0 999 Sorry \xe9\t!", 999, b"Sorry \xe9\t!"),
    ],
)
def test_status_lines(line: bytes, status: int, reason: bytes) -> None:
    head = head_of(line + b"\r\nContent-Length: 0\r\n\r\n")
    assert (head.status, head.reason, head.http_version) == (status, reason, (1, line[7] - ord("0")))


@pytest.mark.parametrize(
    "line",
    [
        b"HTTP/2.0 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/1.2 200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 +20 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200 O\0K",
        b"HTTP/1.1 200 O\rK",
        b"HTTP/1.1 200 O\x1bK",
        b" HTTP/1.1 200 OK",
        b"\r\nHTTP/1.1 200 OK",
        b"HTTP/1.1",
    ],
)
def test_invalid_status_lines(line: bytes) -> None:
    refused(line + b"\r\nContent-Length: 0\r\n\r\n")


@pytest.mark.parametrize("fields", FRAMING.values(), ids=FRAMING)
def test_ambiguous_framing(fields: bytes) -> None:
    refused(OK + fields + b"\r\n")


def test_transfer_encoding_in_http_1_0() -> None:
    refused(b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_broken_field_lines(line: bytes) -> None:
    refused(OK + b"Content-Length: 0\r\n" + line + b"\r\n")


def test_limits() -> None:
    size = BACKEND_LIMITS.header_size
    line = OK + b"Content-Length: 0\r\nX: "
    assert isinstance(response(line + b"y" * (size - len(line) - 4) + b"\r\n\r\n")[0], ResponseHead)
    refused(line + b"y" * (size - len(line) - 3) + b"\r\n\r\n")
    refused(line + b"y" * size)
    count = BACKEND_LIMITS.header_fields
    assert isinstance(response(OK + b"X: y\r\n" * (count - 1) + b"Content-Length: 0\r\n\r\n")[0], ResponseHead)
    refused(OK + b"X: y\r\n" * count + b"Content-Length: 0\r\n\r\n")


# ---- bodies that are not there ------------------------------------------------------------------------


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"])
@pytest.mark.parametrize(
    ("line", "method"),
    [(OK, b"HEAD"), (b"HTTP/1.1 404 No\r\n", b"HEAD"), (b"HTTP/1.1 304 Not Modified\r\n", b"GET")],
)
def test_no_body(line: bytes, method: bytes, framing: bytes) -> None:
    head, *rest = response(line + framing + b"\r\n", method)
    assert isinstance(head, ResponseHead)
    assert head.body_length == 0
    assert head.keep_alive
    assert rest == [End()]


def test_204_has_no_body_and_one_that_claims_to_is_not_trusted_with_another_request() -> None:
    line = b"HTTP/1.1 204 No Content\r\n"
    for framing, keep_alive in (
        (b"", True),
        (b"Content-Length: 0\r\n", True),
        (b"Content-Length: 5\r\n", False),
        (b"Transfer-Encoding: chunked\r\n", False),
    ):
        head, *rest = response(line + framing + b"\r\n")
        assert isinstance(head, ResponseHead)
        assert (head.body_length, head.keep_alive) == (0, keep_alive)
        assert rest == [End()]


def test_1xx_are_followed_by_another_head() -> None:
    said = response(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        + OK
        + b"Content-Length: 2\r\n\r\nhi"
    )
    assert [event.status for event in said if isinstance(event, ResponseHead)] == [100, 103, 200]
    assert said[1] == ResponseHead(103, b"Early Hints", [(b"link", b"</x>")])
    assert said[3:] == [b"hi", End()]


def test_1xx_have_no_body_whatever_they_say() -> None:
    said = response(b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\n" + OK + b"Content-Length: 0\r\n\r\n")
    assert [event.status for event in said if isinstance(event, ResponseHead)] == [100, 200]


def test_1xx_do_not_come_without_end() -> None:
    one = b"HTTP/1.1 102 Processing\r\nX: " + b"y" * 1000 + b"\r\n\r\n"
    some, many = BACKEND_LIMITS.header_size // 2000, BACKEND_LIMITS.header_size // 1000
    answer = OK + b"Content-Length: 0\r\n\r\n"
    assert response(one * some + answer)[-1] == End()
    said = response(one * many + answer)
    assert isinstance(said[-1], UpstreamProtocolError)
    assert len(said) < many
    reader = ResponseReader()
    for _ in range(3):  # each response has its own
        reader.expect(b"GET")
        reader.feed(one * some + answer)
        while not isinstance(reader.next(), End):
            pass


def test_a_1xx_is_no_response() -> None:
    assert isinstance(response(b"HTTP/1.1 100 Continue\r\n\r\n", eof=True)[-1], UpstreamProtocolError)


def test_101() -> None:
    reader = ResponseReader()
    reader.expect(b"GET", upgrade=True)
    reader.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05he")
    reader.feed(b"llo")
    head = reader.next()
    assert isinstance(head, ResponseHead)
    assert (head.status, head.keep_alive) == (101, False)
    assert reader.next() is None
    assert reader.rest() == b"\x81\x05hello"
    assert not reader.reusable


def test_101_unasked() -> None:
    refused(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")


def test_an_upgrade_in_an_ordinary_response_takes_no_body_away() -> None:
    said = response(OK + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 2\r\n\r\nhi", upgrade=True)
    assert said[1:] == [b"hi", End()]


def test_a_declined_upgrade_is_an_ordinary_response() -> None:
    assert response(OK + b"Content-Length: 2\r\n\r\nhi", upgrade=True)[1:] == [b"hi", End()]


# ---- the connection -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "keep_alive"),
    [
        (OK, True),
        (OK + b"Connection: close\r\n", False),
        (OK + b"Connection: x, Close\r\n", False),
        (b"HTTP/1.0 200 OK\r\n", False),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n", True),
    ],
)
def test_keep_alive(start: bytes, keep_alive: bool) -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    said = read(reader, [start + b"Content-Length: 2\r\n\r\nhi"])
    assert isinstance(said[0], ResponseHead)
    assert said[0].keep_alive is keep_alive
    assert reader.reusable is keep_alive


def test_a_body_to_the_end_keeps_nothing_alive() -> None:
    assert not head_of(OK + b"Connection: keep-alive\r\n\r\n").keep_alive


def test_one_response_after_another() -> None:
    reader = ResponseReader()
    for method, length in ((b"GET", 2), (b"HEAD", 0), (b"GET", 2)):
        reader.expect(method)
        assert not reader.reusable
        said = read(reader, [OK + b"Content-Length: 2\r\n\r\n" + b"hi"[:length]])
        assert isinstance(said[0], ResponseHead)
        assert said[0].body_length == length
    assert reader.reusable


@pytest.mark.parametrize("surplus", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"])
def test_what_a_backend_sends_unasked_is_no_answer(surplus: bytes) -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    said = read(reader, [OK + b"Content-Length: 2\r\n\r\nhi" + surplus])
    assert said[1:] == [b"hi", End()]
    assert not reader.reusable
    with pytest.raises(UpstreamProtocolError):
        reader.expect(b"GET")


def test_a_connection_that_ended_carries_no_further_request() -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    read(reader, [OK + b"Content-Length: 2\r\n\r\nhi"], eof=True)
    assert not reader.reusable


def test_an_unfinished_response_is_not_overtaken() -> None:
    reader = ResponseReader()
    reader.expect(b"GET")
    read(reader, [OK + b"Content-Length: 2\r\n\r\nh"])
    with pytest.raises(UpstreamProtocolError):
        reader.expect(b"GET")
