"""Starting, stopping and changing a trioproxy, on the scene's spare host."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from cryptography import x509

from tests.conftest import needs
from tests.e2e.client import Client
from tests.e2e.proxy import Trioproxy
from tests.e2e.scene import PROGRAMS, SPARE, UNKNOWN, Scene
from tests.e2e.software import eventually

pytestmark = needs(*PROGRAMS)

NO_AUTHORITY = 500
"""At this offset no Pebble runs, unless a test starts one."""


def internal(stage: Scene) -> str:
    """The spare site, with a certificate that needs nobody."""
    return f'[sites."{SPARE}"]\ntls = "internal"\n"/" = "http://{stage.cloud}"\n'


def by_acme(stage: Scene) -> str:
    """The spare site, with a certificate of the CA."""
    return f'[sites."{SPARE}"]\n"/" = "http://{stage.cloud}"\n'


def catch_all(stage: Scene) -> str:
    """Everything else goes to the pbx, which stands for the old nginx."""
    pbx = stage.host("pbx")
    return f'[passthrough."*"]\nto = "{pbx.at(443)}"\nhttp_to = "{pbx.at(80)}"\n'


def issuer(client: Client, name: str) -> str:
    return client.certificate(name).issuer.rfc4514_string()


@pytest.fixture
def proxy(stage: Scene, tmp_path: Path) -> Trioproxy:
    """A trioproxy for the spare host, whose CA does not answer."""
    return stage.spare(tmp_path, NO_AUTHORITY)


def test_a_site_is_served_by_the_internal_ca_until_its_certificate_is_there(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(by_acme(stage))
    client = stage.spare_client
    with proxy.serving() as server:
        stand_in = client.certificate(SPARE)
        assert "trioproxy" in stand_in.issuer.rfc4514_string().lower()
        names = stand_in.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.DNSName) == [SPARE]
        assert client.get("https", SPARE, "/", "--insecure").status == 200
        server.wait_for(rf"ERROR +{SPARE}\b.*{re.escape(proxy.directory)}")
        with stage.second_authority(NO_AUTHORITY) as authority:
            renewed = proxy.run("certs", "renew", SPARE)
            assert renewed.returncode == 0, (renewed.stdout + renewed.stderr).decode()
            trusting = Client(client.host, client.server, authority.root)
            assert trusting.get("https", SPARE, "/").status == 200
            own = client.certificate(SPARE)
    with proxy.serving():
        assert client.certificate(SPARE) == own, "it was kept, and is there at the start with no CA in reach"


def test_a_certificate_can_be_had_without_a_server(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(by_acme(stage))
    with stage.second_authority(NO_AUTHORITY) as authority:
        renewed = proxy.run("certs", "renew", SPARE)
        assert renewed.returncode == 0, (renewed.stdout + renewed.stderr).decode()
    client = Client(stage.host("client"), stage.host("spare"), authority.root)
    with proxy.serving():
        assert client.get("https", SPARE, "/").status == 200


def test_beside_a_catch_all_a_site_waits_for_its_certificate(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(by_acme(stage) + catch_all(stage))
    client = stage.spare_client
    old = stage.client.certificate("pbx.myname.com")
    with proxy.serving():
        assert client.certificate(SPARE) == old
        with stage.second_authority(NO_AUTHORITY):
            renewed = proxy.run("certs", "renew", SPARE)
            assert renewed.returncode == 0, (renewed.stdout + renewed.stderr).decode()
        assert "Pebble" in issuer(client, SPARE)
        assert client.certificate(SPARE) != old


def test_a_reload_brings_a_catch_all_and_takes_it_away_again(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(internal(stage))
    client = stage.spare_client
    old = stage.client.certificate("pbx.myname.com")
    refused = "SSL alert number 112"
    with proxy.serving() as server, client.download("https", SPARE, "/stream/reload", "--insecure") as download:
        assert download.line() == b"begin\n"
        assert refused in client.handshake(UNKNOWN)
        proxy.configure(internal(stage) + catch_all(stage))
        server.signal(signal.SIGHUP)
        eventually(lambda: refused not in client.handshake(UNKNOWN), "the catch-all takes unknown names")
        assert client.certificate(UNKNOWN) == old
        proxy.configure(internal(stage))
        server.signal(signal.SIGHUP)
        eventually(lambda: refused in client.handshake(UNKNOWN), "unknown names are refused again")
        stage.finish("reload")
        assert download.line() == b"end\n"
        assert (download.line(), download.status()) == (b"", 0)


def test_a_drain_lets_a_download_finish(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(internal(stage), drain="20s")
    client = stage.spare_client
    with proxy.serving() as server, client.download("https", SPARE, "/stream/drain", "--insecure") as download:
        assert download.line() == b"begin\n"
        server.signal(signal.SIGTERM)
        eventually(lambda: "onnection refused" in client.handshake(SPARE), "no new connection is accepted")
        assert server.running
        stage.finish("drain")
        assert download.line() == b"end\n"
        assert (download.line(), download.status()) == (b"", 0)
        assert server.wait() == 0
        assert "Traceback" not in server.said()


def test_a_drain_ends_at_its_time(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(internal(stage), drain="2s")
    client = stage.spare_client
    with proxy.serving() as server, client.download("https", SPARE, "/stream/never", "--insecure") as download:
        assert download.line() == b"begin\n"
        begun = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.wait(12) == 0
        assert time.monotonic() - begun >= 2
        assert download.status() != 0, "a body that was cut off looks whole"
        assert "Traceback" not in server.said()


def test_a_second_sigterm_stops_at_once(stage: Scene, proxy: Trioproxy) -> None:
    proxy.configure(internal(stage), drain="60s")
    client = stage.spare_client
    with proxy.serving() as server, client.download("https", SPARE, "/stream/ever", "--insecure") as download:
        assert download.line() == b"begin\n"
        server.signal(signal.SIGTERM)
        eventually(lambda: "onnection refused" in client.handshake(SPARE), "no new connection is accepted")
        server.signal(signal.SIGTERM)
        server.wait(10)
        assert download.status() != 0
