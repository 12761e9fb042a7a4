"""A storage folder that the server's user may not use, for real: the server is not root, and somebody changed modes."""

from __future__ import annotations

import os
import pwd
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509

from tests.certs.serving import NAME, configuration, eventually, port_80, stored
from tests.life.served import ROOT, Served, served
from tests.pebble import Pebble, needs_pebble, own_address, running_pebble
from tests.process.interpreters import USER, interpreter
from trioproxy.certs.bundle import Leaf

pytestmark = [
    needs_pebble,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else"),
]

SITE = f'"{NAME}" = {{ "/" = {{ redirect = "https://example.com/" }} }}\n[process]\nuser = "{USER}"\n'


@attrs.frozen
class Stage:
    """A server that is nobody, and its store."""

    service: Served
    ca: Pebble
    store: Path

    def folders(self) -> list[Path]:
        return [self.store, *(path for path in self.store.rglob("*") if path.is_dir() and not path.is_symlink())]

    def may_write(self, may: bool) -> None:
        """Whether its user may make files in any of its folders."""
        for path in self.folders():
            path.chmod(0o700 if may else 0o500)

    def belongs_to(self, user: str) -> None:
        """Whose all of it is: the mishap of an administrator with `chown -R`."""
        who = pwd.getpwnam(user)
        for path in [*self.folders(), *self.store.rglob("*")]:
            os.chown(path, who.pw_uid, who.pw_gid, follow_symlinks=False)

    async def settled(self) -> None:
        """Wait until all is written that a first certificate brings."""
        await eventually((self.store / "renewals" / f"{NAME}.json").exists)
        await eventually((self.store / "pem" / NAME).exists)
        await self.service.ask("certs.renew", names=[NAME], force=False)  # waits for the order to be crossed out
        await eventually(lambda: not any(self.store.rglob("*.new")))

    def orders(self) -> int:
        return self.ca.said().count("Added order")

    async def renew(self) -> dict[str, Any]:
        """Have it renewed by force; what came of it."""
        (outcome,) = (await self.service.ask("certs.renew", names=[NAME], force=True))["outcomes"]
        return dict(outcome)

    async def serial(self) -> int:
        """Of what a handshake gets."""
        stream = await self.service.visit()
        der = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number

    def stored(self) -> Leaf | None:
        return stored(self.service)


@pytest.fixture
async def stage(folder: Path) -> AsyncIterator[Stage]:
    """It has its first certificate, and has done all that comes with it."""
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{ROOT}:{packages}"}
    async with running_pebble(folder / "ca", http_port=port_80()) as ca:
        await ca.dns.set(NAME, own_address())
        text = configuration(folder, ca, SITE)
        async with served(folder, text, environ=environ, python=python) as service:
            made = Stage(service, ca, folder / "store")
            await made.settled()
            yield made


async def test_what_may_not_be_written_is_told_costs_no_order_and_is_got_over(stage: Stage) -> None:
    before = stage.stored()
    assert before is not None
    stage.may_write(False)
    outcome = await stage.renew()
    assert outcome["result"] == "failed"
    assert f"{stage.store}/" in outcome["detail"]
    assert "cannot be written: Permission denied" in outcome["detail"]
    assert stage.orders() == 1
    assert stage.stored() == before
    assert await stage.serial() == before.serial
    stage.may_write(True)
    assert (await stage.renew())["result"] == "renewed"
    assert stage.stored() != before
    now = stage.stored()
    assert now is not None
    assert await stage.serial() == now.serial


async def test_a_store_that_became_somebody_elses_is_told_and_served_from_memory(stage: Stage) -> None:
    before = stage.stored()
    assert before is not None
    stage.belongs_to("root")
    outcome = await stage.renew()
    assert outcome["result"] == "failed"
    assert "Permission denied" in outcome["detail"]
    assert stage.orders() == 1
    assert await stage.serial() == before.serial
    assert stage.stored() == before
    stage.belongs_to(USER)
    assert (await stage.renew())["result"] == "renewed"
    assert await stage.serial() != before.serial


async def test_a_failure_that_cannot_be_written_down_counts_all_the_same(stage: Stage) -> None:
    """The certificate is gone and nothing may be written: the ladder is climbed in memory, and the listing says why."""
    (stage.store / "certificates" / f"{NAME}.pem").unlink()
    stage.may_write(False)
    await stage.service.ask("reload", dry_run=False)
    await stage.service.heard("a restart will not know of this failure")
    (status,) = (await stage.service.ask("certs.list"))["certificates"]
    assert (status["state"], status["needs_a_person"]) == ("failing", True)
    assert "Permission denied" in status["error"]
    assert status["next_attempt"] is not None
    assert stage.orders() == 1
    stage.may_write(True)
    (outcome,) = (await stage.service.ask("certs.renew", names=[NAME], force=False))["outcomes"]
    assert outcome["result"] == "renewed"
    (status,) = (await stage.service.ask("certs.list"))["certificates"]
    assert (status["state"], status["needs_a_person"], status["error"]) == ("good", False, "")
