from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import attrs
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.certs.making import (
    DAY,
    NOW,
    acme_site,
    bundle,
    chain_pem,
    config,
    files_site,
    internal_site,
    key_pem,
    new_key,
    subject,
)
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.contexts import ContextSource, Served, read_files, server_context
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store
from trioproxy.config.model import CertificateFiles
from trioproxy.errors import CertificateError
from trioproxy.snapshot import Contexts

NAME = "cloud.example.com"


def handshake(server: ssl.SSLContext, client: ssl.SSLContext | None = None, name: str = NAME) -> ssl.SSLObject:
    """Do a handshake in memory; the client's side of it."""
    if client is None:
        client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [ours, theirs]
    for _ in range(6):
        for side in list(pending):
            try:
                side.do_handshake()
                pending.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert pending == []
    return ours


def served_by(context: ssl.SSLContext, name: str = NAME) -> int:
    """The serial number of the certificate that a client gets."""
    der = handshake(context, name=name).getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def source(store: Store) -> ContextSource:
    return ContextSource(store, InternalCA(store, lambda: NOW))


def write_files(folder: Path, made: Bundle, mode: int = 0o600) -> CertificateFiles:
    files = CertificateFiles(folder / "x.pem", folder / "x.key")
    files.certificate.write_bytes(made.chain_pem)
    files.key.write_bytes(made.key_pem)
    files.key.chmod(mode)
    return files


# ---- one context --------------------------------------------------------------------------------------


def test_a_context_serves_the_leaf_and_its_chain() -> None:
    made = bundle(NAME)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    leaf, above = x509.load_pem_x509_certificates(made.chain_pem)
    trust.load_verify_locations(cadata=above.public_bytes(Encoding.PEM).decode())
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client = handshake(server_context(made), trust)
    assert client.getpeercert(binary_form=True) == leaf.public_bytes(Encoding.DER)
    assert client.version() == "TLSv1.3"


def test_each_context_is_a_fresh_one() -> None:
    made = bundle(NAME)
    assert server_context(made) is not server_context(made)


@pytest.mark.parametrize(
    ("offered", "asked", "chosen"),
    [
        (None, ["http/1.1"], "http/1.1"),
        (None, ["h2", "http/1.1"], "http/1.1"),
        (("h2", "http/1.1"), ["http/1.1", "h2"], "h2"),
        (None, ["h2"], None),
        (None, [], None),
    ],
)
def test_alpn(offered: tuple[str, ...] | None, asked: list[str], chosen: str | None) -> None:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    if asked:
        client.set_alpn_protocols(asked)
    made = bundle(NAME)
    context = server_context(made) if offered is None else server_context(made, offered)
    assert handshake(context, client).selected_alpn_protocol() == chosen


def test_a_client_gets_one_ticket_and_comes_back_with_it() -> None:
    context = server_context(bundle(NAME))
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    session: ssl.SSLSession | None = None
    for _ in range(2):
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = context.wrap_bio(there, back, server_side=True)
        caller = client.wrap_bio(back, there, server_hostname=NAME, session=session)
        for side in (caller, server, caller):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
        server.do_handshake()
        tickets = back.read()
        assert len(records(tickets)) == 1
        back.write(tickets)
        with pytest.raises(ssl.SSLWantReadError):
            caller.read()
        reused, session = caller.session_reused, caller.session
    assert reused


def records(data: bytes) -> list[bytes]:
    """The TLS records that `data` consists of (RFC 8446 section 5.1)."""
    found = []
    while data:
        size = 5 + int.from_bytes(data[3:5])
        found.append(data[:size])
        data = data[size:]
    return found


def client_of_tls12(ciphers: str) -> ssl.SSLContext:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers(ciphers)
    return client


def test_tls_12_only_with_forward_secrecy_and_authenticated_encryption() -> None:
    context = server_context(bundle(NAME))
    assert handshake(context, client_of_tls12("ECDHE+AESGCM")).version() == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        handshake(context, client_of_tls12("ECDHE-ECDSA-AES128-SHA256"))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    assert context.options & ssl.OP_NO_RENEGOTIATION


def test_a_key_touches_no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle(NAME)
    before = open_descriptors()
    loaded: list[str] = []
    real = ssl.SSLContext.load_cert_chain

    def watched(self: ssl.SSLContext, path: str) -> None:
        loaded.append(str(Path(path).readlink()))
        real(self, path)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", watched)
    server_context(made)
    assert loaded == ["/memfd:certificate (deleted)"]
    assert open_descriptors() == before


def weak() -> Bundle:
    """A pair that fits together, but with a key that TLS finds too short."""
    key = rsa.generate_private_key(65537, 1024)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject("", "x"))
        .issuer_name(subject("", "x"))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Bundle.of(pem, certificate.public_bytes(Encoding.PEM))


def test_what_tls_does_not_take_says_so() -> None:
    before = open_descriptors()
    with pytest.raises(CertificateError, match="TLS does not take the certificate: EE_KEY_TOO_SMALL"):
        server_context(weak())
    assert open_descriptors() == before


async def test_what_tls_does_not_take_is_not_stored_either(store: Store) -> None:
    await store.save(NAME, made := bundle(NAME))
    with pytest.raises(CertificateError, match="TLS does not take"):
        await store.save(NAME, weak())
    assert store.load(NAME) == made


# ---- files that a user keeps --------------------------------------------------------------------------


def test_a_users_files_are_read(tmp_path: Path) -> None:
    made = bundle(NAME)
    assert read_files(write_files(tmp_path, made)) == made
    assert read_files(write_files(tmp_path, made, 0o640)) == made  # a group of those who may, as Debian's ssl-cert


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    made = bundle(NAME)
    both = tmp_path / "both.pem"
    both.write_bytes(made.chain_pem + made.key_pem)
    both.chmod(0o600)
    assert read_files(CertificateFiles(both, both)) == made


@pytest.mark.parametrize("missing", ["x.pem", "x.key"])
def test_a_missing_file_is_named(missing: str, tmp_path: Path) -> None:
    files = write_files(tmp_path, bundle(NAME))
    (tmp_path / missing).unlink()
    with pytest.raises(CertificateError, match=f"{tmp_path}/{missing} cannot be read: No such file"):
        read_files(files)


def test_a_key_that_everybody_can_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match=r"every user .*x\.key: `chmod o= .*x\.key`"):
        read_files(write_files(tmp_path, bundle(NAME), 0o644))


def test_files_that_are_no_pair_are_named(tmp_path: Path) -> None:
    files = write_files(tmp_path, bundle(NAME))
    files.key.write_bytes(key_pem(new_key()))
    with pytest.raises(CertificateError, match=r"x\.pem with .*x\.key: the private key does not belong"):
        read_files(files)


# ---- the best that there is ---------------------------------------------------------------------------


async def test_an_acme_site_gets_its_own(store: Store, source: ContextSource) -> None:
    made = bundle(NAME)
    await store.save(NAME, made)
    assert served_by(source.context_for(acme_site(NAME))) == made.leaf.serial
    assert source.served == {NAME: Served(made.leaf, "acme")}


async def test_an_expired_one_of_its_own_is_still_its_own(store: Store, source: ContextSource) -> None:
    made = bundle(NAME, not_before=NOW - 90 * DAY, not_after=NOW - DAY)
    await store.save(NAME, made)
    assert served_by(source.context_for(acme_site(NAME))) == made.leaf.serial


def test_an_acme_site_without_one_gets_a_stand_in(
    store: Store, source: ContextSource, caplog: pytest.LogCaptureFixture
) -> None:
    context = source.context_for(acme_site(NAME))
    served = source.served[NAME]
    assert (served.by, served.problem, served.leaf.names) == ("internal", "", (NAME,))
    assert served_by(context) == served.leaf.serial
    assert caplog.text == ""


async def test_a_certificate_for_another_name_is_not_served(
    store: Store, source: ContextSource, caplog: pytest.LogCaptureFixture
) -> None:
    await store.save(NAME, bundle(NAME))
    path = store.path / "certificates" / f"{NAME}.pem"
    path.write_bytes(bundle("other.example.com").pem)
    source.context_for(acme_site(NAME))
    assert source.served[NAME].by == "internal"
    assert source.served[NAME].problem == "the certificate in its place is for other.example.com"
    assert f"{NAME}  gets a certificate of the internal CA" in caplog.text


def test_a_store_that_cannot_be_read_means_a_stand_in(
    store: Store, source: ContextSource, caplog: pytest.LogCaptureFixture
) -> None:
    (store.path / "certificates" / f"{NAME}.pem").mkdir(parents=True)
    context = source.context_for(acme_site(NAME))
    assert served_by(context) == source.served[NAME].leaf.serial
    assert f"{NAME}  gets a certificate of the internal CA (browsers warn) for now: {store.path}" in caplog.text


def test_an_internal_site_never_gets_another(store: Store, source: ContextSource) -> None:
    source.context_for(internal_site("*.apps.example.com"))
    assert source.served["*.apps.example.com"].by == "internal"
    client = handshake(source.context_for(internal_site("localhost")), name="localhost")
    assert client.selected_alpn_protocol() is None


def test_a_client_that_imported_the_internal_ca_is_content(store: Store, source: ContextSource) -> None:
    context = ContextSource(store, InternalCA(store)).context_for(internal_site("*.apps.example.com"))
    trust = ssl.create_default_context(cafile=store.internal_ca_certificate)
    handshake(context, trust, "x.apps.example.com")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, trust, "apps.example.com")


def test_a_users_files_are_served(tmp_path: Path, source: ContextSource) -> None:
    made = bundle(NAME)
    assert served_by(source.context_for(files_site(NAME, write_files(tmp_path, made)))) == made.leaf.serial
    assert source.served[NAME] == Served(made.leaf, "files")


def test_files_that_cannot_be_used_mean_a_stand_in_for_that_site_alone(
    tmp_path: Path, source: ContextSource, caplog: pytest.LogCaptureFixture
) -> None:
    good = files_site(NAME, write_files(tmp_path, made := bundle(NAME)))
    bad = files_site("bad.example.com", CertificateFiles(tmp_path / "missing.pem", tmp_path / "missing.key"))
    assert served_by(source.context_for(bad)) == source.served["bad.example.com"].leaf.serial
    assert source.served["bad.example.com"].by == "internal"
    assert "missing.pem cannot be read" in source.served["bad.example.com"].problem
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert caplog.messages[0].startswith("bad.example.com  gets a certificate of the internal CA")
    assert served_by(source.context_for(good)) == made.leaf.serial


def test_files_with_a_key_that_tls_refuses_mean_a_stand_in(tmp_path: Path, source: ContextSource) -> None:
    source.context_for(files_site(NAME, write_files(tmp_path, weak())))
    assert source.served[NAME].by == "internal"


def test_even_without_any_disk_a_site_is_served(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where the folder should be")
    store = Store(tmp_path / "store")
    source = ContextSource(store, InternalCA(store, lambda: NOW))
    for site in (acme_site(NAME), internal_site(NAME)):
        assert served_by(source.context_for(site)) == source.served[NAME].leaf.serial


async def test_who_awaits_a_certificate(tmp_path: Path, store: Store, source: ContextSource) -> None:
    made = config(
        store.path,
        acme_site(NAME),
        acme_site("new.example.com"),
        internal_site("internal.example.com"),
        files_site("files.example.com", CertificateFiles(tmp_path / "x", tmp_path / "y")),
    )
    assert source.awaiting(made) == {NAME, "new.example.com"}
    await store.save(NAME, bundle(NAME))
    assert source.awaiting(made) == {"new.example.com"}


def test_where_no_certificate_can_be_found_all_are_awaited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "certificates").write_text("a file where the folder should be")
    store = Store(tmp_path)
    source = ContextSource(store, InternalCA(store, lambda: NOW))
    assert source.awaiting(config(tmp_path, acme_site(NAME))) == {NAME}
    assert "no certificate of a site can be found" in caplog.text


def test_it_is_what_a_snapshot_asks(source: ContextSource) -> None:
    contexts = Contexts(source.context_for)
    site = acme_site(NAME)
    assert contexts.of(site) is contexts.of(site)
    assert contexts.of(attrs.evolve(site, name="other.example.com")) is not contexts.of(site)


def test_a_chain_without_names_in_files_is_served_all_the_same(tmp_path: Path, source: ContextSource) -> None:
    """What an old device's certificate looks like; whether clients take it is between them."""
    key = new_key()
    made = Bundle.of(key_pem(key), chain_pem(key, []))
    assert served_by(source.context_for(files_site(NAME, write_files(tmp_path, made)))) == made.leaf.serial
