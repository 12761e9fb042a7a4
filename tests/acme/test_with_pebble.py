"""Accounts and issuances against a real CA: Pebble checks every signature, nonce and field that RFC 8555 speaks of."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from tests.acme.support import Customer, Port80, port80
from tests.pebble import Pebble, needs_pebble, running_pebble
from trioproxy.acme.certificate import new_key, top_issuer, type_of
from trioproxy.acme.client import Account, AcmeClient
from trioproxy.acme.order import Issued, OrderFailed
from trioproxy.acme.signing import new_account_key
from trioproxy.certs.store import Store as Keeper
from trioproxy.config.model import AccountId, Acme, Eab, KeyType
from trioproxy.errors import AcmeError
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper

pytestmark = needs_pebble


@pytest.fixture
async def web() -> AsyncIterator[Port80]:
    async with port80() as server:
        yield server


@pytest.fixture
async def ca(web: Port80, tmp_path: Path) -> AsyncIterator[Pebble]:
    async with running_pebble(tmp_path, http_port=web.port) as pebble:
        yield pebble


@pytest.fixture
def customer(ca: Pebble, web: Port80) -> Customer:
    return Customer(ca.directory, ca.ca_file, web.board)


async def verify(issued: Issued, name: str, ca: Pebble) -> x509.Certificate:
    """Check an issuance as a browser that trusts the CA's root would; the leaf."""
    root = x509.load_pem_x509_certificate(await ca.root_pem())
    leaf, *intermediates = x509.load_pem_x509_certificates(issued.chain_pem)
    assert root not in intermediates
    verifier = PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName(name))
    verifier.verify(leaf, intermediates)
    key = load_pem_private_key(issued.key_pem, None).public_key()
    as_der = partial(lambda k: k.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))
    assert as_der(key) == as_der(leaf.public_key())
    return leaf


@pytest.mark.parametrize("key_type", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_a_certificate_is_issued(customer: Customer, web: Port80, ca: Pebble, key_type: KeyType) -> None:
    issued = await customer.obtain("cloud.test", key_type)
    await verify(issued, "cloud.test", ca)
    assert type_of(issued.key_pem) == key_type
    assert {name for name, _ in web.asked} == {"cloud.test"}
    assert customer.journal.kept is not None, "the caller has not stored the certificate yet"
    assert any("terms of service" in line for line in customer.said)


async def test_nothing_is_presented_before_the_journal_is_written_nor_after_the_end(
    customer: Customer, web: Port80
) -> None:
    presented_before: list[object] = []
    customer.journal.on_write = lambda: presented_before.extend(web.board._answers)
    await customer.obtain()
    assert presented_before == []
    assert not web.board._answers


async def test_the_next_certificate_has_a_new_key_and_the_same_account(customer: Customer, ca: Pebble) -> None:
    first = await customer.obtain()
    account = customer.accounts.only
    await customer.journal.clear()
    customer.said.clear()
    second = await customer.obtain()
    assert first.key_pem != second.key_pem
    assert customer.accounts.only == account
    assert len(customer.accounts.history) == 2, "the key before registration, the address after"
    assert not any("terms of service" in line for line in customer.said)


async def test_names_that_were_validated_before_are_not_validated_again(web: Port80, tmp_path: Path) -> None:
    async with running_pebble(tmp_path, http_port=web.port, env={"PEBBLE_AUTHZREUSE": "100"}) as ca:
        customer = Customer(ca.directory, ca.ca_file, web.board)
        await customer.obtain()
        await customer.journal.clear()
        web.asked.clear()
        await verify(await customer.obtain(), "cloud.test", ca)
        assert web.asked == []


async def test_refused_nonces_only_cost_time(web: Port80, tmp_path: Path) -> None:
    async with running_pebble(tmp_path, http_port=web.port, nonce_reject=60) as ca:
        customer = Customer(ca.directory, ca.ca_file, web.board)
        for name in ("a.test", "b.test", "c.test"):
            await verify(await customer.obtain(name), name, ca)
            await customer.journal.clear()


async def test_several_orders_share_a_client_and_its_account(customer: Customer, web: Port80, ca: Pebble) -> None:
    client = customer.client()
    names = ["a.test", "b.test", "c.test"]
    others = [Customer(ca.directory, ca.ca_file, web.board, accounts=customer.accounts) for _ in names]
    async with trio.open_nursery() as nursery:
        for name, other in zip(names, others, strict=True):
            nursery.start_soon(partial(other.obtain, name, client=client))
    assert len(customer.accounts.history) == 2, "one account was opened"
    assert "There are now 2 accounts" not in ca.said()


# ---- crashes ----------------------------------------------------------------------------------------------

POINTS = ["journal", "is in place", "found the answer", "asking the CA to sign", "has signed", "returned"]


@pytest.mark.parametrize("point", POINTS)
async def test_whoever_comes_after_a_crash_goes_on_with_the_same_order(
    customer: Customer, web: Port80, ca: Pebble, point: str
) -> None:
    with trio.CancelScope() as scope:
        if point == "journal":
            customer.journal.on_write = scope.cancel
        customer.on_report = lambda line: scope.cancel() if point in line else None
        await customer.obtain()
    assert scope.cancelled_caught == (point != "returned")
    assert not web.board._answers

    customer.journal.on_write = lambda: None
    customer.on_report = lambda line: None
    issued = await customer.obtain()
    await verify(issued, "cloud.test", ca)
    assert len(customer.journal.orders) == 1
    assert issued.key_pem == customer.journal.history[0].key_pem
    assert ca.said().count("Added order") == 1
    assert "going on with the order begun before" in customer.said


async def test_an_order_whose_validation_failed_meanwhile_is_made_anew(
    customer: Customer, web: Port80, ca: Pebble
) -> None:
    with trio.CancelScope() as scope:
        customer.on_report = lambda line: scope.cancel() if "is in place" in line else None
        await customer.obtain()
    customer.on_report = lambda line: None
    # What a crash between the request and its answer leaves: the CA looks, and nobody is there.
    client = customer.client()
    await client.register(customer.report)
    record = customer.journal.kept
    assert record is not None
    order, _ = await client.order(record.order_url)
    authorization, _ = await client.authorization(order.authorizations[0])
    challenge = authorization.challenge("http-01")
    assert challenge is not None
    await client.respond(challenge)
    with trio.fail_after(10):
        while order.status != "invalid":
            order, _ = await client.order(record.order_url)
    client.close()

    await verify(await customer.obtain(), "cloud.test", ca)
    assert len(customer.journal.orders) == 2


async def test_an_order_with_another_type_of_key_is_not_gone_on_with(customer: Customer) -> None:
    await customer.obtain(key_type="ecdsa-p256")
    issued = await customer.obtain(key_type="ecdsa-p384")
    assert type_of(issued.key_pem) == "ecdsa-p384"


async def test_an_order_at_another_ca_is_not_gone_on_with(customer: Customer, web: Port80, tmp_path: Path) -> None:
    await customer.obtain()
    async with running_pebble(tmp_path / "other", http_port=web.port) as other:
        customer.directory, customer.ca_file = other.directory, other.ca_file
        await verify(await customer.obtain(), "cloud.test", other)
        assert len(customer.accounts.kept) == 2


# ---- accounts ---------------------------------------------------------------------------------------------


async def test_a_ca_that_forgot_us_gets_a_new_account(customer: Customer, ca: Pebble) -> None:
    await customer.obtain()
    before = customer.accounts.only
    await customer.journal.clear()
    await ca.restart()
    await verify(await customer.obtain(), "cloud.test", ca)
    assert customer.accounts.only.key_pem == before.key_pem
    assert customer.accounts.only.url != before.url


async def test_a_ca_that_forgot_us_while_we_run_gets_a_new_account(customer: Customer, ca: Pebble) -> None:
    client = customer.client()
    await customer.obtain(client=client)  # and the journal stays: its order is forgotten as well
    await ca.restart()
    await verify(await customer.obtain(client=client), "cloud.test", ca)
    assert len(customer.journal.orders) == 2


async def test_a_key_whose_registration_nobody_knows_the_outcome_of_finds_its_account(
    customer: Customer, ca: Pebble
) -> None:
    await customer.obtain()
    account = customer.accounts.only
    await customer.accounts.write(AccountId(ca.directory), customer.accounts.history[0])
    assert customer.accounts.only.url == ""
    await customer.obtain()
    assert customer.accounts.only == account


@pytest.mark.parametrize("email", ["you@example.org", ""])
async def test_a_changed_email_address_is_told_to_the_ca(customer: Customer, ca: Pebble, email: str) -> None:
    await customer.obtain()
    before = customer.accounts.only
    assert await contact(customer) == ["mailto:me@example.org"]
    customer.email = email
    await customer.obtain()
    assert await contact(customer) == ([f"mailto:{email}"] if email else [])
    assert (customer.accounts.only.url, customer.accounts.only.contact) == (before.url, email)


async def test_an_address_that_the_ca_refuses_does_not_keep_certificates_from_being_renewed(customer: Customer) -> None:
    await customer.obtain()
    customer.email = "no address"
    await customer.journal.clear()
    await customer.obtain()
    assert customer.accounts.only.contact == "me@example.org", "so that it is tried again"
    assert any("email address" in line for line in customer.said)


async def contact(customer: Customer) -> list[str]:
    """What the CA holds to be the account's contact."""
    client = customer.client()
    await client.register(customer.report)
    reply = await client._member.post(customer.accounts.only.url, b"", "")
    client.close()
    found: list[str] = json.loads(reply.body).get("contact") or []
    return found


# ---- customers, keys, revocations, chains -----------------------------------------------------------------

SECRET = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
OTHER_SECRET = "b10lLJs8l1GPIzsLP0s6pMt8O0XVGnfTaCeROxQM0BIt2XrJMDHJZBM5NuQmQJQH"


def customer_of(ca: Pebble, web: Port80, key_id: str, secret: str) -> Customer:
    eab = Eab(key_id, base64.urlsafe_b64decode(secret))
    return Customer(ca.directory, ca.ca_file, web.board, settings=Acme(eab=eab))


async def test_accounts_are_bound_to_customers_and_kept_apart(web: Port80, tmp_path: Path) -> None:
    customers = {"kid-1": SECRET, "kid-2": OTHER_SECRET}
    async with running_pebble(tmp_path, http_port=web.port, customers=customers) as ca:
        one = customer_of(ca, web, "kid-1", SECRET)
        await verify(await one.obtain(), "cloud.test", ca)
        await one.journal.clear()
        await one.obtain()
        assert len(one.accounts.history) == 2, "the account is used again"

        two = customer_of(ca, web, "kid-2", OTHER_SECRET)
        two.accounts = one.accounts
        await two.obtain()
        assert {account.eab_key_id for account in one.accounts.kept} == {"kid-1", "kid-2"}
        assert len({account.url for account in one.accounts.kept.values()}) == 2

        unbound = Customer(ca.directory, ca.ca_file, web.board)
        with pytest.raises(OrderFailed, match="only for its customers") as caught:
            await unbound.obtain()
        assert caught.value.failure == "account"
        for key_id, secret in (("kid-1", OTHER_SECRET), ("kid-3", SECRET)):
            with pytest.raises(OrderFailed, match=r"refused to open an account with acme\.eab \(compare") as caught:
                await customer_of(ca, web, key_id, secret).obtain()
            assert caught.value.failure == "account"
            assert secret not in str(caught.value)


async def test_the_account_goes_on_with_a_new_key(customer: Customer, ca: Pebble) -> None:
    await customer.obtain()
    before = customer.accounts.only
    client = customer.client()
    await client.roll_over(customer.report)
    client.close()
    after = customer.accounts.only
    assert after.key_pem != before.key_pem
    assert (after.url, after.contact, after.next_key_pem) == (before.url, before.contact, b"")
    await customer.journal.clear()
    await verify(await customer.obtain(client=client), "cloud.test", ca)
    await customer.journal.clear()
    await verify(await customer.obtain(), "cloud.test", ca)
    assert "There are now 2 accounts" not in ca.said()


@pytest.mark.parametrize("told", [True, False])
async def test_after_a_crash_the_ca_is_asked_which_key_it_knows(customer: Customer, ca: Pebble, told: bool) -> None:
    await customer.obtain()
    before = customer.accounts.only
    client = customer.client()
    await client.roll_over(customer.report)
    client.close()
    rolled, both = customer.accounts.history[-1], customer.accounts.history[-2]
    assert (both.key_pem, both.next_key_pem) == (before.key_pem, rolled.key_pem), "kept before the CA was told"
    if not told:  # the CA knows the present key, and what is beside it is one that never got there
        both = attrs.evolve(both, key_pem=rolled.key_pem, next_key_pem=new_account_key())
    await customer.accounts.write(AccountId(ca.directory), both)
    await customer.journal.clear()
    await verify(await customer.obtain(), "cloud.test", ca)
    assert customer.accounts.only == rolled


async def test_a_aaaa_record_where_nobody_answers_is_named(customer: Customer, ca: Pebble) -> None:
    await ca.dns.set_ipv6("cloud.test", "::1")
    with pytest.raises(
        OrderFailed, match=r"could not connect to port 80 of cloud\.test at ::1, which its AAAA"
    ) as caught:
        await customer.obtain()
    assert caught.value.failure == "validation"


async def test_a_name_that_the_ca_issues_nothing_for_is_refused_alone(web: Port80, tmp_path: Path) -> None:
    async with running_pebble(tmp_path, http_port=web.port, blocklist=["blocked.test"]) as ca:
        customer = Customer(ca.directory, ca.ca_file, web.board)
        with pytest.raises(OrderFailed, match=r"no certificate for blocked\.test: .*forbidden by policy") as caught:
            await customer.obtain("blocked.test")
        assert caught.value.failure == "refused", "another CA may see that otherwise"
        assert customer.journal.kept is None
        assert web.asked == []
        await verify(await customer.obtain("cloud.test"), "cloud.test", ca)


async def test_several_processes_open_one_account_and_go_on_with_the_key_that_one_of_them_changed(
    ca: Pebble, web: Port80, tmp_path: Path
) -> None:
    settings, store = Acme(directory=ca.directory, ca_file=ca.ca_file), Keeper(tmp_path / "store")
    said: list[str] = []
    one, two = (AcmeClient(settings, HttpClient(ca.ca_file, Reaper()), store.accounts) for _ in range(2))
    async with trio.open_nursery() as nursery:
        for client in (one, two):
            nursery.start_soon(client.register, said.append)
    assert one.account_url == two.account_url
    assert len(said) == 1, "who comes second finds the account"
    await two.roll_over(said.append)
    await one.register(said.append)
    await one.new_order("cloud.test")
    await one.roll_over(said.append)
    await two.register(said.append)
    await two.new_order("home.test")
    one.close()
    two.close()


async def test_an_account_whose_key_is_damaged_is_replaced(customer: Customer, ca: Pebble) -> None:
    await customer.accounts.write(AccountId(ca.directory), Account(b"no key", "https://ca.test/account/1", ""))
    await verify(await customer.obtain(), "cloud.test", ca)
    assert customer.accounts.only.key_pem != b"no key"


@pytest.mark.parametrize("reason", ["unspecified", "keyCompromise", "superseded"])
async def test_a_certificate_is_revoked(customer: Customer, ca: Pebble, reason: str) -> None:
    issued = await customer.obtain()
    serial = x509.load_pem_x509_certificate(issued.chain_pem).serial_number
    assert await ca.status_of(serial) == "Valid"
    client = customer.client()
    await client.register(customer.report)
    await client.revoke(issued.chain_pem, reason)
    assert await ca.status_of(serial) == "Revoked"
    await client.revoke(issued.chain_pem, reason)  # is so already, and so that is no failure
    client.close()


@pytest.mark.parametrize("key_type", ["ecdsa-p256", "ecdsa-p384", "rsa-2048"])
async def test_what_another_account_ordered_is_revoked_by_its_own_key(
    customer: Customer, ca: Pebble, web: Port80, key_type: KeyType
) -> None:
    issued = await customer.obtain("cloud.test", key_type)
    serial = x509.load_pem_x509_certificate(issued.chain_pem).serial_number
    stranger = Customer(ca.directory, ca.ca_file, web.board)
    client = stranger.client()
    await client.register(stranger.report)
    with pytest.raises(AcmeError, match="refused to revoke the certificate"):
        await client.revoke(issued.chain_pem, "superseded")
    assert await ca.status_of(serial) == "Valid"
    await client.revoke(issued.chain_pem, "superseded", issued.key_pem)
    assert await ca.status_of(serial) == "Revoked"
    await client.revoke(issued.chain_pem, "superseded", issued.key_pem)  # is so already
    client.close()


async def test_another_key_revokes_nothing(customer: Customer, ca: Pebble, web: Port80) -> None:
    issued = await customer.obtain()
    client = Customer(ca.directory, ca.ca_file, web.board).client()
    await client.register(customer.report)
    with pytest.raises(AcmeError, match="refused to revoke the certificate"):
        await client.revoke(issued.chain_pem, "superseded", new_key("ecdsa-p256"))
    assert await ca.status_of(x509.load_pem_x509_certificate(issued.chain_pem).serial_number) == "Valid"
    client.close()


async def test_of_several_chains_the_preferred_one_is_taken(web: Port80, tmp_path: Path) -> None:
    async with running_pebble(tmp_path, http_port=web.port, env={"PEBBLE_ALTERNATE_ROOTS": "2"}) as ca:
        roots = [x509.load_pem_x509_certificate(await ca.get(f"roots/{number}")) for number in range(3)]
        names = [str(root.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value) for root in roots]
        assert len(set(names)) == 3
        for root, name in zip(roots, names, strict=True):
            customer = Customer(ca.directory, ca.ca_file, web.board, settings=Acme(preferred_chain=name))
            issued = await customer.obtain()
            leaf, *intermediates = x509.load_pem_x509_certificates(issued.chain_pem)
            verifier = PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName("cloud.test"))
            verifier.verify(leaf, intermediates)
            assert not any("warning" in line for line in customer.said)
        customer = Customer(ca.directory, ca.ca_file, web.board, settings=Acme(preferred_chain="Root X1"))
        default = await customer.obtain()
        assert top_issuer(default.chain_pem) == names[0]
        assert any(line.startswith("warning: no chain of the CA's leads to Root X1 (they") for line in customer.said)


# ---- the other challenge ----------------------------------------------------------------------------------


async def test_a_name_is_proved_in_tls(tmp_path: Path, web: Port80) -> None:
    shown: list[str] = []

    async def show(stream: trio.SocketStream) -> None:
        """Answer a handshake with what hangs on the board, as port 443 is to do it."""
        pem, context = web.board.answer_in_tls("cloud.test"), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        file = trio.Path(tmp_path / f"proof-{stream.socket.fileno()}.pem")  # the CA looks three times at once
        await file.write_bytes(pem or b"")
        context.load_cert_chain(file)
        context.set_alpn_protocols(["acme-tls/1"])
        tls = trio.SSLStream(stream, context, server_side=True)
        try:
            await tls.do_handshake()
            shown.append(str(tls.selected_alpn_protocol()))
        finally:
            await trio.aclose_forcefully(tls)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, show, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        async with running_pebble(tmp_path / "pebble", http_port=1, tls_port=port) as ca:
            customer = Customer(ca.directory, ca.ca_file, web.board, challenges=("tls-alpn-01", "http-01"))
            await verify(await customer.obtain(), "cloud.test", ca)
        nursery.cancel_scope.cancel()
    assert set(shown) == {"acme-tls/1"}
    assert web.asked == []


# ---- failures ---------------------------------------------------------------------------------------------


async def test_a_wrong_answer_is_a_failed_validation(customer: Customer, web: Port80, ca: Pebble) -> None:
    web.deaf = True
    with pytest.raises(OrderFailed, match=r"no certificate for cloud\.test: something answered") as caught:
        await customer.obtain()
    assert caught.value.validation_failed
    assert not caught.value.rate_limited
    assert "404" in str(caught.value), "what the CA says is passed on"
    assert customer.journal.kept is None
    assert not web.board._answers
    web.deaf = False
    await verify(await customer.obtain(), "cloud.test", ca)


async def test_a_closed_port_80_is_a_failed_validation_that_points_to_the_router(tmp_path: Path, web: Port80) -> None:
    with socket.socket() as bound:  # and not listening: connections are refused
        bound.bind(("127.0.0.1", 0))
        async with running_pebble(tmp_path, http_port=bound.getsockname()[1]) as ca:
            customer = Customer(ca.directory, ca.ca_file, web.board)
            with pytest.raises(OrderFailed, match=r"router does not forward port 80") as caught:
                await customer.obtain()
    assert caught.value.validation_failed
    assert "connection refused" in str(caught.value)


async def test_a_name_that_does_not_resolve_is_a_failed_validation(customer: Customer, ca: Pebble) -> None:
    await ca.dns.set_servfail("cloud.test")
    with pytest.raises(OrderFailed, match=r"The CA says: .*cloud\.test") as caught:
        await customer.obtain()
    assert caught.value.validation_failed


async def test_cancelling_is_prompt_and_takes_the_answer_down(web: Port80, tmp_path: Path) -> None:
    slow = {"PEBBLE_VA_NOSLEEP": "0", "PEBBLE_VA_SLEEPTIME": "30"}
    async with running_pebble(tmp_path, http_port=web.port, env=slow) as ca:
        customer = Customer(ca.directory, ca.ca_file, web.board)
        waiting = trio.Event()
        customer.on_report = lambda line: waiting.set() if "is in place" in line else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(customer.obtain)
            await waiting.wait()
            assert web.board._answers
            before = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - before < 2
        assert not web.board._answers
