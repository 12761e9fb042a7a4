"""A certificate authority for tests: Pebble, with pebble-challtestsrv as its DNS.

    async with running_pebble(tmp_path, http_port=port) as ca:
        settings = Acme(directory=ca.directory, ca_file=ca.ca_file)
        await ca.dns.set("cloud.test", "127.0.0.1")     # which every name has anyway
        ...
        root = await ca.root_pem()

Everything listens on a loopback address that only this process uses (it is made of the process's number), so that test
runs beside each other, and their outgoing connections, cannot take a port between its choice and its use.

The two programs are run inside a nursery and end with it. What they say is printed at the end, so that pytest shows it
for tests that fail.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trustme

from tests.conftest import needs

PATIENCE = 30.0
"""Seconds for a start that takes less than one: a busy machine must not fail a test."""

PROGRAMS = ("pebble", "pebble-challtestsrv")

needs_pebble = needs(*PROGRAMS)
"""Marks a test or, as `pytestmark`, a module that uses `running_pebble`, so that a skip says its reason."""


def own_address() -> str:
    """The loopback address of this process."""
    number = os.getpid()
    return f"127.{1 + (number >> 14) % 254}.{(number >> 7) & 127}.{1 + (number & 127)}"


def free_ports(address: str, count: int) -> list[int]:
    """Ports of `address` that are free, for programs that cannot be given port 0."""
    probes = [socket.create_server((address, 0)) for _ in range(count)]
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


async def fetch(url: str, body: bytes | None = None, *, ca_file: Path | None = None) -> bytes:
    """What a URL answers to a GET, or to a POST of `body`; an error status raises."""
    trust = None if ca_file is None else ssl.create_default_context(cafile=str(ca_file))
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)]

    def ask() -> bytes:
        with urllib.request.build_opener(*handlers).open(url, body, timeout=PATIENCE) as response:
            answer: bytes = response.read()
            return answer

    return await trio.to_thread.run_sync(ask)


@attrs.frozen
class Dns:
    """What Pebble believes of names. Unless told otherwise, every name has the one address 127.0.0.1."""

    management: str

    async def set(self, name: str, *addresses: str) -> None:
        """Give `name` its A records in place of the default."""
        await self._post("add-a", {"host": f"{name}.", "addresses": addresses})

    async def set_ipv6(self, name: str, *addresses: str) -> None:
        """Give `name` AAAA records, which it has none of by default; its A record stays."""
        await self._post("add-aaaa", {"host": f"{name}.", "addresses": addresses})

    async def clear(self, name: str) -> None:
        """Take the records that `set` gave away again."""
        await self._post("clear-a", {"host": f"{name}."})

    async def set_servfail(self, name: str) -> None:
        """Let every question for `name` fail."""
        await self._post("set-servfail", {"host": f"{name}."})

    async def clear_servfail(self, name: str) -> None:
        """Undo `set_servfail`."""
        await self._post("clear-servfail", {"host": f"{name}."})

    async def _post(self, path: str, order: dict[str, object]) -> None:
        await fetch(f"{self.management}/{path}", json.dumps(order).encode())


class Program:
    """A program run by a nursery, and what it said."""

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self.command = command
        self.env = {**{k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}, **env}
        self._said = bytearray()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    def said(self) -> str:
        """All its output so far."""
        return self._said.decode(errors="replace")

    async def start(self, nursery: trio.Nursery, address: str, *ports: int) -> None:
        """Start it and return when it accepts connections on each of `ports` of `address`."""
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        nursery.start_soon(self._run)
        with trio.fail_after(PATIENCE):
            for port in ports:
                while not await self._accepts(address, port):
                    assert not self._ended.is_set(), f"{self.command[0]} ended at once and said:\n{self.said()}"
                    await trio.sleep(0.02)

    async def stop(self) -> None:
        """End it and return when it has ended."""
        self._scope.cancel()
        await self._ended.wait()

    async def _run(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    process: trio.Process = await nursery.start(
                        partial(
                            trio.run_process,
                            self.command,
                            stdout=_PIPE,
                            stderr=_STDOUT,
                            env=self.env,
                            check=False,
                            start_new_session=True,
                        )
                    )
                    assert process.stdout is not None
                    async for chunk in process.stdout:
                        self._said += chunk
        finally:
            self._ended.set()

    @staticmethod
    async def _accepts(address: str, port: int) -> bool:
        try:
            stream = await trio.open_tcp_stream(address, port)
        except OSError:
            return False
        await stream.aclose()
        return True


_PIPE, _STDOUT = -1, -2  # subprocess.PIPE and subprocess.STDOUT


class Pebble:
    """A running Pebble.

    Attributes:
        directory: The URL of its ACME directory.
        ca_file: Whom to trust for Pebble's own TLS (not for what it issues).
        management: The base URL of its management interface, with the same TLS.
        http_port: Where its validation of HTTP-01 connects to, in place of port 80.
        dns: The names it believes in.
    """

    def __init__(self, address: str, ports: tuple[int, int], http_port: int, ca_file: Path, dns: Dns) -> None:
        self.directory = f"https://{address}:{ports[0]}/dir"
        self.management = f"https://{address}:{ports[1]}"
        self.ca_file = ca_file
        self.http_port = http_port
        self.dns = dns
        self._address, self._ports = address, ports

    async def root_pem(self) -> bytes:
        """The root of the certificates it issues; new at every start."""
        return await self.get("roots/0")

    async def get(self, path: str) -> bytes:
        """Something else of its management interface, such as `intermediates/0` or `cert-status-by-serial/<hex>`."""
        return await fetch(f"{self.management}/{path}", ca_file=self.ca_file)

    async def status_of(self, serial: int) -> str:
        """What has become of a certificate: "Valid" or "Revoked"."""
        status: str = json.loads(await self.get(f"cert-status-by-serial/{serial:x}"))["Status"]
        return status

    def said(self) -> str:
        """What it has said so far; it says much, such as `Added order` for each order that it takes."""
        return self._program.said()

    async def restart(self) -> None:
        """End it and start it at the same address with fresh state: no accounts, no orders, another root."""
        await self._program.stop()
        await self._program.start(self._nursery, self._address, *self._ports)

    def _attach(self, nursery: trio.Nursery, program: Program) -> None:
        self._nursery, self._program = nursery, program


@asynccontextmanager
async def running_pebble(
    folder: Path,
    *,
    http_port: int,
    tls_port: int = 443,
    nonce_reject: int = 0,
    validity: int | None = None,
    customers: Mapping[str, str] | None = None,
    blocklist: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[Pebble]:
    """Run Pebble and its DNS as long as the block; skip the test where they are not installed.

    Args:
        folder: For its configuration and certificates; made if need be.
        http_port: The port on which a name's addresses are asked for HTTP-01 answers.
        tls_port: The same for TLS-ALPN-01.
        nonce_reject: How many of a hundred good nonces it refuses.
        customers: Key ids and HMAC keys (base64url) of those who alone may open accounts; None for everybody.
        blocklist: Names for which it issues nothing.
        validity: Seconds for which its certificates are good; None for Pebble's own five years.
        env: More of its environment, such as `{"PEBBLE_AUTHZREUSE": "100"}`.
    """
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (make test installs them)")
    address = own_address()
    directory, management, dns, dns_management = free_ports(address, 4)
    await trio.Path(folder).mkdir(parents=True, exist_ok=True)
    ca_file, certificate, key = folder / "tls-ca.pem", folder / "tls.pem", folder / "tls.key"
    issuer = trustme.CA()
    leaf = issuer.issue_cert(address)
    issuer.cert_pem.write_to_path(ca_file)
    leaf.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    settings: dict[str, object] = {
        "listenAddress": f"{address}:{directory}",
        "managementListenAddress": f"{address}:{management}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": http_port,
        "tlsPort": tls_port,
        "externalAccountBindingRequired": False,
    }
    if customers is not None:
        settings.update(externalAccountBindingRequired=True, externalAccountMACKeys=dict(customers))
    if blocklist:
        settings["domainBlocklist"] = list(blocklist)
    if validity is not None:
        settings["certificateValidityPeriod"] = validity
    config = folder / "pebble.json"
    config.write_text(json.dumps({"pebble": settings}))
    # Pebble would otherwise let every validation wait for some seconds and take half of all names as validated before.
    environment = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_AUTHZREUSE": "0", "PEBBLE_WFE_NONCEREJECT": str(nonce_reject)}
    pebble = Program(
        ["pebble", "-config", str(config), "-dnsserver", f"{address}:{dns}"], {**environment, **(env or {})}
    )
    names = Program(
        [
            "pebble-challtestsrv",
            *("-dns01", f"{address}:{dns}", "-management", f"{address}:{dns_management}"),
            *("-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""),
            *("-http01", "", "-https01", "", "-tlsalpn01", ""),
        ],
        {},
    )
    ca = Pebble(address, (directory, management), http_port, ca_file, Dns(f"http://{address}:{dns_management}"))
    try:
        async with trio.open_nursery() as nursery:
            await names.start(nursery, address, dns, dns_management)
            await pebble.start(nursery, address, directory, management)
            ca._attach(nursery, pebble)
            yield ca
            nursery.cancel_scope.cancel()
    finally:
        for program in (names, pebble):
            print(f"---- {program.command[3]} said:\n{program.said()}")
