"""HTTP/2 exchanges of our codec, in both roles, with hyper's h2 on the other side."""

from __future__ import annotations

import h2.events
import pytest

from tests.http.h2_support import (
    GET,
    POST,
    Body,
    Client,
    Closed,
    Ended,
    Frames,
    Over,
    Pair,
    Request,
    Response,
    Server,
    changed,
    client_pair,
    each,
    parse,
    sent,
    server,
    server_pair,
    told,
)
from trioproxy.http.h1 import BACKEND_LIMITS
from trioproxy.http.h2 import FAST_WINDOW, MAX_STREAMS, STREAM_WINDOW, Code
from trioproxy.http.h2_vigil import BUDGET
from trioproxy.http.messages import End, RequestHead, ResponseHead

NAME = b"cloud.test"


def ask(pair: Pair, *, method: bytes = b"GET", end: bool = True, target: bytes = b"/x?y") -> int:
    assert isinstance(pair.codec, Client)
    headers = [(b"host", NAME), (b"accept", b"*/*"), (b"connection", b"te"), (b"te", b"trailers")]
    stream = pair.codec.request(method, b"https", NAME, target, headers, end=end)
    pair.pump()
    return stream


def answering(pair: Pair) -> Server:
    assert isinstance(pair.codec, Server)
    return pair.codec


@pytest.mark.parametrize("single_bytes", [False, True])
def test_a_request_with_body_and_trailers_to_a_server(single_bytes: bool) -> None:
    pair = server_pair(single_bytes=single_bytes)
    codec = answering(pair)
    pair.h2.send_headers(1, [*POST, ("accept", "*/*"), ("te", "trailers")])
    pair.h2.send_data(1, b"question")
    pair.h2.send_headers(1, [("x-sum", "1"), ("host", "no.test")], end_stream=True)
    pair.pump()
    head = RequestHead(
        b"POST", b"/", NAME, [(b"accept", b"*/*"), (b"te", b"trailers")], http_version=(2, 0), body_length=None
    )
    assert pair.ours[0] == Request(1, head, ended=False)
    assert b"".join(event.data for event in pair.of(Body)) == b"question"
    assert pair.of(Ended) == [Ended(1, End(((b"x-sum", b"1"),)))]  # Host has no place in trailers

    codec.inform(1, 103, [(b"link", b"</a>")])
    codec.respond(1, 200, [(b"content-type", b"text/plain"), (b"connection", b"close")])
    codec.body(1, b"answer")
    codec.end(1, [(b"x-more", b"2")])
    pair.pump()
    assert [event.headers for event in pair.of(h2.events.InformationalResponseReceived)] == [
        [(b":status", b"103"), (b"link", b"</a>")]
    ]
    assert [event.headers for event in pair.of(h2.events.ResponseReceived)] == [
        [(b":status", b"200"), (b"content-type", b"text/plain")]
    ]
    assert b"".join(event.data for event in pair.of(h2.events.DataReceived)) == b"answer"
    assert [event.headers for event in pair.of(h2.events.TrailersReceived)] == [[(b"x-more", b"2")]]
    assert pair.of(Closed) == [Closed(1, 0)]
    assert codec.streams == 0


@pytest.mark.parametrize("single_bytes", [False, True])
def test_a_response_with_body_and_trailers_to_a_client(single_bytes: bool) -> None:
    pair = client_pair(single_bytes=single_bytes)
    stream = ask(pair, method=b"POST", end=False)
    pair.codec.body(stream, b"question")
    pair.codec.end(stream, [(b"x-sum", b"1")])
    pair.pump()
    assert [event.headers for event in pair.of(h2.events.RequestReceived)] == [
        [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", b"/x?y"),
            (b":authority", NAME),
            (b"accept", b"*/*"),
            (b"te", b"trailers"),
        ]
    ]
    assert b"".join(event.data for event in pair.of(h2.events.DataReceived)) == b"question"
    assert [event.headers for event in pair.of(h2.events.TrailersReceived)] == [[(b"x-sum", b"1")]]

    pair.h2.send_headers(stream, [(":status", "103"), ("link", "</a>")])
    pair.h2.send_headers(stream, [(":status", "200"), ("content-length", "6")])
    pair.h2.send_data(stream, b"answer")
    pair.h2.send_headers(stream, [("x-more", "2")], end_stream=True)
    pair.pump()
    assert [event.head for event in pair.of(Response)] == [
        ResponseHead(103, b"", [(b"link", b"</a>")], (2, 0)),
        ResponseHead(200, b"", [(b"content-length", b"6")], (2, 0), body_length=6),
    ]
    assert b"".join(event.data for event in pair.of(Body)) == b"answer"
    assert pair.of(Ended) == [Ended(stream, End(((b"x-more", b"2"),)))]
    assert pair.of(Closed) == [Closed(stream, 0)]


def test_messages_without_a_body_end_with_their_heads() -> None:
    pair = server_pair()
    pair.h2.send_headers(1, GET, end_stream=True)
    pair.pump()
    assert [(event.ended, event.head.body_length) for event in pair.of(Request)] == [(True, 0)]
    answering(pair).respond(1, 204, [], end=True)
    pair.pump()
    assert len(pair.of(h2.events.StreamEnded)) == 1
    assert pair.of(Closed) == [Closed(1, 0)]

    pair = client_pair()
    stream = ask(pair)
    pair.h2.send_headers(stream, [(":status", "204")], end_stream=True)
    pair.pump()
    assert pair.of(Response) == [Response(stream, ResponseHead(204, b"", [], (2, 0)), ended=True)]


def test_heads_below_200_do_not_come_without_end() -> None:
    pair = client_pair()
    other, flooded = ask(pair), ask(pair)
    hint = [(":status", "103"), ("link", "x" * 4000)]
    for _ in range(BACKEND_LIMITS.header_size // 4000):
        pair.h2.send_headers(flooded, hint)
    pair.pump()
    assert pair.of(Closed) == [Closed(flooded, Code.ENHANCE_YOUR_CALM)]
    assert len(pair.of(Response)) < BACKEND_LIMITS.header_size // 4000
    pair.h2.send_headers(other, hint)
    pair.h2.send_headers(other, [(":status", "200")], end_stream=True)
    pair.pump()
    assert [event.head.status for event in pair.of(Response)] == [103, 200]


def test_a_head_response_keeps_its_length_and_has_no_body() -> None:
    pair = client_pair()
    stream = ask(pair, method=b"HEAD")
    pair.h2.send_headers(stream, [(":status", "200"), ("content-length", "6")], end_stream=True)
    pair.pump()
    assert [event.head for event in pair.of(Response)] == [
        ResponseHead(200, b"", [(b"content-length", b"6")], (2, 0), body_length=0)
    ]


# ---- flow control -------------------------------------------------------------------------------------


def test_a_stream_whose_body_nobody_takes_is_stopped_and_stops_no_other() -> None:
    """All but one of the streams that there may be hold as much as they can; the last still gets its own through."""
    pair = server_pair()
    for stream in range(1, 2 * MAX_STREAMS - 1, 2):
        pair.h2.send_headers(stream, POST)
        for _ in range(4):
            pair.h2.send_data(stream, bytes(STREAM_WINDOW // 4))
    pair.pump()
    stuck = {1: pair.h2.local_flow_control_window(1), 3: pair.h2.local_flow_control_window(3)}
    assert stuck == {1: 0, 3: 0}
    pair.of(Body)

    last = 2 * MAX_STREAMS - 1
    pair.h2.send_headers(last, POST)
    for _ in range(10):
        pair.h2.send_data(last, bytes(16384))
        pair.pump()
        for event in pair.of(Body):
            assert event.stream == last
            pair.codec.consumed(last, len(event.data))
        pair.pump()
    assert pair.h2.local_flow_control_window(1) == 0


def test_a_streams_window_opens_when_its_bytes_were_taken() -> None:
    pair = server_pair()
    pair.h2.send_headers(1, POST)
    for _ in range(4):
        pair.h2.send_data(1, bytes(STREAM_WINDOW // 4))
    pair.pump()
    assert pair.h2.local_flow_control_window(1) == 0
    pair.codec.consumed(1, STREAM_WINDOW)
    pair.pump()
    assert pair.h2.local_flow_control_window(1) >= STREAM_WINDOW


def test_a_stream_that_is_taken_fast_gets_a_larger_window_and_gives_it_back() -> None:
    pair = server_pair()
    for stream in (1, 3):
        pair.h2.send_headers(stream, POST)
        sent_so_far = 0
        while sent_so_far < 8 * FAST_WINDOW:
            size = min(pair.h2.local_flow_control_window(stream), 16384)
            assert size > 0
            pair.h2.send_data(stream, bytes(size))
            sent_so_far += size
            pair.pump()
            for event in pair.of(Body):
                pair.codec.consumed(stream, len(event.data))
        assert FAST_WINDOW // 2 < pair.h2.local_flow_control_window(stream) <= FAST_WINDOW
    reserve = pair.codec._reserve
    assert reserve < 4 * FAST_WINDOW
    for stream in (1, 3):
        pair.h2.reset_stream(stream)
    pair.pump()
    assert pair.codec._reserve == 4 * FAST_WINDOW


def test_the_window_of_a_stream_that_was_reset_returns_to_the_connection() -> None:
    pair = server_pair()
    for stream in range(1, 801, 2):  # in all, thrice what the connection's window would allow
        pair.h2.send_headers(stream, POST)
        for _ in range(4):
            pair.h2.send_data(stream, bytes(STREAM_WINDOW // 4))
        pair.pump()
        if stream % 4 == 1:
            pair.h2.reset_stream(stream)
        else:
            pair.codec.reset(stream)
        pair.pump()
        pair.codec.second()


def test_what_is_sent_waits_for_the_peers_window() -> None:
    pair = server_pair()
    codec = answering(pair)
    pair.h2.send_headers(1, GET, end_stream=True)
    pair.pump()
    codec.respond(1, 200, [])
    codec.body(1, bytes(100_000), end=True)
    pair.pump()
    assert codec.queued(1) == 100_000 - 65_535
    for event in pair.of(h2.events.DataReceived):
        pair.h2.acknowledge_received_data(event.flow_controlled_length, 1)
    pair.pump()
    assert codec.queued(1) == 0
    assert pair.of(Closed) == [Closed(1, 0)]


def test_outgoing_keeps_to_its_limit() -> None:
    frames = Frames()
    codec = server(frames=frames)
    told(codec, frames.headers(1))
    codec.respond(1, 200, [])
    codec.body(1, bytes(40_000), end=True)
    data = b""
    while more := codec.outgoing(1000):
        assert len(more) <= 1000
        data += more
    assert sum(len(frame.data) for frame in parse(data) if frame.type == 0) == 40_000


def test_streams_that_are_always_refilled_take_turns() -> None:
    """libnghttp2 alone would send the first to its end, and that of an endless one never comes."""
    frames = Frames()
    codec = server(frames=frames)
    told(codec, frames.window(0, 1 << 30) + b"".join(frames.headers(s) + frames.window(s, 1 << 29) for s in (1, 3, 5)))
    for stream in (1, 3, 5):
        codec.respond(stream, 200, [])
    data = b""
    for _ in range(30):
        for stream in (1, 3, 5):
            if codec.queued(stream) < 32768:
                codec.body(stream, bytes(32768))
        data += codec.outgoing(65536)
    sizes = {
        stream: sum(len(f.data) for f in parse(data + sent(codec)) if f.stream_id == stream and f.type == 0)
        for stream in (1, 3, 5)
    }
    assert max(sizes.values()) < 1.2 * min(sizes.values())


# ---- resets and ends ----------------------------------------------------------------------------------


def test_resets_of_either_side() -> None:
    pair = server_pair()
    for stream in (1, 3):
        pair.h2.send_headers(stream, POST)
    pair.pump()
    pair.h2.reset_stream(1, error_code=8)
    pair.codec.reset(3, Code.INTERNAL_ERROR)
    pair.pump()
    assert pair.of(Closed) == [Closed(1, 8), Closed(3, 2)]
    assert [event.error_code for event in pair.of(h2.events.StreamReset)] == [2]


def test_commands_for_a_stream_that_is_gone_do_nothing() -> None:
    pair = server_pair()
    codec = answering(pair)
    pair.h2.send_headers(1, POST)
    pair.h2.send_data(1, b"x")
    pair.h2.reset_stream(1)
    pair.pump()
    for _ in range(2):
        codec.inform(1, 103, [])
        codec.respond(1, 200, [])
        codec.body(1, b"x")
        codec.end(1, [(b"a", b"b")])
        codec.end(1)
        codec.consumed(1, 1)
        codec.leave(1)
        codec.reset(1)
        assert codec.queued(1) == 0
        pair.pump()
    assert pair.of(h2.events.ResponseReceived) == []
    pair.h2.send_headers(3, GET, end_stream=True)
    pair.pump()
    assert [event.stream for event in pair.of(Request)][-1] == 3


def test_an_early_answer_is_sent_whole_before_the_rest_of_the_request_is_stopped() -> None:
    """RFC 9113 section 8.1: RST_STREAM with NO_ERROR behind the response, and never in its place."""
    pair = server_pair()
    codec = answering(pair)
    pair.h2.send_headers(1, POST)
    pair.pump()
    codec.respond(1, 413, [])
    codec.body(1, bytes(70_000), end=True)
    codec.leave(1)
    pair.pump()
    assert pair.of(h2.events.StreamReset) == []  # 4,465 bytes wait for the window
    pair.h2.send_data(1, b"goes on")
    for event in pair.of(h2.events.DataReceived):
        pair.h2.acknowledge_received_data(event.flow_controlled_length, 1)
    pair.pump()
    assert pair.of(Body) == []
    assert len(pair.of(h2.events.StreamEnded)) == 1
    assert [event.error_code for event in pair.of(h2.events.StreamReset)] == [0]
    assert pair.of(Closed) == [Closed(1, 0)]


def test_a_shutdown_still_takes_the_streams_that_were_under_way() -> None:
    pair = server_pair()
    codec = answering(pair)
    pair.h2.send_headers(1, GET, end_stream=True)
    pair.pump()
    frames = Frames()
    codec.shutdown()
    assert codec.closing
    notice = sent(codec)
    assert [frame.last_stream_id for frame in parse(notice) if frame.type == 7] == [2**31 - 1]
    pair.of(Request)
    told(codec, frames.headers(3))  # sent before the notice was read
    assert codec.streams == 2
    (ping,) = [frame for frame in parse(notice) if frame.type == 6]
    told(codec, frames.ping(ping.opaque_data, ack=True))
    assert [frame.last_stream_id for frame in parse(sent(codec)) if frame.type == 7] == [3]
    assert told(codec, frames.headers(5)) == []  # too late
    for stream in (1, 3):
        codec.respond(stream, 200, [], end=True)
    events = told(codec, b"")
    sent(codec, events)
    assert events == [Closed(1, 0), Closed(3, 0), Over(0, "")]


def test_goaway_lets_the_open_streams_finish() -> None:
    pair = client_pair()
    first, second = ask(pair), ask(pair)
    pair.h2.close_connection(last_stream_id=first)
    pair.pump()
    assert pair.codec.closing
    assert pair.of(Closed) == [Closed(second, Code.REFUSED_STREAM)]
    assert isinstance(pair.codec, Client)
    assert pair.codec.room == 0
    assert pair.codec.streams == 1


def test_terminate_tells_the_peer_why_and_ends_all() -> None:
    pair = server_pair()
    pair.h2.send_headers(1, POST)
    pair.pump()
    pair.codec.terminate(Code.ENHANCE_YOUR_CALM)
    pair.pump()
    assert [event.error_code for event in pair.of(h2.events.ConnectionTerminated)] == [11]
    assert pair.of(Closed) == [Closed(1, 11)]
    assert pair.of(Over) == [Over(11, "")]
    assert pair.codec.over
    assert pair.codec.outgoing(100) == b""


def test_a_client_counts_the_room_that_its_backend_gives_it() -> None:
    pair = client_pair()
    assert isinstance(pair.codec, Client)
    assert pair.codec.room == 100  # what h2 announces
    assert not pair.codec.extended_connect
    ask(pair)
    assert pair.codec.room == 99
    pair.h2.update_settings({3: 1, 8: 1})
    pair.pump()
    assert pair.codec.room == 0
    assert pair.codec.extended_connect


def test_an_extended_connect_of_a_client() -> None:
    pair = client_pair()
    assert isinstance(pair.codec, Client)
    pair.h2.update_settings({8: 1})
    pair.pump()
    stream = pair.codec.request(b"CONNECT", b"https", NAME, b"/chat", [], protocol=b"websocket")
    pair.pump()
    assert (b":protocol", b"websocket") in pair.of(h2.events.RequestReceived)[0].headers
    pair.h2.send_headers(stream, [(":status", "200")])
    pair.h2.send_data(stream, b"frame")
    pair.pump()
    assert [event.data for event in pair.of(Body)] == [b"frame"]


def test_what_a_server_announces() -> None:
    pair = server_pair()
    settings = pair.h2.remote_settings
    assert settings.max_concurrent_streams == MAX_STREAMS
    assert settings.initial_window_size == STREAM_WINDOW
    assert settings.max_header_list_size == 32 * 1024
    assert settings.enable_connect_protocol == 1
    assert settings.max_frame_size == 16 * 1024


@pytest.mark.parametrize(
    "field", [(b"x", b"a\r\nb: c"), (b"x\n", b"a"), (b"X", b"a"), (b"", b"a"), (b"x y", b"a"), (b"x", b"\0")]
)
def test_no_field_leaves_that_http2_does_not_allow(field: tuple[bytes, bytes]) -> None:
    frames = Frames()
    codec = server(frames=frames)
    told(codec, frames.headers(1))
    with pytest.raises(ValueError, match="does not allow"):
        codec.respond(1, 200, [field])
    with pytest.raises(ValueError, match="does not allow"):
        codec.end(1, [field])
    assert codec.outgoing(1000) == b""
    with pytest.raises(ValueError, match="does not allow"):
        Client().request(b"GET", b"https", NAME, b"/", [field])


@pytest.mark.parametrize(
    "status",
    [
        [(":status", "101")],
        [(":status", "2000")],
        [(":status", "abc")],
        [(":status", "200"), ("content-length", "+1")],
        [(":status", "200"), ("connection", "close")],
    ],
)
def test_a_response_that_breaks_a_rule_resets_its_stream_alone(status: list[tuple[str, str]]) -> None:
    pair = client_pair()
    stream, other = ask(pair), ask(pair)
    frames = Frames()
    frames.hpack = pair.h2.encoder
    pair.ours += told(pair.codec, frames.headers(stream, status))
    pair.codec.outgoing(65536)
    pair.ours += pair.codec.events()
    assert pair.of(Response) == []
    assert [event.stream for event in pair.of(Closed)] == [stream]
    pair.h2.send_headers(other, [(":status", "200")], end_stream=True)
    pair.pump()
    assert [event.stream for event in pair.of(Response)] == [other]


def test_paths_and_authorities_are_as_sent() -> None:
    pair = server_pair()
    pair.h2.send_headers(
        1, changed(GET, path="/a%2Fb//c?d=ä".replace("ä", "%C3%A4"), authority="Cloud.Test:8443"), end_stream=True
    )
    pair.pump()
    (request,) = pair.of(Request)
    assert request.head.target == b"/a%2Fb//c?d=%C3%A4"
    assert request.head.authority == b"Cloud.Test:8443"


def test_a_peer_may_acknowledge_each_small_piece_for_as_long_as_it_likes() -> None:
    """As gRPC does it, in a call of many small messages that go back and forth: more than time alone would pay for."""
    frames = Frames()
    codec = server(frames=frames)
    told(codec, frames.headers(1))
    codec.respond(1, 200, [])
    thanks = frames.window(0, 1) + frames.window(1, 1) + frames.ping()
    for _ in range(2000):
        codec.body(1, b"x")
        assert sent(codec)
        codec.receive(thanks)
        codec.events()
    assert not codec.closing
    for _ in range(2000):  # and for nothing at all it may not
        codec.receive(thanks)
        sent(codec)
    assert codec.closing


def test_what_a_head_held_is_free_again_when_its_stream_has_ended() -> None:
    """Said again, a large head is a few bytes; so many at once would be refused (`HEADS_HELD`)."""
    frames = Frames()
    codec = server(frames=frames)
    large = [*GET, *((f"x-{number}", "a" * 900) for number in range(4))]  # HPACK's table takes so much
    for stream in range(1, 401, 2):
        events = told(codec, frames.headers(stream, large))
        assert [event.stream for event in each([Request], events)] == [stream]
        codec.respond(stream, 204, [], end=True)
        sent(codec)
    at_once = [bool(each([Request], told(codec, frames.headers(stream, large)))) for stream in range(401, 601, 2)]
    assert at_once[0]
    assert not at_once[-1]


def test_streams_that_we_break_off_for_our_own_reasons_cost_their_client_nothing() -> None:
    frames = Frames()
    codec = server(frames=frames)
    for stream in range(1, 2 * BUDGET, 2):
        told(codec, frames.headers(stream))
        codec.reset(stream, Code.INTERNAL_ERROR)
        sent(codec)
    assert not codec.closing
