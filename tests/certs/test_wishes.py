"""What a person may ask of a manager: renewals and the listing."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.certs.making import DAY, NOW, acme_site, bundle, due_bundle, files_site, internal_site
from tests.certs.test_contexts import write_files
from tests.certs.world import run_for, world
from trioproxy.certs.manager import AT_ONCE
from trioproxy.certs.policy import Trouble
from trioproxy.certs.wishes import handlers
from trioproxy.config.model import CertificateFiles, HostPort, Passthrough
from trioproxy.errors import AcmeError, ControlError

Jumping = trio.testing.MockClock

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "cloud.example.com"
OTHER = "home.example.com"


def nobody(_: str) -> None:
    """Takes a line of progress and drops it."""


# ---- renewing -----------------------------------------------------------------------------------------


async def test_what_is_due_is_renewed_and_nothing_else(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER), acme_site("new.example.com"))
    await w.store.save(NAME, due_bundle(NAME))
    await w.store.save(OTHER, good := bundle(OTHER))
    lines: list[str] = []
    outcomes = await w.manager.renew([], False, lines.append)
    assert [(outcome.name, outcome.result) for outcome in outcomes] == [
        (NAME, "renewed"),
        ("new.example.com", "renewed"),
    ]
    assert w.serial(NAME) == w.newest(NAME)
    assert w.serial(OTHER) == good.leaf.serial
    assert f"{NAME}: asking Let's Encrypt" in lines
    assert f"{NAME}: ordering a certificate" in lines
    assert outcomes[0].detail.startswith("valid to 1")


async def test_what_is_named_and_not_due_is_kept_unless_forced(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    await w.store.save(NAME, good := bundle(NAME))
    kept = await w.manager.renew([NAME], False, nobody)
    assert [(outcome.result, w.serial(NAME)) for outcome in kept] == [("kept", good.leaf.serial)]
    assert w.authority.orders == []
    forced = await w.manager.renew([NAME], True, nobody)
    assert [outcome.result for outcome in forced] == ["renewed"]
    assert w.serial(NAME) == w.newest(NAME) != good.leaf.serial
    assert [name for name, _ in w.authority.orders] == [NAME]


async def test_all_are_renewed_by_force_without_names(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER), internal_site("x.internal"))
    await w.store.save(NAME, bundle(NAME))
    await w.store.save(OTHER, bundle(OTHER))
    outcomes = await w.manager.renew([], True, nobody)
    assert [(outcome.name, outcome.result) for outcome in outcomes] == [(NAME, "renewed"), (OTHER, "renewed")]


async def test_outcomes_come_in_the_order_of_the_names_and_each_once(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    w.authority.seconds[OTHER] = 60
    outcomes = await w.manager.renew([OTHER, NAME, "CLOUD.example.com."], False, nobody)
    assert [outcome.name for outcome in outcomes] == [OTHER, NAME]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("clud.example.com", "there is no site clud.example.com; did you mean cloud.example.com?"),
        ("entirely-different.org", "there is no site entirely-different.org"),
        ("no name at all", "there is no site no name at all"),
        ("pbx.example.com", "pbx.example.com is passed through: its certificate is its backend's own affair"),
        ("files.example.com", "files.example.com has its certificate from x.pem: replace that, then reload"),
    ],
)
async def test_what_cannot_be_renewed_is_refused_before_anything_is_done(
    name: str, words: str, tmp_path: Path, autojump_clock: Jumping
) -> None:
    pbx = Passthrough("pbx.example.com", (HostPort("10.1.2.3", 443),), "challenges", HostPort("10.1.2.3", 80))
    files = files_site("files.example.com", CertificateFiles(Path("x.pem"), Path("x.key")))
    w = world(tmp_path, acme_site(NAME), files, passthrough=(pbx,))
    with pytest.raises(ControlError) as caught:
        await w.manager.renew([NAME, name], True, nobody)
    assert str(caught.value) == words
    assert w.authority.orders == []


async def test_an_internal_certificate_is_renewed_when_named(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, internal_site("*.internal.example.com"))
    before = w.serial("*.internal.example.com")
    outcomes = await w.manager.renew(["*.internal.example.com"], False, nobody)
    assert [outcome.result for outcome in outcomes] == ["renewed"]
    assert w.serial("*.internal.example.com") != before


async def test_a_failure_is_an_outcome_and_others_go_on(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    w.authority.errors[NAME] = [AcmeError("no such host")]
    failed, renewed = await w.manager.renew([], False, nobody)
    assert (failed.name, failed.result) == (NAME, "failed")
    assert failed.detail.startswith("no such host; next attempt at ")
    assert (renewed.name, renewed.result) == (OTHER, "renewed")


async def test_a_wish_does_not_wait_for_our_own_patience(tmp_path: Path, autojump_clock: Jumping) -> None:
    """The user has mended the DNS record and wants to see it work, not in six hours."""
    w = world(tmp_path, acme_site(NAME))
    w.authority.errors[NAME] = [AcmeError("no such host")]
    await run_for(10, w)
    outcomes = await w.manager.renew([NAME], False, nobody)
    assert [outcome.result for outcome in outcomes] == ["renewed"]


async def test_a_wish_waits_for_the_cas_limits_unless_forced(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.errors[NAME] = [AcmeError("too many orders", "limit", retry_after=7200.0)]
    await run_for(10, w)
    (waiting,) = await w.manager.renew([], False, nobody)
    assert waiting.result == "waiting"
    assert waiting.detail.endswith(": too many orders")
    assert len(w.authority.orders) == 1
    (forced,) = await w.manager.renew([NAME], True, nobody)
    assert forced.result == "renewed"


async def test_a_forced_renewal_that_fails_leaves_no_trouble_behind(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, good := bundle(NAME))
    w.authority.errors[NAME] = [AcmeError("no such host")]
    (outcome,) = await w.manager.renew([NAME], True, nobody)
    assert (outcome.result, outcome.detail) == ("failed", "no such host")
    await run_for(24 * 3600, w)
    assert len(w.authority.orders) == 1
    assert w.store.trouble(NAME) is None
    assert w.serial(NAME) == good.leaf.serial


# ---- beside others ------------------------------------------------------------------------------------


async def test_a_name_that_is_being_renewed_is_joined_not_doubled(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 60
    lines: list[str] = []
    outcomes = []

    async def wish() -> None:
        outcomes.extend(await w.manager.renew([NAME], True, lines.append))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(5)
        async with trio.open_nursery() as wishes:
            wishes.start_soon(wish)
            wishes.start_soon(wish)
        nursery.cancel_scope.cancel()
    assert len(w.authority.orders) == 1
    assert [outcome.result for outcome in outcomes] == ["renewed", "renewed"]
    assert lines.count(f"{NAME}: is being renewed already; waiting for that") == 2


async def test_who_joined_goes_on_when_the_other_gives_up(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 60
    outcomes = []

    first, second = trio.CancelScope(), trio.CancelScope()

    async def wish(scope: trio.CancelScope) -> None:
        with scope:
            outcomes.extend(await w.manager.renew([NAME], True, nobody))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wish, first)
        await trio.sleep(5)
        nursery.start_soon(wish, second)
        await trio.sleep(5)
        first.cancel()
    assert [outcome.result for outcome in outcomes] == ["renewed"]
    assert len(w.authority.issued[NAME]) == 1


async def test_wishes_are_bounded_and_do_not_queue_behind_the_others(tmp_path: Path, autojump_clock: Jumping) -> None:
    names = [f"site{n}.example.com" for n in range(5 * AT_ONCE)]
    w = world(tmp_path, *map(acme_site, names))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1)
        assert len(w.authority.orders) == AT_ONCE
        last = max(set(names) - {name for name, _ in w.authority.orders})
        await w.manager.renew([last], False, nobody)
        assert len(w.authority.orders) <= 2 * AT_ONCE + 1
        await w.manager.renew([], True, nobody)
        nursery.cancel_scope.cancel()
    assert w.authority.most <= 2 * AT_ONCE


# ---- the listing --------------------------------------------------------------------------------------


async def test_the_listing_tells_how_each_certificate_is(tmp_path: Path, autojump_clock: Jumping) -> None:
    good_files = write_files(tmp_path, bundle("files.example.com"))
    bad_files = CertificateFiles(tmp_path / "missing.pem", tmp_path / "missing.key")
    ending = tmp_path / "ending"
    ending.mkdir()
    w = world(
        tmp_path / "store",
        acme_site("good.example.com"),
        acme_site("due.example.com"),
        acme_site("failing.example.com"),
        acme_site("expired.example.com"),
        acme_site("waiting.example.com"),
        acme_site("unreadable.example.com"),
        internal_site("made.internal"),
        internal_site("unmade.internal"),
        files_site("files.example.com", good_files),
        files_site("ending.example.com", write_files(ending, bundle("ending.example.com", not_after=NOW + 13 * DAY))),
        files_site("gone.example.com", bad_files),
    )
    good = bundle("good.example.com", "www.example.com")
    expired = bundle("expired.example.com", not_before=NOW - 90 * DAY, not_after=NOW - DAY)
    for name, made in (("good", good), ("due", due_bundle("due.example.com")), ("expired", expired)):
        await w.store.save(f"{name}.example.com", made)
    await w.store.note_trouble("failing.example.com", Trouble(2, NOW, NOW + timedelta(minutes=10), "no such host"))
    (tmp_path / "store" / "certificates" / "unreadable.example.com.pem").mkdir()
    w.serial("made.internal")
    await w.manager.look()
    listing = {status.name: status for status in w.manager.listing()}
    assert list(listing) == sorted(listing)
    assert {name.partition(".")[0]: status.state for name, status in listing.items()} == {
        "good": "good",
        "due": "due",
        "failing": "failing",
        "expired": "expired",
        "waiting": "waiting",
        "unreadable": "unreadable",
        "made": "good",
        "unmade": "good",
        "files": "good",
        "ending": "expiring",
        "gone": "unreadable",
    }
    needy = {name.partition(".")[0] for name, status in listing.items() if status.needs_a_person}
    assert needy == {"due", "failing", "expired", "unreadable", "ending", "gone"}, "due for long, and nobody is at it"

    status = listing["good.example.com"]
    assert (status.source, status.names) == ("acme", ("good.example.com", "www.example.com"))
    assert status.issuer == "Test Authority, T1"
    assert (status.not_after, status.days_left) == ("2027-02-18T12:00:00+00:00", 89.0)
    assert status.renews is not None
    assert "2027-01-17" < status.renews < "2027-01-20"
    assert (status.rule, status.why) == ("lifetime", "lifetime: a third of it is left then")
    assert listing["made.internal"].why == "lifetime: half of it is left then"
    assert listing["failing.example.com"].error == "no such host"
    assert listing["failing.example.com"].next_attempt == "2026-11-21T12:10:00+00:00"
    assert listing["expired.example.com"].days_left == -1.0
    assert "cannot be read: Is a directory" in listing["unreadable.example.com"].error
    assert "missing.pem cannot be read" in listing["gone.example.com"].error
    assert w.authority.orders == []


async def test_looking_makes_nothing(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path / "store", acme_site(NAME), internal_site("x.internal"))
    await w.manager.look()
    assert [status.state for status in w.manager.listing()] == ["waiting", "good"]
    assert not (tmp_path / "store").exists()


async def test_the_listing_shows_work_in_progress_and_what_came_of_it(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    w.authority.errors[NAME] = [AcmeError("no such host")]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(1)
        assert w.manager.listing()[0].state == "renewing"
        await trio.sleep(10)
        assert w.manager.listing()[0].state == "failing"
        assert w.manager.listing()[0].error == "no such host"
        await trio.sleep(60)
        assert (w.manager.listing()[0].state, w.manager.listing()[0].error) == ("good", "")
        nursery.cancel_scope.cancel()


# ---- over the control socket --------------------------------------------------------------------------


async def test_the_commands_take_and_give_json(tmp_path: Path, autojump_clock: Jumping) -> None:
    w = world(tmp_path, acme_site(NAME))
    await w.store.save(NAME, due_bundle(NAME))
    commands = handlers(w.manager)
    lines: list[str] = []
    listed = json.loads(json.dumps(await commands["certs.list"]({}, nobody)))
    assert listed["certificates"][0]["state"] == "due"  # also before the manager has looked of itself
    result = await commands["certs.renew"](json.loads(json.dumps({"names": [NAME], "force": False})), lines.append)
    assert json.loads(json.dumps(result))["outcomes"][0]["result"] == "renewed"
    assert lines
    listed = json.loads(json.dumps(await commands["certs.list"]({}, nobody)))
    assert [entry["name"] for entry in listed["certificates"]] == [NAME]
    assert set(listed["certificates"][0]) == set(attrs.asdict(w.manager.listing()[0]))
    with pytest.raises(ControlError):
        await commands["certs.renew"]({"names": ["x.example.com"], "force": False}, lines.append)
