"""Autobahn's WebSocket test suite through the proxy, whose verdicts must be those without it.

    python -m tests.autobahn [CASE ...]     such as 1.* 7.1.1; all of them when none is named (some twenty minutes)

`make autobahn` runs it. The suite is written for Python 2.7, so this wants one: PYTHON2 in the environment names it,
else `python2.7`, `pypy` and their like are looked for on PATH and among pyenv's. The suite is installed from PyPI into
`.work/autobahn`. Its own echo server is the backend; its fuzzing client calls that server twice, directly and through
the proxy, and the two reports are compared case by case.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path

import trio

from tests.proxy.stage import LOOPBACK, make_config, site, stage

VERSION = "25.10.1"
WORK = Path(__file__).resolve().parent.parent / ".work" / "autobahn"
SITE = "localhost"
DIRECT, PROXIED = "direct", "proxied"

# A folder of `pip --target` becomes a site folder by name, for the namespace packages of that time want their .pth. The
# echo server would compare the port in Host with its own; behind a proxy it has to be told of none.
RUN = """
import site
site.addsitedir({!r})
from autobahntestsuite import testee, wstest
class Factory(testee.TesteeServerFactory):
    def setSessionParameters(self, *args, **kwargs):
        testee.WebSocketServerFactory.setSessionParameters(self, *args, **kwargs)
        self.externalPort = None
testee.TesteeServerFactory = Factory
wstest.run()
"""


def python2() -> str | None:
    """A Python 2.7, or None."""
    names = [os.environ.get("PYTHON2", ""), "python2.7", "pypy2.7", "pypy2", "pypy", "python2"]
    found = [path for name in names if name and (path := shutil.which(name))]
    found += [str(path) for path in sorted(Path.home().glob(".pyenv/versions/*2.7*/bin/python2.7"))]
    question = ["-c", "import sys, pip; sys.exit(sys.version_info[:2] != (2, 7))"]
    for path in found:
        if subprocess.run([path, *question], capture_output=True).returncode == 0:
            return path
    return None


def install(python: str) -> Path:
    """The folder with the suite in it."""
    folder = WORK / f"suite-{VERSION}"
    if not folder.is_dir():
        part = folder.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--target", str(part)]
        subprocess.run([*pip, f"autobahntestsuite=={VERSION}"], check=True, stderr=subprocess.DEVNULL)
        part.rename(folder)
    return folder


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def listening(port: int) -> None:
    """Wait until somebody listens."""
    with trio.fail_after(30):
        while True:
            try:
                await (await trio.open_tcp_stream(LOOPBACK, port)).aclose()
            except OSError:
                await trio.sleep(0.1)
            else:
                return


def verdicts(index: dict[str, dict[str, dict[str, str]]], agent: str) -> dict[str, tuple[str, str]]:
    """For each case what was found of its behaviour, and of how the connection closed."""
    return {case: (said["behavior"], said["behaviorClose"]) for case, said in index[agent].items()}


async def run(python: str, folder: Path, cases: list[str]) -> int:
    """Run the suite twice and compare. Returns the exit code."""
    wstest = [python, "-c", RUN.format(str(folder))]
    port, reports = free_port(), WORK / "reports"
    async with trio.open_nursery() as nursery, stage(make_config(site(SITE, port), no_sni=SITE)) as proxy:
        for agent in (DIRECT, PROXIED):
            url = f"ws://{SITE}:{port}" if agent == DIRECT else f"wss://{SITE}:{proxy.https}"
            # One server in a run: its limits and its memory are then the same for both.
            servers = [{"agent": agent, "url": url, "options": {"version": 18}}]
            spec = WORK / f"{agent}.json"
            spec.write_text(
                json.dumps({"outdir": str(reports / agent), "servers": servers, "cases": cases, "exclude-cases": []})
            )
        nursery.start_soon(trio.run_process, [*wstest, "-m", "testeeserver", "-w", f"ws://{LOOPBACK}:{port}"])
        await listening(port)
        found = {}
        for agent in (DIRECT, PROXIED):
            await trio.run_process([*wstest, "-m", "fuzzingclient", "-s", str(WORK / f"{agent}.json")])
            found[agent] = verdicts(json.loads((reports / agent / "index.json").read_text()), agent)
        nursery.cancel_scope.cancel()
    differing = {
        case: (found[DIRECT].get(case), found[PROXIED].get(case))
        for case in sorted(found[DIRECT].keys() | found[PROXIED].keys())
        if found[DIRECT].get(case) != found[PROXIED].get(case)
    }
    for agent in (DIRECT, PROXIED):
        print(f"{agent}: {len(found[agent])} cases:", dict(Counter(verdict for verdict, _ in found[agent].values())))
    for case, (direct, proxied) in differing.items():
        print(f"{case}: {direct} directly, {proxied} through the proxy")
    print(f"{len(differing)} verdicts differ")
    return 1 if differing or not found[DIRECT] else 0


def main() -> int:
    python = python2()
    if python is None:
        print("autobahn: no Python 2.7 with pip found, which Autobahn's suite is written for (PYTHON2=... names one)")
        return 2
    WORK.mkdir(parents=True, exist_ok=True)
    return trio.run(run, python, install(python), sys.argv[1:] or ["*"])


if __name__ == "__main__":
    sys.exit(main())
