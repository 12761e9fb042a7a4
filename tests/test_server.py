"""The server as a whole: what it binds, what signals do, how it reloads and how it stops."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.net.sockets import no_more_descriptors, until
from tests.proxy.stage import HELLO, LOOPBACK, Caller, answering, backend, make_config, site
from trioproxy.config.model import CertificateFiles, Config, HostPort, Limits, Listen, Timeouts
from trioproxy.control import ask
from trioproxy.errors import ConfigError, ListenError, Mistake
from trioproxy.life.sockets import Addresses
from trioproxy.net.lan import Lan
from trioproxy.proxy import context
from trioproxy.server import Server

NAME = "cloud.test"

ANY_PORT = (HostPort(LOOPBACK, 0),)


def configured(folder: Path, config: Config) -> Config:
    """`config` on free ports, with its storage in `folder`."""
    listen = Listen(https=ANY_PORT, http=ANY_PORT, https_written=True, http_written=True)
    return attrs.evolve(config, listen=listen, storage=folder, control_socket=folder / "control.sock")


@asynccontextmanager
async def running(config: Config, load: Callable[[], Config] | None = None) -> AsyncIterator[Addresses]:
    """A server that is stopped by SIGTERM at the end of the block, as systemd would."""
    server = Server(config, load or (lambda: config))
    async with trio.open_nursery() as nursery:
        addresses: Addresses = await nursery.start(server.run)
        try:
            yield addresses
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


async def visit(address: HostPort, name: str) -> trio.SSLStream[trio.SocketStream]:
    """A TLS connection that takes any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    transport = await trio.open_tcp_stream(address.host, address.port)
    stream = trio.SSLStream(transport, context, server_hostname=name, https_compatible=True)
    await stream.do_handshake()
    return stream


async def reloaded(caplog: pytest.LogCaptureFixture) -> str:
    """Send SIGHUP and wait for what the server has to say about it."""
    caplog.clear()
    os.kill(os.getpid(), signal.SIGHUP)
    with trio.fail_after(5):
        await until(lambda: "reloaded" in caplog.text)
    return next(r.getMessage() for r in caplog.records if "reloaded" in r.getMessage())


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "trioproxy")


async def test_a_site_is_served_from_the_first_second_with_the_internal_cas_certificate(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _):
        config = configured(tmp_path, make_config(site(NAME, port, tls="internal")))
        async with running(config) as addresses, await visit(addresses.https[0], NAME) as stream:
            assert (await Caller(stream).ask("GET", "/", NAME)).body == b"hello"


async def test_an_unreadable_certificate_stops_neither_the_start_nor_the_site(tmp_path: Path) -> None:
    files = CertificateFiles(tmp_path / "gone.pem", tmp_path / "gone.key")
    async with backend(answering(HELLO)) as (port, _):
        config = make_config(site(NAME, port, tls=files), site("home.test", port, tls="internal"))
        async with running(configured(tmp_path, config)) as addresses:
            for name in (NAME, "home.test"):
                async with await visit(addresses.https[0], name) as stream:
                    assert (await Caller(stream).ask("GET", "/", name)).status == 200


async def test_a_reload_serves_new_names_and_keeps_connections(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with backend(answering(HELLO)) as (port, _):
        old = configured(tmp_path, make_config(site(NAME, port, tls="internal")))
        new = attrs.evolve(old, sites={**old.sites, "home.test": site("home.test", port, tls="internal")})
        async with running(old, lambda: new) as addresses, await visit(addresses.https[0], NAME) as before:
            caller = Caller(before)
            assert (await caller.ask("GET", "/", NAME)).status == 200
            assert await reloaded(caplog) == "reloaded: 2 sites, 0 passthrough names"
            async with await visit(addresses.https[0], "home.test") as stream:
                assert (await Caller(stream).ask("GET", "/", "home.test")).status == 200
            assert (await caller.ask("GET", "/", NAME)).status == 200


async def test_a_bad_file_is_refused_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def bad() -> Config:
        raise ConfigError(Path("config.toml"), (Mistake(3, "sites", "is wrong"),))

    async with backend(answering(HELLO)) as (port, _):
        config = configured(tmp_path, make_config(site(NAME, port, tls="internal")))
        async with running(config, bad) as addresses:
            assert "not reloaded" in await reloaded(caplog)
            assert "config.toml:3: sites: is wrong" in caplog.text
            async with await visit(addresses.https[0], NAME) as stream:
                assert (await Caller(stream).ask("GET", "/", NAME)).status == 200


async def test_a_reload_refuses_certificate_files_that_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = configured(tmp_path, make_config(site(NAME, 1, tls="internal")))
    files = CertificateFiles(tmp_path / "gone.pem", tmp_path / "gone.key")
    new = attrs.evolve(old, sites={NAME: site(NAME, 1, tls=files)})
    async with running(old, lambda: new):
        assert "not reloaded" in await reloaded(caplog)
        assert "gone.pem" in caplog.text


async def test_a_reload_moves_listeners_that_changed_and_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((LOOPBACK, 0)) as probe:
        free = probe.getsockname()[1]
    old = configured(tmp_path, make_config(site(NAME, 1)))
    new = attrs.evolve(old, listen=attrs.evolve(old.listen, http=(HostPort(LOOPBACK, free),)))
    async with running(old, lambda: new) as addresses:
        kept = await visit(addresses.https[0], NAME)
        await reloaded(caplog)
        async with await trio.open_tcp_stream(LOOPBACK, free) as stream:
            assert (await Caller(stream).ask("GET", "/", NAME)).status == 308
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(LOOPBACK, addresses.http[0].port)
        async with await visit(addresses.https[0], NAME):
            pass
        await trio.aclose_forcefully(kept)


async def test_a_reload_that_cannot_bind_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        taken = holder.getsockname()[1]
        old = configured(tmp_path, make_config(site(NAME, 1)))
        new = attrs.evolve(
            old,
            listen=attrs.evolve(old.listen, http=(HostPort(LOOPBACK, taken),)),
            sites={"other.test": site("other.test", 1)},
        )
        async with running(old, lambda: new) as addresses:
            assert f"{taken} is held by" in await reloaded(caplog)
            async with await trio.open_tcp_stream(LOOPBACK, addresses.http[0].port) as stream:
                assert (await Caller(stream).ask("GET", "/", NAME)).status == 308  # the old name, on the old port


class SlowFile:
    """A configuration whose reading hangs until `proceed`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.reads = 0
        self.proceed = threading.Event()

    def __call__(self) -> Config:
        self.reads += 1
        self.proceed.wait(20)
        return self.config


async def test_sigterm_is_heeded_while_a_reload_hangs(tmp_path: Path) -> None:
    config = configured(tmp_path, make_config(site(NAME, 1, tls="internal")))
    slow = SlowFile(config)
    try:
        with trio.fail_after(5):
            async with running(config, slow):
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: slow.reads)
    finally:
        slow.proceed.set()


async def test_reloads_asked_for_while_one_hangs_become_one_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = configured(tmp_path, make_config(site(NAME, 1, tls="internal")))
    slow = SlowFile(config)
    try:
        async with running(config, slow):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGHUP)
                with trio.fail_after(5):
                    await until(lambda: slow.reads)
                await trio.testing.wait_all_tasks_blocked()
            assert slow.reads == 1
            slow.proceed.set()
            with trio.fail_after(5):
                await until(lambda: caplog.text.count("reloaded: ") == 2)
            await trio.testing.wait_all_tasks_blocked()
    finally:
        slow.proceed.set()
    assert slow.reads == 2


async def test_a_reload_that_comes_to_its_end_while_stopping_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = configured(tmp_path, make_config(site(NAME, 1), timeouts=Timeouts(drain=20)))
    with socket.create_server((LOOPBACK, 0)) as probe:
        free = HostPort(LOOPBACK, probe.getsockname()[1])
    slow = SlowFile(attrs.evolve(old, listen=attrs.evolve(old.listen, http=(free,))))
    try:
        with trio.fail_after(10):
            async with running(old, slow) as addresses:
                stream = await visit(addresses.https[0], NAME)
                await stream.send_all(b"POST / HTTP/1.1\r\n")  # a request under way keeps the drain going
                os.kill(os.getpid(), signal.SIGHUP)
                await until(lambda: slow.reads)
                os.kill(os.getpid(), signal.SIGTERM)
                await until(lambda: "stopping:" in caplog.text)
                slow.proceed.set()
                await until(lambda: "reloaded" in caplog.text)
            await trio.aclose_forcefully(stream)
    finally:
        slow.proceed.set()
    assert "not reloaded: the server is stopping" in caplog.text


async def test_the_networks_of_this_machine_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = trio.Event()

    async def follow(self: Lan) -> None:
        followed.set()
        await trio.sleep_forever()

    monkeypatch.setattr(Lan, "run", follow)
    async with running(configured(tmp_path, make_config(site(NAME, 1, tls="internal")))):
        with trio.fail_after(5):
            await followed.wait()


async def test_without_descriptors_idle_connections_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "REQUESTS_APART", 0)
    async with running(configured(tmp_path, make_config(site(NAME, 1)))) as addresses:
        port = addresses.http[0].port
        idle = [await trio.open_tcp_stream(LOOPBACK, port) for _ in range(3)]
        for stream in idle:
            assert (await Caller(stream).ask("GET", "/", NAME)).status == 308
        late = trio.socket.socket()
        with no_more_descriptors():
            await late.connect((LOOPBACK, port))
            with trio.fail_after(1):
                assert (await Caller(trio.SocketStream(late)).ask("GET", "/", NAME)).status == 308
        late.close()
        for stream in idle:
            await trio.aclose_forcefully(stream)


async def test_a_reload_brings_new_limits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old = configured(tmp_path, make_config(site(NAME, 1)))
    new = attrs.evolve(old, limits=Limits(connections_per_ip=1))
    async with running(old, lambda: new) as addresses:
        port = addresses.http[0].port
        async with await trio.open_tcp_stream(LOOPBACK, port) as first:
            assert (await Caller(first).ask("GET", "/", NAME)).status == 308
            await reloaded(caplog)
            async with await trio.open_tcp_stream(LOOPBACK, port) as second:
                await second.send_all(b"x")
                with contextlib.suppress(trio.BrokenResourceError):
                    assert await second.receive_some() == b""
    assert "limits.connections_per_ip" in caplog.text


async def test_stopping_lets_a_running_response_finish(tmp_path: Path) -> None:
    proceed = trio.Event()

    async def slow(stream: trio.SocketStream, _: object) -> None:
        await stream.receive_some()
        await proceed.wait()
        await stream.send_all(HELLO)

    async with backend(slow) as (port, seen):
        config = configured(tmp_path, make_config(site(NAME, port, tls="internal")))
        async with trio.open_nursery() as clients, running(config) as addresses:
            stream = await visit(addresses.https[0], NAME)
            answers = []

            async def ask_slowly() -> None:
                answers.append(await Caller(stream).ask("GET", "/", NAME))
                await trio.aclose_forcefully(stream)

            clients.start_soon(ask_slowly)
            await until(lambda: seen.connections)
            os.kill(os.getpid(), signal.SIGTERM)
            while True:  # new connections are refused at once
                try:
                    await (await trio.open_tcp_stream(LOOPBACK, addresses.https[0].port)).aclose()
                except OSError:
                    break
            proceed.set()
        assert answers[0].body == b"hello"


async def test_the_drain_ends_what_does_not_end_by_itself(tmp_path: Path) -> None:
    async def never(stream: trio.SocketStream, _: object) -> None:
        await stream.receive_some()
        await trio.sleep_forever()

    async with backend(never) as (port, seen):
        config = make_config(site(NAME, port, tls="internal"), timeouts=Timeouts(drain=0.2))
        with trio.fail_after(5):
            async with running(configured(tmp_path, config)) as addresses:
                stream = await visit(addresses.https[0], NAME)
                await stream.send_all(b"GET / HTTP/1.1\r\nHost: cloud.test\r\n\r\n")
                await until(lambda: seen.connections)
        await trio.aclose_forcefully(stream)


async def test_what_cannot_be_bound_ends_the_start_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as holder:
        taken = HostPort(*holder.getsockname())
        config = configured(tmp_path, make_config(site(NAME, 1)))
        config = attrs.evolve(config, listen=attrs.evolve(config.listen, http=(taken,)))
        with pytest.raises(ListenError, match=f"{taken.port} is held by"):
            await Server(config, lambda: config).run()
    assert not config.control_socket.exists()


async def test_commands_reach_the_certificate_manager(tmp_path: Path) -> None:
    config = configured(tmp_path, make_config(site(NAME, 1, tls="internal")))
    async with running(config):
        result = await ask(config.control_socket, "certs.list", {}, print)
        assert [NAME in str(certificate) for certificate in result["certificates"]] == [True]
