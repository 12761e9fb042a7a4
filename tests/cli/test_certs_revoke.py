"""`trioproxy certs revoke` and `rollover-account`, with a running server and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.acme.support import PATIENCE
from tests.cli.test_certs import CONFIG, NAME, certs, folder, free_port, in_thread, log, server
from tests.pebble import own_address, running_pebble
from trioproxy.certs.store import Store
from trioproxy.config.model import ZEROSSL, AccountId
from trioproxy.control import Report

__all__ = ["folder", "log"]  # fixtures, which must be known here


async def test_without_a_server_the_command_revokes_replaces_and_gives_the_account_a_new_key(folder: Path) -> None:
    port = free_port()
    async with running_pebble(folder / "pebble", http_port=port) as ca:
        await ca.dns.set(NAME, own_address())
        (folder / "config.toml").write_text(
            f'{CONFIG}[listen]\nhttp = ["{own_address()}:{port}"]\n'
            f'[acme]\nemail = "me@example.com"\ndirectory = "{ca.directory}"\nca_file = "{ca.ca_file}"\n'
        )
        store, account = Store(folder / "store"), AccountId(ca.directory)
        with trio.fail_after(2 * PATIENCE):
            assert (await in_thread("renew", NAME)).exit_code == 0
            first, key = store.load(NAME), store.accounts.read(account)
            rolled = await in_thread("rollover-account")
            assert rolled.exit_code == 0, rolled.output
            assert "has a new key" in rolled.stdout
            revoked = await in_thread("revoke", NAME, "--reason", "keycompromise")
            assert revoked.exit_code == 0, revoked.output
            assert "the revoked certificate is replaced: valid to " in revoked.stdout
            again = await in_thread("rollover-account", "--directory", "https://other.example/")
            assert again.exit_code == 1
            assert "the configuration has no authority https://other.example/" in again.stderr
            second, new_key = store.load(NAME), store.accounts.read(account)
            for path in (folder / "store" / "accounts").glob("*.json"):
                path.unlink()  # as after an import from certbot, whose account is not ours
            revoked = await in_thread("revoke", NAME)
            assert revoked.exit_code == 0, revoked.output
            third = store.load(NAME)
        assert first is not None
        assert second is not None
        assert third is not None
        assert key is not None
        assert new_key is not None
        assert new_key.key_pem != key.key_pem
        assert new_key.url == key.url
        assert not new_key.next_key_pem
        assert second.leaf.serial != first.leaf.serial
        assert await ca.status_of(first.leaf.serial) == "Revoked"
        assert await ca.status_of(second.leaf.serial) == "Revoked"
        assert await ca.status_of(third.leaf.serial) == "Valid"


@pytest.mark.parametrize(("result", "code"), [("renewed", 0), ("failed", 1)])
async def test_the_running_server_revokes(folder: Path, result: str, code: int) -> None:
    asked: list[dict[str, object]] = []

    async def revoke(arguments: dict[str, object], report: Report) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        asked.append(arguments)
        report(f"{NAME}: asking ca.example to revoke")
        return {"outcomes": [{"name": NAME, "result": result, "detail": "what came of it"}]}

    async with server(folder, revoke=revoke):
        done = await in_thread("revoke", NAME, "--reason", "superseded")
    assert done.exit_code == code
    assert done.stdout == f"{NAME}: {result}: what came of it\n"
    assert done.stderr.endswith(f"{NAME}: asking ca.example to revoke\n")
    assert asked == [{"name": NAME, "reason": "superseded"}]


def test_a_reason_is_one_of_those_that_there_are(folder: Path) -> None:
    done = certs("revoke", NAME, "--reason", "boredom")
    assert done.exit_code == 2
    assert "keycompromise" in done.stderr.lower()


def test_without_a_server_a_wrong_name_is_not_revoked(folder: Path) -> None:
    done = certs("revoke", "clud.example.com")
    assert done.exit_code == 1
    assert "there is no site clud.example.com; did you mean cloud.example.com?" in done.stderr


async def test_what_has_no_certificate_cannot_be_revoked(folder: Path) -> None:
    (folder / "config.toml").write_text(f'{CONFIG}[listen]\nhttp = ["{own_address()}:{free_port()}"]\n')
    done = await in_thread("revoke", NAME)
    assert done.exit_code == 1
    assert f"trioproxy: {NAME} has no certificate of a public CA that could be revoked" in done.stderr


async def test_the_running_server_gives_the_account_a_new_key(folder: Path) -> None:
    asked: list[dict[str, object]] = []

    async def rollover(arguments: dict[str, object], report: Report) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        asked.append(arguments)
        return {"done": "the account at ZeroSSL has a new key"}

    async with server(folder, rollover=rollover):
        done = await in_thread("rollover-account", "--directory", "zerossl")
        other = await in_thread("rollover-account")
    assert done.stdout == "the account at ZeroSSL has a new key\n"
    assert other.exit_code == 0
    assert asked == [{"directory": ZEROSSL}, {"directory": ""}]
