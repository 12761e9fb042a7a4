"""What a reload is about to do, in words."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from trioproxy.config.difference import Changed, Difference, Named, compare, needs_raw
from trioproxy.config.load import parse
from trioproxy.config.model import Config

BASE = """\
[acme]
email = "me@myname.com"
[passthrough]
"pbx.myname.com" = "10.1.2.3"
[sites]
"cloud.myname.com" = "http://10.2.3.4"
[sites."home.myname.com"]
"/" = "http://10.2.3.5:8123"
"/old/" = { redirect = "/new/" }
"""


def read(text: str) -> Config:
    return parse(text, Path("config.toml"), {"HOME": "/home/me"}, 1000)


def between(old: str, new: str) -> Difference:
    return compare(read(old), read(new))


def changed(*replacements: tuple[str, str], more: str = "") -> Difference:
    text = BASE
    for what, by in replacements:
        assert what in text
        text = text.replace(what, by)
    return between(BASE, text + more)


def test_the_same_file_changes_nothing() -> None:
    found = between(BASE, BASE)
    assert not found
    assert found.lines() == []


def test_names_come_and_go() -> None:
    found = changed(('"cloud.myname.com" = "http://10.2.3.4"', '"git.myname.com" = "http://10.2.3.9"'))
    assert found.added == (Named("git.myname.com", "site", "/ -> http://10.2.3.9"),)
    assert found.removed == (Named("cloud.myname.com", "site", "/ -> http://10.2.3.4"),)
    assert found.changed == ()
    assert found.lines() == [
        "+ site git.myname.com: / -> http://10.2.3.9",
        "- site cloud.myname.com",
        "~ certificate git.myname.com: by ACME, asked for if the store has none",
    ]


def test_a_name_that_becomes_a_site_goes_and_comes() -> None:
    moved = BASE.replace('"pbx.myname.com" = "10.1.2.3"\n', "").replace(
        "[sites]\n", '[sites]\n"pbx.myname.com" = "http://10.1.2.3"\n'
    )
    found = between(BASE, moved)
    assert [(n.kind, n.name) for n in found.added] == [("site", "pbx.myname.com")]
    assert [(n.kind, n.name) for n in found.removed] == [("passthrough", "pbx.myname.com")]


def test_an_alias_says_what_it_stands_for() -> None:
    found = changed(('"/" = "http://10.2.3.5:8123"', 'aliases = ["www.myname.com"]\n"/" = "http://10.2.3.5:8123"'))
    assert found.added == (Named("www.myname.com", "site", "alias of home.myname.com"),)


@pytest.mark.parametrize(
    ("what", "by", "name", "said"),
    [
        ('"10.1.2.3"', '{ to = ["10.1.2.3", "10.1.2.4"] }', "pbx",
         ("to: 10.1.2.3:443 becomes 10.1.2.3:443, 10.1.2.4:443",)),
        ('"10.1.2.3"', '{ to = "10.1.2.3", client_ip = "proxy-v2" }', "pbx", ("client_ip: none becomes proxy-v2",)),
        ('"10.1.2.3"', '{ to = "10.1.2.3", allow = ["lan"] }', "pbx", ("allow or deny",)),
        ("http://10.2.3.5:8123", "http://10.2.3.6", "home", ("route /: http://10.2.3.5:8123 becomes http://10.2.3.6",)),
        ('{ redirect = "/new/" }', '"http://b"', "home", ("route /old/: redirect to /new/ becomes http://b",)),
        ('"/old/"', '"/older/"', "home", ("route /old/ goes", "route /older/ comes: redirect to /new/")),
        ('"http://10.2.3.5:8123"', '{ to = "http://10.2.3.5:8123", proxy_protocol = "v1" }', "home",
         ("route /: proxy_protocol: nothing becomes v1",)),
        ('"http://10.2.3.5:8123"', '{ to = "http://10.2.3.5:8123", timeouts = { response = "off" } }', "home",
         ("route /: timeouts.response: 300 s becomes off",)),
        ('"/" = "http://10.2.3.5:8123"', 'http = "off"\nhsts = "1d"\n"/" = "http://10.2.3.5:8123"', "home",
         ("http: redirect becomes off", "hsts: 0 s becomes 86400 s")),
    ],
)  # fmt: skip
def test_what_is_new_about_a_name_that_stays(what: str, by: str, name: str, said: tuple[str, ...]) -> None:
    found = changed((what, by))
    kind = "passthrough" if name == "pbx" else "site"
    assert found == Difference(changed=(Changed(f"{name}.myname.com", kind, said),))


def test_what_backends_must_prove() -> None:
    with_tls = BASE.replace("http://10.2.3.4", "https://10.2.3.4")
    found = between(with_tls, with_tls.replace('"https://10.2.3.4"', '{ "/" = "https://10.2.3.4", verify = false }'))
    assert found.changed == (Changed("cloud.myname.com", "site", ("route /: what its backends must prove",)),)


def test_what_all_names_inherit_is_told_once() -> None:
    found = changed(
        ('email = "me@myname.com"', 'email = "me@myname.com"\nkey_type = "rsa-2048"\n[timeouts]\nidle="9s"')
    )
    assert found == Difference(
        settings=("acme.key_type: ecdsa-p256 becomes rsa-2048", "timeouts.idle: 75 s becomes 9 s")
    )


def test_a_route_that_follows_no_more_is_told() -> None:
    own = 'timeouts = { idle = "9s" }\n"/" = "http://10.2.3.5:8123"'
    found = changed(('"/" = "http://10.2.3.5:8123"', own))
    [home] = found.changed
    assert "timeouts.idle: 75 s becomes 9 s" in home.what
    assert not found.settings


def test_listeners() -> None:
    found = between('[listen]\nhttp = ["127.0.0.1:80"]\n' + BASE, '[listen]\nhttps = ["127.0.0.1:444"]\n' + BASE)
    assert found.opened == ("https 127.0.0.1:444", "http 0.0.0.0:80", "http [::]:80")
    assert found.closed == ("https 0.0.0.0:443", "https [::]:443", "http 127.0.0.1:80")
    assert not found.settings


def test_writing_the_defaults_down_changes_nothing() -> None:
    assert not between(BASE, '[listen]\nhttps = ["0.0.0.0:443", "[::]:443"]\n' + BASE)


def test_settings() -> None:
    found = changed(("[acme]", '[log]\nlevel = "debug"\naccess = ""\n[limits]\nconnections = 5\n'
                     '[admin]\nmetrics = "127.0.0.1:9145"\n[listen]\nno_sni = "*"\n[acme]'),
                    more='[passthrough."*"]\nto = "10.9.9.9"\n')  # fmt: skip
    assert found.settings == (
        "listen.no_sni: nothing becomes *",
        "limits.connections: 10000 becomes 5",
        "log.level: info becomes debug",
        "log.access: - becomes nothing",
        "admin.metrics: nothing becomes 127.0.0.1:9145",
    )


def test_no_secret_is_told() -> None:
    eab = 'eab = { key_id = "me", hmac_key = "c2VjcmV0LXNlY3JldC1zZWNyZXQ" }'
    found = changed(("[acme]", f'[acme]\n{eab}\non_renew = ["curl", "--oauth2", "token"]'))
    assert found.settings == ("acme.eab", "acme.on_renew")


def test_certificates() -> None:
    files = '{ certificate = "/x.pem", key = "/x.key" }'
    found = changed(('"/" = "http://10.2.3.5:8123"', f'tls = {files}\n"/" = "http://10.2.3.5:8123"'),
                    ("[acme]", '[acme]\ndirectory = "https://ca.test/"'))  # fmt: skip
    assert found.certificates == (
        "home.myname.com: from /x.pem; it was by ACME before",
        "renewals: by https://ca.test/ from now on",
    )


def test_what_needs_a_restart() -> None:
    found = changed(("[acme]", '[storage]\npath = "/srv/tp"\n[process]\nuser = "nobody"\nworkers = 2\n[acme]'))
    assert found.restart == (
        "storage.path: /home/me/.local/share/trioproxy becomes /srv/tp",
        "control.socket: /home/me/.local/share/trioproxy/control.sock becomes /srv/tp/control.sock",
        "process.user: nothing becomes nobody",
        "process.workers: 1 becomes 2",
    )
    assert found.lines()[-1] == "! process.workers: 1 becomes 2: needs a restart, and stays as it was until then"


def test_the_first_transparent_name_needs_a_restart_where_root_was_given_up() -> None:
    dropped = '[process]\nuser = "nobody"\n' + BASE
    transparent = dropped.replace('"10.1.2.3"', '{ to = "10.1.2.3", client_ip = "transparent" }')
    assert needs_raw(read(transparent))
    assert not needs_raw(read(dropped))
    assert any("CAP_NET_RAW" in text for text in between(dropped, transparent).restart)
    assert not between(transparent, transparent.replace("10.2.3.4", "10.2.3.7")).restart


def test_every_setting_is_compared() -> None:
    """Whatever is added to the model later must show here, or a reload would do it in silence."""
    told = {"listen", "acme", "passthrough", "sites", "timeouts", "limits", "storage", "control_socket", "log",
            "process", "metrics"}  # fmt: skip
    assert {field.name for field in attrs.fields(Config)} - {"path", "text"} == told


def test_with_a_user_to_become_the_store_is_roots_whoever_reads_the_file() -> None:
    assert read('[process]\nuser = "nobody"\n' + BASE).storage == Path("/var/lib/trioproxy")
    assert read(BASE).storage == Path("/home/me/.local/share/trioproxy")
