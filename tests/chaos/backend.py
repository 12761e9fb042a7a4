"""A backend that can be killed at any moment: a process of its own, of the standard library alone.

    python backend.py PORT

It answers until somebody ends it: `GET /length/N` and `GET /chunked/N` with a body of N bytes, of which byte i is i
modulo 251, in pieces with pauses between them; a POST with the SHA-256 of its body, in hexadecimal digits.
"""

from __future__ import annotations

import hashlib
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATTERN = bytes(range(251)) * 64

PAUSE = 0.004


def body(size: int) -> bytes:
    """The body of that size."""
    return (PATTERN * (size // len(PATTERN) + 1))[:size]


class Handler(BaseHTTPRequestHandler):
    """One connection; keep-alive, as HTTP/1.1 has it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with a body."""
        _, framing, size = self.path.split("/")
        chunked = framing == "chunked"
        whole = body(int(size))
        self.send_response(200)
        self.send_header("Transfer-Encoding" if chunked else "Content-Length", "chunked" if chunked else size)
        self.end_headers()
        for start in range(0, len(whole), len(PATTERN)):
            piece = whole[start : start + len(PATTERN)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            time.sleep(PAUSE)
        if chunked:
            self.wfile.write(b"0\r\n\r\n")

    def do_POST(self) -> None:
        """Answer with what the body was."""
        digest = hashlib.sha256(self.rfile.read(int(self.headers["Content-Length"]))).hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(digest)))
        self.end_headers()
        self.wfile.write(digest)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """It has the port again as soon as its predecessor is gone."""

    daemon_threads = True
    request_queue_size = 128

    def server_bind(self) -> None:
        """As the parent's, without asking who we are by name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = "backend", self.socket.getsockname()[1]


if __name__ == "__main__":
    threading.stack_size(256 * 1024)
    with Server(("127.0.0.1", int(sys.argv[1])), Handler) as server:
        server.serve_forever()
