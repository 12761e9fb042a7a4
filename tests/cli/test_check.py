"""What `trioproxy check` prints."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
import trustme
from click.testing import CliRunner, Result

from trioproxy.cli.main import command

Check = Callable[..., Result]

ENTRIES = """
[passthrough]
"pbx.myname.com" = "10.1.2.3"
"fax.myname.com" = { to = "10.1.2.4:8443", http = "all", http_to = "[2001:db8::1]:81" }
"old.myname.com" = { to = ["10.1.2.5", "10.1.2.6:8443"], http = "off" }

[acme]
email = "me@myname.com"
key_type = "ecdsa-p384"

[sites."home.myname.com"]
"/" = "http://10.2.3.5:8123"
"/someservice/" = "http://10.2.3.6/"
"/api" = "https://[2001:db8::2]/v1/"
"/x" = "http://10.2.3.7"
aliases = ["haus.myname.com"]

[sites]
"*.apps.myname.com" = { "/" = "http://10.2.3.8", tls = "internal", http = "serve" }
"nas.myname.com" = { "/" = "http://10.2.3.9", tls = "internal", http = "off" }
"""


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Writes config.toml into an empty folder and runs `trioproxy check` there."""
    monkeypatch.chdir(tmp_path)

    def run(text: str, *arguments: str) -> Result:
        Path("config.toml").write_text(text)
        return CliRunner().invoke(command, ["check", *arguments])

    return run


def cells(done: Result) -> list[list[str]]:
    """The table's cells by line, without those that are empty."""
    table = done.stdout.partition("\n\n")[0]
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


def answer(done: Result) -> dict[str, Any]:
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_table_of_names(check: Check) -> None:
    done = check(ENTRIES)
    assert done.exit_code == 0
    assert cells(done) == [
        ["NAME", "KIND", "GOES TO", "CERTIFICATE", "PORT 80", "OPEN TO"],
        [
            "pbx.myname.com",
            "passthrough",
            "10.1.2.3:443",
            "the backend's own",
            "/.well-known/, /.freepbx-known/ -> 10.1.2.3:80; the rest: redirect to https",
            "everyone",
        ],
        ["fax.myname.com", "passthrough", "10.1.2.4:8443", "the backend's own", "-> [2001:db8::1]:81", "everyone"],
        ["old.myname.com", "passthrough", "10.1.2.5:443, then 10.1.2.6:8443", "the backend's own", "404", "everyone"],
        [
            "home.myname.com",
            "site",
            "/ -> http://10.2.3.5:8123",
            "Let's Encrypt, ecdsa-p384",
            "redirect to https",
            "everyone",
        ],
        ["/x/x -> http://10.2.3.7/x/x"],
        ["/api/x -> https://[2001:db8::2]/v1/x"],
        ["/someservice/x -> http://10.2.3.6/x"],
        [
            "haus.myname.com",
            "alias of home.myname.com",
            "/ -> http://10.2.3.5:8123",
            "Let's Encrypt, ecdsa-p384",
            "redirect to https",
            "everyone",
        ],
        ["/x/x -> http://10.2.3.7/x/x"],
        ["/api/x -> https://[2001:db8::2]/v1/x"],
        ["/someservice/x -> http://10.2.3.6/x"],
        ["*.apps.myname.com", "site", "/x -> http://10.2.3.8/x", "internal CA", "the same as https", "everyone"],
        ["nas.myname.com", "site", "/x -> http://10.2.3.9/x", "internal CA", "404", "everyone"],
    ]


TERMS = """
[timeouts]
idle = "2m"

[passthrough."pbx.myname.com"]
to = ["10.1.2.3", "10.1.2.4"]
client_ip = "proxy-v2"
allow = ["lan", "192.0.2.0/24", "2001:db8::1"]
deny = ["192.0.2.66"]

[passthrough."fax.myname.com"]
to = "192.0.2.3"
client_ip = "proxy-v1"
deny = ["lan"]

[sites."cloud.myname.com"]
"/" = { to = ["http://10.2.3.4", "h2c://10.2.3.5:81", "unix:/run/gone.sock"], proxy_protocol = "v1" }
"/api/" = { to = ["http://b/v1", "https://c/v1"], verify = false, timeouts = { response = "1.5h", tunnel = "off" } }
"/pve/" = { to = "https://10.0.0.2", verify = "sha256:FINGERPRINT", server_name = "pve.lan" }
"/old/" = { redirect = "/new" }
"/gone/" = { redirect = "https://other.example" }
"/gone/x/" = "http://d/"
tls = "internal"
timeouts = { header = "500ms", tunnel = "90s" }
hsts = "180d"
allow = ["lan"]
""".replace("FINGERPRINT", "ab" * 32)


def test_the_table_of_terms(check: Check) -> None:
    done = check(TERMS)
    assert done.exit_code == 0, done.stderr
    pbx, fax, *cloud = cells(done)[1:]
    assert pbx[2] == "10.1.2.3:443, then 10.1.2.4:443 (PROXY v2)"
    assert pbx[5] == "lan, 192.0.2.0/24, 2001:db8::1 only, not 192.0.2.66"
    assert fax[2] == "192.0.2.3:443 (PROXY v1)"
    assert fax[5] == "everyone but lan"
    assert cloud[0][4:] == ["redirect to https; HSTS 180d", "lan only"]
    assert [cloud[0][2], *(row[0] for row in cloud[1:])] == [
        "/x -> http://10.2.3.4/x, then h2c://10.2.3.5:81/x, then unix:/run/gone.sock (PROXY v1)",
        "/old/x -> redirect to /new/x",
        "/pve/x -> https://10.0.0.2/pve/x (by fingerprint abababab…; as pve.lan)",
        "/api/x -> http://b/v1/x, then https://c/v1/x (not verified; response 90m, tunnel off)",
        "/gone/ -> redirect to https://other.example",
        "/gone/x/x -> http://d/x",
        "timeouts: header 500ms, tunnel 90s",
    ]


def test_the_terms_as_json(check: Check) -> None:
    pbx, _, cloud = answer(check(TERMS, "--json"))["names"]
    assert [way["target"] for way in pbx["routes"]] == ["10.1.2.3:443", "10.1.2.4:443"]
    assert (pbx["client_ip"], pbx["open_to"]) == ("proxy-v2", "lan, 192.0.2.0/24, 2001:db8::1 only, not 192.0.2.66")
    assert (cloud["hsts"], cloud["timeouts"]) == ("180d", {"header": "500ms", "tunnel": "90s"})
    usual = {
        "then": [],
        "redirect": False,
        "proxy_protocol": "",
        "verify": True,
        "ca_file": "",
        "server_name": "",
        "timeouts": {},
    }
    routes = {way["request"]: way for way in cloud["routes"]}
    assert routes["/x"] == {
        **usual,
        "request": "/x",
        "target": "http://10.2.3.4/x",
        "then": ["h2c://10.2.3.5:81/x", "unix:/run/gone.sock"],
        "proxy_protocol": "v1",
    }
    assert routes["/api/x"] == {
        **usual,
        "request": "/api/x",
        "target": "http://b/v1/x",
        "then": ["https://c/v1/x"],
        "verify": False,
        "timeouts": {"response": "90m", "tunnel": "off"},
    }
    assert routes["/pve/x"] == {
        **usual,
        "request": "/pve/x",
        "target": "https://10.0.0.2/pve/x",
        "verify": "sha256:" + "ab" * 32,
        "server_name": "pve.lan",
    }
    assert routes["/old/x"] == {**usual, "request": "/old/x", "target": "/new/x", "redirect": True}


def test_an_authority_of_backends_is_shown_and_looked_at(check: Check) -> None:
    text = '[sites."a.b"]\n"/" = "https://c"\nca_file = "ca.pem"\ntls = "internal"\n'
    done = check(text)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[1:] == [
        'config.toml:3: sites."a.b".ca_file: ca.pem cannot be read: No such file or directory'
    ]
    assert "/x -> https://c/x (verified by ca.pem)" in done.stdout


def test_warnings_follow_in_words(check: Check) -> None:
    warnings = check(ENTRIES).stdout.split("\n\n")[1:]
    assert [warning.split(":")[0] for warning in warnings] == ["warning", "warning"]
    assert "would ban this machine" in warnings[0]
    assert warnings[1].startswith('warning: old.myname.com: http = "off"')


def test_the_same_as_json(check: Check) -> None:
    done = check(ENTRIES, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = answer(done)
    assert found["file"] == "config.toml"
    assert found["mistakes"] == []
    assert len(found["warnings"]) == 2
    assert len(found["names"]) == 7
    assert found["names"][0] == {
        "name": "pbx.myname.com",
        "kind": "passthrough",
        "routes": [ANY],
        "certificate": "the backend's own",
        "http": "/.well-known/, /.freepbx-known/ -> 10.1.2.3:80; the rest: redirect to https",
        "open_to": "everyone",
        "client_ip": "none",
        "hsts": "",
        "timeouts": {},
    }
    assert [found["names"][0]["routes"][0][key] for key in ("request", "target")] == ["", "10.1.2.3:443"]
    assert [found["names"][3]["routes"][2][key] for key in ("request", "target")] == [
        "/api/x",
        "https://[2001:db8::2]/v1/x",
    ]


def test_mistakes_alone_are_told_when_there_are_any(check: Check) -> None:
    wrong = '[sites]\n"a.b" = "b"\n[log]\nlevel = "loud"\n'
    done = check(wrong)
    assert (done.exit_code, done.stdout) == (2, "")
    assert [line.split(":")[1] for line in done.stderr.splitlines()[1:]] == ["2", "4"]
    done = check(wrong, "--json")
    assert (done.exit_code, done.stderr) == (2, "")
    found = answer(done)
    assert found["names"] == []
    assert found["mistakes"][1] == {
        "line": 4,
        "key": "log.level",
        "problem": '"loud" is none of "debug", "info", "warning", "error"',
    }


def test_names_that_look_like_markup_are_printed_as_they_are(check: Check) -> None:
    done = check(
        '[passthrough]\n"a.b" = "[::1]:9"\n[sites."c.d"]\n"/:smile:/" = "http://[::1]:9/bold"\ntls = "internal"'
    )
    assert "[::1]:9" in done.stdout
    assert "/:smile:/x -> http://[::1]:9/bold/x" in done.stdout


# ---- storage ------------------------------------------------------------------------------------------


def storage_warnings(check: Check, path: Path) -> list[str]:
    done = check(f'[storage]\npath = "{path}"\n[sites."a.b"]\n"/" = "http://10.2.3.4"\ntls = "internal"\n', "--json")
    assert done.exit_code == 0
    return [warning for warning in answer(done)["warnings"] if warning.startswith("storage.path: ")]


def test_storage_that_is_there_or_can_be_made(check: Check, tmp_path: Path) -> None:
    (tmp_path / "store" / "certificates").mkdir(parents=True)
    assert storage_warnings(check, tmp_path / "store") == []
    assert storage_warnings(check, tmp_path / "not" / "yet") == []
    assert not (tmp_path / "not").exists()


@pytest.mark.parametrize("below", ["", "store"])
def test_storage_where_a_file_is(check: Check, tmp_path: Path, below: str) -> None:
    file = tmp_path / "file"
    file.write_text("")
    [warning] = storage_warnings(check, file / below)
    assert f"{file} is a file, where a folder should be" in warning


@pytest.mark.parametrize("closed", ["store", "store/certificates", ""])
def test_storage_that_is_not_writable(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    store = tmp_path / "store"
    if closed:
        (store / "certificates").mkdir(parents=True)
    # Root may write anywhere, so the system's answer is ours.
    monkeypatch.setattr("os.access", lambda path, _: path != tmp_path / closed)
    [warning] = storage_warnings(check, store)
    assert f"may not write to {tmp_path / closed}. " in warning


# ---- unix sockets -------------------------------------------------------------------------------------


def socket_warnings(check: Check, path: Path) -> list[str]:
    text = f'[sites."a.b"]\n"/" = "unix:{path}"\n"/x/" = {{ to = ["http://b", "unix:{path}"] }}\ntls = "internal"\n'
    done = check(text, "--json")
    assert done.exit_code == 0
    return [warning for warning in answer(done)["warnings"] if str(path) in warning]


def test_a_socket_that_can_be_called(check: Check, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        assert socket_warnings(check, tmp_path / "s") == []


def test_a_socket_that_is_not_there(check: Check, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "s", tmp_path / "file" / "s"):
        [warning] = socket_warnings(check, path)
        assert warning.endswith(f"{path} is not there: requests get 502 until its program has made it")


def test_a_socket_that_is_none(check: Check, tmp_path: Path) -> None:
    [warning] = socket_warnings(check, tmp_path)
    assert warning.endswith(f"{tmp_path} is no socket: write the one that its program listens on")


def test_a_socket_that_may_not_be_called(check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        # Root may call any, so the system's answer is ours.
        monkeypatch.setattr("os.access", lambda asked, _: asked != str(path))
        [warning] = socket_warnings(check, path)
    assert f"{path} may not be called by the user who runs this: " in warning


# ---- the user's own certificates ----------------------------------------------------------------------

OWN = '[sites."Cloud.myname.com"]\n"/" = "http://10.2.3.4"\ntls = { certificate = "cloud.pem", key = "cloud.key" }\n'


def write_pair(name: str, days: float = 100) -> None:
    """A certificate for `name`, good for `days` from now, and its key, beside config.toml."""
    expires = datetime.now(UTC) + timedelta(days=days)
    pair = trustme.CA().issue_cert(name, not_after=expires)
    Path("cloud.pem").write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))
    Path("cloud.key").write_bytes(pair.private_key_pem.bytes())
    Path("cloud.key").chmod(0o600)


def test_a_good_pair_of_files(check: Check) -> None:
    write_pair("cloud.myname.com")
    done = check(OWN)
    assert done.exit_code == 0
    assert "cloud.pem" in done.stdout
    assert "warning" not in done.stdout


def test_files_that_are_not_there_are_a_mistake_and_the_table_still_comes(check: Check) -> None:
    done = check(OWN)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[1:] == [
        'config.toml:3: sites."Cloud.myname.com".tls: cloud.pem cannot be read: No such file or directory'
    ]
    assert "cloud.myname.com  site" in done.stdout
    found = answer(check(OWN, "--json"))
    assert [mistake["line"] for mistake in found["mistakes"]] == [3]
    assert [row["name"] for row in found["names"]] == ["cloud.myname.com"]


@pytest.mark.parametrize(
    ("name", "days", "said"),
    [
        ("other.myname.com", 100, "cloud.pem is for other.myname.com: clients will refuse it"),
        ("cloud.myname.com", -1, "cloud.pem expired on "),
        ("cloud.myname.com", 3, "cloud.pem expires on "),
    ],
)
def test_certificates_that_will_not_do(check: Check, name: str, days: float, said: str) -> None:
    write_pair(name, days)
    done = check(OWN)
    assert done.exit_code == 0
    [warning] = done.stdout.split("\n\n")[1:]
    assert warning.startswith(f"warning: cloud.myname.com: {said}")


def test_without_ngh2_it_is_said_what_will_not_work(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    text = '[sites."rpc.test"]\n"/" = "h2c://127.0.0.1:1"\ntls = "internal"\n'
    assert "ngh2" not in check(text).output
    monkeypatch.setattr("trioproxy.cli.check.spoken", lambda: (("http/1.1",), "No module named 'ngh2'"))
    output = " ".join(check(text).output.split())
    assert "ngh2 does not load (No module named 'ngh2')" in output
    assert "rpc.test/: h2c:// needs ngh2" in output
