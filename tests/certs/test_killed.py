"""A process that is killed at each point of an order, by SIGKILL, and what the next one makes of what is left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.acme.support import PATIENCE
from tests.certs.making import acme_site, bundle
from tests.certs.test_revocation import NAME, live
from tests.scripted_ca import scripted_ca
from trioproxy.config.model import Acme

OTHER = "home.test"

RENEW = """
import sys
from pathlib import Path
import trio
from tests.certs.making import acme_site
from tests.certs.test_revocation import NAME, live
from trioproxy.config.model import Acme

folder, directory, ca_file = sys.argv[1:]
manager = live(Path(folder), Acme(directory=directory, ca_file=Path(ca_file)), acme_site(NAME)).manager
trio.run(manager.renew, [NAME], True, print)
"""


ASKED = ("directory", "newNonce", "newAccount", "newOrder", "authorization", "challenge", "finalize", "certificate")
ANSWERED = ("newOrder", "finalize", "certificate")
"""Points of an order: when a request has come, and when its answer has, as far as that changes what there is."""


@pytest.mark.parametrize(("point", "after"), [(p, False) for p in ASKED] + [(p, True) for p in ANSWERED])
async def test_whoever_comes_next_gets_a_certificate_and_wastes_no_more_than_one_order(
    point: str, after: bool, tmp_path: Path
) -> None:
    async with scripted_ca(tmp_path / "ca") as ca:
        acme = Acme(directory=ca.directory, ca_file=ca.ca_file)
        one = live(tmp_path, acme, acme_site(NAME), acme_site(OTHER))
        old = bundle(NAME)
        await one.store.save(NAME, old)
        child = await trio.lowlevel.open_process(
            [sys.executable, "-c", RENEW, str(tmp_path), ca.directory, str(ca.ca_file)], stdout=subprocess.DEVNULL
        )
        reached: list[str] = []

        def kill(resource: str) -> None:
            if reached or (resource == point and not after):
                child.kill()
            if resource == point:
                reached.append(resource)

        ca.on_request = kill
        with trio.fail_after(PATIENCE):
            status = await child.wait()
        ca.on_request = lambda _: None
        assert reached
        assert status == -9 or (after and point == "certificate" and status == 0)
        kept = one.store.load(NAME)
        assert kept is not None, "there is always a pair, and one that fits"
        key = getattr(one.store.journal(NAME).read(), "key_pem", None)
        with trio.fail_after(PATIENCE):
            (outcome,) = await one.manager.renew([NAME], True, one.said.append)
        assert outcome.result in ("renewed", "kept")
        assert len(ca.ordered(NAME)) <= 2
        assert len(ca.members) == 1
        assert sum(order.leaf is not None for order in ca.ordered(NAME)) <= 2
        now = one.store.load(NAME)
        assert now is not None
        assert now.leaf != old.leaf
        assert one.serial() == now.leaf.serial
        if key is not None and point in ("authorization", "challenge", "finalize", "certificate"):
            assert now.key_pem.strip() == key.strip(), "the order and its key were gone on with"
            assert len(ca.ordered(NAME)) == 1
        assert one.store.journal(NAME).read() is None
