"""All scenarios by name, with what each needs and is to reach."""

from __future__ import annotations

import attrs

from tests.chaos import changes, killed
from tests.chaos.rows import Scenario


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
}
"""What `make chaos` does, in this order."""

SOAK: dict[str, Entry] = {}
