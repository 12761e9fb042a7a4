"""What is done after a swap, with a manager around it and with a real listener."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from tests.acme.support import PATIENCE
from tests.certs.making import acme_site, bundle, config
from tests.certs.test_live import echo
from tests.certs.world import SameDice, World, world
from tests.net.sockets import until
from trioproxy.acme.client import AcmeClient
from trioproxy.certs import aftercare
from trioproxy.certs.aftercare import Aftercare
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.handing_out import HandingOut
from trioproxy.certs.manager import Manager
from trioproxy.certs.served import Listening
from trioproxy.certs.status import CertificateStatus
from trioproxy.challenges import ChallengeBoard
from trioproxy.config.model import Acme, HostPort
from trioproxy.errors import StoreError
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper

NAME = "cloud.test"
OTHER = "home.test"


def commanded(w: World, *command: str) -> World:
    """The same world where `command` is to be run after renewals."""
    w.cell.update(lambda s: attrs.evolve(s, config=attrs.evolve(s.config, acme=Acme(on_renew=command))))
    return w


def status(care: Aftercare, name: str = NAME) -> CertificateStatus:
    return care.annotated(CertificateStatus(name, "acme", "good"))


def handed(w: World, name: str = NAME) -> bytes:
    return (w.store.path / "pem" / name / "privkey.pem").read_bytes()


@asynccontextmanager
async def running(w: World) -> AsyncIterator[Aftercare]:
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.manager.aftercare.run)  # noqa: ASYNC113 - what is wanted waits for it
            yield w.manager.aftercare
            nursery.cancel_scope.cancel()


async def keep(w: World, name: str = NAME) -> Bundle:
    made = bundle(name)
    await w.store.save(name, made)
    return made


async def want(w: World, **leaves: Bundle) -> None:
    """Have everything seen to for certificates, by the first label of their names."""
    w.manager.aftercare.want({f"{label}.test": made.leaf for label, made in leaves.items()})
    await w.manager.aftercare.settle()


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


# ---- files and command --------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_threads")  # this world's clock does not go in threads
async def test_files_are_there_after_a_renewal_and_from_the_start(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME), acme_site(OTHER))
    w.authority.seconds = {NAME: 0, OTHER: 0}
    made = await keep(w, OTHER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        with trio.fail_after(PATIENCE):
            await until(lambda: (tmp_path / "pem" / NAME).exists() and (tmp_path / "pem" / OTHER).exists())
        nursery.cancel_scope.cancel()
    assert handed(w) == w.authority.issued[NAME][-1].key_pem
    assert handed(w, OTHER) == made.key_pem
    assert [each.pem for each in w.manager.listing()] == [str(tmp_path / "pem" / name) for name in (NAME, OTHER)]


async def test_the_command_is_run_once_for_each_certificate(tmp_path: Path) -> None:
    w = commanded(world(tmp_path / "store", acme_site(NAME)), "sh", "-c", f"echo $TRIOPROXY_NAME >> {tmp_path}/told")
    made = await keep(w)
    async with running(w):
        await want(w, cloud=made)
        await want(w, cloud=made)
        assert lines(tmp_path / "told") == [NAME]
        await want(w, cloud=await keep(w))
        assert lines(tmp_path / "told") == [NAME, NAME]
    again = commanded(w.restarted(), *w.config.acme.on_renew)
    async with running(again):
        present = w.store.load(NAME)
        assert present is not None
        await want(again, cloud=present)
    assert lines(tmp_path / "told") == [NAME, NAME]


async def test_the_command_sees_the_files_of_the_new_certificate(tmp_path: Path) -> None:
    w = commanded(world(tmp_path / "store", acme_site(NAME)), "sh", "-c", f'cp "$TRIOPROXY_KEY" {tmp_path}/key')
    async with running(w):
        for _ in range(2):
            made = await keep(w)
            await want(w, cloud=made)
            assert (tmp_path / "key").read_bytes() == made.key_pem


async def test_a_command_that_fails_is_told_and_run_again_after_a_reload(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    w = commanded(world(tmp_path / "store", acme_site(NAME)), "sh", "-c", "echo no such unit; exit 5")
    made = await keep(w)
    async with running(w) as care:
        await want(w, cloud=made)
        said = status(care)
        assert (said.state, said.needs_a_person) == ("amiss", True)
        assert said.error == "on_renew failed: sh ended with exit code 5: no such unit"
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert line.endswith("exit code 5: no such unit; mend that, then reload trioproxy: it is run again")
        fresh = commanded(w.restarted(), "sh", "-c", "exit 5").manager.aftercare
        assert status(fresh).error == "on_renew failed: sh ended with exit code 5: no such unit"  # it is on disk
        commanded(w, "true")
        await want(w, cloud=made)
        assert status(care).state == "good"


async def test_who_was_killed_beside_its_command_runs_it_again(tmp_path: Path) -> None:
    w = commanded(world(tmp_path / "store", acme_site(NAME)), "sh", "-c", f"echo x >> {tmp_path}/told; sleep 600")
    made = await keep(w)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.manager.aftercare.run)
            w.manager.aftercare.want({NAME: made.leaf})
            await until(lambda: lines(tmp_path / "told"))
            nursery.cancel_scope.cancel()
    again = commanded(w.restarted(), "sh", "-c", f"echo y >> {tmp_path}/told")
    async with running(again):
        await want(again, cloud=made)
    assert lines(tmp_path / "told") == ["x", "y"]


async def test_a_manager_that_is_paused_beside_a_command_goes_on_with_it(tmp_path: Path) -> None:
    w = commanded(world(tmp_path / "store", acme_site(NAME)), "sh", "-c", f"echo x >> {tmp_path}/told; sleep 600")
    made = await keep(w)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.manager.aftercare.run)
            w.manager.aftercare.want({NAME: made.leaf})
            await until(lambda: lines(tmp_path / "told"))
            nursery.cancel_scope.cancel()
    commanded(w, "sh", "-c", f"echo y >> {tmp_path}/told")
    async with running(w):
        await until(lambda: lines(tmp_path / "told") == ["x", "y"])


async def test_what_was_wanted_before_anybody_ran_is_done(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME))
    made = await keep(w)
    w.manager.aftercare.want({NAME: made.leaf})
    with trio.CancelScope() as scope:
        scope.cancel()
        await w.manager.aftercare.run()
    async with running(w) as care:
        await care.settle()
    assert handed(w) == made.key_pem


async def test_one_at_a_time_for_a_name_and_others_beside_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"[ $TRIOPROXY_NAME = {OTHER} ] || while [ ! -e {gate} ]; do sleep 0.05; done"
    script = f'echo "begin $TRIOPROXY_NAME" >> {tmp_path}/told; {wait}'
    w = commanded(world(tmp_path / "store", acme_site(NAME), acme_site(OTHER)), "sh", "-c", script)
    async with running(w) as care:
        care.want({NAME: (await keep(w)).leaf})
        await until(lambda: lines(tmp_path / "told") == [f"begin {NAME}"])
        care.want({NAME: (await keep(w)).leaf})
        care.want({OTHER: (await keep(w, OTHER)).leaf})
        await until(lambda: f"begin {OTHER}" in lines(tmp_path / "told"))
        assert lines(tmp_path / "told").count(f"begin {NAME}") == 1
        gate.touch()
        await care.settle()
    assert lines(tmp_path / "told").count(f"begin {NAME}") == 2


async def test_whoever_stops_the_server_does_not_wait_for_the_files_of_all_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"site{number}.test" for number in range(100)]
    w, written, proceed = world(tmp_path, *map(acme_site, names)), list[str](), threading.Event()

    def slow(_: HandingOut, name: str) -> None:
        written.append(name)
        assert proceed.wait(PATIENCE)

    monkeypatch.setattr(HandingOut, "bring_up_to_date", slow)
    made = bundle(NAME)
    w.manager.aftercare.want(dict.fromkeys(names, made.leaf))
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.manager.aftercare.run)
            await until(lambda: written)
            nursery.cancel_scope.cancel()
            proceed.set()
    assert len(written) <= aftercare.IN_ONE_GO
    async with running(w) as care:
        await care.settle()
    assert set(written) == set(names), "the others have their turn with whoever runs it next"


async def test_files_that_cannot_be_written_are_told_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(tmp_path, acme_site(NAME))
    made = await keep(w)

    def full(*_: object) -> None:
        raise StoreError("the disk is full")

    async with running(w) as care:
        with monkeypatch.context() as patch:
            patch.setattr("trioproxy.certs.handing_out.HandingOut._replace", full)
            await want(w, cloud=made)
            await want(w, cloud=made)
            assert caplog.messages == [f"{NAME}  its PEM files for other programs are not up to date: the disk is full"]
            assert status(care).error == "its PEM files are not up to date: the disk is full"
        monkeypatch.setattr(aftercare, "AGAIN", 0.01)
        care.want({})
        await until(lambda: status(care).state == "good")
    assert handed(w) == made.key_pem


# ---- what is served -----------------------------------------------------------------------------------


@asynccontextmanager
async def listening(w: World) -> AsyncIterator[Listening]:
    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, partial(echo, w), 0, host="127.0.0.1"))
        address = HostPort("127.0.0.1", listener.socket.getsockname()[1])
        yield Listening(https=lambda: [address], http=list)
        nursery.cancel_scope.cancel()


async def test_a_swap_that_works_is_checked_and_one_that_does_not_is_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    w = world(tmp_path, acme_site(NAME))
    made, site = bundle(NAME), w.config.sites[NAME]
    context = w.source.context_of(site, made)
    async with listening(w) as here:
        care = Aftercare(w.cell, ChallengeBoard(), w.store, here)
        assert await care.swapped(site, made.leaf) == "stored, but it is not what is served"
        [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert f"{NAME}  new handshakes get another certificate" in line
        assert status(care).state == "amiss"
        assert "its certificate is stored, but new handshakes get another" in status(care).error
        w.cell.update(lambda s: attrs.evolve(s, contexts=s.contexts.replaced(NAME, context)))
        await care.check_again()
        assert status(care).error == ""
        assert await care.swapped(site, made.leaf) == "new handshakes already get it (checked)"


async def test_it_is_looked_when_all_processes_serve_what_was_published(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME))
    made, site = bundle(NAME), w.config.sites[NAME]
    context = w.source.context_of(site, made)

    async def settled() -> None:
        await trio.lowlevel.checkpoint()
        w.cell.update(lambda s: attrs.evolve(s, contexts=s.contexts.replaced(NAME, context)))

    async with listening(w) as here:
        care = Aftercare(w.cell, ChallengeBoard(), w.store, attrs.evolve(here, settled=settled))
        assert await care.swapped(site, made.leaf) == "new handshakes already get it (checked)"


async def test_a_site_that_is_gone_is_no_longer_complained_of(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME))
    async with listening(w) as here:
        care = Aftercare(w.cell, ChallengeBoard(), w.store, here)
        await care.check(w.config.sites[NAME], bundle(NAME).leaf)
        assert status(care).error
        w.reload(config(tmp_path))
        await care.check_again()
        assert status(care).error == ""
        assert await care.check(acme_site(NAME), bundle(NAME).leaf) == "its site is configured otherwise meanwhile"


async def test_a_renewal_says_in_one_line_that_it_is_served(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    w = world(tmp_path, acme_site(NAME))
    w.authority.seconds[NAME] = 0
    async with listening(w) as here:
        manager = Manager(
            w.cell,
            ChallengeBoard(),
            w.store,
            w.source,
            lambda settings: AcmeClient(settings, HttpClient(None, Reaper()), w.store.accounts),
            w.clock,
            SameDice(),
            w.authority.obtain,
            listening=attrs.evolve(here, http=lambda: [HostPort("127.0.0.1", 1)]),
        )
        told: list[str] = []
        with trio.fail_after(PATIENCE):
            await manager.renew([NAME], False, told.append)
            first, told[:] = list(told), []
            await manager.renew([NAME], True, told.append)
    checked = [line for line in caplog.messages if line.endswith("; new handshakes already get it (checked)")]
    assert len(checked) == 2
    assert all(line.startswith(f"{NAME}  valid to ") for line in checked)
    assert "ordering a certificate" in "".join(first)


async def test_a_first_order_is_looked_at_and_a_later_one_is_not(tmp_path: Path) -> None:
    w = world(tmp_path, acme_site(NAME))
    care = Aftercare(w.cell, ChallengeBoard(), w.store, Listening(https=list, http=list))
    told: list[str] = []

    async def order() -> int:
        await trio.testing.wait_all_tasks_blocked(0.05)
        return 1

    assert await care.beside_first(NAME, told.append, order, first=False) == 1
    assert told == []
    with trio.fail_after(PATIENCE):
        while not told:  # the order may be faster than the look at it
            assert await care.beside_first(NAME, told.append, order, first=True) == 1
    assert "nothing listens for plain HTTP here" in told[0]
