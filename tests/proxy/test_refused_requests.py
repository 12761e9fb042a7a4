"""Every form of request that is refused, at a site: the status, and not one byte of it for the backend.

Each is followed at once by a good request. A form that leaves in doubt where a message ends takes the connection with
it, so that nobody gets what follows; any other leaves the next request its answer.
"""

from __future__ import annotations

import pytest

from tests.http.vectors import FRAMING, LINES
from tests.proxy.recorded import recorded

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: a.example\r\n\r\n"


def get(fields: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\n" + fields + b"\r\n"


HEADS = {
    **{f"framing: {form}": (POST + fields + b"\r\n", 400) for form, fields in FRAMING.items()},
    **{f"line: {form}": (GET + line + b"\r\n", 400) for form, line in LINES.items()},
    "TE on 1.0": (b"POST / HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "leading space": (b" " + GET + b"\r\n", 400),
    "NUL in the target": (b"GET /\0 HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "bare LF after the request line": (b"GET / HTTP/1.1\nHost: a.example\r\n\r\n", 400),
    "bare CR after the request line": (b"GET / HTTP/1.1\rHost: a.example\r\n\r\n", 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/1.2": (GET.replace(b"1.1", b"1.2") + b"\r\n", 400),
    "HTTP/2.0": (GET.replace(b"1.1", b"2.0") + b"\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "http/1.1": (GET.replace(b"HTTP", b"http") + b"\r\n", 400),
    "CONNECT": (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n", 405),
    "TRACE": (GET.replace(b"GET", b"TRACE") + b"\r\n", 405),
    "another expectation": (POST + b"Content-Length: 1\r\nExpect: 200-ok\r\n\r\nx", 417),
    "a head over 32 KiB": (GET + b"X: " + b"y" * 32 * 1024 + b"\r\n\r\n", 431),
    "more than 100 fields": (GET + b"X: y\r\n" * 101 + b"\r\n", 431),
    "a target over 8 KiB": (b"GET /" + b"x" * 8 * 1024 + b" HTTP/1.1\r\nHost: a.example\r\n\r\n", 414),
    "Host missing": (get(b""), 400),
    "Host doubled": (get(b"Host: a.example\r\nHost: a.example\r\n"), 400),
    "Host empty": (get(b"Host:\r\n"), 400),
    "Host with user information": (get(b"Host: u@a.example\r\n"), 400),
    "Host with a path": (get(b"Host: a.example/b\r\n"), 400),
    "Host with no port behind its colon": (get(b"Host: a.example:\r\n"), 400),
    "Host that is no name": (get(b"Host: a_b?\r\n"), 400),
    "absolute form that is not Host": (b"GET http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "absolute form with user information": (b"GET http://u@a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "absolute form of another scheme": (b"GET ftp://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "authority form": (b"GET a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
}


@pytest.mark.parametrize("form", HEADS)
async def test_heads(form: str) -> None:
    data, status = HEADS[form]
    async with recorded() as scene:
        assert await scene.tell(data + NEXT, 1) == [status]
        assert not scene.recording.connections


BODIES = {
    "a size of 17 digits": b"00000000000000005\r\nhello\r\n0\r\n\r\n",
    "a size that is not hex": b"g\r\n",
    "a size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "a size with 0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "a size with _": b"1_0\r\n0123456789abcdef\r\n0\r\n\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "LF behind a size": b"5\nhello\r\n0\r\n\r\n",
    "CR behind a size": b"5\rhello\r\n0\r\n\r\n",
    "LF behind a chunk": b"5\r\nhello\n0\r\n\r\n",
    "LF inside an extension": b"5;x\nhello\r\n0\r\n\r\n",
    "CR inside an extension": b"5;\rx\r\nhello\r\n0\r\n\r\n",
    "more than the chunk's size": b"5\r\nhello!\r\n0\r\n\r\n",
    "less than the chunk's size": b"6\r\nhello\r\n0\r\n\r\n",
    "an extension over its cap": b"5;" + b"x" * 1024 + b"\r\nhello\r\n0\r\n\r\n",
    "extensions over theirs": (b"1;" + b"x" * 1000 + b"\r\ny\r\n") * 17 + b"0\r\n\r\n",
    "LF behind the last chunk": b"5\r\nhello\r\n0\n\n",
    "a trailer that is no field": b"5\r\nhello\r\n0\r\nx y: z\r\n\r\n",
    "a trailer with obs-fold": b"5\r\nhello\r\n0\r\nx: y\r\n z\r\n\r\n",
    "trailers over their cap": b"5\r\nhello\r\n0\r\nx: " + b"y" * 8192 + b"\r\n\r\n",
}


@pytest.mark.parametrize("form", BODIES)
async def test_bodies(form: str) -> None:
    """What broke comes to its end nowhere: the backend may have seen it begin, and sees the connection go."""
    async with recorded() as scene:
        statuses = await scene.tell(CHUNKED + BODIES[form] + NEXT, 1)
        assert statuses in ([400], [431])
        assert not scene.asked.whole
        assert b"0\r\n\r\n" not in scene.recording.received
        assert b"/next" not in scene.recording.received
        assert scene.recording.ended == scene.recording.connections


LIVES_ON = {
    "a path that climbs out": (b"GET /../x HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "a path that climbs out when it is decoded": (b"GET /%2e%2e/x HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "a percent sign that encodes nothing": (b"GET /%zz HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
    "a loop": (GET + b"Via: 1.1 test-proxy\r\n\r\n", 508),
}


@pytest.mark.parametrize("form", LIVES_ON)
async def test_requests_that_are_understood_and_yet_refused(form: str) -> None:
    data, status = LIVES_ON[form]
    async with recorded() as scene:
        assert await scene.tell(data + NEXT, 2) == [status, 200]
        assert [message.start for message in scene.asked.whole] == [("GET", "/next")]


UNTOUCHED = [
    b"/a//b",
    b"/a/./b",
    b"/a/../b",
    b"/%2f%2F",
    b"/a%2fb",
    b"/~%7e",
    b"/%C3%A9",
    b"/a;b=c",
    b"/?a=%00&b=/../",
    b"/" + b"x" * 8000,
    b'/"<>\\^`{|}',
]


@pytest.mark.parametrize("target", UNTOUCHED)
async def test_targets_reach_the_backend_byte_for_byte(target: bytes) -> None:
    async with recorded() as scene:
        assert await scene.tell(b"GET %b HTTP/1.1\r\nHost: a.example\r\n\r\n" % target, 1) == [200]
        assert [message.start for message in scene.asked.whole] == [("GET", target.decode())]


DROPPED = [
    *(b"X-Forwarded-%b" % name for name in (b"For", b"Proto", b"Host", b"Port", b"Prefix", b"Server", b"Ssl")),
    *(b"Forwarded", b"X-Real-IP", b"X_Forwarded_For", b"X-Forwarded_Host", b"x_real-ip", b"Proxy", b"Keep-Alive"),
    *(b"Proxy-Connection", b"Transfer_Encoding", b"Content_Length", b"HTTP2-Settings", b"Proxy-Authorization"),
]


@pytest.mark.parametrize("connection", [b"x-gone", b"x-gone, %b, x-forwarded-for, host"], ids=["", "named"])
@pytest.mark.parametrize("name", DROPPED)
async def test_fields_that_a_client_may_not_set_do_not_reach_the_backend(name: bytes, connection: bytes) -> None:
    """Named in Connection or not: what Connection names goes before ours is put in."""
    named = connection.replace(b"%b", name)
    async with recorded() as scene:
        said = GET + b"%b: made-up\r\nConnection: %b\r\nX-Gone: made-up\r\n\r\n"
        assert await scene.tell(said % (name, named), 1) == [200]
        got = bytes(scene.recording.received).lower()
        assert b"made-up" not in got
        assert b"\r\nx-forwarded-for: 127.0.0.1\r\n" in got
        assert b"\r\nhost: a.example\r\n" in got
        assert b"x-gone" not in got


async def test_trailers_that_frame_route_or_authorise_are_dropped() -> None:
    names = [
        b"Content-Length",
        b"Transfer-Encoding",
        b"Host",
        b"Authorization",
        b"Cookie",
        b"X-Forwarded-For",
        b"X_Real_IP",
    ]
    section = b"".join(b"%b: made-up\r\n" % name for name in names)
    async with recorded() as scene:
        assert await scene.tell(CHUNKED + b"1\r\nx\r\n0\r\nX-Sum: 1\r\n" + section + b"\r\n", 1) == [200]
        assert scene.recording.received.endswith(b"\r\n0\r\nx-sum: 1\r\n\r\n")
