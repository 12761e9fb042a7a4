"""What `on_renew` may do: a server that root has started, which keeps a capability for later reloads."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from tests.certs.making import bundle
from tests.certs.serving import eventually
from tests.life.served import ROOT, served
from tests.process.interpreters import USER, interpreter
from trioproxy.certs.store import Store

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

NAME = "cloud.test"

CONFIG = """\
[listen]
https = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
[acme]
directory = "https://127.0.0.1:1/dir"
on_renew = {command}
[sites]
"{name}" = {{ "/" = {{ redirect = "https://example.com/" }} }}
[storage]
path = "{folder}/store"
[process]
user = "{user}"
"""


async def stored(folder: Path) -> None:
    """A certificate in a store that is the user's, of which the command was never told."""
    who, store = pwd.getpwnam(USER), folder / "store"
    store.mkdir(mode=0o700)
    os.chown(store, who.pw_uid, who.pw_gid)
    await Store(store).save(NAME, bundle(NAME))


def config(folder: Path, command: str) -> str:
    return CONFIG.format(command=command, name=NAME, folder=folder, user=USER)


async def test_the_command_has_none_of_our_capabilities(folder: Path) -> None:
    await stored(folder)
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{ROOT}:{packages}"}
    seen = folder / "store" / "seen"
    text = config(folder, f'["cp", "/proc/self/status", "{seen}"]')
    async with served(folder, text, environ=environ, python=python) as service:
        await service.heard(r"on_renew: cp has been run")
        assert "cap_net_bind_service" in service.said().lower(), "the server itself keeps it"
        told = await eventually(lambda: seen.read_text() if seen.exists() else "")
    fields = {key: value.split() for key, _, value in (line.partition(":") for line in told.splitlines())}
    for key in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(fields[key][0], 16) == 0, key
    assert fields["Uid"] == [str(pwd.getpwnam(USER).pw_uid)] * 4


async def test_a_program_that_is_not_there_is_told_in_the_usual_words(folder: Path) -> None:
    await stored(folder)
    python, packages = interpreter()
    environ = {"PYTHONPATH": f"{ROOT}:{packages}"}
    text = config(folder, '["/nowhere/tell"]')
    async with served(folder, text, environ=environ, python=python) as service:
        await service.heard(r"on_renew: /nowhere/tell cannot be run: No such file or directory")
