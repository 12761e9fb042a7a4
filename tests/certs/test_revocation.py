"""Revoking and replacing, and new keys for accounts: the manager at a real HTTPS CA that does what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import attrs
import pytest
import trio

from tests.acme.support import PATIENCE
from tests.certs.making import acme_site, config, internal_site
from tests.certs.test_contexts import served_by
from tests.certs.world import snapshot
from tests.scripted_ca import ScriptedCA, problem, scripted_ca
from trioproxy.acme.client import AcmeClient
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.manager import Manager
from trioproxy.certs.store import Store
from trioproxy.certs.wishes import handlers
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import AccountId, Acme, Site
from trioproxy.errors import AcmeError, ControlError, StoreError
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper
from trioproxy.snapshot import Cell

NAME = "cloud.test"
SITES = (acme_site(NAME), internal_site("nas.test"))


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[ScriptedCA]:
    async with scripted_ca(tmp_path / "ca") as running:
        yield running


@attrs.frozen
class Live:
    """A manager, and what it works on."""

    manager: Manager
    cell: Cell
    store: Store
    said: list[str]

    def serial(self) -> int:
        """Of what the next handshake gets."""
        return served_by(self.cell.current.contexts.of(acme_site(NAME)), NAME)

    def stored(self) -> int:
        """Of what is kept."""
        bundle = self.store.load(NAME)
        assert bundle is not None
        return bundle.leaf.serial


def live(folder: Path, acme: Acme, *sites: Site) -> Live:
    store = Store(folder / "store")
    source = ContextSource(store, InternalCA(store))
    cell = Cell(snapshot(source, config(folder / "store", *sites, acme=acme)))
    reaper = Reaper()

    def client(settings: Acme) -> AcmeClient:
        return AcmeClient(settings, HttpClient(settings.ca_file, reaper), store.accounts)

    return Live(Manager(cell, ChallengeBoard(), store, source, client), cell, store, [])


@pytest.fixture
async def one(tmp_path: Path, ca: ScriptedCA) -> Live:
    """One with its first certificate."""
    made = live(tmp_path, Acme(directory=ca.directory, ca_file=ca.ca_file), *SITES)
    with trio.fail_after(PATIENCE):
        (outcome,) = await made.manager.renew([NAME], False, made.said.append)
    assert outcome.result == "renewed"
    return made


async def test_a_certificate_is_revoked_and_replaced_at_once(ca: ScriptedCA, one: Live) -> None:
    first = one.stored()
    outcome = await one.manager.revoke(NAME.upper(), "keyCompromise", one.said.append)
    assert outcome.result == "renewed"
    assert outcome.detail.startswith("the revoked certificate is replaced: ")
    assert ca.revoked == {first: 1}
    assert one.stored() == one.serial() != first
    assert [bool(order.replaces) for order in ca.orders] == [False, True]
    bundle = one.store.load(NAME)
    assert bundle is not None
    where = one.store.origin(NAME, bundle.leaf)
    assert where is not None
    assert where.revoked == ""
    assert where.origin.account_url == ca.members[0].url


async def test_what_is_not_replaced_yet_goes_on_being_served_and_stays_due(
    ca: ScriptedCA, one: Live, tmp_path: Path
) -> None:
    first = one.stored()
    ca.script["newOrder"] = [problem(503, "serverInternal", "we are busy")]
    outcome = await one.manager.revoke(NAME, "superseded", one.said.append)
    assert outcome.result == "failed"
    assert outcome.detail.startswith("it is revoked, and still served, for there is no other one yet: ")
    assert "we are busy" in outcome.detail
    assert ca.revoked == {first: 4}
    assert one.stored() == one.serial() == first
    (status,) = [status for status in one.manager.listing() if status.name == NAME]
    assert (status.state, status.why, status.needs_a_person) == ("failing", "it has been revoked (superseded)", True)
    assert status.renews is not None
    assert datetime.fromisoformat(status.renews) <= datetime.now(UTC)
    # Whoever starts anew knows it, and it is due without a wish.
    other = live(tmp_path, one.cell.current.config.acme, *SITES)
    (outcome,) = await other.manager.renew([NAME], False, other.said.append)
    assert outcome.result == "renewed"
    assert other.stored() != first


async def test_on_a_full_disk_what_is_revoked_is_not_forgotten(
    ca: ScriptedCA, one: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Store, "write", full)
        outcome = await one.manager.revoke(NAME, "superseded", one.said.append)
        assert outcome.result == "failed"
        assert len(ca.revoked) == 1
        (outcome,) = await one.manager.renew([NAME], False, one.said.append)
        assert (outcome.result, len(ca.orders)) == ("failed", 1), "no order whose key could not be kept"
        (status,) = [status for status in one.manager.listing() if status.name == NAME]
        assert (status.why, status.needs_a_person) == ("it has been revoked (superseded)", True)
    (outcome,) = await one.manager.renew([NAME], False, one.said.append)
    assert outcome.result == "renewed"
    (status,) = [status for status in one.manager.listing() if status.name == NAME]
    assert (status.state, status.needs_a_person) == ("good", False)


async def test_a_revocation_that_is_refused_changes_nothing(ca: ScriptedCA, one: Live) -> None:
    first = one.stored()
    ca.script["revokeCert"] = [problem(400, "badRevocationReason", "not for you")]
    with pytest.raises(AcmeError, match=f"not for you; to have another one all the same: `certs renew {NAME} --force`"):
        await one.manager.revoke(NAME, "superseded", one.said.append)
    assert one.stored() == first
    assert len(ca.orders) == 1
    (outcome,) = await one.manager.renew([NAME], False, one.said.append)
    assert outcome.result == "kept"


async def test_the_ca_that_issued_it_is_asked(ca: ScriptedCA, one: Live, tmp_path: Path) -> None:
    async with scripted_ca(tmp_path / "other") as first:
        issued_by = one.cell.current.config.acme
        acme = Acme(directory=first.directory, ca_file=first.ca_file, fallback=(issued_by,))
        other = live(tmp_path, acme, *SITES)
        old = other.stored()
        await other.manager.revoke(NAME, "superseded", other.said.append)
        assert ca.revoked == {old: 4}
        assert [order.replaces for order in first.orders] == [""], "the next one is ordered where the first is"
        assert first.revoked == {}

        gone = live(tmp_path, issued_by, *SITES)
        with pytest.raises(ControlError, match=r"does not name any more: add it to acme\.fallback"):
            await gone.manager.revoke(NAME, "superseded", gone.said.append)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nas.test", "has a certificate of the internal CA: `certs renew nas.test` replaces it"),
        ("clod.test", "there is no site clod.test; did you mean cloud.test?"),
    ],
)
async def test_what_cannot_be_revoked(one: Live, name: str, said: str) -> None:
    with pytest.raises(ControlError, match=said):
        await one.manager.revoke(name, "superseded", one.said.append)


async def test_the_account_gets_a_new_key_by_the_control_socket(ca: ScriptedCA, one: Live) -> None:
    account = AccountId(ca.directory)
    before = one.store.accounts.read(account)
    done = await handlers(one.manager)["certs.rollover"]({"directory": ""}, one.said.append)
    after = one.store.accounts.read(account)
    assert done == {"done": f"the account at {ca.base.removeprefix('https://')} has a new key"}
    assert before is not None
    assert after is not None
    assert (after.url, after.key_pem != before.key_pem) == (before.url, True)
    result = await handlers(one.manager)["certs.revoke"]({"name": NAME, "reason": "superseded"}, one.said.append)
    assert [outcome["result"] for outcome in result["outcomes"]] == ["renewed"]
    assert len(ca.members) == 1
