"""What befalls the storage folder, the clock and other processes, at a real CA or in a world of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.acme.support import PATIENCE
from tests.certs.making import DAY, acme_site, bundle, due_bundle
from tests.certs.test_revocation import NAME, Live, live
from tests.certs.world import run_for, world
from tests.scripted_ca import ScriptedCA, scripted_ca
from trioproxy.config.model import Acme
from trioproxy.errors import AcmeError

Jumping = trio.testing.MockClock

HOUR = 3600.0


@pytest.fixture
async def ca(tmp_path: Path) -> AsyncIterator[ScriptedCA]:
    async with scripted_ca(tmp_path / "ca") as running:
        yield running


def at(ca: ScriptedCA, folder: Path) -> Live:
    return live(folder, Acme(directory=ca.directory, ca_file=ca.ca_file), acme_site(NAME))


async def renewed(one: Live) -> str:
    with trio.fail_after(PATIENCE):
        (outcome,) = await one.manager.renew([NAME], True, one.said.append)
    return outcome.result


async def test_an_account_whose_key_is_gone_is_opened_anew(ca: ScriptedCA, tmp_path: Path) -> None:
    assert await renewed(at(ca, tmp_path)) == "renewed"
    (account,) = (tmp_path / "store" / "accounts").iterdir()  # noqa: ASYNC240 - a test may wait for its disk
    account.unlink()
    again = at(ca, tmp_path)
    assert await renewed(again) == "renewed"
    assert [order.replaces for order in ca.orders] == ["", ""], "another account's certificate is not named"
    assert len(ca.members) == 2
    assert again.serial() == again.stored()


async def test_two_servers_and_a_command_on_one_store_order_once(ca: ScriptedCA, tmp_path: Path) -> None:
    everybody = [at(ca, tmp_path) for _ in range(3)]
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for server in everybody[:2]:
                nursery.start_soon(server.manager.run)
            await everybody[2].manager.renew([NAME], False, everybody[2].said.append)
            while any(NAME in one.cell.current.awaiting for one in everybody):  # noqa: ASYNC110 - three processes' worth
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert len(ca.orders) == len(ca.members) == 1
    assert {one.serial() for one in everybody} == {everybody[0].stored()}


async def test_a_lock_whose_holder_is_killed_is_free(ca: ScriptedCA, tmp_path: Path) -> None:
    one = at(ca, tmp_path)
    async with one.store.lock(NAME):
        pass
    (lock,) = (tmp_path / "store" / "locks").iterdir()  # noqa: ASYNC240
    hold = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, 2); print(1, flush=True); time.sleep(99)"
    holder = await trio.lowlevel.open_process([sys.executable, "-c", hold, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    with trio.fail_after(PATIENCE):
        await holder.stdout.receive_some(1)
        with trio.move_on_after(0.5) as waited:
            await one.manager.renew([NAME], True, one.said.append)
        assert waited.cancelled_caught
        assert ca.orders == []
        holder.kill()
        await holder.wait()
        await holder.stdout.aclose()
    assert await renewed(one) == "renewed"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
async def test_a_disk_that_is_full_is_told_costs_no_order_and_is_got_over(ca: ScriptedCA, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir(mode=0o700)
    mounted = subprocess.run(  # noqa: ASYNC221
        ["/bin/mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", str(store)],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        one = at(ca, tmp_path)
        assert await renewed(one) == "renewed"
        before, orders = one.stored(), len(ca.orders)
        ballast = store / "ballast"
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):  # noqa: PT012
            while True:
                file.write(bytes(4096))
        with trio.fail_after(PATIENCE):
            (outcome,) = await one.manager.renew([NAME], True, one.said.append)
        assert outcome.result == "failed"
        assert "No space left on device" in outcome.detail
        assert (one.stored(), len(ca.orders)) == (before, orders)
        ballast.unlink()
        assert await renewed(one) == "renewed"
    finally:
        subprocess.run(["/bin/umount", "-l", str(store)], check=True)  # noqa: ASYNC221


@pytest.mark.usefixtures("no_threads")
async def test_one_failing_name_among_fifty_delays_none(tmp_path: Path, autojump_clock: Jumping) -> None:
    names = [f"site{number}.example.com" for number in range(49)]
    w = world(tmp_path, acme_site("bad.example.com"), *map(acme_site, names))
    w.authority.errors["bad.example.com"] = [AcmeError("no such host", "dns")] * 100
    await run_for(40, w)
    assert sorted(w.authority.issued) == sorted(names)
    assert {status.name for status in w.manager.listing() if status.needs_a_person} == {"bad.example.com"}


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("wrong", [-2 * DAY, 2 * DAY])
async def test_a_clock_that_is_two_days_wrong_costs_no_certificate(
    wrong: timedelta, tmp_path: Path, autojump_clock: Jumping
) -> None:
    due, good = "due.example.com", "good.example.com"
    w = world(tmp_path, acme_site(due), acme_site(good))
    await w.store.save(due, due_bundle(due))
    await w.store.save(good, bundle(good))
    w.authority.errors[due] = [AcmeError("the CA's certificate is not valid yet", "unreachable")] * 3
    w.clock.jump(wrong)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(w.manager.run)
        await trio.sleep(HOUR)
        w.clock.jump(-wrong)
        await trio.sleep(2 * HOUR)
        nursery.cancel_scope.cancel()
    assert w.serial(due) == w.newest(due)
    assert w.authority.times(good) == []
