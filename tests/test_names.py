"""The one normaliser."""

from __future__ import annotations

import pytest

from trioproxy.errors import InvalidName
from trioproxy.names import normalise, split_authority


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cloud.myname.com", "cloud.myname.com"),
        ("Cloud.MyName.COM", "cloud.myname.com"),
        ("cloud.myname.com.", "cloud.myname.com"),
        ("localhost", "localhost"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("1a.2b", "1a.2b"),
        ("a" * 63 + ".x", "a" * 63 + ".x"),
        (".".join(["a" * 49] * 5) + ".", ".".join(["a" * 49] * 5)),
    ],
)
def test_names_are_compared_in_one_form(text: str, name: str) -> None:
    assert normalise(text) == name
    assert normalise(name) == name


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a..b",
        ".a",
        "a..",
        "-a",
        "a-",
        "a_b",
        "a b",
        "a\0b",
        "a\n",
        "\n",
        "a/b",
        "a:1",
        "*.a",
        "bücher.example",
        "a" * 64,
        "a." * 127 + "a",
        "10.1.2.3",
        "1",
        "a.1",
        "10.1.2.3.",
        "[::1]",
        "::1",
    ],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        normalise(text)


@pytest.mark.parametrize(
    ("authority", "host", "port"),
    [
        ("Cloud.myname.com", "cloud.myname.com", None),
        ("cloud.myname.com.:8443", "cloud.myname.com", 8443),
        ("10.1.2.3", "10.1.2.3", None),
        ("10.1.2.3:80", "10.1.2.3", 80),
        ("[2001:DB8:0::1]", "2001:db8::1", None),
        ("[::1]:443", "::1", 443),
    ],
)
def test_an_authority_is_a_host_and_perhaps_a_port(authority: str, host: str, port: int | None) -> None:
    assert split_authority(authority) == (host, port)


@pytest.mark.parametrize(
    "authority",
    [
        "",
        ":80",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:1_0",
        "a:²",
        "me@a",
        "::1",
        "[::1",
        "[::1]80",
        "[10.1.2.3]",
        "[fe80::1%eth0]",
        "010.1.2.3",
        "10.1.2",
        "a:1:2",
    ],
)
def test_what_is_no_authority_is_refused(authority: str) -> None:
    with pytest.raises(InvalidName):
        split_authority(authority)
