"""`trioproxy install-service`: what systemd needs to run trioproxy, made once; made again it changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import click

import trioproxy
from trioproxy.errors import TrioproxyError

USER = "trioproxy"
CONFIG = Path("/etc/trioproxy/config.toml")
STATE = Path("/var/lib/trioproxy")
UNITS = Path("/etc/systemd/system")

SHIPPED = "/opt/trioproxy/bin/trioproxy"
"""The program's place in the shipped unit."""

HIDDEN = ("/home/", "/root/", "/run/user/", "/tmp/", "/var/tmp/")  # noqa: S108 - compared, not written to
"""What the unit's sandbox hides: a program in there could not be started."""


class InstallError(TrioproxyError):
    """Something that could not be set up."""


@attrs.frozen
class Step:
    """One thing that must be so.

    Attributes:
        what: In words: "the user trioproxy".
        there: Whether it is so already.
        make: Makes it so.
    """

    what: str
    there: bool
    make: Callable[[], object]


@click.command("install-service")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--socket", is_flag=True, help="Let systemd hold the ports, too (trioproxy.socket).")
@click.option(
    "--root", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path("/"), metavar="FOLDER",
    help="Set up the system in FOLDER, such as an image that is being built; / by default.",
)  # fmt: skip
def command(dry_run: bool, socket: bool, root: Path) -> None:
    """Set up the user, the folders and the unit that systemd runs trioproxy by.

    What is there already stays as it is, but for units, which become the ones of this version. Put changes of your own
    into a drop-in: systemctl edit trioproxy.
    """
    if os.geteuid() != 0 and not dry_run:
        raise InstallError("only root can do this: run it with sudo, or with --dry-run to see what it would do")
    program = Path(sys.argv[0]).absolute()
    changed = False
    for step in steps(root, program, socket=socket):
        if step.there:
            click.echo(f"as it should be  {step.what}")
            continue
        changed = True
        if dry_run:
            click.echo(f"would be made    {step.what}")
        else:
            step.make()
            click.echo(f"made             {step.what}")
    if changed and not dry_run and root == Path("/") and Path("/run/systemd/system").exists():
        _run("systemctl", "daemon-reload")
        click.echo("systemd has read its units again")
    for sentence in _advice(root, program, socket=socket):
        click.echo(f"\n{sentence}")


def steps(root: Path, program: Path, *, socket: bool) -> Iterator[Step]:
    """All that must be so below `root`, in order. Each is looked at when its turn comes."""
    yield Step(f"the user {USER}", _ids(root) is not None, lambda: _add_user(root))
    etc, state = _below(root, CONFIG.parent), _below(root, STATE)
    yield Step(f"the folder {CONFIG.parent}", etc.is_dir(), lambda: etc.mkdir(mode=0o755, parents=True))
    yield Step(
        f"the folder {STATE}, which is {USER}'s alone", _is_private(root, state), lambda: _make_state(root, state)
    )
    for unit in ("trioproxy.service", "trioproxy.socket") if socket else ("trioproxy.service",):
        yield _unit(root, unit, program)


def shipped(unit: str) -> str:
    """A unit as it comes with this version, for the program in `SHIPPED`."""
    inside = Path(trioproxy.__file__).parent
    for folder in (inside / "dist", inside.parent / "dist"):  # installed, or from a clone
        if (folder / unit).exists():
            return (folder / unit).read_text()
    raise InstallError(f"{unit} is missing from this installation: install trioproxy again")


def _unit(root: Path, unit: str, program: Path) -> Step:
    path = _below(root, UNITS / unit)
    text = shipped(unit).replace(SHIPPED, str(program))

    def write() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return Step(f"the unit {UNITS / unit}", path.exists() and path.read_text() == text, write)


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to("/")


def _ids(root: Path) -> tuple[int, int] | None:
    """User and group number of our user, as the system below `root` knows it."""
    try:
        lines = _below(root, Path("/etc/passwd")).read_text().splitlines()
    except OSError:
        return None
    for fields in (line.split(":") for line in lines):
        if fields[0] == USER:
            return int(fields[2]), int(fields[3])
    return None


def _add_user(root: Path) -> None:
    elsewhere = [] if root == Path("/") else ["--prefix", str(root)]
    _run(
        "useradd", *elsewhere, "--system", "--user-group", "--no-create-home", "--home-dir", str(STATE),
        "--shell", "/usr/sbin/nologin", "--comment", "trioproxy", USER,
    )  # fmt: skip


def _is_private(root: Path, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    status = folder.stat()
    return (status.st_uid, status.st_gid) == _ids(root) and not status.st_mode & 0o077


def _make_state(root: Path, folder: Path) -> None:
    ids = _ids(root)
    if ids is None:
        raise InstallError(f"there is no user {USER}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What a server of another user left there is to be of use to this one.
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *ids, follow_symlinks=False)
    folder.chmod(0o700)


def _run(*command: str) -> None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    try:
        done = subprocess.run(  # noqa: S603 - ours
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
    except OSError as exc:
        raise InstallError(f"{command[0]} cannot be run: {exc.strerror or exc}") from exc
    if done.returncode:
        raise InstallError(f"{' '.join(command)} failed: {done.stderr.strip()}")


def _advice(root: Path, program: Path, *, socket: bool) -> Iterator[str]:
    if str(program).startswith(HIDDEN):
        yield (
            f"warning: the unit cannot start {program}, for services see no home folders: install trioproxy into "
            "/opt/trioproxy, and run install-service from there"
        )
    config = _below(root, CONFIG)
    if not config.exists():
        yield f"Next, write {CONFIG}; `trioproxy check` says whether it is right."
    elif not config.stat().st_mode & 0o004 and config.stat().st_gid != (_ids(root) or (0, 0))[1]:
        yield f"See to it that {USER} can read {CONFIG}: chgrp {USER} {CONFIG}; chmod 640 {CONFIG}"
    yield f"Then: systemctl enable --now {'trioproxy.socket ' if socket else ''}trioproxy"
