"""All scenarios by name, with what each needs and is to reach."""

from __future__ import annotations

import attrs

from tests.chaos import changes, clock, faults, killed, names, slow, soak, tools
from tests.chaos.rows import Scenario
from tests.pebble import PROGRAMS


@attrs.frozen
class Entry:
    """One scenario.

    Attributes:
        run: Does it.
        target: What is to come of it, for the table.
        programs: What must be installed.
        root: Whether only root can do it.
    """

    run: Scenario
    target: str
    programs: tuple[str, ...] = ()
    root: bool = False


CHAOS = {
    "reloads": Entry(changes.reloads, "no failed request, WebSockets kept"),
    "upgrades": Entry(changes.upgrades, "none refused, none cut"),
    "backends": Entry(killed.backends, "never a wrong body, never a part that looks whole"),
    "slow": Entry(
        slow.clients,
        "300 MB, no good request fails, their p99 at most doubled, the slow ones gone 2 s after their time",
    ),
    "accept": Entry(faults.accepting, "every connection is served in the end", ("strace",), root=True),
    "log": Entry(faults.logging, "no request fails, and the log goes on", ("strace",), root=True),
    "store": Entry(
        faults.storing,
        "a pair is kept and served, whatever fails; the next renewal succeeds",
        ("strace", *PROGRAMS),
        root=True,
    ),
    "clock": Entry(clock.jumps, "nothing renewed twice, nothing forgotten, no connection notices", PROGRAMS),
    "tools": Entry(
        tools.tools,
        "every connection is ended, the site answers meanwhile",
        ("slowhttptest", "varnishtest"),
    ),
    "dns": Entry(names.gone, "502 for those names alone, and all is well when it is back", ("unshare",), root=True),
}
"""What `make chaos` does, in this order."""

SOAK = {
    "soak": Entry(
        soak.soak,
        "memory grows by at most 1 % once it has settled; descriptors and tasks are back where they began",
        ("h2load", "nginx"),
    ),
}
"""What `make soak` does."""
