"""`client_ip = "transparent"` in a network of its own: a plain nginx sees its clients, and knows nothing of a proxy.

    world   192.0.2.0/24, 2001:db8::/64       client .50   proxy .1
    home    10.1.2.0/24, fd00:1::/64          proxy .1     backend .3

The proxy is the backend's gateway, as transparent mode asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs
import pytest
import trustme

from tests.conftest import needs
from tests.e2e.client import Client
from tests.e2e.network import Host, Plan, network
from tests.e2e.proxy import Trioproxy
from tests.e2e.receivers import certificate, nginx
from tests.e2e.software import Software, eventually, run

pytestmark = needs("nginx", "curl", "ip", "nft", "ss", "setpriv", "openssl")

BOTH, FOUR, SIX = "both.myname.com", "four.myname.com", "six.myname.com"

HOSTS = (
    Plan("client", ("192.0.2.50/24", "2001:db8::50/64")),
    Plan("proxy", ("192.0.2.1/24", "10.1.2.1/24", "2001:db8::1/64", "fd00:1::1/64")),
    Plan("backend", ("10.1.2.3/24", "fd00:1::3/64"), gateway="10.1.2.1"),
)

IPV4, IPV6 = "192.0.2.1", "2001:db8::1"
"""Where clients find the proxy."""

CLIENT = {IPV4: "192.0.2.50", IPV6: "2001:db8::50"}
"""As whom they come."""

CONFIGURATION = f"""
[passthrough."{BOTH}"]
to = ["10.1.2.3", "[fd00:1::3]"]
client_ip = "transparent"

[passthrough."{FOUR}"]
to = "10.1.2.3"
client_ip = "transparent"

[passthrough."{SIX}"]
to = "[fd00:1::3]"
client_ip = "transparent"
"""


RULE = (
    "add table inet t; add chain inet t c { type filter hook prerouting priority 0; }; "
    "add rule inet t c socket transparent 1 accept"
)


@attrs.frozen
class Home:
    """The network, with a backend in it and nothing set up on the proxy's host."""

    client: Client
    proxy: Trioproxy
    backend: Software
    gateway: Host

    def set_up(self) -> None:
        """What the user does: `trioproxy transparent-setup | sh`."""
        commands = self.proxy.run("transparent-setup")
        assert commands.returncode == 0, commands.stderr
        script = self.proxy.storage.parent / "setup.sh"
        script.write_bytes(commands.stdout)
        run(self.gateway, "sh", str(script), check=True)

    def undo(self) -> None:
        """What the end of those commands says."""
        commands = self.proxy.run("transparent-setup").stdout.decode()
        lines = re.findall(r"^#   (.*)$", commands.partition("# To undo it:")[2], re.MULTILINE)
        assert lines
        run(self.gateway, "sh", "-ec", "\n".join(lines), check=True)

    def warnings(self) -> str:
        """What `trioproxy check` says beside its table."""
        return self.proxy.run("check").stdout.decode().partition("\n\n")[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("transparent")
    with network(HOSTS) as net:
        if net.refused:
            pytest.skip(f"transparent mode needs network namespaces: {net.refused}")
        if refused := run(net.hosts["proxy"], "nft", "--check", RULE).stderr.decode():
            pytest.skip(f"this kernel does not know transparent sockets in nftables: {refused}")
        client, proxy, backend = (net.hosts[name] for name in ("client", "proxy", "backend"))
        run(backend, "ip", "-6", "route", "add", "default", "via", "fd00:1::1", check=True)
        issuer = trustme.CA()
        root = folder / "root.pem"
        issuer.cert_pem.write_to_path(str(root))
        trioproxy = Trioproxy(proxy, folder / "proxy", "https://127.0.0.1/directory", root)
        trioproxy.configure(CONFIGURATION)
        pem = certificate(issuer, folder, BOTH, FOUR, SIX)
        with nginx(backend, folder / "nginx", pem) as software:
            yield Home(Client(client, proxy, root), trioproxy, software, proxy)


@pytest.fixture
def ready(home: Home) -> Iterator[Home]:
    """The same, set up."""
    home.set_up()
    yield home
    home.undo()


@pytest.mark.parametrize("address", [IPV4, IPV6])
def test_a_plain_backend_logs_the_client_itself(ready: Home, address: str) -> None:
    mark = ready.backend.mark()
    with ready.proxy.serving():
        assert ready.client.get("https", BOTH, "/", address=address).text.strip() == CLIENT[address]
    ready.backend.wait_for(rf"^client={re.escape(CLIENT[address])} .*name={BOTH}", since=mark)


def test_large_answers_come_through_whole(ready: Home) -> None:
    """Every packet of the backend must find its way here, not just the first."""
    with ready.proxy.serving():
        for address in (IPV4, IPV6):
            answers = ready.client.get("https", BOTH, "/[1-50]", "--parallel", address=address).body
            assert answers.count(CLIENT[address].encode()) == 50


@pytest.mark.parametrize(
    ("name", "address", "its", "theirs"), [(FOUR, IPV6, "IPv4", "IPv6"), (SIX, IPV4, "IPv6", "IPv4")]
)
def test_a_client_of_the_other_family_is_refused_and_not_disguised(
    ready: Home, name: str, address: str, its: str, theirs: str
) -> None:
    mark = ready.backend.mark()
    with ready.proxy.serving() as server:
        refused = run(ready.client.host, *ready.client.command("https", name, "/", address=address))
        assert refused.returncode == 35, "TLS was refused"
        assert b"internal error" in refused.stderr
        server.wait_for(rf"WARNING.*{name}: .* has only {its}, and the client's own address is {theirs}.*proxy-v2")
    assert "client=" not in ready.backend.said(since=mark)


def test_without_the_capability_the_log_says_what_to_do(ready: Home) -> None:
    unprivileged = ["setpriv", "--bounding-set", "-net_raw,-net_admin"]
    with ready.proxy.serving(*unprivileged) as server:
        assert run(ready.client.host, *ready.client.command("https", FOUR, "/")).returncode == 35
        server.wait_for(rf"WARNING.*{FOUR}: .*run it as root, or give it CAP_NET_RAW")


def test_what_the_backend_says_to_others_is_left_alone(ready: Home) -> None:
    """A host that reaches the backend through this machine, as its gateway, gets its answers."""
    client, gateway = ready.client.host, ready.gateway
    run(gateway, "sysctl", "-qw", "net.ipv4.ip_forward=1", check=True)
    run(client, "ip", "route", "add", "10.1.2.3", "via", IPV4, check=True)
    try:
        with ready.proxy.serving():
            assert ready.client.get("https", FOUR, "/", address="10.1.2.3").text.strip() == CLIENT[IPV4]
            assert ready.client.get("https", FOUR, "/").text.strip() == CLIENT[IPV4]
    finally:
        run(client, "ip", "route", "delete", "10.1.2.3", check=True)


def test_a_kernel_that_looks_senders_up_by_their_mark_is_told_by_check(ready: Home) -> None:
    """wg-quick sets this, and then every answer of a backend is dropped as if somebody had made it up."""
    assert "src_valid_mark" not in ready.warnings()
    ready.proxy.configure(CONFIGURATION, connect="1s")
    run(ready.gateway, "sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=1", check=True)
    try:
        assert "src_valid_mark is 1" in ready.warnings()
        with ready.proxy.serving():
            assert run(ready.client.host, *ready.client.command("https", FOUR, "/")).returncode == 35
            run(ready.gateway, "sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=0", check=True)
            assert ready.client.get("https", FOUR, "/").text.strip() == CLIENT[IPV4]
    finally:
        run(ready.gateway, "sysctl", "-qw", "net.ipv4.conf.all.src_valid_mark=0", check=True)
        ready.proxy.configure(CONFIGURATION)


# ---- before it is set up ------------------------------------------------------------------------------


def test_check_tells_what_is_missing_and_then_no_more(home: Home) -> None:
    before = home.warnings()
    for lacking in ("the nft rules", *(f"the IPv{v} {what}" for v in (4, 6) for what in ("rule", "route"))):
        assert lacking in before
    home.set_up()
    home.set_up()
    try:
        after = home.warnings()
        assert "lacks" not in after
        assert f"{FOUR}: clients that come by IPv6 will be refused" in after
        assert f"{SIX}: clients that come by IPv4 will be refused" in after
        assert f"{BOTH}: clients" not in after
    finally:
        home.undo()
    assert home.warnings() == before


@pytest.mark.parametrize(
    ("broken", "lacking"),
    [
        ("nft delete element inet trioproxy backends4 '{ 10.1.2.3 . 443 }'", "the nft rule for 10.1.2.3:443"),
        ("nft delete table inet trioproxy", "the nft rules that mark"),
        ("ip -6 rule del fwmark 0x7470 lookup 7470", "the IPv6 rule"),
        ("ip -4 route flush table 7470", "the IPv4 route in table 7470"),
    ],
)
def test_check_tells_each_part_that_is_missing(home: Home, broken: str, lacking: str) -> None:
    home.set_up()
    try:
        run(home.gateway, "sh", "-ec", broken, check=True)
        sentence = next(line for line in home.warnings().splitlines() if "do not work yet" in line)
        assert f"lacks {lacking}" in sentence
        assert sentence.count("the IPv") + sentence.count("the nft") == 1
        home.set_up()
        assert "do not work yet" not in home.warnings()
    finally:
        home.undo()


def test_without_the_rules_the_client_is_told_within_the_limit(home: Home) -> None:
    home.proxy.configure(CONFIGURATION, connect="1s")
    try:
        with home.proxy.serving() as server:
            assert run(home.client.host, *home.client.command("https", FOUR, "/")).returncode == 35
            server.wait_for(rf"WARNING.*{FOUR}: .*10\.1\.2\.3:443")
    finally:
        home.proxy.configure(CONFIGURATION)


def test_the_backends_own_clients_see_no_difference(home: Home) -> None:
    """Setting it up and taking it down again leaves nothing behind."""
    rules = [run(home.gateway, "ip", f"-{v}", "rule", check=True).stdout for v in (4, 6)]
    home.set_up()
    home.undo()
    assert [run(home.gateway, "ip", f"-{v}", "rule", check=True).stdout for v in (4, 6)] == rules
    assert run(home.gateway, "nft", "list", "ruleset", check=True).stdout == b""
    eventually(lambda: not run(home.gateway, "ip", "route", "show", "table", "7470").stdout, "the table is empty")
