"""The units that are shipped, and what installs them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.conftest import needs
from trioproxy.cli.main import command

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "dist/trioproxy.service"

MOST_EXPOSED = 2.0
"""On the scale of `systemd-analyze security`, from 0 to 10."""

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can install a service")


@needs("systemd-analyze")
def test_the_unit_is_hardly_exposed() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={int(MOST_EXPOSED * 10)}", str(UNIT)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "Unknown" in done.stderr or "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze looks at no files")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found
    assert float(found[1]) <= MOST_EXPOSED


@needs("systemd-analyze")
@pytest.mark.parametrize("unit", ["trioproxy.service", "trioproxy.socket"])
def test_systemd_understands_every_line(unit: str, tmp_path: Path) -> None:
    for name in ("trioproxy.service", "trioproxy.socket"):
        text = (ROOT / "dist" / name).read_text().replace("/opt/trioproxy/bin/trioproxy", "/bin/true")
        (tmp_path / name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", str(tmp_path / unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    about_it = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "trioproxy" in line]
    assert about_it == []


def test_the_readme_shows_the_unit_as_it_is_shipped() -> None:
    [shown] = re.findall(r"^```ini\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown == UNIT.read_text()


def test_the_manual_shows_how_logs_are_rotated_as_it_is_shipped() -> None:
    shipped = (ROOT / "dist/trioproxy.logrotate").read_text().partition("\n")[2]
    assert f"```\n{shipped}```" in (ROOT / "docs/operations.md").read_text()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """The parts of a system that users are made in."""
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0:root:/root:/bin/bash\n")
    (etc / "group").write_text("root:x:0:\n")
    (etc / "shadow").write_text("root:*:19000:0:99999:7:::\n")
    (etc / "gshadow").write_text("root:*::\n")
    return tmp_path


def install(image: Path, *options: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, ["install-service", "--root", str(image), *options])
    return done.exit_code, done.output


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@root
@needs("useradd")
def test_it_makes_what_is_missing_and_a_second_time_nothing(image: Path) -> None:
    code, said = install(image, "--socket")
    assert code == 0, said
    assert said.count("made  ") == 5
    user = next(line for line in (image / "etc/passwd").read_text().splitlines() if line.startswith("trioproxy:"))
    assert user.endswith(":/var/lib/trioproxy:/usr/sbin/nologin")
    state = (image / "var/lib/trioproxy").stat()
    assert (state.st_uid, state.st_mode & 0o777) == (int(user.split(":")[2]), 0o700)
    installed = (image / "etc/systemd/system/trioproxy.service").read_text()
    assert "User=trioproxy\n" in installed
    assert "/opt/trioproxy/bin/trioproxy" not in installed  # it is this program's own path
    assert (image / "etc/systemd/system/trioproxy.socket").exists()
    before = everything(image)
    code, said = install(image, "--socket")
    assert code == 0
    assert said.count("as it should be") == 5
    assert everything(image) == before


@root
@needs("useradd")
def test_a_unit_of_an_older_version_is_replaced_and_files_of_an_older_server_are_given(image: Path) -> None:
    install(image)
    unit = image / "etc/systemd/system/trioproxy.service"
    unit.write_text("old")
    left = image / "var/lib/trioproxy/certificates"
    left.mkdir()
    (image / "var/lib/trioproxy").chmod(0o755)
    code, said = install(image)
    assert code == 0, said
    assert "[Service]" in unit.read_text()
    assert left.stat().st_uid == (image / "var/lib/trioproxy").stat().st_uid
    assert (image / "var/lib/trioproxy").stat().st_mode & 0o777 == 0o700


def test_a_dry_run_makes_nothing(image: Path) -> None:
    before = everything(image)
    code, said = install(image, "--dry-run")
    assert code == 0
    assert said.count("would be made") == 4
    assert everything(image) == before


def test_without_root_it_refuses_and_says_what_to_do(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = everything(image)
    code, said = install(image)
    assert code == 1
    assert "run it with sudo" in said
    assert everything(image) == before
