"""Many names that get their first certificates of Pebble, as fast as the ledger lets them.

    python -m tests.thousand [--names 1000] [--most 300] [--seconds 60]      `make thousand` runs it

Pebble has no limits of its own. The ledger is told of one, so many orders within so many seconds. Whether that was kept
is judged by the moments at which orders were counted, and Pebble's own log shows that each order was: when it took them
would say more of how busy this machine is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import attrs
import trio

from tests.acme.support import Port80, port80
from tests.certs.making import acme_site, config
from tests.certs.serving import eventually
from tests.certs.world import snapshot
from tests.pebble import Pebble, running_pebble
from trioproxy.acme.client import AcmeClient
from trioproxy.certs.contexts import ContextSource
from trioproxy.certs.domains import Limit
from trioproxy.certs.internal_ca import InternalCA, utc_now
from trioproxy.certs.ledger import Ledger, Limits
from trioproxy.certs.manager import Manager
from trioproxy.certs.store import Store
from trioproxy.config.model import AccountId, Acme
from trioproxy.net.http_client import HttpClient
from trioproxy.net.sock import Reaper
from trioproxy.snapshot import Cell

UNLIMITED = Limit(10**6, timedelta(days=1))

ONE = 5.0
"""Seconds that a name may take on a busy machine, several being under way at any time."""


@attrs.frozen
class Run:
    """What was seen.

    Attributes:
        moments: When each order was counted.
        orders: How many Pebble has taken.
        waited: How many names were told to wait for a place at one time, at the most.
        failed: Names of which it was ever told that something went wrong.
        seconds: From the beginning to the last certificate.
    """

    moments: Sequence[datetime]
    orders: int
    waited: int
    failed: frozenset[str]
    seconds: float

    def check(self, names: int, limit: Limit) -> None:
        """Say by AssertionError what was not as it should be."""
        assert len(self.moments) == self.orders == names, "one order for each name"
        assert not self.failed, "who waits for a place has not failed"
        assert self.waited, "the limit was reached"
        for early, late in zip(self.moments, self.moments[limit.most :], strict=False):
            assert late - early >= limit.within, "more orders than the limit allows"


class Noting(Ledger):
    """A ledger that keeps the moment of every order; the file forgets them."""

    moments: list[datetime]

    def _order(self, account: AccountId, limit: Limit, now: datetime, enforce: bool) -> None:
        super()._order(account, limit, now, enforce)
        self.moments.append(now)


def manager_of(
    folder: Path, ca: Pebble, web: Port80, names: Sequence[str], limit: Limit
) -> tuple[Manager, Cell, Noting]:
    """A manager of so many sites whose ledger knows a limit of Pebble's."""
    store = Store(folder)
    source = ContextSource(store, InternalCA(store))
    acme = Acme(directory=ca.directory, ca_file=ca.ca_file)
    cell = Cell(snapshot(source, config(folder, *map(acme_site, names), acme=acme)))
    reaper = Reaper()
    limits = Limits(orders=limit, certificates=UNLIMITED, failures=UNLIMITED, domain=UNLIMITED)

    def client(settings: Acme) -> AcmeClient:
        return AcmeClient(settings, HttpClient(settings.ca_file, reaper), store.accounts)

    ledger = Noting(store, utc_now, {ca.directory: limits})
    ledger.moments = []
    return Manager(cell, web.board, store, source, client, ledger=ledger), cell, ledger


async def paced(folder: Path, number: int, limit: Limit) -> Run:
    """Get certificates for so many names."""
    waited, failed = 0, set[str]()
    async with port80() as web, running_pebble(folder / "ca", http_port=web.port) as ca:
        names = [f"site{index}.test" for index in range(number)]
        manager, cell, ledger = manager_of(folder / "store", ca, web, names, limit)
        begun = trio.current_time()

        def all_there() -> bool:
            nonlocal waited
            listing = manager.listing()
            waited = max(waited, sum(bool(status.waits_for) for status in listing))
            failed.update(status.name for status in listing if status.error)
            return not cell.current.awaiting

        async with trio.open_nursery() as nursery:
            nursery.start_soon(manager.run)
            rounds = -(-number // limit.most)
            await eventually(all_there, rounds * limit.within.total_seconds() + number * ONE, pause=number / 500)
            seconds = trio.current_time() - begun
            nursery.cancel_scope.cancel()
        orders = ca.said().count("Added order")
    return Run(sorted(ledger.moments), orders, waited, frozenset(failed), seconds)


def main() -> None:
    """Run it, check it, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.thousand")
    parser.add_argument("--names", type=int, default=1000)
    parser.add_argument("--most", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    limit, said = Limit(arguments.most, timedelta(seconds=arguments.seconds)), io.StringIO()
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
            seen = trio.run(partial(paced, Path(folder), arguments.names, limit))
        seen.check(arguments.names, limit)
    except BaseException:
        print(said.getvalue()[-20_000:])
        raise
    between = (seen.moments[-1] - seen.moments[0]).total_seconds()
    print(
        f"{arguments.names} certificates in {seen.seconds:.0f} s, the last order {between:.0f} s after the first; "
        f"never more than {arguments.most} in {arguments.seconds:g} s; up to {seen.waited} names waited"
    )


if __name__ == "__main__":
    main()
