"""Certificates replaced under load: a real `trioproxy serve`, and 200 new TLS connections a second meanwhile.

    python -m tests.hot_swap [--rate 200] [--swaps 5] [--apart 2]      `make hot-swap` runs it

Each connection is one of its own, without a resumed session; its client verifies the certificate and gets an answer.
One that fails fails the run, and so does an old certificate that somebody is still shown after a new one, or a second
after the swap. With Pebble the swap is the moment in which the new file came into its place; with the internal CA,
which writes none, it is the end of the command.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from tests.certs.serving import NAME, configuration, eventually, port_80, stored
from tests.certs.visitors import Visits, trusting, visitors
from tests.life.served import HEAD, Served, served
from tests.pebble import own_address, running_pebble

SOON = 1.0
"""Seconds after a swap within which everybody must see the new certificate."""

REDIRECT = '{ "/" = { redirect = "https://example.com/" }, tls = "%s" }'
"""A site that answers by itself: what is looked at is the handshakes."""

ANSWER = b"HTTP/1.1 308 "


@attrs.frozen
class Swap:
    """One of them.

    Attributes:
        when: The moment; seconds since the epoch.
        done: When the command that asked for it had ended.
        new: How long after the swap the new certificate was shown for the first time, in seconds.
        old: How long after it the last one came who was shown the old one; less than nothing, if before.
    """

    when: float
    done: float
    new: float = 0
    old: float = 0


async def swapped(service: Served, root_pem: bytes, swaps: int, apart: int, rate: float) -> tuple[Visits, list[Swap]]:
    """Replace the certificate of `NAME` so often, under load, with at least `apart` connections between two swaps."""
    found: list[Swap] = []
    async with visitors(service, trusting(root_pem), rate, ANSWER) as visits:
        for _ in range(swaps):
            await _more(visits, apart)
            result = await service.ask("certs.renew", names=[NAME], force=True)
            done = time.time()
            assert [outcome["result"] for outcome in result["outcomes"]] == ["renewed"]
            file = trio.Path(service.folder / "store" / "certificates" / f"{NAME}.pem")
            found.append(Swap((await file.stat()).st_ctime if await file.exists() else done, done))
        await _more(visits, apart)
    assert visits.failed == []
    assert len(visits.serials) == swaps + 1
    for number, (old, new) in enumerate(zip(visits.serials, visits.serials[1:], strict=False)):
        first, last = visits.first(new), visits.last(old)
        assert last.begun < first.shown, "once the new one is there nobody is shown the old one"
        when = found[number].when
        found[number] = attrs.evolve(found[number], new=first.shown - when, old=last.begun - when)
        assert max(found[number].new, found[number].old) < SOON
        assert last.begun <= found[number].done
    return visits, found


async def _more(visits: Visits, number: int) -> None:
    until = len(visits.good) + number
    await eventually(lambda: visits.failed or len(visits.good) >= until)


@asynccontextmanager
async def by_pebble(folder: Path) -> AsyncIterator[tuple[Served, bytes]]:
    """A server whose certificates are Pebble's, and the root of these."""
    async with running_pebble(folder / "ca", http_port=port_80()) as ca:
        await ca.dns.set(NAME, own_address())
        text = configuration(folder, ca, f'"{NAME}" = {REDIRECT % "acme"}\n')
        async with served(folder, text) as service:
            await eventually(lambda: stored(service))
            await service.heard(r"\(checked\)")
            yield service, await ca.root_pem()


@asynccontextmanager
async def by_ourselves(folder: Path) -> AsyncIterator[tuple[Served, bytes]]:
    """A server whose certificates are the internal CA's, and the root of these."""
    head = HEAD.format(storage=folder / "store", drain="1s")
    async with served(folder, f'{head}[sites]\n"{NAME}" = {REDIRECT % "internal"}\n') as service:
        await trio.aclose_forcefully(await service.visit())
        yield service, await trio.Path(folder / "store" / "internal" / "ca.crt").read_bytes()


SOURCES: dict[str, Callable[[Path], contextlib.AbstractAsyncContextManager[tuple[Served, bytes]]]] = {
    "Pebble": by_pebble,
    "internal CA": by_ourselves,
}


async def run(folder: Path, source: str, swaps: int, apart: int, rate: float) -> tuple[Visits, list[Swap]]:
    """All of it; `source` is one of `SOURCES`, the rest as for `swapped`."""
    async with SOURCES[source](folder) as (service, root_pem):
        return await swapped(service, root_pem, swaps, apart, rate)


def main() -> None:
    """Run it with both authorities, and print what was seen."""
    parser = argparse.ArgumentParser(prog="python -m tests.hot_swap")
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--swaps", type=int, default=5)
    parser.add_argument("--apart", type=float, default=2, help="seconds from one swap to the next (default: 2)")
    arguments = parser.parse_args()
    for source in SOURCES:
        said = io.StringIO()
        try:
            with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said):
                apart = int(arguments.rate * arguments.apart)
                visits, swaps = trio.run(partial(run, Path(folder), source, arguments.swaps, apart, arguments.rate))
        except BaseException:
            print(said.getvalue())
            raise
        print(
            f"{source}: {len(visits.good)} new connections, {visits.rate():.0f} a second, none failed; "
            f"{len(swaps)} swaps: the new certificate first shown at most {max(s.new for s in swaps) * 1e3:.0f} ms "
            f"after, the old one last asked for at most {max(s.old for s in swaps) * 1e3:.0f} ms after"
        )


if __name__ == "__main__":
    main()
