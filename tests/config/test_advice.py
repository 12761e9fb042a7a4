"""Warnings: each is said when it is due, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from trioproxy.config.advice import warnings
from trioproxy.config.load import parse

SITE = '[sites]\n"a.myname.com" = "http://10.2.3.4"\n'
INTERNAL = '[sites."a.myname.com"]\n"/" = "http://10.2.3.4"\ntls = "internal"\n'
EMAIL = '[acme]\nemail = "me@myname.com"\n'
BAN = (
    'with client_ip = "none" the backend sees this machine\'s address as that of every client. If it runs fail2ban or '
    "the like, that would ban this machine and with it everybody: set client_ip to a form that the backend "
    "understands, or tell it to ignore this machine's address"
)
NO_ISSUE = 'no public CA issues certificates for such names: set tls = "internal"'


def advice(text: str) -> list[str]:
    return warnings(parse(text, Path("config.toml"), {}, 0))


@pytest.mark.parametrize(
    "text",
    [
        EMAIL + SITE,
        INTERNAL,
        '[acme]\ndirectory = "https://ca.lan/"\nemail = "me@myname.com"\n[sites]\n"nas.lan" = "http://10.2.3.4"',
        INTERNAL
        + 'hsts = "1d"\n"/api/" = { to = ["https://b", "h2c://c", "http://d"] }\n"/old/" = { redirect = "/" }\n',
        '[listen]\nhttp = []\n[timeouts]\ntunnel = "off"\n' + INTERNAL,
        '[listen]\nhttps = ["0.0.0.0:8443"]\n[sites."a.b"]\n"/" = "http://b"\ntls = "internal"\nhttp = "off"',
        INTERNAL + '[admin]\nmetrics = "127.0.0.53:9145"\n',
        INTERNAL + '[admin]\nmetrics = "[::1]:9145"\n',
    ],
)
def test_there_may_be_nothing_to_say(text: str) -> None:
    assert advice(text) == []


def test_a_backend_that_would_ban_the_proxy() -> None:
    assert advice('[passthrough]\n"pbx.myname.com" = "10.1.2.3"') == [f"pbx.myname.com: {BAN}"]


@pytest.mark.parametrize("form", ["proxy-v1", "proxy-v2"])
def test_a_backend_that_is_told_the_client_s_address(form: str) -> None:
    assert advice(f'[passthrough."pbx.myname.com"]\nto = "10.1.2.3"\nclient_ip = "{form}"') == []


def test_many_names_are_counted_and_not_called() -> None:
    def said(names: int) -> str:
        [sentence] = advice("[passthrough]\n" + "".join(f'"{i}.b.c" = "10.1.2.3"\n' for i in range(names)))
        return sentence.removesuffix(f": {BAN}")

    assert said(4) == "0.b.c, 1.b.c, 2.b.c, 3.b.c"
    assert said(5) == "0.b.c, 1.b.c, 2.b.c and 2 more"
    assert said(5000) == "0.b.c, 1.b.c, 2.b.c and 4,997 more"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[passthrough."pbx.myname.com"]\nto = "10.1.2.3"\nhttp = "off"',
            'pbx.myname.com: http = "off" answers 404 on port 80, so the backend cannot renew its certificate by '
            "HTTP-01: leave it out, unless the backend renews in another way",
        ),
        (
            '[passthrough]\n"*" = "127.0.0.1:1443"',
            "every other name: 127.0.0.1:80, where port 80 would go, is trioproxy itself: write the backend's own as "
            'http_to, or http = "off"',
        ),
        (
            SITE,
            "[acme] has no email: the CA could not tell you about trouble with your certificates. Write one",
        ),
        (
            '[acme]\nemail = "me@myname.com"\ndirectory = "zerossl"\n' + SITE,
            "ZeroSSL opens accounts only for its customers, so it will issue nothing: write the key id and the "
            "HMAC key that it shows on its page for developers as eab = { key_id = …, hmac_key = … }",
        ),
        (
            EMAIL
            + '[sites]\n"nas" = "http://b"\n"nas.lan" = "http://b"\n"a.localhost" = "http://b"\n"b.c" = "http://b"',
            f"nas, nas.lan, a.localhost: {NO_ISSUE}",
        ),
        (
            "[listen]\nhttp = []\n" + EMAIL + SITE,
            "a.myname.com: there is no listener for http, where the CA would ask, so no certificate can be had: write "
            "[listen] http",
        ),
        (
            '[listen]\nhttp = ["0.0.0.0:8081", "0.0.0.0:8080", "[::]:8080"]\n' + EMAIL + SITE,
            "CAs ask on port 80, and no listener has it: let the router send it to port 8080 or 8081 here",
        ),
        (
            '[listen]\nhttps = ["0.0.0.0:8443"]\n' + INTERNAL,
            "redirects lead to port 443, and no listener has it: let the router send it to port 8443 here, or set "
            "[listen] public_https_port",
        ),
        (
            '[listen]\nproxy_protocol_from = ["10.0.0.1", "::/0"]\n' + INTERNAL,
            "listen.proxy_protocol_from names every address there is, so any client may claim any address: name your "
            "proxies",
        ),
        (
            '[listen]\ntrusted_proxies = ["0.0.0.0/0"]\n' + INTERNAL,
            "listen.trusted_proxies names every address there is, so any client may claim any address: name your "
            "proxies",
        ),
        (
            '[timeouts]\nhello = "off"\n' + INTERNAL,
            "timeouts.hello is off: clients that connect and say nothing are kept until they go. Set a limit",
        ),
        (
            '[timeouts]\nheader = "off"\n' + INTERNAL,
            "timeouts.header is off: clients that connect and say nothing are kept until they go. Set a limit",
        ),
        (
            INTERNAL + 'timeouts = { header = "off" }\naliases = ["b.myname.com"]\n',
            "a.myname.com: timeouts.header is off: clients that connect and say nothing are kept until they go. Set a "
            "limit",
        ),
        (
            INTERNAL + 'hsts = "180d"\nhttp = "serve"\n',
            'a.myname.com: http = "serve", and yet hsts: browsers that have been there over https will not come to '
            "port 80 any more. Leave out one of them",
        ),
        (
            INTERNAL + 'hsts = "23h"\naliases = ["b.myname.com"]\n',
            "a.myname.com: hsts is less than a day, so browsers forget it before most people come back. That is good "
            'for trying it out or for taking it back; when all works, write "180d"',
        ),
        (
            INTERNAL + '"/pve/" = { to = ["http://b", "https://c"], verify = false }\n',
            "a.myname.com/pve/: with verify = false nobody knows who answers there: whoever gets in the backend's "
            "place reads every request, passwords and cookies too. Name the one certificate that is good, verify = "
            '"sha256:…", or its authority as ca_file',
        ),
        (
            INTERNAL + '[admin]\nmetrics = "[::]:9145"\n',
            "admin.metrics: whoever can reach [::]:9145 reads all names and how much each is used, for nobody is asked "
            "for a password there. Write 127.0.0.1, or let a firewall keep out all but the one who collects them",
        ),
    ],
)
def test_each_warning(text: str, said: str) -> None:
    assert [sentence for sentence in advice(text) if BAN not in sentence] == [said]
