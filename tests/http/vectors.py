"""Messages that many tests begin with, and the broken ones that both directions must refuse."""

from __future__ import annotations

from tests.http.transcript import requests
from trioproxy.errors import RequestError
from trioproxy.http.messages import RequestHead

GET = b"GET / HTTP/1.1\r\nHost: a.example\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a.example\r\n"
GET10 = b"GET / HTTP/1.0\r\n"


def head_of(data: bytes) -> RequestHead:
    head = requests(data)[0]
    assert isinstance(head, RequestHead), head
    return head


def refused(data: bytes, status: int) -> None:
    """The head itself is refused: no event comes before the error."""
    said = requests(data)
    assert len(said) == 1
    assert isinstance(said[0], RequestError), said
    assert said[0].status == status


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
