"""The PROXY protocol with others: nginx and HAProxy behind trioproxy, HAProxy and curl before it.

    world   192.0.2.0/24, 2001:db8::/64     client .50   proxy .1   front .7   guarded .2
    home    10.1.2.0/24                     proxy .1     guarded .2     backend .3

Clients come to `proxy` themselves; `guarded` is a second one, which takes PROXY headers from the front.

The backend has no IPv6: what it hears of a client that comes by IPv6 it hears over IPv4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trustme

from tests.conftest import needs
from tests.e2e.client import Client
from tests.e2e.network import Host, Plan, network
from tests.e2e.proxy import Trioproxy
from tests.e2e.receivers import certificate, front, haproxy, nginx
from tests.e2e.software import Software, run
from trioproxy.config.model import HostPort

pytestmark = needs("nginx", "haproxy", "curl", "ip", "ss", "setpriv")

HOSTS = (
    Plan("client", ("192.0.2.50/24", "2001:db8::50/64")),
    Plan("front", ("192.0.2.7/24", "2001:db8::7/64")),
    Plan("proxy", ("192.0.2.1/24", "10.1.2.1/24", "2001:db8::1/64")),
    Plan("guarded", ("192.0.2.2/24", "10.1.2.2/24", "2001:db8::2/64")),
    Plan("backend", ("10.1.2.3/24",)),
)

PROXY = {4: "192.0.2.1", 6: "2001:db8::1"}
GUARDED = "192.0.2.2"
CLIENT = {4: "192.0.2.50", 6: "2001:db8::50"}
FRONT = {4: "192.0.2.7", 6: "2001:db8::7"}

RECEIVERS = ("nginx", "haproxy")
PORTS = {"nginx": 443, "haproxy": 8443}
FORMS = ("v1", "v2")
NAMES = {(receiver, form): f"{receiver}-{form}.myname.com" for receiver in RECEIVERS for form in FORMS}

CONFIGURATION = "".join(
    f'[passthrough."{name}"]\nto = "10.1.2.3:{PORTS[receiver]}"\nclient_ip = "proxy-{form}"\n'
    for (receiver, form), name in NAMES.items()
)

PLAIN, WRONG = "plain.myname.com", "wrong.myname.com"
"""Names for `trioproxy probe`: neither backend gets a header, and the second one wants one."""

PROBED = f"""
[passthrough]
"{PLAIN}" = "10.1.2.3:9443"
"{WRONG}" = "10.1.2.3:{PORTS["haproxy"]}"
"""

WITHOUT, WITH_V1, WITH_V2 = 1443, 2443, 3443
"""Ports of the front that pass a connection on without a header, with one of version 1, and of version 2."""


@attrs.frozen
class Net:
    """The network and its receivers."""

    hosts: dict[str, Host]
    folder: Path
    issuer: Path
    receivers: dict[str, Software]

    def client_of(self, host: str) -> Client:
        """A client of the proxy on `host`."""
        return Client(self.hosts["client"], self.hosts[host], self.issuer)

    def trioproxy(self, host: str, folder: str = "") -> Trioproxy:
        """A trioproxy for `host`, with its files in a folder of that name or of another one."""
        return Trioproxy(self.hosts[host], self.folder / (folder or host), "https://127.0.0.1/directory", self.issuer)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    folder = tmp_path_factory.mktemp("proxy-protocol")
    with network(HOSTS) as made:
        if made.refused:
            pytest.skip(f"these tests need hosts with addresses of their own: {made.refused}")
        issuer = trustme.CA()
        root = folder / "root.pem"
        issuer.cert_pem.write_to_path(str(root))
        pem = certificate(issuer, folder, *NAMES.values(), PLAIN)
        backend = made.hosts["backend"]
        with (
            nginx(backend, folder / "nginx", pem, PORTS["nginx"], proxy_protocol=True) as first,
            haproxy(backend, folder / "haproxy", pem, PORTS["haproxy"]) as second,
            nginx(backend, folder / "plain", pem, 9443),
        ):
            yield Net(made.hosts, folder, root, {"nginx": first, "haproxy": second})


# ---- receivers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(net: Net) -> Iterator[Net]:
    """The proxy runs, and clients come to it directly."""
    proxy = net.trioproxy("proxy")
    proxy.configure(CONFIGURATION)
    with proxy.serving():
        yield net


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("receiver", RECEIVERS)
def test_the_backend_answers_to_and_logs_the_client_itself(behind: Net, receiver: str, form: str, version: int) -> None:
    name = NAMES[receiver, form]
    software = behind.receivers[receiver]
    mark = software.mark()
    client = behind.client_of("proxy")
    answer = client.get("https", name, "/", "--write-out", "%{local_port}", address=PROXY[version])
    told, port = answer.text.split()
    assert told == CLIENT[version]
    line = software.wait_for("^client=", since=mark)
    assert f"client={told} port={port} " in line


def test_version_2_tells_the_name_and_an_id_that_no_other_connection_has(behind: Net) -> None:
    name = NAMES["haproxy", "v2"]
    software = behind.receivers["haproxy"]
    ids = set()
    for _ in range(2):
        mark = software.mark()
        behind.client_of("proxy").get("https", name, "/")
        line = software.wait_for("^client=", since=mark)
        found = re.search(r"name=(\S+) id=([0-9A-F]+)$", line)
        assert found, line
        assert found[1] == name
        ids.add(found[2])
    assert len(ids) == 2


def test_large_answers_come_whole_behind_a_header(behind: Net) -> None:
    for receiver in RECEIVERS:
        answers = behind.client_of("proxy").get("https", NAMES[receiver, "v2"], "/[1-50]", "--parallel").body
        assert answers.count(CLIENT[4].encode() + b"\n") == 50


# ---- which header? ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "status", "accepted", "advice"),
    [
        (PLAIN, 0, ["none"], "none"),
        (WRONG, 1, ["proxy-v1", "proxy-v2"], "proxy-v2"),
        *((name, 0, ["proxy-v1", "proxy-v2"], f"proxy-{form}") for (_, form), name in NAMES.items()),
    ],
)
def test_probe_finds_out(net: Net, name: str, status: int, accepted: list[str], advice: str) -> None:
    proxy = net.trioproxy("proxy", "probed")
    proxy.configure(PROBED + CONFIGURATION)
    done = proxy.run("probe", name, "--json")
    found = json.loads(done.stdout)
    assert [form["form"] for form in found["backends"][0]["forms"] if form["accepted"]] == accepted
    assert (found["client_ip"], done.returncode) == (advice, status)


# ---- senders ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def between(net: Net) -> Iterator[Net]:
    """The proxy takes PROXY headers from the front, and from nobody else."""
    proxy = net.trioproxy("guarded")
    proxy.configure(CONFIGURATION, listen='proxy_protocol_from = ["192.0.2.7"]')
    ways = ((WITHOUT, ""), (WITH_V1, "send-proxy"), (WITH_V2, "send-proxy-v2"))
    with proxy.serving(), front(net.hosts["front"], net.folder / "front", f"{GUARDED}:443", *ways):
        yield net


def through_the_front(net: Net, port: int, version: int, *options: str) -> list[str]:
    """The curl command that asks HAProxy behind the proxy, by way of a port of the front."""
    name = NAMES["haproxy", "v2"]
    there = HostPort(FRONT[version], port)
    return net.client_of("front").command(
        "https", name, "/", *options, "--connect-to", f"{name}:443:{there}", address=FRONT[version]
    )


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("port", [WITH_V1, WITH_V2], ids=["v1", "v2"])
def test_a_load_balancer_before_us_tells_who_calls(between: Net, port: int, version: int) -> None:
    asked = run(between.hosts["client"], *through_the_front(between, port, version), check=True)
    assert asked.stdout.decode().strip() == CLIENT[version]


@pytest.mark.parametrize("version", [4, 6])
def test_curl_tells_who_calls(between: Net, version: int) -> None:
    """The front adds nothing here: the header that reaches the proxy from the front's address is curl's."""
    asked = run(
        between.hosts["client"], *through_the_front(between, WITHOUT, version, "--haproxy-protocol"), check=True
    )
    assert asked.stdout.decode().strip() == CLIENT[version]


def test_the_front_without_a_header_is_refused(between: Net) -> None:
    asked = run(between.hosts["client"], *through_the_front(between, WITHOUT, 4))
    assert asked.returncode == 35, "the connection ends within the TLS handshake"


@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_header_from_anybody_else_is_refused(between: Net, scheme: str) -> None:
    name = NAMES["nginx", "v2"]
    client = between.client_of("guarded")
    receiver = between.receivers["nginx"]
    mark = receiver.mark()
    direct = client.get(scheme, name, "/")
    assert direct.status == (200 if scheme == "https" else 308)
    if scheme == "https":
        receiver.wait_for("^client=", since=mark)
    mark = receiver.mark()
    asked = run(between.hosts["client"], *client.command(scheme, name, "/", "--haproxy-protocol"))
    assert asked.returncode != 0 or b"400" in asked.stdout
    assert "client=" not in receiver.said(since=mark)


def test_plain_http_takes_headers_from_the_front_as_well(between: Net) -> None:
    name = NAMES["nginx", "v2"]
    url = f"http://{name}/"
    command = [
        "curl",
        "-sS",
        "--max-time",
        "10",
        "--resolve",
        f"{name}:80:{GUARDED}",
        "--write-out",
        "%{http_code}",
        url,
    ]
    with_header = run(between.hosts["front"], *command, "--haproxy-protocol", check=True)
    assert with_header.stdout.decode() == "308"
    assert run(between.hosts["front"], *command).returncode != 0
