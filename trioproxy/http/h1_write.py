"""HTTP/1.1 heads and chunks as bytes. Every head that leaves is written here anew; none is passed on raw."""

from __future__ import annotations

from collections.abc import Iterable

from trioproxy.http.messages import Header, Headers


def encode_request_head(method: bytes, target: bytes, headers: Headers) -> bytes:
    """A request line and fields, with the empty line.

    Raises:
        ValueError: a part holds CR, LF or NUL.
    """
    return _block(b"%b %b HTTP/1.1" % (method, target), headers)


def encode_request_line(method: bytes, target: bytes) -> bytes:
    """A request line alone, for `encode_fields` to follow. Raises ValueError as `encode_request_head`."""
    line = b"%b %b HTTP/1.1\r\n" % (method, target)
    if line.count(b"\n") != 1 or line.count(b"\r") != 1 or line.find(0) >= 0:
        raise ValueError("a line end or NUL inside a request line")
    return line


def encode_fields(headers: Headers) -> bytes:
    """Fields alone, with the empty line. Raises ValueError when a part holds CR, LF or NUL."""
    return _block(b"", headers)[2:]


def encode_response_head(status: int, reason: bytes, headers: Headers) -> bytes:
    """A status line and fields, with the empty line.

    Raises:
        ValueError: a part holds CR, LF or NUL.
    """
    return _block(b"HTTP/1.1 %d %b" % (status, reason), headers)


def encode_chunk(data: bytes) -> bytes:
    """A chunk; for large data, sending `chunk_prefix(len(data))`, the data and CRLF saves this copy.

    Raises:
        ValueError: the data is empty, which would end the body.
    """
    return b"%b%b\r\n" % (chunk_prefix(len(data)), data)


def chunk_prefix(size: int) -> bytes:
    """What comes before the `size` bytes of a chunk; CRLF comes after them.

    Raises:
        ValueError: the size is not positive.
    """
    if size <= 0:
        raise ValueError("an empty chunk would end the body")
    return b"%x\r\n" % size


def encode_last_chunk(trailers: Iterable[Header] = ()) -> bytes:
    """The end of a chunked body.

    Raises:
        ValueError: a trailer holds CR, LF or NUL.
    """
    return _block(b"0", list(trailers))


def _block(first_line: bytes, headers: Headers) -> bytes:
    block = b"\r\n".join((first_line, *map(b": ".join, headers), b"", b""))
    # Any line end or NUL that came from a part shows in the sums: one look at the whole instead of one at each part.
    lines = len(headers) + 2
    if block.count(b"\n") != lines or block.count(b"\r") != lines or block.find(0) >= 0:
        raise ValueError("a line end or NUL inside a part of a head")
    return block
