"""The response vectors of llhttp's own tests: what a backend may say, and what never becomes a whole response here."""

from __future__ import annotations

import pytest

from tests.http.foreign import Message, Vector, llhttp
from tests.http.transcript import response
from tests.suites import LLHTTP
from trioproxy.errors import UpstreamProtocolError
from trioproxy.http.messages import End, ResponseHead

_TO_END = "its body ends with the connection, which ends here; there the log stops before that"
_ONE = "one request, one response: what is behind it is no part of it, and the connection is not used again"
_EXTENSIONS = "chunk extensions are dropped without looking what they say: RFC 9112 section 7.1.1"

_LF = "RFC 9112 section 2.2 lets servers skip an empty line before a request, and nobody one before a response"


def _read(status: str, body: bytes | None = b"") -> Message:
    return Message((status,), body)


DIFFERS: dict[str, tuple[Message | None, str]] = {
    "connection: HTTP/1.0 with keep-alive and EOF-terminated 200 status": (_read("200", b"HTTP/1.0 200 OK"), _TO_END),
    "connection: HTTP/1.1 with EOF-terminated 200 status": (_read("200", b"HTTP/1.1 200 OK"), _TO_END),
    "connection: HTTP 200 response with Upgrade header": (_read("200", b"body"), _TO_END),
    "content-length: Response without Content-Length, but with body": (_read("200", None), _TO_END),
    "finish: It should be safe to finish with cb after empty response": (_read("200"), _TO_END),
    "invalid: Extra space between status code and reason": (_read("200"), _TO_END),
    "sample: Empty body should not trigger spurious span callbacks": (_read("200"), _TO_END),
    "sample: No headers and no body": (_read("404"), _TO_END),
    "sample: No reason phrase": (_read("301"), _TO_END),
    "sample: Empty reason phrase after space": (_read("200"), _TO_END),
    "sample: No Content-Length, no Transfer-Encoding": (_read("200", b"hello world"), _TO_END),
    "connection: HTTP/1.1 with keep-alive disabled, content-length (lenient)": (_read("200", b"2ad73"), _ONE),
    "connection: HTTP/1.1 with keep-alive disabled and 204 status (lenient)": (_read("204"), _ONE),
    "connection: HTTP 100 first, then 400": (None, _LF),
    "sample: Response starting with CRLF": (None, _LF),
    "content-length: Content-Length reset when no body is received": (
        None,
        "there the parser is told that no body follows, as after HEAD; here it was a GET",
    ),
    "transfer-encoding: No extension after semicolon": (_read("200", b"aa"), _EXTENSIONS),
}
"""Name, what we read (None: it is refused) and why it is not what they read."""


def first_final(vector: Vector) -> Message | None:
    """The response to the one request that was sent, None when it must be refused."""
    if vector.name in DIFFERS:
        return DIFFERS[vector.name][0]
    whole = [message for message in vector.messages if message.start[0][0] != "1"]
    return whole[0] if whole and not vector.lenient else None


@pytest.mark.skipif(bool(LLHTTP.missing), reason=LLHTTP.missing)
@pytest.mark.parametrize("vector", llhttp("response"), ids=lambda vector: vector.name)
def test_llhttp(vector: Vector) -> None:
    said = response(vector.data, eof=True)
    meant = first_final(vector)
    if meant is None:
        assert isinstance(said[-1], UpstreamProtocolError)
        return
    heads = [event for event in said if isinstance(event, ResponseHead)]
    assert isinstance(said[-1], End)
    assert (str(heads[-1].status),) == meant.start
    assert meant.body in (None, b"".join(event for event in said if isinstance(event, bytes)))


@pytest.mark.skipif(bool(LLHTTP.missing), reason=LLHTTP.missing)
def test_the_table_names_vectors_that_there_are() -> None:
    assert not DIFFERS.keys() - {vector.name for vector in llhttp("response")}
