"""Limits that are kept before the CA has to say so. Time is Trio's jumping clock."""

from __future__ import annotations

import logging
import os
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio.testing

from tests.certs.making import NOW, acme_site, due_bundle
from tests.certs.world import World, run_for, world
from trioproxy.acme.journal import Origin
from trioproxy.certs.domains import Limit
from trioproxy.certs.known import Known
from trioproxy.certs.ledger import KNOWN, Ledger
from trioproxy.certs.records import Provenance
from trioproxy.certs.rounds import Rounds
from trioproxy.certs.store import Store
from trioproxy.config.model import LETSENCRYPT, AccountId, Acme
from trioproxy.errors import AcmeError

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "cloud.example.com"
OURS = AccountId(LETSENCRYPT)
HOUR = 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def most_within(moments: list[datetime], window: timedelta) -> int:
    return max(sum(start <= moment < start + window for moment in moments) for start in moments)


async def test_names_beyond_the_limit_are_paced_without_flooding(
    tmp_path: Path, autojump_clock: Jumping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    limits = attrs.evolve(KNOWN[LETSENCRYPT], orders=Limit(60, timedelta(hours=3)))
    monkeypatch.setattr("trioproxy.certs.renewal.Ledger", partial(Ledger, known={LETSENCRYPT: limits}))
    names = [f"site{number}.com" for number in range(200)]  # a fifth of a thousand at a fifth of the limit
    w = world(tmp_path, *map(acme_site, names))
    looks: list[str] = []
    plan = Rounds.plan

    async def look(rounds: Rounds, name: str, known: Known, *, force: bool, wished: bool) -> list[Acme]:
        looks.append(name)
        return await plan(rounds, name, known, force=force, wished=wished)

    monkeypatch.setattr(Rounds, "plan", look)
    await run_for(2.9 * HOUR, w)
    assert len(w.authority.orders) == 60
    waiting = [status for status in w.manager.listing() if status.waits_for]
    assert len(waiting) == 140
    assert not any(status.needs_a_person for status in waiting)
    await run_for(8 * HOUR, w.restarted())
    assert len(w.authority.issued) == 200
    assert most_within([when for _, when in w.authority.orders], timedelta(hours=3)) == 60
    assert len(looks) < 1000, "nobody is woken for a place that another one gets"
    assert sum("are used up" in message for message in caplog.messages) < 10
    assert not [record for record in caplog.records if record.levelno > logging.INFO], "who waits has not failed"


async def test_orders_of_an_account(tmp_path: Path, autojump_clock: Jumping) -> None:
    clock = Clock()
    ledger = Ledger(Store(tmp_path), clock)
    for _ in range(300):
        assert await ledger.pace(OURS, NAME, exempt=False) is None
        await ledger.order(OURS, NAME, enforce=True)
        clock.now += timedelta(seconds=1)
    again = Ledger(Store(tmp_path), clock)  # as after a restart
    waits = [await again.pace(OURS, f"n{number}.example.com", exempt=False) for number in range(400)]
    untils = [wait.until for wait in waits if wait]
    assert untils[:2] == [NOW + timedelta(hours=3), NOW + timedelta(hours=3, seconds=1)]
    assert untils[300] == NOW + timedelta(hours=6), "each has a place of its own"
    assert most_within(untils, timedelta(hours=3)) == 300
    assert await again.pace(OURS, NAME, exempt=True) is None
    with pytest.raises(AcmeError) as caught:
        await again.order(OURS, NAME, enforce=True)
    assert caught.value.rate_limited
    assert caught.value.retry_after == 3 * HOUR - 300
    await again.order(OURS, NAME, enforce=False)
    other = AccountId("https://other.test/dir")
    assert await again.pace(other, NAME, exempt=False) is None
    await again.order(other, NAME, enforce=True)
    clock.now -= timedelta(days=30)  # the clock was wrong
    assert await Ledger(Store(tmp_path), clock).pace(OURS, NAME, exempt=False) is None


async def test_a_place_is_promised_to_one_name_only(tmp_path: Path) -> None:
    clock, names = Clock(), [f"n{number}.test" for number in range(6)]
    limits = attrs.evolve(KNOWN[LETSENCRYPT], orders=Limit(3, timedelta(hours=3)))
    ledger = Ledger(Store(tmp_path), clock, {LETSENCRYPT: limits})

    async def until(name: str) -> datetime | None:
        wait = await ledger.pace(OURS, name, exempt=False)
        return None if wait is None else wait.until

    later = NOW + timedelta(hours=3)
    assert [await until(name) for name in names] == [None] * 3 + [later] * 3
    assert [await until(name) for name in names] == [None] * 3 + [later] * 3, "whoever asks again keeps what it has"
    clock.now += timedelta(minutes=1)
    await ledger.order(OURS, names[0], enforce=True)
    assert await until("late.test") == later + timedelta(hours=3), "after those who wait"
    clock.now += timedelta(minutes=9)  # and of the other two nothing has been heard
    assert [await until(name) for name in ("new.test", "newer.test", "newest.test")][:2] == [None, None]


async def test_an_order_that_was_written_first_with_a_later_moment_is_not_forgotten(tmp_path: Path) -> None:
    early, late = Clock(), Clock()
    late.now += timedelta(seconds=1)
    limits = {LETSENCRYPT: attrs.evolve(KNOWN[LETSENCRYPT], orders=Limit(2, timedelta(hours=3)))}
    await Ledger(Store(tmp_path), late, limits).order(OURS, NAME, enforce=True)
    await Ledger(Store(tmp_path), early, limits).order(OURS, NAME, enforce=True)
    wait = await Ledger(Store(tmp_path), late, limits).pace(OURS, NAME, exempt=False)
    assert wait is not None
    assert wait.until == NOW + timedelta(hours=3)


@pytest.mark.parametrize(("kind", "within"), [("issued", timedelta(days=7)), ("failed", timedelta(hours=1))])
async def test_certificates_and_failures_of_a_name(kind: str, within: timedelta, tmp_path: Path) -> None:
    clock = Clock()
    for _ in range(5):
        ledger = Ledger(Store(tmp_path), clock)
        assert await ledger.pace(OURS, NAME, exempt=False) is None
        await getattr(ledger, kind)(OURS, NAME)
        clock.now += timedelta(minutes=1)
    wait = await ledger.pace(OURS, NAME, exempt=False)
    assert wait is not None
    assert wait.until == NOW + within
    assert await ledger.pace(OURS, "other.example.com", exempt=False) is None
    assert ((await ledger.pace(OURS, NAME, exempt=True)) is None) is (kind == "issued")
    clock.now = wait.until
    assert await ledger.pace(OURS, NAME, exempt=False) is None


async def test_the_ledger_outranks_the_ladder_and_a_wish_but_not_force(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    ledger = Ledger(w.store, w.clock)
    for _ in range(5):
        await ledger.failed(OURS, NAME)
    await run_for(30, w)
    (status,) = w.manager.listing()
    assert (status.state, status.waits_for) == (
        "waiting",
        "the CA's limit of failed validations of one name is reached",
    )
    assert not status.needs_a_person
    (outcome,) = await w.manager.renew([NAME], False, lambda _: None)
    assert outcome.result == "waiting"
    await run_for(HOUR, w.restarted())
    assert w.authority.times(NAME) == [60]
    (forced,) = await w.manager.renew([NAME], True, lambda _: None)
    assert forced.result == "renewed"


async def test_failed_validations_are_counted(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.errors[NAME] = [AcmeError("no such host", "dns")] * 9
    for _ in range(9):
        await w.manager.renew([NAME], False, lambda _: None)
    assert len(w.authority.orders) == 5


async def test_a_renewal_that_says_what_it_replaces_is_exempt(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    old = due_bundle(NAME)
    await w.store.save(NAME, old)
    await w.store.note_origin(NAME, Provenance(old.leaf.serial, Origin(OURS, "https://ca/1", "id")))
    ledger = Ledger(w.store, w.clock)
    for _ in range(300):
        await ledger.order(OURS, NAME, enforce=True)
    for _ in range(5):
        await ledger.issued(OURS, NAME)
    await run_for(30, w)
    assert w.serial(NAME) == w.newest(NAME)


async def test_a_full_ledger_sends_to_the_fallback_at_once(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme=Acme(fallback=(Acme(directory="https://second.test/dir"),)))
    ledger = Ledger(w.store, w.clock)
    for _ in range(5):
        await ledger.issued(OURS, NAME)
    await run_for(30, w)
    assert w.authority.directories == ["https://second.test/dir"]


@pytest.mark.parametrize("garbage", ["", "{", "[]", '{"orders": ["x"]}', '{"orders": [1e300]}', "null"])
async def test_garbage_counts_for_nothing(garbage: str, tmp_path: Path, autojump_clock: Jumping) -> None:
    w: World = world(tmp_path, acme_site(NAME))
    ledger = Ledger(w.store, w.clock)
    await ledger.order(OURS, NAME, enforce=True)
    await ledger.failed(OURS, NAME)
    for folder in ("accounts", "counts"):
        for path in (tmp_path / folder).iterdir():
            path.write_text(garbage)
    await run_for(30, w)
    assert w.serial(NAME) == w.newest(NAME)
