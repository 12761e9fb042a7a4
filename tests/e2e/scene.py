"""The scene: a home with a pbx and a cloud behind one address, a client in the world, and a certificate authority.

    world   192.0.2.0/24, 2001:db8::/64     client .50   proxy .1   spare .2   ca .9
    home    10.1.2.0/24                     proxy .1   spare .2   pbx .3   cloud .4   ca .9

One cable joins all, but client and pbx have no address in the same net: what one gets from the other went through
the proxy. The proxy's namespace is the home's router as far as the pbx knows. `spare` is a second proxy's host, for
tests that stop, break or reload theirs.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import trustme

from tests.e2e.authority import Authority, Names, authority, directory, names
from tests.e2e.client import Client
from tests.e2e.network import Host, Network, Plan, network
from tests.e2e.pbx import Pbx
from tests.e2e.proxy import Trioproxy
from tests.e2e.software import Software, listening, run, running

PBX, CLOUD = "pbx.myname.com", "cloud.myname.com"
GONE, LOST, SPARE = "gone.myname.com", "lost.myname.com", "spare.myname.com"
UNKNOWN = "unknown.myname.com"

ECHO = 8000
"""The port of the WebSocket service."""

NOBODY = "10.1.2.99"
"""An address of the home where there is no host."""

DNS = "10.1.2.9"

HOSTS = (
    Plan("client", ("192.0.2.50/24", "2001:db8::50/64")),
    Plan("proxy", ("192.0.2.1/24", "10.1.2.1/24", "2001:db8::1/64"), nameserver=DNS),
    Plan("spare", ("192.0.2.2/24", "10.1.2.2/24", "2001:db8::2/64"), nameserver=DNS),
    Plan("pbx", ("10.1.2.3/24",), gateway="10.1.2.1", nameserver=DNS),
    Plan("cloud", ("10.1.2.4/24",)),
    Plan("ca", ("10.1.2.9/24", "192.0.2.9/24")),
)

PROGRAMS = ("pebble", "pebble-challtestsrv", "nginx", "certbot", "curl", "openssl", "ss", "setpriv")
"""What must be installed."""

CONFIGURATION = """
[passthrough]
"{PBX}" = {{ to = "{pbx_tls}", http_to = "{pbx_http}" }}
"{GONE}" = "{nobody}"

[sites]
"{LOST}" = "http://nowhere.invalid"

[sites."{CLOUD}"]
"/" = "http://{cloud}"
"/app/" = "http://{cloud}/"
"/echo" = "http://{echo}"
"/fickle/" = "http://fickle.lan/"
"""


@attrs.frozen
class Scene:
    """Everything that runs."""

    network: Network
    folder: Path
    names: Names
    authority: Authority
    issuer: trustme.CA
    pbx: Pbx
    proxy: Trioproxy
    server: Software
    backend: Software

    def host(self, name: str) -> Host:
        return self.network.hosts[name]

    @property
    def client(self) -> Client:
        """A client of the proxy, out in the world."""
        return Client(self.host("client"), self.host("proxy"), self.authority.root)

    @property
    def pbx_client(self) -> Client:
        """The pbx, when it asks for its own public name."""
        return Client(self.host("pbx"), self.host("proxy"), self.authority.root)

    @property
    def spare_client(self) -> Client:
        """A client of the spare host, out in the world."""
        return Client(self.host("client"), self.host("spare"), self.authority.root)

    @property
    def cloud(self) -> str:
        """The address and port of the cloud's HTTP."""
        return self.host("cloud").at(80)

    def finish(self, stream: str) -> None:
        """Let a stream of the cloud end, without any proxy."""
        run(self.host("cloud"), "curl", "-sSf", f"http://{self.cloud}/finish/{stream}", check=True)

    def twin(self, folder: Path) -> Trioproxy:
        """A second trioproxy for the proxy's own host and ports, with the same configuration and storage of its own."""
        twin = Trioproxy(self.host("proxy"), folder, self.authority.directory, self.authority.tls_ca)
        twin.config.write_text(self.proxy.config.read_text().replace(str(self.proxy.storage), str(twin.storage)))
        return twin

    def spare(self, folder: Path, offset: int = 0) -> Trioproxy:
        """A trioproxy to be run on the spare host; its CA is the Pebble that `second_authority` starts at `offset`."""
        ca = self.host("ca")
        url = directory(ca, _called(self.network, "ca"), offset)
        return Trioproxy(self.host("spare"), folder, url, self.authority.tls_ca)

    def second_authority(self, offset: int) -> contextlib.AbstractContextManager[Authority]:
        """Another Pebble, which validates on the spare host's port 80."""
        called = _called(self.network, "ca")
        port = self.host("spare").port(80)
        return authority(self.host("ca"), self.folder / f"ca-{offset}", self.issuer, called, port, offset)


def _called(net: Network, host: str) -> str:
    """How a host is called in configurations: by a name of the scene's DNS, which nobody asks on loopback."""
    return net.hosts[host].address if net.refused else f"{host}.lan"


@contextlib.contextmanager
def scene(folder: Path) -> Iterator[Scene]:
    """Build the scene, with its proxy running and the pbx certified; take it down at the end."""
    with contextlib.ExitStack() as stack:
        net = stack.enter_context(network(HOSTS))
        proxy_host, spare, pbx_host, cloud, ca = (net.hosts[n] for n in ("proxy", "spare", "pbx", "cloud", "ca"))
        dns = stack.enter_context(names(ca))
        for name in (PBX, CLOUD, GONE, LOST):
            dns.set(name, proxy_host.address)
        dns.set(SPARE, spare.address)
        dns.set("cloud.lan", cloud.address)
        dns.set("ca.lan", ca.address)
        issuer = trustme.CA()
        called = _called(net, "ca")
        pebble = stack.enter_context(authority(ca, folder / "ca", issuer, called, proxy_host.port(80)))

        here = Path(__file__).parent
        program = [sys.executable, str(here / "backend.py"), cloud.listen, str(cloud.port(80))]
        backend = stack.enter_context(running(cloud, *program))
        program = [sys.executable, str(here / "echo.py"), "serve", cloud.listen, str(cloud.port(ECHO))]
        stack.enter_context(running(cloud, *program))
        listening(cloud, 80, ECHO)

        pbx = Pbx(pbx_host, folder / "pbx", PBX)
        stack.callback(pbx.stop)
        pbx.start()

        proxy = Trioproxy(proxy_host, folder / "proxy", pebble.directory, pebble.tls_ca)
        proxy.configure(
            CONFIGURATION.format(
                PBX=PBX,
                GONE=GONE,
                CLOUD=CLOUD,
                LOST=LOST,
                pbx_tls=pbx_host.at(443),
                pbx_http=pbx_host.at(80),
                nobody=NOBODY if not net.refused else f"127.76.0.99:{pbx_host.port(443)}",
                cloud=f"{_called(net, 'cloud')}:{cloud.port(80)}",
                echo=f"{_called(net, 'cloud')}:{cloud.port(ECHO)}",
            ),
            drain="1s",
        )
        server = stack.enter_context(proxy.serving())
        pbx.certify(pebble)
        yield Scene(net, folder, dns, pebble, issuer, pbx, proxy, server, backend)
