"""A whole server whose certificate comes from a CA with renewal information, which others wrote."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509

from tests.acme2certifier import needs_acme2certifier, running_acme2certifier
from tests.certs.serving import NAME, command, eventually
from tests.life.served import Served, served
from tests.pebble import fetch
from trioproxy.certs.store import Store

pytestmark = needs_acme2certifier

CONFIG = """\
[listen]
https = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
[acme]
email = "me@example.com"
directory = "{directory}"
[storage]
path = "{folder}/store"
[sites]
"{name}" = {{ "/" = {{ redirect = "https://example.com/" }} }}
"""


def certificate_id(leaf: x509.Certificate) -> str:
    """What the CA knows a certificate by (RFC 9773, section 4.1)."""
    key = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    assert key is not None
    serial = leaf.serial_number.to_bytes(leaf.serial_number.bit_length() // 8 + 1, "big")
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (key, serial))


async def told_by(directory: str, leaf: x509.Certificate) -> tuple[datetime, datetime]:
    """The window that the CA suggests to whoever asks."""
    resources = json.loads(await fetch(directory))
    answer = json.loads(await fetch(f"{resources['renewalInfo'].rstrip('/')}/{certificate_id(leaf)}"))
    start, end = (answer["suggestedWindow"][edge] for edge in ("start", "end"))
    return datetime.fromisoformat(start), datetime.fromisoformat(end)


async def listed(service: Served) -> dict[str, Any]:
    (status,) = (await service.ask("certs.list"))["certificates"]
    return dict(status)


def suggestion(store: Path) -> dict[str, Any] | None:
    """What the server has kept of the suggestion."""
    path = store / "renewals" / f"{NAME}.json"
    return json.loads(path.read_text()) if path.exists() else None


WINDOW = "renewalthreshold_pctg: 20\nrenewal_window_duration: 86400"
"""Of its thirty days the seventh, when by its lifetime alone nobody would renew it."""


async def test_a_server_goes_by_the_window_that_its_ca_suggests_and_says_so(tmp_path: Path) -> None:
    async with running_acme2certifier(tmp_path / "a2c", {}, WINDOW) as directory:
        text = CONFIG.format(directory=directory, folder=tmp_path, name=NAME)
        async with served(tmp_path, text) as service:
            await eventually(lambda: suggestion(tmp_path / "store"))
            bundle = Store(tmp_path / "store").load(NAME)
            assert bundle is not None
            leaf = x509.load_pem_x509_certificate(bundle.chain_pem)
            start, end = await told_by(directory, leaf)
            assert end - start == timedelta(days=1)
            assert end < leaf.not_valid_before_utc + timedelta(days=8)

            status = await listed(service)
            assert (status["state"], status["rule"], status["why"]) == ("good", "ARI", "ARI: its CA suggests it")
            renews = datetime.fromisoformat(status["renews"])
            assert start <= renews <= end
            shown = await command(service, "certs", "list")
            assert shown.returncode == 0
            assert "ARI: its CA suggests it" in shown.stdout
            moment = renews.astimezone()
            assert f" {moment.day} {moment:%b} " in shown.stdout

        async with served(tmp_path, text) as again:
            assert datetime.fromisoformat((await listed(again))["renews"]) == renews, "it is not thrown again"
