"""Files of the user's own that change while the server runs."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.certs.making import NOW, bundle, config, files_site
from tests.certs.test_contexts import served_by, write_files
from tests.certs.world import snapshot
from trioproxy.certs.bundle import Bundle, Leaf
from trioproxy.certs.contexts import ContextSource, read_files
from trioproxy.certs.internal_ca import InternalCA
from trioproxy.certs.store import Store
from trioproxy.certs.watch import EVERY, FileWatch
from trioproxy.config.model import CertificateFiles, Site
from trioproxy.snapshot import Cell

pytestmark = pytest.mark.usefixtures("no_threads")

NAME = "files.example.com"


@attrs.define
class Watched:
    """A site with files, and who watches them."""

    files: CertificateFiles
    cell: Cell
    source: ContextSource
    watch: FileWatch

    def serial(self) -> int:
        return served_by(self.cell.current.contexts.of(self.cell.current.config.sites[NAME]), NAME)

    def write(self, made: Bundle) -> None:
        """As a program does that replaces one file after the other."""
        for path, data in ((self.files.certificate, made.chain_pem), (self.files.key, made.key_pem)):
            aside = path.with_suffix(".new")
            aside.write_bytes(data)
            aside.chmod(0o600)
            aside.rename(path)


def watched(folder: Path, made: Bundle) -> Watched:
    files = write_files(folder, made)
    store = Store(folder / "store")
    source = ContextSource(store, InternalCA(store, lambda: NOW))
    cell = Cell(snapshot(source, config(folder / "store", files_site(NAME, files))))

    async def check(site: Site, leaf: Leaf) -> str:
        await trio.lowlevel.checkpoint()
        return f"new handshakes get {leaf.serial}"

    return Watched(files, cell, source, FileWatch(cell, source, check, lambda: NOW))


async def test_a_new_pair_is_served_at_the_next_look(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old, new = bundle(NAME), bundle(NAME)
    w = watched(tmp_path, old)
    assert w.serial() == old.leaf.serial
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.watch.run)
        await trio.sleep(3 * EVERY + 1)
        assert caplog.messages == []
        w.write(new)
        await trio.sleep(EVERY)
        assert w.serial() == new.leaf.serial
        await trio.sleep(3 * EVERY)
        nursery.cancel_scope.cancel()
    [line] = caplog.messages
    assert line.startswith(f"{NAME}  {w.files.certificate} is new: valid to ")
    assert line.endswith(f"new handshakes get {new.leaf.serial}")


async def test_the_last_good_pair_is_known_to_who_asks_when_it_expires(tmp_path: Path) -> None:
    old, new = bundle(NAME), bundle(NAME)
    w = watched(tmp_path, old)
    await w.watch.look()
    assert w.watch.leaves == {NAME: old.leaf}, "although nobody has asked for the site yet"
    w.files.certificate.write_bytes(new.chain_pem)
    await w.watch.look()
    assert w.watch.leaves == {NAME: old.leaf}
    w.files.key.write_bytes(new.key_pem)
    await w.watch.look()
    assert w.watch.leaves == {NAME: new.leaf}
    w.cell.update(lambda s: attrs.evolve(s, config=attrs.evolve(s.config, sites={})))
    await w.watch.look()
    assert w.watch.leaves == {}


async def test_what_changed_before_the_first_look_is_seen_too(tmp_path: Path) -> None:
    w, new = watched(tmp_path, bundle(NAME)), bundle(NAME)
    w.serial()
    w.write(new)
    await w.watch.look()
    assert w.serial() == new.leaf.serial


async def test_a_half_written_pair_is_waited_for_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, new = bundle(NAME), bundle(NAME)
    w = watched(tmp_path, old)
    w.serial()
    await w.watch.look()
    w.files.certificate.write_bytes(new.chain_pem)
    await w.watch.look()
    assert (w.serial(), caplog.messages) == (old.leaf.serial, [])
    w.files.key.write_bytes(new.key_pem)
    await w.watch.look()
    assert w.serial() == new.leaf.serial
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("fault", ["another key", "cut off", "gone", "open to all"])
async def test_a_bad_pair_is_told_once_and_the_old_one_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    old, new = bundle(NAME), bundle(NAME)
    w = watched(tmp_path, old)
    w.serial()
    await w.watch.look()
    if fault == "another key":
        w.files.key.write_bytes(new.key_pem)
    elif fault == "cut off":
        w.files.certificate.write_bytes(new.chain_pem[:300])
    elif fault == "gone":
        w.files.key.unlink()
    else:
        w.write(new)
        w.files.key.chmod(0o644)
    for _ in range(5):
        await w.watch.look()
    assert w.serial() == old.leaf.serial
    [line] = caplog.messages
    assert "its new files are not used, the certificate before them is served: " in line
    assert w.source.served[NAME].leaf == old.leaf
    assert w.source.served[NAME].problem
    w.write(new)
    await w.watch.look()
    assert w.serial() == new.leaf.serial
    assert w.source.served[NAME].problem == ""


async def test_files_that_were_bad_from_the_start_are_told_no_second_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = bundle(NAME)
    w = watched(tmp_path, made)
    w.files.key.unlink()
    w.serial()
    assert len(caplog.messages) == 1
    for _ in range(3):
        await w.watch.look()
    assert len(caplog.messages) == 1
    w.write(made)
    await w.watch.look()
    assert w.serial() == made.leaf.serial


async def test_files_that_change_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = bundle(NAME), bundle(NAME)
    w = watched(tmp_path, old)
    w.serial()
    await w.watch.look()
    w.write(new)
    newest = bundle(NAME)

    def read_and_change(files: CertificateFiles) -> Bundle:
        found = read_files(files)
        monkeypatch.undo()
        w.write(newest)
        return found

    monkeypatch.setattr("trioproxy.certs.watch.read_files", read_and_change)
    await w.watch.look()
    assert w.serial() == old.leaf.serial
    monkeypatch.undo()
    await w.watch.look()
    assert w.serial() == newest.leaf.serial


async def test_a_reload_that_takes_the_files_away_ends_the_watch(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    w = watched(tmp_path, bundle(NAME))
    w.serial()
    w.cell.update(lambda s: attrs.evolve(s, config=config(tmp_path / "store")))
    w.write(bundle(NAME))
    before = w.cell.current.contexts
    with trio.move_on_after(5 * EVERY):
        await w.watch.run()
    assert w.cell.current.contexts is before
