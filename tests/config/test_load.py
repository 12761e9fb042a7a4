"""Good files: every key, every default, every short form."""

from __future__ import annotations

import ipaddress
import math
import os
import re
import tomllib
from pathlib import Path

import attrs
import pytest

from trioproxy.access import Access
from trioproxy.config.keys import PASSTHROUGH, ROUTE, ROUTE_TIMEOUTS, SITE, SITE_TIMEOUTS
from trioproxy.config.load import SECTIONS, load, parse
from trioproxy.config.model import (
    Acme,
    CertificateFiles,
    Config,
    HostPort,
    Limits,
    Listen,
    Log,
    Passthrough,
    Process,
    Route,
    Site,
    Target,
    Timeouts,
    UpstreamTLS,
)
from trioproxy.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = Path("/etc/trioproxy")


def configuration(text: str) -> Config:
    return parse(text, FOLDER / "config.toml", {}, 0)


def networks(*texts: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


SCENE = """
[acme]
email = "me@myname.com"

[passthrough]                     # TLS goes through untouched; the backend owns its certificate
"pbx.myname.com" = "10.1.2.3"

[sites]                           # TLS ends here; trioproxy obtains and renews the certificates
"cloud.myname.com" = "http://10.2.3.4"
"home.myname.com"  = { "/" = "http://10.2.3.5:8123", "/someservice/" = "http://10.2.3.6/" }
"""


def test_the_scene_in_seven_lines_and_every_default() -> None:
    assert configuration(SCENE) == Config(
        path=FOLDER / "config.toml",
        listen=Listen(
            https=(HostPort("0.0.0.0", 443), HostPort("::", 443)),
            http=(HostPort("0.0.0.0", 80), HostPort("::", 80)),
            https_written=False,
            http_written=False,
            public_https_port=443,
            no_sni="",
            proxy_protocol_from=(),
            trusted_proxies=(),
        ),
        acme=Acme(
            email="me@myname.com",
            directory="https://acme-v02.api.letsencrypt.org/directory",
            ca_file=None,
            key_type="ecdsa-p256",
            staging="https://acme-staging-v02.api.letsencrypt.org/directory",
        ),
        passthrough={
            "pbx.myname.com": Passthrough(
                "pbx.myname.com",
                (HostPort("10.1.2.3", 443),),
                "challenges",
                HostPort("10.1.2.3", 80),
                client_ip="none",
                access=Access(),
            )
        },
        sites={
            "cloud.myname.com": Site("cloud.myname.com", (Route("/", Target("http", "10.2.3.4", 80)),)),
            "home.myname.com": Site(
                "home.myname.com",
                (
                    Route("/someservice/", Target("http", "10.2.3.6", 80, "/")),
                    Route("/", Target("http", "10.2.3.5", 8123)),
                ),
                tls="acme",
                key_type="ecdsa-p256",
                http="redirect",
                alias_of="",
            ),
        },
        timeouts=Timeouts(hello=5, header=10, connect=5, response=300, idle=75, tunnel=3600, drain=30),
        limits=Limits(header_size=32768, header_fields=100, connections=10_000, connections_per_ip=1000),
        storage=Path("/var/lib/trioproxy"),
        control_socket=Path("/var/lib/trioproxy/control.sock"),
        log=Log("info", "console", "-", "console"),
        process=Process(user="", workers=1),
        metrics=None,
    )


DIGITS = "0123456789abcdef" * 4

EVERY_KEY = """
[listen]
https = ["127.0.0.1:8443", "[::1]:8443"]
http = []
public_https_port = 8443
no_sni = "Cloud.myname.com."
proxy_protocol_from = ["10.0.0.1", "2001:db8:1::/64"]
trusted_proxies = ["127.0.0.0/8"]

[acme]
email = "me@MyName.com"
directory = "https://ca.lan:14000/dir"
ca_file = "ca.pem"
key_type = "rsa-2048"

[passthrough."pbx.myname.com"]
to = ["[2001:db8::1]:8443", "pbx2.lan"]
client_ip = "proxy-v2"
http = "all"
http_to = "pbx.lan"
allow = ["lan", "192.0.2.0/24"]
deny = ["192.0.2.66"]

[passthrough."*"]
to = "127.0.0.1:1443"
http = "off"

[sites."cloud.myname.com"]
"/api/" = { to = ["https://10.2.3.7:8000/v1", "h2c://[::1]:50051/v1"], timeouts = { response = "off" } }
"/pve/" = { to = "https://10.0.0.2", verify = "sha256:FINGERPRINT", server_name = "pve.lan", proxy_protocol = "v2" }
"/old/" = { redirect = "https://Other.example/" }
"/" = "unix:/run/app.sock"
hsts = "180d"
timeouts = { header = "3s", connect = "4s", response = "5s", idle = "6s", tunnel = "7s" }
ca_file = "backend.pem"
aliases = ["files.myname.com", "*.Files.myname.com"]
tls = { certificate = "tls/cloud.pem", key = "/etc/ssl/cloud.key" }
key_type = "ecdsa-p384"
http = "serve"
allow = ["2001:db8::/32"]
deny = ["lan"]

[sites."*.apps.myname.com"]
"/" = "http://10.2.3.8"
tls = "internal"
http = "off"

[timeouts]
hello = "1s"
header = "2s"
connect = "500ms"
response = "1.5h"
idle = "2m"
tunnel = "off"
drain = "1d"

[limits]
header_size = "64KiB"
header_fields = 200
connections = 20000
connections_per_ip = 50
memory = "512MiB"

[storage]
path = "store"

[control]
socket = "/run/trioproxy.sock"

[process]
user = "www-data"
workers = 4

[admin]
metrics = "[::1]:9145"

[log]
level = "debug"
format = "json"
access = "access.log"
access_format = "combined"
""".replace("FINGERPRINT", DIGITS)


def test_every_key() -> None:
    config = configuration(EVERY_KEY)
    addresses = (HostPort("127.0.0.1", 8443), HostPort("::1", 8443))
    assert config.listen == Listen(
        addresses,
        (),
        True,
        True,
        8443,
        "cloud.myname.com",
        proxy_protocol_from=networks("10.0.0.1/32", "2001:db8:1::/64"),
        trusted_proxies=networks("127.0.0.0/8"),
    )
    assert config.acme == Acme("me@myname.com", "https://ca.lan:14000/dir", FOLDER / "ca.pem", "rsa-2048")
    assert config.passthrough == {
        "pbx.myname.com": Passthrough(
            "pbx.myname.com",
            (HostPort("2001:db8::1", 8443), HostPort("pbx2.lan", 443)),
            "all",
            HostPort("pbx.lan", 80),
            "proxy-v2",
            Access(allow=networks("192.0.2.0/24"), deny=networks("192.0.2.66/32"), allow_lan=True),
        ),
        "*": Passthrough("*", (HostPort("127.0.0.1", 1443),), "off", HostPort("127.0.0.1", 80)),
    }
    general = Timeouts(1, 2, 0.5, 5400, 120, math.inf, 86400)
    limits = Timeouts(hello=1, header=3, connect=4, response=5, idle=6, tunnel=7, drain=86400)
    cloud = Site(
        "cloud.myname.com",
        (
            Route(
                "/api/",
                (Target("https", "10.2.3.7", 8000, "/v1"), Target("h2c", "::1", 50051, "/v1")),
                timeouts=attrs.evolve(limits, response=math.inf),
                tls=UpstreamTLS(ca_file=FOLDER / "backend.pem"),
            ),
            Route(
                "/pve/",
                Target("https", "10.0.0.2", 443),
                timeouts=limits,
                tls=UpstreamTLS(verify=DIGITS, server_name="pve.lan"),
                proxy_protocol="v2",
            ),
            Route("/old/", (), "https://other.example/", limits),
            Route("/", Target("unix", "/run/app.sock", 0), timeouts=limits),
        ),
        CertificateFiles(FOLDER / "tls/cloud.pem", Path("/etc/ssl/cloud.key")),
        "ecdsa-p384",
        "serve",
        access=Access(allow=networks("2001:db8::/32"), deny_lan=True),
        timeouts=limits,
        hsts=180 * 86400,
    )
    assert config.sites == {
        "cloud.myname.com": cloud,
        "files.myname.com": attrs.evolve(cloud, name="files.myname.com", alias_of="cloud.myname.com"),
        "*.files.myname.com": attrs.evolve(cloud, name="*.files.myname.com", alias_of="cloud.myname.com"),
        "*.apps.myname.com": Site(
            "*.apps.myname.com",
            (Route("/", Target("http", "10.2.3.8", 80), timeouts=general),),
            "internal",
            "rsa-2048",
            "off",
            timeouts=general,
        ),
    }
    assert config.timeouts == general
    assert config.limits == Limits(65536, 200, 20_000, 50, 512 * 1024**2)
    assert config.storage == FOLDER / "store"
    assert config.control_socket == Path("/run/trioproxy.sock")
    assert config.process == Process("www-data", 4)
    assert config.metrics == HostPort("::1", 9145)
    assert config.log == Log("debug", "json", FOLDER / "access.log", "combined")


def test_no_access_log() -> None:
    assert configuration(f'[log]\naccess = ""\n{SCENE}').log.access == ""


def test_port_80_goes_to_the_first_of_several_addresses_by_default() -> None:
    [entry] = configuration('[passthrough]\n"a.b" = { to = ["10.1.2.3:8443", "10.1.2.4"] }').passthrough.values()
    assert entry.http_to == HostPort("10.1.2.3", 80)


def test_an_empty_list_of_who_may_connect_is_everyone() -> None:
    text = '[passthrough]\n"a.b" = { to = "10.1.2.3", allow = [], deny = [] }'
    assert configuration(text).passthrough["a.b"].access.open


def test_an_empty_text_is_as_good_as_none_where_that_is_the_default() -> None:
    empty = (
        '[listen]\nno_sni = ""\n[acme]\nemail = ""\nca_file = ""\n[storage]\npath = ""\n[control]\nsocket = ""\n'
        '[passthrough]\n"a.b" = { to = "10.1.2.3", http_to = "" }'
    )
    assert configuration(empty) == configuration('[passthrough]\n"a.b" = "10.1.2.3"')


def test_a_default_listener_that_was_written_is_known_as_such() -> None:
    entry = '\n[passthrough]\n"a.b" = "10.1.2.3"'
    listen = configuration('[listen]\nhttp = ["0.0.0.0:80", "[::]:80"]' + entry).listen
    assert listen.http == Listen().http
    assert (listen.https_written, listen.http_written) == (False, True)


def test_both_kinds_of_listeners_may_ask_for_a_free_port() -> None:
    text = '[listen]\nhttps = ["127.0.0.1:0"]\nhttp = ["127.0.0.1:0"]\n[passthrough]\n"a.b" = "127.0.0.1:9"'
    listen = configuration(text).listen
    assert listen.https == listen.http == (HostPort("127.0.0.1", 0),)


def test_what_only_looks_like_a_loop_is_none() -> None:
    listen = '[listen]\nhttps = ["192.0.2.1:443", "[::1]:8443"]\nhttp = ["0.0.0.0:80"]\n'
    entries = '[passthrough]\n"a.b" = "127.0.0.1"\n"c.d" = "127.0.0.1:8443"\n[sites]\n"e.f" = "http://[::1]:80"'
    assert len(configuration(listen + entries).passthrough) == 2


@pytest.mark.parametrize(
    ("environ", "euid", "storage"),
    [
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b", "HOME": "/root"}, 0, "/var/lib/a"),
        ({"STATE_DIRECTORY": "/var/lib/a"}, 1000, "/var/lib/a"),
        ({"HOME": "/root", "XDG_DATA_HOME": "/x"}, 0, "/var/lib/trioproxy"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": "/x"}, 1000, "/x/trioproxy"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": "x"}, 1000, "/home/me/.local/share/trioproxy"),
        ({"HOME": "/home/me", "XDG_DATA_HOME": ""}, 1000, "/home/me/.local/share/trioproxy"),
        ({"HOME": "/home/me"}, 1000, "/home/me/.local/share/trioproxy"),
    ],
)
def test_where_keys_are_kept_by_default(environ: dict[str, str], euid: int, storage: str) -> None:
    config = parse(SCENE, Path("config.toml"), environ, euid)
    assert config.storage == Path(storage)
    assert config.control_socket == Path(storage, "control.sock")


def test_a_file_is_read_with_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    file = tmp_path / "config.toml"
    file.write_bytes(b"\xef\xbb\xbf" + SCENE.replace("\n", "\r\n").encode())  # as an editor on Windows saves it
    config = load(file)
    assert config == parse(SCENE, file, os.environ, os.geteuid())
    assert config.storage == tmp_path


def test_the_configuration_of_this_repository() -> None:
    config = load(ROOT / "config.toml")
    assert set(config.passthrough) == {"pbx.localhost"}
    assert config.sites["cloud.localhost"].tls == "internal"
    ports = [address.port for address in (*config.listen.https, *config.listen.http)]
    backends = [address.port for entry in config.passthrough.values() for address in entry.to]
    backends += [entry.http_to.port for entry in config.passthrough.values()]
    backends += [route.to[0].port for site in config.sites.values() for route in site.routes]
    assert len({*ports, *backends}) == len(ports) + len(backends)
    assert max(*ports, *backends) < 32768  # where Linux begins to hand out ports of its own choice


# ---- docs/configuration.md ----------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "configuration.md").read_text()


def blocks() -> list[str]:
    return re.findall(r"^```toml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_shows_the_defaults() -> None:
    name = '[passthrough]\n"a.b" = "10.1.2.3"\n'
    [shown] = [block for block in blocks() if "[timeouts]" in block]
    written, default = configuration(shown + name), configuration(name)
    assert attrs.evolve(written.listen, https_written=False, http_written=False) == default.listen
    assert attrs.evolve(written, listen=default.listen) == default
    document = tomllib.loads(shown)
    assert {section: set(keys) for section, keys in document.items()} == {
        section: set(keys) for section, keys in SECTIONS.items()
    }


def test_the_page_names_every_key_of_an_entry() -> None:
    for key in (*PASSTHROUGH, *SITE, *ROUTE):
        assert f"| `{key}` |" in PAGE


def test_the_page_names_the_limits_that_sites_and_routes_may_have() -> None:
    for keys in (SITE_TIMEOUTS, ROUTE_TIMEOUTS):
        assert ", ".join(f"`{key}`" for key in keys) in PAGE


def test_everything_the_page_shows_can_be_written() -> None:
    for block in blocks():
        configuration(block if "passthrough" in block or "sites" in block else block + '[sites]\n"a.b" = "http://b"')


def test_the_mistakes_that_the_page_shows_are_told_like_that() -> None:
    wrong = (
        "\n" * 8
        + '[sites.cloud.myname.com]\n"/" = "http://b"\n[sites."home.myname.com"]\n"/" = "http://b"\n'
        + '"git.myname.com" = "http://b"\n[sites]\n"*.apps.myname.com" = "http://b"\n[timeouts]\nidle = 75\n\n\n'
        + '[passthrough."pbx.myname.com"]\nto = "127.0.0.1"'
    )
    [shown] = re.findall(r"^```\n(config.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    with pytest.raises(ConfigError) as caught:
        parse(wrong, Path("config.toml"), {}, 0)
    assert caught.value.lines() == shown.splitlines()
