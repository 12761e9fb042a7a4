"""The request vectors of gunicorn's and llhttp's own tests, sent byte for byte to a site.

Behind it is a backend that records what it gets and reads it with h11, which is neither theirs nor ours. What must be
refused never reaches it as a whole request; what is valid reaches it as the request that the suite's authors read.
Where we judge otherwise than they do, a table says so and why; whoever changes our strictness finds it here.
"""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import AsyncIterator

import attrs
import h11
import pytest
import trio

from tests.http.foreign import Message, Vector, gunicorn, llhttp
from tests.proxy.foreign_policy import GUNICORN_DIFFERS, LLHTTP_DIFFERS, Ours
from tests.proxy.stage import Recording, Stage, backend, make_config, site, stage
from tests.suites import GUNICORN, LLHTTP

NAME = "vectors.test"


@attrs.define
class Asked:
    """What h11 made of the bytes that the backend got."""

    whole: list[Message] = attrs.field(factory=list)

    async def __call__(self, stream: trio.SocketStream, recording: Recording) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=64 * 1024)
        message = Message()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = bytes(await stream.receive_some())
                if not data:
                    return
                recording.received += data
                connection.receive_data(data)
            elif isinstance(event, h11.Request):
                message = Message((event.method.decode(), event.target.decode("latin-1")), b"")
            elif isinstance(event, h11.Data):
                assert message.body is not None
                message.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.whole.append(message)
                answer = h11.Response(status_code=200, headers=[("Content-Length", "0")])
                data = connection.send(answer) or b""
                await stream.send_all(data + (connection.send(h11.EndOfMessage()) or b""))
                if connection.our_state is not h11.DONE:
                    return
                connection.start_next_cycle()


@attrs.frozen
class Scene:
    """A proxy and the backend that it leads to."""

    proxy: Stage
    recording: Recording
    asked: Asked

    async def tell(self, data: bytes, answers: int) -> list[int]:
        """Send `data`; end when so many final answers have come. Returns the statuses of all answers."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        stream = trio.SSLStream(await self.proxy.raw(), context, https_compatible=True)
        said = b""
        with trio.fail_after(5):
            await stream.do_handshake()
            await stream.send_all(data)
            while len(_statuses(said)) < answers and (more := await stream.receive_some()):
                said += bytes(more)
            await stream.transport_stream.send_eof()
            # An end without TLS's own makes OpenSSL at the other side say an alert, which is an error here.
            with contextlib.suppress(trio.BrokenResourceError):
                while more := await stream.receive_some():
                    said += bytes(more)
        await self.proxy.until_idle()
        return _statuses(said)


def _statuses(said: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"^HTTP/1\.1 ([2-9]\d\d) ", said, re.MULTILINE)]


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """A site that clients without a server name are led to, so that it answers to any Host."""
    asked = Asked()
    async with (
        backend(asked) as (port, recording),
        stage(make_config(site(NAME, port), no_sni=NAME)) as proxy,
    ):
        yield Scene(proxy, recording, asked)


_REQUEST_LINE = re.compile(rb"^([!-~]+ (?:https?://([^/?\s]*))?[^\r\n]* HTTP/1\.[01]\r\n)", re.MULTILINE)


def hosted(vector: Vector) -> bytes:
    """The bytes, with a Host where there is none: parsers do not ask for it, a server must (RFC 9112 section 3.2)."""
    if re.search(rb"^host:", vector.data, re.IGNORECASE | re.MULTILINE):
        return vector.data
    heads = len(vector.messages) + (vector.ends != "whole")
    return _REQUEST_LINE.sub(
        lambda found: found[1] + b"Host: " + (found[2] or b"a.example") + b"\r\n", vector.data, count=heads
    )


def origin_form(target: str) -> str:
    """How a target in absolute form is passed on."""
    path = re.sub(r"^https?://[^/?]*", "", target)
    return path if path.startswith("/") or path == "*" else "/" + path


def expected(vector: Vector, differs: dict[str, Ours]) -> Ours:
    """What becomes of a vector: the suite's verdict, unless we differ. We have no lenient mode."""
    if vector.name in differs:
        return differs[vector.name]
    if vector.lenient:
        return Ours(0, 400, "what is lenient there is refused here")
    return Ours(len(vector.messages), 400 if vector.ends == "error" else 0, "as they have it")


async def judged(scene: Scene, vector: Vector, ours: Ours) -> None:
    statuses = await scene.tell(hosted(vector), ours.requests + bool(ours.status))
    assert statuses == [200] * ours.requests + [ours.status] * bool(ours.status)
    seen = scene.asked.whole
    assert len(seen) == ours.requests
    for got, meant in zip(seen, vector.messages if ours.reads is None else ours.reads, strict=False):
        assert got.start == (meant.start[0], origin_form(meant.start[1]))
        assert meant.body is None or got.body == meant.body
    if ours.status and not ours.requests and not ours.begun:
        assert not scene.recording.connections  # not one byte


@pytest.mark.skipif(bool(GUNICORN.missing), reason=GUNICORN.missing)
@pytest.mark.parametrize("vector", gunicorn(), ids=lambda vector: vector.name)
async def test_gunicorn(scene: Scene, vector: Vector) -> None:
    await judged(scene, vector, expected(vector, GUNICORN_DIFFERS))


@pytest.mark.skipif(bool(LLHTTP.missing), reason=LLHTTP.missing)
@pytest.mark.parametrize("vector", llhttp("request"), ids=lambda vector: vector.name)
async def test_llhttp(scene: Scene, vector: Vector) -> None:
    await judged(scene, vector, expected(vector, LLHTTP_DIFFERS))


@pytest.mark.skipif(bool(GUNICORN.missing or LLHTTP.missing), reason=GUNICORN.missing or LLHTTP.missing)
def test_the_tables_name_vectors_that_there_are() -> None:
    assert not GUNICORN_DIFFERS.keys() - {vector.name for vector in gunicorn()}
    assert not LLHTTP_DIFFERS.keys() - {vector.name for vector in llhttp("request")}


async def test_a_request_without_host_is_refused(scene: Scene) -> None:
    """What `hosted` takes out of the vectors' way."""
    assert await scene.tell(b"GET / HTTP/1.1\r\n\r\n", 1) == [400]
    assert not scene.recording.connections
