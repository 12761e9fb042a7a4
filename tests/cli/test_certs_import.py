"""`trioproxy certs import`, from the folders that other programs leave."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from tests.acme.support import PATIENCE
from tests.certs.making import key_pem, new_key, subject
from tests.net.sockets import until
from tests.proxy.stage import HELLO, LOOPBACK, answering, backend
from tests.test_server import visit
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.store import Store
from trioproxy.cli.main import command
from trioproxy.config.load import load
from trioproxy.life.sockets import Addresses
from trioproxy.server import Server

NAME, OTHER = "cloud.example.com", "home.example.com"
NOW = datetime.now(UTC).replace(microsecond=0)
DAY = timedelta(days=1)

Key = ec.EllipticCurvePrivateKey

CONFIG = """
[sites]
"cloud.example.com" = "http://10.2.3.4"
"home.example.com" = "http://10.2.3.5"
[storage]
path = "store"
"""


@pytest.fixture(autouse=True)
def _log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands set up the log of their process, and here that is everybody's."""
    logger = logging.getLogger("trioproxy")
    for attribute in ("handlers", "propagate", "level"):
        monkeypatch.setattr(logger, attribute, getattr(logger, attribute))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a configuration, where commands are run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    (tmp_path / "old").mkdir()
    return tmp_path


def certs(*arguments: str) -> Result:
    return CliRunner(catch_exceptions=False).invoke(command, ["certs", *arguments], terminal_width=200)


def rows(done: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(done.stdout)["certificates"]
    return found


def results(done: Result) -> list[tuple[str, str]]:
    return [(row["site"], row["result"]) for row in rows(done)]


class Authority:
    """A root and an intermediate below it."""

    def __init__(self, label: str = "T") -> None:
        self.root_key, self.key = new_key(), new_key()
        self.root_name, self.name = subject("Test", f"{label} root"), subject("Test", f"{label} 1")
        self.root = self._sign(self.root_name, self.root_key, self.root_name, self.root_key)
        self.intermediate = self._sign(self.name, self.key, self.root_name, self.root_key)

    def _sign(self, name: x509.Name, key: Key, issuer: x509.Name, by: Key) -> bytes:
        builder = _builder(name, issuer, key, 3650)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        return builder.sign(by, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, *names: str, days: float = 60, key: Key | None = None) -> tuple[bytes, bytes]:
        """A key and its certificate."""
        key = key or new_key()
        builder = _builder(x509.Name([]), self.name, key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=True)
        return key_pem(key), builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _builder(name: x509.Name, issuer: x509.Name, key: Key, days: float) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer).public_key(key.public_key())
    return (
        builder.serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 90 * DAY)
        .not_valid_after(NOW + days * DAY)
    )


@pytest.fixture(scope="module")
def ca() -> Authority:
    return Authority()


def certbot(folder: Path, lineage: str, key: bytes, certificate: bytes, ca: Authority) -> None:
    """As certbot leaves it, at its third renewal."""
    archive, live = folder / "archive" / lineage, folder / "live" / lineage
    archive.mkdir(parents=True)
    live.mkdir(parents=True)
    (folder / "live" / "README").write_text("This directory contains your keys and certificates.")
    (live / "README").write_text("`privkey.pem`  : the private key for your certificate.")
    pieces = {
        "cert": certificate,
        "chain": ca.intermediate,
        "fullchain": certificate + ca.intermediate,
        "privkey": key,
    }
    for name, data in pieces.items():
        (archive / f"{name}3.pem").write_bytes(data)
        (archive / f"{name}3.pem").chmod(0o600)
        (live / f"{name}.pem").symlink_to(f"../../archive/{lineage}/{name}3.pem")


def put(path: Path, *pieces: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(pieces))
    path.chmod(0o600)
    return path


def stored(folder: Path, name: str = NAME) -> Bundle:
    found = Store(folder / "store").load(name)
    assert found is not None
    return found


def listing(folder: Path) -> Sequence[tuple[str, float, int]]:
    """All there is to see of a folder without reading its files."""
    return sorted((str(p), p.lstat().st_mtime, p.lstat().st_mode) for p in folder.rglob("*"))


# ---- certbot ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", ["old", "old/live", "old/live/cloud.example.com"])
def test_certbots_folder_is_taken_over_and_not_touched(folder: Path, ca: Authority, named: str) -> None:
    key, certificate = ca.issue(NAME)
    certbot(folder / "old", NAME, key, certificate, ca)
    before = listing(folder / "old")
    done = certs("import", named)
    assert done.exit_code == 0
    assert "fullchain.pem" in done.stdout
    assert "imported" in done.stdout
    assert "no server is running" in done.stdout
    assert stored(folder).pem == key + certificate + ca.intermediate
    assert listing(folder / "old") == before
    kept = folder / "store" / "certificates" / f"{NAME}.pem"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert b"PRIVATE KEY" not in done.stdout_bytes
    assert results(certs("import", named, "--json")) == [(NAME, "kept")]


def test_of_two_lineages_the_one_valid_longest_wins(folder: Path, ca: Authority) -> None:
    for lineage, days in ((NAME, 20), (f"{NAME}-0001", 70), (f"{NAME}-0002", 40)):
        certbot(folder / "old", lineage, *ca.issue(NAME, days=days), ca)
    done = certs("import", "old", "--json")
    assert results(done) == [(NAME, "imported"), (NAME, "kept"), (NAME, "kept")]
    assert rows(done)[0]["path"].endswith("-0001/fullchain.pem")
    assert stored(folder).leaf.not_after == NOW + 70 * DAY


def test_what_the_store_has_for_longer_stays(folder: Path, ca: Authority) -> None:
    put(folder / "new" / "a.pem", *ca.issue(NAME, days=80))
    put(folder / "old" / "a.pem", *ca.issue(NAME, days=30))
    assert certs("import", "new").exit_code == 0
    before = stored(folder).pem
    done = certs("import", "old", "--json")
    assert (results(done), done.exit_code) == ([(NAME, "kept")], 0)
    assert "trioproxy's own is valid to" in rows(done)[0]["detail"]
    assert stored(folder).pem == before


def test_a_longer_one_replaces_what_the_store_has_and_that_is_kept_as_previous(folder: Path, ca: Authority) -> None:
    put(folder / "old" / "a.pem", *ca.issue(NAME, days=30))
    certs("import", "old")
    before = stored(folder).pem
    put(folder / "old" / "b.pem", *ca.issue(NAME, days=60))
    assert results(certs("import", "old", "--json")) == [(NAME, "imported"), (NAME, "kept")]
    assert (folder / "store" / "certificates" / f"{NAME}.pem.previous").read_bytes() == before


# ---- any folder ---------------------------------------------------------------------------------------


def test_pairs_of_any_name_are_matched_by_their_keys(folder: Path, ca: Authority) -> None:
    key, certificate = ca.issue(NAME)
    other_key, other_certificate = ca.issue(OTHER)
    put(folder / "old" / "one.crt", other_certificate)
    put(folder / "old" / "one.key", key)
    put(folder / "old" / "two.crt", certificate)
    put(folder / "old" / "deep" / "two.key", other_key)
    put(folder / "old" / "authorities.pem", ca.root, ca.intermediate)
    assert certs("import", "old").exit_code == 0
    assert stored(folder, NAME).pem == key + certificate + ca.intermediate  # without the root
    assert stored(folder, OTHER).pem == other_key + other_certificate + ca.intermediate


def test_a_combined_file_in_any_order(folder: Path, ca: Authority) -> None:
    key, certificate = ca.issue(NAME)
    put(folder / "old" / "haproxy.pem", ca.intermediate, certificate, key)
    assert certs("import", "old").exit_code == 0
    assert stored(folder).chain_pem == certificate + ca.intermediate


def test_a_chain_of_authorities_with_one_name_follows_signatures(folder: Path, ca: Authority) -> None:
    put(folder / "old" / "a.pem", *ca.issue(NAME))
    put(folder / "old" / "1-other.pem", Authority().intermediate)
    put(folder / "old" / "2-right.pem", ca.intermediate)
    assert certs("import", "old").exit_code == 0
    assert stored(folder).chain_pem.endswith(ca.intermediate)
    assert stored(folder).chain_pem.count(b"BEGIN") == 2


def test_one_certificate_for_several_sites(folder: Path, ca: Authority) -> None:
    put(folder / "old" / "a.pem", *ca.issue("*.example.com"))
    assert results(certs("import", "old", "--json")) == [(NAME, "imported"), (OTHER, "imported")]
    assert stored(folder, OTHER).leaf.names == ("*.example.com",)


# ---- what cannot be used ------------------------------------------------------------------------------


def test_every_other_result(folder: Path, ca: Authority) -> None:
    old = folder / "old"
    put(old / "1" / "x.pem", *ca.issue("mail.example.org"))
    put(old / "2" / "x.pem", *ca.issue(NAME, days=-1))
    put(old / "3" / "x.pem", ca.issue(NAME)[1])
    put(old / "4" / "x.pem", ca.issue(NAME)[1], key_pem(new_key()))
    locked = new_key()
    put(old / "5" / "x.key", locked.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x")))
    put(old / "5" / "x.crt", ca.issue(NAME, key=locked)[1])
    put(old / "6" / "x.pem", ca.issue(NAME)[1][:200])
    (old / "7.pem").symlink_to("nowhere.pem")
    put(old / "notes.txt", b"hello")
    done = certs("import", "old", "--json")
    assert done.exit_code == 1
    told = {Path(row["path"]).relative_to(old.absolute().name).parts[0]: row["result"] for row in rows(done)}
    assert told == {
        "1": "covers nothing configured",
        "2": "expired",
        "3": "key missing",
        "4": "key does not match",
        "5": "encrypted key",
        "6": "unreadable",
        "7.pem": "unreadable",
    }
    assert not (folder / "store").exists()


def self_signed(names: Sequence[str], common_name: str) -> tuple[bytes, bytes]:
    """A key and its certificate, as every machine makes one for itself."""
    key, name = new_key(), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    builder = _builder(name, name, key, 3000)
    builder = builder.add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
    return key_pem(key), builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_what_nobody_has_signed_does_not_keep_a_site_from_its_certificate(folder: Path, ca: Authority) -> None:
    put(folder / "old" / "snakeoil.pem", *self_signed([NAME], "debian"))
    done = certs("import", "old", "--json")
    assert (done.exit_code, results(done)) == (0, [(NAME, "self-signed")])
    assert not (folder / "store").exists()
    put(folder / "old" / "real.pem", *ca.issue(NAME, days=5))
    assert results(certs("import", "old", "--json")) == [(NAME, "imported"), (NAME, "self-signed")]


def test_names_of_files_and_certificates_cannot_command_a_terminal(folder: Path) -> None:
    strange = os.fsdecode(b"\xff\x1b[31m.pem")
    put(folder / "old" / strange, *self_signed([NAME, "x\x1b[2J.test"], "CN\x1b[2J")).chmod(0o644)
    done = certs("import", "old")
    assert done.exit_code == 0
    assert "\x1b" not in done.output
    assert "\N{REPLACEMENT CHARACTER}[31m.pem" in done.output
    assert done.output.encode("utf-8")


def test_what_is_merely_old_is_no_trouble(folder: Path, ca: Authority) -> None:
    put(folder / "old" / "1" / "x.pem", *ca.issue("mail.example.org"))
    put(folder / "old" / "2" / "x.pem", *ca.issue(NAME, days=-1))
    put(folder / "old" / "3" / "x.pem", ca.issue(NAME, days=5)[1])
    put(folder / "old" / "4" / "x.pem", *ca.issue(NAME))
    assert certs("import", "old").exit_code == 0


def test_a_key_that_others_can_read_is_warned_of_and_taken(folder: Path, ca: Authority) -> None:
    put(folder / "old" / "a.pem", *ca.issue(NAME)).chmod(0o644)
    done = certs("import", "old")
    assert done.exit_code == 0
    assert "warning: every user of this machine can read the private key old/a.pem" in done.stdout


def test_an_empty_folder_and_none(folder: Path) -> None:
    done = certs("import", "old")
    assert (done.exit_code, done.stdout) == (1, "There is no certificate in old, nor below it.\n")
    assert certs("import", "nowhere").exit_code == 2
    assert certs("import").exit_code == 2


# ---- beside a server ----------------------------------------------------------------------------------


async def test_a_running_server_serves_it_at_once(folder: Path, ca: Authority) -> None:
    async with backend(answering(HELLO)) as (port, _):
        (folder / "config.toml").write_text(
            f'[sites]\n"{NAME}" = "http://{LOOPBACK}:{port}"\n[storage]\npath = "store"\n'
            f'[listen]\nhttps = ["{LOOPBACK}:0"]\nhttp = ["{LOOPBACK}:0"]\n'
            f'[acme]\ndirectory = "http://{LOOPBACK}:{port}/dir"\n'
        )
        config = load(Path("config.toml"))
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                addresses: Addresses = await nursery.start(Server(config, lambda: config).run)
                before = await serial_at(addresses)
                key, certificate = ca.issue(NAME)
                put(folder / "old" / "a.pem", key, certificate, ca.intermediate)
                done = await trio.to_thread.run_sync(partial(certs, "import", "old"))
                expected = x509.load_pem_x509_certificate(certificate).serial_number
                assert await serial_at(addresses) == expected != before
                await until(lambda: (folder / "store" / "pem" / NAME / "privkey.pem").exists())
                nursery.cancel_scope.cancel()
    assert done.exit_code == 0, done.output
    assert f"{NAME}: new handshakes already get it (checked)" in done.stdout
    assert (folder / "store" / "pem" / NAME / "privkey.pem").read_bytes() == key


async def serial_at(addresses: Addresses) -> int:
    stream = await visit(addresses.https[0], NAME)
    async with stream:
        der = stream.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number
