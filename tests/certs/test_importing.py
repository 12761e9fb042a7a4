"""Taking a certificate into the store, and what a running server does then."""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.acme.support import PATIENCE
from tests.certs.making import DAY, NOW, acme_site, bundle
from tests.certs.world import world
from trioproxy.certs import importing
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.foreign import Candidate
from trioproxy.certs.importing import handlers, take_over
from trioproxy.certs.policy import Trouble
from trioproxy.certs.store import Store

NAME = "cloud.test"


def candidate(made: Bundle) -> Candidate:
    return Candidate(Path("x.pem"), made.leaf.names, made.leaf.not_before, made.leaf.not_after, made)


async def took(store: Store, made: Bundle) -> str:
    [row] = await take_over(store, {NAME: candidate(made)}, NOW)
    return f"{row.result}: {row.detail}"


async def test_what_went_wrong_before_is_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.note_trouble(NAME, Trouble(3, NOW, NOW + timedelta(hours=1), "no such host"))
    assert (await took(store, bundle(NAME))).startswith("imported: valid to ")
    assert store.trouble(NAME) is None


async def test_only_what_is_valid_for_longer_takes_the_place_of_what_is_there(tmp_path: Path) -> None:
    store, own = Store(tmp_path), bundle(NAME, not_after=NOW + 50 * DAY)
    await store.save(NAME, own)
    assert (await took(store, own)) == "kept: it is there already"
    assert (await took(store, bundle(NAME, not_after=NOW + 50 * DAY))).startswith("kept: trioproxy's own")
    assert store.load(NAME) == own
    longer = bundle(NAME, not_after=NOW + 51 * DAY)
    assert (await took(store, longer)).startswith("imported")
    assert store.load(NAME) == longer


async def test_a_name_that_is_being_renewed_is_not_waited_for_forever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "PATIENCE", 0.1)
    store = Store(tmp_path)
    async with store.lock(NAME):
        assert (await took(store, bundle(NAME))).startswith("failed: it is being renewed at this moment")
    assert store.load(NAME) is None


async def test_a_disk_that_is_full_costs_that_name_alone(tmp_path: Path) -> None:
    (tmp_path / "certificates").write_text("")
    assert "a file stands where a folder should be" in await took(Store(tmp_path), bundle(NAME))


async def test_what_came_while_a_job_waited_for_the_name_is_served_when_the_server_says_so(tmp_path: Path) -> None:
    w, made = world(tmp_path, acme_site(NAME)), bundle(NAME)
    look = handlers(w.manager)["certs.look"]
    w.serial(NAME)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            async with w.store.lock(NAME):
                nursery.start_soon(partial(w.manager.renew, [NAME], False, lambda _: None))
                await trio.testing.wait_all_tasks_blocked()
                await w.store.save(NAME, made)
            answer = await look({"names": [NAME]}, lambda _: None)
            assert w.serial(NAME) == made.leaf.serial
    assert answer == {"served": {NAME: "new handshakes already get it"}}
    assert w.authority.orders == []


async def test_a_server_with_another_storage_says_that_it_has_nothing(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME))
    answer = await handlers(w.manager)["certs.look"]({"names": [NAME, "else.test"]}, lambda _: None)
    assert all("another configuration or storage" in words for words in answer["served"].values())
    assert len(answer["served"]) == 2
