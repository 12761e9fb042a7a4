"""The load of sites: `sitebench` over HTTP/1.1, `h2load` over HTTP/2. A failed request ends it all."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.load import SLACK, Outcome, Program
from bench.process import BenchError

SUITE = "TLS_AES_128_GCM_SHA256"
"""The cipher suite that browsers offer first, so that the peers do not choose different ones; as in sitebench.c."""

OPENING = 60
"""Seconds that opening connections may take; as in sitebench.c."""


class SiteLoad:
    """Builds `sitebench` in `folder` and runs it and `h2load`.

    Raises:
        BenchError: there is no compiler, or it fails.
    """

    def __init__(self, folder: Path) -> None:
        self._program = Program("sitebench", folder, ("-lssl", "-lcrypto", "-lm"), "gcc libc6-dev libssl-dev")

    def backend(self) -> contextlib.AbstractContextManager[int]:
        """A plain HTTP server with small answers, large ones and a sink; its port."""
        return self._program.server()

    @contextlib.contextmanager
    def prepared(
        self, mode: str, port: int, name: str, amount: int, seconds: float, rate: float | None = None
    ) -> Iterator[Callable[[], Outcome]]:
        """Connections that stand, each with one request behind it; to call what is yielded begins the load.

        Args:
            mode: `requests`, `connections`, `paced`, `down`, `up` or `hold`: the top of sitebench.c tells.
            port: The proxy's.
            name: The server name to ask for.
            amount: Connections; bytes for `down` and `up`.
            seconds: Length of the load.
            rate: Requests a second, of `paced`.

        Raises:
            BenchError: not all connections came about, or something failed.
        """
        arguments = [mode, "127.0.0.1", str(port), name, str(amount), str(seconds)]
        if rate is not None:
            arguments.append(f"{rate:.1f}")
        with self._program.started(arguments) as process:
            self._program.wait_until_ready(process, amount if mode in {"requests", "paced", "hold"} else 1)
            yield lambda: self._program.ended(arguments, process, seconds + OPENING)

    def http2(self, port: int, name: str, connections: int, streams: int, seconds: float) -> Outcome:
        """So many connections, and on each so many requests at any time.

        Raises:
            BenchError: h2load is not here, a request failed, or it was not HTTP/2 over TLS 1.3.
        """
        if shutil.which("h2load") is None:
            raise BenchError("h2load is not here: sudo apt-get install nghttp2-client")
        said = subprocess.run(
            ["h2load", f"--clients={connections}", f"--max-concurrent-streams={streams}",
             f"--duration={seconds * 1e3:.0f}ms", "--npn-list=h2", f"--tls13-ciphers={SUITE}",
             f"--connect-to=127.0.0.1:{port}", f"https://{name}/"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=seconds + SLACK,
        )  # fmt: skip
        out = said.stdout + said.stderr
        counts = re.search(
            r"finished in ([\d.]+)s.*\nrequests: .* done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout",
            out,
        )
        spoken = "Application protocol: h2\n" in out and "TLS Protocol: TLSv1.3\n" in out
        if said.returncode or counts is None or not spoken or any(int(count) for count in counts.group(3, 4, 5)):
            raise BenchError(f"HTTP/2 failed: {' '.join(map(str, said.args))}\n{out}")
        return Outcome(seconds, int(counts[2]), 0, 0.0, 0.0)


def protocol(port: int, name: str, root: Path) -> str:
    """What a proxy prefers, of h2 and http/1.1, after it was seen that it meets as the others do.

    Args:
        port: Where it takes TLS.
        name: The server name to ask for.
        root: The certificate that its chain must lead to; the intermediate must come from it.

    Raises:
        BenchError: it speaks no TLS 1.3, or has no good chain.
    """
    context = ssl.create_default_context(cafile=str(root))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2", "http/1.1"])
    try:
        with (
            socket.create_connection(("127.0.0.1", port), SLACK) as sock,
            context.wrap_socket(sock, server_hostname=name) as tls,
        ):
            return tls.selected_alpn_protocol() or "http/1.1"
    except OSError as exc:
        raise BenchError(f"a TLS 1.3 handshake with the proxy on port {port} failed: {exc}") from exc
