"""What transparent mode asks of a machine, and which sentences tell that it is missing. No machine is asked here."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner

from tests.net.capabilities import CAP_NET_ADMIN, CAP_NET_RAW, without
from trioproxy.access import Network
from trioproxy.cli.main import command
from trioproxy.cli.transparent import Backend, Machine, Plan, commands, look, missing, plan
from trioproxy.config.load import parse
from trioproxy.config.model import HostPort

FOUR, SIX = Backend("pbx.myname.com", "10.1.2.3", 443), Backend("pbx.myname.com", "fd00:1::3", 8443)
PLAN = Plan((FOUR, SIX), (), frozenset({4, 6}))

GOOD = Machine(
    may=True,
    elements={4: {("10.1.2.3", 443)}, 6: {("fd00:1::3", 8443)}},
    rules=frozenset({4, 6}),
    routes=frozenset({4, 6}),
)
"""A machine on which all is well."""


def network(text: str) -> Network:
    return ipaddress.ip_network(text)


# ---- what is wanted -----------------------------------------------------------------------------------


def test_the_plan_has_every_address_of_every_transparent_name() -> None:
    found = plan(
        parse(
            """
            [listen]
            https = ["[::]:443"]
            [passthrough."pbx.myname.com"]
            to = ["10.1.2.3", "[fd00:1:0::3]:8443", "10.1.2.3"]
            client_ip = "transparent"
            [passthrough."*"]
            to = ["localhost:1443", "nowhere.invalid"]
            http = "off"
            client_ip = "transparent"
            [passthrough."other.myname.com"]
            to = "10.1.2.9"
            client_ip = "proxy-v2"
            """,
            Path("config.toml"),
            {},
            0,
        )
    )
    assert found.backends[:2] == (FOUR, SIX)
    assert Backend("every other name", "127.0.0.1", 1443) in found.backends
    assert "10.1.2.9" not in {backend.host for backend in found.backends}
    assert [to for to, _ in found.unresolved] == [HostPort("nowhere.invalid", 443)]
    assert found.listens == {6}


def test_the_commands_for_both_families() -> None:
    script = commands(PLAN, "/etc/trioproxy/config.toml")
    lines = [line.strip() for line in script.splitlines()]
    assert "10.1.2.3 . 443,  # pbx.myname.com" in lines
    assert "fd00:1::3 . 8443,  # pbx.myname.com" in lines
    assert "ip saddr . tcp sport @backends4 socket transparent 1 meta mark set 0x7470" in lines
    assert "ip6 saddr . tcp sport @backends6 socket transparent 1 meta mark set 0x7470" in lines
    assert [line for line in lines if line.startswith("ip -")] == [
        *(
            f"ip -{v} rule show | grep -q 'fwmark 0x7470 lookup 7470' || "
            f"ip -{v} rule add fwmark 0x7470 lookup 7470 priority 7470"
            for v in (4, 6)
        ),
        *(f"ip -{v} route replace local default dev lo table 7470" for v in (4, 6)),
    ]


def test_a_family_without_backends_is_left_alone() -> None:
    script = commands(Plan((FOUR,), (), frozenset({4, 6})), "config.toml")
    assert "\nip -4 " in script
    assert "\nip -6 " not in script


def test_names_that_share_a_backend_share_its_element() -> None:
    script = commands(Plan((FOUR, attrs.evolve(FOUR, name="fax.myname.com")), (), frozenset({4})), "config.toml")
    assert script.count("10.1.2.3 . 443") == 1
    assert "# pbx.myname.com, fax.myname.com" in script


def test_what_has_no_address_is_told_in_the_commands() -> None:
    script = commands(attrs.evolve(PLAN, unresolved=((HostPort("pbx.lan", 443), "no such name"),)), "config.toml")
    assert "# MISSING: pbx.lan:443 has no address now (no such name)." in script


# ---- what is missing ----------------------------------------------------------------------------------


def sentence(machine: Machine, wanted: Plan = PLAN) -> str:
    """The one sentence that there must be."""
    (found,) = missing(wanted, machine)
    return found


def test_where_all_is_well_nothing_is_said() -> None:
    assert missing(PLAN, GOOD) == []
    assert missing(attrs.evolve(PLAN, backends=(SIX,), listens=frozenset({6})), GOOD) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"may": False}, "with CAP_NET_RAW"),
        ({"elements": None}, "lacks the nft rules that mark what the backends answer: run"),
        ({"elements": {4: set(), 6: {("fd00:1::3", 8443)}}}, "lacks the nft rule for 10.1.2.3:443: run"),
        ({"elements": {4: {("10.1.2.3", 443)}}}, "lacks the nft rule for [fd00:1::3]:8443: run"),
        ({"rules": frozenset({4})}, "lacks the IPv6 rule for what is marked: run"),
        ({"routes": frozenset({6})}, "lacks the IPv4 route in table 7470: run"),
        ({"unseen": "only root may look", "elements": None}, "for transparent names: only root may look"),
        ({"marked_sources": True}, "src_valid_mark is 1"),
        ({"own": frozenset({"10.1.2.3"})}, "pbx.myname.com: 10.1.2.3 is this machine itself"),
    ],
)
def test_each_thing_that_is_missing_has_its_sentence(change: dict[str, Any], words: str) -> None:
    assert words in sentence(attrs.evolve(GOOD, **change))


def test_several_things_are_told_at_once() -> None:
    bare = attrs.evolve(GOOD, elements=None, rules=frozenset(), routes=frozenset())
    assert sentence(bare).count("; ") == 4


def test_a_family_without_backends_is_not_missed() -> None:
    wanted = Plan((FOUR,), (), frozenset({4}))
    assert (
        missing(
            wanted, attrs.evolve(GOOD, rules=frozenset({4}), routes=frozenset({4}), elements={4: {("10.1.2.3", 443)}})
        )
        == []
    )
    only_six = Plan((SIX,), (), frozenset({6}))
    assert missing(only_six, attrs.evolve(GOOD, marked_sources=True)) == [], "IPv6 has no such check"


@pytest.mark.parametrize(("backend", "version", "more"), [(FOUR, 6, "or have no AAAA record"), (SIX, 4, "")])
def test_clients_of_the_family_that_the_backend_lacks_will_be_refused(
    backend: Backend, version: int, more: str
) -> None:
    found = sentence(GOOD, Plan((backend,), (), frozenset({4, 6})))
    assert found.startswith(f"pbx.myname.com: clients that come by IPv{version} will be refused")
    assert f"only an IPv{version} backend can see their address" in found
    assert more in found
    assert ("AAAA" in found) is bool(more)


def test_a_backend_in_the_network_of_everybody_else_is_told() -> None:
    home = attrs.evolve(
        GOOD,
        on_link=(network("10.1.2.0/24"), network("192.168.1.0/24")),
        gateways=(ipaddress.ip_address("10.1.2.254"),),
    )
    assert "10.1.2.3 is in 10.1.2.0/24, as this machine's own gateway is" in sentence(home)
    behind = attrs.evolve(home, gateways=(ipaddress.ip_address("192.168.1.254"),))
    assert missing(PLAN, behind) == [], "it is where it should be: behind this machine"


def test_a_backend_without_an_address_is_told() -> None:
    wanted = attrs.evolve(PLAN, unresolved=((HostPort("pbx.lan", 443), "no such name"),))
    assert sentence(GOOD, wanted).startswith("pbx.lan:443 has no address now (no such name)")


# ---- asking -------------------------------------------------------------------------------------------

SETS = [
    {"table": {"family": "inet", "name": "trioproxy"}},
    {"set": {"name": "backends4", "elem": [{"concat": ["10.1.2.3", 443]}]}},
    {"set": {"name": "backends6", "elem": [{"concat": ["fd00:1:0:0::3", 8443]}]}},
]

SAID = {
    "nft list tables": "table inet trioproxy",
    "nft -j list table inet trioproxy": json.dumps({"nftables": SETS}),
    "ip -j -4 rule": '[{"priority":0,"src":"all","table":"local"},{"fwmark":"0x7470","table":"7470"}]',
    "ip -j -6 rule": '[{"fwmark":"0x7470","table":"100"},{"fwmark":"0x1","table":"7470"}]',
    "ip -j -4 route show table 7470": '[{"type":"local","dst":"default","dev":"lo"}]',
    "ip -j -6 route show table 7470": "[",  # what it says before it complains that there is no such table
    "ip -j -4 route show default": '[{"dst":"default","gateway":"192.168.1.254","dev":"eth0"}]',
    "ip -j -6 route show default": '[{"dst":"default","dev":"tun0"}]',
    "ip -j route get 10.1.2.3": '[{"type":"local","dst":"10.1.2.3","dev":"lo"}]',
    "ip -j route get fd00:1::3": '[{"dst":"fd00:1::3","dev":"eth0"}]',
}


def said(command: Sequence[str]) -> str | None:
    return SAID.get(" ".join(command))


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, path="": f"/usr/sbin/{program}")


def test_the_machine_is_understood() -> None:
    machine = look(PLAN, said)
    assert machine.elements == GOOD.elements
    assert machine.rules == machine.routes == {4}
    assert machine.own == {"10.1.2.3"}
    assert machine.gateways == (ipaddress.ip_address("192.168.1.254"),)
    assert machine.unseen == ""


def test_whether_this_process_may_is_tried() -> None:
    with without(CAP_NET_ADMIN, CAP_NET_RAW):
        assert not look(PLAN, said).may


def test_a_machine_without_our_table_has_no_elements() -> None:
    machine = look(PLAN, lambda words: None if words[1:3] == ["-j", "list"] else said(words))
    assert (machine.elements, machine.unseen) == (None, "")


def test_who_may_not_look_is_told_so() -> None:
    assert look(PLAN, lambda words: None).unseen == "only root may look: run this command as root"


def test_a_command_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda program, path="": None if program == "nft" else program)
    assert look(PLAN, said).unseen == "the command `nft` is not installed (on Debian: apt-get install nftables)"


# ---- the command --------------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config.toml"


def test_the_command_prints_what_a_shell_can_run(config: Path) -> None:
    config.write_text('[passthrough]\n"pbx.myname.com" = { to = "10.1.2.3", client_ip = "transparent" }\n')
    done = CliRunner().invoke(command, ["transparent-setup"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"#!/bin/sh\n# Made by `trioproxy transparent-setup` from {config}.\n")
    assert "10.1.2.3 . 443" in done.stdout


def test_without_transparent_names_there_is_nothing_to_print(config: Path) -> None:
    config.write_text('[passthrough]\n"pbx.myname.com" = "10.1.2.3"\n')
    done = CliRunner().invoke(command, ["transparent-setup"])
    assert (done.exit_code, done.stdout) == (1, "")
    assert 'No passthrough name has client_ip = "transparent"' in done.stderr
