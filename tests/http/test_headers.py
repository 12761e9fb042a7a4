"""What fields reach the other side."""

from __future__ import annotations

import pytest

from trioproxy.errors import RequestError, UpstreamProtocolError
from trioproxy.http.headers import (
    Arrival,
    Framing,
    clean_trailers,
    error_page,
    http_date,
    reason_phrase,
    request_headers,
    response_headers,
)
from trioproxy.http.messages import Headers, RequestHead, ResponseHead

ARRIVAL = Arrival("192.0.2.1", "https", 443)
US = b"trioproxy-4f1d"
DATE = b"Sun, 06 Nov 1994 08:49:37 GMT"

OURS = [
    (b"x-forwarded-for", b"192.0.2.1"),
    (b"x-forwarded-proto", b"https"),
    (b"x-forwarded-port", b"443"),
    (b"x-real-ip", b"192.0.2.1"),
    (b"x-forwarded-host", b"a.example"),
    (b"forwarded", b'for=192.0.2.1;proto=https;host="a.example"'),
]
VIA = (b"via", b"1.1 " + US)


def request(*headers: tuple[bytes, bytes], method: bytes = b"GET", **more: object) -> RequestHead:
    return RequestHead(method, b"/", b"a.example", list(headers), **more)  # type: ignore[arg-type]


def to_backend(head: RequestHead, prefix: bytes | None = None, arrival: Arrival = ARRIVAL) -> Headers:
    return request_headers(head, arrival, prefix, US)


def values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for key, value in headers if key == name]


# ---- requests -----------------------------------------------------------------------------------------


def test_a_get() -> None:
    head = request((b"accept", b"*/*"), (b"cookie", b"a=b"), (b"cookie", b"c=d"))
    assert to_backend(head) == [
        (b"host", b"a.example"),
        (b"accept", b"*/*"),
        (b"cookie", b"a=b"),
        (b"cookie", b"c=d"),
        *OURS,
        VIA,
    ]
    assert head.headers == [(b"accept", b"*/*"), (b"cookie", b"a=b"), (b"cookie", b"c=d")]


def test_ipv6_is_quoted_in_forwarded_only() -> None:
    headers = to_backend(request(), arrival=Arrival("2001:db8::1", "http", 8080))
    assert values(headers, b"x-forwarded-for") == values(headers, b"x-real-ip") == [b"2001:db8::1"]
    assert values(headers, b"x-forwarded-port") == [b"8080"]
    assert values(headers, b"forwarded") == [b'for="[2001:db8::1]";proto=http;host="a.example"']


def test_host_is_unchanged_with_its_port() -> None:
    head = request()
    head.authority = b"A.Example:8443"
    headers = to_backend(head)
    assert headers[0] == (b"host", b"A.Example:8443")
    assert values(headers, b"x-forwarded-host") == [b"A.Example:8443"]
    assert values(headers, b"forwarded")[0].endswith(b';host="A.Example:8443"')


def test_a_request_without_host() -> None:
    head = request(http_version=(1, 0))
    head.authority = b""
    headers = to_backend(head)
    assert headers[0] == (b"host", b"")
    assert not values(headers, b"x-forwarded-host")
    assert values(headers, b"forwarded") == [b"for=192.0.2.1;proto=https"]


MADE_UP = [
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-forwarded-ssl",
    b"x-forwarded-user",
    b"x-forwarded",
    b"x-real-ip",
    b"forwarded",
    b"proxy",
]


@pytest.mark.parametrize("name", MADE_UP)
def test_what_clients_make_up_goes(name: bytes) -> None:
    for spelling in (name, name.replace(b"-", b"_"), name.replace(b"-", b"_", 1), name.replace(b"-", b".")):
        assert to_backend(request((spelling, b"evil"))) == to_backend(request())


@pytest.mark.parametrize("name", [b"content_length", b"transfer_encoding", b"http2_settings", b"proxy_authorization"])
def test_look_alikes_of_framing_go(name: bytes) -> None:
    assert to_backend(request((name, b"5"))) == to_backend(request())


def test_other_fields_with_underscores_stay() -> None:
    assert (b"x_tenant", b"1") in to_backend(request((b"x_tenant", b"1")))


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    ],
)
def test_hop_by_hop_fields_go(name: bytes) -> None:
    assert to_backend(request((name, b"x"))) == to_backend(request())


def test_fields_named_in_connection_go() -> None:
    head = request((b"x-a", b"1"), (b"connection", b"close, X-A"), (b"x-b", b"2"), (b"connection", b"x-b"))
    assert to_backend(head) == to_backend(request())


@pytest.mark.parametrize(
    "name",
    [b"host", b"x-forwarded-for", b"x-real-ip", b"forwarded", b"via", b"content-length", b"transfer-encoding"],
)
def test_connection_cannot_name_ours(name: bytes) -> None:
    plain = request((b"content-length", b"5"), method=b"POST", body_length=5)
    named = request((b"content-length", b"5"), (b"connection", name), method=b"POST", body_length=5)
    assert to_backend(named) == to_backend(plain)


def test_prefix() -> None:
    headers = to_backend(request((b"x-forwarded-prefix", b"/evil")), prefix=b"/api")
    assert values(headers, b"x-forwarded-prefix") == [b"/api"]


def test_via_is_extended() -> None:
    head = request((b"via", b"1.0 fred"), (b"via", b"1.1 p.example (x, y)"), http_version=(1, 0))
    assert values(to_backend(head), b"via") == [b"1.0 fred, 1.1 p.example (x, y), 1.0 " + US]


@pytest.mark.parametrize("via", [b"1.1 " + US, b"1.0 fred,1.1 " + US + b",1.1 x", b"1.1 " + US + b" (comment)"])
def test_a_loop(via: bytes) -> None:
    with pytest.raises(RequestError) as refusal:
        to_backend(request((b"x", b"y"), (b"via", via), (b"connection", b"via")))
    assert refusal.value.status == 508


@pytest.mark.parametrize("via", [b"1.1 trioproxy-0000", b"1.1 x" + US, b"1.1 " + US + b"x"])
def test_no_loop(via: bytes) -> None:
    assert to_backend(request((b"via", via)))


@pytest.mark.parametrize(
    ("head", "framing"),
    [
        (request(), []),
        (request((b"content-length", b"0")), [(b"content-length", b"0")]),
        (request(method=b"DELETE"), []),
        (request(method=b"POST"), [(b"content-length", b"0")]),
        (request((b"content-length", b"005"), method=b"POST", body_length=5), [(b"content-length", b"5")]),
        (request((b"content-length", b"5"), body_length=5), [(b"content-length", b"5")]),
        (request((b"transfer-encoding", b"Chunked"), body_length=None), [(b"transfer-encoding", b"chunked")]),
    ],
)
def test_framing_of_requests(head: RequestHead, framing: Headers) -> None:
    headers = to_backend(head)
    assert [field for field in headers if field[0] in (b"content-length", b"transfer-encoding")] == framing


def test_expect_goes_on_when_somebody_waits() -> None:
    sent = (b"expect", b"100-Continue")
    waiting = request(sent, method=b"POST", body_length=5, expect_continue=True)
    assert values(to_backend(waiting), b"expect") == [b"100-continue"]
    assert values(to_backend(request(sent)), b"expect") == []


def test_te_trailers_goes_on() -> None:
    headers = to_backend(request((b"te", b"gzip, Trailers"), (b"connection", b"te")))
    assert (values(headers, b"te"), values(headers, b"connection")) == ([b"trailers"], [b"te"])
    assert to_backend(request((b"te", b"gzip"), (b"connection", b"te"))) == to_backend(request())


def test_trailer_goes_on() -> None:
    assert (b"trailer", b"x-sum") in to_backend(request((b"trailer", b"x-sum"), body_length=None))


def test_an_upgrade_is_put_back() -> None:
    sent = [(b"connection", b"keep-alive, Upgrade"), (b"upgrade", b"h2c, WebSocket"), (b"http2-settings", b"x")]
    headers = to_backend(request(*sent, upgrade=b"websocket"))
    assert headers == [*to_backend(request()), (b"connection", b"upgrade"), (b"upgrade", b"WebSocket")]
    assert to_backend(request(*sent)) == to_backend(request())


# ---- responses ----------------------------------------------------------------------------------------


def to_client(head: ResponseHead, asked: RequestHead | None = None, *, close: bool = False) -> tuple[Headers, Framing]:
    return response_headers(head, asked or request(), pseudonym=US, date=DATE, close=close)


def answer(*headers: tuple[bytes, bytes], status: int = 200, **more: object) -> ResponseHead:
    return ResponseHead(status, b"", [(b"date", b"D"), *headers], **more)  # type: ignore[arg-type]


def test_a_response() -> None:
    head = answer((b"server", b"x"), (b"content-length", b"005"), (b"set-cookie", b"a"), body_length=5)
    assert to_client(head) == (
        [(b"date", b"D"), (b"server", b"x"), (b"set-cookie", b"a"), VIA, (b"content-length", b"5")],
        Framing.LENGTH,
    )


def test_hop_by_hop_fields_of_responses_go() -> None:
    head = answer(
        (b"connection", b"close, X-A"),
        (b"x-a", b"1"),
        (b"keep-alive", b"timeout=5"),
        (b"proxy-connection", b"x"),
        (b"proxy-authenticate", b"x"),
        (b"upgrade", b"h2c"),
        (b"transfer-encoding", b"chunked"),
        (b"te", b"x"),
    )
    assert to_client(head) == to_client(answer())


def test_date_is_added_when_missing() -> None:
    assert values(to_client(ResponseHead(200, b"", []))[0], b"date") == [DATE]
    assert values(to_client(answer())[0], b"date") == [b"D"]
    assert values(to_client(answer((b"connection", b"date")))[0], b"date") == [DATE]


def test_via_of_responses_is_extended() -> None:
    headers, _ = to_client(answer((b"via", b"1.1 x"), http_version=(1, 0)))
    assert values(headers, b"via") == [b"1.1 x, 1.0 " + US]


KEPT = request(http_version=(1, 0), keep_alive=True)
ONCE = request(http_version=(1, 0), keep_alive=False)
HEAD = request(method=b"HEAD")
CL5 = (b"content-length", b"5")


@pytest.mark.parametrize(
    ("head", "asked", "close", "fields", "framing"),
    [
        (answer(CL5, body_length=5), request(), False, [CL5], Framing.LENGTH),
        (answer(body_length=0), request(), False, [(b"content-length", b"0")], Framing.LENGTH),
        (answer(body_length=None), request(), False, [(b"transfer-encoding", b"chunked")], Framing.CHUNKED),
        (answer(body_length=None), KEPT, False, [(b"connection", b"close")], Framing.UNTIL_CLOSE),
        (answer(body_length=None), ONCE, False, [(b"connection", b"close")], Framing.UNTIL_CLOSE),
        (answer(CL5, body_length=5), KEPT, False, [CL5, (b"connection", b"keep-alive")], Framing.LENGTH),
        (answer(CL5, body_length=5), KEPT, True, [CL5, (b"connection", b"close")], Framing.LENGTH),
        (answer(CL5, body_length=5), ONCE, False, [CL5, (b"connection", b"close")], Framing.LENGTH),
        (answer(CL5, body_length=5), request(), True, [CL5, (b"connection", b"close")], Framing.LENGTH),
        (
            answer(CL5, body_length=5),
            request(keep_alive=False),
            False,
            [CL5, (b"connection", b"close")],
            Framing.LENGTH,
        ),
        (answer(CL5), HEAD, False, [CL5], Framing.EMPTY),
        (answer((b"transfer-encoding", b"chunked")), HEAD, False, [], Framing.EMPTY),
        (answer(CL5, status=304), request(), False, [CL5], Framing.EMPTY),
        (answer(status=304), request(), False, [], Framing.EMPTY),
        (answer(CL5, status=204), request(), False, [], Framing.EMPTY),
    ],
)
def test_framing_of_responses(
    head: ResponseHead, asked: RequestHead, close: bool, fields: Headers, framing: Framing
) -> None:
    headers, how = to_client(head, asked, close=close)
    assert headers == [(b"date", b"D"), VIA, *fields]
    assert how is framing


def test_1xx() -> None:
    hints = ResponseHead(103, b"Early Hints", [(b"link", b"x"), (b"content-length", b"5"), (b"connection", b"close")])
    assert to_client(hints, close=True) == ([(b"link", b"x"), VIA], Framing.EMPTY)


def test_101() -> None:
    head = ResponseHead(101, b"", [(b"upgrade", b"WebSocket"), (b"connection", b"upgrade"), (b"sec-x", b"y")])
    assert to_client(head, request(upgrade=b"websocket")) == (
        [(b"sec-x", b"y"), VIA, (b"connection", b"upgrade"), (b"upgrade", b"WebSocket")],
        Framing.EMPTY,
    )
    with pytest.raises(UpstreamProtocolError):
        to_client(head, request(upgrade=b"tcp"))


# ---- the rest -----------------------------------------------------------------------------------------


def test_trailers() -> None:
    fine = [(b"x-sum", b"1"), (b"server-timing", b"x"), (b"x_y", b"z")]
    names = [b"content-length", b"content_length", b"host", b"authorization", b"x-forwarded-for", b"x.forwarded.for"]
    assert clean_trailers([*fine, *((name, b"1") for name in names)]) == fine


def test_error_page() -> None:
    headers, body = error_page(502, "<script>&\"'")
    assert values(headers, b"content-length") == [b"%d" % len(body)]
    assert b"502 Bad Gateway" in body
    assert b"&lt;script&gt;&amp;&quot;&#x27;" in body
    assert b"<script>" not in body
    assert b"<title>599</title>" in error_page(599, "x")[1]


def test_reason_phrase() -> None:
    assert (reason_phrase(404), reason_phrase(599)) == (b"Not Found", b"")


def test_http_date() -> None:
    assert http_date(784111777) == DATE
    assert http_date(1709164799.9) == b"Wed, 28 Feb 2024 23:59:59 GMT"
