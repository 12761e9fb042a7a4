"""acme2certifier, a CA of others, for tests: it has renewal information and profiles, which Pebble lacks.

`make acme2certifier` installs it into an environment of its own (it brings half a hundred packages along) and runs the
tests that use it; elsewhere they are skipped. It signs with OpenSSL's CA that is made here, believes every challenge,
and listens without TLS on a loopback address, as `directory` allows on this machine itself.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from tests.pebble import Program, free_ports, own_address

PYTHON = Path(os.environ.get("ACME2CERTIFIER_PYTHON", Path(__file__).parent.parent / ".work/acme2certifier/bin/python"))
"""The interpreter that has it."""

needs_acme2certifier = pytest.mark.skipif(not PYTHON.exists(), reason="not installed: make acme2certifier does that")

SERVE = """
import sys
from socketserver import ThreadingMixIn
from wsgiref.simple_server import WSGIServer, make_server
from acme2certifier.share.acme2certifier_wsgi import application, get_handler_cls
class Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
make_server(sys.argv[1], int(sys.argv[2]), application, Server, get_handler_cls()).serve_forever()
"""

CONFIG = """
[DEFAULT]
debug: False
[Nonce]
[CAhandler]
handler_module: acme2certifier.cahandlers.openssl_ca_handler
issuing_ca_key: {folder}/ca.key
issuing_ca_cert: {folder}/ca.crt
issuing_ca_crl: {folder}/ca.crl
cert_save_path: {folder}/certificates
cert_validity_days: 30
[DBhandler]
handler_module: acme2certifier.dbhandlers.wsgi_handler
dbfile: {folder}/acme.db
[Certificate]
[Challenge]
challenge_validation_disable: True
[Order]
profiles: {profiles}
[Renewalinfo]
{renewal}
[Directory]
tos_url: http://{address}/terms
"""


@asynccontextmanager
async def running_acme2certifier(folder: Path, profiles: dict[str, str], renewal: str = "") -> AsyncIterator[str]:
    """Run it as long as the block; the URL of its directory.

    Args:
        folder: For its files; made if need be.
        profiles: What it offers, and where each is described.
        renewal: Lines of its `[Renewalinfo]`; without any it suggests the last 15 % of a lifetime.
    """
    address = own_address()
    (port,) = free_ports(address, 1)
    await trio.Path(folder / "certificates").mkdir(parents=True)
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Issuing CA")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(days=1), now + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()))
    (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    config = folder / "acme_srv.cfg"
    config.write_text(CONFIG.format(folder=folder, address=address, profiles=json.dumps(profiles), renewal=renewal))
    environment = {
        "ACME_SRV_CONFIGFILE": str(config),
        "ACME2CERTIFIER_BASE_DIR": str(folder),
        "ACME2CERTIFIER_I_KNOW_THE_RISK": "1",
        "PYTHONUNBUFFERED": "1",
    }
    program = Program([str(PYTHON), "-c", SERVE, address, str(port)], environment)
    try:
        async with trio.open_nursery() as nursery:
            await program.start(nursery, address, port)
            yield f"http://{address}:{port}/directory"
            nursery.cancel_scope.cancel()
    finally:
        print(f"---- acme2certifier said:\n{program.said()}")
