"""trioproxy as its users have it: a configuration file, a process, and commands beside it."""

from __future__ import annotations

import contextlib
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.e2e.network import Host
from tests.e2e.software import Software, run, running

TRIOPROXY = str(Path(sysconfig.get_path("scripts")) / "trioproxy")


class Trioproxy:
    """A trioproxy that may run on `host`, with its files in `folder`.

    In namespaces its configuration says nothing about listening: the defaults are what users have.
    """

    def __init__(self, host: Host, folder: Path, directory: str, ca_file: Path) -> None:
        self.host = host
        self.config = folder / "config.toml"
        self.storage = folder / "storage"
        self.directory = directory
        self._ca_file = ca_file
        folder.mkdir(parents=True, exist_ok=True)

    def configure(self, text: str, drain: str = "10s", connect: str = "5s", listen: str = "") -> None:
        """Write a configuration: `text` holds the tables `passthrough` and `sites`, `listen` more of `listen`."""
        self.config.write_text(
            f"{self._listen()}{listen}\n"
            f'[acme]\nemail = "me@myname.com"\ndirectory = "{self.directory}"\nca_file = "{self._ca_file}"\n'
            f'[timeouts]\ndrain = "{drain}"\nconnect = "{connect}"\n'
            f'[storage]\npath = "{self.storage}"\n'
            f"{text}"
        )

    def _listen(self) -> str:
        if self.host.isolated:
            return "[listen]\n"
        https, http = self.host.at(443), self.host.at(80)
        return f'[listen]\nhttps = ["{https}"]\nhttp = ["{http}"]\npublic_https_port = {self.host.port(443)}\n'

    @contextlib.contextmanager
    def serving(self, *prefix: str) -> Iterator[Software]:
        """`trioproxy serve`, from its `ready` until the block ends; `prefix` is a command that runs it."""
        with running(self.host, *prefix, *self._command("serve")) as software:
            try:
                software.wait_for(r"\bready\b")
                yield software
            finally:
                print(software.said())  # pytest shows it with a test that failed

    def run(self, *arguments: str, patience: float = 60) -> subprocess.CompletedProcess[bytes]:
        """Run a command of trioproxy to its end."""
        return run(self.host, *self._command(*arguments), patience=patience)

    def _command(self, *arguments: str) -> list[str]:
        return [TRIOPROXY, "--config", str(self.config), *arguments]
