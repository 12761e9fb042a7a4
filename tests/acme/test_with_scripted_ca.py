"""Issuances at a CA over real HTTPS that checks what it is sent and then does what a test tells it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.acme.support import Customer, MemoryAccounts, Port80, failure, port80
from tests.scripted_ca import (
    Answer,
    Change,
    Drip,
    Drop,
    Hang,
    ScriptedCA,
    answer,
    problem,
    scripted_ca,
    spki,
    with_body,
)
from trioproxy.acme import order as order_module
from trioproxy.acme import session as session_module
from trioproxy.acme.certificate import top_issuer
from trioproxy.acme.problems import AcmeProblem, AcmeUnreachable
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, Eab

NAME = "cloud.test"


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[ScriptedCA]:
    async with scripted_ca(tmp_path) as running:
        yield running


@pytest.fixture
def customer(ca: ScriptedCA) -> Customer:
    return Customer(ca.directory, ca.ca_file, ChallengeBoard())


def leaf_of(pem: bytes) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pem)


# ---- the CA itself ------------------------------------------------------------------------------------------


async def test_a_certificate_is_issued_and_counted(ca: ScriptedCA, customer: Customer) -> None:
    issued = await customer.obtain()
    assert [order.name for order in ca.orders] == [NAME]
    assert ca.validations(NAME) == 1
    assert ca.orders[0].leaf == leaf_of(issued.chain_pem)
    assert issued.origin.account_url == ca.members[0].url
    assert issued.origin.account == customer.client().settings.account


async def test_the_answer_is_looked_for_where_there_is_a_port(ca: ScriptedCA, customer: Customer) -> None:
    async with port80() as web:
        ca.http_port, customer.board = web.port, web.board
        await customer.obtain()
        assert web.asked == [(NAME, "/.well-known/acme-challenge/token-1")]
        web.deaf = True
        await customer.journal.clear()
        error = await failure(customer)
    assert (error.failure, error.challenge) == ("validation", "http-01")
    assert "something answered the CA on port 80" in str(error)


# ---- replaces -----------------------------------------------------------------------------------------------


async def renewed(customer: Customer) -> None:
    """Get a certificate that replaces the one before."""
    issued = await customer.obtain()
    await customer.journal.clear()
    customer.replaces = issued.origin
    customer.said.clear()


async def test_a_renewal_says_what_it_replaces(ca: ScriptedCA, customer: Customer) -> None:
    await renewed(customer)
    assert ca.orders[0].replaces == ""
    await customer.obtain()
    assert ca.orders[1].replaces == customer.replaces.certificate_id  # type: ignore[union-attr]
    assert customer.replaces is not None
    assert customer.replaces.certificate_id


async def test_what_is_replaced_already_is_ordered_again_without_it_at_once(ca: ScriptedCA, customer: Customer) -> None:
    await renewed(customer)
    await customer.obtain()
    await customer.journal.clear()
    await customer.obtain()
    assert [bool(order.replaces) for order in ca.orders] == [False, True, False]
    assert len(ca.times("newOrder")) == 4
    assert any("without saying what is replaced" in line for line in customer.said)


@pytest.mark.parametrize(
    "refusal",
    [
        problem(409, "conflict"),
        problem(409, ""),
        problem(404, "malformed", "could not find a certificate"),
        problem(403, "unauthorized", "requester account did not request the certificate being replaced"),
    ],
)
async def test_a_ca_that_does_not_like_replaces_is_asked_without(
    ca: ScriptedCA, customer: Customer, refusal: Answer
) -> None:
    await renewed(customer)
    ca.script["newOrder"] = [refusal]
    await customer.obtain()
    assert [bool(order.replaces) for order in ca.orders] == [False, False]


async def test_a_limit_is_not_taken_for_a_dislike_of_replaces(ca: ScriptedCA, customer: Customer) -> None:
    await renewed(customer)
    ca.script["newOrder"] = [problem(429, "rateLimited", retry_after="60")]
    assert (await failure(customer)).failure == "limit"
    assert len(ca.times("newOrder")) == 2


async def test_another_account_or_ca_is_not_told_what_is_replaced(
    ca: ScriptedCA, customer: Customer, tmp_path: Path
) -> None:
    def told(authority: ScriptedCA) -> list[bool]:
        return ["replaces" in asked.payload for asked in authority.asked if asked.resource == "newOrder"]

    await renewed(customer)
    customer.accounts = MemoryAccounts()
    await customer.obtain()
    assert told(ca) == [False, False]
    await customer.journal.clear()
    async with scripted_ca(tmp_path / "other") as other:
        customer.directory, customer.ca_file = other.directory, other.ca_file
        await customer.obtain()
        assert told(other) == [False]


async def test_an_account_that_was_forgotten_costs_no_certificate(ca: ScriptedCA, customer: Customer) -> None:
    await renewed(customer)
    ca.forget()
    await customer.obtain()
    assert [order.replaces for order in ca.orders] == [""]


async def test_a_ca_without_renewal_information_is_not_told_either(ca: ScriptedCA, customer: Customer) -> None:
    await renewed(customer)
    ca.script["directory"] = [with_body(renewalInfo=None)]
    await customer.obtain()
    assert ca.orders[1].replaces == ""


# ---- profiles and chains ------------------------------------------------------------------------------------


async def test_a_profile_is_asked_for(ca: ScriptedCA, customer: Customer) -> None:
    ca.profiles = {"classic": timedelta(days=90), "shortlived": timedelta(hours=160)}
    customer.settings = Acme(profile="shortlived")
    issued = await customer.obtain()
    leaf = leaf_of(issued.chain_pem)
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc == timedelta(hours=160)
    assert issued.origin.profile == "shortlived"


@pytest.mark.parametrize("offered", [{}, {"classic": timedelta(days=90)}])
async def test_a_profile_that_is_not_offered_costs_a_warning(
    ca: ScriptedCA, customer: Customer, offered: dict[str, timedelta], caplog: pytest.LogCaptureFixture
) -> None:
    ca.profiles = offered
    customer.settings = Acme(profile="shortlived")
    await customer.obtain()
    assert [order.profile for order in ca.orders] == [""]
    assert len(ca.times("newOrder")) == 1
    (warning,) = [line for line in customer.said if line.startswith("warning")]
    assert "does not offer the profile shortlived" in warning
    assert ("classic" if offered else "none") in warning
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert caplog.messages == [f"{NAME}  {warning.removeprefix('warning: ')}"]


async def test_a_profile_that_is_refused_although_it_is_offered_is_left_out(ca: ScriptedCA, customer: Customer) -> None:
    ca.profiles = {"shortlived": timedelta(hours=160)}
    ca.script["newOrder"] = [problem(400, "invalidProfile", "not for you")]
    customer.settings = Acme(profile="shortlived")
    await customer.obtain()
    assert [order.profile for order in ca.orders] == [""]


async def test_the_preferred_chain_is_looked_for_among_the_alternates(ca: ScriptedCA, customer: Customer) -> None:
    customer.settings = Acme(preferred_chain="Other Root")
    issued = await customer.obtain()
    assert top_issuer(issued.chain_pem) == "Other Root"
    assert len(ca.times("certificate")) == 2


async def test_without_a_preference_no_other_chain_is_fetched(ca: ScriptedCA, customer: Customer) -> None:
    issued = await customer.obtain()
    assert top_issuer(issued.chain_pem) == "Scripted Root"
    assert len(ca.times("certificate")) == 1


@pytest.mark.parametrize("broken", [problem(404, "malformed"), answer(200, b"no PEM")])
async def test_a_chain_that_is_of_no_use_does_not_keep_the_default_from_being_taken(
    ca: ScriptedCA, customer: Customer, broken: Answer
) -> None:
    customer.settings = Acme(preferred_chain="Other Root")
    ca.script["certificate"] = [Change(lambda usual: usual), broken]
    issued = await customer.obtain()
    assert top_issuer(issued.chain_pem) == "Scripted Root"
    assert any("warning: no chain of the CA's leads to Other Root" in line for line in customer.said)


# ---- customers and keys -------------------------------------------------------------------------------------


async def test_a_binding_is_checked(ca: ScriptedCA, customer: Customer) -> None:
    ca.customers = {"kid": b"a secret"}
    customer.settings = Acme(eab=Eab("kid", b"a secret"))
    await customer.obtain()
    await customer.journal.clear()
    await customer.obtain()
    assert [member.customer for member in ca.members] == ["kid"]
    customer.settings = Acme(eab=Eab("other", b"TopSecret"))
    error = await failure(customer)
    assert error.failure == "account"
    assert "TopSecret" not in f"{error} {error!r} {error.__cause__!r}"


async def test_a_new_key_waits_for_orders_and_orders_wait_for_it(ca: ScriptedCA, customer: Customer) -> None:
    client = customer.client()
    await client.register(customer.report)
    changed: list[int] = []
    ca.on_request = lambda resource: changed.append(len(ca.times("certificate"))) if resource == "keyChange" else None
    asked_to_change = trio.Event()
    customer.on_report = lambda line: asked_to_change.set() if "is in place" in line else None
    other = Customer(ca.directory, ca.ca_file, customer.board, accounts=customer.accounts)
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(customer.obtain, client=client))
        await asked_to_change.wait()
        nursery.start_soon(client.roll_over, said.append)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(partial(other.obtain, "home.test", client=client))
    assert changed == [1], "after the first order, before the second one"
    assert said == ["waiting for orders that are under way"]
    assert [order.status for order in ca.orders] == ["valid", "valid"]
    assert len(ca.members) == 1


@pytest.mark.parametrize("done", [True, False])
async def test_an_answer_that_is_lost_leaves_both_keys_and_the_next_one_finds_out(
    ca: ScriptedCA, customer: Customer, done: bool
) -> None:
    client = customer.client()
    await client.register(customer.report)
    before = customer.accounts.only
    ca.script["keyChange"] = [Drop(after=done)]
    with pytest.raises(AcmeUnreachable):
        await client.roll_over(customer.report)
    both = customer.accounts.only
    assert both.key_pem == before.key_pem
    assert both.next_key_pem
    await customer.obtain(client=client if done else None)
    assert customer.accounts.only.key_pem == (both.next_key_pem if done else before.key_pem)
    assert not customer.accounts.only.next_key_pem
    assert len(ca.members) == 1
    client.close()


async def test_a_refused_key_leaves_the_old_one(ca: ScriptedCA, customer: Customer) -> None:
    client = customer.client()
    await client.register(customer.report)
    before = customer.accounts.only
    ca.script["keyChange"] = [problem(400, "badPublicKey")]
    with pytest.raises(AcmeProblem, match="the account's new key"):
        await client.roll_over(customer.report)
    assert customer.accounts.only == before
    await customer.obtain(client=client)


async def test_an_account_that_is_gone_by_then_is_opened_anew_with_the_old_key(
    ca: ScriptedCA, customer: Customer
) -> None:
    client = customer.client()
    await client.register(customer.report)
    before = customer.accounts.only
    ca.script["keyChange"] = [Drop()]
    with pytest.raises(AcmeUnreachable):
        await client.roll_over(customer.report)
    ca.forget()
    await customer.obtain(client=client)
    assert customer.accounts.only.key_pem == before.key_pem
    assert customer.accounts.only.url != before.url


# ---- revocation and renewal information ---------------------------------------------------------------------


async def test_revoking_says_why_and_shows_in_the_renewal_information(ca: ScriptedCA, customer: Customer) -> None:
    issued = await customer.obtain()
    client = customer.client()
    await client.register(customer.report)
    advice = await client.renewal_info(issued.chain_pem)
    assert advice is not None
    assert advice.window is not None
    assert advice.window.start > datetime.now(UTC) + timedelta(days=50)
    await client.revoke(issued.chain_pem, "keyCompromise")
    await client.revoke(issued.chain_pem, "keyCompromise")
    assert ca.revoked == {leaf_of(issued.chain_pem).serial_number: 1}
    advice = await client.renewal_info(issued.chain_pem)
    assert advice is not None
    assert advice.window is not None
    assert advice.window.end < datetime.now(UTC)
    client.close()


async def test_renewal_information_needs_no_account(ca: ScriptedCA, customer: Customer) -> None:
    issued = await customer.obtain()
    ca.asked.clear()
    client = customer.client()
    ca.ask_again = "5"
    advice = await client.renewal_info(issued.chain_pem)
    assert advice is not None
    assert advice.ask_again == 60
    assert [asked.resource for asked in ca.asked] == ["directory", "renewalInfo"]
    ca.window = lambda leaf: (leaf.not_valid_after_utc.isoformat(), leaf.not_valid_before_utc.isoformat())
    advice = await client.renewal_info(issued.chain_pem)
    assert advice is not None
    assert (advice.window, advice.doubt) == (None, "it ends before it begins")
    client.close()


async def test_a_ca_without_renewal_information_has_none(ca: ScriptedCA, customer: Customer) -> None:
    issued = await customer.obtain()
    ca.script["directory"] = [with_body(renewalInfo=None)]
    client = customer.client()
    assert await client.renewal_info(issued.chain_pem) is None
    client.close()


# ---- limits, and clocks that are wrong ----------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("skew", [0.0, -86_400.0, 40 * 86_400.0])
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
async def test_a_moment_to_come_back_is_the_cas_own(
    ca: ScriptedCA, customer: Customer, monkeypatch: pytest.MonkeyPatch, status: int, skew: float, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    ca.skew = skew
    later = datetime.now(UTC) + timedelta(seconds=skew + 600)
    kind = "rateLimited" if status == 429 else "serverInternal"
    ca.script["newOrder"] = [problem(status, kind, retry_after=later.strftime("%a, %d %b %Y %H:%M:%S GMT"))]
    error = await failure(customer)
    monkeypatch.undo()
    time.tzset()
    assert error.failure == ("limit" if status == 429 else "unreachable")
    assert error.retry_after is not None
    assert 595 <= error.retry_after <= 601
    assert ca.orders == []


# ---- time ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resource", ["directory", "newAccount", "newOrder"])
@pytest.mark.parametrize("act", [Drip(0.05), Hang()])
async def test_a_request_has_a_total_deadline(
    ca: ScriptedCA, customer: Customer, monkeypatch: pytest.MonkeyPatch, resource: str, act: Drip | Hang
) -> None:
    monkeypatch.setattr(session_module, "REQUEST_DEADLINE", 0.3)
    ca.script[resource] = [act]
    before = trio.current_time()
    error = await failure(customer)
    assert error.failure == "unreachable"
    assert "did not answer within" in str(error)
    assert trio.current_time() - before < 5


async def test_an_order_that_drips_has_a_total_deadline_too(
    ca: ScriptedCA, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "ORDER_DEADLINE", 0.7)
    ca.script["order"] = [Drip(0.05)]
    before = trio.current_time()
    error = await failure(customer)
    assert trio.current_time() - before < 5
    assert error.failure == "unfinished"
    assert customer.journal.kept is not None
    await customer.obtain()
    assert len(ca.orders) == 1


@pytest.mark.parametrize("act", [Drip(1.0), Hang()])
@pytest.mark.parametrize("resource", ["directory", "newNonce", "newAccount", "newOrder", "challenge", "certificate"])
async def test_cancelling_takes_less_than_two_seconds(
    ca: ScriptedCA, customer: Customer, resource: str, act: Drip | Hang
) -> None:
    ca.script[resource] = [act]
    reached = trio.Event()
    ca.on_request = lambda asked: reached.set() if asked == resource else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(customer.obtain)
        await reached.wait()
        before = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - before < 2
    assert not customer.board._answers


# ---- orders that are stuck, or over ---------------------------------------------------------------------------


async def test_a_stuck_order_is_kept_once_and_then_given_up(
    ca: ScriptedCA, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_module, "ORDER_DEADLINE", 0.6)
    stuck = with_body(status="processing", certificate=None)
    ca.script["finalize"] = [stuck]
    ca.script["order"] = [Change(lambda usual: usual), *[stuck] * 100]
    assert (await failure(customer)).failure == "unfinished"
    assert customer.journal.read() is not None
    assert (await failure(customer)).failure == "unfinished"
    assert len(ca.orders) == 1
    assert customer.journal.read() is None
    ca.script.clear()
    monkeypatch.undo()
    await customer.obtain()
    assert len(ca.orders) == 2


@pytest.mark.parametrize("gone", [problem(404, "malformed", "no such order"), with_body(status="invalid")])
async def test_an_order_that_expired_meanwhile_is_made_anew(
    ca: ScriptedCA, customer: Customer, gone: Answer | Change
) -> None:
    with trio.CancelScope() as scope:
        ca.on_request = lambda asked: scope.cancel() if asked == "authorization" else None
        await customer.obtain()
    ca.on_request = lambda _: None
    assert customer.journal.orders == [f"{ca.base}/order/1"]
    ca.script["order"] = [gone]
    await customer.obtain()
    assert len(ca.orders) == 2
    assert customer.journal.history[0].key_pem != customer.journal.history[1].key_pem


async def test_an_authorisation_that_expired_ends_the_order_without_counting_as_a_failed_validation(
    ca: ScriptedCA, customer: Customer
) -> None:
    ca.script["authorization"] = [with_body(status="expired")]
    error = await failure(customer)
    assert error.failure == "refused"
    assert ca.validations(NAME) == 0


# ---- certificates that are none of ours -----------------------------------------------------------------------


async def test_a_certificate_for_another_key_is_not_taken(ca: ScriptedCA, customer: Customer) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    ca.key_of = lambda _: other.public_key()
    error = await failure(customer)
    assert "another key than ours" in str(error)
    assert error.failure == "nonsense"
    assert customer.journal.kept is None
    ca.key_of = lambda key: key
    issued = await customer.obtain()
    assert ca.orders[1].leaf is not None
    assert spki(ca.orders[1].leaf) == spki(leaf_of(issued.chain_pem))


async def test_a_certificate_for_another_name_is_not_taken(ca: ScriptedCA, customer: Customer) -> None:
    ca.names_of = lambda _: ["other.test"]
    assert "a certificate for other.test" in str(await failure(customer))


# ---- kinds of failures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "kind_of_failure"), [("caa", "caa"), ("dns", "dns"), ("connection", "validation"), ("tls", "validation")]
)
async def test_a_validation_that_fails_says_of_which_kind(
    ca: ScriptedCA, customer: Customer, kind: str, kind_of_failure: str
) -> None:
    error = {"type": f"urn:ietf:params:acme:error:{kind}", "detail": "it did not work"}
    ca.on_request = lambda asked: setattr(ca.orders[-1], "error", error) if asked == "challenge" else None
    failed = await failure(customer)
    assert failed.failure == kind_of_failure
    assert failed.validation_failed
    assert ca.validations(NAME) == 1


@pytest.mark.parametrize(
    ("resource", "refusal", "kind"),
    [
        ("newOrder", problem(403, "userActionRequired", "the terms have changed"), "account"),
        ("newOrder", problem(403, "unauthorized", "account has status deactivated"), "account"),
        ("newOrder", problem(400, "rejectedIdentifier"), "refused"),
        ("newOrder", problem(403, "caa"), "caa"),
        ("newAccount", problem(400, "invalidContact"), "account"),
        ("newOrder", answer(200, b"<html>"), "nonsense"),
        ("newOrder", answer(502, b"<html>"), "unreachable"),
        ("newOrder", Drop(), "unreachable"),
    ],
)
async def test_kinds_of_failures(
    ca: ScriptedCA, customer: Customer, resource: str, refusal: Answer | Drop, kind: str
) -> None:
    ca.script[resource] = [refusal]
    assert (await failure(customer)).failure == kind


async def test_changed_terms_are_told_with_where_to_agree(ca: ScriptedCA, customer: Customer) -> None:
    body = {"type": "urn:ietf:params:acme:error:userActionRequired", "instance": "https://ca.test/agree"}
    ca.script["newOrder"] = [answer(403, body)]
    assert "Open https://ca.test/agree in a browser" in str(await failure(customer))


# ---- the other challenge --------------------------------------------------------------------------------------


async def test_the_first_challenge_of_ours_that_the_ca_offers_is_answered(
    ca: ScriptedCA, customer: Customer, web: Port80
) -> None:
    customer.challenges = ("tls-alpn-01", "http-01")
    shown: list[bytes | None] = []

    def look(resource: str) -> None:
        if resource == "challenge":
            shown.append(customer.board.answer_in_tls(NAME))

    ca.on_request = look
    await customer.obtain()
    assert [asked.url for asked in ca.asked if asked.resource == "challenge"] == ["/challenge/1/tls-alpn-01"]
    assert customer.board.answer_in_tls(NAME) is None
    (pem,) = shown
    assert pem is not None
    certificate = leaf_of(pem[pem.index(b"-----BEGIN CERT") :])
    proof = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier("1.3.6.1.5.5.7.1.31"))
    assert proof.critical


@pytest.fixture
async def web() -> AsyncIterator[Port80]:
    async with port80() as server:
        yield server
