"""A site in front of a backend that records bytes and requests, and a client that says whatever bytes it is given."""

from __future__ import annotations

import contextlib
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import attrs
import h11
import trio

from tests.http.foreign import Message
from tests.proxy.stage import Recording, Stage, backend, make_config, site, stage

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


@asynccontextmanager
async def recorded() -> AsyncIterator[Scene]:
    """A site that clients without a server name are led to, so that it answers to any Host."""
    asked = Asked()
    async with (
        backend(asked) as (port, recording),
        stage(make_config(site(NAME, port), no_sni=NAME)) as proxy,
    ):
        yield Scene(proxy, recording, asked)
