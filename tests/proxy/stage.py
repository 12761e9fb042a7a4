"""A proxy in this process on real sockets, with scripted backends and raw clients around it."""

from __future__ import annotations

import functools
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import h11
import pytest
import trio
import trustme

from tests.net.sockets import until
from trioproxy.access import Network
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Config, HostPort, Limits, Listen, Passthrough, Route, Site, Target, Timeouts
from trioproxy.net.dial import Dialler
from trioproxy.net.listen import Peer, accept_forever, bind
from trioproxy.net.pump import Pump
from trioproxy.net.sock import Reaper
from trioproxy.proxy.context import Drain, ProxyContext
from trioproxy.proxy.front_door import serve_tls
from trioproxy.proxy.plain import serve_plain
from trioproxy.proxy.pool import Pool
from trioproxy.routing import RouteTable
from trioproxy.snapshot import Cell, Contexts, Snapshot

LOOPBACK = "127.0.0.1"

PartT = TypeVar("PartT", Site, Route)

Script = Callable[[trio.SocketStream, "Recording"], Awaitable[None]]


@functools.cache
def authority() -> trustme.CA:
    """The authority of every site's certificate here."""
    return trustme.CA()


@functools.cache
def server_context(name: str) -> ssl.SSLContext:
    """A site's TLS context, made once for all tests."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(name).configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@functools.cache
def client_context(*protocols: str) -> ssl.SSLContext:
    """Trusts `authority()`, and offers these protocols."""
    context = ssl.create_default_context()
    authority().configure_trust(context)
    context.set_alpn_protocols(protocols)
    return context


def client_hello(name: str | None, *protocols: str) -> bytes:
    """A ClientHello as OpenSSL writes it, offering these by ALPN."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if protocols:
        context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    handshake = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        handshake.do_handshake()
    return outgoing.read()


def site(name: str, port: int, **changes: Any) -> Site:
    """A site whose one route leads to a backend on this machine."""
    return attrs.evolve(Site(name, (Route("/", Target("http", LOOPBACK, port)),)), **changes)


def passthrough(name: str, port: int, **changes: Any) -> Passthrough:
    """A passthrough name whose backend is on this machine."""
    there = HostPort(LOOPBACK, port)
    return attrs.evolve(Passthrough(name, (there,), "challenges", there), **changes)


def networks(*texts: str) -> tuple[Network, ...]:
    """IP networks, or single addresses."""
    return tuple(ipaddress.ip_network(text) for text in texts)


def make_config(
    *entries: Site | Passthrough,
    timeouts: Timeouts | None = None,
    no_sni: str = "",
    listen: Listen | None = None,
    limits: Limits | None = None,
) -> Config:
    """A configuration of these entries; as from a file, what has no timeouts of its own has the general ones."""
    general = timeouts or Timeouts()
    entries = tuple(
        attrs.evolve(_with_timeouts(e, general), routes=tuple(_with_timeouts(route, general) for route in e.routes))
        if isinstance(e, Site)
        else e
        for e in entries
    )
    return Config(
        path=Path("config.toml"),
        listen=listen or Listen(no_sni=no_sni),
        acme=Acme(),
        passthrough={e.name: e for e in entries if isinstance(e, Passthrough)},
        sites={e.name: e for e in entries if isinstance(e, Site)},
        timeouts=general,
        limits=limits or Limits(),
        storage=Path("/nonexistent"),
        control_socket=Path("/nonexistent/control.sock"),
    )


def _with_timeouts(part: PartT, general: Timeouts) -> PartT:
    return attrs.evolve(part, timeouts=general) if part.timeouts == Timeouts() else part


@attrs.define
class Recording:
    """What a scripted backend has seen."""

    connections: int = 0
    received: bytearray = attrs.field(factory=bytearray)
    ended: int = 0


@asynccontextmanager
async def backend(script: Script) -> AsyncIterator[tuple[int, Recording]]:
    """A TCP server that runs `script` for each connection; gives its port and what it records."""
    recording = Recording()

    async def serve(stream: trio.SocketStream) -> None:
        recording.connections += 1
        try:
            await script(stream, recording)
        except trio.BrokenResourceError:
            pass  # the proxy closed first, which some tests are about
        finally:
            recording.ended += 1

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host=LOOPBACK))
        yield listeners[0].socket.getsockname()[1], recording
        nursery.cancel_scope.cancel()


async def read_until(stream: trio.abc.ReceiveStream, recording: Recording, mark: bytes) -> bytes:
    """Read, recording, until `mark` has come or the stream has ended; returns this call's bytes."""
    data = bytearray()
    while mark not in data and (more := await stream.receive_some()):
        data += more
        recording.received += more
    return bytes(data)


async def rest(stream: trio.SocketStream) -> bytes:
    """What still comes until the end, or until the reset that unread bytes bring about."""
    recording = Recording()
    try:
        with trio.fail_after(5):
            await read_until(stream, recording, b"never")
    except trio.BrokenResourceError:
        pass
    return bytes(recording.received)


async def record_all(stream: trio.SocketStream, recording: Recording) -> None:
    """A passthrough backend that only listens, and ends when the client has."""
    await read_until(stream, recording, b"never")


def answering(response: bytes) -> Script:
    """A backend that answers each bodiless request on a connection with `response`."""

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        while await read_until(stream, recording, b"\r\n\r\n"):
            await stream.send_all(response)

    return script


HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@attrs.frozen
class Stage:
    """The running proxy.

    Attributes:
        ctx: Its context.
        https: The port of the https listener.
        http: The port of the http listener.
        connections: The nursery of its connections.
    """

    ctx: ProxyContext
    https: int
    http: int
    connections: trio.Nursery
    _clients: list[trio.SocketStream] = attrs.field(factory=list)

    async def _connect(self, port: int, source: str) -> trio.SocketStream:
        stream = await trio.open_tcp_stream(LOOPBACK, port, local_address=source)
        self._clients.append(stream)  # closed with the stage
        return stream

    async def plain(self, source: str = LOOPBACK) -> trio.SocketStream:
        """A connection to port 80, from another loopback address if need be."""
        return await self._connect(self.http, source)

    async def raw(self, source: str = LOOPBACK) -> trio.SocketStream:
        """A connection to port 443 on which nothing was said yet."""
        return await self._connect(self.https, source)

    async def tls(
        self, name: str, source: str = LOOPBACK, first: bytes = b"", protocol: str = "http/1.1"
    ) -> trio.SSLStream[trio.SocketStream]:
        """A connection to the site `name`: after `first` was sent, and a handshake that offers `protocol`."""
        transport = await self.raw(source)
        if first:
            await transport.send_all(first)
        stream = trio.SSLStream(transport, client_context(protocol), server_hostname=name, https_compatible=True)
        await stream.do_handshake()
        return stream

    async def until_idle(self) -> None:
        """Wait until every connection to the proxy has ended."""
        await until(lambda: not self.connections.child_tasks)


@asynccontextmanager
async def stage(config: Config, *, awaiting: frozenset[str] = frozenset()) -> AsyncIterator[Stage]:
    """Run the proxy with `config` on free ports of this machine."""
    reaper = Reaper()
    snapshot = Snapshot(config, RouteTable.of(config), Contexts(lambda s: server_context(s.name)), awaiting)
    dialler = Dialler(reaper)
    ctx = ProxyContext(
        cell=Cell(snapshot),
        board=ChallengeBoard(),
        reaper=reaper,
        pump=Pump(reaper),
        dialler=dialler,
        pool=Pool(dialler, reaper),
        drain=Drain(),
        pseudonym=b"test-proxy",
    )
    (https,) = bind([HostPort(LOOPBACK, 0)], optional=False)
    (http,) = bind([HostPort(LOOPBACK, 0)], optional=False)
    async with trio.open_nursery() as services:
        for service in (reaper.run, ctx.pump.run, ctx.watch.run, ctx.pool.run, ctx.lan.run, ctx.admission.run):
            services.start_soon(service)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                for listener, serve in ((https, serve_tls), (http, serve_plain)):
                    handle = functools.partial(_hand_over, connections, serve, ctx)
                    accepting.start_soon(accept_forever, listener, handle, ctx.admission.shedder, ctx.numbers)
                proxy = Stage(ctx, https.getsockname()[1], http.getsockname()[1], connections)
                try:
                    yield proxy
                finally:
                    for client in proxy._clients:
                        client.socket.close()
                accepting.cancel_scope.cancel()
            connections.cancel_scope.cancel()
        services.cancel_scope.cancel()
    https.close()
    http.close()


def _hand_over(connections: trio.Nursery, serve: object, ctx: ProxyContext, sock: object, peer: Peer) -> None:
    connections.start_soon(serve, ctx, sock, peer)  # type: ignore[arg-type]  # serve_tls or serve_plain


@attrs.frozen
class Response:
    """A response as h11, an implementation that is not ours, understood it."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    informational: tuple[int, ...] = ()
    trailers: Mapping[str, str] = attrs.field(factory=dict)


class Caller:
    """A client that speaks HTTP/1.1 by h11 over any Trio stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.CLIENT)

    async def ask(
        self, method: str, target: str, host: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Response:
        """Send a request and read its response."""
        fields = {"Host": host, **({"Content-Length": str(len(body))} if body else {}), **(headers or {})}
        await self.send(h11.Request(method=method, target=target, headers=list(fields.items())))
        if body:
            await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())
        return await self.response()

    async def send(self, event: h11.Event) -> None:
        """Send one of h11's events."""
        data = self._h11.send(event)
        if data:
            await self.stream.send_all(data)

    async def response(self) -> Response:
        """Read a response to its end, and make ready for the next."""
        status, headers, body, informational = 0, {}, b"", []
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(bytes(await self.stream.receive_some(65536)))
            elif isinstance(event, h11.InformationalResponse):
                informational.append(event.status_code)
                if event.status_code == 101:
                    return Response(101, _mapping(event.headers), b"")
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, _mapping(event.headers)
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                break
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return Response(status, headers, body, tuple(informational), _mapping(event.headers))


def _mapping(headers: object) -> dict[str, str]:
    return {bytes(name).decode(): bytes(value).decode() for name, value in headers}  # type: ignore[attr-defined]  # h11 is untyped here
