"""`certs renew --dry-run` where no server runs: the command answers port 80 itself, and keeps nothing."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from click.testing import CliRunner, Result

from tests.acme.support import PATIENCE
from tests.certs.making import due_bundle
from tests.pebble import Pebble, free_ports, needs_pebble, own_address, running_pebble
from trioproxy.certs.store import Store
from trioproxy.cli.main import command

pytestmark = needs_pebble

NAMES = ("cloud.test", "home.test")

CONFIG = """\
[listen]
http = ["{address}:{port}"]
[acme]
email = "me@example.com"
directory = "{ca.directory}"
ca_file = "{ca.ca_file}"
staging = "{staging.directory}"
staging_ca_file = "{staging.ca_file}"
[storage]
path = "{folder}/store"
[sites]
"cloud.test" = "http://10.2.3.4"
"home.test" = "http://10.2.3.5"
"nas.test" = {{ tls = "internal", "/" = "http://10.2.3.6" }}
"""


@pytest.fixture(autouse=True)
def log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set up the log of their process, and here that is everybody's."""
    logger = logging.getLogger("trioproxy")
    for attribute in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, attribute, getattr(logger, attribute))


@attrs.frozen
class Two:
    """A configuration, and the authorities that it names."""

    folder: Path
    ca: Pebble
    staging: Pebble

    async def rehearse(self, *names: str) -> Result:
        """A command runs a Trio of its own."""
        arguments = ["--config", str(self.folder / "config.toml"), "certs", "renew", "--dry-run", *names]
        run = partial(CliRunner(catch_exceptions=False).invoke, command, arguments)
        with trio.fail_after(PATIENCE):
            return await trio.to_thread.run_sync(run)

    def kept(self) -> set[str]:
        """The folders of the store that have files in them, locks aside."""
        store = self.folder / "store"
        files = [path.relative_to(store) for path in store.rglob("*") if path.is_file()]
        return {path.parts[0] for path in files} - {"locks"}


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[Two]:
    """Both find every name of the configuration at an address of this process."""
    (port,) = free_ports(own_address(), 1)
    async with (
        running_pebble(folder / "ca", http_port=port) as ca,
        running_pebble(folder / "staging", http_port=port) as staging,
    ):
        for name in NAMES:
            await staging.dns.set(name, own_address())
        text = CONFIG.format(address=own_address(), port=port, ca=ca, staging=staging, folder=folder)
        (folder / "config.toml").write_text(text)
        yield Two(folder, ca, staging)


def outcomes(done: Result) -> list[list[str]]:
    return [line.split(": ")[:2] for line in done.stdout.splitlines()]


def orders(ca: Pebble) -> int:
    return ca.said().count("Added order")


async def test_every_name_goes_the_whole_way_at_staging_alone(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        await both.staging.dns.set_servfail("home.test")
        done = await both.rehearse()
        assert done.exit_code == 1
        assert "no server is running, so this command does it itself" in done.stderr
        assert "cloud.test: asking the CA to sign" in done.stderr
        assert outcomes(done) == [["cloud.test", "rehearsed"], ["home.test", "failed"]]
        assert "home.test: failed: the rehearsal failed: no certificate for home.test: " in done.stdout
        assert "next attempt" not in done.stdout, "nobody tries again what was a rehearsal"
        assert both.kept() == {"accounts"}

        await both.staging.dns.clear_servfail("home.test")
        done = await both.rehearse("HOME.test", "nas.test")
        assert done.exit_code == 0, done.output
        assert outcomes(done) == [["home.test", "rehearsed"], ["nas.test", "kept"]]
        assert "nothing was kept" in done.stdout
        assert orders(both.staging) == 3
        assert orders(both.ca) == 0
        assert "sign-me-up" not in both.ca.said(), "it was not even told of us"
        assert both.kept() == {"accounts"}


async def test_what_is_there_stays_as_it_is(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    due = due_bundle("cloud.test")
    await store.save("cloud.test", due)
    async with two(tmp_path) as both:
        done = await both.rehearse("cloud.test")
        assert done.exit_code == 0, done.output
        assert store.load("cloud.test") == due
        assert store.trouble("cloud.test") is None
        assert store.journal("cloud.test").read() is None
        assert both.kept() <= {"accounts", "certificates", "pem"}


async def test_a_name_is_proved_on_port_80_alone_for_nobody_answers_443(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        await both.staging.dns.clear("cloud.test")  # it is at 127.0.0.1 then, where nobody answers at our port
        done = await both.rehearse("cloud.test")
        assert outcomes(done) == [["cloud.test", "failed"]]
        assert orders(both.staging) == 1
        config = tmp_path / "config.toml"
        config.write_text(config.read_text().replace("[acme]", '[acme]\nchallenges = ["tls-alpn-01"]'))
        done = await both.rehearse("cloud.test")
        assert done.exit_code == 1
        assert "only a running server answers there: start it" in done.stderr
        assert orders(both.staging) == 1


async def test_a_name_that_is_none_and_a_port_that_is_taken_are_told_at_once(tmp_path: Path) -> None:
    async with two(tmp_path) as both:
        done = await both.rehearse("clud.test")
        assert done.exit_code == 1
        assert "there is no site clud.test; did you mean cloud.test?" in done.stderr
        async with (await trio.open_tcp_listeners(both.ca.http_port, host=own_address()))[0]:
            done = await both.rehearse("cloud.test")
        assert done.exit_code == 1
        assert f"{both.ca.http_port} is held by" in done.stderr
        assert "Traceback" not in done.output
        assert orders(both.staging) == 0
