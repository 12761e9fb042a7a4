"""Accounts, nonces and the directory, at a CA that does what a test says."""

from __future__ import annotations

import pytest
import trio

from tests.acme.fake_ca import BASE, DIRECTORY, FakeCA, answer, problem
from tests.acme.support import Clock, Customer
from trioproxy.acme import session as session_module
from trioproxy.acme.client import AcmeClient
from trioproxy.acme.problems import AcmeProblem, AcmeProtocolError, AcmeUnreachable
from trioproxy.errors import AcmeError


@pytest.fixture
def ca() -> FakeCA:
    return FakeCA()


@pytest.fixture
def customer(ca: FakeCA) -> Customer:
    return ca.customer()


@pytest.fixture
def client(customer: Customer) -> AcmeClient:
    return customer.client()


# ---- the account ----------------------------------------------------------------------------------------


async def test_the_key_is_kept_before_the_ca_hears_of_it(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    known: list[int] = []
    ca.on_request = lambda resource: known.append(len(customer.accounts.history)) if resource == "newAccount" else None
    await client.register(customer.report)
    assert known == [1]
    before, after = customer.accounts.history
    assert (before.url, after.url) == ("", f"{BASE}/account/1")
    assert before.key_pem == after.key_pem
    assert ca.asked[-1].payload == {"contact": ["mailto:me@example.org"], "termsOfServiceAgreed": True}


async def test_a_registration_that_failed_goes_on_with_its_key(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    ca.script["newAccount"] = [problem(500, "serverInternal")]
    with pytest.raises(AcmeProblem):
        await client.register(customer.report)
    await customer.client().register(customer.report)
    assert len({account.key_pem for account in customer.accounts.history}) == 1


async def test_an_account_that_is_known_costs_no_request(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    await client.register(customer.report)
    ca.asked.clear()
    customer.said.clear()
    await client.register(customer.report)
    await customer.client().register(customer.report)
    assert ca.asked == []
    assert customer.said == []


async def test_without_an_email_address_there_is_no_contact(ca: FakeCA, customer: Customer) -> None:
    customer.email = ""
    await customer.client().register(customer.report)
    assert ca.asked[-1].payload["contact"] == []


async def test_an_account_that_was_there_already_is_told_of_another_address(ca: FakeCA, customer: Customer) -> None:
    ca.script["newAccount"] = [problem(500, "serverInternal")]
    with pytest.raises(AcmeProblem):  # as if the answer had been lost
        await customer.client().register(customer.report)
    customer.email = "you@example.org"
    ca.script["newAccount"] = [answer(200, {"status": "valid"}, location=f"{BASE}/account/1")]
    await customer.client().register(customer.report)
    assert ca.asked[-1].resource == "account"
    assert ca.asked[-1].payload == {"contact": ["mailto:you@example.org"]}
    assert customer.accounts.only.contact == "you@example.org"


async def test_an_address_that_is_refused_is_reported_and_tried_again(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    await client.register(customer.report)
    customer.email = "you@example.org"
    ca.script["account"] = [problem(400, "invalidContact", "no such domain")]
    await customer.client().register(customer.report)
    assert customer.said[-1] == "the CA refused the account's new email address: no such domain"
    assert customer.accounts.only.contact == "me@example.org"
    await customer.client().register(customer.report)
    assert customer.accounts.only.contact == "you@example.org"


async def test_a_new_account_is_made_once_and_the_request_repeated(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    await client.register(customer.report)
    ca.script["newOrder"] = [problem(400, "accountDoesNotExist")]
    ca.script["newAccount"] = [answer(201, {"status": "valid"}, location=f"{BASE}/account/2")]
    await client.new_order("cloud.test")
    assert customer.accounts.only.url == f"{BASE}/account/2"
    assert ca.asked[-1].protected["kid"] == f"{BASE}/account/2"
    assert len({account.key_pem for account in customer.accounts.history}) == 1


async def test_a_ca_that_forgets_at_once_is_not_asked_for_ever(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    await client.register(customer.report)
    ca.script["newOrder"] = [problem(400, "accountDoesNotExist")] * 10
    with pytest.raises(AcmeProblem, match="accountDoesNotExist"):
        await client.new_order("cloud.test")
    assert len(ca.times("newOrder")) == 2
    assert len(ca.times("newAccount")) == 2


async def test_several_orders_of_a_forgotten_account_make_one_new_account(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    await client.register(customer.report)
    ca.script["newOrder"] = [problem(400, "accountDoesNotExist")] * 3
    async with trio.open_nursery() as nursery:
        for name in ("a.test", "b.test", "c.test"):
            nursery.start_soon(client.new_order, name)
    assert len(ca.times("newAccount")) == 2


async def test_several_registrations_at_once_open_one_account(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(client.register, customer.report)
    assert len(ca.times("newAccount")) == 1


async def test_a_changed_address_of_a_forgotten_account_opens_a_new_one(ca: FakeCA, customer: Customer) -> None:
    await customer.client().register(customer.report)
    customer.email = "you@example.org"
    ca.script["account"] = [problem(400, "accountDoesNotExist")]
    ca.script["newAccount"] = [answer(201, {"status": "valid"}, location=f"{BASE}/account/2")]
    await customer.client().register(customer.report)
    assert (customer.accounts.only.url, customer.accounts.only.contact) == (f"{BASE}/account/2", "you@example.org")


async def test_a_ca_that_wants_a_binding_is_told_apart(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    meta = {"externalAccountRequired": True}
    resources = {name: f"{BASE}/{name}" for name in ("newNonce", "newAccount", "newOrder")}
    ca.script["directory"] = [answer(200, {**resources, "meta": meta})]
    with pytest.raises(AcmeError, match=r"\(external account binding\): write the key id"):
        await client.register(customer.report)
    assert ca.times("newAccount") == []


async def test_an_account_without_an_address_is_an_error(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    ca.script["newAccount"] = [answer(201, {})]
    with pytest.raises(AcmeProtocolError, match="did not say where"):
        await client.register(customer.report)


async def test_addresses_may_be_relative(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    ca.script["newAccount"] = [answer(201, {}, location="/account/7")]
    await client.register(customer.report)
    assert customer.accounts.only.url == f"{BASE}/account/7"


async def test_nothing_is_signed_before_there_is_an_account(client: AcmeClient) -> None:
    with pytest.raises(RuntimeError, match="comes first"):
        client.key_authorization("token")
    with pytest.raises(RuntimeError, match="comes first"):
        await client.new_order("cloud.test")


# ---- nonces ---------------------------------------------------------------------------------------------


async def test_a_nonce_comes_with_each_response_and_is_used_next(
    ca: FakeCA, customer: Customer, client: AcmeClient
) -> None:
    await client.register(customer.report)
    await client.new_order("a.test")
    await client.new_order("b.test")
    assert len(ca.times("newNonce")) == 1


async def test_a_refused_nonce_is_replaced_by_the_one_that_came_with_the_refusal(
    ca: FakeCA, customer: Customer, client: AcmeClient, autojump_clock: Clock
) -> None:
    await client.register(customer.report)
    ca.script["newOrder"] = [problem(400, "badNonce")] * 20
    await client.new_order("cloud.test")
    tries = [asked for asked in ca.asked if asked.resource == "newOrder"]
    assert len(tries) == 21
    assert len({asked.protected["nonce"] for asked in tries}) == 21
    assert len(ca.times("newNonce")) == 1, "the refusals brought them"


async def test_a_ca_that_refuses_every_nonce_is_neither_stormed_nor_asked_for_ever(
    ca: FakeCA, customer: Customer, client: AcmeClient, autojump_clock: Clock
) -> None:
    await client.register(customer.report)
    ca.script["newOrder"] = [problem(400, "badNonce")] * 10_000
    start = trio.current_time()
    with pytest.raises(AcmeUnreachable, match="30 seconds"):
        await client.new_order("cloud.test")
    assert trio.current_time() - start == pytest.approx(30)
    assert len(ca.times("newOrder")) < 100


@pytest.mark.parametrize("sent", [b"", b"abc=", b"a b", None])
async def test_a_ca_without_nonces_of_use_is_an_error(
    ca: FakeCA, customer: Customer, client: AcmeClient, sent: bytes | None
) -> None:
    ca.nonce = lambda: sent
    with pytest.raises(AcmeProtocolError, match="no nonce that can be used"):
        await client.register(customer.report)


async def test_the_nonces_that_are_kept_are_few_and_fresh(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    await client.register(customer.report)
    for _ in range(3 * session_module.MAX_NONCES):
        await client._session._request(b"HEAD", f"{BASE}/newNonce", "a nonce")
    newest = client._session._nonces[-1]
    assert len(client._session._nonces) == session_module.MAX_NONCES
    await client.new_order("cloud.test")
    assert ca.asked[-1].protected["nonce"] == newest


# ---- the directory, and where requests go ---------------------------------------------------------------


async def test_the_directory_is_read_once_an_hour(
    ca: FakeCA, customer: Customer, client: AcmeClient, autojump_clock: Clock
) -> None:
    await client.register(customer.report)
    await client.new_order("a.test")
    assert len(ca.times("directory")) == 1
    await trio.sleep(session_module.DIRECTORY_AGE)
    await client.new_order("b.test")
    assert len(ca.times("directory")) == 2


async def test_a_page_that_is_no_directory_is_named(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    ca.script["directory"] = [answer(200, b"<html>It works!</html>")]
    with pytest.raises(AcmeProtocolError, match=f"{DIRECTORY} is no ACME directory"):
        await client.register(customer.report)


async def test_an_https_ca_cannot_lead_to_http(ca: FakeCA, customer: Customer, client: AcmeClient) -> None:
    resources = {name: f"http://ca.test/{name}" for name in ("newNonce", "newAccount", "newOrder")}
    ca.script["directory"] = [answer(200, resources)]
    with pytest.raises(AcmeProtocolError, match=r"not https: http://ca\.test/newNonce"):
        await client.register(customer.report)
    assert [asked.resource for asked in ca.asked] == ["directory"]


async def test_an_account_key_is_not_shown(customer: Customer, client: AcmeClient) -> None:
    await client.register(customer.report)
    await customer.obtain()
    record = customer.journal.read()
    assert record is not None
    for value in (customer.accounts.only, record):
        assert "PRIVATE" not in repr(value)
