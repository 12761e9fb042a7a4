"""The scene's HTTP service: a program of the standard library alone, so that nothing of trioproxy judges itself.

    python backend.py ADDRESS PORT

It says `ready` once it listens, and one JSON line for every request it got. Any path answers with that same JSON:
method, path, header fields in order, the peer's address, length and SHA-256 of the body. Some paths do more:

    /big?bytes=N       a body of N bytes, of which byte i is i modulo 251
    /stream/NAME       a chunked body that begins and then waits, until somebody asks for
    /finish/NAME       which lets it end
    /hold/NAME         a body that begins and never ends; says `left /hold/NAME` when the client has gone
    /bye               the JSON, and the end of the connection
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

PATTERN = bytes(range(251))


class Streams:
    """The streams that wait, and those that may end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, threading.Event] = {}

    def named(self, name: str) -> threading.Event:
        """What is set when the stream `name` may end."""
        with self._lock:
            return self._events.setdefault(name, threading.Event())


STREAMS = Streams()


class Handler(BaseHTTPRequestHandler):
    """One connection; keep-alive, as HTTP/1.1 has it."""

    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        """Answer whatever was asked."""
        url = urlsplit(self.path)
        body = self._body()
        seen = {
            "method": self.command,
            "path": self.path,
            "fields": self.headers.items(),
            "peer": self.client_address[0],
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
        }
        print(json.dumps(seen), flush=True)
        if url.path == "/big":
            self._send_big(int(parse_qs(url.query)["bytes"][0]))
        elif url.path.startswith("/stream/"):
            self._send_stream(STREAMS.named(url.path.removeprefix("/stream/")))
        elif url.path.startswith("/hold/"):
            self._hold()
            print(f"left {url.path}", flush=True)
        else:
            self.close_connection |= url.path == "/bye"
            if url.path.startswith("/finish/"):
                STREAMS.named(url.path.removeprefix("/finish/")).set()
            self._send(json.dumps(seen).encode())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815 - what http.server looks for

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_big(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()
        block = PATTERN * 261
        for start in range(0, size, len(block)):
            self.wfile.write(block[: size - start])

    def _send_stream(self, may_end: threading.Event) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"6\r\nbegin\n\r\n")
        self.wfile.flush()
        may_end.wait()
        self.wfile.write(b"4\r\nend\n\r\n0\r\n\r\n")

    def _hold(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"6\r\nbegin\n\r\n")
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self.connection.recv(1)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing more than the JSON line."""


class Server(ThreadingHTTPServer):
    """Threads that wait for ever shall not keep the program from ending."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    """Serve until killed."""
    with Server((sys.argv[1], int(sys.argv[2])), Handler) as server:
        print("ready", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
