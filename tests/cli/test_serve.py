"""`trioproxy serve` as a process of its own, while it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

CONFIG = """\
[listen]
https = ["127.0.0.1:0"]
http = ["127.0.0.1:0"]
[storage]
path = "storage"
[sites]
"cloud.test" = { "/" = "http://127.0.0.1:9", tls = "internal" }
"""

PATIENCE = 20.0
"""Seconds for what takes less than one."""


def _once_it_is_read(fifo: Path) -> int:
    """A descriptor to write to `fifo`, as soon as a reader has opened it."""
    give_up = time.monotonic() + PATIENCE
    while True:
        try:
            return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            if time.monotonic() > give_up:
                raise
            time.sleep(0.01)


def test_a_hangup_during_the_start_is_a_reload_and_not_the_end(tmp_path: Path) -> None:
    fifo = tmp_path / "config.toml"  # reading it takes as long as we like
    os.mkfifo(fifo)
    command = [sys.executable, "-c", "from trioproxy.cli.main import main; main()", "--config", str(fifo), "serve"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            with open(_once_it_is_read(fifo), "w") as first:
                server.send_signal(signal.SIGHUP)
                first.write(CONFIG)
            assert any(" ready: " in line for line in server.stderr)
            with open(_once_it_is_read(fifo), "w") as second:
                second.write(CONFIG)
            assert any(" reloaded: 1 sites" in line for line in server.stderr)
            server.terminate()
            assert server.wait(PATIENCE) == 0
        finally:
            server.kill()
