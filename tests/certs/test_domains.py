"""The limit on certificates of one registered domain, kept before the CA has to say so."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio.testing

from tests.certs.making import NOW, acme_site, due_bundle
from tests.certs.world import World, run_for, world
from trioproxy.acme.journal import Origin
from trioproxy.certs.domains import Domains, Limit, registered_domain
from trioproxy.certs.ledger import KNOWN, Ledger
from trioproxy.certs.policy import Paced
from trioproxy.certs.records import Provenance
from trioproxy.certs.store import Store
from trioproxy.config.model import LETSENCRYPT, AccountId, Acme

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

OURS = AccountId(LETSENCRYPT)
WEEK = timedelta(days=7)
PART = WEEK / 50
"""After which one of fifty places is free again."""


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@attrs.define
class Counting:
    """A ledger, and a clock that is set by hand."""

    folder: Path
    clock: Clock = attrs.Factory(Clock)
    ledger: Ledger = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.ledger = Ledger(Store(self.folder), self.clock)

    async def wait(self, name: str, *, renewal: bool = False) -> Paced | None:
        return await self.ledger.pace(OURS, name, exempt=False, renewal=renewal)

    async def until(self, name: str) -> timedelta:
        """For how long from now a name waits."""
        wait = await self.wait(name)
        return wait.until - self.clock.now if wait else timedelta()


@pytest.fixture
async def full(tmp_path: Path) -> Counting:
    """example.com has got all that it may in a week, this very moment."""
    counting = Counting(tmp_path)
    for name in (f"n{number}.example.com" for number in range(50)):
        assert await counting.wait(name) is None
        with counting.ledger.under_way(OURS, name):
            await counting.ledger.issued(OURS, name)
    return counting


@pytest.mark.parametrize(
    ("name", "domain"),
    [
        ("cloud.example.com", "example.com"),
        ("a.b.c.example.co.uk", "example.co.uk"),
        ("example.com", "example.com"),
        ("*.home.example.com", "example.com"),
        ("me.duckdns.org", "me.duckdns.org"),
        ("git.me.duckdns.org", "me.duckdns.org"),
        ("duckdns.org", "duckdns.org"),
        ("www.city.kawasaki.jp", "city.kawasaki.jp"),
        ("cloud.xn--mnchen-3ya.de", "xn--mnchen-3ya.de"),
        ("a.b.xn--55qx5d.cn", "b.xn--55qx5d.cn"),
        ("nas.unheard-of", "nas.unheard-of"),
        ("localhost", "localhost"),
    ],
)
def test_registered_domains(name: str, domain: str) -> None:
    assert registered_domain(name) == domain


async def test_a_domain_that_has_had_its_share_waits_and_others_do_not(full: Counting) -> None:
    assert await full.wait("www.example.org") is None
    wait = await full.wait("one.example.com")
    assert wait is not None
    assert wait.words == "the CA's limit of new certificates for example.com and all names below it is reached"
    assert wait.until == NOW + PART
    assert await full.ledger.pace(AccountId("https://other.test/dir"), "one.example.com", exempt=False) is None
    other_account = AccountId(LETSENCRYPT, "key-id")
    assert await full.ledger.pace(other_account, "one.example.com", exempt=False), "a domain's, not an account's"


async def test_what_renews_is_exempt_and_not_counted(full: Counting) -> None:
    assert await full.wait("one.example.com", renewal=True) is None
    assert await full.ledger.pace(OURS, "one.example.com", exempt=True) is None
    await full.ledger.issued(OURS, "n1.example.com", renewal=True)
    assert await full.until("one.example.com") == PART


async def test_each_who_waits_has_a_place_of_its_own_and_places_come_back_one_by_one(full: Counting) -> None:
    names = [f"late{number}.example.com" for number in range(10)]
    assert [await full.until(name) for name in names] == [PART * (number + 1) for number in range(10)]
    assert await full.until(names[0]) == PART * 10, "who asks again stands behind those who wait"
    full.clock.now += PART
    full.restart()
    assert await full.wait(names[0]) is None
    with full.ledger.under_way(OURS, names[0]):
        await full.ledger.issued(OURS, names[0])
    assert await full.until(names[1]) == PART
    full.clock.now += WEEK
    for name in names:
        assert await full.wait(name) is None


async def test_an_order_under_way_holds_its_place_and_so_does_one_that_is_about_to_begin(tmp_path: Path) -> None:
    counting = Counting(tmp_path)
    for number in range(49):
        await counting.ledger.issued(OURS, f"n{number}.example.com")
    assert await counting.wait("first.example.com") is None
    assert await counting.wait("www.example.org") is None
    assert await counting.until("second.example.com") == PART
    with counting.ledger.under_way(OURS, "first.example.com"), counting.ledger.under_way(OURS, "www.example.org"):
        assert await counting.wait("first.example.com") is None
        assert await counting.until("second.example.com") == PART
    assert await counting.wait("second.example.com") is None, "the order has failed"
    assert await counting.until("third.example.com") == PART
    counting.clock.now += timedelta(minutes=11)
    assert await counting.wait("third.example.com") is None, "the second one has not begun"


async def test_what_is_forced_does_not_put_others_off_for_longer(full: Counting) -> None:
    for number in range(20):
        await full.ledger.issued(OURS, f"forced{number}.example.com")
    assert await full.until("one.example.com") == PART


@pytest.mark.parametrize("wrong", [timedelta(days=400), timedelta(days=8)])
async def test_what_a_wrong_clock_has_noted_says_nothing(wrong: timedelta, full: Counting) -> None:
    full.clock.now -= wrong
    assert await full.wait("one.example.com") is None
    await full.ledger.issued(OURS, "one.example.com")
    assert await full.wait("two.example.com") is None


async def test_two_who_count_at_once_both_count(full: Counting, tmp_path: Path) -> None:
    full.clock.now += WEEK
    beside = Ledger(Store(tmp_path), full.clock)
    for number in range(25):
        await full.ledger.issued(OURS, f"a{number}.example.com")
        await beside.issued(OURS, f"b{number}.example.com")
    assert await full.until("one.example.com") == PART


@pytest.mark.parametrize("garbage", ["", "[]", '{"full": 1}', '{"full": {"example.com": "soon"}}', "null"])
async def test_garbage_counts_for_nothing(garbage: str, full: Counting, tmp_path: Path) -> None:
    (path,) = (tmp_path / "counts").glob("*.domains.json")  # noqa: ASYNC240 - a test may wait for its disk
    path.write_text(garbage)
    assert await full.wait("one.example.com") is None
    await full.ledger.issued(OURS, "one.example.com")
    assert await full.wait("two.example.com") is None


def small(most: int, within: timedelta) -> partial[Ledger]:
    """A ledger that knows a smaller limit of a domain."""
    return partial(Ledger, known={LETSENCRYPT: attrs.evolve(KNOWN[LETSENCRYPT], domain=Limit(most, within))})


async def test_the_manager_issues_what_there_is_room_for_and_the_rest_one_by_one(
    tmp_path: Path, autojump_clock: Jumping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("trioproxy.certs.renewal.Ledger", small(10, timedelta(hours=10)))
    names = [f"site{number}.example.com" for number in range(15)]
    w: World = world(tmp_path, acme_site("www.example.org"), *map(acme_site, names))
    await run_for(1800, w)
    waiting = [status for status in w.manager.listing() if status.waits_for]
    assert len(waiting) == 5
    assert {status.waits_for for status in waiting} == {
        "the CA's limit of new certificates for example.com and all names below it is reached"
    }
    assert {status.state for status in waiting} == {"waiting"}
    assert not any(status.needs_a_person for status in w.manager.listing())
    attempts = sorted(str(status.next_attempt) for status in waiting)
    assert [attempt[11:16] for attempt in attempts] == ["13:00", "14:00", "15:00", "16:00", "17:00"]
    assert w.authority.issued["www.example.org"], "another domain's affair"
    await run_for(6 * 3600, w.restarted())
    assert sorted(w.authority.issued) == sorted(["www.example.org", *names])
    moments = sorted(when for name, when in w.authority.orders if name != "www.example.org")
    assert len(moments) == 15, "nobody was asked in vain"
    assert [round((moment - NOW) / timedelta(hours=1), 1) for moment in moments[9:]] == [0, 1, 2, 3, 4, 5]


async def test_a_renewal_that_cannot_say_what_it_replaces_does_not_wait_for_its_domain(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    name = "old.example.com"
    w = world(tmp_path, acme_site(name))
    old = due_bundle(name)
    await w.store.save(name, old)
    # The account is another one, so `replaces` would be refused; the CA is the same.
    await w.store.note_origin(name, Provenance(old.leaf.serial, Origin(AccountId(LETSENCRYPT, "old"), "u", "id")))
    ledger = Ledger(w.store, w.clock)
    for number in range(50):
        await ledger.issued(OURS, f"n{number}.example.com")
    await run_for(30, w)
    assert w.authority.replaced == [None]
    assert w.serial(name) == w.newest(name)
    until, _ = await Domains(w.store).place(LETSENCRYPT, "one.example.com", KNOWN[LETSENCRYPT].domain, w.clock())
    assert until < NOW + PART * 1.1, "it was not counted"


async def test_a_first_certificate_goes_to_the_fallback_when_its_domain_is_full(
    tmp_path: Path, autojump_clock: Jumping
) -> None:
    w = world(tmp_path, acme_site("one.example.com"), acme=Acme(fallback=(Acme(directory="https://second.test/dir"),)))
    ledger = Ledger(w.store, w.clock)
    for number in range(50):
        await ledger.issued(OURS, f"n{number}.example.com")
    await run_for(30, w)
    assert w.authority.directories == ["https://second.test/dir"]


def test_the_list_is_loaded_where_something_is_counted_and_not_at_the_start() -> None:
    program = "import trioproxy.certs.ledger, sys; print('publicsuffixlist' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
