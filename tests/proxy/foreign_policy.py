"""Where a site judges a vector of gunicorn's or llhttp's tests otherwise than its authors, and why."""

from __future__ import annotations

import attrs

from tests.http.foreign import Message


@attrs.frozen
class Ours:
    """What becomes of a vector.

    Attributes:
        requests: How many requests reach the backend as wholes.
        status: Of the answer that ends it; 0 where nothing is refused.
        why: The reason, with the section that it rests on.
        begun: The refused request was well until its body, so that the backend has seen its beginning.
        reads: What the backend gets, where that is not what the suite says.
    """

    requests: int
    status: int
    why: str
    begun: bool = False
    reads: tuple[Message, ...] | None = None


_CUT = (
    "it ends before our reader has seen a whole head: nothing reaches the backend, and there is no one left to answer"
)
_LONG = "within our limits (8 KiB of target, 32 KiB and 100 fields of head); theirs are smaller"
_LENIENT = "nothing in it needs leniency"
_TE = "a Transfer-Encoding other than `chunked` alone: RFC 9112 section 6.1 leaves others to us, and two parties differ"
_HOST = "an invalid Host: RFC 9112 section 3.2 wants 400"
_CONNECT = "CONNECT is for proxies that clients choose: 405, RFC 9110 section 9.3.6"
_FRAGMENT = "a fragment in a request target, which RFC 9112 section 3.2 has no place for"
_USERINFO = "user information in an http URL: RFC 9110 section 4.2.4 calls it an error"
_METHOD = "any token is a method (RFC 9110 section 9.1); whether it is known is the backend's affair"
_TRAILER = "dropped, as RFC 9110 section 6.5.1 has it, instead of refused"
_AFTER_CLOSE = "what follows the last request of a connection is not read: RFC 9112 section 9.6"
_OTHER_PROTOCOL = "RTSP and ICE are not spoken here"
_EXTENSIONS = "chunk extensions are dropped without looking what they say: RFC 9112 section 7.1.1"
_NO_PROXY_HEADER = "the PROXY header comes before TLS here; inside it, it is a broken request line"
_LOOK_ALIKE = "the field with `_` is dropped, the rest is good"

_P = Message(("POST", "/p"), b"hello")

GUNICORN_DIFFERS: dict[str, Ours] = {
    "invalid/001": Ours(0, 0, _CUT),
    "invalid/003c": Ours(1, 0, _METHOD, reads=(Message(("-bl", "/foo")),)),
    "invalid/006": Ours(1, 0, _LONG),
    "invalid/007": Ours(1, 0, _LONG),
    "invalid/008": Ours(1, 0, _LONG),
    "invalid/009": Ours(0, 431, "the same verdict, by the status that RFC 6585 section 5 has for it"),
    "invalid/010": Ours(1, 0, _LONG, reads=(Message(("GET", "/test")),)),
    "invalid/017": Ours(1, 0, _LONG, reads=(Message(("GET", "/test")),)),
    "invalid/019": Ours(
        1, 0, "X-Forwarded-* of a client that nobody trusts are dropped", reads=(Message(("GET", "/test")),)
    ),
    "invalid/040": Ours(1, 0, _LOOK_ALIKE, reads=(Message(("GET", "/keep/same/as?invalid/040"), b"tricked"),)),
    "invalid/041": Ours(1, 0, "two Content-Types frame nothing", reads=(Message(("GET", "/stuff/here?foo=bar")),)),
    "invalid/chunked_07": Ours(
        1, 0, _LOOK_ALIKE, reads=(Message(("POST", "/chunked_ambiguous_header_mapping"), b"hello world"),)
    ),
    "invalid/limit_header_default_01": Ours(1, 0, _LONG, reads=(Message(("GET", "/")),)),
    "invalid/pp_01": Ours(0, 0, _CUT),
    "invalid/pp_02": Ours(0, 0, _CUT),
    "invalid/pp_03": Ours(0, 0, _CUT),
    "invalid/rfc9110_trailer_forbidden_cl_01": Ours(1, 0, _TRAILER, reads=(_P,)),
    "invalid/rfc9110_trailer_forbidden_host_01": Ours(1, 0, _TRAILER, reads=(_P,)),
    "invalid/rfc9110_trailer_forbidden_te_01": Ours(1, 0, _TRAILER, reads=(_P,)),
    "invalid/rfc9112_chunked_missing_final_crlf_01": Ours(
        0, 0, "the client leaves inside the body: it stays unfinished"
    ),
    "valid/002": Ours(0, 400, _HOST),
    "valid/003": Ours(0, 400, _HOST),
    "valid/005": Ours(0, 400, _FRAGMENT),
    "valid/024": Ours(1, 0, _LENIENT),
    "valid/025": Ours(0, 400, _TE),
    "valid/025_line": Ours(0, 400, _TE),
    "valid/026": Ours(1, 0, _LENIENT),
    "valid/029": Ours(0, 400, _TE),
    "valid/030": Ours(0, 400, _TE),
    "valid/031compat": Ours(1, 0, "methods are case-sensitive and kept", reads=(Message(("-blargh", "/foo")),)),
    "valid/031compat2": Ours(1, 0, _LENIENT),
    "valid/040_compat": Ours(1, 0, _LOOK_ALIKE),
    "valid/099": Ours(0, 0, "its body is shorter than its Content-Length: it stays unfinished"),
    "valid/pp_03": Ours(1, 0, _LENIENT),
    "valid/pp_01": Ours(0, 400, _NO_PROXY_HEADER),
    "valid/pp_02": Ours(0, 400, _NO_PROXY_HEADER),
    "valid/rfc9112_smuggle_gzip_chunked_01": Ours(0, 400, _TE),
    "valid/rfc9112_smuggle_te_identity_chunked_01": Ours(0, 400, _TE),
    "valid/rfc9112_target_absolute_userinfo_01": Ours(0, 400, _USERINFO),
    "valid/rfc9112_target_authority_connect_01": Ours(0, 405, _CONNECT),
    "valid/rfc9112_target_authority_ipv6_01": Ours(0, 405, _CONNECT),
}

LLHTTP_DIFFERS: dict[str, Ours] = {
    "connection: No restart when keep-alive is off (1.0)": Ours(1, 0, _AFTER_CLOSE),
    "connection: Resetting flags when keep-alive is off (1.0, lenient)": Ours(1, 0, _AFTER_CLOSE),
    "connection: CRLF between requests, explicit close": Ours(1, 0, _AFTER_CLOSE),
    "connection: CRLF between requests, explicit close followed by tab": Ours(1, 0, _AFTER_CLOSE),
    "connection: CRLF between requests, explicit close (lenient)": Ours(1, 0, _AFTER_CLOSE),
    "content-length: Error on Content-Length overflow": Ours(0, 0, _CUT),
    "content-length: Error on duplicate Content-Length": Ours(0, 0, _CUT),
    "content-length: Content-Length reset when no body is received": Ours(
        0, 0, "there the parser is told that no body follows; here it is waited for"
    ),
    "content-length: Missing CRLF-CRLF before body": Ours(0, 0, _CUT),
    "content-length: Missing CRLF-CRLF before body (lenient)": Ours(0, 0, _CUT),
    "invalid: HTTP protocol and ANNOUNCE method": Ours(
        1, 0, _METHOD, reads=(Message(("ANNOUNCE", "/music/sweet/music")),)
    ),
    "invalid: Headers separated by dummy characters": Ours(0, 0, _CUT),
    "invalid: Headers separated by dummy characters (lenient)": Ours(0, 0, _CUT),
    "invalid: Invalid method": Ours(1, 0, _METHOD, reads=(Message(("MKCOLA", "/")),)),
    "invalid: Invalid HTTP version": Ours(0, 0, _CUT),
    "invalid: Invalid space after start line": Ours(0, 0, _CUT),
    "lenient-header-value-relaxed: Space after start line must still fail": Ours(0, 0, _CUT),
    "lenient-headers: Second request header value (lenient)": Ours(1, 400, "the first request needs no leniency"),
    "method: CONNECT request": Ours(0, 405, _CONNECT),
    "method: CONNECT request with CAPS": Ours(0, 405, _CONNECT),
    "method: CONNECT with body": Ours(0, 405, _CONNECT),
    "uri: Underscore in hostname": Ours(0, 405, _CONNECT),
    "method: M-SEARCH request": Ours(0, 400, "`*` is for OPTIONS: RFC 9112 section 3.2.4"),
    "method: SOURCE request with ICE": Ours(0, 400, _OTHER_PROTOCOL),
    "method: OPTIONS request with RTSP": Ours(0, 400, _OTHER_PROTOCOL),
    "method: ANNOUNCE request with RTSP": Ours(0, 400, _OTHER_PROTOCOL),
    "method: PRI request HTTP2": Ours(0, 400, "the preface of HTTP/2 where ALPN has chosen HTTP/1.1"),
    "sample: curl GET": Ours(0, 400, _HOST),
    "sample: Firefox GET": Ours(0, 400, _HOST),
    "sample: No HTTP version": Ours(0, 400, "HTTP/0.9 is not spoken here"),
    "sample: No LF after CR": Ours(0, 0, _CUT),
    "sample: No LF after CR (lenient)": Ours(0, 0, _CUT),
    "transfer-encoding: No extension after semicolon": Ours(1, 0, _EXTENSIONS),
    "transfer-encoding: Unbalanced chunk extensions quoting": Ours(0, 0, _EXTENSIONS),
    "transfer-encoding: POST with chunked as last transfer-encoding": Ours(0, 400, _FRAGMENT),
    "transfer-encoding: POST with chunked as last transfer-encoding (multiple headers)": Ours(0, 400, _FRAGMENT),
    "uri: Fragment in URI": Ours(0, 400, _FRAGMENT),
    "uri: host:port and basic auth": Ours(0, 400, _USERINFO),
}
