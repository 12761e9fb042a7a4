from __future__ import annotations

import errno
import json
import os
import stat
import threading
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import trio

from tests.certs.making import NOW, bundle, key_pem, new_key
from tests.certs.test_files import break_at
from trioproxy.acme.account import Account
from trioproxy.acme.journal import OrderRecord, Origin
from trioproxy.certs import files
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.policy import Trouble
from trioproxy.certs.records import Provenance
from trioproxy.certs.store import Store, stem_of
from trioproxy.config.model import AccountId
from trioproxy.errors import CertificateError, StoreError

NAME = "cloud.example.com"
FILE = f"certificates/{NAME}.pem"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def contents(store: Store) -> dict[str, bytes]:
    """Every file of a store by its path in it, locks left out."""
    found = (path for path in store.path.rglob("*") if path.is_file() and path.parent.name != "locks")
    return {path.relative_to(store.path).as_posix(): path.read_bytes() for path in found}


# ---- names --------------------------------------------------------------------------------------------

LONG = ".".join(["a" * 63] * 3 + ["b" * 61])


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        (NAME, NAME),
        ("localhost", "localhost"),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example"),
        ("*.apps.example.com", "_wildcard.apps.example.com"),
        ("*", "_wildcard"),
    ],
)
def test_the_file_name_of_a_name(name: str, stem: str) -> None:
    assert stem_of(name) == stem


def test_the_longest_names_fit_into_a_file_name_and_stay_apart() -> None:
    assert len(LONG) == 253
    stems = {stem_of(LONG), stem_of(LONG[:-1] + "c"), stem_of("*." + LONG[2:])}
    assert len(stems) == 3
    assert all(len(f"{stem}.pem.corrupt-20261121T120000Z") <= 255 for stem in stems)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", "a..b", ".", "", "a\0b", "A.example", "a_b", "**", "a*", "*_x", "b" * 254, "*../x"]
)
def test_what_is_no_normalised_name_never_becomes_a_file_name(name: str) -> None:
    with pytest.raises(ValueError, match="not a host name"):
        stem_of(name)


# ---- certificates -------------------------------------------------------------------------------------


async def test_what_is_saved_is_loaded(store: Store) -> None:
    made = bundle(NAME)
    assert store.load(NAME) is None
    await store.save(NAME, made)
    assert store.load(NAME) == made
    assert contents(store) == {FILE: made.pem}


@pytest.mark.parametrize("name", ["*.apps.example.com", "*", LONG])
async def test_odd_names_are_kept_like_others(name: str, store: Store) -> None:
    made = bundle(name)
    await store.save(name, made)
    assert store.load(name) == made
    assert store.stored([name, NAME]) == {name}


async def test_the_previous_pair_is_kept(store: Store) -> None:
    first, second, third = bundle(NAME), bundle(NAME), bundle(NAME)
    for made in (first, second, third, third):
        await store.save(NAME, made)
    assert contents(store) == {FILE: third.pem, f"{FILE}.previous": second.pem}


async def test_everything_is_its_owners_alone(store: Store) -> None:
    before = os.umask(0)
    try:
        await store.save(NAME, bundle(NAME))
        await store.journal(NAME).intend("https://ca/dir", key_pem(new_key()))
        await store.journal(NAME).place("https://ca/1")
        await store.accounts.write(CA, Account(key_pem(new_key()), "https://ca/acct/1", ""))
        await store.note_origin(NAME, PROVENANCE)
        await store.note_trouble(NAME, Trouble(1, NOW, NOW, "x"))
        store.save_internal_ca(bundle("ca"))
        store.save_internal_intermediate(bundle("intermediate"))
        async with store.lock(NAME):
            pass
    finally:
        os.umask(before)
    paths = [store.path, *store.path.rglob("*")]
    assert len(paths) == 1 + 7 + 9
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_files_take_the_owner_of_the_store_when_root_writes_them(store: Store) -> None:
    store.path.mkdir()
    os.chown(store.path, 1234, 2345)
    for _ in range(2):
        await store.save(NAME, bundle(NAME))
    await store.accounts.write(CA, Account(b"key", "", ""))
    async with store.lock(NAME):
        pass
    paths = list(store.path.rglob("*"))
    assert len(paths) == 3 + 4
    assert {(path.stat().st_uid, path.stat().st_gid) for path in paths} == {(1234, 2345)}


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace", "fsync folder"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
async def test_a_disk_that_fails_while_storing_leaves_a_good_pair(
    step: str, code: int, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bundle(NAME), bundle(NAME)
    await store.save(NAME, old)
    break_at(step, monkeypatch, code)
    with pytest.raises(StoreError, match="cannot be"):
        await store.save(NAME, new)
    monkeypatch.undo()
    assert store.load(NAME) == old
    assert [name for name in contents(store) if ".new" in name] == []
    await store.save(NAME, new)  # and nothing stands in the way of another attempt
    assert store.load(NAME) == new


async def test_a_pair_that_does_not_read_back_never_gets_into_place(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = bundle(NAME)
    await store.save(NAME, old)
    real = files.read

    def wrong_sector(path: Path) -> bytes | None:
        return old.pem if path.name.endswith(".new") else real(path)

    monkeypatch.setattr(files, "read", wrong_sector)
    with pytest.raises(CertificateError, match="the disk is failing"):
        await store.save(NAME, bundle(NAME))
    monkeypatch.undo()
    assert store.load(NAME) == old


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(bundle("other.example.com"), id="for another name"),
        pytest.param(bundle(), id="for no name"),
        pytest.param(attrs.evolve(bundle(NAME), key_pem=key_pem(new_key())), id="with another key"),
        pytest.param(attrs.evolve(bundle(NAME), chain_pem=b""), id="without a certificate"),
    ],
)
async def test_what_is_no_pair_for_the_name_never_gets_into_place(bad: Bundle, store: Store) -> None:
    old = bundle(NAME)
    await store.save(NAME, old)
    with pytest.raises(CertificateError):
        await store.save(NAME, bad)
    assert store.load(NAME) == old


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda pem: b"", id="emptied"),
        pytest.param(lambda pem: pem[: len(pem) // 2], id="cut off"),
        pytest.param(lambda pem: b"\0" * len(pem), id="zeros"),
        pytest.param(lambda pem: bundle(NAME).key_pem + bundle(NAME).chain_pem, id="a mismatched pair"),
    ],
)
async def test_a_corrupt_pair_is_set_aside_and_no_other_is_touched(
    damage: object, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    assert callable(damage)
    good = bundle("other.example.com")
    await store.save("other.example.com", good)
    await store.save(NAME, bundle(NAME))
    path = store.path / FILE
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    assert store.load(NAME) is None
    assert f"{NAME}  its certificate file is damaged" in caplog.text
    assert store.stored([NAME, "other.example.com"]) == {"other.example.com"}
    aside = [path for path in (store.path / "certificates").iterdir() if ".corrupt-" in path.name]
    assert [path.read_bytes() for path in aside] == [damaged]
    assert str(aside[0]) in caplog.text
    caplog.clear()
    assert store.load(NAME) is None
    assert caplog.text == ""  # it is said once
    assert store.load("other.example.com") == good
    await store.save(NAME, again := bundle(NAME))
    assert store.load(NAME) == again


async def test_ten_thousand_names_cost_one_listing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"site{n}.example.com" for n in range(10_000)]
    for name in (names[0], names[-1]):
        await store.save(name, bundle(name))
    listings = []
    iterdir = Path.iterdir

    def counted(path: Path) -> object:
        listings.append(path)
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", counted)
    monkeypatch.setattr(os, "open", None)
    monkeypatch.setattr(Path, "open", None)
    monkeypatch.setattr(Path, "stat", None)
    assert store.stored(names) == {names[0], names[-1]}
    assert listings == [store.path / "certificates"]


async def test_an_empty_place_holds_nothing_and_looking_makes_nothing(store: Store) -> None:
    assert store.stored([NAME]) == frozenset()
    assert store.load(NAME) is None
    assert store.trouble(NAME) is None
    assert store.journal(NAME).read() is None
    assert store.accounts.read(CA) is None
    assert store.internal_ca() is None
    assert store.internal_intermediate() is None
    await store.journal(NAME).clear()
    store.forget_trouble(NAME)
    store.sweep()
    assert not store.path.exists()


async def test_a_store_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/store cannot be .*: Not a directory: a file stands where a folder"):
        await Store(tmp_path / "file" / "store").accounts.write(CA, Account(b"", "", ""))


@pytest.mark.parametrize("folder", ["certificates", "counts"])
async def test_litter_of_a_crash_is_swept(folder: str, store: Store) -> None:
    await store.save(NAME, bundle(NAME))
    litter = store.folder(folder) / ".0123.new"
    litter.write_bytes(b"half a k")
    store.sweep()
    assert litter.exists()  # young: perhaps another process is writing it
    os.utime(litter, (0, 0))
    store.sweep()
    assert not litter.exists()
    assert store.load(NAME) is not None


# ---- what goes with a name ----------------------------------------------------------------------------


async def test_an_order_under_way_survives(store: Store) -> None:
    key = key_pem(new_key())
    await store.journal(NAME).intend("https://ca/dir", key)
    assert Store(store.path).journal(NAME).read() == OrderRecord("https://ca/dir", "", key)
    await store.journal(NAME).place("https://ca/order/1")
    assert Store(store.path).journal(NAME).read() == OrderRecord("https://ca/dir", "https://ca/order/1", key)
    assert store.journal("other.example.com").read() is None
    newer = key_pem(new_key())
    await store.journal(NAME).intend("https://ca/dir", newer)
    assert store.journal(NAME).read() == OrderRecord("https://ca/dir", "", newer), "nothing of the first is left"
    await store.journal(NAME).clear()
    assert store.journal(NAME).read() is None


async def test_the_url_of_an_order_takes_no_room_that_its_intention_has_not_taken(store: Store) -> None:
    await store.journal(NAME).intend("https://ca/dir", b"key")
    (path,) = store.path.rglob("orders/*.json")
    before = path.stat()
    await store.journal(NAME).place("https://ca/order/" + "1" * 1000)
    after = path.stat()
    assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
    assert [path] == list(path.parent.iterdir()), "not even beside it"
    assert after.st_blocks == before.st_blocks


async def test_a_url_that_is_longer_than_its_room_is_kept_all_the_same(store: Store) -> None:
    url = "https://ca/order/" + "1" * 5000
    await store.journal(NAME).intend("https://ca/dir", b"key")
    await store.journal(NAME).place(url)
    assert store.journal(NAME).read() == OrderRecord("https://ca/dir", url, b"key")


async def test_a_url_that_a_crash_cut_off_leaves_the_intention(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    await store.journal(NAME).intend("https://ca/dir", b"key")
    (path,) = store.path.rglob("orders/*.json")
    intended = path.read_bytes()
    await store.journal(NAME).place("https://ca/order/1")
    placed = path.read_bytes()
    start = intended.index(b"\n") + 1
    for end in range(start, placed.index(b"}", start) + 1):
        path.write_bytes(placed[:end] + intended[end:])
        assert store.journal(NAME).read() == OrderRecord("https://ca/dir", "", b"key")
    assert not caplog.records


CA = AccountId("https://ca/dir")
PROVENANCE = Provenance(0xABC, Origin(AccountId("https://ca/dir", "kid"), "https://ca/acct/1", "id.id", "short"))


async def test_where_a_certificate_came_from_is_told_of_that_certificate_alone(store: Store) -> None:
    made = bundle(NAME)
    where = attrs.evolve(PROVENANCE, serial=made.leaf.serial)
    assert store.origin(NAME, made.leaf) is None
    await store.note_origin(NAME, where)
    assert Store(store.path).origin(NAME, made.leaf) == where
    assert store.origin(NAME, bundle(NAME).leaf) is None
    revoked = attrs.evolve(where, revoked="keyCompromise")
    await store.note_origin(NAME, revoked)
    assert store.origin(NAME, made.leaf) == revoked


TROUBLE = Trouble(3, NOW, NOW + timedelta(minutes=31, microseconds=5), "the CA said: ‘no’", rate_limited=True)


async def test_trouble_survives(store: Store) -> None:
    await store.note_trouble(NAME, TROUBLE)
    assert Store(store.path).trouble(NAME) == TROUBLE
    assert store.trouble("other.example.com") is None
    store.forget_trouble(NAME)
    assert store.trouble(NAME) is None


async def test_accounts_are_kept_for_each_directory_and_customer(store: Store) -> None:
    urls = ["https://ca.example/dir", "https://ca.example/dir2", "https://ca.example:14000/dir", "http://[::1]/../../x"]
    ids = [AccountId(url, eab) for url in urls for eab in ("", "kid", "../kid")]
    accounts = [Account(f"key {i}".encode(), f"https://ca/acct/{i}", "me@example.com") for i in range(len(ids))]
    for known, account in zip(ids, accounts, strict=True):
        await store.accounts.write(known, account)
    for known, account in zip(ids, accounts, strict=True):
        assert Store(store.path).accounts.read(known) == account
    assert {path.parent for path in store.path.rglob("*.json")} == {store.path / "accounts"}


async def test_a_key_that_is_to_take_the_place_of_another_is_kept_beside_it(store: Store) -> None:
    both = Account(b"old", "https://ca/acct/1", "", b"new")
    await store.accounts.write(CA, both)
    assert store.accounts.read(CA) == both
    assert "old" not in repr(both)
    assert "new" not in repr(both)


async def test_nothing_that_waits_for_the_disk_holds_up_the_loop(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda _: threads.append(threading.get_ident()))
    await store.journal(NAME).intend("https://ca/dir", b"key")
    await store.journal(NAME).place("https://ca/order/1")
    await store.accounts.write(CA, Account(b"key", "", ""))
    await store.note_origin(NAME, PROVENANCE)
    await store.note_trouble(NAME, TROUBLE)
    await store.save(NAME, bundle(NAME))
    assert len(threads) >= 6
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"failures": "x"}', b'{"failures": Infinity}', b"[" * 100_000],
    ids=lambda data: data[:30],
)
async def test_damaged_notes_count_as_none_and_are_reported(
    damaged: bytes, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.note_trouble(NAME, TROUBLE)
    await store.journal(NAME).intend("d", b"k")
    await store.accounts.write(CA, Account(b"k", "u", "c"))
    for path in store.path.rglob("*.json"):
        path.write_bytes(damaged)
    assert store.trouble(NAME) is None
    assert store.journal(NAME).read() is None
    assert store.accounts.read(CA) is None
    assert caplog.text.count("is damaged and is not used") == 3


async def test_a_moment_without_its_time_zone_is_damage(store: Store) -> None:
    await store.note_trouble(NAME, TROUBLE)
    path = store.path / "trouble" / f"{NAME}.json"
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps({**values, "next_attempt": "2026-11-21T12:00:00"}))
    assert store.trouble(NAME) is None


async def test_each_name_has_its_own_lock(store: Store) -> None:
    async with store.lock(NAME):
        with trio.fail_after(5):
            async with store.lock("other.example.com"):
                pass
        with trio.move_on_after(0.1) as scope:
            async with store.lock(NAME):
                pass
        assert scope.cancelled_caught
