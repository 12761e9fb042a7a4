"""Issuances that take long or are interrupted: what is waited for, what is gone on with, what is begun anew."""

from __future__ import annotations

import datetime
import itertools

import pytest
import trio
import trio.testing

from tests.acme.fake_ca import BASE, BUSY, FakeCA, Reply, answer, decode, problem
from tests.acme.support import Clock, Customer, failure
from trioproxy.acme import waiting
from trioproxy.acme.order import OrderFailed
from trioproxy.errors import ConnectionLost, StoreError, UpstreamUnreachable


@pytest.fixture
def ca() -> FakeCA:
    return FakeCA()


@pytest.fixture
def customer(ca: FakeCA) -> Customer:
    return ca.customer()


# ---- waiting --------------------------------------------------------------------------------------------


async def test_retry_after_is_honoured_while_the_ca_validates(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    pending = {"status": "pending", "challenges": [ca.challenge()]}
    ca.script["authorization"] = [answer(200, pending), answer(200, pending, retry_after="20"), answer(200, pending)]
    await customer.obtain()
    _, second, third, fourth = ca.times("authorization")
    assert third - second == pytest.approx(20)
    assert 0 < fourth - third < 1


async def test_retry_after_is_honoured_while_the_ca_signs(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.name = "cloud.test"
    processing = {**ca.order(), "status": "processing"}
    ca.script["finalize"] = [answer(200, processing, retry_after="15")]
    ca.on_request = lambda resource: _sign_at_once(ca) if resource == "order" else None
    with pytest.raises(OrderFailed, match="no certificate of use"):  # the fake CA saw no CSR; that is not the point
        await customer.obtain()
    (finalized,) = ca.times("finalize")
    assert ca.times("order")[-1] - finalized == pytest.approx(15)


def _sign_at_once(ca: FakeCA) -> None:
    if ca.times("finalize"):
        ca.status = "valid"
        ca.script["certificate"] = [answer(200, b"")]


async def test_without_retry_after_the_looks_become_rarer(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    pending = {"status": "pending", "challenges": [ca.challenge()]}
    ca.script["authorization"] = [answer(200, pending)] * 14
    await customer.obtain()
    times = ca.times("authorization")[1:]
    gaps = [round(later - earlier, 6) for earlier, later in itertools.pairwise(times)]
    assert gaps == sorted(gaps)
    assert gaps[0] == pytest.approx(waiting.FIRST_PAUSE)
    assert gaps[-1] == pytest.approx(waiting.LAST_PAUSE)


async def test_an_order_that_is_not_as_far_as_it_said_is_asked_again(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.script["finalize"] = [problem(403, "orderNotReady", retry_after="3")]
    await customer.obtain()
    first, second = ca.times("finalize")
    assert second - first == pytest.approx(3)
    assert ca.orders == 1


async def test_a_finalize_whose_answer_was_lost_is_found_done(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    lost: list[Reply] = [ConnectionLost("reset"), problem(403, "orderNotReady")]
    ca.script["finalize"] = lost

    def did_it_all_the_same(resource: str) -> None:
        if resource == "finalize":
            ca.csr = decode(ca.asked[-1].payload["csr"])
            ca.status = "valid"

    ca.on_request = did_it_all_the_same
    await customer.obtain()
    assert lost == []


async def test_an_order_that_is_stuck_is_left_after_five_minutes_kept_once_and_then_given_up(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.on_request = lambda _: setattr(ca, "status", "processing" if ca.orders == 1 else ca.status)
    start = trio.current_time()
    error = await failure(customer)
    assert trio.current_time() - start == pytest.approx(300, abs=waiting.LAST_PAUSE)
    assert not error.validation_failed
    assert customer.journal.read() is not None

    await failure(customer)
    assert ca.orders == 1, "the second attempt went on with the first one's order"
    assert customer.journal.read() is None

    await customer.obtain()
    assert ca.orders == 2


async def test_a_ca_that_wants_more_time_than_an_order_has_is_not_waited_for(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.name = "cloud.test"
    slow = answer(200, {**ca.order(), "status": "processing"}, retry_after="7200")
    for attempt in range(3):
        ca.script["order" if attempt else "newOrder"] = [
            answer(201, {**ca.order(), "status": "processing"}, location=f"{BASE}/order/1") if not attempt else slow,
            slow,
        ]
        ca.script.setdefault("order", [slow])
        start = trio.current_time()
        error = await failure(customer)
        assert trio.current_time() - start < 60
        assert error.retry_after == 7200
        assert customer.journal.read() is not None, "the CA does not say that it is over"


async def test_an_order_that_stays_pending_is_looked_at_with_pauses(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.name = "cloud.test"
    ca.script["order"] = [answer(200, ca.order())] * 5
    await customer.obtain()
    assert all(later > earlier for earlier, later in itertools.pairwise(ca.times("order")))
    assert len(ca.times("authorization")) == 2


async def test_a_limit_during_an_order_is_no_reason_for_another_order(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.script["finalize"] = [problem(429, "rateLimited", retry_after="7200")]
    error = await failure(customer)
    assert error.rate_limited
    assert error.retry_after == 7200
    await customer.obtain()
    assert ca.orders == 1


async def test_a_ca_that_falls_silent_during_an_order_costs_no_second_order(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.script["finalize"] = [UpstreamUnreachable("gone")] * 1000
    start = trio.current_time()
    error = await failure(customer)
    assert trio.current_time() - start == pytest.approx(300, abs=waiting.LAST_PAUSE)
    assert "gone" in str(error)
    await failure(customer)
    assert customer.journal.read() is not None
    ca.script.clear()
    await customer.obtain()
    assert ca.orders == 1


# ---- going on -------------------------------------------------------------------------------------------


async def test_the_certificate_of_a_finished_order_is_fetched_again_while_it_is_fresh(
    ca: FakeCA, customer: Customer
) -> None:
    first = await customer.obtain()
    again = await customer.obtain()
    assert again.key_pem == first.key_pem
    assert ca.orders == 1


async def test_an_old_certificate_is_not_fetched_again(ca: FakeCA, customer: Customer) -> None:
    await customer.obtain()
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    ca.lifetime = (now - datetime.timedelta(days=40), now + datetime.timedelta(days=50))
    await customer.obtain()
    assert ca.orders == 2
    assert len({record.key_pem for record in customer.journal.history}) == 2


@pytest.mark.parametrize(
    ("reply", "orders"),
    [
        (problem(404, "malformed", "no such order"), 2),
        (answer(200, b"<html>"), 2),
        (problem(403, "unauthorized"), 2),
        (BUSY, 1),
        (problem(429, "rateLimited"), 1),
        (UpstreamUnreachable("gone"), 1),
    ],
)
async def test_an_order_is_forgotten_only_when_the_ca_has_done_so(
    ca: FakeCA, customer: Customer, reply: Reply, orders: int
) -> None:
    await customer.obtain()
    ca.script["order"] = [reply]
    if orders == 1:
        await failure(customer)
    await customer.obtain()
    assert ca.orders == orders


async def test_an_order_is_gone_on_with_only_where_and_for_what_it_was_made(ca: FakeCA, customer: Customer) -> None:
    await customer.obtain()
    await customer.obtain(key_type="ecdsa-p384")
    assert ca.orders == 2
    customer.directory = f"{BASE}/directory/of-another"
    ca.asked.clear()
    await customer.obtain(key_type="ecdsa-p384")
    assert ca.orders == 3
    assert ca.asked[0].resource == "directory"
    assert ca.times("order") == [], "the other CA's order was not asked for"


async def test_an_invalid_order_is_made_anew_at_once(ca: FakeCA, customer: Customer) -> None:
    await customer.obtain()
    ca.status = "invalid"
    await customer.obtain()
    assert ca.orders == 2


async def test_a_challenge_that_was_asked_before_a_crash_is_not_asked_again(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.script["authorization"] = [
        answer(200, {"status": "pending", "challenges": [{**ca.challenge(), "status": "processing"}]}),
        answer(200, {"status": "pending", "challenges": [{**ca.challenge(), "status": "processing"}]}),
        answer(200, {"status": "valid", "challenges": []}),
    ]
    shown: list[str | None] = []

    def look(resource: str) -> None:
        if resource == "authorization":
            shown.append(customer.board.answer("cloud.test", "/.well-known/acme-challenge/a-token"))
            if len(shown) == 3:
                ca.authorization = "valid"

    ca.on_request = look
    await customer.obtain()
    assert ca.times("challenge") == []
    assert shown[0] is None
    assert shown[1], "but its answer is shown"


async def test_a_full_disk_costs_no_order(ca: FakeCA, customer: Customer) -> None:
    def full() -> None:
        raise StoreError("no space left")

    customer.journal.on_intention = full
    with pytest.raises(StoreError):
        await customer.obtain()
    assert ca.orders == 0


async def test_an_order_whose_url_cannot_be_kept_is_left_before_it_costs_a_validation(
    ca: FakeCA, customer: Customer
) -> None:
    def broken() -> None:
        raise StoreError("the disk reports errors")

    customer.journal.on_write = broken
    with pytest.raises(StoreError):
        await customer.obtain()
    assert ca.times("authorization") == []


async def test_an_order_is_intended_before_the_ca_hears_of_it(ca: FakeCA, customer: Customer) -> None:
    known: list[tuple[int, int]] = []
    journal = customer.journal
    ca.on_request = lambda resource: known.append((len(journal.intended), len(journal.history)))
    await customer.obtain()
    at = [asked.resource for asked in ca.asked].index("newOrder")
    assert known[at] == (1, 0)
    assert known[at + 1] == (1, 1)
    assert journal.intended[0].key_pem == journal.history[0].key_pem


@pytest.mark.parametrize("trouble", [BUSY, UpstreamUnreachable("gone"), None])
async def test_the_key_of_an_intention_is_used_for_the_order_that_is_made_at_last(
    ca: FakeCA, customer: Customer, trouble: Reply, autojump_clock: Clock
) -> None:
    ca.script["newOrder"] = [trouble]
    await failure(customer)
    assert customer.journal.kept is not None
    issued = await customer.obtain()
    assert issued.key_pem == customer.journal.intended[0].key_pem


async def test_a_cancellation_waits_until_the_order_is_written_down(ca: FakeCA, customer: Customer) -> None:
    with trio.CancelScope() as scope:
        ca.on_request = lambda resource: scope.cancel() if resource == "newOrder" else None
        ca.script["newOrder"] = [ca._newOrder({"identifiers": [{"value": "cloud.test"}]})]
        await customer.obtain()
    assert scope.cancelled_caught
    assert customer.journal.orders == [f"{BASE}/order/1"]
    ca.on_request = lambda _: None
    await customer.obtain()
    assert ca.orders == 1
