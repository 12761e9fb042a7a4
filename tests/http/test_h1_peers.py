"""Our codec against an HTTP/1.1 that others wrote."""

from __future__ import annotations

from collections.abc import Callable

import h11
import pytest
from hypothesis import given, settings

from tests.http.test_h1_splits import pipelines, with_noise
from tests.http.transcript import read, requests, response
from trioproxy.config.model import Limits
from trioproxy.http.h1 import (
    RequestReader,
    encode_chunk,
    encode_last_chunk,
    encode_request_head,
    encode_response_head,
)
from trioproxy.http.headers import Arrival, request_headers, response_headers
from trioproxy.http.messages import End, Headers, RequestHead, ResponseHead

CHUNKED = [(b"transfer-encoding", b"chunked")]
ARRIVAL = Arrival("2001:db8::1", "https", 443)


def sized(length: int) -> Headers:
    return [(b"content-length", b"%d" % length)]


def events_of(connection: h11.Connection, data: bytes) -> list[object]:
    """What h11 reads, neighbouring data joined and heads as plain tuples."""
    if data:
        connection.receive_data(data)
    events: list[object] = []
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA or event is h11.PAUSED:
            return events
        if isinstance(event, h11.Data):
            before = events.pop() if events and isinstance(events[-1], bytes) else b""
            assert isinstance(before, bytes)
            events.append(before + bytes(event.data))
        elif isinstance(event, h11.Request):
            events.append((event.method, event.target, list(event.headers)))
        elif isinstance(event, (h11.Response, h11.InformationalResponse)):
            events.append((event.status_code, event.reason, list(event.headers)))
        elif isinstance(event, h11.EndOfMessage):
            events.append(End(tuple(event.headers)))


def sender(connection: h11.Connection) -> Callable[[h11.Event], bytes]:
    def send(event: h11.Event) -> bytes:
        return connection.send(event) or b""

    return send


def test_requests_of_h11() -> None:
    connection = h11.Connection(h11.CLIENT)
    send = sender(connection)
    wire = send(h11.Request(method="POST", target="/x?y", headers=[(b"Host", b"a.example"), *CHUNKED]))
    wire += send(h11.Data(data=b"hello")) + send(h11.Data(data=b" world"))
    wire += send(h11.EndOfMessage(headers=[("X-Sum", "9")]))
    assert requests(wire) == [
        RequestHead(b"POST", b"/x?y", b"a.example", CHUNKED, body_length=None),
        b"hello world",
        End(((b"x-sum", b"9"),)),
    ]


def test_responses_of_h11() -> None:
    connection = h11.Connection(h11.SERVER)
    events_of(connection, b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nhi")
    send = sender(connection)
    wire = send(h11.InformationalResponse(status_code=103, headers=[("Link", "</x>")], reason="Early Hints"))
    wire += send(h11.Response(status_code=200, headers=[("A", "b")], reason="OK"))
    wire += send(h11.Data(data=b"hello")) + send(h11.EndOfMessage(headers=[("X-Sum", "9")]))
    assert response(wire) == [
        ResponseHead(103, b"Early Hints", [(b"link", b"</x>")]),
        ResponseHead(200, b"OK", [(b"a", b"b"), *CHUNKED], body_length=None),
        b"hello",
        End(((b"x-sum", b"9"),)),
    ]


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_a_sized_response_of_h11(method: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    events_of(connection, method + b" / HTTP/1.1\r\nHost: a\r\n\r\n")
    send = sender(connection)
    wire = send(h11.Response(status_code=200, headers=sized(5), reason="OK"))
    body = [b"hello"] if method == b"GET" else []
    wire += b"".join(send(h11.Data(data=piece)) for piece in body) + send(h11.EndOfMessage())
    assert response(wire, method) == [
        ResponseHead(200, b"OK", sized(5), body_length=5 if body else 0),
        *body,
        End(),
    ]


def test_h11_reads_our_requests() -> None:
    fields = [(b"host", b"a.example"), (b"x", b"caf\xe9")]
    connection = h11.Connection(h11.SERVER)
    wire = encode_request_head(b"PUT", b"/x?y", fields + CHUNKED) + encode_chunk(b"hello")
    wire += encode_chunk(b"x" * 300) + encode_last_chunk([(b"sum", b"9")])
    assert events_of(connection, wire) == [
        (b"PUT", b"/x?y", fields + CHUNKED),
        b"hello" + b"x" * 300,
        End(((b"sum", b"9"),)),
    ]


def test_h11_reads_our_responses() -> None:
    connection = h11.Connection(h11.CLIENT)
    sender(connection)(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    sender(connection)(h11.EndOfMessage())
    wire = encode_response_head(103, b"Early Hints", [(b"link", b"</x>")])
    wire += encode_response_head(200, b"", CHUNKED) + encode_chunk(b"hello") + encode_last_chunk()
    assert events_of(connection, wire) == [
        (103, b"Early Hints", [(b"link", b"</x>")]),
        (200, b"", CHUNKED),
        b"hello",
        End(),
    ]


def passed_on(wire: bytes) -> tuple[list[tuple[bytes, bytes, bytes, bool]], list[bytes]]:
    """The requests that we accept out of `wire`: method, target, body, whole; and what we write for each of them."""
    accepted: list[tuple[bytes, bytes, bytes, bool]] = []
    written: list[bytes] = []
    for event in read(RequestReader(Limits()), [wire], eof=True):
        if isinstance(event, RequestHead):
            accepted.append((event.method, event.target, b"", False))
            headers = request_headers(event, ARRIVAL, None, b"us")
            written.append(encode_request_head(event.method, event.target, headers))
            chunked = event.body_length is None
        elif isinstance(event, bytes):
            accepted[-1] = (*accepted[-1][:2], event, False)
            written[-1] += encode_chunk(event) if chunked else event
        elif isinstance(event, End):
            accepted[-1] = (*accepted[-1][:3], True)
            written[-1] += encode_last_chunk(event.trailers) if chunked else b""
    return accepted, written


def as_h11_reads(wire: bytes) -> list[tuple[bytes, bytes, bytes, bool]]:
    """The same by h11, as far as it accepts the input."""
    connection = h11.Connection(h11.SERVER)
    seen: list[tuple[bytes, bytes, bytes, bool]] = []
    data = wire
    try:
        while True:
            for event in events_of(connection, data):
                if isinstance(event, tuple):
                    seen.append((event[0], event[1], b"", False))
                elif isinstance(event, bytes):
                    seen[-1] = (*seen[-1][:2], event, False)
                else:
                    seen[-1] = (*seen[-1][:3], True)
            if connection.their_state is not h11.DONE or connection.our_state is h11.MUST_CLOSE:
                return seen
            if connection.our_state is h11.SEND_RESPONSE:
                connection.send(h11.Response(status_code=200, headers=sized(0)))
                connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return seen
            connection.start_next_cycle()
            data = b""
    except h11.RemoteProtocolError:
        return seen


@settings(derandomize=True, max_examples=400, deadline=None)
@given(wire=with_noise(pipelines))
def test_what_we_pass_on_is_one_request_of_the_same_extent_to_others(wire: bytes) -> None:
    accepted, written = passed_on(wire)
    for request, rewritten in zip(accepted, written, strict=True):
        assert as_h11_reads(rewritten) == [request]


@settings(derandomize=True, max_examples=400, deadline=None)
@given(wire=with_noise(pipelines))
def test_we_and_others_see_the_same_requests_in_the_same_bytes(wire: bytes) -> None:
    ours = [request for request in passed_on(wire)[0] if request[3]]
    theirs = [request for request in as_h11_reads(wire) if request[3]]
    common = min(len(ours), len(theirs))
    assert ours[:common] == theirs[:common]


def test_h11_reads_what_a_client_gets() -> None:
    connection = h11.Connection(h11.CLIENT)
    sender(connection)(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    sender(connection)(h11.EndOfMessage())
    head = ResponseHead(200, b"OK", [(b"connection", b"close"), (b"content-length", b"5")], body_length=5)
    headers, _ = response_headers(head, RequestHead(b"GET", b"/", b"a", []), pseudonym=b"us", date=b"D", close=False)
    events = events_of(connection, encode_response_head(200, b"OK", headers) + b"hello")
    assert events[1:] == [b"hello", End()]
    assert connection.their_state is h11.DONE
