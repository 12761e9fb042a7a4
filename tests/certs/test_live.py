"""The manager on real parts: a real CA, real sockets, real threads."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.lowlevel
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder
from cryptography.x509.verification import Store as TrustStore

from tests.acme.support import PATIENCE, Port80, port80
from tests.certs.making import acme_site, config
from tests.certs.test_contexts import served_by
from tests.certs.world import World, snapshot, world
from tests.pebble import Pebble, running_pebble
from trioproxy.acme.client import AcmeClient
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.manager import Manager
from trioproxy.certs.store import Store
from trioproxy.config.model import Acme, Site
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper
from trioproxy.snapshot import Cell

NAME = "cloud.test"
OTHER = "home.test"


@pytest.fixture
async def web() -> AsyncIterator[Port80]:
    async with port80() as server:
        yield server


@pytest.fixture
async def ca(web: Port80, tmp_path: Path) -> AsyncIterator[Pebble]:
    async with running_pebble(tmp_path / "pebble", http_port=web.port) as pebble:
        yield pebble


@attrs.frozen
class Live:
    manager: Manager
    cell: Cell
    store: Store


def live(folder: Path, ca: Pebble, web: Port80, *sites: Site) -> Live:
    """All that a server has of this room."""
    store = Store(folder)
    source = ContextSource(store, InternalCA(store))
    settings = Acme(email="me@example.com", directory=ca.directory, ca_file=ca.ca_file)
    cell = Cell(snapshot(source, config(folder, *sites, acme=settings)))
    reaper = Reaper()

    def client(acme: Acme) -> AcmeClient:
        return AcmeClient(acme, HttpClient(acme.ca_file, reaper), store.accounts)

    return Live(Manager(cell, web.board, store, source, client), cell, store)


async def test_a_first_certificate_and_a_forced_renewal(tmp_path: Path, ca: Pebble, web: Port80) -> None:
    root = x509.load_pem_x509_certificate(await ca.root_pem())
    one = live(tmp_path / "store", ca, web, acme_site(NAME), acme_site(OTHER))
    assert one.cell.current.awaiting == {NAME, OTHER}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.manager.run)
        with trio.fail_after(PATIENCE):
            while one.cell.current.awaiting:
                await trio.testing.wait_all_tasks_blocked(0.05)
        first = one.store.load(NAME)
        lines: list[str] = []
        with trio.fail_after(PATIENCE):
            (outcome,) = await one.manager.renew([NAME], True, lines.append)
        nursery.cancel_scope.cancel()
    second = one.store.load(NAME)
    assert first is not None
    assert second is not None
    assert outcome.result == "renewed"
    assert f"{NAME}: ordering a certificate" in lines
    assert first.leaf.serial != second.leaf.serial
    assert first.key_pem != second.key_pem
    assert served_by(one.cell.current.contexts.of(acme_site(NAME)), NAME) == second.leaf.serial
    leaf, *intermediates = x509.load_pem_x509_certificates(second.chain_pem)
    PolicyBuilder().store(TrustStore([root])).build_server_verifier(x509.DNSName(NAME)).verify(leaf, intermediates)
    assert one.store.journal(NAME).read() is None
    previous = one.store.path / "certificates" / f"{NAME}.pem.previous"
    assert previous.read_bytes() == first.pem


async def test_a_validation_that_fails_is_told_kept_and_mended_by_a_wish(
    tmp_path: Path, ca: Pebble, web: Port80
) -> None:
    one = live(tmp_path / "store", ca, web, acme_site(NAME))
    await ca.dns.set_servfail(NAME)
    with trio.fail_after(PATIENCE):
        (failed,) = await one.manager.renew([], False, lambda _: None)
    assert failed.result == "failed"
    trouble = one.store.trouble(NAME)
    assert trouble is not None
    assert trouble.failures == 1
    (status,) = one.manager.listing()
    assert (status.state, status.error, status.needs_a_person) == ("failing", trouble.error, True)
    await ca.dns.clear_servfail(NAME)
    with trio.fail_after(PATIENCE):
        (renewed,) = await one.manager.renew([NAME], False, lambda _: None)
    assert renewed.result == "renewed"
    assert one.store.trouble(NAME) is None


# ---- the swap -----------------------------------------------------------------------------------------


async def test_the_next_handshake_sees_the_new_certificate_while_a_connection_goes_on(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, partial(echo, w), 0, host="127.0.0.1"))
        address = listeners[0].socket.getsockname()[:2]

        async def connect() -> tuple[trio.SSLStream[trio.SocketStream], int]:
            stream = trio.SSLStream(await trio.open_tcp_stream(*address), client, server_hostname=NAME)
            await stream.do_handshake()
            der = stream.getpeercert(binary_form=True)
            assert der is not None
            return stream, x509.load_der_x509_certificate(der).serial_number

        async def ask(stream: trio.SSLStream[trio.SocketStream], data: bytes) -> bytes:
            await stream.send_all(data)
            return bytes(await stream.receive_some())

        with trio.fail_after(PATIENCE):
            old, stand_in = await connect()
            assert await ask(old, b"before") == b"before"
            await w.manager.renew([NAME], False, lambda _: None)
            new, serial = await connect()
            assert stand_in != serial == w.newest(NAME)
            assert await ask(old, b"after") == b"after"
            assert await ask(new, b"new") == b"new"
            await w.manager.renew([NAME], True, lambda _: None)
            newest, serial_again = await connect()
            assert serial != serial_again == w.newest(NAME)
            for stream in (old, new, newest):
                assert await ask(stream, b"still") == b"still"
                await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


async def echo(w: World, transport: trio.SocketStream) -> None:
    """Terminate TLS as a site does: with the context that is current when the connection comes."""
    context = w.cell.current.contexts.of(w.config.sites[NAME])
    stream = trio.SSLStream(transport, context, server_side=True)
    try:
        async for data in stream:
            await stream.send_all(data)
    except trio.BrokenResourceError:
        pass


async def test_the_old_certificate_is_served_until_the_moment_of_the_swap(tmp_path: Path) -> None:
    """With real threads and locks: at no moment is there neither."""
    w = world(tmp_path, acme_site(NAME))
    before = w.serial(NAME)
    seen = {before}
    done = False

    async def watch() -> None:
        while not done:
            seen.add(w.serial(NAME))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        w.authority.seconds[NAME] = 0
        await w.manager.renew([NAME], False, lambda _: None)
        done = True
    assert seen <= {before, w.newest(NAME)}
    assert w.serial(NAME) == w.newest(NAME)
