"""Whom a certificate is asked of: fallbacks, rehearsals, ways of proving a name. Time is Trio's jumping clock."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
import trio.testing

from tests.certs.making import acme_site, config, due_bundle, internal_site
from tests.certs.world import World, run_for, world
from trioproxy.acme.order import OrderFailed
from trioproxy.certs.wishes import handlers
from trioproxy.config.model import LETSENCRYPT, Acme
from trioproxy.errors import AcmeError, AcmeFailure

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "cloud.example.com"
FIRST, SECOND = "https://first.test/dir", "https://second.test/dir"
STAGING = "https://staging.test/dir"
HOUR = 3600.0
TWO = Acme(directory=FIRST, challenges=("http-01",), fallback=(Acme(directory=SECOND),))
STAGED = Acme(directory=FIRST, staging=STAGING)


def failing(kind: AcmeFailure, retry_after: float | None = None) -> Callable[[], Exception]:
    return lambda: AcmeError(f"it is {kind}", kind, retry_after=retry_after)


def asked(w: World) -> list[tuple[float, str]]:
    """The minute of each order, and where it was."""
    hosts = (directory.partition("://")[2].partition(".")[0] for directory in w.authority.directories)
    return list(zip(w.authority.times(NAME), hosts, strict=True))


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def quick(folder: Path, acme: Acme) -> World:
    w = world(folder, acme_site(NAME), acme=acme)
    w.authority.seconds[NAME] = 0
    return w


# ---- fallbacks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["limit", "unreachable", "account", "caa", "refused", "nonsense"])
async def test_what_is_the_cas_own_has_the_next_one_asked_at_once(
    kind: AcmeFailure, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, TWO)
    w.authority.broken[FIRST] = failing(kind)
    await run_for(10, w)
    assert asked(w) == [(0, "first"), (0, "second")]
    assert w.serial(NAME) == w.newest(NAME)
    bundle = w.store.load(NAME)
    assert bundle is not None
    where = w.store.origin(NAME, bundle.leaf)
    assert where is not None
    assert where.origin.account.directory == SECOND


@pytest.mark.parametrize("kind", ["validation", "dns"])
async def test_what_every_ca_would_see_waits_for_the_ladder_and_then_the_next_one_is_asked(
    kind: AcmeFailure, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, TWO)
    w.authority.broken = {FIRST: failing(kind), SECOND: failing(kind)}
    await run_for(12 * 60, w)
    w = w.restarted()
    w.authority.broken.pop(SECOND)
    await run_for(HOUR, w)
    assert asked(w) == [(0, "first"), (1, "second"), (11, "first"), (41, "second")]
    assert w.serial(NAME) == w.newest(NAME)


async def test_each_ca_has_a_backoff_of_its_own_that_survives_restarts(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, TWO)
    w.authority.broken = {FIRST: failing("limit", 2 * HOUR), SECOND: failing("unreachable")}
    await run_for(30, w)
    for _ in range(3):
        w = w.restarted()
        await run_for(30 * 60, w)
    await run_for(45 * 60, w.restarted())
    firsts = [minute for minute, where in asked(w) if where == "first"]
    assert firsts == [0, 120], "the first one is left alone for as long as it asked for"
    assert [minute for minute, where in asked(w) if where == "second"][:4] == [0, 1, 11, 41]


@pytest.mark.parametrize("kind", ["limit", "account"])
async def test_whoever_names_another_ca_after_a_failure_need_not_wait(
    kind: AcmeFailure, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, Acme(directory=FIRST))
    w.authority.broken = {FIRST: failing(kind, 72 * HOUR), SECOND: failing("unreachable")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(HOUR)
        w.reload(config(tmp_path, acme_site(NAME), acme=Acme(directory=SECOND)))
        await trio.sleep(30)
        w.authority.broken.pop(SECOND)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert asked(w) == [(0, "first"), (60, "second"), (61, "second")], "its own failures have their own ladder"
    assert w.serial(NAME) == w.newest(NAME)


@pytest.mark.parametrize(("kind", "minutes"), [("account", [0, 1, 11, 20]), ("unreachable", [0, 1, 11])])
async def test_what_an_account_was_refused_for_may_be_mended_by_a_reload(
    kind: AcmeFailure, minutes: list[float], tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, Acme(directory=FIRST))
    w.authority.broken = {FIRST: failing(kind)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1200)
        w.reload(config(tmp_path, acme_site(NAME), acme=Acme(directory=FIRST, email="right@example.com")))
        await trio.sleep(300)
        nursery.cancel_scope.cancel()
    assert [minute for minute, _ in asked(w)] == minutes


@pytest.mark.parametrize("kind", ["validation", "dns"])
async def test_another_ca_would_see_the_same_so_the_ladder_stays(
    kind: AcmeFailure, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, Acme(directory=FIRST))
    w.authority.broken = {FIRST: failing(kind)}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(120)
        w.reload(config(tmp_path, acme_site(NAME), acme=Acme(directory=SECOND)))
        await trio.sleep(120)
        nursery.cancel_scope.cancel()
    assert asked(w) == [(0, "first"), (1, "first")]


async def test_what_each_ca_said_is_told(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, TWO)
    w.authority.broken = {FIRST: failing("account"), SECOND: failing("unreachable")}
    await run_for(10, w)
    (status,) = w.manager.listing()
    assert status.challenge == ""
    assert status.error == "first.test: it is account; second.test: it is unreachable"
    assert status.needs_a_person


async def test_attempts_are_counted_by_what_came_of_them(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, TWO)
    w.authority.broken = {FIRST: failing("account"), SECOND: failing("unreachable")}
    await run_for(10, w)
    assert w.manager.attempts == {(NAME, "account"): 1, (NAME, "unreachable"): 1}
    w.authority.broken.pop(SECOND)
    await w.manager.renew([NAME], False, lambda _: None)
    assert w.manager.attempts == {(NAME, "account"): 2, (NAME, "unreachable"): 1, (NAME, "issued"): 1}


async def test_an_order_that_is_under_way_is_gone_on_with_first(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, TWO)
    await w.store.journal(NAME).intend(SECOND, b"a key")
    await w.store.journal(NAME).place("https://second.test/order/1")
    await run_for(10, w)
    assert asked(w) == [(0, "second")]


async def test_only_the_ca_that_issued_is_told_what_is_replaced(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, TWO)
    w.authority.broken[FIRST] = failing("unreachable")
    await run_for(10, w)
    (outcome,) = await w.manager.renew([NAME], True, lambda _: None)
    assert outcome.result == "renewed"
    first_time, second_time = w.authority.replaced[:2], w.authority.replaced[2:]
    assert first_time == [None, None]
    assert [origin and origin.account.directory for origin in second_time] == [None, SECOND]


@pytest.mark.parametrize(("kind", "orders"), [("validation", 2), ("dns", 1), ("caa", 1)])
async def test_an_answer_that_is_not_found_is_shown_in_another_way_at_once(
    kind: AcmeFailure, orders: int, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, Acme(directory=FIRST, challenges=("http-01", "tls-alpn-01")))
    w.authority.errors[NAME] = [OrderFailed(NAME, AcmeError("not found", kind), "http-01")]
    await run_for(10, w)
    assert asked(w) == [(0, "first")] * orders
    (status,) = w.manager.listing()
    assert (status.state, status.challenge) == (("good", "tls-alpn-01") if orders == 2 else ("failing", ""))


# ---- rehearsals ---------------------------------------------------------------------------------------


async def test_after_a_failed_validation_it_is_rehearsed_until_that_works(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, STAGED)
    w.authority.broken = {FIRST: failing("validation"), STAGING: failing("validation")}
    await run_for(2 * 60, w)
    w = w.restarted()
    await run_for(10 * 60, w)
    assert asked(w) == [(0, "first"), (1, "staging"), (11, "staging")]
    w.authority.broken.clear()
    await run_for(HOUR, w)
    assert asked(w)[3:] == [(41, "staging"), (41, "first")]
    assert w.serial(NAME) == w.newest(NAME)
    bundle = w.store.load(NAME)
    assert bundle is not None
    assert bundle.leaf.serial == w.newest(NAME)


@pytest.mark.parametrize("kind", ["limit", "unreachable"])
async def test_other_failures_are_not_rehearsed(kind: AcmeFailure, tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, STAGED)
    w.authority.broken = {FIRST: failing(kind)}
    await run_for(2 * 60, w)
    assert {where for _, where in asked(w)} == {"first"}


@pytest.mark.parametrize("kind", ["limit", "unreachable", "account"])
async def test_a_rehearsal_that_could_not_take_place_keeps_nobody(
    kind: AcmeFailure, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = quick(tmp_path, STAGED)
    w.authority.errors[NAME] = [failing("validation")()]
    w.authority.broken = {STAGING: failing(kind)}
    await run_for(2 * 60, w)
    assert asked(w) == [(0, "first"), (1, "staging"), (1, "first")]
    assert w.serial(NAME) == w.newest(NAME)


async def test_a_dry_run_keeps_nothing(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = quick(tmp_path, STAGED)
    old = due_bundle(NAME)
    await w.store.save(NAME, old)
    w.serial(NAME)
    before = files_in(tmp_path)
    lines: list[str] = []
    result = await handlers(w.manager)["certs.rehearse"]({"names": []}, lines.append)
    assert [outcome["result"] for outcome in json.loads(json.dumps(result))["outcomes"]] == ["rehearsed"]
    assert f"{NAME}: rehearsing at staging.test" in lines
    assert f"{NAME}: ordering a certificate" in lines
    assert asked(w) == [(0, "staging")]
    assert files_in(tmp_path) == before
    assert w.store.load(NAME) == old
    assert w.serial(NAME) == old.leaf.serial
    w.authority.broken = {STAGING: failing("validation")}
    (outcome,) = await w.manager.rehearse([NAME], lines.append)
    assert (outcome.result, outcome.detail) == ("failed", "the rehearsal failed: it is validation")
    assert w.store.trouble(NAME) is None


async def test_a_dry_run_without_a_staging_says_so(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), internal_site("nas.test"), acme=attrs.evolve(TWO, directory=LETSENCRYPT))
    outcomes = await w.manager.rehearse([NAME, "nas.test"], lambda _: None)
    assert [outcome.result for outcome in outcomes] == ["failed", "kept"]
    assert "no staging" in outcomes[0].detail
    assert w.authority.orders == []
