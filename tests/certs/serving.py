"""A real `trioproxy serve` whose certificates come from Pebble, and commands beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import trio

from tests.life.served import PATIENCE, ROOT, Served
from tests.pebble import Pebble, free_ports, own_address
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.store import Store

NAME = "cloud.test"

T = TypeVar("T")

MAIN = "from trioproxy.cli.main import main; main()"

HEAD = """\
[listen]
https = ["127.0.0.1:0"]
http = ["{address}:{port}"]
[acme]
email = "me@example.com"
directory = "{ca.directory}"
ca_file = "{ca.ca_file}"
challenges = ["http-01"]
"""


def port_80() -> int:
    """A port of `own_address` where challenges can be answered, for Pebble must know it before there is a server."""
    return free_ports(own_address(), 1)[0]


def configuration(folder: Path, ca: Pebble, sites: str, staging: Pebble | None = None) -> str:
    """A configuration whose storage is in `folder`, for `tests.life.served`."""
    text = HEAD.format(address=own_address(), port=ca.http_port, ca=ca)
    if staging is not None:
        text += f'staging = "{staging.directory}"\nstaging_ca_file = "{staging.ca_file}"\n'
    return f'{text}[storage]\npath = "{folder / "store"}"\n[sites]\n{sites}'


def stored(service: Served, name: str = NAME) -> Leaf | None:
    """The certificate that a site has from its CA."""
    bundle = Store(service.folder / "store").load(name)
    return None if bundle is None else bundle.leaf


async def eventually(probe: Callable[[], T | None], patience: float = PATIENCE, pause: float = 0.02) -> T:
    """What `probe` gives as soon as that is something: other processes have no event to tell by."""
    with trio.fail_after(patience):
        while not (found := probe()):  # noqa: ASYNC110
            await trio.sleep(pause)
    return found


async def command(service: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`trioproxy` with these arguments, beside the server; what it printed is text."""
    with trio.fail_after(PATIENCE):
        done = await trio.run_process(
            [
                sys.executable,
                "-c",
                "from trioproxy.cli.main import main; main()",
                "--config",
                service.config,
                *arguments,
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())
