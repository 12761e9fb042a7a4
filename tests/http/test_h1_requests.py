"""Heads of requests: what is read, and the answer to each that must not be."""

from __future__ import annotations

import pytest

from tests.http.transcript import read, requests, single_bytes
from tests.http.vectors import FRAMING, GET, GET10, LINES, POST, head_of, refused
from trioproxy.config.model import Limits
from trioproxy.errors import RequestError
from trioproxy.http.h1 import MAX_TARGET, RequestReader
from trioproxy.http.messages import End, RequestHead


def refusal_of(data: bytes, *, eof: bool = False, limits: Limits | None = None) -> RequestError:
    said = requests(data, eof=eof, limits=limits)
    assert isinstance(said[-1], RequestError), said
    return said[-1]


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
    "line",
    [
        b"GET / HTTP/0.9",
        b"GET / HTTP/1.2",
        b"GET / HTTP/2.0",
        b"PRI * HTTP/2.0",
        b"GET / HTTP/3.0",
        b"GET /",
        b"GET / ",
        b"GET / HTTP/1.10",
        b"GET / HTTP/01.1",
        b"GET / HTTP/1,1",
        b"GET / HTTP/1",
        b"GET / HTTP/1.1 ",
        b"GET / http/1.1",
        b"GET / XTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET",
        b"GE(T / HTTP/1.1",
        b"G\xc9T / HTTP/1.1",
        b"/ HTTP/1.1",
    ],
)
def test_request_lines(line: bytes) -> None:
    refused(line + b"\r\nHost: a\r\n\r\n", 400)


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


# ---- fields that a connection sends again, word for word ------------------------------------------------

SAME = b"Host: a\r\nCookie: b=c\r\n\r\n"


def after_a_get(second: bytes) -> RequestHead | RequestError:
    """What becomes of a request behind a GET with the same fields."""
    said = requests(b"GET /first HTTP/1.1\r\n" + SAME + second)
    assert said[0] == RequestHead(b"GET", b"/first", b"a", [(b"cookie", b"b=c")])
    assert isinstance(said[2], RequestHead | RequestError)
    return said[2]


@pytest.mark.parametrize("method", [b"GET", b"POST", b"DELETE"])
def test_the_same_fields_mean_the_same_with_another_line(method: bytes) -> None:
    assert after_a_get(method + b" /second HTTP/1.1\r\n" + SAME) == RequestHead(
        method, b"/second", b"a", [(b"cookie", b"b=c")]
    )


def test_fields_that_differ_are_read_anew() -> None:
    found = after_a_get(b"GET / HTTP/1.1\r\nHost: b\r\nCookie: b=c\r\n\r\n")
    assert isinstance(found, RequestHead)
    assert found.authority == b"b"


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"CONNECT / HTTP/1.1\r\n", 405),
        (b"TRACE / HTTP/1.1\r\n", 405),
        (b"GET http://b/ HTTP/1.1\r\n", 400),
        (b"GET * HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.2\r\n", 400),
    ],
)
def test_the_same_fields_excuse_no_other_line(line: bytes, status: int) -> None:
    found = after_a_get(line + SAME)
    assert isinstance(found, RequestError)
    assert found.status == status


def test_the_same_fields_over_http_1_0_keep_nothing_alive() -> None:
    found = after_a_get(b"GET / HTTP/1.0\r\n" + SAME)
    assert isinstance(found, RequestHead)
    assert (found.http_version, found.keep_alive) == ((1, 0), False)
