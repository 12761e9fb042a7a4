"""Heads of requests: what is read, and the answer to each that must not be."""

from __future__ import annotations

import pytest

from tests.http.transcript import read, requests, single_bytes
from trioproxy.config.model import Limits
from trioproxy.errors import RequestError
from trioproxy.http.h1 import MAX_TARGET, RequestReader
from trioproxy.http.messages import End, RequestHead

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\n"
GET10 = b"GET / HTTP/1.0\r\n"


def head_of(data: bytes) -> RequestHead:
    head = requests(data)[0]
    assert isinstance(head, RequestHead), head
    return head


def refusal_of(data: bytes, *, eof: bool = False, limits: Limits | None = None) -> RequestError:
    said = requests(data, eof=eof, limits=limits)
    assert isinstance(said[-1], RequestError), said
    return said[-1]


def refused(data: bytes, status: int) -> None:
    """The head itself is refused: no event comes before the error."""
    said = requests(data)
    assert len(said) == 1
    assert isinstance(said[0], RequestError), said
    assert said[0].status == status


def test_a_browsers_get() -> None:
    said = requests(
        b"GET /a%2Fb?c=d&e HTTP/1.1\r\nHost: Cloud.Example:8443\r\nUser-Agent: x/1 (y)\r\nACCEPT:*/*\r\n"
        b"Cookie:  a=b; c=d \t\r\nX-Empty:\r\nX_Under: 1\r\nX-Latin: caf\xe9\r\n\r\n"
    )
    assert said == [
        RequestHead(
            method=b"GET",
            target=b"/a%2Fb?c=d&e",
            authority=b"Cloud.Example:8443",
            headers=[
                (b"user-agent", b"x/1 (y)"),
                (b"accept", b"*/*"),
                (b"cookie", b"a=b; c=d"),
                (b"x-empty", b""),
                (b"x_under", b"1"),
                (b"x-latin", b"caf\xe9"),
            ],
            http_version=(1, 1),
            body_length=0,
            keep_alive=True,
            upgrade=None,
            expect_continue=False,
        ),
        End(),
    ]


def test_framing_fields_are_kept_as_sent() -> None:
    assert head_of(POST + b"Content-Length: 007\r\n\r\n").headers == [(b"content-length", b"007")]
    assert head_of(POST + b"Transfer-Encoding: Chunked\r\n\r\n").headers == [(b"transfer-encoding", b"Chunked")]


@pytest.mark.parametrize("method", [b"PROPFIND", b"M-SEARCH", b"BASELINE-CONTROL", b"get", b"X!#$%&'*+-.^_`|~9"])
def test_any_token_is_a_method(method: bytes) -> None:
    assert head_of(method + b" / HTTP/1.1\r\nHost: a\r\n\r\n").method == method


FRAMING = {
    "Content-Length and Transfer-Encoding": b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "Transfer-Encoding and Content-Length": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "TE gzip": b"Transfer-Encoding: gzip\r\n",
    "TE identity": b"Transfer-Encoding: identity\r\n",
    "TE gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n",
    "TE chunked, gzip": b"Transfer-Encoding: chunked, gzip\r\n",
    "TE chunked, chunked": b"Transfer-Encoding: chunked, chunked\r\n",
    "TE chunked, chunked in two fields": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "TE chunked and identity": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "TE with a parameter": b"Transfer-Encoding: chunked;q=1\r\n",
    "TE with a comma": b"Transfer-Encoding: chunked,\r\n",
    "TE quoted": b'Transfer-Encoding: "chunked"\r\n',
    "TE xchunked": b"Transfer-Encoding: xchunked\r\n",
    "TE with a vertical tab": b"Transfer-Encoding: \x0bchunked\r\n",
    "TE empty": b"Transfer-Encoding:\r\n",
    "Content-Length doubled": b"Content-Length: 5\r\nContent-Length: 5\r\n",
    "Content-Length twice, different": b"Content-Length: 5\r\nContent-Length: 6\r\n",
    "Content-Length listed": b"Content-Length: 5, 5\r\n",
    "Content-Length +5": b"Content-Length: +5\r\n",
    "Content-Length -5": b"Content-Length: -5\r\n",
    "Content-Length 0x5": b"Content-Length: 0x5\r\n",
    "Content-Length 1_0": b"Content-Length: 1_0\r\n",
    "Content-Length 5 5": b"Content-Length: 5 5\r\n",
    "Content-Length 5.0": b"Content-Length: 5.0\r\n",
    "Content-Length empty": b"Content-Length:\r\n",
    "Content-Length blank": b"Content-Length: \t\r\n",
    "Content-Length superscript": b"Content-Length: \xb2\r\n",
    "Content-Length of 2^63": b"Content-Length: 9223372036854775808\r\n",
    "Content-Length of 2^64": b"Content-Length: 18446744073709551616\r\n",
    "Content-Length of 2^64 + 5": b"Content-Length: 18446744073709551621\r\n",
    "Content-Length of 20 digits": b"Content-Length: 00000000000000000005\r\n",
}

LINES = {
    "space before a colon": b"X : y\r\n",
    "space before a colon in TE": b"Transfer-Encoding : chunked\r\n",
    "tab before a colon": b"X\t: y\r\n",
    "obs-fold with a space": b"X: y\r\n z\r\n",
    "obs-fold with a tab": b"X: y\r\n\tz\r\n",
    "obs-fold of an empty value": b"X:\r\n y\r\n",
    "leading space": b" X: y\r\n",
    "no colon": b"X\r\n",
    "no name": b": y\r\n",
    "bare LF": b"X: y\n",
    "bare LF in a value": b"X: y\nTransfer-Encoding: chunked\r\n",
    "bare CR in a value": b"X: y\rTransfer-Encoding: chunked\r\n",
    "bare CR before CRLF": b"X: y\r\r\n",
    "bare CR in a name": b"X\ry: z\r\n",
    "NUL in a value": b"X: y\0z\r\n",
    "NUL in a name": b"X\0: y\r\n",
    "non-ASCII name": b"X\xe9: y\r\n",
    "name in parentheses": b"(X): y\r\n",
}


@pytest.mark.parametrize("fields", FRAMING.values(), ids=FRAMING)
def test_ambiguous_framing(fields: bytes) -> None:
    refused(POST + fields + b"\r\n", 400)


def test_transfer_encoding_in_http_1_0() -> None:
    refused(b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 400)


@pytest.mark.parametrize("line", LINES.values(), ids=LINES)
def test_broken_field_lines(line: bytes) -> None:
    refused(GET + line + b"\r\n", 400)
    refused(b"GET / HTTP/1.1\r\n" + line + b"Host: a.example\r\n\r\n", 400)


@pytest.mark.parametrize("byte", [b for b in range(256) if (b < 32 and b != 9) or b == 127])
def test_controls_in_values(byte: int) -> None:
    refused(GET + b"X: y%cz\r\n\r\n" % byte, 400)


@pytest.mark.parametrize("byte", b'\t "(),/;<=>?@[\\]{}\x7f\x80\xff')
def test_names_are_tokens(byte: int) -> None:
    refused(GET + b"X%cY: z\r\n\r\n" % byte, 400)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/0.9", 505),
        (b"GET / HTTP/1.2", 505),
        (b"GET / HTTP/2.0", 505),
        (b"PRI * HTTP/2.0", 505),
        (b"GET / HTTP/3.0", 505),
        (b"GET /", 400),
        (b"GET / ", 400),
        (b"GET / HTTP/1.10", 400),
        (b"GET / HTTP/01.1", 400),
        (b"GET / HTTP/1,1", 400),
        (b"GET / HTTP/1", 400),
        (b"GET / HTTP/1.1 ", 400),
        (b"GET / http/1.1", 400),
        (b"GET / XTTP/1.1", 400),
        (b"GET  / HTTP/1.1", 400),
        (b"GET /  HTTP/1.1", 400),
        (b"GET\t/ HTTP/1.1", 400),
        (b" GET / HTTP/1.1", 400),
        (b"GET", 400),
        (b"GE(T / HTTP/1.1", 400),
        (b"G\xc9T / HTTP/1.1", 400),
        (b"/ HTTP/1.1", 400),
    ],
)
def test_request_lines(line: bytes, status: int) -> None:
    refused(line + b"\r\nHost: a\r\n\r\n", status)


@pytest.mark.parametrize(
    "target",
    [b"/a#b", b"/#", b"#", b"/a b", b"/a\tb", b"/\0", b"/\x1f", b"/\x7f", b"/\xe9", b"a", b"a/b", b"?a", b"*", b"*/a"],
)
def test_invalid_targets(target: bytes) -> None:
    refused(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n", 400)


@pytest.mark.parametrize("target", [b"/%00", b"/..//%2e%2E/", b"//host/x", b"/a?b?c=/#"[:-1], b'/"<>[]\\^`{|}'])
def test_targets_are_kept_byte_for_byte(target: bytes) -> None:
    assert head_of(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n").target == target


def test_target_of_options() -> None:
    assert head_of(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"


@pytest.mark.parametrize("line", [b"CONNECT a:443", b"CONNECT /", b"TRACE /"])
def test_methods_that_are_not_done(line: bytes) -> None:
    refused(line + b" HTTP/1.1\r\nHost: a\r\n\r\n", 405)


def test_authority_form_belongs_to_connect() -> None:
    refused(b"GET a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 400)


# ---- Host ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        b"",
        b"Host: a\r\nHost: a\r\n",
        b"Host: a\r\nX: y\r\nHost: b\r\n",
        b"Host:\r\n",
        b"Host: a b\r\n",
        b"Host: a, b\r\n",
        b"Host: a/b\r\n",
        b"Host: u@a\r\n",
        b"Host: a:\r\n",
        b"Host: a:0\r\n",
        b"Host: a:65536\r\n",
        b"Host: a:8x\r\n",
        b"Host: a:80:80\r\n",
        b"Host: -a\r\n",
        b"Host: a..b\r\n",
        b"Host: caf\xe9\r\n",
        b"Host: [::1\r\n",
        b"Host: 1.2.3\r\n",
        b"Host: http://a\r\n",
    ],
)
def test_host_missing_doubled_or_invalid(fields: bytes) -> None:
    refused(b"GET / HTTP/1.1\r\n" + fields + b"\r\n", 400)


@pytest.mark.parametrize("host", [b"a", b"A.Example.", b"a:8443", b"10.0.0.1", b"[2001:db8::1]:443"])
def test_valid_hosts(host: bytes) -> None:
    assert head_of(b"GET / HTTP/1.1\r\nHost: " + host + b"\r\n\r\n").authority == host


def test_http_1_0_may_lack_host_but_not_double_it() -> None:
    assert head_of(GET10 + b"\r\n").authority == b""
    assert head_of(GET10 + b"Host: a\r\n\r\n").authority == b"a"
    refused(GET10 + b"Host: a\r\nHost: a\r\n\r\n", 400)
    refused(GET10 + b"Host: a b\r\n\r\n", 400)


def test_an_invalid_host_after_a_valid_one() -> None:
    said = requests(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a_\r\n\r\n")
    assert [type(event) for event in said] == [RequestHead, End, RequestError]


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://a.example/x?y", b"/x?y"),
        (b"HTTPS://A.Example./x", b"/x"),
        (b"http://a.example", b"/"),
        (b"http://a.example?y", b"/?y"),
        (b"http://a.example//x", b"//x"),
    ],
)
def test_absolute_form(target: bytes, path: bytes) -> None:
    head = head_of(b"GET " + target + b" HTTP/1.1\r\nHost: a.example\r\n\r\n")
    assert (head.target, head.authority) == (path, b"a.example")


def test_absolute_form_of_options() -> None:
    assert head_of(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n").target == b"*"
    assert head_of(b"OPTIONS http://a/ HTTP/1.1\r\nHost: a\r\n\r\n").target == b"/"


def test_absolute_form_names_the_host_of_http_1_0() -> None:
    assert head_of(b"GET http://a:81/ HTTP/1.0\r\n\r\n").authority == b"a:81"


@pytest.mark.parametrize(
    "target",
    [
        b"http://b.example/",
        b"http://a.example:80/",
        b"http://u@a.example/",
        b"http:///x",
        b"http:/x",
        b"ftp://a.example/",
        b"http://a.example\\/",
    ],
)
def test_absolute_form_that_is_not_host(target: bytes) -> None:
    refused(b"GET " + target + b" HTTP/1.1\r\nHost: a.example\r\n\r\n", 400)


def test_absolute_form_without_host_in_http_1_1() -> None:
    refused(b"GET http://a/ HTTP/1.1\r\n\r\n", 400)


# ---- limits -------------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    """A GET whose head has this many bytes."""
    return GET + b"X: " + b"y" * (size - len(GET) - 7) + b"\r\n\r\n"


def test_a_head_may_be_as_large_as_the_limit() -> None:
    limits = Limits(header_size=500)
    assert len(padded(500)) == 500
    assert isinstance(requests(padded(500), limits=limits)[0], RequestHead)
    assert refusal_of(padded(501), limits=limits).status == 431
    assert refusal_of(padded(5000), limits=limits).status == 431


def test_a_head_over_the_limit_is_refused_before_its_end() -> None:
    assert refusal_of(padded(40_000)[:32769]).status == 431
    assert requests(padded(40_000)[:32768]) == []


def test_pipelined_heads_share_no_limit() -> None:
    said = requests(padded(400) * 5, limits=Limits(header_size=500))
    assert [type(event) for event in said] == [RequestHead, End] * 5


def test_header_fields() -> None:
    limits = Limits(header_fields=5)
    assert isinstance(requests(GET + b"X: y\r\n" * 4 + b"\r\n", limits=limits)[0], RequestHead)
    assert refusal_of(GET + b"X: y\r\n" * 5 + b"\r\n", limits=limits).status == 431


def test_target_too_long() -> None:
    longest = b"/" + b"a" * (MAX_TARGET - 1)
    assert head_of(b"GET " + longest + b" HTTP/1.1\r\nHost: a\r\n\r\n").target == longest
    refused(b"GET " + longest + b"a HTTP/1.1\r\nHost: a\r\n\r\n", 414)


def test_a_request_line_without_end() -> None:
    assert refusal_of(b"GET /" + b"a" * 40_000).status == 414


def test_heads_in_single_bytes_are_searched_once() -> None:
    class Counting(bytearray):
        looked_at = 0

        def find(self, sub, start=0, end=None):  # type: ignore[no-untyped-def]
            self.looked_at += len(self) - start
            return super().find(sub, start, end)

    reader = RequestReader(Limits())
    reader._partial = counting = Counting()
    data = padded(30_000)
    assert read(reader, single_bytes(data))[1:] == [End()]
    assert counting.looked_at < 5 * len(data)


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
    assert not reader.started


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
    assert reader.started


def test_started() -> None:
    reader = RequestReader(Limits())
    for data, events, started in (
        (b"", 0, False),
        (b"G", 0, True),
        (b"ET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 2, False),
        (b"\r\n", 0, False),
        (GET, 0, True),
        (b"Content-Length: 5\r\n\r\nhe", 2, False),
    ):
        assert len(read(reader, [data])) == events
        assert reader.started is started


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
        assert not isinstance(said[-1:], RequestError)
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
