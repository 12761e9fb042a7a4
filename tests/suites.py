"""Test suites that others wrote and publish on PyPI, fetched once and read without running any of their code.

    python -m tests.suites      fetches what is missing; `make test` does it before the tests

They are kept in `.work/suites`, are not part of this repository, and count only with the hashes that are pinned here.
Where they cannot be had the tests that want them skip and say so.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import attrs

CACHE = Path(__file__).resolve().parent.parent / ".work" / "suites"


@attrs.frozen
class Suite:
    """A source distribution, and where in it the vectors lie."""

    package: str
    version: str
    sha256: str
    folder: str

    @property
    def archive(self) -> Path:
        return CACHE / f"{self.package}-{self.version}.tar.gz"

    @property
    def missing(self) -> str:
        """Why its tests skip; "" when they do not."""
        if self.archive.is_file():
            return ""
        return f"{self.archive.name} is not here (make test fetches it)"

    def files(self, suffix: str) -> dict[str, bytes]:
        """The vectors' files with this ending by their path below `folder`, sorted; none where the suite is missing."""
        if self.missing:
            return {}
        if hashlib.sha256(self.archive.read_bytes()).hexdigest() != self.sha256:
            raise ValueError(f"{self.archive} is not the file whose hash is pinned; remove it")
        start = f"{self.package}-{self.version}/{self.folder}/"
        found = {}
        with tarfile.open(self.archive) as archive:
            for member in archive:
                if member.name.startswith(start) and member.name.endswith(suffix):
                    content = archive.extractfile(member)
                    assert content is not None
                    found[member.name.removeprefix(start)] = content.read()
        return dict(sorted(found.items()))


GUNICORN = Suite(
    "gunicorn", "27.0.1", "b1514965361c8b7e8107a80aa2a92636878df1ccfac6dd204a676426e04d9e3e", "tests/requests"
)

LLHTTP = Suite(
    "aiohttp", "3.14.5", "5558a7f5a05af9ecf744af91e5baefc436f93c9333e656c27ec253f9a6bbe178", "vendor/llhttp/test"
)
"""aiohttp's source distribution carries the llhttp that it builds, with llhttp's tests."""


def fetch(suite: Suite) -> None:
    """Download a suite, unless it is here."""
    if suite.archive.is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder, "requirements.txt")
        requirement.write_text(f"{suite.package}=={suite.version} --hash=sha256:{suite.sha256}\n")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries=1", "--timeout=10"]
        options = ["--quiet", "--no-deps", f"--no-binary={suite.package}", "--require-hashes"]
        command = [*pip, "download", *options, "--dest", folder, "--requirement", str(requirement)]
        subprocess.run(command, check=True, timeout=240)
        CACHE.mkdir(parents=True, exist_ok=True)
        part = suite.archive.with_suffix(".part")
        part.write_bytes(Path(folder, suite.archive.name).read_bytes())
        part.replace(suite.archive)


def main() -> None:
    """Fetch them all. Never fails: what cannot be had is named, and its tests skip."""
    for suite in (GUNICORN, LLHTTP):
        try:
            fetch(suite)
        except (subprocess.SubprocessError, OSError) as exc:
            print(f"tests: {suite.package} {suite.version} could not be fetched, its vectors will skip: {exc}")


if __name__ == "__main__":
    main()
