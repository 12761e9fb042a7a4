"""What a client sees of a trioproxy: curl's answers, and the certificates of handshakes by openssl."""

from __future__ import annotations

import re
from pathlib import Path

import attrs
from cryptography import x509

from tests.e2e.network import Host
from tests.e2e.software import Software, run

PORTS = {"https": 443, "http": 80}


@attrs.frozen
class Answer:
    """An HTTP response: status, fields with names in lower case, body."""

    status: int
    fields: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


@attrs.frozen
class Client:
    """Asks the trioproxy on `server` from `host`, and trusts the root in `trust`."""

    host: Host
    server: Host
    trust: Path

    def authority(self, scheme: str, name: str) -> str:
        """What stands in the URL, and in the Host field, for `name`."""
        port = self.server.port(PORTS[scheme])
        return name if port == PORTS[scheme] else f"{name}:{port}"

    def url(self, scheme: str, name: str, path: str) -> str:
        return f"{scheme}://{self.authority(scheme, name)}{path}"

    def command(self, scheme: str, name: str, path: str, *options: str, address: str = "") -> list[str]:
        """The curl command that asks for it, at `address` or else the server's first."""
        port = self.server.port(PORTS[scheme])
        # On loopback the source address is the only thing that tells one host from another.
        source = [] if self.host.isolated else ["--interface", self.host.address]
        known = f"{name}:{port}:{address or self.server.address}"
        return [
            *("curl", "-sS", "-N", "--max-time", "30", "--cacert", str(self.trust), "--resolve", known),
            *(*source, *options, self.url(scheme, name, path)),
        ]

    def get(self, scheme: str, name: str, path: str, *options: str, address: str = "") -> Answer:
        """The answer to a request; curl's options may make it another than GET."""
        command = self.command(scheme, name, path, "--include", *options, address=address)
        rest = run(self.host, *command, check=True).stdout
        status = 100
        while status < 200:
            head, _, rest = rest.partition(b"\r\n\r\n")
            first, *lines = head.decode("latin-1").split("\r\n")
            status = int(first.split()[1])
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(status, fields, rest)

    def download(self, scheme: str, name: str, path: str, *options: str) -> Download:
        """A download under way; what has come so far can be read from it."""
        return Download(Software(self.host, *self.command(scheme, name, path, *options), apart=True))

    def handshake(self, name: str) -> str:
        """All that openssl says about a handshake for `name`."""
        options = ["-servername", name] if name else ["-noservername"]
        bind = [] if self.host.isolated else ["-bind", f"{self.host.address}:0"]
        done = run(self.host, "openssl", "s_client", "-connect", self.server.at(443), *bind, *options)
        return (done.stdout + done.stderr).decode(errors="replace")

    def certificate(self, name: str) -> x509.Certificate:
        """The certificate that a handshake for `name` shows."""
        said = self.handshake(name)
        found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", said, re.DOTALL)
        assert found, f"no certificate for {name}:\n{said}"
        return x509.load_pem_x509_certificate(found[0].encode())


class Download:
    """curl, in the middle of it."""

    def __init__(self, software: Software) -> None:
        self._software = software

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self._software.stop()

    def line(self) -> bytes:
        """The next line of the body, waited for; b"" at the end."""
        assert self._software.output is not None
        return self._software.output.readline()

    def status(self) -> int:
        """curl's exit status, once it has ended: 0 only for a whole body."""
        return self._software.wait()
