"""`trioproxy demo` with the repository's own configuration, as `make run` starts it."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.e2e.network import Host, Plan, network
from tests.e2e.proxy import TRIOPROXY
from tests.e2e.software import run, running

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def host() -> Iterator[Host]:
    """A host whose loopback is nobody else's, where there may be one: the demo's ports are fixed."""
    with network([Plan("demo", ("192.0.2.1/24",))]) as made:
        yield made.hosts["demo"]


@needs("curl", "setpriv")
def test_the_demo_prints_what_to_try_and_ends_with_ctrl_c(host: Host, tmp_path: Path) -> None:
    state = {"XDG_DATA_HOME": str(tmp_path), "STATE_DIRECTORY": str(tmp_path / "state")}
    command = [TRIOPROXY, "--config", str(REPOSITORY / "config.toml"), "demo"]
    with running(host, *command, env=state) as demo:
        demo.wait_for("Ctrl-C stops it")
        lines = [line.strip() for line in demo.said().splitlines() if line.strip().startswith("curl ")]
        for name in ("pbx.localhost", "cloud.localhost"):
            line = next(line for line in lines if name in line)
            answer = run(host, *shlex.split(line), "--fail", "--silent", "--show-error", check=True)
            assert answer.stdout
        demo.signal(signal.SIGINT)
        assert demo.wait() == 0
        assert "Traceback" not in demo.said()
