"""Whether the files that a configuration names can be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme

from trioproxy.certs.preflight import check_files
from trioproxy.config.load import load

CONFIG = """
[acme]
ca_file = "ca.pem"

[sites."Cloud.myname.com."]
"/" = "http://10.2.3.4"
aliases = ["files.myname.com"]
tls = { certificate = "x.pem", key = "x.key" }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A configuration and good files."""
    ca = trustme.CA()
    pair = ca.issue_cert("cloud.myname.com")
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair.cert_chain_pems[0].write_to_path(tmp_path / "x.pem")
    pair.private_key_pem.write_to_path(tmp_path / "x.key")
    (tmp_path / "x.key").chmod(0o600)
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def said(folder: Path) -> list[str]:
    return [
        f"{mistake.line}: {mistake.key}: {mistake.problem}".replace(f"{folder}/", "")
        for mistake in check_files(load(folder / "config.toml"))
    ]


def test_good_files(folder: Path) -> None:
    assert said(folder) == []


def test_a_configuration_loads_without_them(folder: Path) -> None:
    for name in ("ca.pem", "x.pem", "x.key"):
        (folder / name).unlink()
    assert said(folder) == [
        "3: acme.ca_file: ca.pem cannot be read: No such file or directory",
        '8: sites."Cloud.myname.com.".tls: x.pem cannot be read: No such file or directory',
    ]


def test_a_trust_anchor_that_is_none(folder: Path) -> None:
    (folder / "ca.pem").write_text("hello")
    assert said(folder) == ["3: acme.ca_file: ca.pem holds no certificates in PEM form (no BEGIN CERTIFICATE line)"]


def test_a_key_of_another_certificate(folder: Path) -> None:
    trustme.CA().issue_cert("cloud.myname.com").private_key_pem.write_to_path(folder / "x.key")
    [line] = said(folder)
    assert line.startswith('8: sites."Cloud.myname.com.".tls: ')
    assert "does not belong to the certificate" in line


def test_a_key_that_everybody_can_read(folder: Path) -> None:
    (folder / "x.key").chmod(0o604)
    [line] = said(folder)
    assert line.startswith('8: sites."Cloud.myname.com.".tls: ')
    assert "chmod" in line


def test_a_file_that_has_gone_meanwhile_costs_the_line_alone(folder: Path) -> None:
    config = load(folder / "config.toml")
    (folder / "x.pem").unlink()
    (folder / "config.toml").unlink()
    [mistake] = check_files(config)
    assert (mistake.line, mistake.key) == (0, 'sites."cloud.myname.com".tls')


def test_authorities_of_backends(folder: Path) -> None:
    (folder / "config.toml").write_text(
        '[sites."A.b"]\naliases = ["c.d"]\nca_file = "gone.pem"\n'
        '"/" = "https://b"\n"/1/" = "https://c"\n"/2/" = "http://d"\n"/3/" = { to = "https://e", ca_file = "ca.pem" }\n'
        '[sites."A.b"."/4/"]\nto = "https://f"\nca_file = "text.pem"\n'
    )
    (folder / "text.pem").write_text("hello")
    assert said(folder) == [
        '3: sites."A.b".ca_file: gone.pem cannot be read: No such file or directory',
        '10: sites."A.b"."/4/".ca_file: text.pem holds no certificates in PEM form (no BEGIN CERTIFICATE line)',
    ]
