from __future__ import annotations

import errno
import json
import os
import stat
from datetime import timedelta
from pathlib import Path

import attrs
import pytest
import trio

from tests.certs.making import NOW, bundle, key_pem, new_key
from tests.certs.test_files import break_at
from trioproxy.acme.client import Account
from trioproxy.acme.order import OrderRecord
from trioproxy.certs import files
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.policy import Trouble
from trioproxy.certs.store import Store, stem_of
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
        store.journal(NAME).write(OrderRecord("https://ca/dir", "https://ca/1", key_pem(new_key())))
        store.accounts.write("https://ca/dir", Account(key_pem(new_key()), "https://ca/acct/1", ""))
        await store.note_trouble(NAME, Trouble(1, NOW, NOW, "x"))
        store.save_internal_ca(bundle("ca"))
        async with store.lock(NAME):
            pass
    finally:
        os.umask(before)
    paths = [store.path, *store.path.rglob("*")]
    assert len(paths) == 1 + 6 + 7
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_files_take_the_owner_of_the_store_when_root_writes_them(store: Store) -> None:
    store.path.mkdir()
    os.chown(store.path, 1234, 2345)
    for _ in range(2):
        await store.save(NAME, bundle(NAME))
    store.accounts.write("https://ca/dir", Account(b"key", "", ""))
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


def test_an_empty_place_holds_nothing_and_looking_makes_nothing(store: Store) -> None:
    assert store.stored([NAME]) == frozenset()
    assert store.load(NAME) is None
    assert store.trouble(NAME) is None
    assert store.journal(NAME).read() is None
    assert store.accounts.read("https://ca/dir") is None
    assert store.internal_ca() is None
    store.journal(NAME).clear()
    store.forget_trouble(NAME)
    store.sweep()
    assert not store.path.exists()


def test_a_store_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"file/store cannot be .*: Not a directory: a file stands where a folder"):
        Store(tmp_path / "file" / "store").accounts.write("https://ca/dir", Account(b"", "", ""))


async def test_litter_of_a_crash_is_swept(store: Store) -> None:
    await store.save(NAME, bundle(NAME))
    litter = store.path / "certificates" / ".0123.new"
    litter.write_bytes(b"half a k")
    store.sweep()
    assert litter.exists()  # young: perhaps another process is writing it
    os.utime(litter, (0, 0))
    store.sweep()
    assert not litter.exists()
    assert store.load(NAME) is not None


# ---- what goes with a name ----------------------------------------------------------------------------


def test_an_order_under_way_survives(store: Store) -> None:
    record = OrderRecord("https://ca/dir", "https://ca/order/1", key_pem(new_key()))
    store.journal(NAME).write(record)
    assert Store(store.path).journal(NAME).read() == record
    assert store.journal("other.example.com").read() is None
    newer = attrs.evolve(record, order_url="https://ca/order/2")
    store.journal(NAME).write(newer)
    assert store.journal(NAME).read() == newer
    store.journal(NAME).clear()
    assert store.journal(NAME).read() is None


TROUBLE = Trouble(3, NOW, NOW + timedelta(minutes=31, microseconds=5), "the CA said: ‘no’", rate_limited=True)


async def test_trouble_survives(store: Store) -> None:
    await store.note_trouble(NAME, TROUBLE)
    assert Store(store.path).trouble(NAME) == TROUBLE
    assert store.trouble("other.example.com") is None
    store.forget_trouble(NAME)
    assert store.trouble(NAME) is None


def test_accounts_are_kept_for_each_directory(store: Store) -> None:
    urls = ["https://ca.example/dir", "https://ca.example/dir2", "https://ca.example:14000/dir", "http://[::1]/../../x"]
    for number, url in enumerate(urls):
        store.accounts.write(url, Account(f"key {number}".encode(), f"https://ca/acct/{number}", "me@example.com"))
    for number, url in enumerate(urls):
        account = Account(f"key {number}".encode(), f"https://ca/acct/{number}", "me@example.com")
        assert Store(store.path).accounts.read(url) == account
    assert {path.parent for path in store.path.rglob("*.json")} == {store.path / "accounts"}


@pytest.mark.parametrize("damaged", [b"", b"{", b"[]", b"{}", b"null", b"\xff", b'{"failures": "x"}'])
async def test_damaged_notes_count_as_none_and_are_reported(
    damaged: bytes, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.note_trouble(NAME, TROUBLE)
    store.journal(NAME).write(OrderRecord("d", "o", b"k"))
    store.accounts.write("https://ca/dir", Account(b"k", "u", "c"))
    for path in store.path.rglob("*.json"):
        path.write_bytes(damaged)
    assert store.trouble(NAME) is None
    assert store.journal(NAME).read() is None
    assert store.accounts.read("https://ca/dir") is None
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
