from __future__ import annotations

import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.verification import PolicyBuilder
from cryptography.x509.verification import Store as TrustStore

from tests.certs.making import DAY, NOW, chain_pem, key_pem, new_key, subject
from trioproxy.certs import files
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.internal_ca import BACKDATED, LEAF_LIFETIME, ROOT_LEAST, ROOT_LIFETIME, InternalCA
from trioproxy.certs.store import Store


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def chain_of(made: Bundle) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(made.chain_pem)


@pytest.mark.parametrize("name", ["cloud.example.com", "localhost", "pbx.localhost", "*.apps.example.com", "a" * 63])
def test_a_leaf_passes_a_strict_verifier(name: str, store: Store, clock: Clock) -> None:
    made = InternalCA(store, clock).issue(name)
    leaf, root = chain_of(made)
    host = name.replace("*", "x")
    verifier = PolicyBuilder().store(TrustStore([root])).time(NOW).build_server_verifier(x509.DNSName(host))
    assert verifier.verify(leaf, []) == [leaf, root]
    assert made.leaf.names == (name,)
    assert made.leaf.matches(name)


def test_a_name_too_long_for_a_common_name_and_the_catch_all(store: Store, clock: Clock) -> None:
    long = ".".join(["a" * 60] * 4)
    for name in (long, "*"):
        assert InternalCA(store, clock).issue(name).leaf.names == (name,)


def test_the_chain_holds_the_root_so_that_openssl_need_not_look_for_it(store: Store, clock: Clock) -> None:
    leaf, root = chain_of(InternalCA(store, clock).issue("a.example"))
    assert leaf.issuer == root.subject == root.issuer
    assert (store.path / "internal" / "ca.crt").read_bytes() == root.public_bytes(Encoding.PEM)
    assert store.internal_ca_certificate == store.path / "internal" / "ca.crt"


def test_leaves_are_short_lived_and_never_twice_the_same(store: Store, clock: Clock) -> None:
    ca = InternalCA(store, clock)
    one, two = ca.issue("a.example"), ca.issue("a.example")
    assert (one.leaf.not_before, one.leaf.not_after) == (NOW - BACKDATED, NOW + LEAF_LIFETIME)
    assert one.key_pem != two.key_pem
    assert one.leaf.serial != two.leaf.serial


def test_nothing_is_made_before_it_is_needed_and_the_root_is_kept(store: Store, clock: Clock) -> None:
    ca = InternalCA(store, clock)
    assert not store.path.exists()
    first = chain_of(ca.issue("a.example"))[1]
    assert chain_of(InternalCA(Store(store.path), clock).issue("b.example"))[1] == first
    assert sorted(path.name for path in (store.path / "internal").iterdir()) == ["ca.crt", "ca.pem"]


def test_a_root_near_its_end_gets_a_successor_and_is_kept_beside_it(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ca = InternalCA(store, clock)
    first = chain_of(ca.issue("a.example"))[1]
    clock.now = NOW + ROOT_LIFETIME - ROOT_LEAST - timedelta(seconds=1)
    assert chain_of(ca.issue("a.example"))[1] == first
    clock.now += timedelta(seconds=1)
    for authority in (ca, InternalCA(store, clock)):  # the running one and one that starts then
        leaf, root = chain_of(authority.issue("a.example"))
        assert root != first
        assert leaf.not_valid_after_utc < root.not_valid_after_utc
    assert "to be imported anew" in caplog.text
    kept = (store.path / "internal" / "ca.pem.previous").read_bytes()
    assert Bundle.parse(kept).leaf.serial == first.serial_number


def test_a_clock_that_is_behind_makes_no_new_root(store: Store, clock: Clock) -> None:
    """A machine without a battery starts in 1970; the root that people imported must survive that."""
    first = chain_of(InternalCA(store, clock).issue("a.example"))[1]
    clock.now = datetime.fromtimestamp(0, tz=NOW.tzinfo)
    assert chain_of(InternalCA(store, clock).issue("a.example"))[1] == first


def rsa_root() -> bytes:
    key = rsa.generate_private_key(65537, 2048)
    root = (
        x509.CertificateBuilder()
        .subject_name(subject("", "an authority of another make"))
        .issuer_name(subject("", "an authority of another make"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + 300 * DAY)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem + root.public_bytes(Encoding.PEM)


@pytest.mark.parametrize("damage", [b"", b"noise", key_pem(new_key()) + chain_pem(new_key(), ["x"]), rsa_root()])
def test_a_damaged_root_is_replaced_and_kept_aside(
    damage: bytes, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    InternalCA(store, clock).issue("a.example")
    path = store.path / "internal" / "ca.pem"
    path.write_bytes(damage)
    made = InternalCA(store, clock).issue("a.example")
    assert "the internal CA is damaged" in caplog.text
    assert (store.path / "internal" / "ca.pem.previous").read_bytes() == damage
    assert chain_of(made)[1].serial_number == Bundle.parse(path.read_bytes()).leaf.serial


def test_without_a_store_the_root_lives_in_memory(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    ca = InternalCA(Store(tmp_path / "store"), clock)
    first, second = ca.issue("a.example"), ca.issue("b.example")
    assert chain_of(first)[1] == chain_of(second)[1]
    assert caplog.text.count("lasts until the next start") == 1


def test_a_root_that_the_disk_does_not_give_back_lives_in_memory(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    read = files.read

    def damaged(path: Path) -> bytes | None:
        data = read(path)
        return data and data[:-40]

    monkeypatch.setattr(files, "read", damaged)
    ca = InternalCA(store, clock)
    ca.prepare()
    assert chain_of(ca.issue("a.example"))[1] == chain_of(ca.issue("b.example"))[1]
    assert caplog.text.count("lasts until the next start") == 1


def test_who_makes_the_root_is_waited_for(store: Store, clock: Clock) -> None:
    """Two processes that start together must not come out with a root each."""
    made: list[Bundle] = []
    late = threading.Thread(target=lambda: made.append(InternalCA(store, clock).issue("a.example")), daemon=True)
    with store.internal_lock():
        late.start()
        late.join(0.5)
        assert late.is_alive()
        other = Store(store.path.parent / "other")
        root = chain_of(InternalCA(other, clock).issue("b.example"))[1]
        kept = other.internal_ca()
        assert kept is not None
        store.save_internal_ca(kept)
    late.join(10)
    assert chain_of(made[0])[1] == root


def test_processes_that_start_together_share_one_root(store: Store) -> None:
    program = f"""
import sys
from pathlib import Path
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store
sys.stdin.read()
sys.stdout.write(InternalCA(Store(Path({str(store.path)!r}))).issue("a.example").chain_pem.decode())
"""
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
    chains = []
    for process in started:
        with process:
            assert process.stdout is not None
            chains.append(x509.load_pem_x509_certificates(process.stdout.read()))
    assert len({root.serial_number for _, root in chains}) == 1
    assert len({leaf.serial_number for leaf, _ in chains}) == 2
