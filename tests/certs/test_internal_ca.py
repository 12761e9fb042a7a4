from __future__ import annotations

import shutil
import stat
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
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder
from cryptography.x509.verification import Store as TrustStore

from tests.certs.making import DAY, NOW, chain_pem, key_pem, new_key, subject
from trioproxy.certs import files
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.issuing import (
    BACKDATED,
    INTERMEDIATE_LIFETIME,
    LEAF_LIFETIME,
    LEAST,
    ROOT_LIFETIME,
    Signer,
    new_root,
)
from trioproxy.certs.store import Store
from trioproxy.errors import StoreError

SECOND = timedelta(seconds=1)


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


def root_of(store: Store) -> x509.Certificate:
    """What people import."""
    return x509.load_pem_x509_certificate(store.internal_ca_certificate.read_bytes())


def verified(made: Bundle, root: x509.Certificate, host: str, now: datetime) -> list[x509.Certificate]:
    """The chain from the leaf to the root, by a strict verifier that has the root alone; raises if there is none."""
    leaf, *above = chain_of(made)
    verifier = PolicyBuilder().store(TrustStore([root])).time(now).build_server_verifier(x509.DNSName(host))
    return verifier.verify(leaf, above)


# ---- what is made -------------------------------------------------------------------------------------

NAMES = ["cloud.example.com", "localhost", "pbx.localhost", "*.apps.example.com", "a" * 63]


@pytest.mark.parametrize("name", NAMES)
def test_a_leaf_passes_a_strict_verifier(name: str, store: Store, clock: Clock) -> None:
    made = InternalCA(store, clock).issue(name)
    leaf, intermediate = chain_of(made)
    root = root_of(store)
    assert verified(made, root, name.replace("*", "x"), NOW) == [leaf, intermediate, root]
    assert made.leaf.names == (name,)
    assert made.leaf.matches(name)


@pytest.mark.parametrize("name", NAMES)
def test_openssl_finds_nothing_amiss_however_strict_it_is(name: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    leaf, intermediate = chain_of(InternalCA(store).issue(name))
    for file, certificate in (("leaf.pem", leaf), ("above.pem", intermediate)):
        (tmp_path / file).write_bytes(certificate.public_bytes(Encoding.PEM))
    strict = ["-x509_strict", "-check_ss_sig", "-policy_check", "-purpose", "sslserver"]
    trusted = ["-CAfile", str(store.internal_ca_certificate), "-untrusted", str(tmp_path / "above.pem")]
    command = ["openssl", "verify", *strict, "-verify_hostname", name.replace("*", "x"), *trusted]
    said = subprocess.run([*command, str(tmp_path / "leaf.pem")], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


def test_each_may_do_what_it_is_for_and_no_more(store: Store, clock: Clock) -> None:
    leaf, intermediate = chain_of(InternalCA(store, clock).issue("a.example"))
    root = root_of(store)
    for certificate, ca, length in ((leaf, False, None), (intermediate, True, 0), (root, True, 1)):
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, ca, length)
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.critical
        assert (usage.value.key_cert_sign, usage.value.crl_sign, usage.value.digital_signature) == (ca, ca, not ca)
    for certificate in (leaf, intermediate):
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(purposes) == [ExtendedKeyUsageOID.SERVER_AUTH]
    for below, above in ((leaf, intermediate), (intermediate, root)):
        named = below.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        identifier = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        assert named.key_identifier == identifier.digest
        below.verify_directly_issued_by(above)
    assert len({certificate.subject for certificate in (leaf, intermediate, root)}) == 3


def test_an_intermediate_cannot_make_another(clock: Clock) -> None:
    root = new_root(NOW)
    made = root.intermediate(NOW).intermediate(NOW)
    leaf = made.leaf("a.example", NOW)
    trusted = x509.load_pem_x509_certificate(root.bundle.chain_pem)
    with pytest.raises(Exception, match="path length constraint violated"):
        verified(leaf, trusted, "a.example", NOW)


def test_a_name_too_long_for_a_common_name_and_the_catch_all(store: Store, clock: Clock) -> None:
    long = ".".join(["a" * 60] * 4)
    for name in (long, "*"):
        assert InternalCA(store, clock).issue(name).leaf.names == (name,)


def test_clients_get_the_intermediate_and_not_the_root(store: Store, clock: Clock) -> None:
    leaf, intermediate = chain_of(InternalCA(store, clock).issue("a.example"))
    assert leaf.issuer == intermediate.subject
    assert intermediate.issuer == root_of(store).subject == root_of(store).issuer
    assert store.internal_ca_certificate == store.path / "internal" / "ca.crt"


def test_leaves_are_short_lived_and_never_twice_the_same(store: Store, clock: Clock) -> None:
    ca = InternalCA(store, clock)
    one, two = ca.issue("a.example"), ca.issue("a.example")
    assert (one.leaf.not_before, one.leaf.not_after) == (NOW - BACKDATED, NOW + LEAF_LIFETIME)
    assert one.key_pem != two.key_pem
    assert one.leaf.serial != two.leaf.serial
    assert chain_of(one)[1] == chain_of(two)[1]


# ---- what is kept -------------------------------------------------------------------------------------


def test_nothing_is_made_before_it_is_needed_and_all_is_kept(store: Store, clock: Clock) -> None:
    ca = InternalCA(store, clock)
    assert not store.path.exists()
    first = chain_of(ca.issue("a.example"))[1]
    root = root_of(store)
    assert chain_of(InternalCA(Store(store.path), clock).issue("b.example"))[1] == first
    assert root_of(store) == root
    kept = sorted((store.path / "internal").iterdir())
    assert [path.name for path in kept] == ["ca.crt", "ca.pem", "intermediate.pem"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


def test_an_intermediate_is_renewed_long_before_a_leaf_could_outlive_it(store: Store, clock: Clock) -> None:
    ca = InternalCA(store, clock)
    first = chain_of(ca.issue("a.example"))[1]
    root = root_of(store)
    assert first.not_valid_after_utc == NOW + INTERMEDIATE_LIFETIME
    clock.now = NOW + INTERMEDIATE_LIFETIME - LEAST - SECOND
    assert chain_of(ca.issue("a.example"))[1] == first
    clock.now += SECOND
    seconds = []
    for authority in (ca, InternalCA(store, clock)):  # the running one and one that starts then
        made = authority.issue("a.example")
        leaf, second = chain_of(made)
        assert second != first
        assert second.not_valid_after_utc - leaf.not_valid_after_utc > 10 * LEAF_LIFETIME
        assert verified(made, root, "a.example", clock.now) == [leaf, second, root]
        seconds.append(second)
    assert seconds[0] == seconds[1]
    assert root_of(store) == root


def test_one_that_another_process_has_renewed_is_taken_up(store: Store, clock: Clock) -> None:
    here, there = InternalCA(store, clock), InternalCA(Store(store.path), clock)
    here.prepare()
    there.prepare()
    clock.now = NOW + INTERMEDIATE_LIFETIME - LEAST
    assert chain_of(there.issue("a.example"))[1] == chain_of(here.issue("a.example"))[1]


def test_no_intermediate_outlives_its_root(store: Store, clock: Clock) -> None:
    InternalCA(store, clock).prepare()
    clock.now = NOW + ROOT_LIFETIME - LEAST - SECOND
    made = InternalCA(store, clock).issue("a.example")
    intermediate = chain_of(made)[1]
    assert intermediate.not_valid_after_utc == root_of(store).not_valid_after_utc == NOW + ROOT_LIFETIME
    assert verified(made, root_of(store), "a.example", clock.now)


def test_a_root_near_its_end_gets_a_successor_and_is_kept_beside_it(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ca = InternalCA(store, clock)
    ca.prepare()
    first = root_of(store)
    clock.now = NOW + ROOT_LIFETIME - LEAST - SECOND
    ca.prepare()
    assert root_of(store) == first
    clock.now += SECOND
    for authority in (ca, InternalCA(store, clock)):  # the running one and one that starts then
        made = authority.issue("a.example")
        assert root_of(store) != first
        assert verified(made, root_of(store), "a.example", clock.now)
    assert caplog.text.count("to be imported anew") == 1
    kept = (store.path / "internal" / "ca.pem.previous").read_bytes()
    assert Bundle.parse(kept).leaf.serial == first.serial_number


def test_a_clock_that_is_behind_makes_no_new_root(store: Store, clock: Clock) -> None:
    """A machine without a battery starts in 1970; the root that people imported must survive that."""
    ca = InternalCA(store, clock)
    ca.prepare()
    root = root_of(store)
    for authority in (ca, InternalCA(store, clock)):
        clock.now = datetime.fromtimestamp(0, tz=NOW.tzinfo)
        authority.issue("a.example")
        assert root_of(store) == root
        clock.now = NOW  # and when it is set, nothing is left of it
        assert verified(authority.issue("a.example"), root, "a.example", NOW)


def test_a_clock_that_was_ahead_leaves_no_intermediate_that_is_not_yet_valid(store: Store, clock: Clock) -> None:
    ca = InternalCA(store, clock)
    ca.prepare()
    clock.now = NOW + 400 * DAY
    ca.prepare()
    clock.now = NOW
    for authority in (ca, InternalCA(store, clock)):
        assert verified(authority.issue("a.example"), root_of(store), "a.example", NOW)


# ---- roots of early versions --------------------------------------------------------------------------


def early_root() -> Bundle:
    """A root as it was when there were no intermediates: it permits none below it."""
    key = new_key()
    name = subject("trioproxy", "trioproxy internal CA 2026-11-21 11:00:00")
    others = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    usage = dict.fromkeys([*others, "encipher_only", "decipher_only"], False)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - BACKDATED)
        .not_valid_after(NOW + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return Bundle.of(key_pem(key), certificate.public_bytes(Encoding.PEM))


def test_a_root_that_permits_no_intermediate_goes_on_as_people_imported_it(
    store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with store.internal_lock():
        store.save_internal_ca(early_root())
    imported = root_of(store)
    for days in (0, 365, 3600):
        clock.now = NOW + days * DAY
        made = InternalCA(store, clock).issue("a.example")
        assert verified(made, imported, "a.example", clock.now) == chain_of(made)
    assert chain_of(made)[1] == root_of(store) == imported
    assert caplog.text == ""
    assert not (store.path / "internal" / "intermediate.pem").exists()


def test_its_successor_has_an_intermediate(store: Store, clock: Clock) -> None:
    with store.internal_lock():
        store.save_internal_ca(early_root())
    imported = root_of(store)
    clock.now = NOW + ROOT_LIFETIME - LEAST
    made = InternalCA(store, clock).issue("a.example")
    assert root_of(store) != imported
    assert len(verified(made, root_of(store), "a.example", clock.now)) == 3


# ---- damage -------------------------------------------------------------------------------------------


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
    assert Bundle.parse(path.read_bytes()).leaf.serial == root_of(store).serial_number
    assert verified(made, root_of(store), "a.example", NOW)


@pytest.mark.parametrize("damage", [b"", b"noise", key_pem(new_key()) + chain_pem(new_key(), ["x"]), rsa_root()])
def test_a_damaged_intermediate_is_replaced_and_nobody_need_import_anything(
    damage: bytes, store: Store, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    InternalCA(store, clock).prepare()
    root = root_of(store)
    (store.path / "internal" / "intermediate.pem").write_bytes(damage)
    made = InternalCA(store, clock).issue("a.example")
    assert "the internal CA's intermediate is damaged" in caplog.text
    assert verified(made, root, "a.example", NOW)
    assert chain_of(InternalCA(store, clock).issue("a.example"))[1] == chain_of(made)[1]


def test_an_intermediate_of_another_root_is_not_used(tmp_path: Path, store: Store, clock: Clock) -> None:
    """Left by a crash between the two, or by somebody who put one file of a backup back."""
    other = Store(tmp_path / "other")
    for each in (store, other):
        InternalCA(each, clock).prepare()
    shutil.copy(other.path / "internal" / "intermediate.pem", store.path / "internal")
    assert verified(InternalCA(store, clock).issue("a.example"), root_of(store), "a.example", NOW)


@pytest.mark.parametrize("shown", [None, b"", b"another"])
def test_what_people_import_is_the_root_whatever_became_of_the_file(
    shown: bytes | None, store: Store, clock: Clock
) -> None:
    InternalCA(store, clock).prepare()
    root = root_of(store)
    store.internal_ca_certificate.unlink()
    if shown is not None:
        store.internal_ca_certificate.write_bytes(shown)
    InternalCA(store, clock).prepare()
    assert root_of(store) == root


def test_a_full_disk_makes_no_new_root(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ca = InternalCA(store, clock)
    ca.prepare()
    clock.now = NOW + INTERMEDIATE_LIFETIME

    def full(*_: object) -> None:
        raise StoreError("No space left on device")

    monkeypatch.setattr(files, "replace", full)
    made = [ca.issue("a.example"), ca.issue("b.example")]
    assert all(verified(each, root_of(store), each.leaf.names[0], clock.now) for each in made)
    assert caplog.text.count("lasts until the next start: No space left") == 1


def test_without_a_store_the_root_lives_in_memory(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    ca = InternalCA(Store(tmp_path / "store"), clock)
    first, second = ca.issue("a.example"), ca.issue("b.example")
    assert chain_of(first)[1] == chain_of(second)[1]
    chain_of(first)[0].verify_directly_issued_by(chain_of(first)[1])
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


# ---- several processes, and crashes -------------------------------------------------------------------


def test_who_makes_the_root_is_waited_for(store: Store, clock: Clock) -> None:
    """Two processes that start together must not come out with a root each."""
    made: list[Bundle] = []
    late = threading.Thread(target=lambda: made.append(InternalCA(store, clock).issue("a.example")), daemon=True)
    with store.internal_lock():
        late.start()
        late.join(0.5)
        assert late.is_alive()
        root = new_root(NOW)
        store.save_internal_ca(root.bundle)
        intermediate = root.intermediate(NOW)
        store.save_internal_intermediate(intermediate.bundle)
    late.join(10)
    assert chain_of(made[0])[1].serial_number == intermediate.bundle.leaf.serial


def test_processes_that_start_together_share_one_root_and_intermediate(store: Store) -> None:
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
    assert len({intermediate.serial_number for _, intermediate in chains}) == 1
    assert len({leaf.serial_number for leaf, _ in chains}) == 2
    chains[0][1].verify_directly_issued_by(root_of(store))


KILLED = """
import itertools, os, shutil, signal, sys
from datetime import datetime
from pathlib import Path
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store

folder, now = Path(sys.argv[1]), datetime.fromisoformat(sys.argv[2])

def killed_at(point):
    left = [point]

    def watched(call):
        def instead(*arguments, **named):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
            return call(*arguments, **named)
        return instead

    os.fsync, Path.replace = watched(os.fsync), watched(Path.replace)

for point in itertools.count():
    store = folder / str(point)
    shutil.copytree(folder / "before", store)
    child = os.fork()
    if not child:
        killed_at(point)
        InternalCA(Store(store), lambda: now).issue("a.example")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""
"""Does the work again and again, each time killed one disk operation later, until it comes to its end."""


@pytest.mark.parametrize(
    ("ready", "age", "points"),
    [
        (False, timedelta(0), 9),  # three files, each fsync, rename, fsync of the folder
        (True, INTERMEDIATE_LIFETIME, 3),
        (True, ROOT_LIFETIME, 12),  # and the root of before is kept
    ],
    ids=["first", "intermediate", "root"],
)
def test_killed_at_any_point_what_is_left_goes_on(
    ready: bool, age: timedelta, points: int, tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    before = Store(tmp_path / "before")
    before.path.mkdir()
    if ready:
        InternalCA(before, clock).prepare()
    clock.now += age
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, clock.now.isoformat()], check=True)
    left = sorted((path for path in tmp_path.iterdir() if path.name != "before"), key=lambda path: int(path.name))
    assert len(left) == points + 1  # and one that was not killed
    for path in left:
        store = Store(path)
        for file in path.rglob("*"):
            assert stat.S_IMODE(file.stat().st_mode) == (0o700 if file.is_dir() else 0o600)
        kept = store.internal_ca()
        made = InternalCA(store, clock).issue("a.example")
        assert verified(made, root_of(store), "a.example", clock.now)
        if kept is not None and Signer(kept).lasts(clock.now):
            assert root_of(store).serial_number == kept.leaf.serial, "a root that was whole has stayed"
    assert "damaged" not in caplog.text
