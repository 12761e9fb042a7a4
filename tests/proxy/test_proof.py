"""tls-alpn-01 on port 443: who is shown the proof, and who is not."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import trio
from cryptography import x509

from tests.acme.support import Customer
from tests.acme.test_with_pebble import verify
from tests.pebble import running_pebble
from tests.proxy.stage import (
    Caller,
    Recording,
    answering,
    backend,
    client_hello,
    make_config,
    passthrough,
    read_until,
    site,
    stage,
)
from trioproxy.acme.certificate import proof_in_tls

NAME = "cloud.test"
PBX = "pbx.test"
IDENTIFIER = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31")  # RFC 8737 section 6.1


def leaf_of(stream: trio.SSLStream[trio.SocketStream]) -> x509.Certificate:
    shown = stream.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown)


async def test_a_ca_that_asks_is_shown_the_proof_and_nothing_else() -> None:
    async with stage(make_config(site(NAME, 1))) as proxy:
        with proxy.ctx.board.present_in_tls(NAME, proof_in_tls(NAME, "token.thumbprint")):
            trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
            trusting.set_alpn_protocols(["acme-tls/1"])
            stream = trio.SSLStream(await proxy.raw(), trusting, server_hostname=NAME, https_compatible=True)
            await stream.do_handshake()
            assert stream.selected_alpn_protocol() == "acme-tls/1"
            extension = leaf_of(stream).extensions.get_extension_for_oid(IDENTIFIER)
            assert extension.critical
            assert isinstance(extension.value, x509.UnrecognizedExtension)
            assert extension.value.value == b"\x04\x20" + hashlib.sha256(b"token.thumbprint").digest()
            assert await stream.receive_some() == b""
        await proxy.until_idle()


async def test_who_asks_for_more_than_the_proof_gets_the_site() -> None:
    async with (
        backend(answering(b"HTTP/1.1 204 No Content\r\n\r\n")) as (port, _),
        stage(make_config(site(NAME, port))) as proxy,
    ):
        with proxy.ctx.board.present_in_tls(NAME, proof_in_tls(NAME, "token.thumbprint")):
            caller = Caller(await proxy.tls(NAME))
            assert (await caller.ask("GET", "/", NAME)).status == 204


async def test_a_passthrough_name_asks_and_answers_for_itself() -> None:
    hello = client_hello(PBX, "acme-tls/1")

    async def answer(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"acme-tls/1")
        await stream.send_all(b"mine")

    async with backend(answer) as (port, seen), stage(make_config(passthrough(PBX, port))) as proxy:
        with proxy.ctx.board.present_in_tls(PBX, proof_in_tls(PBX, "token.thumbprint")):
            stream = await proxy.raw()
            await stream.send_all(hello)
            assert await read_until(stream, Recording(), b"mine") == b"mine"
            assert bytes(seen.received) == hello


async def test_pebble_takes_what_port_443_shows(tmp_path: Path) -> None:
    async with (
        stage(make_config(site(NAME, 1))) as proxy,
        running_pebble(tmp_path, http_port=1, tls_port=proxy.https) as ca,
    ):
        customer = Customer(ca.directory, ca.ca_file, proxy.ctx.board, challenges=("tls-alpn-01",))
        await verify(await customer.obtain(), NAME, ca)
