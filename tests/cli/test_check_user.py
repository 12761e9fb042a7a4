"""`trioproxy check` sees files with the eyes of `process.user`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme
from click.testing import CliRunner, Result

from trioproxy.cli.main import command

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can see with the eyes of others")


def check(folder: Path, user: str) -> Result:
    pair = trustme.CA().issue_cert("cloud.test")
    key = folder / "x.key"
    pair.private_key_pem.write_to_path(str(key))
    key.chmod(0o600)
    pair.cert_chain_pems[0].write_to_path(str(folder / "x.pem"))
    file = folder / "config.toml"
    if not file.exists():
        file.touch()
    file.write_text(
        f'[process]\nuser = "{user}"\n[storage]\npath = "{folder}/store"\n[sites."cloud.test"]\n"/" = "http://127.0.0.1:9"\n'
        'tls = { certificate = "x.pem", key = "x.key" }\n'
    )
    return CliRunner().invoke(command, ["--config", str(file), "check"])


@root
def test_a_key_that_only_root_can_read_is_a_mistake(folder: Path) -> None:
    done = check(folder, "nobody")
    assert done.exit_code == 2
    assert "x.key cannot be read: Permission denied" in done.stderr
    assert os.getresuid() == (0, 0, 0)
    assert check(folder, "").exit_code == 0


@root
def test_a_configuration_that_only_root_can_read_is_a_mistake(folder: Path) -> None:
    (folder / "config.toml").touch(mode=0o600)
    done = check(folder, "nobody")
    assert "config.toml: process.user: nobody cannot read" in done.stderr


@root
def test_a_store_of_roots_is_worth_a_warning_and_one_that_is_not_there_is_not(folder: Path) -> None:
    assert "storage.path" not in check(folder, "nobody").stdout
    (folder / "store").mkdir(mode=0o700)
    assert "storage.path: keys and certificates cannot be kept" in check(folder, "nobody").stdout


def test_a_user_that_there_is_not_is_a_mistake_with_its_line(folder: Path) -> None:
    done = check(folder, "nobody-here")
    assert done.exit_code == 2
    assert "config.toml:2: process.user: there is no user nobody-here on this machine" in done.stderr
