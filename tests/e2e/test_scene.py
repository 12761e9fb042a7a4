"""The scene end to end, on real parts: curl and openssl as clients, nginx, certbot, Pebble."""

from __future__ import annotations

import hashlib
import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from tests.conftest import needs
from tests.e2e.backend import PATTERN
from tests.e2e.client import Answer
from tests.e2e.scene import CLOUD, GONE, LOST, PBX, PROGRAMS, UNKNOWN, Scene
from tests.e2e.software import eventually, run

pytestmark = needs(*PROGRAMS)


def seen(answer: Answer) -> dict[str, Any]:
    """What the cloud's backend says it saw, field names in lower case."""
    assert answer.status == 200, answer.text
    said: dict[str, Any] = json.loads(answer.body)
    said["fields"] = {name.lower(): value for name, value in said["fields"]}
    return said


def issued_by_pebble(stage: Scene, name: str) -> x509.Certificate | None:
    """The certificate of a handshake for `name`, if Pebble issued it."""
    certificate = stage.client.certificate(name)
    return certificate if "Pebble" in certificate.issuer.rfc4514_string() else None


@pytest.fixture(scope="module")
def cloud_certificate(stage: Scene) -> x509.Certificate:
    """The certificate that Pebble issued for the cloud, once it has."""
    return eventually(lambda: issued_by_pebble(stage, CLOUD), f"Pebble's certificate for {CLOUD}")


def test_the_scene_has_hosts_of_its_own(stage: Scene) -> None:
    if stage.network.refused:
        pytest.skip(f"no network namespaces ({stage.network.refused}): the scene was played on loopback addresses")
    unreachable = run(stage.host("client"), "curl", "-sS", "--max-time", "2", f"http://{stage.host('pbx').at(80)}/")
    assert unreachable.returncode, "a client reaches the pbx without the proxy: the scene shows nothing"


# ---- the pbx: passthrough --------------------------------------------------------------------------------


def test_the_pbx_shows_the_certificate_that_certbot_got_through_port_80(stage: Scene) -> None:
    own = x509.load_pem_x509_certificate((stage.pbx.live / "cert.pem").read_bytes())
    shown = stage.client.certificate(PBX)
    assert shown.fingerprint(hashes.SHA256()) == own.fingerprint(hashes.SHA256())
    assert "Pebble" in shown.issuer.rfc4514_string()
    assert stage.client.get("https", PBX, "/a%2Fb?c=d").text == "the pbx itself: /a%2Fb?c=d\n"


def test_the_proxy_never_held_the_key_of_the_pbx(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    held = {
        public_half(pem)
        for file in stage.proxy.storage.rglob("*")
        if file.is_file()
        for pem in re.findall(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*-----", file.read_bytes(), re.S)
    }
    own = cloud_certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert own in held, "the keys in the storage folder were not found"
    assert public_half((stage.pbx.live / "privkey.pem").read_bytes()) not in held
    assert PBX not in stage.proxy.run("certs", "list").stdout.decode()


def public_half(pem: bytes) -> bytes:
    key = load_pem_private_key(pem.replace(b"\\n", b"\n"), password=None)  # as JSON writes line ends
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_the_pbx_fetches_its_own_token_through_the_proxy(stage: Scene) -> None:
    stage.pbx.publish(".freepbx-known/b0a1", "a token of the firewall")
    answer = stage.pbx_client.get("http", PBX, "/.freepbx-known/b0a1?now=1%2C2")
    assert (answer.status, answer.text) == (200, "a token of the firewall")
    assert answer.fields["x-seen-host"] == stage.pbx_client.authority("http", PBX)
    assert answer.fields["x-seen-uri"] == "/.freepbx-known/b0a1?now=1%2C2"
    assert answer.fields["x-seen-client"] == stage.host("pbx").address


def test_port_80_of_the_pbx_redirects_all_but_its_challenges(stage: Scene) -> None:
    stage.pbx.publish(".well-known/acme-challenge/Zm9v", "an answer of the pbx")
    assert stage.client.get("http", PBX, "/.well-known/acme-challenge/Zm9v").text == "an answer of the pbx"
    assert stage.client.get("http", PBX, "/.well-known/acme-challenge/none").status == 404
    redirected = stage.client.get("http", PBX, "/admin?x=%20")
    assert (redirected.status, redirected.fields["location"]) == (
        308,
        stage.client.url("https", PBX, "/admin?x=%20"),
    )


# ---- the cloud: a site -----------------------------------------------------------------------------------


def test_the_cloud_has_a_certificate_that_the_proxy_got(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    names = cloud_certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [CLOUD]
    assert stage.client.get("https", CLOUD, "/").status == 200  # and curl verified it
    listed = stage.proxy.run("certs", "list").stdout.decode()
    assert CLOUD in listed


def test_the_backend_sees_the_true_address(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    made_up = (
        "--header",
        "X-Forwarded-For: 1.2.3.4",
        "--header",
        "X-Real-IP: 1.2.3.4",
        "--header",
        "Forwarded: for=1.2.3.4",
    )
    request = seen(stage.client.get("https", CLOUD, "/x?y", *made_up))
    client, authority = stage.host("client").address, stage.client.authority("https", CLOUD)
    fields = request["fields"]
    assert (request["method"], request["path"]) == ("GET", "/x?y")
    assert fields["host"] == authority
    assert (fields["x-forwarded-for"], fields["x-real-ip"]) == (client, client)
    assert (fields["x-forwarded-proto"], fields["x-forwarded-host"]) == ("https", authority)
    assert fields["x-forwarded-port"] == str(stage.host("proxy").port(443))
    assert f"for={client}" in fields["forwarded"]
    assert "1.2.3.4" not in json.dumps(request)


def test_the_backend_sees_the_true_ipv6_address(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    if stage.network.refused:
        pytest.skip("the scene has no IPv6 addresses on loopback")
    server, client = stage.host("proxy").addresses[2], stage.host("client").addresses[1]
    fields = seen(stage.client.get("https", CLOUD, "/", address=f"[{server}]"))["fields"]
    assert (fields["x-forwarded-for"], fields["x-real-ip"]) == (client, client)
    assert f'for="[{client}]"' in fields["forwarded"]


def test_a_target_with_a_path_replaces_the_prefix(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    request = seen(stage.client.get("https", CLOUD, "/app/x?y"))
    assert (request["path"], request["fields"]["x-forwarded-prefix"]) == ("/x?y", "/app")


def test_bodies_pass_both_ways_unchanged(stage: Scene, cloud_certificate: x509.Certificate, tmp_path: Path) -> None:
    size = 3_000_000
    body = (PATTERN * (size // len(PATTERN) + 1))[:size]
    assert stage.client.get("https", CLOUD, f"/big?bytes={size}").body == body
    file = tmp_path / "body"
    file.write_bytes(body)
    digest = hashlib.sha256(body).hexdigest()
    for extra in ([], ["--header", "Transfer-Encoding: chunked"]):
        request = seen(stage.client.get("https", CLOUD, "/upload", "--upload-file", str(file), *extra))
        assert (request["method"], request["length"], request["sha256"]) == ("PUT", size, digest)


def test_a_websocket_goes_through(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    program = [sys.executable, str(Path(__file__).with_name("echo.py")), "talk"]
    proxy = stage.host("proxy")
    where = [proxy.address, str(proxy.port(443)), stage.client.authority("https", CLOUD), "/echo"]
    talked = run(stage.host("client"), *program, *where, str(stage.client.trust), "one", "two", check=True)
    assert talked.stdout == b"one\ntwo\n"


def test_a_client_that_leaves_ends_its_request(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    with stage.client.download("https", CLOUD, "/hold/the-line") as download:
        assert download.line() == b"begin\n"
    stage.backend.wait_for("left /hold/the-line", patience=5)


def test_port_80_of_the_cloud_redirects_all_but_challenges(stage: Scene) -> None:
    redirected = stage.client.get("http", CLOUD, "/a%2Fb?c", "--data", "body")
    assert redirected.status == 308
    assert redirected.fields["location"] == stage.client.url("https", CLOUD, "/a%2Fb?c")
    token = "/.well-known/acme-challenge/not-ours"
    request = seen(stage.client.get("http", CLOUD, token))
    assert (request["path"], request["fields"]["x-forwarded-proto"]) == (token, "http")


# ---- names that lead nowhere -----------------------------------------------------------------------------


def test_an_unknown_name_gets_the_alert_that_says_so(stage: Scene) -> None:
    assert "SSL alert number 112" in stage.client.handshake(UNKNOWN)  # unrecognized_name
    assert stage.client.get("http", UNKNOWN, "/").status == 404


def test_no_name_gets_the_alert_that_asks_for_one(stage: Scene) -> None:
    assert "SSL alert number 109" in stage.client.handshake("")  # missing_extension


# ---- what breaks stays alone -----------------------------------------------------------------------------


def test_what_was_out_of_reach_from_the_start_stops_nothing_else(
    stage: Scene, cloud_certificate: x509.Certificate
) -> None:
    eventually(lambda: issued_by_pebble(stage, LOST), f"Pebble's certificate for {LOST}")
    with stage.client.download("https", GONE, "/") as hopeless:
        assert stage.client.get("https", LOST, "/").status == 502
        assert stage.client.get("https", CLOUD, "/").status == 200
        assert stage.client.get("https", PBX, "/").status == 200
        assert hopeless.status() != 0
    assert stage.client.get("https", CLOUD, "/").status == 200


def test_a_pbx_that_goes_away_stops_nothing_else_and_may_come_back(
    stage: Scene, cloud_certificate: x509.Certificate
) -> None:
    stage.pbx.stop()
    try:
        with stage.client.download("https", PBX, "/") as refused:
            assert refused.status() != 0
        assert stage.client.get("http", PBX, "/.freepbx-known/x").status == 502
        assert stage.client.get("https", CLOUD, "/").status == 200
    finally:
        stage.pbx.start()
    assert stage.client.get("https", PBX, "/").status == 200


def test_a_backend_name_may_stop_resolving_and_resolve_again(stage: Scene, cloud_certificate: x509.Certificate) -> None:
    if stage.network.refused:
        pytest.skip("on loopback the machine's own resolver is asked, which has none of the scene's names")

    def status() -> int:
        return stage.client.get("https", CLOUD, "/fickle/bye").status  # a backend that keeps no connection alive

    assert status() == 502
    stage.names.set("fickle.lan", stage.host("cloud").address)
    eventually(lambda: status() == 200, "the name resolves")
    stage.names.clear("fickle.lan")
    eventually(lambda: status() == 502, "the name, which may be remembered for some seconds, is forgotten")
    assert stage.client.get("https", CLOUD, "/").status == 200


# ---- renewal ---------------------------------------------------------------------------------------------


def test_a_forced_renewal_reaches_the_next_handshake_and_no_download(
    stage: Scene, cloud_certificate: x509.Certificate
) -> None:
    before = stage.client.certificate(CLOUD)
    others = stage.client.certificate(LOST)
    with stage.client.download("https", CLOUD, "/stream/renewal") as download:
        assert download.line() == b"begin\n"
        renewed = stage.proxy.run("certs", "renew", CLOUD, "--force")
        assert renewed.returncode == 0, (renewed.stdout + renewed.stderr).decode()
        after = issued_by_pebble(stage, CLOUD)
        assert after is not None
        assert after.serial_number != before.serial_number
        assert after.public_key() != before.public_key()
        assert stage.client.get("https", CLOUD, "/finish/renewal").status == 200
        assert download.line() == b"end\n"
        assert (download.line(), download.status()) == (b"", 0)
    assert stage.client.certificate(LOST) == others


def test_a_second_server_names_the_first(stage: Scene, tmp_path: Path) -> None:
    second = stage.twin(tmp_path)
    refused = second.run("serve")
    said = (refused.stdout + refused.stderr).decode()
    assert refused.returncode == 1, said
    assert re.search(rf"\b{second.host.port(443)} is held by \S+ \(pid {stage.server.pid}\)", said), said
    assert stage.server.running


def test_a_bad_file_is_refused_by_a_reload(stage: Scene) -> None:
    good = stage.proxy.config.read_text()
    mark = stage.server.mark()
    stage.proxy.config.write_text(f'{good}\n[sites."cloud2.myname.com"]\n"/" = "gopher://x"\n')
    try:
        stage.server.signal(signal.SIGHUP)
        line = len(good.splitlines()) + 3
        stage.server.wait_for(rf"config\.toml:{line}\b", since=mark)
    finally:
        stage.proxy.config.write_text(good)
    stage.server.signal(signal.SIGHUP)
    stage.server.wait_for(r"INFO +reloaded", since=mark)
    assert stage.client.get("https", PBX, "/").status == 200


def test_nothing_of_all_this_was_a_bug(stage: Scene) -> None:
    said = stage.server.said()
    assert "Traceback" not in said, said
    assert "a bug" not in said, said
