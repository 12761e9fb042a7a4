"""HTTP/1.1: bytes to events (`h1_read`) and messages to bytes (`h1_write`)."""

from __future__ import annotations

from trioproxy.http.h1_read import BACKEND_LIMITS, MAX_TARGET, RequestReader, ResponseReader
from trioproxy.http.h1_write import (
    chunk_prefix,
    encode_chunk,
    encode_last_chunk,
    encode_request_head,
    encode_request_line,
    encode_response_head,
)

__all__ = [
    "BACKEND_LIMITS",
    "MAX_TARGET",
    "RequestReader",
    "ResponseReader",
    "chunk_prefix",
    "encode_chunk",
    "encode_last_chunk",
    "encode_request_head",
    "encode_request_line",
    "encode_response_head",
]
