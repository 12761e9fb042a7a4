"""Rehearsals at a real staging: two Pebbles, of which one issues in earnest, and a real server between them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from cryptography import x509

from tests.certs.serving import NAME, command, configuration, eventually, port_80, stored
from tests.life.served import Served, served
from tests.pebble import Pebble, needs_pebble, own_address, running_pebble

pytestmark = needs_pebble

SITE = f'"{NAME}" = {{ "/" = {{ redirect = "https://example.com/" }} }}\n'

NOT_KEPT = ("accounts", "locks")
"""Folders of the storage that a rehearsal may write to: its account at the staging is used again."""


@attrs.frozen
class Two:
    """A server and whom it asks.

    Attributes:
        ca: Issues in earnest.
        staging: Where is rehearsed.
    """

    ca: Pebble
    staging: Pebble
    service: Served

    async def resolve(self, address: str) -> None:
        """Let both believe that the name has this address."""
        for each in (self.ca, self.staging):
            await each.dns.clear(NAME)
            await each.dns.set(NAME, address)

    async def orders(self, ca: int, staging: int) -> None:
        """Wait until each has told of so many orders; of more it must not."""
        await eventually(lambda: orders(self.ca) >= ca and orders(self.staging) >= staging)
        assert (orders(self.ca), orders(self.staging)) == (ca, staging)

    async def settled(self) -> None:
        """Wait until all is written that a first certificate brings."""
        done = await command(self.service, "certs", "renew", NAME)  # waits for the order to be crossed out
        assert "renewed" in done.stdout or "kept" in done.stdout
        store = self.service.folder / "store"
        await eventually(lambda: (store / "renewals" / f"{NAME}.json").exists() and (store / "pem" / NAME).exists())

    async def served(self) -> x509.Certificate:
        """What a handshake gets."""
        stream = await self.service.visit()
        shown = stream.getpeercert(binary_form=True)
        await trio.aclose_forcefully(stream)
        assert shown is not None
        return x509.load_der_x509_certificate(shown)

    def files(self) -> dict[Path, bytes]:
        """All that is kept, but what is not to count."""
        store = self.service.folder / "store"
        kept = (path for path in store.rglob("*") if path.is_file() and not path.is_socket())
        return {path: path.read_bytes() for path in kept if path.relative_to(store).parts[0] not in NOT_KEPT}


def orders(ca: Pebble) -> int:
    return ca.said().count("Added order")


@asynccontextmanager
async def two(folder: Path, *, at: str) -> AsyncIterator[Two]:
    """Both authorities and a server; they find the name at the address `at` to begin with."""
    port = port_80()
    async with (
        running_pebble(folder / "ca", http_port=port) as ca,
        running_pebble(folder / "staging", http_port=port) as staging,
    ):
        for each in (ca, staging):
            await each.dns.set(NAME, at)
        async with served(folder, configuration(folder, ca, SITE, staging)) as service:
            yield Two(ca, staging, service)


async def test_a_dry_run_goes_the_whole_way_at_staging_and_keeps_nothing(tmp_path: Path) -> None:
    async with two(tmp_path, at=own_address()) as both:
        leaf = await eventually(lambda: stored(both.service))
        await both.settled()
        await both.orders(1, 0)
        before = both.files()
        done = await command(both.service, "certs", "renew", "--dry-run")
        assert done.returncode == 0, done.stderr
        issuer = x509.load_pem_x509_certificate(await both.staging.get("intermediates/0")).subject
        assert f"{NAME}: rehearsed: " in done.stdout
        assert str(issuer.rdns[0].rfc4514_string()).removeprefix("CN=") in done.stdout, "the staging signed"
        assert f"{NAME}: asking the CA to sign" in done.stderr, done.stderr
        await both.orders(1, 1)
        assert both.files() == before
        assert (await both.served()).serial_number == leaf.serial

        await both.resolve("127.0.0.1")  # where nobody answers at our port
        done = await command(both.service, "certs", "renew", "--dry-run", NAME)
        assert done.returncode == 1
        assert f"{NAME}: failed: the rehearsal failed: no certificate for {NAME}: " in done.stdout
        await both.orders(1, 2)
        assert both.files() == before, "a rehearsal that failed is no failure of the name"


async def test_after_a_failed_validation_production_is_asked_when_staging_has_issued(tmp_path: Path) -> None:
    async with two(tmp_path, at="127.0.0.1") as both:
        await both.service.heard(rf"ERROR +{NAME}\b.*next attempt")
        await both.orders(1, 0)
        done = await command(both.service, "certs", "renew", NAME)
        assert done.returncode == 1, done.stdout
        assert f"{NAME}: rehearsing at " in done.stderr
        await both.orders(1, 1)
        assert stored(both.service) is None

        await both.resolve(own_address())
        done = await command(both.service, "certs", "renew", NAME)
        assert done.returncode == 0, done.stdout
        assert f"{NAME}: the rehearsal worked; now in earnest" in done.stderr
        await both.orders(2, 2)
        leaf = await eventually(lambda: stored(both.service))
        issuer = x509.load_pem_x509_certificate(await both.ca.get("intermediates/0"))
        shown = await both.served()
        assert shown.serial_number == leaf.serial
        shown.verify_directly_issued_by(issuer)

        done = await command(both.service, "certs", "renew", NAME, "--force")
        assert done.returncode == 0, done.stdout
        await both.orders(3, 2)
