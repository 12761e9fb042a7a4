"""What a server costs that has certificates and nothing to do: memory and CPU, by the number of names.

    python -m bench.at_rest [--names 10 1000] [--seconds 60]

Every run starts the real program on loopback with a store that holds a good certificate of each name. Memory is looked
at when all of them are read, and written out for other programs, and again when every name has been called once, for a
context is made at the first handshake. Then nobody calls for so long, and CPU and wake-ups of that time are counted.
"""

from __future__ import annotations

import argparse
import datetime
import json
import socket
import ssl
import subprocess
import tempfile
import time
from pathlib import Path

import attrs
import trio

from bench import certificates
from bench.process import BenchError, free_port, running
from bench.proxies import TRIOPROXY
from trioproxy.certs.bundle import Bundle
from trioproxy.certs.store import Store

NAMES = (10, 1_000)
SECONDS = 60.0

PATIENCE = 300.0
"""Seconds until a first start has written the files of all names, each with half a dozen waits for the disk."""

SETTLING = 12.0
"""Seconds until what was done before has left nothing behind: Trio keeps an idle thread for ten."""


@attrs.frozen
class Rest:
    """What was measured with so many names.

    Attributes:
        started: KiB that are resident when all certificates are read.
        called: KiB after every name was called.
        cpu: Seconds of CPU in a minute at rest.
        wakes: How often it was woken in that minute.
    """

    names: int
    started: int
    called: int
    cpu: float
    wakes: float


def configuration(names: list[str], folder: Path, https: int) -> str:
    """A file with a site for each name, and an authority that nobody answers at."""
    return "\n".join(
        [
            f'[listen]\nhttps = ["127.0.0.1:{https}"]\nhttp = []',
            f'[acme]\ndirectory = "https://127.0.0.1:{free_port()}/directory"',
            f'[storage]\npath = "{folder / "storage"}"',
            "[sites]",
            *(f'"{name}" = "http://127.0.0.1:9"' for name in names),
        ]
    )


async def fill(folder: Path, names: list[str]) -> None:
    """Put a certificate for each name into the store: of 90 days, half of them over."""
    store = Store(folder / "storage")
    for name in names:
        files = certificates.issue(name, folder, datetime.timedelta(days=45))
        await store.save(name, Bundle.of(files.key.read_bytes(), files.chain.read_bytes()))


def measured(number: int, seconds: float) -> Rest:
    """One run.

    Raises:
        BenchError: the server did not start, or does not hold all certificates to be good.
    """
    names = [f"n{index}.example.com" for index in range(number)]
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        folder, https = Path(place), free_port()
        file = folder / "config.toml"
        trio.run(fill, folder, names)
        file.write_text(configuration(names, folder, https))
        with running([TRIOPROXY, "--config", file, "serve"], folder / "log", https) as child:
            wait_until_settled(file, number)
            time.sleep(SETTLING)
            started = child.resident_kb()
            for name in names:
                call(https, name)
            time.sleep(SETTLING)
            called, cpu, wakes = child.resident_kb(), child.cpu_seconds(), child.wakes()
            time.sleep(seconds)
            minutes = seconds / 60
            return Rest(
                number, started, called, (child.cpu_seconds() - cpu) / minutes, (child.wakes() - wakes) / minutes
            )


def wait_until_settled(file: Path, number: int) -> None:
    """Wait until the server has read all certificates and written them out for others. Raises BenchError."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        told = subprocess.run(
            [TRIOPROXY, "--config", file, "certs", "list", "--json"], capture_output=True, text=True, check=False
        )
        certificates = json.loads(told.stdout or "[]")
        good = [certificate for certificate in certificates if certificate["state"] == "good" and certificate["pem"]]
        if len(good) == number:
            return
        time.sleep(1)
    raise BenchError(f"of {number} certificates {len(good)} are good and written: {told.stderr}")


def call(port: int, name: str) -> None:
    """Shake hands with the server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), 10) as tcp, context.wrap_socket(tcp, server_hostname=name):
        pass


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.at_rest")
    parser.add_argument("--names", type=int, nargs="+", default=NAMES)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    arguments = parser.parse_args()
    print(f"{'names':>7} {'MB, read':>10} {'MB, called':>10} {'CPU, ms/min':>12} {'wake-ups/min':>13}")
    for number in arguments.names:
        rest = measured(number, arguments.seconds)
        print(
            f"{rest.names:>7,} {rest.started / 1024:>10.1f} {rest.called / 1024:>10.1f} "
            f"{rest.cpu * 1e3:>12.0f} {rest.wakes:>13.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
