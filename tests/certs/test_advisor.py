"""When CAs would like certificates to be renewed: asked for, kept, gone by, and not gone by. Time is Trio's clock."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import trio
import trio.testing
from cryptography import x509

from tests.certs.making import DAY, NOW, acme_site, bundle
from tests.certs.world import World, run_for, world
from trioproxy.acme.ari import Advice, Window
from trioproxy.acme.journal import Origin
from trioproxy.certs.policy import emergency_at, renew_when
from trioproxy.certs.records import Provenance, Suggestion
from trioproxy.config.model import AccountId, Acme
from trioproxy.errors import AcmeError

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "cloud.example.com"
OTHER = "home.example.com"
HOUR = 3600.0
DAYS = 86400.0


async def have(w: World, name: str = NAME, directory: str = Acme().directory) -> None:
    """Give a name a certificate that has 89 of its 90 days left, and say where it came from."""
    made = bundle(name)
    await w.store.save(name, made)
    await w.store.note_origin(name, Provenance(made.leaf.serial, Origin(AccountId(directory), "https://ca/1", "id")))


def between(start: timedelta, end: timedelta, ask_again: float = 21600.0) -> Callable[[x509.Certificate], Advice]:
    """What a CA says whose window lies there, from now on."""
    return lambda _: Advice(Window(NOW + start, NOW + end), ask_again, "https://ca.test/why")


def days(w: World, name: str = NAME) -> list[float]:
    """From the beginning to each order."""
    return [round((when - NOW) / DAY, 1) for ordered, when in w.authority.orders if ordered == name]


def shown(w: World) -> tuple[str, str, datetime]:
    (status,) = w.manager.listing()
    assert status.renews is not None
    return status.rule, status.why, datetime.fromisoformat(status.renews)


async def test_the_cas_moment_is_gone_by_and_shown(
    tmp_path: Path, autojump_clock: Jumping, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    w.authority.suggest = between(10 * DAY, 12 * DAY)
    await run_for(5, w)
    assert shown(w) == ("ARI", "ARI: its CA suggests it", NOW + 11 * DAY)
    assert "its CA asks for it to be renewed on 2 Dec, see https://ca.test/why" in caplog.text
    await run_for(11.5 * DAYS, w)
    assert days(w)[0] == 11.0
    assert w.authority.replaced[0] == Origin(AccountId(Acme().directory), "https://ca/1", "id")


async def test_a_late_moment_is_gone_by_too(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    w.authority.suggest = between(80 * DAY, 82 * DAY)
    await run_for(80.9 * DAYS, w)
    assert days(w) == []
    await run_for(0.2 * DAYS, w)
    assert days(w) == [81.0]


async def test_it_is_asked_as_often_as_the_ca_wants_and_the_moment_is_kept(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    picks: list[datetime] = []
    w.authority.suggest = between(20 * DAY, 40 * DAY, ask_again=6 * HOUR)
    for _ in range(3):  # and after restarts
        w = w.restarted()
        w.manager._advisor._rng.random = iter([0.1 * (len(picks) + 1)] * 9).__next__  # type: ignore[method-assign]
        await run_for(DAYS, w)
        picks.append(shown(w)[2])
    assert len(w.authority.asked) == 12
    assert picks == [NOW + 22 * DAY] * 3
    w.authority.suggest = between(30 * DAY, 40 * DAY)
    await run_for(DAYS, w)
    assert shown(w)[2] != picks[0]


async def test_an_answer_counts_from_when_it_came(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    w.authority.suggest = between(-2 * DAY, -DAY)  # it has been revoked, or soon will be
    await run_for(5, w)
    assert days(w)[0] == 0.0


async def test_where_hardly_anything_is_left_nobodys_suggestion_counts(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    w.authority.suggest = between(88 * DAY, 89 * DAY)
    await run_for(5, w)
    assert shown(w)[0] == "emergency"
    await run_for(86 * DAYS, w)
    assert days(w) == [84.5]  # four and a half days before the end
    assert emergency_at(NOW - DAY, NOW + 89 * DAY) == NOW + 84.5 * DAY


@pytest.mark.parametrize("said", [None, Advice(None, 21600.0, doubt="it ends before it begins")])
async def test_nothing_or_nonsense_leaves_it_to_the_lifetime(
    said: Advice | None, tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    w.authority.suggest = lambda _: said
    await run_for(2.1 * DAYS, w)
    assert shown(w)[:2] == ("lifetime", "lifetime: a third of it is left then")
    assert len(w.authority.asked) == (3 if said is None else 9)


async def test_a_ca_that_cannot_be_reached_changes_nothing_and_is_not_pestered(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    await have(w)
    await have(w, OTHER)

    def unreachable(_: x509.Certificate) -> Advice:
        raise AcmeError("gone", "unreachable")

    w.authority.suggest = unreachable
    await run_for(DAYS, w)
    assert len(w.authority.asked) == 9  # after 10, 20, 40 … minutes, then every six hours; never once for each name
    assert {status.rule for status in w.manager.listing()} == {"lifetime"}
    w.authority.suggest = between(10 * DAY, 12 * DAY)
    await run_for(7 * HOUR, w)
    assert {status.rule for status in w.manager.listing()} == {"ARI"}
    w.authority.suggest = unreachable
    await run_for(12 * DAYS, w.restarted())
    assert days(w) == [11.0]


async def test_another_cas_certificate_and_one_of_unknown_origin_are_not_asked_about(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    await have(w, NAME, "https://gone.example/dir")
    await w.store.save(OTHER, bundle(OTHER))
    await run_for(DAYS, w)
    assert w.authority.asked == []


async def test_garbage_on_disk_is_asked_for_again(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await have(w)
    w.authority.suggest = between(10 * DAY, 12 * DAY)
    await run_for(5, w)
    (tmp_path / "renewals" / f"{NAME}.json").write_text('{"serial": "xyz"')
    again = w.restarted()
    await run_for(5, again)
    assert shown(again)[0] == "ARI"


def test_an_answer_from_the_future_is_stale() -> None:
    found = Suggestion(1, NOW, NOW + DAY)
    assert [found.stale(NOW + delta) for delta in (-DAY, timedelta(), DAY / 2, DAY)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("suggested", "rule"), [(None, "lifetime"), (NOW + 50 * DAY, "ARI"), (NOW + 86 * DAY, "emergency")]
)
def test_which_rule(suggested: datetime | None, rule: str) -> None:
    when, by = renew_when(NOW, NOW + 90 * DAY, 0.0, suggested)
    assert by == rule
    assert when == {"lifetime": NOW + 60 * DAY, "ARI": suggested, "emergency": NOW + 85.5 * DAY}[rule]
