"""Reloads of a real server: what they say, whom they leave alone, and whom they see out."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from tests.life.served import NAME, PATIENCE, Served, configuration, load, served
from tests.proxy.stage import HELLO, Caller, answering, backend, client_hello, record_all
from trioproxy.cli.main import command

RELOADS = 50

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n"


async def echo(stream: trio.SocketStream, _: object) -> None:
    """Switch to another protocol, in which everything is sent back."""
    await stream.receive_some()
    await stream.send_all(SWITCHING)
    while data := await stream.receive_some():
        await stream.send_all(data)


async def switched(service: Served, name: str) -> trio.SSLStream[trio.SocketStream]:
    """A connection that has switched to `echo`."""
    stream = await service.visit(name)
    fields = {"Connection": "Upgrade", "Upgrade": "echo"}
    assert (await Caller(stream).ask("GET", "/", name, fields)).status == 101
    return stream


async def still_there(stream: trio.abc.Stream) -> bool:
    """Whether `echo` still answers."""
    await stream.send_all(b"hello?")
    return bytes(await stream.receive_some()) == b"hello?"


async def ended(stream: trio.abc.Stream) -> None:
    """Wait for the end, however it comes."""
    with trio.fail_after(PATIENCE):
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    await trio.aclose_forcefully(stream)


async def run(service: Served, *arguments: str) -> tuple[int, str, str]:
    """Run a command as its user does: exit code, what it printed, what it said."""
    full = ["--config", str(service.config), *arguments]
    done = await trio.to_thread.run_sync(lambda: CliRunner().invoke(command, full))
    return done.exit_code, done.stdout, done.stderr


async def test_fifty_reloads_under_load_fail_no_request(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        texts = [configuration(tmp_path, cloud=port, other=port), configuration(tmp_path, cloud=port)]
        kept = await service.visit()
        caller = Caller(kept)
        async with load(service, 3, lambda body: body == b"hello") as result:
            for number in range(RELOADS):
                service.config.write_text(texts[number % 2])
                outcome = await service.ask("reload", dry_run=False)
                sign = "-+"[number % 2 == 0]
                assert outcome["lines"][0].startswith(f"{sign} site other.test")
                assert (await caller.ask("GET", "/", NAME)).body == b"hello"
        assert result.failed == []
        assert result.answered > 0
        await trio.aclose_forcefully(kept)


async def test_a_dry_run_tells_and_does_nothing(tmp_path: Path) -> None:
    async with backend(echo) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        stream = await switched(service, NAME)
        service.config.write_text(configuration(tmp_path, other=port))
        code, printed, said = await run(service, "reload", "--dry-run")
        assert code == 0
        assert printed.splitlines() == [
            f"+ site other.test: / -> http://127.0.0.1:{port}",
            "- site cloud.test",
            "~ certificate other.test: of the internal authority",
            "- connections of cloud.test: 1, which are to end",
        ]
        assert "Nothing was changed" in said
        assert (await service.ask("reload", dry_run=True))["ending"] == {NAME: 1}
        assert await still_there(stream)
        await trio.aclose_forcefully(await service.visit(NAME))
        await trio.aclose_forcefully(stream)


async def test_tunnels_of_names_that_stay_live_on_and_those_of_names_that_go_drain(tmp_path: Path) -> None:
    async with (
        backend(echo) as (port, _),
        backend(record_all) as (deaf, seen),
        served(tmp_path, _with_passthrough(tmp_path, port, deaf)) as service,
    ):
        stays, goes = await switched(service, NAME), await switched(service, "other.test")
        passed = await trio.open_tcp_stream("127.0.0.1", service.https)
        hello = client_hello("pbx.test")
        await passed.send_all(hello)
        with trio.fail_after(PATIENCE):
            while bytes(seen.received) != hello:  # noqa: ASYNC110
                await trio.sleep(0.01)
        service.config.write_text(configuration(tmp_path, drain="500ms", cloud=port))
        outcome = await service.ask("reload", dry_run=False)
        assert outcome["ending"] == {"other.test": 1, "pbx.test": 1}
        begun = trio.current_time()
        assert await still_there(goes)  # until its time is up
        await ended(goes)
        assert trio.current_time() - begun > 0.4
        await ended(passed)
        assert await still_there(stays)
        assert (await service.ask("status"))["connections"] == 1
        await trio.aclose_forcefully(stays)


async def test_an_idle_connection_of_a_name_that_goes_ends_at_once(tmp_path: Path) -> None:
    async with (
        backend(answering(HELLO)) as (port, _),
        served(tmp_path, configuration(tmp_path, drain="1h", cloud=port, other=port)) as service,
    ):
        stream = await service.visit("other.test")
        assert (await Caller(stream).ask("GET", "/", "other.test")).body == b"hello"
        service.config.write_text(configuration(tmp_path, drain="1h", cloud=port))
        await service.ask("reload", dry_run=False)
        await ended(stream)


async def test_a_name_that_comes_back_in_time_keeps_its_connections(tmp_path: Path) -> None:
    async with (
        backend(echo) as (port, _),
        served(tmp_path, configuration(tmp_path, drain="500ms", cloud=port, other=port)) as service,
    ):
        stream, doomed = await switched(service, NAME), await switched(service, "other.test")
        service.config.write_text(configuration(tmp_path, drain="500ms", third=port))
        await service.ask("reload", dry_run=False)
        service.config.write_text(configuration(tmp_path, drain="500ms", cloud=port))
        await service.ask("reload", dry_run=False)
        await ended(doomed)  # whose time was up when that of the other one would have been
        assert await still_there(stream)
        await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("as_json", [False, True])
async def test_a_file_with_mistakes_is_refused_with_them(tmp_path: Path, as_json: bool) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        service.config.write_text(configuration(tmp_path, other=port) + "[nonsense]\n")
        code, printed, said = await run(service, "reload", *(["--json"] if as_json else []))
        assert code == 2
        assert "nonsense: unknown key" in (printed if as_json else said)
        assert await service.get() == b"hello"
        os.kill(service.process.pid, signal.SIGHUP)
        await service.heard("not reloaded: the configuration has mistakes")
        assert await service.get() == b"hello"


async def test_files_that_only_the_server_looks_into_are_mistakes_too(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        text = configuration(tmp_path, cloud=port)
        service.config.write_text(text.replace('"internal"', '{ certificate = "gone.pem", key = "gone.key" }'))
        code, _, said = await run(service, "reload")
        assert code == 2
        assert "gone.pem cannot be read" in said
        assert "Nothing was changed." in said
        stream = await service.visit()
        assert isinstance(stream, trio.SSLStream)
        await trio.aclose_forcefully(stream)


async def test_what_needs_a_restart_stays_as_it_was_and_is_said_each_time(tmp_path: Path) -> None:
    async with backend(answering(HELLO)) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        text = configuration(tmp_path, cloud=port)
        service.config.write_text(text.replace(f"{tmp_path}/store", f"{tmp_path}/elsewhere"))
        for _ in range(2):
            lines = (await service.ask("reload", dry_run=False))["lines"]
            assert lines[0] == (
                f"! storage.path: {tmp_path}/store becomes {tmp_path}/elsewhere: needs a restart, and stays as it was "
                "until then"
            )
        assert await service.get() == b"hello"
        assert not (tmp_path / "elsewhere").exists()


async def test_level_and_format_of_the_log_are_gone_by(tmp_path: Path) -> None:
    text = configuration(tmp_path, cloud=9)
    async with served(tmp_path, text) as service:
        service.config.write_text(text + '[log]\nlevel = "warning"\n')
        await service.ask("reload", dry_run=False)
        service.config.write_text(text + '[log]\nformat = "json"\n')
        await service.ask("reload", dry_run=False)
        await service.heard(r'\{"time":.*"message": "reloaded')
        assert "INFO    reloaded" not in service.said()


async def test_without_a_server_there_is_nothing_to_reload(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(configuration(tmp_path, cloud=9))
    done = await trio.to_thread.run_sync(
        lambda: CliRunner().invoke(command, ["--config", str(tmp_path / "config.toml"), "reload"])
    )
    assert done.exit_code == 1
    assert "no server is running" in done.stderr


async def test_status_and_connections(tmp_path: Path) -> None:
    async with backend(echo) as (port, _), served(tmp_path, configuration(tmp_path, cloud=port)) as service:
        stream = await switched(service, NAME)
        status = await service.ask("status")
        assert status["https"] == [f"127.0.0.1:{service.https}"]
        assert status["names"][0]["connections"] == 1
        assert status["names"][0]["days_left"] > 0
        code, printed, _ = await run(service, "status")
        assert code == 0
        assert f"https on 127.0.0.1:{service.https}" in printed
        [found] = (await service.ask("connections", name=NAME))["connections"]
        assert (found["name"], found["kind"]) == (NAME, "tunnel")
        assert (await service.ask("connections", name="other.test"))["connections"] == []
        code, printed, _ = await run(service, "connections")
        assert f" {NAME}  tunnel " in printed
        code, printed, _ = await run(service, "connections", "close", str(found["id"]))
        assert (code, printed) == (0, f"Connection {found['id']} was ended.\n")
        await ended(stream)
        code, _, said = await run(service, "connections", "close", str(found["id"]))
        assert code == 1
        assert "there is no connection" in said


def _with_passthrough(folder: Path, port: int, passed: int) -> str:
    text = configuration(folder, drain="500ms", cloud=port, other=port)
    return f'{text}[passthrough]\n"pbx.test" = "127.0.0.1:{passed}"\n'
