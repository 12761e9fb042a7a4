"""What `trioproxy probe` makes of the trials. The trials themselves are made up here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from trioproxy.cli import probe as probe_module
from trioproxy.cli.main import command
from trioproxy.cli.probe import Backend, verdict
from trioproxy.config.model import HostPort
from trioproxy.net.probe import FORMS, Trial

Probe = Callable[..., Result]

CONFIGURATION = """
[passthrough]
"pbx.myname.com" = { to = "10.1.2.3", client_ip = "proxy-v1" }
"two.myname.com" = { to = ["10.1.2.4", "10.1.2.5:8443"] }
"*.apps.myname.com" = "10.1.2.6"

[sites]
"cloud.myname.com" = { "/" = "http://10.2.3.4", tls = "internal" }
"""

GONE: list[Trial] = [Trial(form, accepted=False, answer="cannot be reached: no", reached=False) for form in FORMS]


def accepting(*forms: str) -> list[Trial]:
    """The trials of a backend that accepts these."""
    return [Trial(form, accepted=form in forms, answer="says so") for form in FORMS]


def backend(trials: list[Trial]) -> Backend:
    return Backend(HostPort("10.1.2.3", 443), tuple(trials))


@pytest.fixture
def tempers() -> dict[str, list[Trial]]:
    """What each backend does, by its address; the others cannot be reached."""
    return {}


@pytest.fixture
def asked() -> list[tuple[str, str, float]]:
    """Which backends were tried: address, server name, seconds."""
    return []


@pytest.fixture
def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tempers: dict[str, list[Trial]],
    asked: list[tuple[str, str, float]],
) -> Probe:
    """Runs `trioproxy probe` with the configuration above."""

    async def made_up(address: HostPort, server_name: str, connect: float) -> list[Trial]:  # noqa: ASYNC124
        asked.append((str(address), server_name, connect))
        return tempers.get(str(address), GONE)

    def probe(*arguments: str, more: str = "") -> Result:
        Path("config.toml").write_text(CONFIGURATION + more)
        return CliRunner().invoke(command, ["probe", *arguments])

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(probe_module, "probe", made_up)
    return probe


# ---- the verdict --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("configured", "accepted", "good", "client_ip"),
    [
        ("none", {"none"}, True, "none"),
        ("none", {"none", "proxy-v2"}, True, "proxy-v2"),
        ("none", {"none", "proxy-v1"}, True, "proxy-v1"),
        ("none", {"proxy-v1", "proxy-v2"}, False, "proxy-v2"),
        ("none", {"proxy-v1"}, False, "proxy-v1"),
        ("proxy-v1", {"proxy-v1", "proxy-v2"}, True, "proxy-v1"),
        ("proxy-v1", {"proxy-v2"}, False, "proxy-v2"),
        ("proxy-v2", {"proxy-v2"}, True, "proxy-v2"),
        ("proxy-v2", {"none"}, False, "none"),
        ("transparent", {"none"}, True, "transparent"),
        ("transparent", {"proxy-v2"}, False, "proxy-v2"),
        ("none", set(), False, None),
    ],
)
def test_the_verdict(configured: str, accepted: set[str], good: bool, client_ip: str | None) -> None:
    found = verdict(configured, [backend(accepting(*accepted))])
    assert (found.good, found.client_ip) == (good, client_ip)
    assert found.words


def test_several_backends_must_agree() -> None:
    both = [backend(accepting("proxy-v1", "proxy-v2")), backend(accepting("none", "proxy-v1"))]
    assert verdict("none", both).client_ip == "proxy-v1"
    quarrel = verdict("none", [backend(accepting("none")), backend(accepting("proxy-v2"))])
    assert (quarrel.good, quarrel.client_ip) == (False, None)
    assert "agree on no form" in quarrel.words


def test_one_that_cannot_be_reached_has_no_say() -> None:
    assert verdict("none", [backend(GONE), backend(accepting("none"))]).good
    lost = verdict("none", [backend(GONE), backend(GONE)])
    assert (lost.good, lost.client_ip, lost.words) == (False, None, "It cannot be reached. Is its address right?")


# ---- the command --------------------------------------------------------------------------------------


def test_a_form_that_does_not_work_is_replaced_by_one_that_does(run: Probe, tempers: dict[str, list[Trial]]) -> None:
    tempers["10.1.2.3:443"] = accepting("proxy-v2")
    done = run("pbx.myname.com")
    assert done.exit_code == 1
    assert [line.rstrip() for line in done.stdout.splitlines()] == [
        "BACKEND       FORM      ACCEPTED  WHAT IT DOES",
        "10.1.2.3:443  none      no        says so",
        "              proxy-v1  no        says so",
        "              proxy-v2  yes       says so",
        "",
        'client_ip = "proxy-v1" is configured, and it does not work.',
        "Write:",
        "",
        '[passthrough."pbx.myname.com"]',
        'to = "10.1.2.3:443"',
        'client_ip = "proxy-v2"',
    ]


def test_what_works_is_confirmed(run: Probe, tempers: dict[str, list[Trial]]) -> None:
    tempers["10.1.2.3:443"] = accepting("proxy-v1", "proxy-v2")
    done = run("PBX.myname.com.")
    assert done.exit_code == 0
    assert done.stdout.rstrip().endswith('\n\nclient_ip = "proxy-v1" is right.')


def test_every_backend_of_a_list_is_tried(run: Probe, tempers: dict[str, list[Trial]]) -> None:
    tempers["10.1.2.4:443"] = tempers["10.1.2.5:8443"] = accepting("none", "proxy-v2")
    done = run("two.myname.com")
    assert done.exit_code == 0
    assert 'to = ["10.1.2.4:443", "10.1.2.5:8443"]\nclient_ip = "proxy-v2"\n' in done.stdout


def test_the_same_as_json(run: Probe, tempers: dict[str, list[Trial]]) -> None:
    tempers["10.1.2.3:443"] = accepting("proxy-v2")
    done = run("pbx.myname.com", "--json")
    assert (done.exit_code, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found.pop("words")
    assert found == {
        "name": "pbx.myname.com",
        "server_name": "pbx.myname.com",
        "configured": "proxy-v1",
        "works": False,
        "client_ip": "proxy-v2",
        "backends": [
            {
                "address": "10.1.2.3:443",
                "forms": [{"form": form, "accepted": form == "proxy-v2", "answer": "says so"} for form in FORMS],
            }
        ],
    }


@pytest.mark.parametrize(
    ("name", "address", "server_name"),
    [
        ("pbx.myname.com", "10.1.2.3:443", "pbx.myname.com"),
        ("one.apps.myname.com", "10.1.2.6:443", "one.apps.myname.com"),
        ("*.apps.myname.com", "10.1.2.6:443", "trioproxy-probe.apps.myname.com"),
        ("unknown.myname.com", "10.1.2.9:1443", "unknown.myname.com"),
        ("*", "10.1.2.9:1443", ""),
    ],
)
def test_names_lead_where_they_lead_clients(
    run: Probe, asked: list[tuple[str, str, float]], name: str, address: str, server_name: str
) -> None:
    more = '[passthrough."*"]\nto = "10.1.2.9:1443"\nhttp = "off"\n[timeouts]\nconnect = "7s"\n'
    assert run(name, more=more).exit_code == 1
    assert asked == [(address, server_name, 7.0)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cloud.myname.com", "cloud.myname.com is a site"),
        ("unknown.myname.com", "unknown.myname.com is configured nowhere"),
        ("*", "is not a host name"),
        ("10.1.2.3", "is an IP address"),
    ],
)
def test_names_of_nothing_that_could_be_tried_are_wrong_usage(
    run: Probe, asked: list[tuple[str, str, float]], name: str, words: str
) -> None:
    done = run(name)
    assert done.exit_code == 2
    assert words in done.stderr
    assert asked == []
