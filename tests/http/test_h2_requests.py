"""What a server's codec makes of requests that break a rule: an answer, or a reset, and never a `Request`."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.h2_support import (
    GET,
    POST,
    PREFACE,
    Body,
    Client,
    Closed,
    Ended,
    Fields,
    Frames,
    Over,
    Refused,
    Request,
    Server,
    changed,
    each,
    parse,
    sent,
    server,
    told,
)
from trioproxy.config.model import Limits
from trioproxy.http.h2 import Code


def verdict(fields: Fields, *, end: bool = True, limits: Limits | None = None) -> object:
    """The head of a request, the status of its refusal, or the code of its reset; the connection goes on."""
    frames = Frames()
    codec = server(limits, frames)
    events = told(codec, frames.headers(1, fields, end=end))
    resets = [frame.error_code for frame in parse(sent(codec, events)) if frame.type == 3]
    after = told(codec, frames.headers(3))
    assert [event.stream for event in each([Request], after)] == [3]
    (said,) = [*resets, *each([Request, Refused], events)]
    if isinstance(said, Request):
        return said.head
    return said.error.status if isinstance(said, Refused) else f"reset {said}"


@pytest.mark.parametrize(
    "fields",
    [
        [*GET, ("X-Upper", "1")],
        [*GET, ("x-nul", "a\0b")],
        [*GET, ("x-lines", "a\r\nhost: evil.test")],
        [*GET, ("x-cr", "a\rb")],
        [*GET, ("x-space", " a")],
        [*GET, ("x name", "a")],
        [*GET, ("x\r\ny", "a")],
        [*GET, ("", "a")],
        [*GET, (":path", "/again")],
        [*GET, (":unknown", "a")],
        [*GET, (":status", "200")],
        [*GET[:3], ("accept", "*/*"), GET[3]],
        [*GET, ("connection", "close")],
        [*GET, ("keep-alive", "1")],
        [*GET, ("proxy-connection", "close")],
        [*GET, ("transfer-encoding", "chunked")],
        [*GET, ("upgrade", "websocket")],
        [*GET, ("te", "gzip")],
        [*GET, ("te", "trailers, gzip")],
        [*GET, ("content-length", "1"), ("content-length", "1")],
        [*GET, ("content-length", "+1")],
        [*GET, ("content-length", "0x1")],
        [*GET, ("content-length", "1, 1")],
        [*GET, ("content-length", "")],
        [*GET, ("content-length", "9223372036854775808")],
        [*GET, ("content-length", "5")],  # and the stream ends with the head
        [*GET, ("host", "evil.test")],
        [*GET, ("host", "cloud.test:8443")],
        [*GET, ("host", "cloud.test"), ("host", "cloud.test")],
        [*GET, ("host", "")],
        GET[:3],
        GET[1:],
        [GET[0], *GET[2:]],
        [*GET[:2], GET[3]],
        [*GET, (":protocol", "websocket")],
        changed(GET, authority="user@cloud.test"),
        changed(GET, authority="cloud.test:99999"),
        changed(GET, authority="cloud.test/x"),
        changed(GET, authority="clo\0ud.test"),
        changed(GET, authority="cloud.test\r\nx: y"),
        changed(GET, authority=""),
        changed(GET, path=""),
        changed(GET, path="x"),
        changed(GET, path="/a b"),
        changed(GET, path="/a\r\nb"),
        changed(GET, path="/a#b"),
        changed(GET, path="/\xe4"),
        changed(GET, path="https://cloud.test/"),
        changed(GET, path="*"),
        changed(GET, method="GE T"),
        changed(GET, method=""),
        changed(GET, method="GET / HTTP/1.1\r\n"),
        changed(GET, scheme="ftp"),
    ],
    ids=repr,
)  # fmt: skip
def test_a_head_that_breaks_a_rule_is_no_request(fields: Fields) -> None:
    assert verdict(fields) in (400, f"reset {Code.PROTOCOL_ERROR}")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (changed(GET, method="TRACE"), 405),
        ([(":method", "CONNECT"), (":authority", "cloud.test:22")], 405),
        (changed(GET, path="/" + "a" * 8192), 414),
        ([*GET, ("x-large", "a" * 33_000)], 431),
        ([*GET, *((f"x-{number}", "a") for number in range(101))], 431),
        ([*GET, ("expect", "the unexpected")], 417),
    ],
)  # fmt: skip
def test_what_is_refused_has_a_status(fields: Fields, status: int) -> None:
    assert verdict(fields) == status


def test_what_is_within_the_limits_passes() -> None:
    head = verdict([*changed(GET, path="/" + "a" * 8191), *((f"x-{number}", "a" * 100) for number in range(100))])
    assert not isinstance(head, int | str)
    assert verdict(changed(GET, method="OPTIONS", path="*")) != 400


def test_host_may_repeat_the_authority_or_stand_for_it() -> None:
    for fields in ([*GET, ("host", "CLOUD.test.")], [*GET[:3], ("host", "cloud.test")]):
        head = verdict(fields)
        assert isinstance(head, type(verdict(GET)))
        assert head == verdict(GET)


def test_cookie_crumbs_become_one_field() -> None:
    """RFC 9113 section 8.2.3; Chrome and Firefox split them, and backends read the first alone."""
    head = verdict([*GET, ("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2"), ("cookie", "c=3")])
    assert head.headers == [(b"accept", b"*/*"), (b"cookie", b"a=1; b=2; c=3")]  # type: ignore[attr-defined]


def test_many_crumbs_are_one_field_of_the_limit() -> None:
    assert verdict([*GET, *(("cookie", f"c{number}=1") for number in range(150))]) != 431


def test_an_extended_connect_asks_for_an_upgrade() -> None:
    fields = [(":method", "CONNECT"), (":protocol", "websocket"), *GET[1:], ("sec-websocket-version", "13")]
    head = verdict(fields, end=False)
    assert (head.method, head.upgrade, head.body_length) == (b"GET", b"websocket", 0)  # type: ignore[attr-defined]


def test_an_expectation_waits_for_a_body_only() -> None:
    assert verdict([*POST, ("expect", "100-continue")], end=False).expect_continue  # type: ignore[attr-defined]
    assert not verdict([*POST, ("expect", "100-continue")]).expect_continue  # type: ignore[attr-defined]


def test_fields_beyond_what_can_be_answered_end_the_connection() -> None:
    """ngh2 gives up at four times the limit, and then only the connection can be told."""
    frames = Frames()
    codec = server(Limits(header_size=8192), frames)
    events = told(codec, frames.headers(1, [*GET, *((f"x-{n}", "a" * 4000) for n in range(9))]))
    assert [type(event) for event in events] == [Over]
    assert [frame.error_code for frame in parse(codec.outgoing(1000))] == [Code.ENHANCE_YOUR_CALM]
    assert codec.outgoing(1000) == b""


# ---- bodies -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("length", "pieces"),
    [("3", [b"ab"]), ("3", [b"abcd"]), ("3", [b"ab", b"cd"]), ("3", []), ("0", [b"a"])],
)
def test_a_body_that_is_not_as_long_as_announced_never_ends(length: str, pieces: list[bytes]) -> None:
    frames = Frames()
    codec = server(frames=frames)
    data = frames.headers(1, [*POST, ("content-length", length)], end=False)
    data += b"".join(frames.data(1, piece) for piece in pieces) + frames.data(1, end=True)
    events = told(codec, data)
    sent(codec, events)
    assert each([Ended], events) == []
    assert each([Closed], events) == [Closed(1, Code.PROTOCOL_ERROR)]
    assert len(b"".join(event.data for event in each([Body], events))) <= int(length)


@pytest.mark.parametrize("trailer", [(":path", "/"), ("X", "a"), ("x", "a\r\nb"), ("connection", "close")])
def test_trailers_that_break_a_rule_end_nothing(trailer: tuple[str, str]) -> None:
    frames = Frames()
    codec = server(frames=frames)
    events = told(codec, frames.headers(1, POST, end=False) + frames.data(1, b"x") + frames.headers(1, [trailer]))
    sent(codec, events)
    assert each([Ended], events) == []
    assert each([Closed], events) == [Closed(1, Code.PROTOCOL_ERROR)]


def test_the_body_of_a_refused_request_is_not_told() -> None:
    frames = Frames()
    codec = server(frames=frames)
    (refused,) = told(codec, frames.headers(1, [*POST, ("expect", "x")], end=False))
    assert isinstance(refused, Refused)
    codec.respond(1, 417, [], end=True)
    codec.leave(1)
    assert told(codec, frames.data(1, b"x", end=False)) == []


# ---- any input ----------------------------------------------------------------------------------------


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


ANY_FRAME = st.builds(
    _frame,
    st.sampled_from([*range(11), 0x10, 0xBB]),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 1, 2, 3, 5, 2**31 - 1]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([bytes(4), bytes(5), bytes(8), b"\x82\x87\x84\x41\x01a", b"\0\0\0\x08", b"\x7f\xff\xff\xff"]),
    ),
)  # fmt: skip


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(st.one_of(ANY_FRAME, st.binary(max_size=30)), max_size=12), size=st.sampled_from([0, 1, 7]))
def test_no_frames_make_a_server_raise_or_contradict_itself(frames: list[bytes], size: int) -> None:
    codec = Server()
    events = told(codec, PREFACE + Frames.settings() + b"".join(frames), size=size)
    for event in each([Request, Refused], events):
        codec.respond(event.stream, 200, [(b"a", b"b")])
        codec.body(event.stream, b"x")
        codec.end(event.stream)
    for event in each([Body], events):
        codec.consumed(event.stream, len(event.data))
    sent(codec, events)
    codec.second()
    closed = [event.stream for event in each([Closed], events)]
    begun = [event.stream for event in each([Request, Refused], events)]
    assert len(closed) == len(set(closed))
    assert set(closed) <= set(begun)
    assert codec.streams == len(begun) - len(closed)
    assert len(each([Over], events)) <= 1


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(frames=st.lists(st.one_of(ANY_FRAME, st.binary(max_size=30)), max_size=12), size=st.sampled_from([0, 1, 7]))
def test_no_frames_make_a_client_raise(frames: list[bytes], size: int) -> None:
    codec = Client()
    stream = codec.request(b"POST", b"https", b"a", b"/", [])
    codec.body(stream, b"x")
    events = told(codec, Frames.settings() + b"".join(frames), size=size)
    sent(codec, events)
    assert codec.streams == 1 - len(each([Closed], events))
    assert codec.room >= 0


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_mutated_conversation_makes_nobody_raise(data: st.DataObject) -> None:
    frames = Frames()
    talk = bytearray(
        frames.start()
        + frames.headers(1, [*POST, ("content-length", "5")], end=False)
        + frames.data(1, b"hello", end=True)
        + frames.headers(3, GET)
        + frames.window(3, 5)
        + frames.headers(5, POST, end=False)
        + frames.headers(5, [("x", "y")])
    )
    for _ in range(data.draw(st.integers(1, 3))):
        talk[data.draw(st.integers(0, len(talk) - 1))] = data.draw(st.integers(0, 255))
    codec = Server()
    sent(codec, told(codec, bytes(talk), size=data.draw(st.sampled_from([0, 1, 50]))))
