"""Issuances at a CA that misbehaves: refusals, waits, nonsense, and times that are over. In Trio's mock time."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.acme.fake_ca import BASE, BUSY, FakeCA, Reply, answer, problem
from tests.acme.support import Clock, Customer, failure
from trioproxy.errors import AcmeError, ConnectionLost, UpstreamUnreachable


@pytest.fixture
def ca() -> FakeCA:
    return FakeCA()


@pytest.fixture
def customer(ca: FakeCA) -> Customer:
    return ca.customer()


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


async def test_the_ca_is_told_to_look_when_all_who_answer_have_the_answer(
    ca: FakeCA, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hung, have_it = trio.Event(), trio.Event()

    async def seen() -> None:
        hung.set()
        await have_it.wait()

    monkeypatch.setattr(customer.board, "seen", seen)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(customer.obtain)
        with trio.fail_after(5):
            await hung.wait()
        assert customer.board._answers
        assert "challenge" not in [asked.resource for asked in ca.asked]
        have_it.set()
    assert "challenge" in [asked.resource for asked in ca.asked]


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
