"""The tests' certificate authority is itself worth a look: others' tests stand on it."""

from __future__ import annotations

import json
from pathlib import Path

from cryptography import x509

from tests.pebble import fetch, needs_pebble, running_pebble

pytestmark = needs_pebble


async def test_it_serves_a_directory_and_a_new_root_at_every_start(tmp_path: Path) -> None:
    async with running_pebble(tmp_path, http_port=5002) as ca:
        assert "newOrder" in json.loads(await fetch(ca.directory, ca_file=ca.ca_file))
        before = await ca.root_pem()
        assert "Pebble Root" in x509.load_pem_x509_certificate(before).subject.rfc4514_string()
        await ca.restart()
        assert await ca.root_pem() != before


async def test_its_names_can_be_set_and_broken(tmp_path: Path) -> None:
    async with running_pebble(tmp_path, http_port=5002) as ca:
        await ca.dns.set("cloud.test", "127.0.0.2")
        await ca.dns.clear("cloud.test")
        await ca.dns.set_servfail("cloud.test")
        await ca.dns.clear_servfail("cloud.test")
