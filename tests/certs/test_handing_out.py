"""PEM files for other programs: where they are, and that they change all at once."""

from __future__ import annotations

import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from tests.certs.making import bundle
from trioproxy.certs import files
from trioproxy.certs.handing_out import HandingOut
from trioproxy.certs.store import Store
from trioproxy.errors import StoreError

NAME = "cloud.example.com"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


async def test_the_four_files_are_what_certbot_calls_so(store: Store) -> None:
    made = bundle(NAME)
    await store.save(NAME, made)
    out = HandingOut(store)
    assert out.serial(NAME) is None
    out.bring_up_to_date(NAME)
    folder = out.of(NAME).folder
    assert folder == store.path / "pem" / NAME
    assert (folder / "privkey.pem").read_bytes() == made.key_pem
    assert (folder / "fullchain.pem").read_bytes() == made.chain_pem
    assert (folder / "cert.pem").read_bytes() + (folder / "chain.pem").read_bytes() == made.chain_pem
    assert x509.load_pem_x509_certificate((folder / "cert.pem").read_bytes()).serial_number == made.leaf.serial
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / "fullchain.pem", folder / "privkey.pem")
    assert out.serial(NAME) == made.leaf.serial


async def test_nobody_else_may_read_them(store: Store) -> None:
    await store.save(NAME, bundle(NAME))
    HandingOut(store).bring_up_to_date(NAME)
    assert modes_below(store.path / "pem") == {0o700, 0o600 | stat.S_IFREG}


def modes_below(folder: Path) -> set[int]:
    """The permissions of all folders, and of all files, these with a mark."""
    found = (path.stat().st_mode for path in folder.rglob("*"))
    return {stat.S_IMODE(mode) | (stat.S_IFREG if stat.S_ISREG(mode) else 0) for mode in found}


async def test_whoever_opened_the_folder_before_still_sees_one_generation(store: Store) -> None:
    out = HandingOut(store)
    link = out.of(NAME).folder
    seen: list[tuple[Path, bytes]] = []
    for _ in range(3):
        made = bundle(NAME)
        await store.save(NAME, made)
        out.bring_up_to_date(NAME)
        seen.append((link.resolve(), made.key_pem))
        assert (link / "privkey.pem").read_bytes() == made.key_pem
        assert (link / "fullchain.pem").read_bytes() == made.chain_pem
    assert not seen[0][0].exists()
    assert [(folder / "privkey.pem").read_bytes() for folder, _ in seen[1:]] == [key for _, key in seen[1:]]
    assert len(list(link.resolve().parent.iterdir())) == 2


async def test_a_failure_at_any_file_leaves_the_old_generation(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    out, old = HandingOut(store), bundle(NAME)
    await store.save(NAME, old)
    out.bring_up_to_date(NAME)
    await store.save(NAME, bundle(NAME))
    replace, left = files.replace, 0

    def fail_at_last(path: Path, data: bytes, owner: tuple[int, int] | None) -> None:
        nonlocal left
        if left == 0:
            raise StoreError("the disk is full")
        left -= 1
        replace(path, data, owner)

    for count in range(4):
        left = count
        monkeypatch.setattr(files, "replace", fail_at_last)
        with pytest.raises(StoreError):
            out.bring_up_to_date(NAME)
        assert out.serial(NAME) == old.leaf.serial
        assert (out.of(NAME).key).read_bytes() == old.key_pem
        assert (out.of(NAME).fullchain).read_bytes() == old.chain_pem
    monkeypatch.undo()
    out.bring_up_to_date(NAME)
    assert len(list(out.of(NAME).folder.resolve().parent.iterdir())) == 2  # nothing half made stays behind


async def test_what_is_damaged_is_made_anew_and_what_is_good_is_left_alone(store: Store) -> None:
    out, made = HandingOut(store), bundle(NAME)
    await store.save(NAME, made)
    out.bring_up_to_date(NAME)
    first = out.of(NAME).folder.resolve()
    out.bring_up_to_date(NAME)
    assert out.of(NAME).folder.resolve() == first
    out.of(NAME).key.unlink()
    assert out.serial(NAME) is None
    out.bring_up_to_date(NAME)
    assert out.of(NAME).key.read_bytes() == made.key_pem


def test_without_a_certificate_there_is_nothing_to_hand_out(store: Store) -> None:
    HandingOut(store).bring_up_to_date(NAME)
    assert list((store.path / "pem").iterdir()) == []


async def test_a_folder_in_the_way_is_named(store: Store) -> None:
    await store.save(NAME, bundle(NAME))
    out = HandingOut(store)
    out.of(NAME).folder.mkdir(parents=True)
    with pytest.raises(StoreError, match=NAME):
        out.bring_up_to_date(NAME)
    assert [path.name for path in (store.path / "pem").iterdir() if path.name.endswith(".new")] == []
