"""What comes before HTTP on a connection to a backend: what it must prove, sockets of files, PROXY headers."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trustme

from tests.proxy.h2_backend import secured, with_context
from tests.proxy.stage import (
    HELLO,
    LOOPBACK,
    Caller,
    Recording,
    Script,
    Stage,
    answering,
    authority,
    backend,
    make_config,
    networks,
    read_until,
    site,
    stage,
)
from trioproxy.config.model import Listen, Route, Target, UpstreamTLS
from trioproxy.wire.proxy_protocol import Endpoint, encode_v1, encode_v2, read_header

NAME = "cloud.test"


async def _ask(proxy: Stage, path: str = "/") -> int:
    return (await Caller(await proxy.tls(NAME)).ask("GET", path, NAME)).status


@asynccontextmanager
async def https(script: Script, *terms: UpstreamTLS, host: str = "localhost") -> AsyncIterator[tuple[Stage, Recording]]:
    """A proxy with routes `/0/`, `/1/` and so on to one backend, on these terms."""
    async with backend(script) as (port, seen):
        routes = tuple(Route(f"/{n}/", Target("https", host, port), tls=tls) for n, tls in enumerate(terms))
        async with stage(make_config(site(NAME, port, routes=routes))) as proxy:
            yield proxy, seen


def _self_signed() -> tuple[ssl.SSLContext, str]:
    """A backend's context with a certificate that nobody trusts, and its fingerprint."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = trustme.CA().issue_cert("somebody.else")
    issued.configure_cert(context)
    der = ssl.PEM_cert_to_DER_cert(issued.cert_chain_pems[0].bytes().decode())
    return context, hashlib.sha256(der).hexdigest()


def _ca_file(folder: Path) -> Path:
    path = folder / "ca.pem"
    authority().cert_pem.write_to_path(path)
    return path


# ---- TLS ---------------------------------------------------------------------------------------------


async def test_a_ca_file_takes_the_place_of_the_systems_authorities(tmp_path: Path) -> None:
    terms = UpstreamTLS(ca_file=_ca_file(tmp_path))
    async with https(secured(answering(HELLO)), terms, UpstreamTLS()) as (proxy, _):
        assert await _ask(proxy, "/0/") == 200
        assert await _ask(proxy, "/1/") == 502


async def test_a_ca_file_may_hold_the_backends_own_certificate(tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued = trustme.CA().issue_cert("localhost")
    issued.configure_cert(context)
    issued.cert_chain_pems[0].write_to_path(tmp_path / "own.pem")
    async with https(with_context(answering(HELLO), context), UpstreamTLS(ca_file=tmp_path / "own.pem")) as (proxy, _):
        assert await _ask(proxy, "/0/") == 200


async def test_a_ca_file_that_is_replaced_counts_at_the_next_connection(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(path)
    async with https(secured(answering(HELLO)), UpstreamTLS(ca_file=path)) as (proxy, _):
        assert await _ask(proxy, "/0/") == 502
        authority().cert_pem.write_to_path(path)
        assert await _ask(proxy, "/0/") == 200


@pytest.mark.parametrize("content", [None, "no certificate"])
async def test_a_ca_file_that_cannot_be_used_is_named(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    async with https(secured(answering(HELLO)), UpstreamTLS(ca_file=path)) as (proxy, seen):
        assert await _ask(proxy, "/0/") == 502
        assert seen.connections == 0
    assert f"ca_file {path} cannot be used" in caplog.text


async def test_server_name_is_what_is_asked_for_and_must_be_in_the_certificate(tmp_path: Path) -> None:
    ca_file = _ca_file(tmp_path)
    asked: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("inside.example").configure_cert(context)
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    right, wrong = (UpstreamTLS(ca_file=ca_file, server_name=name) for name in ("inside.example", "other.example"))
    async with https(with_context(answering(HELLO), context), right, wrong, host=LOOPBACK) as (proxy, _):
        assert await _ask(proxy, "/0/") == 200
        assert await _ask(proxy, "/1/") == 502
    assert asked[:2] == ["inside.example", "other.example"]


async def test_an_address_must_be_in_the_certificate_too(tmp_path: Path) -> None:
    terms = UpstreamTLS(ca_file=_ca_file(tmp_path))
    async with https(secured(answering(HELLO), name=LOOPBACK), terms, host=LOOPBACK) as (proxy, _):
        assert await _ask(proxy, "/0/") == 200
    async with https(secured(answering(HELLO), name="localhost"), terms, host=LOOPBACK) as (proxy, _):
        assert await _ask(proxy, "/0/") == 502


async def test_a_backend_need_prove_nothing_where_verify_is_false() -> None:
    context, _ = _self_signed()
    async with https(with_context(answering(HELLO), context), UpstreamTLS(verify=False)) as (proxy, _):
        assert await _ask(proxy, "/0/") == 200


async def test_a_fingerprint_trusts_one_certificate_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    context, fingerprint = _self_signed()
    wrong = UpstreamTLS(verify="0" * 64)
    async with https(with_context(answering(HELLO), context), UpstreamTLS(verify=fingerprint), wrong) as (proxy, seen):
        assert await _ask(proxy, "/1/") == 502
        assert not seen.received, "not a byte of a request"
        assert f'verify = "sha256:{fingerprint}"' in caplog.text
        assert await _ask(proxy, "/0/") == 200


async def test_a_backend_that_is_not_trusted_was_not_reached(tmp_path: Path) -> None:
    terms = UpstreamTLS(ca_file=_ca_file(tmp_path))
    async with https(secured(answering(HELLO)), UpstreamTLS(), terms) as (proxy, _):
        reached = proxy.ctx.dialler.reached
        assert await _ask(proxy, "/0/") == 502
        assert list(reached.values()) == [False], "although it took the connection"
        assert await _ask(proxy, "/1/") == 200
        assert list(reached.values()) == [True]


async def test_the_log_has_the_line_that_would_trust_a_backend_and_looks_for_it_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    context, fingerprint = _self_signed()
    async with https(with_context(answering(HELLO), context), UpstreamTLS()) as (proxy, seen):
        for _ in range(3):
            assert await _ask(proxy, "/0/") == 502
        assert seen.connections == 4, "one more than there were requests"
        assert not seen.received
    lines = [r.getMessage() for r in caplog.records if "is not trusted" in r.getMessage()]
    assert len(lines) == 3
    assert all(f'verify = "sha256:{fingerprint}"' in line and "ca_file" in line for line in lines)


async def test_routes_with_other_terms_never_share_a_connection() -> None:
    context, fingerprint = _self_signed()
    terms = UpstreamTLS(verify=False), UpstreamTLS(verify=fingerprint), UpstreamTLS(), UpstreamTLS(verify=False)
    async with https(with_context(answering(HELLO), context), *terms) as (proxy, seen):
        assert [await _ask(proxy, f"/{n}/") for n in (0, 1)] == [200, 200]
        assert seen.connections == 2
        assert await _ask(proxy, "/2/") == 502, "what another route trusts"
        before = seen.connections
        assert await _ask(proxy, "/3/") == 200
        assert seen.connections == before, "equal terms do share"


# ---- unix sockets ------------------------------------------------------------------------------------


async def test_a_unix_socket_is_a_backend_like_any_other(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    config = make_config(site(NAME, 1, routes=(Route("/", Target("unix", str(path), 0), proxy_protocol="v1"),)))
    seen = Recording()

    async def serve(stream: trio.SocketStream) -> None:
        seen.connections += 1
        await answering(HELLO)(stream, seen)

    listener = trio.socket.socket(socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with stage(config) as proxy, trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [trio.SocketListener(listener)])
        caller = Caller(await proxy.tls(NAME))
        for _ in range(2):
            assert (await caller.ask("GET", "/", NAME)).body == b"hello"
        assert seen.connections == 1
        assert seen.received.startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
        nursery.cancel_scope.cancel()


async def test_a_unix_socket_that_is_not_there_is_502(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for path in (tmp_path / "none.sock", tmp_path / ("long" * 50)):
        config = make_config(site(NAME, 1, routes=(Route("/", Target("unix", str(path), 0)),)))
        async with stage(config) as proxy:
            assert await _ask(proxy) == 502
        assert str(path) in caplog.text


# ---- PROXY headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
async def test_a_proxy_header_begins_each_connection_and_speaks_for_one_client(version: str) -> None:
    async with backend(answering(HELLO)) as (port, seen):
        route = Route("/", Target("http", LOOPBACK, port), proxy_protocol=version)  # type: ignore[arg-type]
        async with stage(make_config(site(NAME, port, routes=(route,)))) as proxy:
            one = await proxy.tls(NAME)
            for _ in range(2):
                assert (await Caller(one).ask("GET", "/", NAME)).status == 200
            assert seen.connections == 1, "the same client connection"
            another = await proxy.tls(NAME)
            assert (await Caller(another).ask("GET", "/", NAME)).status == 200
            assert seen.connections == 2
            sources = []
            for stream in (one, another):
                host, source_port = stream.transport_stream.socket.getsockname()
                encode = encode_v1 if version == "v1" else encode_v2
                header = encode(Endpoint(host, source_port), Endpoint(LOOPBACK, proxy.https))
                sources.append(seen.received.index(header))
            assert sources[0] == 0
            header_size = len(header)
            assert seen.received[sources[1] + header_size :].startswith(b"GET / HTTP/1.1\r\n")


async def test_a_proxy_header_comes_before_tls() -> None:
    context, _ = _self_signed()
    told = []

    async def behind_header(stream: trio.SocketStream, recording: Recording) -> None:
        data = bytearray()
        while (header := read_header(bytes(data)) if data else None) is None:
            data += await stream.receive_some(1)
        told.append(header)
        await with_context(answering(HELLO), context)(stream, recording)

    async with backend(behind_header) as (port, _):
        target = Target("https", "localhost", port)
        route = Route("/", target, tls=UpstreamTLS(verify=False), proxy_protocol="v2")
        async with stage(make_config(site(NAME, port, routes=(route,)))) as proxy:
            assert await _ask(proxy) == 200
            assert (told[0].source or Endpoint("", 0)).host == LOOPBACK
            assert (told[0].destination or Endpoint("", 0)).port == proxy.https


async def test_the_address_that_a_proxy_in_front_announced_is_the_one_that_goes_on() -> None:
    async with backend(answering(HELLO)) as (port, seen):
        route = Route("/", Target("http", LOOPBACK, port), proxy_protocol="v1")
        entry = site(NAME, port, routes=(route,), http="serve")
        config = make_config(entry, listen=Listen(proxy_protocol_from=networks("127.0.0.1/32")))
        async with stage(config) as proxy:
            client = await proxy.plain()
            line = encode_v1(Endpoint("203.0.113.7", 4711), Endpoint("198.51.100.1", 80))
            await client.send_all(line + b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
            await read_until(client, Recording(), b"hello")
            assert seen.received.startswith(line)
