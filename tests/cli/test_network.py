"""`trioproxy check --network`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from trioproxy.cli import network
from trioproxy.cli.main import command
from trioproxy.net.resolve import Address, Lookup, NoAddress, Resolver

CONFIG = """
[passthrough]
"pbx.example.com" = { to = "10.1.2.3", client_ip = "proxy-v2" }
[sites]
"cloud.example.com" = "http://10.2.3.4"
"home.example.com" = "http://10.2.3.5"
[sites."x.internal"]
tls = "internal"
"/" = "http://10.2.3.4"
[storage]
path = "store"
"""


@pytest.fixture
def dns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Lookup], None]:
    """Puts a name server in the system's place, and a machine without public addresses in this one's."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)

    def use(look_up: Lookup) -> None:
        monkeypatch.setattr(network, "Resolver", lambda: Resolver(look_up))
        monkeypatch.setattr(network, "public_addresses", tuple)

    return use


def said(*options: str) -> list[str]:
    done = CliRunner(catch_exceptions=False).invoke(command, ["check", "--json", *options])
    assert done.exit_code == 0, done.output
    warnings: list[str] = json.loads(done.stdout)["warnings"]
    return warnings


def test_only_sites_that_get_certificates_are_asked_for_and_only_when_told(dns: Callable[[Lookup], None]) -> None:
    asked: list[str] = []

    def look_up(name: str) -> Sequence[Address]:
        asked.append(name)
        if name.startswith("home"):
            raise NoAddress("Name or service not known")
        return [Address("2a01:4f8:1:2::1"), Address("93.184.216.34")]

    dns(look_up)
    before = said()
    assert asked == []
    told = [line for line in said("--network") if line not in before]
    assert sorted(asked) == ["cloud.example.com", "home.example.com"]
    assert [line.split()[0] for line in told] == ["cloud.example.com:", "home.example.com"]
    assert "its AAAA record leads to 2a01:4f8:1:2::1, but this machine has no public IPv6 address" in told[0]


def test_a_silent_name_server_costs_seconds_and_a_sentence(
    dns: Callable[[Lookup], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "PATIENCE", 0.1)
    answer_now = threading.Event()

    def look_up(_: str) -> Sequence[Address]:
        answer_now.wait(60)
        return []

    dns(look_up)
    try:
        last = said("--network")[-1]
    finally:
        answer_now.set()
    assert last == "no answer came within 0.1 s from the name servers about cloud.example.com and 1 more"
