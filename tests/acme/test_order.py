"""Issuances at a CA that misbehaves: refusals, waits, nonsense, and times that are over. In Trio's mock time."""

from __future__ import annotations

import datetime
import itertools
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from tests.acme.fake_ca import BASE, FakeCA, Reply, answer, problem
from tests.acme.support import Customer
from trioproxy.acme import order as order_module
from trioproxy.acme.order import OrderFailed
from trioproxy.errors import AcmeError, ConnectionLost, StoreError, UpstreamUnreachable

Clock = trio.testing.MockClock

BUSY = answer(503, b"<html>busy</html>")


@pytest.fixture
def ca() -> FakeCA:
    return FakeCA()


@pytest.fixture
def customer(ca: FakeCA) -> Customer:
    return ca.customer()


async def failure(customer: Customer, name: str = "cloud.test") -> OrderFailed:
    """The error of an issuance that must fail."""
    with pytest.raises(OrderFailed, match=rf"^no certificate for {name}: ") as caught:
        await customer.obtain(name)
    assert not customer.board._answers
    return caught.value


async def test_a_ca_that_does_its_work_needs_few_requests(ca: FakeCA, customer: Customer) -> None:
    issued = await customer.obtain()
    assert issued.chain_pem.count(b"BEGIN CERTIFICATE") == 1
    assert [asked.resource for asked in ca.asked] == [
        "directory",
        "newNonce",
        "newAccount",
        "newOrder",
        "authorization",
        "challenge",
        "authorization",
        "order",
        "finalize",
        "certificate",
    ]
    assert customer.said[0] == f"opening an account, which accepts the CA's terms of service: {BASE}/tos"


async def test_every_request_is_signed_over_its_url_with_a_nonce_of_its_own(ca: FakeCA, customer: Customer) -> None:
    await customer.obtain()
    signed = [asked.protected for asked in ca.asked if asked.protected]
    assert len({header["nonce"] for header in signed}) == len(signed)
    for asked in ca.asked:
        if asked.protected:
            assert asked.protected["url"].removeprefix(BASE + "/").partition("/")[0] == asked.resource
            assert ("jwk" in asked.protected) == (asked.resource == "newAccount")


# ---- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize(
    ("fields", "wait"),
    [
        ({"retry_after": "3600"}, 3600.0),
        ({"retry_after": "Sat, 21 Nov 2026 10:00:00 GMT", "date": "Sat, 21 Nov 2026 09:00:00 GMT"}, 3600.0),
        ({}, None),
    ],
    ids=["seconds", "date", "nothing"],
)
async def test_a_limit_says_when_to_come_back(
    ca: FakeCA,
    customer: Customer,
    monkeypatch: pytest.MonkeyPatch,
    zone: str,
    fields: dict[str, str],
    wait: float | None,
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    ca.script["newOrder"] = [problem(429, "rateLimited", "too many certificates for cloud.test", **fields)]
    error = await failure(customer)
    monkeypatch.undo()
    time.tzset()
    assert "too many certificates for cloud.test" in str(error)
    assert error.rate_limited
    assert not error.validation_failed
    assert error.retry_after == wait


async def test_without_a_date_of_the_cas_own_ours_counts(ca: FakeCA, customer: Customer) -> None:
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 600))
    ca.script["newOrder"] = [problem(429, "rateLimited", retry_after=later)]
    wait = (await failure(customer)).retry_after
    assert wait is not None
    assert 590 < wait <= 600


async def test_a_refused_name_is_no_failed_validation_and_leaves_nothing(ca: FakeCA, customer: Customer) -> None:
    ca.script["newOrder"] = [problem(400, "rejectedIdentifier", "cloud.test: policy forbids issuing")]
    error = await failure(customer)
    assert "the CA refused an order for cloud.test: cloud.test: policy forbids issuing" in str(error)
    assert not error.validation_failed
    assert not error.rate_limited
    assert customer.journal.history == []


@pytest.mark.parametrize("resource", ["directory", "newNonce", "newAccount", "newOrder"])
@pytest.mark.parametrize("trouble", [BUSY, UpstreamUnreachable("refused"), ConnectionLost("reset")])
async def test_before_there_is_an_order_nothing_is_tried_twice(
    ca: FakeCA, customer: Customer, resource: str, trouble: Reply
) -> None:
    ca.script[resource] = [trouble]
    await failure(customer)
    assert len(ca.times(resource)) == 1


@pytest.mark.parametrize("resource", ["authorization", "challenge", "order", "finalize", "certificate"])
@pytest.mark.parametrize(
    "trouble", [BUSY, UpstreamUnreachable("refused"), ConnectionLost("reset"), problem(429, "rateLimited")]
)
async def test_passing_trouble_with_an_order_is_waited_out(
    ca: FakeCA, customer: Customer, resource: str, trouble: Reply, autojump_clock: Clock
) -> None:
    ca.script[resource] = [trouble] * 3
    await customer.obtain()
    assert ca.orders == 1


@pytest.mark.parametrize("resource", ["authorization", "challenge", "order", "finalize", "certificate"])
async def test_a_refusal_that_will_stay_ends_the_order(ca: FakeCA, customer: Customer, resource: str) -> None:
    ca.script[resource] = [problem(403, "unauthorized", "go away")]
    assert "go away" in str(await failure(customer))
    assert len(customer.journal.history) == 1
    assert customer.journal.read() is None
    await customer.obtain()
    assert ca.orders == 2


@pytest.mark.parametrize("resource", ["directory", "newOrder", "authorization", "order", "finalize", "certificate"])
@pytest.mark.parametrize("body", [b"", b"<html>welcome</html>", b"[]", b'{"status": 1}'])
async def test_nonsense_is_an_error_of_the_ca(ca: FakeCA, customer: Customer, resource: str, body: bytes) -> None:
    ca.script[resource] = [answer(200, body, location=f"{BASE}/order/1")]
    error = await failure(customer)
    assert isinstance(error.__cause__, AcmeError)
    assert customer.journal.read() is None


async def test_a_ca_without_http_01_is_told_apart(ca: FakeCA, customer: Customer) -> None:
    ca.script["authorization"] = [
        answer(200, {"status": "pending", "challenges": [{"type": "dns-01", "url": f"{BASE}/challenge/1"}]})
    ]
    assert "does not offer http-01 for this name, only dns-01" in str(await failure(customer))


async def test_an_order_for_another_name_is_not_kept(ca: FakeCA, customer: Customer) -> None:
    wrong = {**ca.order(), "identifiers": [{"type": "dns", "value": "other.test"}]}
    ca.script["newOrder"] = [answer(201, wrong, location=f"{BASE}/order/1")]
    assert "took an order for other.test" in str(await failure(customer))
    assert customer.journal.history == []


async def test_an_order_without_an_address_is_an_error(ca: FakeCA, customer: Customer) -> None:
    ca.script["newOrder"] = [answer(201, ca.order())]
    assert "did not say where" in str(await failure(customer))


async def test_a_validation_that_fails_is_told_with_its_reason(ca: FakeCA, customer: Customer) -> None:
    refused = {"type": "urn:ietf:params:acme:error:connection", "detail": "10.1.2.3: Connection refused"}
    failed = {**ca.challenge(), "status": "invalid", "error": refused}
    ca.script["authorization"] = [
        answer(200, {"status": "pending", "challenges": [ca.challenge()]}),
        answer(200, {"status": "invalid", "challenges": [failed]}),
    ]
    error = await failure(customer)
    assert error.validation_failed
    assert "10.1.2.3: Connection refused" in str(error)
    assert customer.journal.read() is None


@pytest.mark.parametrize(("kind", "counts"), [("caa", True), ("serverInternal", False)])
async def test_an_order_that_the_ca_gives_up(ca: FakeCA, customer: Customer, kind: str, counts: bool) -> None:
    ca.order_error = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": "it did not work"}
    ca.script["finalize"] = [answer(200, {**ca.order(), "status": "invalid"})]
    ca.on_request = lambda resource: setattr(ca, "status", "invalid") if resource == "finalize" else None
    ca.name = "cloud.test"
    error = await failure(customer)
    assert "it did not work" in str(error)
    assert error.validation_failed is counts
    assert customer.journal.read() is None


@pytest.mark.parametrize("status", ["deactivated", "expired", "revoked"])
async def test_an_authorisation_that_is_over_ends_the_order(ca: FakeCA, customer: Customer, status: str) -> None:
    ca.script["authorization"] = [answer(200, {"status": status, "challenges": []})]
    error = await failure(customer)
    assert status in str(error)
    assert not error.validation_failed
    assert customer.journal.read() is None


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
    assert gaps[0] == pytest.approx(order_module.FIRST_PAUSE)
    assert gaps[-1] == pytest.approx(order_module.LAST_PAUSE)


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
            ca.csr = _csr(ca.asked[-1].payload)
            ca.status = "valid"

    ca.on_request = did_it_all_the_same
    await customer.obtain()
    assert lost == []


def _csr(payload: dict[str, Any]) -> bytes:
    from tests.acme.fake_ca import _decode

    return _decode(payload["csr"])


async def test_an_order_that_is_stuck_is_left_after_five_minutes_kept_once_and_then_given_up(
    ca: FakeCA, customer: Customer, autojump_clock: Clock
) -> None:
    ca.on_request = lambda _: setattr(ca, "status", "processing" if ca.orders == 1 else ca.status)
    start = trio.current_time()
    error = await failure(customer)
    assert trio.current_time() - start == pytest.approx(300, abs=order_module.LAST_PAUSE)
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
    assert trio.current_time() - start == pytest.approx(300, abs=order_module.LAST_PAUSE)
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


async def test_a_journal_that_cannot_be_written_ends_it_before_the_challenge(ca: FakeCA, customer: Customer) -> None:
    def full() -> None:
        raise StoreError("no space left")

    customer.journal.on_write = full
    with pytest.raises(StoreError):
        await customer.obtain()
    assert ca.times("authorization") == []


# ---- cancelling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "resource",
    [
        "directory",
        "newNonce",
        "newAccount",
        "newOrder",
        "authorization",
        "challenge",
        "order",
        "finalize",
        "certificate",
    ],
)
async def test_cancelling_is_prompt_wherever_it_hangs(ca: FakeCA, customer: Customer, resource: str) -> None:
    ca.script[resource] = [None]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(customer.obtain)
        await trio.testing.wait_all_tasks_blocked()
        assert ca.asked[-1].resource == resource
        before = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - before < 2
    assert not customer.board._answers
    await customer.obtain()
    assert ca.orders == 1


async def test_a_request_has_thirty_seconds(ca: FakeCA, customer: Customer, autojump_clock: Clock) -> None:
    ca.script["newOrder"] = [None]
    start = trio.current_time()
    assert "did not answer within 30 seconds" in str(await failure(customer))
    assert trio.current_time() - start == pytest.approx(30)


def on(resource: str, act: Callable[[], None]) -> Callable[[str], None]:
    """An `on_request` that acts when one resource is asked for."""
    return lambda asked: act() if asked == resource else None


async def test_connections_are_closed_however_it_ends(ca: FakeCA, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    monkeypatch.setattr(ca, "close", lambda: closed.append(True))
    customer = ca.customer()
    await customer.obtain()
    assert closed == [True]
    ca.script["order"] = [BUSY]
    await failure(customer)
    assert closed == [True, True]
    with trio.CancelScope() as scope:
        ca.on_request = on("order", scope.cancel)
        await customer.obtain()
    assert closed == [True, True, True]
