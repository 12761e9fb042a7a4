"""A client that repeats itself gets what it would have got without: its requests in every order, beside each alone."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.http.h2_support import (
    GET,
    POST,
    Fields,
    Frames,
    Refused,
    Request,
    changed,
    each,
    parse,
    sent,
    server,
    told,
)
from tests.http.transcript import requests
from trioproxy.config.model import Limits
from trioproxy.errors import RequestError
from trioproxy.http.fields import MAX_REPEATED
from trioproxy.http.forwarded import Arrival
from trioproxy.http.h1 import RequestReader, encode_request_head, encode_request_line
from trioproxy.http.h2_heads import RequestHeads
from trioproxy.http.headers import request_headers
from trioproxy.http.messages import END, RequestHead
from trioproxy.http.rewriting import Rewriter, WrittenFields

ARRIVAL = Arrival("192.0.2.1", "https", 443)
US = b"trioproxy-4f1d"

FIELDS = [("user-agent", "test"), ("accept", "*/*"), ("cookie", "a=b"), ("cookie", "c=d")]

H2_REQUESTS: list[tuple[Fields, bool]] = [
    ([*GET, *FIELDS], True),
    ([*changed(GET, path="/other?x=y"), *FIELDS], True),
    ([*GET[::-1], *FIELDS], True),
    ([*changed(GET, method="HEAD"), *FIELDS], True),
    ([*changed(GET, method="PURGE"), *FIELDS], True),
    ([*POST, *FIELDS], True),
    ([*POST, *FIELDS], False),
    ([*GET, *FIELDS, ("content-length", "0")], True),
    ([*GET, *FIELDS, ("te", "trailers")], True),
    ([*changed(GET, authority="other.test"), *FIELDS], True),
    ([*GET[:3], *FIELDS, ("host", "cloud.test")], True),
    ([*GET, *FIELDS], False),
    ([*GET, *FIELDS, ("host", "cloud.test")], True),
    ([*changed(GET, authority="other.test"), *FIELDS, ("host", "cloud.test")], True),
    ([*GET, *FIELDS[:2]], True),
    (GET, True),
    ([*changed(GET, method="CONNECT"), (":protocol", "websocket"), *FIELDS], True),
    ([*changed(GET, method="TRACE"), *FIELDS], True),
    ([*changed(GET, path="no-path"), *FIELDS], True),
    ([*changed(GET, path="/" + "x" * 9000), *FIELDS], True),
    ([*changed(GET, path="*", method="OPTIONS"), *FIELDS], True),
    ([*changed(GET, scheme="ftp"), *FIELDS], True),
    ([*changed(GET, authority="a b"), *FIELDS], True),
    ([*GET, *FIELDS, ("x-large", "x" * 3000)], True),
    ([*changed(GET, path="/" + "x" * 3000), *FIELDS, ("x-large", "x" * 3000)], True),
]

SAME = b"Host: a\r\nCookie: b=c\r\n"

H1_REQUESTS = [
    b"GET / HTTP/1.1\r\n" + SAME + b"\r\n",
    b"GET /other HTTP/1.1\r\n" + SAME + b"\r\n",
    b"POST / HTTP/1.1\r\n" + SAME + b"\r\n",
    b"GET / HTTP/1.1\r\n" + SAME + b"Connection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + SAME + b"Connection: keep-alive, cookie\r\n\r\n",
    b"GET / HTTP/1.0\r\n" + SAME + b"Connection: keep-alive\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + SAME + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + SAME + b"Content-Length: 0\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: b\r\nCookie: b=c\r\n\r\n",
]

GOVERNED = [
    b"GET / HTTP/1.1\r\n" + SAME + b"Content-Length: 5\r\n\r\nhello",
    b"GET / HTTP/1.1\r\n" + SAME + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\n" + SAME + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"GET http://a/ HTTP/1.1\r\n" + SAME + b"\r\n",
]

LIMITS = Limits(header_size=5000)


def in_words(request: Request | Refused) -> object:
    return request.head if isinstance(request, Request) else request.error.status


def answers(requests: Sequence[tuple[Fields, bool]]) -> list[object]:
    """What one connection makes of requests, one after the other."""
    frames = Frames()
    codec = server(LIMITS, frames)
    found: list[object] = []
    for number, (fields, end) in enumerate(requests):
        events = told(codec, frames.headers(2 * number + 1, fields, end=end))
        resets = [frame.error_code for frame in parse(sent(codec, events)) if frame.type == 3]
        found += [in_words(event) for event in each([Request, Refused], events)] or resets
    return found


@pytest.mark.parametrize("first", range(len(H2_REQUESTS)))
def test_what_a_connection_said_before_changes_no_request_over_http_2(first: int) -> None:
    for second in H2_REQUESTS:
        requests = [H2_REQUESTS[first], second, H2_REQUESTS[0]]
        assert answers(requests) == [answer for request in requests for answer in answers([request])]


def test_a_head_that_is_said_again_counts_as_much() -> None:
    """Who sends heads without end is found out by their size."""
    reader, anew = RequestHeads(LIMITS), RequestHeads(LIMITS)
    for path in ("/", "/other"):
        fields = [(name.encode(), value.encode()) for name, value in [*changed(GET, path=path), *FIELDS]]
        reader.read(fields, ended=True)
    anew.read(fields, ended=True)
    assert reader.size == anew.size


def heads(data: bytes) -> list[RequestHead]:
    reader = RequestReader(LIMITS)
    reader.feed(data)
    found = []
    while (event := reader.next()) is not None:
        if isinstance(event, RequestHead):
            found.append(event)
            if event.upgrade:
                break
    return found


@pytest.mark.parametrize("first", [data for data in H1_REQUESTS + GOVERNED if b"Upgrade" not in data])
def test_what_a_connection_said_before_changes_no_request_over_http_1_1(first: bytes) -> None:
    for second in H1_REQUESTS + GOVERNED:
        assert requests(first + second + first) == requests(first) + requests(second + first)


@given(st.lists(st.sampled_from(H1_REQUESTS), max_size=6), st.lists(st.sampled_from([None, b"/api"]), min_size=6))
@settings(deadline=None)
def test_what_a_connection_said_before_changes_nothing_for_backends(
    requests: list[bytes], prefixes: list[bytes | None]
) -> None:
    rewriter = Rewriter(ARRIVAL, US)
    for head, prefix in zip(heads(b"".join(requests)), prefixes, strict=False):
        written = rewriter.written(head, prefix)
        assert written.headers == request_headers(head, ARRIVAL, prefix, US)
        line = encode_request_line(head.method, head.target)
        assert line + written.block() == encode_request_head(head.method, head.target, written.headers)


def test_who_repeats_its_fields_has_them_written_once() -> None:
    rewriter = Rewriter(ARRIVAL, US)
    first, again = heads(2 * (b"GET / HTTP/1.1\r\n" + SAME + b"Connection: keep-alive\r\n\r\n"))
    written = rewriter.written(first, None)
    assert rewriter.written(again, None) is written
    assert written.block() is written.block()
    assert rewriter.written(again, b"/api") is not rewriter.written(again, None)


def test_who_repeats_its_fields_over_http_2_has_them_read_once() -> None:
    first, again, anew = answers([H2_REQUESTS[0], H2_REQUESTS[1], ([*GET, *FIELDS[1:]], True)])
    assert isinstance(first, RequestHead)
    assert isinstance(again, RequestHead)
    assert isinstance(anew, RequestHead)
    assert first.headers is again.headers
    assert anew.headers is not again.headers


@pytest.mark.parametrize(
    "more",
    [
        {"authority": b"b"},
        {"method": b"POST"},
        {"upgrade": b"websocket"},
        {"body_length": 5},
        {"body_length": None},
        {"http_version": (1, 0)},
        {"expect_continue": True},
    ],
)
def test_the_same_list_for_another_request_is_written_anew(more: dict[str, object]) -> None:
    head = RequestHead(b"GET", b"/", b"a", [(b"cookie", b"b=c")])
    other = attrs.evolve(head, **more)  # type: ignore[arg-type]
    for one, next_one in ((head, other), (other, head)):
        rewriter = Rewriter(ARRIVAL, US)
        rewriter.written(one, None)
        assert rewriter.written(next_one, None).headers == request_headers(next_one, ARRIVAL, None, US)


def test_a_large_head_is_not_kept() -> None:
    """Thousands of idle connections would each hold one."""
    large = b"GET / HTTP/1.1\r\n" + SAME + b"x-large: " + b"x" * MAX_REPEATED + b"\r\n\r\n"
    first, again = heads(2 * large)
    assert first.headers is not again.headers
    fields = ([*GET, ("x-large", "x" * MAX_REPEATED)], True)
    of_h2 = answers([fields, fields])
    assert of_h2[0] == of_h2[1]
    assert of_h2[0].headers is not of_h2[1].headers  # type: ignore[attr-defined]


@pytest.mark.parametrize("bad", [b"\r\n", b"\r", b"\n", b"\0"])
def test_line_ends_and_nul_are_never_written(bad: bytes) -> None:
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_request_line(b"GET", b"/" + bad)
    with pytest.raises(ValueError, match="line end or NUL"):
        encode_request_line(b"G" + bad, b"/")
    with pytest.raises(ValueError, match="line end or NUL"):
        WrittenFields([(b"a", b"x" + bad)]).block()


def test_the_same_loop_is_a_loop_each_time() -> None:
    head = RequestHead(b"GET", b"/", b"a", [(b"via", b"1.1 " + US)])
    rewriter = Rewriter(ARRIVAL, US)
    for _ in range(2):
        with pytest.raises(RequestError, match="comes back"):
            rewriter.written(head, None)


def test_the_reader_ends_each_of_them() -> None:
    reader = RequestReader(LIMITS)
    reader.feed(2 * H1_REQUESTS[3])
    assert [type(reader.next()) for _ in range(2)] == [RequestHead, type(END)]
    assert [type(reader.next()) for _ in range(2)] == [RequestHead, type(END)]
