"""Renewal information and profiles at a CA that others wrote. (0.46 reads no `replaces`; it does not mind it.)"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.acme.support import Customer
from tests.acme2certifier import needs_acme2certifier, running_acme2certifier
from trioproxy.acme.ari import pick
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme

pytestmark = needs_acme2certifier


@pytest.fixture
async def directory(tmp_path: Path) -> AsyncIterator[str]:
    async with running_acme2certifier(tmp_path / "a2c", {"one": "http://ca.test/one"}) as url:
        yield url


@pytest.fixture
def customer(directory: str) -> Customer:
    return Customer(directory, None, ChallengeBoard())


async def test_a_certificate_is_issued_and_renewed_as_the_ca_suggests(customer: Customer) -> None:
    issued = await customer.obtain()
    leaf = x509.load_pem_x509_certificate(issued.chain_pem)
    client = customer.client()
    advice = await client.renewal_info(issued.chain_pem)
    client.close()
    assert advice is not None
    assert advice.doubt == ""
    assert advice.window is not None
    assert leaf.not_valid_before_utc < pick(advice.window, 0.5) < leaf.not_valid_after_utc
    assert 60 <= advice.ask_again <= 86400

    await customer.journal.clear()
    customer.replaces = issued.origin
    assert (await customer.obtain()).chain_pem != issued.chain_pem
    assert not any("without saying" in line for line in customer.said), "the CA does not mind `replaces`"


async def test_a_profile_is_taken_and_another_one_is_not_offered(customer: Customer) -> None:
    customer.settings = Acme(profile="one")
    await customer.obtain()
    assert not any("warning" in line for line in customer.said)
    await customer.journal.clear()
    customer.settings = Acme(profile="two")
    await customer.obtain()
    assert any("does not offer the profile two" in line for line in customer.said)


async def test_a_certificate_is_revoked_and_the_key_changed(customer: Customer) -> None:
    issued = await customer.obtain()
    client = customer.client()
    await client.roll_over(customer.report)
    await client.revoke(issued.chain_pem, "superseded")
    await client.revoke(issued.chain_pem, "superseded")
    client.close()
    await customer.journal.clear()
    await customer.obtain()
