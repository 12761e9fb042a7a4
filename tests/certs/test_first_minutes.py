"""What the log says of a name's first certificate: a real server, a real Pebble, three lines."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.certs.serving import NAME, configuration, port_80
from tests.life.served import served
from tests.pebble import free_ports, needs_pebble, own_address, running_pebble
from tests.proxy.stage import LOOPBACK

pytestmark = needs_pebble

SITE = f'"{NAME}" = {{ "/" = {{ redirect = "https://example.com/" }} }}\n'
TERMS = "data:text/plain,Do%20what%20thou%20wilt"


@pytest.mark.parametrize(("challenge", "port"), [("http-01", 80), ("tls-alpn-01", 443)])
async def test_the_first_minutes_are_three_lines(challenge: str, port: int, tmp_path: Path) -> None:
    http, (https,) = port_80(), free_ports(LOOPBACK, 1)
    async with running_pebble(tmp_path / "ca", http_port=http, tls_port=https) as ca:
        if challenge == "http-01":
            await ca.dns.set(NAME, own_address())
        text = configuration(tmp_path, ca, SITE).replace('"http-01"', f'"{challenge}"')
        async with served(tmp_path, text.replace(f"{LOOPBACK}:0", f"{LOOPBACK}:{https}", 1)) as service:
            await service.heard(r"new handshakes")
            said = [line[20:] for line in service.said().splitlines() if f" {NAME}  " in line]
    asking, fetched, done = (line for line in said if line.startswith("INFO"))
    authority = re.escape(ca.directory.removeprefix("https://").removesuffix("/dir"))
    wanted = (
        rf"INFO    {NAME}  temporary certificate \(browsers warn\) while I ask {authority}; terms: {re.escape(TERMS)}"
    )
    assert re.fullmatch(wanted, asking)
    assert fetched == f"INFO    {NAME}  port {port}: challenge fetched from 1 address, answered"
    assert re.fullmatch(
        rf"INFO    {NAME}  valid to .+, renews about .+; new handshakes already get it \(checked\)", done
    )


async def test_where_workers_answer_each_answer_is_told(tmp_path: Path) -> None:
    async with running_pebble(tmp_path / "ca", http_port=port_80()) as ca:
        await ca.dns.set(NAME, own_address())
        text = configuration(tmp_path, ca, SITE) + "[process]\nworkers = 2\n"
        async with served(tmp_path, text) as service:
            await service.heard(r"new handshakes")
            assert re.search(rf"{NAME}  port 80: challenge answered to {LOOPBACK}", service.said())
