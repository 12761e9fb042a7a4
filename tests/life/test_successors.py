"""The old server's side of an upgrade, with successors that go wrong at every step."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from tests.process.managers import manager
from trioproxy.config.model import HostPort
from trioproxy.control import ControlSocket, control_socket
from trioproxy.errors import ControlError, ListenError
from trioproxy.life import upgrade
from trioproxy.life.upgrade import Estate, Succession, Upgrades
from trioproxy.process.inheritance import VARIABLE, Heirloom, Inheritance, bequeath, inheritance
from trioproxy.process.notify import Notifier

PREAMBLE = """\
import json, os, socket, sys, time
channel = socket.socket(fileno=json.loads(os.environ["TRIOPROXY_INHERITANCE"])["channel"]).makefile("rwb", buffering=0)
def say(word, **more):
    channel.write(json.dumps({"word": word, **more}).encode() + b"\\n")
def hear():
    return json.loads(channel.readline())["word"]
"""


@attrs.define
class Old:
    """What the old server did, in order."""

    control: ControlSocket
    notifier: Notifier
    did: list[str] = attrs.field(factory=list)
    stopping: bool = False

    async def let_go(self) -> None:
        await trio.lowlevel.checkpoint()
        self.did.append("let go")

    def upgrades(self, program: str) -> Upgrades:
        return Upgrades(
            Estate(
                [sys.executable, "-c", PREAMBLE + program],
                lambda: (),
                self.control,
                self.notifier,
                stopping=lambda: self.stopping,
                let_go=self.let_go,
                take_back=lambda: self.did.append("took back"),
                leave=lambda: self.did.append("left"),
            )
        )


async def upgraded(old: Old, program: str) -> dict[str, Any]:
    """Upgrade to `program`, and wait for its end."""
    upgrades = old.upgrades(program)
    outcome = await upgrades.upgrade({}, lambda line: None)
    if upgrades.successor is not None:
        await upgrades.successor.wait()
    return outcome


async def attempt(tmp_path: Path, program: str) -> tuple[Old, str]:
    """An upgrade to `program`: what the old server did, and why it did not work."""
    with control_socket(tmp_path / "control.sock") as control:
        old = Old(control, Notifier({}, os.getpid()))
        with trio.fail_after(30):
            try:
                await upgraded(old, program)
            except ControlError as exc:
                return old, str(exc)
        return old, ""


@pytest.mark.parametrize(
    ("program", "did", "why"),
    [
        ("sys.exit(3)", [], "ended with code 3 before it served"),
        ("say('failed', reasons=['no', 'never'])", [], "did not start:\nno\nnever"),
        ("say('serving', control=True)", [], "said serving and not ready"),
        ("say('ready'); hear(); sys.exit(4)", ["let go", "took back"], "ended with code 4 before it served"),
        ("say('ready'); hear(); say('failed', reasons=['x'])", ["let go", "took back"], "did not start:\nx"),
        ("say('ready'); hear() == 'go' and say('serving', control=True); hear()", ["let go", "left"], ""),
    ],
)
async def test_each_way_to_fail_is_told_and_taken_back(tmp_path: Path, program: str, did: list[str], why: str) -> None:
    old, said = await attempt(tmp_path, program)
    assert old.did == did
    assert why in said
    assert bool(why) == bool(said)


@pytest.mark.parametrize("program", ["time.sleep(60)", "say('ready'); hear(); time.sleep(60)"])
async def test_one_that_hangs_is_ended(tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "PATIENCE", 0.5)
    old, said = await attempt(tmp_path, program)
    assert "does not serve after 0.5 s" in said
    assert "left" not in old.did


async def test_systemd_is_told_before_the_successor_is(tmp_path: Path) -> None:
    """Else it would speak to systemd before that knows it, and not be believed."""
    notify = f"n = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); n.sendto(b'READY=1', {str(tmp_path / 'notify')!r})"
    program = f"say('ready'); hear(); say('serving', control=True); hear(); {notify}"
    with manager(str(tmp_path / "notify")) as systemd, control_socket(tmp_path / "control.sock") as control:
        old = Old(control, Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}, os.getpid()))
        outcome = await upgraded(old, program)
        assert await systemd.message() == {"MAINPID": str(outcome["pid"])}
        assert await systemd.message() == {"READY": "1"}
    assert (tmp_path / "control.sock").exists()  # it is the successor's


async def test_what_cannot_be_upgraded_says_so(tmp_path: Path) -> None:
    with control_socket(tmp_path / "control.sock") as control:
        old = Old(control, Notifier({}, os.getpid()), stopping=True)
        with pytest.raises(ControlError, match="the server is stopping"):
            await old.upgrades("").upgrade({}, lambda line: None)
        estate = attrs.evolve(old.upgrades("")._estate, command=(), stopping=lambda: False)
        with pytest.raises(ControlError, match="not started by `trioproxy serve`"):
            await Upgrades(estate).upgrade({}, lambda line: None)
        missing = attrs.evolve(estate, command=["/nonexistent/python"])
        with pytest.raises(ControlError, match="/nonexistent/python cannot be started: No such file"):
            await Upgrades(missing).upgrade({}, lambda line: None)


async def test_a_successor_whose_predecessor_has_gone_does_not_begin(tmp_path: Path) -> None:
    near, far = socket.socketpair()
    control = socket.socket(socket.AF_UNIX)
    heir = Succession(Inheritance((), (control, tmp_path), far))  # which owns its end now
    near.close()
    with pytest.raises(ListenError, match="does not hand over any more"):
        await heir.wait_for_turn()
    await heir.serving(control=True)  # having begun, it goes on
    control.close()


def test_an_inheritance_of_another_version_is_refused_with_words() -> None:
    near, far = socket.socketpair()
    control = socket.socket(socket.AF_UNIX)
    values = {"format": 99, "channel": os.dup(far.fileno()), "control": [os.dup(control.fileno()), "/x"]}
    with pytest.raises(ListenError, match="another version"):
        inheritance({VARIABLE: json.dumps({**values, "listeners": []})})
    far.close()
    control.close()
    assert b"restart the service" in near.recv(1000)
    near.close()
    with pytest.raises(ListenError, match="cannot be made sense of"):
        inheritance({VARIABLE: "nonsense"})
    assert inheritance({}) is None


def test_several_sockets_of_an_address_are_handed_over_in_a_form_that_older_versions_refuse() -> None:
    near, far = socket.socketpair()
    control = socket.socket(socket.AF_UNIX)
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        at = HostPort("127.0.0.1", 443)
        heirlooms = (Heirloom("https", at, given=False, sock=one), Heirloom("http", at, given=False, sock=two))
        assert json.loads(bequeath(heirlooms, (control, Path("/x")), far))["format"] == 1
        pair = tuple(attrs.evolve(heirloom, kind="https") for heirloom in heirlooms)
        assert json.loads(bequeath(pair, (control, Path("/x")), far))["format"] == 2
    for sock in (near, far, control):
        sock.close()
