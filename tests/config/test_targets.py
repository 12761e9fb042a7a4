"""What stands in a route: what each reader takes, and what it says of the rest."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.config import targets
from trioproxy.config.model import Target
from trioproxy.config.values import Reader, Wrong


def problem(read: Reader, value: object) -> str:
    with pytest.raises(Wrong) as caught:
        read(value)
    return str(caught.value)


# ---- targets ------------------------------------------------------------------------------------------

LONGEST = "/" + "x" * 106
NO_PATH = "no //, . or .. in it, and other characters as %XX"
ANY = "http://, https://, h2c:// or unix:/path"


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("http://10.2.3.4", Target("http", "10.2.3.4", 80)),
        ("http://10.2.3.4/", Target("http", "10.2.3.4", 80, "/")),
        ("HTTPS://Cloud.lan:8443/a/b%2Fc", Target("https", "cloud.lan", 8443, "/a/b%2Fc")),
        ("https://[::1]/", Target("https", "::1", 443, "/")),
        ("http://next_cloud:8080", Target("http", "next_cloud", 8080)),
        ("h2c://10.2.3.4", Target("h2c", "10.2.3.4", 80)),
        ("H2C://grpc.lan:50051/v1/", Target("h2c", "grpc.lan", 50051, "/v1/")),
        ("unix:/run/app.sock", Target("unix", "/run/app.sock", 0)),
        ("Unix:/srv/My App/ü:8000", Target("unix", "/srv/My App/ü:8000", 0)),
        (f"unix:{LONGEST}", Target("unix", LONGEST, 0)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    assert targets.target(text) == target
    assert targets.target(str(target)) == target


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            "10.2.3.4:8080",
            '"10.2.3.4:8080" is no target: write it with http:// or https://, such as "http://10.2.3.4:8080"',
        ),
        ("", '"" is no target: write it with http:// or https://, such as "http://10.2.3.4"'),
        ("ftp://b", f'"ftp://" is no scheme of a target: write {ANY}'),
        ("fastcgi://b:9000", f'"fastcgi://" is no scheme of a target: write {ANY}'),
        ("grpc://b:50051", '"grpc://" is no scheme of a target: write h2c://'),
        ("grpcs://b", '"grpcs://" is no scheme of a target: write https://'),
        ("WS://b", '"ws://" is no scheme of a target: write http://'),
        ("wss://b", '"wss://" is no scheme of a target: write https://'),
        ("http://me:secret@b", "a target holds no user name or password: leave out what stands before the @"),
        ("http://b/x?y", '"http://b/x?y": a target has neither ? nor #: leave out what begins with it'),
        ("http://b?", '"http://b?": a target has neither ? nor #: leave out what begins with it'),
        ("http://b/#y", '"http://b/#y": a target has neither ? nor #: leave out what begins with it'),
        ("http://", '"" is neither a host name nor an IP address'),
        ("http://b:", '"http://b:": "" is no port: write a number from 1 to 65535'),
        ("h2c://b:99999", '"h2c://b:99999": "99999" is no port: write a number from 1 to 65535'),
        ("http://b/a b", f'"/a b" is no path of a target: {NO_PATH}'),
        ("http://b/a/../b", f'"/a/../b" is no path of a target: {NO_PATH}'),
        ("http://b//a", f'"//a" is no path of a target: {NO_PATH}'),
        ("http://b/%zz", f'"/%zz" is no path of a target: {NO_PATH}'),
        (
            "http://b/x\r\ny",
            '"http://b/x\\r\\ny" holds a line break or another character that cannot be seen: leave it out',
        ),
        (["http://a", "http://b"], 'write several targets as { to = ["http://10.2.3.4", …] }'),
        (80, "write one text in quotes, not a number"),
    ],
)
def test_what_is_said_of_a_wrong_target(value: object, said: str) -> None:
    assert problem(targets.target, value) == said


RUN = 'such as "unix:/run/app.sock"'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unix:///run/x", '"unix:///run/x" is no target: write a unix socket as "unix:/run/x"'),
        ("unix://run/x", '"unix://run/x" is no target: write a unix socket as "unix:/run/x"'),
        ("unix//run/x", '"unix//run/x" is no target: write a unix socket as "unix:/run/x"'),
        ("http+unix://%2Frun%2fx", '"http+unix://%2Frun%2fx" is no target: write a unix socket as "unix:/run/x"'),
        ("http://unix:/run/x:/app", '"http://unix:/run/x:/app" is no target: write a unix socket as "unix:/run/x"'),
        ("unix:run/x", f'"unix:run/x": the path of a socket begins with a slash, {RUN}'),
        ("unix:@x", f'"unix:@x": the path of a socket begins with a slash, {RUN}'),
        ("unix:", f'"unix:": the path of a socket begins with a slash, {RUN}'),
        ("unix:/", f'"unix:/" is a folder: write the socket in it, {RUN}'),
        ("unix:/run/x:/app", 'a target that is a unix socket has no path of a URL: write "unix:/run/x"'),
        (f"unix:{LONGEST}x", "the path of a unix socket has at most 107 bytes, and this one 108"),
        ("unix:/" + "ü" * 54, "the path of a unix socket has at most 107 bytes, and this one 109"),
        ("unix:/a\0b", '"unix:/a\\x00b" holds a line break or another character that cannot be seen: leave it out'),
    ],
)
def test_what_is_said_of_a_wrong_socket(text: str, said: str) -> None:
    assert problem(targets.target, text) == said


def test_no_message_about_a_target_or_redirect_shows_a_password() -> None:
    for text in ("http://me:secret@b", "ftp://me:secret@b", "http://me:secret@b:0/?x"):
        assert "secret" not in problem(targets.target, text)
        assert "secret" not in problem(targets.redirect, text)


# ---- redirects ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "redirect"),
    [
        ("/", "/"),
        ("/new", "/new"),
        ("/new/%C3%BC/", "/new/%C3%BC/"),
        ("https://Other.Example", "https://other.example"),
        ("https://other.example:443/", "https://other.example/"),
        ("HTTP://bücher.example:8080/x", "http://xn--bcher-kva.example:8080/x"),
        ("http://[2001:DB8::1]:80/", "http://[2001:db8::1]/"),
    ],
)
def test_redirects(text: str, redirect: str) -> None:
    assert targets.redirect(text) == redirect


QUERY = "the request's own query is kept, so there is neither ? nor # in a redirect"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", '"" is no redirect: write a path or a URL, such as "/new/"'),
        ("new/x", '"new/x" is no redirect: write a path or a URL, such as "/new/x"'),
        ("www.b.c/x", '"www.b.c/x" is no redirect: write a path or a URL, such as "https://www.b.c/x"'),
        ("//b/x", '"//b/x" is no redirect: write a path or a URL, such as "https://b/x"'),
        ("ftp://b", '"ftp://" is no scheme of a redirect: write http:// or https://'),
        ("/new/?x", f'"/new/?x": {QUERY}'),
        ("https://b#x", f'"https://b#x": {QUERY}'),
        ("https://me@b/", "a redirect holds no user name or password: leave out what stands before the @"),
        ("https://b:0/", '"https://b:0/": "0" is no port: write a number from 1 to 65535'),
        ("https://", '"" is neither a host name nor an IP address'),
        ("/a b", f'"/a b" is no path of a redirect: {NO_PATH}'),
        ("/a//b", f'"/a//b" is no path of a redirect: {NO_PATH}'),
        ("/a/../b", f'"/a/../b" is no path of a redirect: {NO_PATH}'),
        ("/\\b", f'"/\\b" is no path of a redirect: {NO_PATH}'),
        ("https://b/a b", f'"/a b" is no path of a redirect: {NO_PATH}'),
        ("/x\r\ny", '"/x\\r\\ny" holds a line break or another character that cannot be seen: leave it out'),
    ],
)
def test_what_is_said_of_a_wrong_redirect(text: str, said: str) -> None:
    assert problem(targets.redirect, text) == said


@given(st.text() | st.from_regex(r"(https?://|/)[a-z0-9:@/?#%\\. \t\r\n-]{0,20}", fullmatch=True))
def test_whatever_is_written_a_redirect_is_good_in_a_header_or_refused(text: str) -> None:
    try:
        redirect = targets.redirect(text)
    except Wrong:
        return
    assert redirect.isascii()
    assert redirect.isprintable()
    assert not set(redirect) & set(' ?#\\@"<>')
    assert not redirect.startswith("//")


# ---- prefixes -----------------------------------------------------------------------------------------

ROUTE = "no route can be that: letters, digits and punctuation, but no %, ?, #, space, //, . or .. in it"


@pytest.mark.parametrize("prefix", ["/", "/api", "/api/", "/a/b.c/~d/", "/;x=1/"])
def test_prefixes_of_routes(prefix: str) -> None:
    assert targets.route_prefix(prefix) == prefix


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("/api/*", 'a route is a prefix and needs no *: write "/api/"'),
        ("//", ROUTE),
        ("/a//b", ROUTE),
        ("/a/../b", ROUTE),
        ("/./", ROUTE),
        ("/a b/", ROUTE),
        ("/a%20b/", ROUTE),
        ("/a?b", ROUTE),
        ("/ü/", ROUTE),
        ("/a\n", ROUTE),
    ],
)
def test_what_is_said_of_a_wrong_route(prefix: str, said: str) -> None:
    assert problem(targets.route_prefix, prefix) == said


# ---- on what terms ------------------------------------------------------------------------------------

DIGITS = "0123456789abcdef" * 4
COLONS = ":".join(DIGITS[i : i + 2] for i in range(0, 64, 2)).upper()


@pytest.mark.parametrize("value", [True, False])
def test_verifying_or_not(value: bool) -> None:
    assert targets.verify(value) is value


@pytest.mark.parametrize("text", [f"sha256:{DIGITS}", f"SHA256:{DIGITS.upper()}", f"sha256:{COLONS}"])
def test_fingerprints(text: str) -> None:
    assert targets.verify(text) == DIGITS


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("false", "write false without quotes"),
        ("True", "write true without quotes"),
        (DIGITS, f'say which fingerprint it is: "sha256:{DIGITS}"'),
        (COLONS, f'say which fingerprint it is: "sha256:{DIGITS}"'),
        (f"sha256 Fingerprint={COLONS}", f'say which fingerprint it is: "sha256:{DIGITS}"'),
        ("sha256:ab12", "a SHA-256 fingerprint has 64 hexadecimal digits, and this one 4"),
        (f"sha256:{DIGITS}00", "a SHA-256 fingerprint has 64 hexadecimal digits, and this one 66"),
        *(
            (
                text,
                f'"{text}" says nothing about a certificate: write true, false, or the fingerprint that '
                '`openssl x509 -noout -fingerprint -sha256` prints, as "sha256:ab12…"',
            )
            for text in ("off", "", f"sha1:{DIGITS[:40]}", f"sha256:{DIGITS[:-1]}g", f"sha256:{DIGITS[:-1]}")
        ),
        (1, "write one text in quotes, not a number"),
    ],
)
def test_what_is_said_of_another_way_to_verify(value: object, said: str) -> None:
    assert problem(targets.verify, value) == said


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("PVE.lan.", "pve.lan"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("10.0.0.2", "10.0.0.2"),
        ("2001:DB8::1", "2001:db8::1"),
        ("[::1]", "::1"),
    ],
)
def test_names_of_backends(text: str, name: str) -> None:
    assert targets.tls_name(text) == name


def test_what_is_no_name_of_a_backend() -> None:
    said = '"https://pve.lan:8006" is no host name: write the name alone, "pve.lan"'
    assert problem(targets.tls_name, "https://pve.lan:8006") == said
    assert problem(targets.tls_name, "*.lan").startswith('"*.lan" is no host name: ')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("proxy-v2", '"proxy-v2" is none of "v1", "v2"; did you mean "v2"?'),
        ("PROXY_v1", '"PROXY_v1" is none of "v1", "v2"; did you mean "v1"?'),
        ("v3", '"v3" is none of "v1", "v2"'),
        ("on", '"on" is none of "v1", "v2"'),
    ],
)
def test_versions_of_proxy_headers(text: str, said: str) -> None:
    assert targets.proxy_version("v1") == "v1"
    assert targets.proxy_version("v2") == "v2"
    assert problem(targets.proxy_version, text) == said


@pytest.mark.parametrize(("text", "seconds"), [("180d", 15_552_000), ("1s", 1), ("1.5s", 1), ("1.5h", 5400)])
def test_how_long_browsers_use_https_alone(text: str, seconds: float) -> None:
    assert targets.hsts(text) == seconds


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("off", '"off" would mean for ever: write a duration such as "180d", or leave hsts out to send none'),
        ("0s", '"0s": leave hsts out to send none; to be forgotten soon by browsers, write "1s"'),
        ("0.0d", '"0.0d": leave hsts out to send none; to be forgotten soon by browsers, write "1s"'),
        ("999ms", '"999ms" is less than a second, which browsers count by: write "180d"'),
        ("max-age=1", '"max-age=1" is no duration: write a number and ms, s, m, h or d, such as "10s"'),
        (180, 'write a duration in quotes with its unit, such as "180s"'),
        (True, "write one text in quotes, not true or false"),
    ],
)
def test_what_is_said_of_a_wrong_time_of_https_alone(value: object, said: str) -> None:
    assert problem(targets.hsts, value) == said
