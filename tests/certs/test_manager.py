"""What is done when. Time is Trio's jumping clock, the authority a fake."""

from __future__ import annotations

import itertools
import logging
import os
from datetime import datetime, timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.certs.making import DAY, NOW, acme_site, bundle, config, due_bundle, files_site, internal_site
from tests.certs.test_contexts import write_files
from tests.certs.world import run_for, world
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.issuing import BACKDATED, LEAF_LIFETIME
from trioproxy.certs.manager import AT_ONCE
from trioproxy.certs.policy import dice_of, renew_at
from trioproxy.certs.store import Store
from trioproxy.config.model import HostPort, Passthrough
from trioproxy.errors import AcmeError

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "cloud.example.com"
OTHER = "home.example.com"
UNSPREAD = 65521
"""A serial number whose renewal is at the end of the spread: exactly a third of the lifetime before the end."""

MINUTE = 60.0
HOUR = 3600.0
DAYS = 86400.0


def seconds(moment: datetime) -> float:
    """From the beginning of the test to `moment`."""
    return (moment - NOW).total_seconds()


# ---- at the start -------------------------------------------------------------------------------------


async def test_a_site_without_a_certificate_gets_one_at_once(
    tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    w = world(tmp_path, acme_site(NAME))
    w.authority.issue = lambda name: bundle(name, not_before=NOW, not_after=NOW + 90 * DAY, serial=UNSPREAD)
    w.authority.terms = "https://letsencrypt.org/terms.pdf"
    stand_in = w.serial(NAME)
    assert w.cell.current.awaiting == {NAME}
    await run_for(5, w)
    assert w.authority.times(NAME) == [0.0]
    assert w.serial(NAME) == w.newest(NAME) != stand_in
    assert w.cell.current.awaiting == frozenset()
    stored = w.store.load(NAME)
    assert stored is not None
    assert stored.leaf.serial == w.newest(NAME)
    assert w.store.journal(NAME).read() is None
    until, renews = ((NOW + timedelta(days=days)).astimezone() for days in (90, 60))
    assert caplog.messages == [
        f"{NAME}  temporary certificate (browsers warn) while I ask Let's Encrypt;"
        " terms: https://letsencrypt.org/terms.pdf",
        f"{NAME}  valid to {until.day} {until:%b}, renews about {renews.day} {renews:%b};"
        " new handshakes already get it",
    ]


async def test_beside_a_catch_all_the_log_says_who_serves_meanwhile(
    tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    everything = Passthrough("*", (HostPort("127.0.0.1", 1443),), "all", HostPort("127.0.0.1", 1080))
    await run_for(5, world(tmp_path, acme_site(NAME), passthrough=(everything,)))
    assert caplog.messages[0] == f'{NAME}  stays with "*" while I ask Let\'s Encrypt'


async def test_a_good_certificate_is_left_alone_until_its_time_and_renewed_then(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME))
    first = bundle(NAME)
    await w.store.save(NAME, first)
    due = renew_at(first.leaf.not_before, first.leaf.not_after, dice_of(first.leaf.serial))
    await run_for(seconds(due) - 1, w)
    assert w.authority.orders == []
    await run_for(2, w)
    assert w.authority.times(NAME) == [round(seconds(due) / 60, 1)]


async def test_renewals_go_on(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await run_for(365 * DAYS, w)
    times = [minutes / (24 * 60) for minutes in w.authority.times(NAME)]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(gaps) >= 5
    assert all(90 * 2 / 3 - 90 * 0.02 <= gap <= 60.01 for gap in gaps)
    assert w.serial(NAME) == w.newest(NAME)


async def test_a_corrupt_certificate_is_replaced_and_others_are_served_as_ever(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    good = bundle(OTHER)
    for name, made in ((NAME, bundle(NAME)), (OTHER, good)):
        await w.store.save(name, made)
    (tmp_path / "certificates" / f"{NAME}.pem").write_bytes(b"")
    w = w.restarted()
    assert w.cell.current.awaiting == frozenset()  # the listing at the start opens no file
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1)
        assert w.cell.current.awaiting == {NAME}
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert w.authority.times(NAME) == [0.0]
    assert w.authority.times(OTHER) == []
    assert (w.serial(NAME), w.serial(OTHER)) == (w.newest(NAME), good.leaf.serial)
    assert w.cell.current.awaiting == frozenset()


async def test_users_files_are_read_at_the_start(
    tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_files(tmp_path, bundle("files.example.com"))
    files.key.unlink()
    w = world(tmp_path / "store", files_site("files.example.com", files))
    await run_for(5, w)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "x.key cannot be read" in caplog.text
    await run_for(5, w)
    w.serial("files.example.com")
    assert len(caplog.records) == 1


async def test_the_internal_ca_is_made_before_anybody_waits_for_it(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, internal_site("x.internal"))
    await run_for(1, w)
    assert w.store.internal_ca() is not None
    assert w.source.served == {}


async def test_litter_of_a_crash_is_swept(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, bundle(NAME))
    litter = tmp_path / "certificates" / ".0123.new"
    litter.touch()
    os.utime(litter, (0, 0))
    await run_for(1, w)
    assert not litter.exists()


# ---- several names ------------------------------------------------------------------------------------


async def test_a_few_at_a_time(tmp_path: Path, autojump_clock: Jumping) -> None:
    names = [f"site{n}.example.com" for n in range(3 * AT_ONCE)]
    w = world(tmp_path, *map(acme_site, names))
    await run_for(MINUTE, w)
    assert w.authority.most == AT_ONCE
    assert sorted(w.authority.issued) == sorted(names)


async def test_a_failing_name_and_a_slow_one_delay_no_other(tmp_path: Path, autojump_clock: Jumping) -> None:
    names = [f"site{n}.example.com" for n in range(20)]
    w = world(tmp_path, acme_site("bad.example.com"), acme_site("slow.example.com"), *map(acme_site, names))
    w.authority.errors["bad.example.com"] = [AcmeError("no such host")] * 100
    w.authority.seconds["slow.example.com"] = 299
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(MINUTE)
        assert sorted(w.authority.issued) == sorted(names)
        await trio.sleep(HOUR)
        nursery.cancel_scope.cancel()
    assert [w.serial(name) for name in names] == [w.newest(name) for name in names]
    assert len(w.authority.issued["slow.example.com"]) == 1
    assert len(w.authority.times("bad.example.com")) == 4


async def test_the_longest_overdue_comes_first(tmp_path: Path, autojump_clock: Jumping) -> None:
    names = [f"site{n}.example.com" for n in range(3 * AT_ONCE)]
    w = world(tmp_path, *map(acme_site, names))
    for number, name in enumerate(names):
        left = 2 * timedelta(days=len(names) - number)
        await w.store.save(name, bundle(name, not_before=NOW - 90 * DAY + left, not_after=NOW + left))
    await run_for(MINUTE, w.restarted())
    ordered = [name for name, _ in w.authority.orders]
    for start in range(0, len(names), AT_ONCE):  # those that begin together do so in any order
        assert set(ordered[start : start + AT_ONCE]) == set(names[::-1][start : start + AT_ONCE])


async def test_two_managers_on_one_store_order_once_and_both_serve_it(tmp_path: Path, autojump_clock: Jumping) -> None:
    one = world(tmp_path, acme_site(NAME))
    two = one.restarted()
    one.serial(NAME), two.serial(NAME)
    await run_for(MINUTE, one, two)
    assert len(one.authority.orders) == 1
    assert one.serial(NAME) == two.serial(NAME) == one.newest(NAME)
    assert two.cell.current.awaiting == frozenset()


# ---- reloads and clocks -------------------------------------------------------------------------------


async def test_a_reload_is_heeded_at_once(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(30 * MINUTE)
        w.reload(config(tmp_path, acme_site(NAME), acme_site(OTHER)))
        await trio.sleep(5)
        assert w.serial(OTHER) == w.newest(OTHER)
        assert [status.name for status in w.manager.listing()] == [NAME, OTHER]
        w.reload(config(tmp_path, acme_site(OTHER)))
        await trio.sleep(5)
        assert list(w.source.served) == [OTHER]
        assert [outcome.name for outcome in await w.manager.renew([], True, lambda _: None)] == [OTHER]
        await trio.sleep(200 * DAYS)
        nursery.cancel_scope.cancel()
    assert len(w.authority.times(NAME)) == 1  # it is no longer configured
    assert len(w.authority.times(OTHER)) == 5


async def test_what_another_process_brought_is_served_after_a_reload(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, bundle(NAME))
    w.serial(NAME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(5)
        await w.store.save(NAME, brought := bundle(NAME))
        w.manager.wake()
        await trio.sleep(5)
        assert w.serial(NAME) == brought.leaf.serial
        nursery.cancel_scope.cancel()
    assert w.authority.orders == []


async def test_a_site_that_is_gone_when_its_certificate_comes(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1)
        w.reload(config(tmp_path, acme_site(OTHER)))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert w.serial(OTHER) == w.newest(OTHER)
    assert w.store.load(NAME) is not None  # paid for, and there should the site come back


async def test_a_site_that_turned_to_the_internal_ca_keeps_that(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1)
        w.reload(config(tmp_path, internal_site(NAME)))
        internal = w.serial(NAME)
        await trio.sleep(5)
        assert w.newest(NAME) != w.serial(NAME) == internal
        await trio.sleep(6 * DAYS)
        assert w.serial(NAME) not in (internal, w.newest(NAME))  # and it is renewed like any other
        nursery.cancel_scope.cancel()


async def test_a_wall_clock_that_jumps_forward_is_noticed_within_the_hour(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, bundle(NAME))
    w = w.restarted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(5)
        w.clock.jump(70 * DAY)  # the machine slept
        await trio.sleep(HOUR + 5)
        assert len(w.authority.orders) == 1
        await trio.sleep(2 * DAYS)
        assert len(w.authority.orders) == 1
        nursery.cancel_scope.cancel()
    assert w.serial(NAME) == w.newest(NAME)


async def test_a_wall_clock_that_was_ahead_makes_no_name_wait_for_it(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.clock.jump(400 * DAY)
    w.authority.errors[NAME] = [AcmeError("the directory's certificate has expired")] * 5
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(2 * HOUR)
        assert len(w.authority.orders) == 5
        w.clock.jump(-400 * DAY)
        await trio.sleep(HOUR + 5)
        nursery.cancel_scope.cancel()
    assert w.serial(NAME) == w.newest(NAME)


# ---- the internal CA's --------------------------------------------------------------------------------


async def test_internal_certificates_and_stand_ins_are_renewed_before_they_expire(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, internal_site("x.internal"), acme_site(NAME), internal_site("unused.internal"))
    w.authority.errors[NAME] = [AcmeError("no such host")] * 1000
    first = {name: w.serial(name) for name in ("x.internal", NAME)}
    lifetime = LEAF_LIFETIME + BACKDATED
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep((lifetime / 2 - BACKDATED - lifetime * 0.02).total_seconds() - 1)
        assert {name: w.serial(name) for name in first} == first
        await trio.sleep((lifetime * 0.02).total_seconds() + 2)
        second = {name: w.serial(name) for name in first}
        assert all(second[name] != first[name] for name in first)
        await trio.sleep(30 * DAYS)
        assert all(w.serial(name) != second[name] for name in first)
        assert all(w.source.served[name].leaf.not_after > w.clock() + timedelta(days=3) for name in first)
        nursery.cancel_scope.cancel()
    assert "unused.internal" not in w.source.served  # nobody asked for it, so nothing was made


async def test_what_signs_them_is_renewed_without_keeping_connections_waiting_for_a_disk(
    tmp_path: Path, autojump_clock: Jumping, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(tmp_path, internal_site("x.internal"))
    aside, saved = [False], []
    save, prepare = Store.save_internal_intermediate, w.source.prepare

    def watched(store: Store, made: Bundle) -> None:
        saved.append(aside[0])
        save(store, made)

    def prepared() -> None:
        aside[0] = True  # the manager calls it in a thread
        prepare()
        aside[0] = False

    monkeypatch.setattr(Store, "save_internal_intermediate", watched)
    monkeypatch.setattr(w.source, "prepare", prepared)
    w.serial("x.internal")
    await run_for(200 * DAYS, w)
    assert saved == [False, True, True, True]  # only a client that calls before all is ready waits for the first
    below = w.store.internal_intermediate()
    assert below is not None
    assert below.leaf.not_after - w.source.served["x.internal"].leaf.not_after > timedelta(days=20)


# ---- endings ------------------------------------------------------------------------------------------


async def test_a_cancelled_order_ends_at_once_and_is_begun_again(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 100
    before = trio.current_time()
    await run_for(50, w)
    assert trio.current_time() == before + 50
    assert w.store.trouble(NAME) is None
    w = w.restarted()
    await run_for(110, w)
    assert w.serial(NAME) == w.newest(NAME)


async def test_it_can_be_run_again_after_it_ended(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 100
    await run_for(50, w)
    await run_for(110, w)
    assert w.serial(NAME) == w.newest(NAME)


async def test_an_aliased_site_has_its_own_certificate(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), attrs.evolve(acme_site("www.example.com"), alias_of=NAME))
    await run_for(MINUTE, w)
    assert sorted(name for name, _ in w.authority.orders) == [NAME, "www.example.com"]


async def test_a_due_certificate_is_served_until_the_next_is_there(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    due = due_bundle(NAME)
    await w.store.save(NAME, due)
    w = w.restarted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1)
        assert w.authority.times(NAME) == [0.0]
        assert w.serial(NAME) == due.leaf.serial
        await trio.sleep(5)
        assert w.serial(NAME) == w.newest(NAME)
        nursery.cancel_scope.cancel()
