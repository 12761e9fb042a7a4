"""Root becomes an ordinary user, for good. Each test does it in a process of its own, for there is no way back."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.process.interpreters import USER, interpreter
from trioproxy.process.privileges import PrivilegeError, account, acting_as, give_folder

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")

LOOK = """
def look():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    def may(act):
        try:
            act()
        except OSError:
            return False
        return True
    def bind():
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 81))
    def raw():
        socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()
    return {
        "uids": os.getresuid(), "gids": os.getresgid(), "groups": os.getgroups(),
        "no_new_privs": fields["NoNewPrivs"].strip(), "core": resource.getrlimit(resource.RLIMIT_CORE),
        "bounding": int(fields["CapBnd"], 16), "effective": int(fields["CapEff"], 16),
        "ambient": int(fields["CapAmb"], 16), "dumpable": ctypes.CDLL(None).prctl(3, 0, 0, 0, 0),
        "root_again": may(lambda: os.setuid(0)), "bind": may(bind), "raw": may(raw),
        "shadow": may(lambda: open("/etc/shadow").close()),
    }
"""

PREAMBLE = f"import ctypes, json, os, resource, socket, subprocess, sys, threading\n{LOOK}"


def in_a_process(program: str, *, check: bool = True, **options: Any) -> Any:
    """What a program prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", PREAMBLE + program], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, **options,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stderr
    return json.loads(done.stdout) if check else done.stderr


DROP = "from trioproxy.process.privileges import drop\n"


@root
@pytest.mark.parametrize(("keep", "raw"), [([10], False), ([10, 13], True), ([], False)])
def test_what_is_left_after_the_drop(keep: list[int], raw: bool) -> None:
    found = in_a_process(f"{DROP}drop('{USER}', {keep})\nprint(json.dumps(look()))")
    who = pwd.getpwnam(USER)
    mask = sum(1 << number for number in keep)
    assert found == {
        "uids": [who.pw_uid] * 3,
        "gids": [who.pw_gid] * 3,
        "groups": [who.pw_gid],
        "no_new_privs": "1",
        "core": [0, 0],
        "bounding": mask,
        "effective": mask,
        "ambient": mask,
        "dumpable": 0,
        "root_again": False,
        "bind": bool(keep),  # so a reload may
        "raw": raw,
        "shadow": False,
    }


@root
def test_what_is_kept_survives_the_start_of_a_new_process_and_of_a_thread() -> None:
    again = f"[{interpreter()[0]!r}, '-c', {PREAMBLE + 'print(json.dumps(look()))'!r}]"
    found = in_a_process(f"{DROP}drop('{USER}', [10])\nprint(subprocess.run({again}, stdout=-1).stdout.decode())")
    assert (found["bind"], found["raw"], found["root_again"]) == (True, False, False)
    thread = "got = []\nt = threading.Thread(target=lambda: got.append(look()))\nt.start()\nt.join()\n"
    found = in_a_process(f"{DROP}drop('{USER}', [10])\n{thread}print(json.dumps(got[0]))")
    assert (found["bind"], found["root_again"]) == (True, False)


@root
def test_a_thread_that_was_there_before_is_found_out() -> None:
    """Its capabilities are its own, so the drop would not have been one."""
    program = (
        f"{DROP}e = threading.Event()\nthreading.Thread(target=e.wait, daemon=True).start()\n"
        "import trioproxy.process.privileges as p\n"
        "p._prctl(28, 1 << 2)\n"  # PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP: capabilities stay with whoever has them
        f"threading.Thread(target=e.wait, daemon=True).start()\ndrop('{USER}', [10])"
    )
    assert "its thread" in in_a_process(program, check=False)


@root
def test_dropping_twice_is_harmless_and_gives_up_what_is_not_wanted_any_more() -> None:
    found = in_a_process(f"{DROP}drop('{USER}', [10, 13])\ndrop('{USER}', [10])\nprint(json.dumps(look()))")
    assert (found["bind"], found["raw"]) == (True, False)


@root
def test_where_a_unit_forbids_to_change_capabilities_those_that_it_gave_stay() -> None:
    forbidding = (
        "import trioproxy.process.privileges as p\ndef no(kept):\n    raise PermissionError(1, 'no')\np._capset = no\n"
    )
    found = in_a_process(f"{DROP}drop('{USER}', [10, 13])\n{forbidding}drop('{USER}', [10])\nprint(json.dumps(look()))")
    assert (found["bind"], found["raw"], found["no_new_privs"]) == (True, True, "1")


@root
def test_nobody_else_than_root_can_become_somebody_else() -> None:
    said = in_a_process(f"{DROP}os.setuid(1)\ndrop('{USER}', [])", check=False)
    assert "only root can become nobody" in said


def test_users_that_cannot_be_become() -> None:
    with pytest.raises(PrivilegeError, match="no user nobody-here on this machine"):
        account("nobody-here")
    with pytest.raises(PrivilegeError, match="nothing up"):
        account("root")


@root
def test_folders_are_given_and_those_of_others_are_not_taken(tmp_path: Path) -> None:
    who = account(USER)
    give_folder(tmp_path / "new", USER)
    assert (tmp_path / "new").stat().st_uid == who.uid
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    (tmp_path / "empty").mkdir()
    give_folder(tmp_path / "empty", USER)
    assert (tmp_path / "empty").stat().st_uid == who.uid
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "key").touch()
    with pytest.raises(PrivilegeError, match=r"full belongs to root.*chown -R nobody:"):
        give_folder(tmp_path / "full", USER)
    give_folder(tmp_path / "new", USER)  # already theirs, whatever is in it


@root
def test_files_are_seen_with_the_users_eyes(tmp_path: Path) -> None:
    secret = tmp_path / "key"
    secret.touch(mode=0o600)
    with acting_as(USER), pytest.raises(PermissionError):
        secret.read_bytes()
    assert secret.read_bytes() == b""
    assert os.geteuid() == 0
    with acting_as(""):
        assert secret.read_bytes() == b""
