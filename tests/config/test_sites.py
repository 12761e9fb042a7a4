"""What routes take over from their site, and where redirects lead."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from trioproxy.config.load import parse
from trioproxy.config.model import DEFAULT_TLS, Route, Site, Target, Timeouts, UpstreamTLS
from trioproxy.errors import ConfigError


def sites(text: str) -> dict[str, Site]:
    return dict(parse(text, Path("/etc/trioproxy/config.toml"), {}, 0).sites)


def routes(text: str) -> dict[str, Route]:
    return {route.prefix: route for route in sites(f'[sites."a.b"]\n{text}')["a.b"].routes}


# ---- limits of time -----------------------------------------------------------------------------------


def test_limits_of_a_route_win_over_those_of_its_site_and_those_over_the_general_ones() -> None:
    text = (
        '[timeouts]\nhello = "1s"\nconnect = "1s"\nresponse = "1s"\nidle = "1s"\n'
        '[sites]\n"c.d" = "http://b"\n'
        '[sites."a.b"]\naliases = ["x.y"]\ntimeouts = { header = "2s", response = "2s", idle = "2s" }\n'
        '"/" = "http://b"\n"/slow/" = { to = "http://b", timeouts = { idle = "off" } }\n"/old/" = { redirect = "/" }'
    )
    general = Timeouts(hello=1, connect=1, response=1, idle=1)
    own = Timeouts(hello=1, header=2, connect=1, response=2, idle=2)
    found = sites(text)
    assert found["c.d"].timeouts == found["c.d"].routes[0].timeouts == general
    for name in ("a.b", "x.y"):
        assert found[name].timeouts == own
        by_prefix = {route.prefix: route.timeouts for route in found[name].routes}
        slow = Timeouts(hello=1, header=2, connect=1, response=2, idle=math.inf)
        assert by_prefix == {"/": own, "/slow/": slow, "/old/": own}


def test_limits_may_be_a_table_with_a_header() -> None:
    text = (
        '[sites."a.b"."/"]\nto = "http://b"\n[sites."a.b"."/".timeouts]\ntunnel = "1d"\n'
        '[sites."a.b".timeouts]\nidle = "1m"'
    )
    site = sites(text)["a.b"]
    assert site.timeouts == Timeouts(idle=60)
    assert site.routes[0].timeouts == Timeouts(idle=60, tunnel=86400)


# ---- what https backends must prove -------------------------------------------------------------------

PIN = "ab" * 32


@pytest.mark.parametrize(
    ("site", "route", "tls"),
    [
        ("", "", DEFAULT_TLS),
        ("verify = false", "", UpstreamTLS(verify=False)),
        ("verify = false", "verify = true", DEFAULT_TLS),
        ('ca_file = "/ca.pem"', "", UpstreamTLS(ca_file=Path("/ca.pem"))),
        ('ca_file = "/ca.pem"', 'ca_file = "other.pem"', UpstreamTLS(ca_file=Path("/etc/trioproxy/other.pem"))),
        # Who says how to verify says it whole: the site's other half would contradict.
        ('ca_file = "/ca.pem"', "verify = false", UpstreamTLS(verify=False)),
        ('ca_file = "/ca.pem"', "verify = true", DEFAULT_TLS),
        ('ca_file = "/ca.pem"', f'verify = "sha256:{PIN}"', UpstreamTLS(verify=PIN)),
        ("verify = false", 'ca_file = "/ca.pem"', UpstreamTLS(ca_file=Path("/ca.pem"))),
        (
            'server_name = "b.lan"\nca_file = "/ca.pem"',
            f'verify = "sha256:{PIN}"',
            UpstreamTLS(verify=PIN, server_name="b.lan"),
        ),
        ('server_name = "b.lan"', 'server_name = "c.lan"', UpstreamTLS(server_name="c.lan")),
        ('server_name = ""\nca_file = ""', 'server_name = ""\nca_file = ""', DEFAULT_TLS),
    ],
)
def test_a_site_s_terms_are_the_default_of_its_routes(site: str, route: str, tls: UpstreamTLS) -> None:
    terms = "".join(f", {line}" for line in route.splitlines())
    text = f'{site}\n"/" = {{ to = "https://10.2.3.4"{terms} }}\n"/plain/" = "http://10.2.3.5"'
    found = routes(text)
    assert found["/"].tls == tls
    assert found["/plain/"].tls == DEFAULT_TLS


def test_a_list_may_mix_schemes_and_its_terms_are_for_the_https_ones() -> None:
    found = routes('"/" = { to = ["h2c://b", "https://b", "http://b", "unix:/run/b"], verify = false }')
    assert [to.scheme for to in found["/"].to] == ["h2c", "https", "http", "unix"]
    assert found["/"].tls == UpstreamTLS(verify=False)


@pytest.mark.parametrize("scheme", ["http://b", "https://b", "h2c://b", "unix:/run/b"])
def test_every_backend_may_get_proxy_headers(scheme: str) -> None:
    assert routes(f'"/" = {{ to = "{scheme}", proxy_protocol = "v1" }}')["/"].proxy_protocol == "v1"
    assert routes(f'"/" = {{ to = "{scheme}", proxy_protocol = "" }}')["/"].proxy_protocol == ""


def test_a_site_that_is_one_target() -> None:
    [site] = sites('[sites]\n"a.b" = "unix:/run/app.sock"').values()
    assert site.routes == (Route("/", Target("unix", "/run/app.sock", 0)),)


@pytest.mark.parametrize(("written", "seconds"), [("", 0), ("1d", 86400)])
def test_how_long_browsers_use_https_alone(written: str, seconds: float) -> None:
    assert sites(f'[sites."a.b"]\n"/" = "http://b"\nhsts = "{written}"')["a.b"].hsts == seconds


# ---- redirects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        '[sites."a.b"]\n"/" = { redirect = "/new/" }\n"/new/" = "http://b"',
        '[sites."a.b"]\n"/a/" = { redirect = "/b/b/x/" }\n"/b/" = { redirect = "/" }',  # the same route twice, and out
        '[sites."a.b"]\n"/old/" = { redirect = "/gone" }',
        '[sites]\n"a.b" = { "/" = { redirect = "https://www.a.b" } }\n"www.a.b" = "http://b"',
        '[sites]\n"a.b" = { "/" = { redirect = "https://a.b:8443" } }',
        '[sites]\n"a.b" = { "/" = { redirect = "http://a.b" }, http = "off" }',
        '[sites]\n"a.b" = { "/" = { redirect = "https://elsewhere.example/" } }',
        '[sites]\n"a.b" = { "/" = { redirect = "https://[2001:db8::1]/" } }',
        '[passthrough]\n"p.b" = "10.1.2.3"\n[sites]\n"a.b" = { "/" = { redirect = "https://p.b/" } }',
    ],
)
def test_redirects_that_arrive(text: str) -> None:
    assert any(route.redirect for route in sites(text)["a.b"].routes)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[sites]\n"a.b" = { "/" = { redirect = "http://a.b" } }', 2),
        ('[sites]\n"a.b" = { "/" = { redirect = "http://a.b" }, http = "serve" }', 2),
        ('[listen]\npublic_https_port = 8443\n[sites]\n"a.b" = { "/" = { redirect = "https://a.b:8443/" } }', 4),
        # Below the prefix another route takes over, and the prefix itself goes round.
        (
            '[sites."a.b"]\n"/a" = { redirect = "/b" }\n"/b" = { redirect = "/a" }\n'
            '"/a/" = "http://b"\n"/b/" = "http://b"',
            2,
        ),
        ('[sites."a.b"]\n"/a/" = { redirect = "/a" }', 2),
        ('[sites."a.b"]\n"/" = { redirect = "/new" }\n"/x" = "http://b"', 2),
    ],
)
def test_redirects_that_never_arrive(text: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        sites(text)
    first = caught.value.mistakes[0]
    assert (first.line, first.key.rpartition(".")[2]) == (line, "redirect")
    assert "leads back here" in first.problem


def test_a_path_below_or_at_a_prefix_is_covered() -> None:
    to = Target("http", "b", 80)
    assert all(Route("/api", to).covers(path) for path in ("/api", "/api/", "/api/x"))
    assert not any(Route("/api", to).covers(path) for path in ("/", "/ap", "/apis", "/x/api"))
    assert not Route("/api/", to).covers("/api")
    assert Route("/", to).covers("/x")
