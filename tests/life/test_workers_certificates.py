"""Certificates where several processes serve: one of them orders, and all of them answer for it and serve it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import trustme
from cryptography import x509

from tests.certs.serving import NAME, command, configuration, eventually, stored
from tests.life.served import Served, served
from tests.life.served import configuration as with_sites
from tests.life.test_workers import MANY, WORKERS, visitors
from tests.pebble import free_ports, needs_pebble, own_address, running_pebble
from tests.proxy.stage import HELLO, LOOPBACK, answering, backend
from trioproxy.certs.bundle import Bundle

FRESH = {"PEBBLE_AUTHZREUSE": "0"}
"""Each order is proved anew."""


async def shown(service: Served, name: str = NAME) -> Counter[int]:
    """Serial numbers of the certificates that are served, when every worker has been asked."""
    found: Counter[int] = Counter()
    async with visitors(service, MANY, name) as guests:
        for stream in guests.streams:
            certificate = stream.getpeercert(binary_form=True)
            found[x509.load_der_x509_certificate(certificate).serial_number] += 1
        workers = (await service.ask("status"))["workers"]
        assert all(worker["connections"] for worker in workers), "one was not asked"
    return found


@needs_pebble
@pytest.mark.parametrize("challenge", ["http-01", "tls-alpn-01"])
async def test_a_certificate_is_with_every_worker_when_its_order_has_ended(tmp_path: Path, challenge: str) -> None:
    """Which worker the CA has met is left to chance; that all could answer it is asked of each order."""
    port, tls_port = free_ports(own_address(), 2)
    async with (
        backend(answering(HELLO)) as (target, _),
        running_pebble(tmp_path / "ca", http_port=port, tls_port=tls_port, env=FRESH) as ca,
    ):
        await ca.dns.set(NAME, own_address())
        plain = configuration(tmp_path, ca, f'"{NAME}" = "http://{LOOPBACK}:{target}"\n')
        plain = plain.replace('challenges = ["http-01"]', f'challenges = ["{challenge}"]')
        plain = plain.replace('https = ["127.0.0.1:0"]', f'https = ["127.0.0.1:0", "{own_address()}:{tls_port}"]')
        async with served(tmp_path, WORKERS + plain) as service:
            leaf = await eventually(lambda: stored(service))
            await service.heard(r"\(checked\)")
            assert await shown(service) == {leaf.serial: MANY}
            done = await command(service, "certs", "renew", NAME, "--force")
            assert done.returncode == 0, done.stdout + done.stderr
            renewed = stored(service)
            assert renewed is not None
            assert renewed.serial != leaf.serial
            assert await shown(service) == {renewed.serial: MANY}
            assert "ERROR" not in service.said()


async def test_files_that_were_replaced_are_with_every_worker_after_a_reload(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate, key = tmp_path / "own.pem", tmp_path / "own.key"

    def issue() -> int:
        leaf = authority.issue_cert(NAME)
        leaf.cert_chain_pems[0].write_to_path(certificate)
        leaf.private_key_pem.write_to_path(key)
        key.chmod(0o600)
        return Bundle.of(key.read_bytes(), certificate.read_bytes()).leaf.serial

    async with backend(answering(HELLO)) as (target, _):
        files = f'tls = {{ certificate = "{certificate}", key = "{key}" }}'
        plain = with_sites(tmp_path, cloud=target).replace('tls = "internal"', files)
        serial = issue()
        async with served(tmp_path, WORKERS + plain) as service:
            assert await shown(service) == {serial: MANY}
            serial = issue()
            outcome = await service.ask("reload", dry_run=False)
            assert len(outcome["renewed_files"]) == 1
            assert await shown(service) == {serial: MANY}
