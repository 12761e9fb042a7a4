"""The scenarios in full, one after the other, with a line for each as it ends.

python -m tests.chaos [--short] [--json FILE] [NAME…]      all of `make chaos` when none are named; soak by name
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import trio

from tests.chaos.rows import LONG, SHORT, Row, Scale
from tests.chaos.scenarios import CHAOS, SOAK, Entry


def main() -> int:
    """Run what was asked for. Returns 0 if all of it was survived; what cannot run here is told, and counts as that."""
    every = {**CHAOS, **SOAK}
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(every))
    parser.add_argument("--short", action="store_true", help="in the size of the tests")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the figures there")
    options = parser.parse_args()
    if unknown := set(options.names) - set(every):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(every)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends its servers
    kept = {}
    survived = True
    for name in options.names or CHAOS:
        if lacking := missing(every[name]):
            print(f"skipped   {name}: {lacking}", flush=True)
            continue
        began = time.monotonic()
        row = run(every[name], SHORT if options.short else LONG)
        seconds = time.monotonic() - began
        survived = survived and not row.problems
        print(f"{'FAILED' if row.problems else 'survived':9} {name}: {row.said()} ({seconds:.0f} s)", flush=True)
        print(f"          to reach: {every[name].target}", flush=True)
        for problem in row.problems[:20]:
            print(f"          ! {problem}", flush=True)
        kept[name] = {"figures": row.figures, "problems": row.problems, "seconds": round(seconds, 1)}
    if options.json:
        options.json.write_text(json.dumps(kept, indent=2) + "\n")
    return 0 if survived else 1


def missing(entry: Entry) -> str:
    """Why a scenario cannot run here; "" if it can."""
    if entry.root and os.geteuid() != 0:
        return "only root can do that to a process"
    lacking = [program for program in entry.programs if shutil.which(program) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def run(entry: Entry, scale: Scale) -> Row:
    """One scenario, in a folder of its own; a server's log stays where something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="trioproxy-chaos-"))
    try:
        with (
            Path(os.devnull).open("w") as nowhere,
            contextlib.redirect_stdout(nowhere),
        ):  # what a server said at its end
            row = trio.run(entry.run, folder, scale)
    except Exception as exc:
        row = Row(problems=[f"it ended with {exc!r}"])
    if row.problems:
        row.problems.append(f"what the server said is in {folder}")
    else:
        shutil.rmtree(folder)
    return row


if __name__ == "__main__":
    sys.exit(main())
