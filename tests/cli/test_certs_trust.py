"""`trioproxy certs trust`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from tests.certs.test_internal_ca import early_root
from trioproxy.certs.internal_ca import InternalCA, utc_now
from trioproxy.certs.store import Store
from trioproxy.cli import certs_trust
from trioproxy.cli.main import command

CONFIG = '[sites."x.internal"]\ntls = "internal"\n"/" = "http://10.2.3.4"\n[storage]\npath = "store"\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a configuration, where commands are run."""
    logger = logging.getLogger("trioproxy")
    for attribute in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, attribute, getattr(logger, attribute))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(certs_trust, "ANCHORS", tmp_path / "anchors")
    (tmp_path / "config.toml").write_text(CONFIG)
    return tmp_path


def trust(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=False).invoke(command, ["certs", "trust", *arguments], terminal_width=200)


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Stands in for update-ca-certificates."""
    (folder / "bin").mkdir()
    (folder / "bin" / certs_trust.UPDATE).write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / certs_trust.UPDATE).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")


def test_it_makes_the_ca_and_tells_how_to_trust_it(folder: Path) -> None:
    done = trust()
    assert done.exit_code == 0
    file = folder / "store" / "internal" / "ca.crt"
    certificate = x509.load_pem_x509_certificate(file.read_bytes())
    assert str(file) in done.stdout
    assert certificate.fingerprint(hashes.SHA256()).hex(":").upper() in done.stdout
    for system in ("Debian", "Fedora, Arch", "macOS", "Windows", "Firefox", "Android"):
        assert system in done.stdout
    assert "PRIVATE KEY" not in done.stdout
    assert trust().stdout == done.stdout  # and makes no second one


def test_json(folder: Path) -> None:
    told = json.loads(trust("--json").stdout)
    certificate = x509.load_pem_x509_certificate(told["certificate"].encode())
    assert certificate.fingerprint(hashes.SHA256()).hex(":").upper() == told["sha256"]
    assert Path(told["path"]).read_text() == told["certificate"]
    assert told["installed"] is False
    store = Store(folder / "store")
    below = store.internal_intermediate()
    assert below is not None
    assert told["intermediate_not_after"] == below.leaf.not_after.isoformat()


def test_a_root_of_an_early_version_is_named_as_such(folder: Path) -> None:
    store = Store(folder / "store")
    with store.internal_lock():
        store.save_internal_ca(early_root())
    said = trust().stdout
    assert f"For a new\none, which every machine would have to trust anew: remove {store.path}/internal/ca.pem" in said
    assert json.loads(trust("--json").stdout)["intermediate_not_after"] is None
    (store.path / "internal" / "ca.pem").unlink()
    assert "early version" not in trust().stdout


def test_the_file_is_made_anew_where_somebody_removed_it(folder: Path) -> None:
    before = json.loads(trust("--json").stdout)
    Path(before["path"]).unlink()
    assert json.loads(trust("--json").stdout) == before
    assert Path(before["path"]).exists()


def test_install_puts_it_where_debian_looks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(folder, monkeypatch, f"touch {folder}/updated")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = trust("--install")
    assert done.exit_code == 0, done.output
    anchor = folder / "anchors" / certs_trust.ANCHOR
    assert anchor.read_bytes() == (folder / "store" / "internal" / "ca.crt").read_bytes()
    assert stat.S_IMODE(anchor.stat().st_mode) == 0o644
    assert (folder / "updated").exists()


@pytest.mark.skipif(shutil.which(certs_trust.UPDATE) is None, reason="this is no Debian")
def test_what_debian_makes_of_it_is_trusted_and_so_is_its_successor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("anchors", "certs", "shipped"):
        (folder / name).mkdir()
    (folder / "shipped.conf").write_text("# none\n")
    own = f"--localcertsdir {folder}/anchors --etccertsdir {folder}/certs --hooksdir {folder}/hooks"
    shipped = f"--certsdir {folder}/shipped --certsconf {folder}/shipped.conf"
    program(folder, monkeypatch, f'exec {shutil.which(certs_trust.UPDATE)} {own} {shipped} "$@"')
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(Store, "owner", lambda _: None)
    InternalCA(Store(folder / "store"), lambda: utc_now() - timedelta(days=1)).prepare()
    for _ in range(2):
        assert trust("--install").exit_code == 0
        leaf, above = InternalCA(Store(folder / "store")).issue("x.internal").split_chain()
        (folder / "leaf.pem").write_bytes(leaf)
        (folder / "above.pem").write_bytes(above)
        trusted = ["-no-CAfile", "-no-CAstore", "-CApath", f"{folder}/certs", "-untrusted", f"{folder}/above.pem"]
        command = ["openssl", "verify", "-x509_strict", *trusted, f"{folder}/leaf.pem"]
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (said.returncode, said.stderr) == (0, "")
        (folder / "store" / "internal" / "ca.pem").unlink()  # so that it gets a successor


def test_install_is_for_root(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(folder, monkeypatch, "true")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    done = trust("--install")
    assert done.exit_code == 1
    assert "sudo" in done.stderr
    assert not (folder / "anchors").exists()


def test_an_install_that_fails_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(folder, monkeypatch, "echo no room >&2; exit 7")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    done = trust("--install")
    assert done.exit_code == 1
    assert f"{certs_trust.UPDATE} failed with exit code 7: no room" in done.stderr
    monkeypatch.setenv("PATH", str(folder))
    assert "is not here" in trust("--install").stderr


def test_a_store_that_cannot_be_written_is_named(folder: Path) -> None:
    (folder / "store").write_text("")
    done = trust()
    assert done.exit_code == 1
    assert "store" in done.stderr
    assert "Traceback" not in done.output
