"""The HTTP client against a server that says what a test tells it to, over real sockets."""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trustme

import trioproxy
from tests.net.sockets import open_descriptors
from trioproxy.errors import ConnectionLost, UpstreamProtocolError, UpstreamUnreachable
from trioproxy.net import http_client
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@attrs.define
class Server:
    """Answers the n-th request of all with the n-th script, and keeps what it was asked.

    A script is what to send; after an empty one, one that ends with `LAST`, and at the end of all, the connection is
    closed. To `SILENCE` it says nothing.
    """

    scripts: list[bytes]
    port: int = 0
    requests: list[bytes] = attrs.Factory(list)
    connections: int = 0
    waiting: trio.Event = attrs.Factory(trio.Event)
    closed: trio.Event = attrs.Factory(trio.Event)
    closed_by_client: trio.Event = attrs.Factory(trio.Event)

    async def handle(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        async with stream:
            while (request := await self._read_request(stream)) is not None:
                self.requests.append(request)
                script = self.scripts.pop(0)
                if not script:
                    return
                if script == SILENCE:
                    self.waiting.set()
                    continue
                await stream.send_all(script.removesuffix(LAST))
                if not self.scripts or script.endswith(LAST):
                    await stream.aclose()
                    self.closed.set()
                    return
            self.closed_by_client.set()

    async def _read_request(self, stream: trio.abc.Stream) -> bytes | None:
        data = b""
        while not (end := re.search(rb"\r\n\r\n", data)) or len(data) < end.end() + _content_length(data):
            try:
                more = await stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not more:
                return None
            data += more
        return data


SILENCE = b"..."
LAST = b"<the server closes here>"


def _content_length(data: bytes) -> int:
    found = re.search(rb"content-length: (\d+)", data)
    return int(found[1]) if found else 0


@asynccontextmanager
async def serving(*scripts: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server(list(scripts))

    async def handle(stream: trio.abc.Stream) -> None:
        if tls is None:
            await server.handle(stream)
            return
        try:
            await server.handle(trio.SSLStream(stream, tls, server_side=True, https_compatible=True))  # type: ignore[arg-type, unused-ignore]
        except trio.BrokenResourceError:
            return

    async with trio.open_nursery() as nursery:
        listeners: Sequence[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, handle, 0, host="127.0.0.1")
        )
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


@pytest.fixture
async def http() -> AsyncIterator[HttpClient]:  # noqa: ASYNC124 - a fixture of pytest-trio, which is always async
    with HttpClient(None, Reaper()) as client:
        yield client


async def test_a_post_is_written_with_its_host_length_and_our_name(http: HttpClient) -> None:
    async with serving(OK) as server:
        response = await http.request(
            b"POST", f"http://127.0.0.1:{server.port}/a/b?c=d#e", [(b"content-type", b"application/jose+json")], b"{}"
        )
    assert response.status == 200
    assert response.body == b"ok"
    assert server.requests == [
        b"POST /a/b?c=d HTTP/1.1\r\n"
        b"host: 127.0.0.1:%d\r\n"
        b"user-agent: trioproxy/%b\r\n"
        b"content-length: 2\r\n"
        b"content-type: application/jose+json\r\n\r\n{}" % (server.port, trioproxy.__version__.encode())
    ]


async def test_a_post_without_a_body_says_so_and_a_get_says_nothing(http: HttpClient) -> None:
    async with serving(OK, OK) as server:
        await http.request(b"POST", f"http://127.0.0.1:{server.port}", [])
        await http.request(b"GET", f"http://127.0.0.1:{server.port}?q", [])
    assert server.requests[0].startswith(b"POST / HTTP/1.1\r\n")
    assert b"content-length: 0" in server.requests[0]
    assert server.requests[1].startswith(b"GET /?q HTTP/1.1\r\n")
    assert b"content-length" not in server.requests[1]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://ca.test/dir", b"ca.test"),
        ("https://CA.test:443/dir", b"ca.test"),
        ("https://ca.test:8443/dir", b"ca.test:8443"),
        ("http://ca.test:80", b"ca.test"),
        ("http://ca.test:443", b"ca.test:443"),
        ("http://[::1]/", b"[::1]"),
        ("http://[::1]:8080/", b"[::1]:8080"),
    ],
)
def test_the_host_field_names_the_port_only_where_it_is_not_the_schemes_own(url: str, host: bytes) -> None:
    assert http_client._split(url)[0].authority == host


@pytest.mark.parametrize(
    "url",
    [
        "ftp://ca.test/",
        "ca.test/dir",
        "http://",
        "http://user@ca.test/",
        "http://ca.test:99999/",
        "http://ca.test/a b",
        "http://ca.test/a\r\nx: y",
        "http://ca.test/\N{SNOWMAN}",
        "http://ca_test/",
    ],
)
async def test_what_is_no_url_is_not_asked(http: HttpClient, url: str) -> None:
    with pytest.raises(UpstreamUnreachable, match="cannot be asked"):
        await http.request(b"GET", url, [])


async def test_a_redirect_is_an_answer(http: HttpClient) -> None:
    async with serving(
        b"HTTP/1.1 302 Found\r\nLocation: http://elsewhere.test/\r\nContent-Length: 0\r\n\r\n"
    ) as server:
        response = await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
    assert response.status == 302
    assert response.field(b"location") == "http://elsewhere.test/"
    assert response.field(b"retry-after") is None


async def test_interim_responses_are_passed_over(http: HttpClient) -> None:
    async with serving(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK) as server:
        assert (await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])).status == 200


async def test_the_answer_to_head_has_no_body(http: HttpClient) -> None:
    async with serving(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", OK) as server:
        assert (await http.request(b"HEAD", f"http://127.0.0.1:{server.port}/", [])).body == b""
        assert (await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])).body == b"ok"
    assert server.connections == 1


async def test_a_chunked_body_and_one_that_ends_with_the_connection(http: HttpClient) -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    async with serving(chunked, b"HTTP/1.1 200 OK\r\n\r\nthe rest") as server:
        assert (await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])).body == b"abc"
        assert (await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])).body == b"the rest"


async def test_requests_share_a_connection(http: HttpClient) -> None:
    async with serving(OK, OK, OK) as server:
        for _ in range(3):
            await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
    assert server.connections == 1


@pytest.mark.parametrize(
    "first",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",  # the server says that it is the last
        OK + b"HTTP/1.1 200 OK\r\n",  # it says more than it was asked
    ],
)
async def test_a_connection_that_may_not_be_used_again_is_not(http: HttpClient, first: bytes) -> None:
    async with serving(first, OK, OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        assert (await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])).body == b"ok"
    assert server.connections == 2


async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    http: HttpClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(OK, OK, OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        monkeypatch.setattr(http_client, "MAX_IDLE", 0.0)
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
    assert server.connections == 2


async def test_a_connection_that_the_server_has_closed_is_not_used_again(http: HttpClient) -> None:
    async with serving(OK + LAST, OK, OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        with trio.fail_after(5):
            await server.closed.wait()
        assert (await http.request(b"POST", f"http://127.0.0.1:{server.port}/", [])).body == b"ok"
    assert server.connections == 2


async def test_no_more_connections_are_kept_than_that(http: HttpClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_KEPT", 0)
    async with serving(OK, OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        with trio.fail_after(5):
            await server.closed_by_client.wait()


async def test_closing_closes_what_is_kept(http: HttpClient) -> None:
    async with serving(OK, OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        http.close()
        with trio.fail_after(5):
            await server.closed_by_client.wait()
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        assert server.connections == 2


async def test_a_request_is_never_sent_twice(http: HttpClient) -> None:
    async with serving(OK, b"", OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        with pytest.raises((ConnectionLost, UpstreamProtocolError)):
            await http.request(b"POST", f"http://127.0.0.1:{server.port}/", [], b"{}")
        assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", UpstreamProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", UpstreamProtocolError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2 << 20) + b"x" * (2 << 20), UpstreamProtocolError),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (2 << 20), UpstreamProtocolError),
    ],
    ids=["no HTTP", "cut off", "too long by its length", "too long without one"],
)
async def test_an_answer_that_is_none_is_an_error_and_leaves_no_connection(
    http: HttpClient, answer: bytes, error: type[Exception]
) -> None:
    before = open_descriptors()
    async with serving(answer) as server:
        with pytest.raises(error):
            await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
    assert open_descriptors() == before


async def test_nobody_there_is_unreachable(http: HttpClient, unused: Callable[[], int]) -> None:
    with pytest.raises(UpstreamUnreachable):
        await http.request(b"GET", f"http://127.0.0.1:{unused()}/", [])


@pytest.fixture
def unused() -> Callable[[], int]:
    def port() -> int:
        import socket

        with socket.create_server(("127.0.0.1", 0)) as probe:
            return int(probe.getsockname()[1])

    return port


async def test_cancelling_leaves_at_once_and_closes_the_connection(http: HttpClient) -> None:
    async with serving(SILENCE, OK) as server:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(http.request, b"GET", f"http://127.0.0.1:{server.port}/", [])
                await server.waiting.wait()
                nursery.cancel_scope.cancel()
            await server.closed_by_client.wait()


async def test_who_is_cancelled_already_asks_nothing(http: HttpClient) -> None:
    async with serving(OK, OK) as server:
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/", [])
        with trio.CancelScope() as scope:
            scope.cancel()
            await http.request(b"POST", f"http://127.0.0.1:{server.port}/", [])
        await http.request(b"GET", f"http://127.0.0.1:{server.port}/last", [])
    assert [request.split()[0] for request in server.requests] == [b"GET", b"GET"]


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def tls_for(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


async def test_https_trusts_the_extra_certificates(authority: trustme.CA, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    async with serving(OK, OK, tls=tls_for(authority, "127.0.0.1")) as server:
        http = HttpClient(ca_file, Reaper())
        assert (await http.request(b"GET", f"https://127.0.0.1:{server.port}/", [])).body == b"ok"
        assert (await http.request(b"GET", f"https://127.0.0.1:{server.port}/", [])).body == b"ok"
        http.close()
        assert server.connections == 1


@pytest.mark.parametrize(("names", "trusted"), [(["127.0.0.1"], False), (["elsewhere.test"], True)])
async def test_https_refuses_a_stranger_before_a_byte_is_said(
    authority: trustme.CA, tmp_path: Path, names: list[str], trusted: bool
) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    http = HttpClient(ca_file if trusted else None, Reaper())
    async with serving(OK, tls=tls_for(authority, *names)) as server:
        with pytest.raises(UpstreamUnreachable, match="CERTIFICATE_VERIFY_FAILED"):
            await http.request(b"GET", f"https://127.0.0.1:{server.port}/", [])
    assert server.requests == []


async def test_a_body_that_tls_does_not_end_is_not_whole(authority: trustme.CA, tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    http = HttpClient(ca_file, Reaper())
    # `https_compatible` makes the server close without saying so in TLS, as an attacker who cuts the connection would.
    async with serving(b"HTTP/1.1 200 OK\r\n\r\nhalf", tls=tls_for(authority, "127.0.0.1")) as server:
        with pytest.raises(ConnectionLost):
            await http.request(b"GET", f"https://127.0.0.1:{server.port}/", [])


async def test_a_file_that_holds_no_certificates_is_named(tmp_path: Path) -> None:
    ca_file = tmp_path / "ca.pem"
    ca_file.write_text("not a certificate")
    with pytest.raises(UpstreamUnreachable, match=r"ca\.pem"):
        await HttpClient(ca_file, Reaper()).request(b"GET", "https://127.0.0.1:1/", [])
