"""Certificates of seconds: a real `trioproxy serve` renews them at Pebble while visitors come without a pause.

    python -m tests.short_lived [--seconds 59] [--renewals 3]      `make short-lived` runs it

Every visitor verifies the chain, the name and the dates. One failed handshake or request fails the run, and so do a
certificate that is shown after its end, an older one after a newer one, and an order too many.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
from functools import partial
from pathlib import Path

import attrs
import trio

from tests.certs.serving import NAME, configuration, eventually, port_80, stored
from tests.certs.visitors import Visits, regular, trusting, visitors
from tests.life.served import served
from tests.pebble import own_address, running_pebble
from tests.proxy.stage import HELLO, LOOPBACK, answering, backend

RATE = 20.0
"""Connections a second: a trickle, and still one within each twentieth of a second around a swap."""


@attrs.frozen
class Run:
    """What was seen.

    Attributes:
        visits: Of those who came once.
        answered: The bodies that the one who stayed has got.
        orders: How many the CA took.
        ages: How old each certificate was when the next one was first shown, in seconds.
        left: What the certificates that were shown had left at the least, in seconds.
    """

    visits: Visits
    answered: list[bytes]
    orders: int
    ages: list[float]
    left: float


async def under_load(folder: Path, seconds: int, renewals: int) -> Run:
    """Have a site served until its certificate, which lasts `seconds`, has been renewed so often."""
    answered: list[bytes] = []
    async with (
        backend(answering(HELLO)) as (port, _),
        running_pebble(folder / "ca", http_port=port_80(), validity=seconds) as ca,
    ):
        await ca.dns.set(NAME, own_address())
        site = f'"{NAME}" = "http://{LOOPBACK}:{port}"\n'
        async with served(folder, configuration(folder, ca, site)) as service:
            await eventually(lambda: stored(service))
            await service.heard(r"\(checked\)")
            trust = trusting(await ca.root_pem())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(regular, service, trust, 1 / RATE, answered)
                async with visitors(service, trust, RATE, HELLO[:12]) as visits:
                    await eventually(
                        lambda: visits.failed or len(visits.serials) > renewals, patience=seconds * (renewals + 1)
                    )
                nursery.cancel_scope.cancel()
            assert "Traceback" not in service.said()
        orders = ca.said().count("Added order")
    firsts = [visits.first(serial) for serial in visits.serials]
    ages = [after.shown - before.not_before for before, after in itertools.pairwise(firsts)]
    left = min(visit.not_after - visit.shown for visit in visits.good)
    return Run(visits, answered, orders, ages, left)


def main() -> None:
    """Run it, check it, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.short_lived")
    parser.add_argument("--seconds", type=int, default=59)
    parser.add_argument("--renewals", type=int, default=3)
    arguments = parser.parse_args()
    said = io.StringIO()
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
            seen = trio.run(partial(under_load, Path(folder), arguments.seconds, arguments.renewals))
        check(seen, arguments.seconds, arguments.renewals)
    except BaseException:
        print(said.getvalue())
        raise
    print(
        f"{len(seen.visits.good)} connections and {len(seen.answered)} requests on one that stayed, none failed; "
        f"{arguments.renewals} renewals, at {', '.join(f'{age:.1f}' for age in seen.ages)} s of {arguments.seconds}; "
        f"no certificate was shown with less than {seen.left:.1f} s left"
    )


def check(seen: Run, seconds: int, renewals: int) -> None:
    """Say by AssertionError what was not as it should be."""
    assert seen.visits.failed == []
    assert set(seen.answered) == {b"hello"}
    assert len(seen.visits.serials) == renewals + 1
    for before, after in itertools.pairwise(seen.visits.serials):
        assert seen.visits.last(before).begun < seen.visits.first(after).shown
    assert seen.left > 0
    assert all(age > seconds / 3 for age in seen.ages), "renewed long before it is due"
    assert seen.orders == renewals + 1


if __name__ == "__main__":
    main()
