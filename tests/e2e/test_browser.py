"""What Chromium makes of sites: pages of many parts, events, WebSockets, and connections that serve several names."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import attrs
import pytest
import trio
import trustme
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from tests.conftest import needs
from tests.e2e.browser import PROGRAM, Page, browsing
from tests.e2e.sites import Sites, routed, sites_beside
from tests.proxy.stage import LOOPBACK, Recording, backend, read_until

pytestmark = [
    needs("setpriv"),
    pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"not installed: {PROGRAM} (make browser installs it)"),
]

PARTS = 300
"""Scripts of the page: more than may be asked for at once."""

ONE = "one.test"
FIRST, SECOND = "first.home.test", "second.home.test"  # of one domain, or Chromium would not share


@attrs.define
class Web:
    """A backend that is a web site; what it was asked."""

    name: str
    asked: list[tuple[str, dict[str, str]]] = attrs.field(factory=list)
    more: trio.Event = attrs.field(factory=trio.Event)
    held: int = 0

    async def serve(self, stream: trio.SocketStream, recording: Recording) -> None:
        while head := await read_until(stream, Recording(), b"\r\n\r\n"):
            line, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
            fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            path = urlsplit(line.split(" ")[1]).path
            self.asked.append((path, fields))
            size = int(fields.get("content-length", 0))
            got = len(head.partition(b"\r\n\r\n")[2])
            while got < size:
                got += len(await stream.receive_some(size - got))
            if path == "/events":
                await self._events(stream)
                return
            if path.startswith("/hold/"):
                self.held += 1
                assert await stream.receive_some() == b""
                self.held -= 1
                return
            body, kind = self._page(path, size)
            await stream.send_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nAccess-Control-Allow-Origin: *\r\nCache-Control: no-store\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (kind, len(body), body)
            )

    def _page(self, path: str, size: int) -> tuple[bytes, bytes]:
        if path == "/":
            scripts = "".join(f'<script src="/part/{number}.js"></script>' for number in range(PARTS))
            return f"<!doctype html><title>{self.name}</title>{scripts}".encode(), b"text/html"
        if path.startswith("/part/"):
            number = path.removeprefix("/part/").removesuffix(".js")
            padding = "/" * 5000
            return f"window.got = [...(window.got || []), {number}]; //{padding}".encode(), b"text/javascript"
        if path == "/upload":
            return b"%d" % size, b"text/plain"
        return self.name.encode(), b"text/plain"

    async def _events(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: first\n\n")
        await self.more.wait()
        await stream.send_all(b"data: second\n\n")
        await stream.receive_some()


@asynccontextmanager
async def web(name: str) -> AsyncIterator[tuple[Web, int]]:
    made = Web(name)
    async with backend(made.serve) as (port, _):
        yield made, port


@asynccontextmanager
async def one_site(folder: Path, path: str = "/who") -> AsyncIterator[tuple[Web, Sites, Page]]:
    """A site by the internal authority, and a browser that has one of its pages open."""
    async with (
        web("one") as (there, port),
        sites_beside(folder / "proxy", routed(one=f'"http://{LOOPBACK}:{port}"')) as sites,
        browsing(folder / "browser", sites.signer.read_bytes()) as page,
    ):
        await page.visit(sites.url(ONE, path))
        yield there, sites, page


async def test_a_page_of_many_parts_comes_whole_and_in_order_over_one_connection(tmp_path: Path) -> None:
    async with one_site(tmp_path, "/") as (there, _, page):
        assert await page.run("window.got") == list(range(PARTS))
        assert await page.run("document.title") == "one"
        answers = [event["response"] for event in page.heard("Network.responseReceived")]
        ours = [answer for answer in answers if "/part/" in answer["url"]]
        assert Counter(answer["protocol"] for answer in ours) == {"h2": PARTS}
        assert len({answer["connectionId"] for answer in ours}) == 1
        assert all(fields["via"].startswith("2.0 ") for path, fields in there.asked if "/part/" in path)
        assert await page.run("fetch('/upload', {method: 'POST', body: 'x'.repeat(3e6)}).then((a) => a.text())") == (
            "3000000"
        )


async def test_events_arrive_while_the_response_is_still_open(tmp_path: Path) -> None:
    async with one_site(tmp_path) as (there, _, page):
        await page.run("window.heard = []; new EventSource('/events').onmessage = (e) => heard.push(e.data); 1")
        await page.wait_for("heard.length == 1")
        there.more.set()
        await page.wait_for("heard.length == 2")
        assert await page.run("heard") == ["first", "second"]
        answers = [event["response"] for event in page.heard("Network.responseReceived")]
        assert {answer["protocol"] for answer in answers} == {"h2"}


@pytest.mark.parametrize("times", [1, 4])
async def test_requests_that_are_given_up_cost_their_connection_nothing(tmp_path: Path, times: int) -> None:
    """A page that is left while it loads; a map that is zoomed, whose tiles are not wanted any more."""
    async with one_site(tmp_path) as (there, _, page):
        for _ in range(times):
            await page.run(
                "window.stopping = new AbortController();"
                "for (let n = 0; n < 100; n++) fetch('/hold/' + n, {signal: stopping.signal}).catch(() => 0); 1"
            )
            await settled(lambda: there.held == 100)
            await page.run("stopping.abort(); 1")
            assert await page.run("fetch('/who').then((answer) => answer.text())") == "one"
            await settled(lambda: there.held == 0)
        answers = [event["response"] for event in page.heard("Network.responseReceived")]
        assert len({answer["connectionId"] for answer in answers}) == 1


async def settled(condition: Callable[[], bool]) -> None:
    """Wait for what the browser does in its own time."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - it tells nobody
            await trio.sleep(0.01)


async def test_a_websocket_is_a_stream_of_the_pages_connection(tmp_path: Path) -> None:
    """Chromium uses RFC 8441 where it is announced; the backend is trio-websocket and knows HTTP/1.1 alone."""
    handshakes: list[dict[bytes, bytes]] = []

    async def echo(request: WebSocketRequest) -> None:
        handshakes.append(dict(request.headers))
        async with await request.accept(subprotocol="chat") as connection:
            try:
                while True:
                    await connection.send_message(await connection.get_message())
            except ConnectionClosed as closed:
                reasons.append(closed.reason)

    reasons: list[object] = []
    async with trio.open_nursery() as nursery, web("one") as (_, port):
        serve = functools.partial(serve_websocket, max_message_size=8_000_000)
        server = await nursery.start(serve, echo, LOOPBACK, 0, None)
        routes = f'[sites."{ONE}"]\n"/" = "http://{LOOPBACK}:{port}"\n"/ws" = "http://{LOOPBACK}:{server.port}"\n'
        async with (
            sites_beside(tmp_path / "proxy", f'{routes}tls = "internal"\n') as sites,
            browsing(tmp_path / "browser", sites.signer.read_bytes()) as page,
        ):
            await page.visit(sites.url(ONE, "/who"))
            await page.run(
                "window.heard = []; window.ws = new WebSocket(location.origin.replace('http', 'ws') + '/ws', ['chat']);"
                "ws.binaryType = 'arraybuffer';"
                "ws.onmessage = (e) => heard.push(e.data.byteLength || e.data);"
                "ws.onclose = (e) => { window.over = [e.code, e.wasClean] };"
                "new Promise((done) => { ws.onopen = () => done(ws.protocol) })"
            )
            assert await page.run("ws.protocol") == "chat"
            await page.run("ws.send('hello'); ws.send(new Uint8Array(5000000)); ws.send('last'); 1")
            await page.wait_for("heard.length == 3")
            assert await page.run("heard") == ["hello", 5000000, "last"]
            await page.run("ws.close(4001, 'enough'); 1")
            assert await page.wait_for("window.over") == [4001, True]
        nursery.cancel_scope.cancel()
    (handshake,) = handshakes
    assert handshake[b"via"].startswith(b"2.0 ")
    assert handshake[b"origin"] == sites.url(ONE, "").encode()


async def test_a_connection_that_a_browser_would_share_reaches_no_other_site(tmp_path: Path) -> None:
    """One certificate for two sites at one address: Chromium asks for both names on one connection, and hears 421."""
    authority = trustme.CA()
    leaf = authority.issue_cert(FIRST, SECOND)
    pair = tmp_path / "pair.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(pair)
    pair.chmod(0o600)
    async with web("one") as (one, first), web("two") as (two, second):
        files = f'tls = {{ certificate = "{pair}", key = "{pair}" }}\n'
        tables = (
            f'[sites."{FIRST}"]\n"/" = "http://{LOOPBACK}:{first}"\n{files}'
            f'[sites."{SECOND}"]\n"/" = "http://{LOOPBACK}:{second}"\n{files}'
        )
        async with (
            sites_beside(tmp_path / "proxy", tables) as sites,
            browsing(tmp_path / "browser", leaf.cert_chain_pems[0].bytes()) as page,
        ):
            await page.visit(sites.url(FIRST, "/"))
            for number in range(1000, 1003):
                # With the page's own rights, without which Chromium would not think of sharing.
                source = sites.url(SECOND, f"/part/{number}.js")
                await page.run(
                    "new Promise((done, failed) => document.head.append(Object.assign("
                    f"document.createElement('script'), {{src: '{source}', onload: () => done(1), onerror: failed}})))"
                )
            assert await page.run("got.slice(-3)") == [1000, 1001, 1002]
            assert await page.run("fetch('/who').then((answer) => answer.text())") == "one"
            said = sites.software.said()
    assert [path for path, _ in two.asked] == ["/part/1000.js", "/part/1001.js", "/part/1002.js"]
    assert all(fields["host"].startswith(SECOND) for _, fields in two.asked)
    assert all(fields["host"].startswith(FIRST) for _, fields in one.asked)
    assert f"{SECOND}:{sites.port}/part/1000.js: this connection is not for {SECOND}" in said
