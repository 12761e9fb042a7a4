"""What `trioproxy certs` prints, with a running server and without."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from tests.acme.support import PATIENCE
from tests.certs.making import bundle
from tests.pebble import free_ports, own_address, running_pebble
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.policy import Setback, Trouble
from trioproxy.certs.store import Store
from trioproxy.cli.main import command
from trioproxy.config.model import LETSENCRYPT, AccountId
from trioproxy.control import Handler, Report, control_socket
from trioproxy.errors import ControlError

NAME = "cloud.example.com"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)

CONFIG = """
[sites]
"cloud.example.com" = "http://10.2.3.4"
"home.example.com" = "http://10.2.3.5"
[storage]
path = "store"
"""


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set up the log of their process, and here that is everybody's."""
    logger = logging.getLogger("trioproxy")
    for attribute in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, attribute, getattr(logger, attribute))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a configuration, where commands are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def certs(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=False).invoke(command, ["certs", *arguments], terminal_width=200)


async def in_thread(*arguments: str) -> Result:
    """The same beside a server: a command runs a Trio of its own."""
    return await trio.to_thread.run_sync(partial(certs, *arguments))


async def keep(folder: Path, name: str, made: Bundle) -> None:
    await Store(folder / "store").save(name, made)


def good(*names: str) -> Bundle:
    return bundle(*names, not_before=NOW - DAY, not_after=NOW + 89 * DAY)


@asynccontextmanager
async def server(folder: Path, **handlers: Handler) -> AsyncIterator[None]:
    """Something that answers on the control socket."""
    (folder / "store").mkdir(mode=0o700, exist_ok=True)
    with control_socket(folder / "store" / "control.sock") as control:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.answer, {f"certs.{name}": handler for name, handler in handlers.items()})
            yield
            nursery.cancel_scope.cancel()


# ---- list ---------------------------------------------------------------------------------------------


async def test_without_a_server_the_store_is_read(folder: Path) -> None:
    await keep(folder, NAME, good(NAME))
    await keep(folder, "home.example.com", good("home.example.com"))
    done = await in_thread("list")
    assert done.exit_code == 0
    title, *rows = done.stdout.splitlines()
    assert title.split() == ["NAME", "STATE", "ISSUER", "PROVED", "BY", "DAYS", "LEFT", "RENEWS", "WHY", "THEN"]
    assert [row.split()[:2] for row in rows] == [[NAME, "good"], ["home.example.com", "good"]]
    assert "Test Authority, T1" in rows[0]
    assert " 89 " in rows[0]
    assert "lifetime: a third of it is left then" in rows[0]
    renews = [(NOW + 59 * DAY - back * DAY).astimezone() for back in range(3)]
    assert any(f" {moment.day} {moment:%b} " in rows[0] for moment in renews)
    assert done.stderr == "configuration: config.toml\n"


def test_a_first_start_needs_nobody(folder: Path) -> None:
    done = certs("list")
    assert done.exit_code == 0
    assert [row.split()[1] for row in done.stdout.splitlines()[1:]] == ["waiting", "waiting"]
    assert not (folder / "store").exists()


async def test_trouble_is_told_in_full_and_exits_with_1(folder: Path) -> None:
    trouble = Trouble(3, NOW, NOW + timedelta(minutes=30), "the CA found no such host")
    await Store(folder / "store").note_trouble(NAME, trouble)
    done = await in_thread("list")
    assert done.exit_code == 1
    assert [row.split()[1] for row in done.stdout.splitlines()[1:3]] == ["failing", "waiting"]
    assert f"\n{NAME}: the CA found no such host; next attempt at " in done.stdout


async def test_what_passes_by_itself_is_told_and_does_not_exit_with_1(folder: Path) -> None:
    busy = Setback(AccountId(LETSENCRYPT), 1, NOW, NOW + timedelta(minutes=30), "unreachable")
    trouble = Trouble(1, NOW, busy.next_attempt, "the CA is busy", at=(busy,))
    await Store(folder / "store").note_trouble(NAME, trouble)
    done = await in_thread("list")
    assert done.exit_code == 0
    assert f"\n{NAME}: the CA is busy; next attempt at " in done.stdout


async def test_names_are_shown_where_they_are_others(folder: Path) -> None:
    await keep(folder, NAME, good(NAME, "www.example.com"))
    assert f"(is for {NAME}, www.example.com)" in (await in_thread("list")).stdout


async def test_json_and_nothing_else(folder: Path) -> None:
    await keep(folder, NAME, bundle(NAME, not_before=NOW - 90 * DAY, not_after=NOW - DAY))
    done = await in_thread("list", "--json")
    assert done.exit_code == 1
    assert done.stderr == ""
    first, second = json.loads(done.stdout)
    assert (first["name"], first["state"], first["needs_a_person"]) == (NAME, "expired", True)
    assert first["days_left"] == pytest.approx(-1, abs=0.1)
    assert (second["name"], second["state"], second["not_after"]) == ("home.example.com", "waiting", None)


def test_a_dry_run_needs_a_staging(folder: Path) -> None:
    config = folder / "config.toml"
    config.write_text(f'[acme]\ndirectory = "https://ca.test/dir"\n{config.read_text()}')
    done = certs("renew", "--dry-run")
    assert done.exit_code == 1
    assert "there is no staging to rehearse at" in done.stderr


async def test_a_dry_run_is_the_running_servers(folder: Path) -> None:
    asked = []

    async def rehearse(arguments: dict[str, object], report: Report) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        asked.append(arguments)
        report("rehearsing")
        return {"outcomes": [{"name": NAME, "result": "rehearsed", "detail": "nothing was kept"}]}

    async with server(folder, rehearse=rehearse):
        done = await in_thread("renew", "--dry-run", NAME)
    assert (done.exit_code, asked) == (0, [{"names": [NAME]}])
    assert "rehearsing" in done.stderr


def test_without_sites_there_is_nothing_to_look_after(folder: Path) -> None:
    (folder / "config.toml").write_text('[passthrough]\n"pbx.example.com" = "10.1.2.3"\n[storage]\npath = "store"\n')
    done = certs("list")
    assert done.exit_code == 0
    assert "there is no certificate to look after" in done.stdout


async def test_a_running_server_is_asked_first(folder: Path) -> None:
    await keep(folder, NAME, good(NAME))
    told = json.loads((await in_thread("list", "--json")).stdout)[:1]
    told[0].update(state="renewing", issuer="told by the server")

    async def list_all(arguments: dict[str, object], report: Report) -> dict[str, object]:
        assert arguments == {}
        await trio.lowlevel.checkpoint()
        return {"certificates": told}

    async with server(folder, list=list_all):
        done = await in_thread("list")
        as_json = await in_thread("list", "--json")
    assert done.exit_code == 0
    assert "told by the server" in done.stdout
    assert "home.example.com" not in done.stdout
    assert json.loads(as_json.stdout) == told


# ---- renew --------------------------------------------------------------------------------------------


async def test_the_running_server_renews_and_its_progress_is_shown(folder: Path) -> None:
    asked: list[dict[str, object]] = []

    async def renew(arguments: dict[str, object], report: Report) -> dict[str, object]:
        asked.append(arguments)
        report("cloud.example.com: ordering a certificate")
        await trio.lowlevel.checkpoint()
        return {"outcomes": [{"name": NAME, "result": "renewed", "detail": "valid to 20 Feb"}]}

    async with server(folder, renew=renew):
        done = await in_thread("renew", NAME, "--force")
        await in_thread("renew")
    assert asked == [{"names": [NAME], "force": True}, {"names": [], "force": False}]
    assert done.exit_code == 0
    assert done.stdout == f"{NAME}: renewed: valid to 20 Feb\n"
    assert done.stderr == "configuration: config.toml\ncloud.example.com: ordering a certificate\n"


@pytest.mark.parametrize(("result", "code"), [("renewed", 0), ("kept", 0), ("failed", 1), ("waiting", 1)])
async def test_the_exit_code_tells_whether_each_has_its_certificate(folder: Path, result: str, code: int) -> None:
    async def renew(arguments: dict[str, object], report: Report) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        outcomes = [("home.example.com", "renewed"), (NAME, result)]
        return {"outcomes": [{"name": name, "result": result, "detail": "x"} for name, result in outcomes]}

    async with server(folder, renew=renew):
        done = await in_thread("renew")
    assert done.exit_code == code
    assert f"{NAME}: {result}: x" in done.stdout


async def test_what_the_server_refuses_is_told(folder: Path) -> None:
    async def renew(arguments: dict[str, object], report: Report) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        raise ControlError("there is no site clud.example.com; did you mean cloud.example.com?")

    async with server(folder, renew=renew):
        done = await in_thread("renew", "clud.example.com")
    assert done.exit_code == 1
    assert "did you mean cloud.example.com?" in done.stderr
    assert "Traceback" not in done.output


def test_without_a_server_a_wrong_name_is_refused_too(folder: Path) -> None:
    done = certs("renew", "clud.example.com")
    assert done.exit_code == 1
    assert "trioproxy: there is no site clud.example.com; did you mean cloud.example.com?" in done.stderr


async def test_without_a_server_port_80_must_be_free(folder: Path) -> None:
    address = own_address()
    listener = (await trio.open_tcp_listeners(0, host=address))[0]
    port = listener.socket.getsockname()[1]
    (folder / "config.toml").write_text(f'{CONFIG}[listen]\nhttp = ["{address}:{port}"]\n')
    async with listener:
        done = await in_thread("renew")
    assert done.exit_code == 1
    assert f"{port} is held by" in done.stderr


async def test_without_a_server_nothing_may_be_due(folder: Path) -> None:
    for name in (NAME, "home.example.com"):
        await keep(folder, name, good(name))
    (folder / "config.toml").write_text(f'{CONFIG}[listen]\nhttp = ["{own_address()}:{free_port()}"]\n')
    done = await in_thread("renew")
    assert done.exit_code == 0
    assert done.stdout.startswith("Nothing is due.")


async def test_with_force_it_does_not_advise_force(folder: Path) -> None:
    internal = '[sites."cloud.example.com"]\ntls = "internal"\n"/" = "http://10.2.3.4"\n[storage]\npath = "store"\n'
    (folder / "config.toml").write_text(f'{internal}[listen]\nhttp = ["{own_address()}:{free_port()}"]\n')
    done = await in_thread("renew", "--force")
    assert done.exit_code == 0
    assert done.stdout == "No site gets its certificate by ACME. To renew one of the internal CA, name its site.\n"


def free_port() -> int:
    return free_ports(own_address(), 1)[0]


async def test_without_a_server_the_command_gets_certificates_itself(folder: Path) -> None:
    port = free_port()
    async with running_pebble(folder / "pebble", http_port=port) as ca:
        for name in (NAME, "home.example.com"):
            await ca.dns.set(name, own_address())
        await ca.dns.set_servfail("home.example.com")
        (folder / "config.toml").write_text(
            f'{CONFIG}[listen]\nhttp = ["{own_address()}:{port}"]\n'
            f'[acme]\nemail = "me@example.com"\ndirectory = "{ca.directory}"\nca_file = "{ca.ca_file}"\n'
        )
        with trio.fail_after(2 * PATIENCE):
            done = await in_thread("renew")
            first = Store(folder / "store").load(NAME)
            assert done.exit_code == 1, done.output
            assert first is not None, done.output
            assert "no server is running, so this command does it itself" in done.stderr
            assert f"{NAME}: ordering a certificate" in done.stderr
            assert f"{NAME}: renewed: valid to " in done.stdout
            assert "home.example.com: failed: " in done.stdout
            assert "next attempt at" in done.stdout
            await ca.dns.clear_servfail("home.example.com")
            again = await in_thread("renew")
            assert again.exit_code == 0, again.output
            assert [line.split(": ")[:2] for line in again.stdout.splitlines()] == [["home.example.com", "renewed"]]
            forced = await in_thread("renew", NAME, "--force")
            assert forced.exit_code == 0, forced.output
        second = Store(folder / "store").load(NAME)
        assert second is not None
        assert second.leaf.serial != first.leaf.serial
        listed = json.loads((await in_thread("list", "--json")).stdout)
        assert [entry["state"] for entry in listed] == ["good", "good"]
