"""One name: what went wrong, what is kept of it, and what a person may wish. Time is Trio's jumping clock."""

from __future__ import annotations

import errno
import logging
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.certs.making import DAY, NOW, acme_site, bundle, due_bundle, key_pem, new_key
from tests.certs.test_contexts import weak
from tests.certs.test_files import break_at
from tests.certs.world import run_for, world
from trioproxy.acme.journal import OrderRecord
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.store import Store
from trioproxy.errors import AcmeError, ConnectionLost

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "cloud.example.com"
OTHER = "home.example.com"
MINUTE = 60.0
HOUR = 3600.0

# ---- the ladder ---------------------------------------------------------------------------------------


async def test_attempts_after_failures_climb_the_ladder(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    w.authority.errors[NAME] = [AcmeError("no such host")] * 7
    await run_for(24 * HOUR, w)
    assert w.authority.times(NAME) == [0, 1, 11, 41, 101, 281, 641, 1001]
    assert w.serial(NAME) == w.newest(NAME)
    assert w.store.trouble(NAME) is None


async def test_a_failure_is_told_in_words_with_the_next_attempt(
    tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.errors[NAME] = [AcmeError("the CA found no such host")]
    await run_for(10, w)
    at = (NOW + timedelta(seconds=62)).astimezone().strftime("%H:%M")
    wanted = f"{NAME}  the CA found no such host; next attempt at {at}; browsers warn until then"
    assert [(record.levelname, record.message) for record in caplog.records] == [("ERROR", wanted)]


@pytest.mark.parametrize(
    ("left", "level", "words"),
    [(10 * DAY, "WARNING", "the present one is valid to 1 Dec"), (-DAY, "ERROR", "its certificate has expired")],
)
async def test_what_is_served_meanwhile_is_told(
    left: timedelta,
    level: str,
    words: str,
    tmp_path: Path,
    autojump_clock: Jumping,
    caplog: pytest.LogCaptureFixture,
) -> None:
    w = world(tmp_path, acme_site(NAME))
    present = bundle(NAME, not_before=NOW - 80 * DAY, not_after=NOW + left)
    await w.store.save(NAME, present)
    w.authority.errors[NAME] = [AcmeError("no such host")]
    await run_for(10, w)
    assert [record.levelname for record in caplog.records] == [level]
    assert words in caplog.text
    assert w.serial(NAME) == present.leaf.serial


async def test_the_ca_is_heeded_when_it_asks_to_wait(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    w.authority.errors[NAME] = [AcmeError("too many orders", "limit", retry_after=2 * HOUR)]
    await run_for(24 * HOUR, w)
    assert w.authority.times(NAME) == [0, 120]


async def test_trouble_survives_a_restart(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    w.authority.errors[NAME] = [AcmeError("no such host")] * 5
    await run_for(42 * MINUTE, w)
    for _ in range(20):  # what a service manager does to a program that crashes
        w = w.restarted()
        await run_for(1 * MINUTE, w)
    assert w.authority.times(NAME) == [0, 1, 11, 41]
    await run_for(300 * MINUTE, w.restarted())
    assert w.authority.times(NAME) == [0, 1, 11, 41, 101, 281]


async def test_a_failure_that_cannot_be_written_down_counts_all_the_same(
    tmp_path: Path, autojump_clock: Jumping, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(tmp_path, acme_site(NAME))
    old = due_bundle(NAME)
    await w.store.save(NAME, old)
    w.authority.seconds[NAME] = 0
    w.authority.errors[NAME] = [AcmeError("no such host")] * 4
    async with w.store.lock(NAME):
        pass
    break_at("fsync", monkeypatch, errno.ENOSPC)
    await run_for(60 * MINUTE, w)
    monkeypatch.undo()
    assert w.authority.times(NAME) == [0, 1, 11, 41]
    assert "a restart will not know of this failure" in caplog.text
    assert "make room on that disk" in caplog.text


async def test_a_full_disk_keeps_the_old_pair_and_the_order_is_not_lost(
    tmp_path: Path, autojump_clock: Jumping, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = world(tmp_path, acme_site(NAME))
    old = due_bundle(NAME)
    await w.store.save(NAME, old)

    save = Store._save

    def fail_to_save(store: Store, name: str, made: Bundle) -> None:
        break_at("fsync", monkeypatch, errno.ENOSPC)
        try:
            save(store, name, made)
        finally:
            monkeypatch.undo()

    monkeypatch.setattr(Store, "_save", fail_to_save)
    await run_for(30, w)
    assert w.serial(NAME) == old.leaf.serial
    stored, record, trouble = w.store.load(NAME), w.store.journal(NAME).read(), w.store.trouble(NAME)
    assert stored == old
    assert record is not None
    assert record.key_pem == w.authority.issued[NAME][0].key_pem
    assert trouble is not None
    assert "No space left" in trouble.error


@pytest.mark.parametrize("error", [ConnectionLost("gone"), ValueError("a bug"), ExceptionGroup("x", [ValueError("y")])])
async def test_whatever_an_order_raises_ends_with_that_name(
    error: Exception, tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    w.authority.seconds[NAME] = 0
    w.authority.errors[NAME] = [error, error]
    await run_for(HOUR, w)
    assert w.authority.times(NAME) == [0, 1, 11]
    assert w.authority.times(OTHER) == [0]
    assert w.serial(NAME) == w.newest(NAME)
    assert ("a bug in trioproxy" in caplog.text) is not isinstance(error, ConnectionLost)


# ---- what the CA may send -----------------------------------------------------------------------------


async def test_a_certificate_that_is_due_from_the_start_is_served_but_not_chased(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    w.authority.issue = due_bundle
    await run_for(2 * HOUR, w)
    assert w.authority.times(NAME) == [0, 1, 11, 41, 101]
    assert w.serial(NAME) == w.newest(NAME)
    trouble = w.store.trouble(NAME)
    assert trouble is not None
    assert "is this machine's clock right?" in trouble.error


@pytest.mark.parametrize(
    ("issued", "words"),
    [
        (bundle(NAME, not_before=NOW - 90 * DAY, not_after=NOW - DAY), "has expired: is this machine's clock"),
        (bundle(OTHER), f"is for {OTHER}"),
    ],
)
async def test_what_is_of_no_use_is_not_stored(
    issued: Bundle, words: str, tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(tmp_path, acme_site(NAME))
    old = due_bundle(NAME)
    await w.store.save(NAME, old)
    w.authority.issue = lambda _: issued
    await run_for(10, w)
    assert words in caplog.text
    assert w.serial(NAME) == old.leaf.serial
    assert w.store.load(NAME) == old


async def test_a_mismatched_pair_from_the_ca_is_not_stored(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.issue = lambda name: attrs.evolve(bundle(name), key_pem=key_pem(new_key()))
    await run_for(10, w)
    assert w.store.load(NAME) is None
    trouble = w.store.trouble(NAME)
    assert trouble is not None
    assert "does not belong" in trouble.error


# ---- orders under way ---------------------------------------------------------------------------------


async def test_an_order_that_was_fulfilled_before_a_crash_is_not_gone_on_with(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    """It would bring the present certificate once more, and a forced renewal would seem to have worked."""
    w = world(tmp_path, acme_site(NAME))
    present = bundle(NAME)
    await w.store.save(NAME, present)
    await w.store.journal(NAME).intend("https://ca/dir", present.key_pem.strip())
    await w.store.journal(NAME).place("https://ca/order/1")
    seen = []

    def issue_and_look(name: str) -> Bundle:
        seen.append(w.store.journal(name).read())
        return bundle(name)

    w.authority.issue = issue_and_look
    await w.manager.renew([NAME], True, lambda _: None)
    assert seen == [None]


async def test_an_order_under_way_is_left_for_the_order_to_go_on_with(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, due_bundle(NAME))
    record = OrderRecord("https://ca/dir", "https://ca/order/1", key_pem(new_key()))
    await w.store.journal(NAME).intend(record.directory, record.key_pem)
    await w.store.journal(NAME).place(record.order_url)
    seen = []

    def issue_and_look(name: str) -> Bundle:
        seen.append(w.store.journal(name).read())
        return bundle(name)

    w.authority.issue = issue_and_look
    await run_for(10, w)
    assert seen == [record]
    assert w.store.journal(NAME).read() is None


# ---- another process ----------------------------------------------------------------------------------


async def test_what_another_process_brought_is_served_without_an_order(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, due_bundle(NAME))
    w = w.restarted()
    w.serial(NAME)
    brought = bundle(NAME)
    async with trio.open_nursery() as nursery:
        async with w.store.lock(NAME):
            nursery.start_soon(w.manager.run)
            await trio.sleep(5)
            await w.store.save(NAME, brought)
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert w.authority.orders == []
    assert w.serial(NAME) == brought.leaf.serial


async def test_a_forced_wish_is_granted_by_what_came_while_it_waited(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, bundle(NAME))
    brought = bundle(NAME)
    outcomes = []

    async def wish() -> None:
        outcomes.extend(await w.manager.renew([NAME], True, lambda _: None))

    async with trio.open_nursery() as nursery, w.store.lock(NAME):
        nursery.start_soon(wish)
        await trio.sleep(5)
        await w.store.save(NAME, brought)
    assert w.authority.orders == []
    assert [outcome.result for outcome in outcomes] == ["kept"]
    assert w.serial(NAME) == brought.leaf.serial


async def test_two_processes_do_not_chase_what_is_due_from_the_start(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    w.authority.issue = due_bundle
    await run_for(HOUR, w, w.restarted())
    assert w.authority.times(NAME) == [0, 1, 11, 41]


async def test_a_pair_that_tls_does_not_take_is_replaced(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, bundle(NAME))
    (tmp_path / "certificates" / f"{NAME}.pem").write_bytes(weak().pem)
    w.serial(NAME)
    await run_for(10, w)
    assert w.serial(NAME) == w.newest(NAME)


async def test_another_processs_failure_is_heeded(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    w.authority.errors[NAME] = [AcmeError("no such host")] * 2
    await run_for(2 * MINUTE, w, w.restarted())
    assert w.authority.times(NAME) == [0, 1]


async def test_progress_is_in_the_log_for_those_who_look_closely(
    tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await run_for(5, world(tmp_path, acme_site(NAME)))
    assert f"{NAME}  ordering a certificate" in caplog.messages
