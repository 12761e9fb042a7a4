"""The certificate authority of the scene, and its DNS: Pebble and pebble-challtestsrv, each on its own host."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import attrs
import trustme

from tests.e2e.network import Host
from tests.e2e.software import Software, listening, run, running

DIRECTORY, MANAGEMENT, DNS, DNS_MANAGEMENT = 14000, 15000, 53, 8055

WITHOUT_DICE = {"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": "0"}
"""Pebble would otherwise wait for some seconds before it validates, refuse one nonce in twenty, and leave out every
second validation."""


@attrs.frozen
class Names:
    """The scene's DNS. A name that was not set has no address."""

    host: Host

    def set(self, name: str, *addresses: str) -> None:
        """Give `name` its A records."""
        self._post("add-a", {"host": f"{name}.", "addresses": addresses})

    def clear(self, name: str) -> None:
        """Take the A records of `name` away."""
        self._post("clear-a", {"host": f"{name}."})

    def _post(self, path: str, order: dict[str, object]) -> None:
        url = f"http://{self.host.at(DNS_MANAGEMENT)}/{path}"
        run(self.host, "curl", "-sSf", "--data", json.dumps(order), url, check=True)


@attrs.frozen
class Authority:
    """A running Pebble.

    Attributes:
        directory: The URL of its ACME directory.
        tls_ca: The file that holds whom to trust for Pebble's own TLS.
        root: The file that holds the root of the certificates it issues; new at every start.
    """

    directory: str
    tls_ca: Path
    root: Path
    software: Software


@contextlib.contextmanager
def names(host: Host) -> Iterator[Names]:
    """Serve DNS on `host`."""
    command = [
        "pebble-challtestsrv",
        *("-dns01", host.at(DNS), "-management", host.at(DNS_MANAGEMENT)),
        *("-defaultIPv4", "", "-defaultIPv6", ""),
        *("-http01", "", "-https01", "", "-tlsalpn01", ""),
    ]
    with running(host, *command):
        listening(host, DNS, DNS_MANAGEMENT)
        listening(host, DNS, over="udp")
        yield Names(host)


def directory(host: Host, name: str, offset: int = 0) -> str:
    """The URL of the ACME directory that `authority` serves on `host`, called `name`."""
    return f"https://{name}:{host.port(DIRECTORY + offset)}/dir"


@contextlib.contextmanager
def authority(
    host: Host, folder: Path, issuer: trustme.CA, name: str, validate_port: int, offset: int = 0
) -> Iterator[Authority]:
    """Run Pebble on `host`.

    Args:
        host: Where; its DNS must run there too.
        folder: For its files; made if need be.
        issuer: Who vouches for Pebble's own TLS.
        name: What it is called in its directory's URL.
        validate_port: The port that validation of HTTP-01 goes to: 80, or what stands for it.
        offset: What to add to its ports, so that a second one finds room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tls_ca, certificate, key = folder / "tls-ca.pem", folder / "tls.pem", folder / "tls.key"
    leaf = issuer.issue_cert(*dict.fromkeys((name, *host.addresses)))
    issuer.cert_pem.write_to_path(tls_ca)
    leaf.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    management = host.port(MANAGEMENT + offset)
    settings = {
        "listenAddress": f"{host.listen}:{host.port(DIRECTORY + offset)}",
        "managementListenAddress": f"{host.listen}:{management}",
        "certificate": str(certificate),
        "privateKey": str(key),
        "httpPort": validate_port,
        "tlsPort": 443,
        "externalAccountBindingRequired": False,
        "certificateValidityPeriod": 90 * 24 * 3600,
    }
    config = folder / "pebble.json"
    config.write_text(json.dumps({"pebble": settings}))
    command = ["pebble", "-config", str(config), "-dnsserver", host.at(DNS)]
    with running(host, *command, env=WITHOUT_DICE) as software:
        listening(host, DIRECTORY + offset, MANAGEMENT + offset)
        root = folder / "root.pem"
        url = f"https://{host.address}:{management}/roots/0"
        root.write_bytes(run(host, "curl", "-sSf", "--cacert", str(tls_ca), url, check=True).stdout)
        yield Authority(directory(host, name, offset), tls_ca, root, software)
