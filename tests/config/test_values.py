"""Single values: what each reader takes, and that nothing is converted silently."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trioproxy.config import values
from trioproxy.config.model import HostPort
from trioproxy.config.values import Reader, Wrong

BOUNDED_SIZE = values.size(1, 4 * 1024**3)


def problem(read: Reader, value: object) -> str:
    with pytest.raises(Wrong) as caught:
        read(value)
    return str(caught.value)


# ---- durations and sizes ------------------------------------------------------------------------------


@given(st.integers(1, 999_999_999), st.sampled_from(sorted(values.SECONDS)))
def test_a_whole_number_of_any_unit_is_a_duration(number: int, unit: str) -> None:
    assert values.duration(f"{number}{unit}") == number * values.SECONDS[unit]


@given(st.decimals(min_value="0.001", max_value=99999, places=3), st.sampled_from(sorted(values.SECONDS)))
def test_a_decimal_number_of_any_unit_is_a_duration(number: object, unit: str) -> None:
    assert values.duration(f"{number}{unit}") == pytest.approx(float(str(number)) * values.SECONDS[unit])


@given(st.text() | st.from_regex(r"[0-9+\-._ ]{0,8}(ms|s|m|h|d|off)?", fullmatch=True))
def test_whatever_is_written_a_duration_is_positive_or_refused(text: str) -> None:
    try:
        seconds = values.duration(text)
    except Wrong:
        return
    assert seconds > 0
    assert not math.isnan(seconds)
    assert math.isinf(seconds) == (text == "off")


@given(st.integers() | st.floats() | st.booleans() | st.none() | st.lists(st.integers()) | st.dates())
def test_what_is_no_text_is_neither_duration_nor_size(value: object) -> None:
    assert problem(values.duration, value)
    assert problem(BOUNDED_SIZE, value)


@given(st.integers(1, 2048), st.sampled_from(sorted(values.BYTES)))
def test_a_whole_number_of_any_unit_is_a_size(number: int, unit: str) -> None:
    expected = number * values.BYTES[unit]
    if expected > 4 * 1024**3:
        assert problem(BOUNDED_SIZE, f"{number}{unit}") == f'"{number}{unit}" is not between "1B" and "4GiB"'
    else:
        assert BOUNDED_SIZE(f"{number}{unit}") == expected


@given(st.text() | st.from_regex(r"[0-9+\-._ ]{0,8}(B|KB|KiB|k|MiB|GiB)?", fullmatch=True))
def test_whatever_is_written_a_size_is_within_its_bounds_or_refused(text: str) -> None:
    try:
        number = BOUNDED_SIZE(text)
    except Wrong:
        return
    assert 1 <= number <= 4 * 1024**3


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (75, 'write a duration in quotes with its unit, such as "75s"'),
        (0.5, 'write a duration in quotes with its unit, such as "0.5s"'),
        (-1, 'write a duration in quotes with its unit, such as "10s"'),
        (0, 'write a duration in quotes with its unit, such as "10s"'),
        (math.inf, 'write a duration in quotes with its unit, such as "10s"'),
        ("0s", '"0s" would end everything at once: write "off" if there should be no limit'),
        ("0.0h", '"0.0h" would end everything at once: write "off" if there should be no limit'),
        ("75", '"75" is no duration: write a number and ms, s, m, h or d, such as "10s", or "off"'),
        ("5 m", '"5 m" is no duration: write a number and ms, s, m, h or d, such as "10s", or "off"'),
        ("5M", '"5M" is no duration: write a number and ms, s, m, h or d, such as "10s", or "off"'),
        ("٣s", '"٣s" is no duration: write a number and ms, s, m, h or d, such as "10s", or "off"'),
        (True, "write one text in quotes, not true or false"),
        (["5s"], "write one text in quotes, not a list"),
    ],
)
def test_what_is_said_of_a_wrong_duration(value: object, said: str) -> None:
    assert problem(values.duration, value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (32768, 'write a size in quotes with its unit, such as "64KiB"'),
        ("32768", '"32768" is no size: write a whole number and B, KiB, MiB or GiB, such as "64KiB"'),
        ("32KB", '"32KB" is no size: write a whole number and B, KiB, MiB or GiB, such as "64KiB"'),
        ("1.5MiB", '"1.5MiB" is no size: write a whole number and B, KiB, MiB or GiB, such as "64KiB"'),
        ("0B", '"0B" is not between "1KiB" and "1MiB"'),
        ("2MiB", '"2MiB" is not between "1KiB" and "1MiB"'),
        ({}, "write one text in quotes, not a table"),
    ],
)
def test_what_is_said_of_a_wrong_size(value: object, said: str) -> None:
    assert problem(values.size(1024, 1024**2), value) == said


# ---- names and addresses ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Cloud.MyName.com.", "cloud.myname.com"),
        ("Bücher.example", "xn--bcher-kva.example"),
        ("bücher。example.", "xn--bcher-kva.example"),
        ("straße.example", "xn--strae-oqa.example"),
        ("*.Äpfel.example", "*.xn--pfel-koa.example"),
        ("*", "*"),
    ],
)
def test_names_of_entries(text: str, name: str) -> None:
    assert values.entry_name(text) == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "https://cloud.myname.com/x",
            '"https://cloud.myname.com/x" is no host name: write the name alone, "cloud.myname.com"',
        ),
        ("cloud.myname.com:443", '"cloud.myname.com:443" is no host name: write the name alone, "cloud.myname.com"'),
        ("my_cloud", '"my_cloud" is no host name: its labels are letters, digits and hyphens, joined by dots'),
        ("", '"" is no host name: its labels are letters, digits and hyphens, joined by dots'),
        ("10.1.2.3", '"10.1.2.3" is an IP address, and clients name no address: use the host\'s name'),
        ("[::1]", '"[::1]" is an IP address, and clients name no address: use the host\'s name'),
        ("a.*.b", '"a.*.b": a wildcard stands for the whole first label, such as "*.myname.com"'),
        ("x*.b", '"x*.b": a wildcard stands for the whole first label, such as "*.myname.com"'),
        ("*.*.b", '"*.b" is no host name: its labels are letters, digits and hyphens, joined by dots'),
        ("a\r\nb", '"a\\r\\nb" is no host name: its labels are letters, digits and hyphens, joined by dots'),
    ],
)
def test_what_is_said_of_a_wrong_name(text: str, said: str) -> None:
    assert problem(values.entry_name, text) == said


def test_a_name_that_idna_refuses() -> None:
    assert problem(values.entry_name, "a\u202eü.example").startswith('"a\\u202eü.example" is no host name: ')


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("10.1.2.3", "10.1.2.3", 443),
        ("10.1.2.3:8443", "10.1.2.3", 8443),
        ("[::1]:443", "::1", 443),
        ("[2001:DB8::1]", "2001:db8::1", 443),
        ("2001:db8:0::1", "2001:db8::1", 443),
        ("PBX.lan.", "pbx.lan", 443),
        ("my_app_1:80", "my_app_1", 80),
        ("bücher.example:1", "xn--bcher-kva.example", 1),
    ],
)
def test_where_to_connect_to(text: str, host: str, port: int) -> None:
    assert values.address(443)(text) == HostPort(host, port)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("https://10.1.2.3:8443/", 'write host and port without "https://": "10.1.2.3:8443"'),
        ("10.1.2.3:", '"10.1.2.3:": "" is no port: write a number from 1 to 65535'),
        ("10.1.2.3:0", '"10.1.2.3:0": "0" is no port: write a number from 1 to 65535'),
        ("10.1.2.3:65536", '"10.1.2.3:65536": "65536" is no port: write a number from 1 to 65535'),
        ("10.1.2.3:+1", '"10.1.2.3:+1": "+1" is no port: write a number from 1 to 65535'),
        ("10.1.2.3:https", '"10.1.2.3:https": "https" is no port: write a number from 1 to 65535'),
        ("10.1.2.300", '"10.1.2.300" is no IP address: four numbers from 0 to 255, joined by dots'),
        ("10.1.2", '"10.1.2" is no IP address: four numbers from 0 to 255, joined by dots'),
        ("[10.1.2.3]", '"[10.1.2.3]" is no IPv6 address: write it as "[2001:db8::1]" or "[2001:db8::1]:443"'),
        ("[::1]443", '"[::1]443" is no IPv6 address: write it as "[2001:db8::1]" or "[2001:db8::1]:443"'),
        (
            "[fe80::1%eth0]:1",
            '"[fe80::1%eth0]:1" is no IPv6 address: write it as "[2001:db8::1]" or "[2001:db8::1]:443"',
        ),
        ("::1::", '"::1::" is no address: write "host:port", and IPv6 as "[2001:db8::1]:443"'),
        ("", '"" is neither a host name nor an IP address'),
        ("a b", '"a b" is neither a host name nor an IP address'),
        ("a/b", '"a/b" is neither a host name nor an IP address'),
        ("a\r\nb", '"a\\r\\nb" holds a line break or another character that cannot be seen: leave it out'),
        ("a\u202eb", '"a\\u202eb" holds a line break or another character that cannot be seen: leave it out'),
        (443, "write one text in quotes, not a number"),
        (["10.1.2.3"], "write one text in quotes, not a list"),
    ],
)
def test_what_is_said_of_a_wrong_address(value: object, said: str) -> None:
    assert problem(values.address(443), value) == said


LISTEN = 'write an IP address and a port, such as "0.0.0.0:443" or "[::]:443" (every address of this machine)'


def test_where_to_listen() -> None:
    assert values.listen_address("0.0.0.0:443") == HostPort("0.0.0.0", 443)
    assert values.listen_address("[::]:443") == HostPort("::", 443)
    assert values.listen_address("127.0.0.1:0") == HostPort("127.0.0.1", 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (":443", f'":443" names no address: {LISTEN}'),
        ("443", f'"443" names no address: {LISTEN}'),
        ("*:443", f'"*:443" names no address: {LISTEN}'),
        ("localhost:443", f'"localhost:443" names no address: {LISTEN}'),
        ("0.0.0.0", f'"0.0.0.0" names no port: {LISTEN}'),
        ("::", f'"::" names no port: {LISTEN}'),
    ],
)
def test_what_is_said_of_a_wrong_listener(text: str, said: str) -> None:
    assert problem(values.listen_address, text) == said


NO_NETWORK = 'write one such as "192.168.1.0/24" or "2001:db8::/32", or a single address'


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.168.1.0/24", "192.168.1.0/24"),
        ("192.168.1.7", "192.168.1.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
    ],
)
def test_networks(text: str, network: str) -> None:
    assert str(values.network(text)) == str(values.network_or_lan(text)) == network


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", f'"" is no network: {NO_NETWORK}'),
        ("lan", f'"lan" is no network: {NO_NETWORK}'),
        ("10.0.0.0/33", f'"10.0.0.0/33" is no network: {NO_NETWORK}'),
        ("10.0.0", f'"10.0.0" is no network: {NO_NETWORK}'),
        ("fe80::%eth0/64", f'"fe80::%eth0/64" is no network: {NO_NETWORK}'),
        (
            "192.168.1.7/24",
            '"192.168.1.7/24" is an address with the size of a network: write "192.168.1.0/24" for the network or '
            '"192.168.1.7" for the one address',
        ),
        ("::ffff:10.0.0.0/104", '"::ffff:10.0.0.0/104" is IPv4 inside IPv6: write "10.0.0.0/8"'),
    ],
)
def test_what_is_said_of_a_wrong_network(text: str, said: str) -> None:
    assert problem(values.network, text) == said


def test_lan_is_a_word_for_who_may_connect_and_no_network() -> None:
    assert values.network_or_lan("lan") == values.LAN


# ---- URLs and the like --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["me@myname.com", "me+ca@localhost", "a.b-c_d@sub.myname.com"])
def test_addresses_of_people(text: str) -> None:
    assert values.email(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "me",
        "@myname.com",
        "me@",
        "me@my name.com",
        "me you@b.c",
        "me@b.c,you@b.c",
        "me@b.c?cc=x",
        "<me@b.c>",
        "a@b@c.d",
        "mailto:me@b.c",
        "me@10.1.2.3",
    ],
)
def test_what_is_no_address_of_a_person(text: str) -> None:
    assert problem(values.email, text) == f'"{text}" is no e-mail address: write one such as "me@myname.com"'


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("letsencrypt", "https://acme-v02.api.letsencrypt.org/directory"),
        ("zerossl", "https://acme.zerossl.com/v2/DV90"),
        ("https://ca.lan:14000/dir", "https://ca.lan:14000/dir"),
        ("http://127.0.0.1:14000/dir", "http://127.0.0.1:14000/dir"),
        ("http://[::1]:14000/dir", "http://[::1]:14000/dir"),
        ("http://localhost/dir", "http://localhost/dir"),
    ],
)
def test_directories(text: str, url: str) -> None:
    assert values.directory(text) == url


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "letsencript",
            '"letsencript" is no directory: write "letsencrypt" or "zerossl", or the URL of another one; '
            'did you mean "letsencrypt"?',
        ),
        ("http://ca.lan/dir", '"http://ca.lan/dir": a directory is asked over https:// alone'),
        ("http://127.0.0.1.nip.io/", '"http://127.0.0.1.nip.io/": a directory is asked over https:// alone'),
        ("ftp://localhost/", '"ftp://localhost/": a directory is asked over https:// alone'),
        ("https://me:secret@ca.lan/", "the URL of a directory holds neither a user name nor a #: leave them out"),
        ("https://ca.lan:0/", '"https://ca.lan:0/": "0" is no port: write a number from 1 to 65535'),
        ("https:///x", '"" is neither a host name nor an IP address'),
    ],
)
def test_what_is_said_of_a_wrong_directory(text: str, said: str) -> None:
    assert problem(values.directory, text) == said


def test_plain_values() -> None:
    assert values.integer(1, 10)(10) == 10
    assert problem(values.integer(1, 10), 11) == "11 is not between 1 and 10"
    assert problem(values.integer(1, 10), "5") == "write a whole number without quotes, not a text"
    assert problem(values.integer(0, 10), True) == "write a whole number without quotes, not true or false"
    assert problem(values.integer(1, 10), 5.0) == "write a whole number without quotes, not a number"
    assert values.one_of("a", "b")("b") == "b"
    assert problem(values.one_of("serve", "off"), "sreve") == '"sreve" is none of "serve", "off"; did you mean "serve"?'
    assert values.file_path("x/y.pem") == Path("x/y.pem")
    assert problem(values.file_path, "") == "write the path of a file"
    assert problem(values.file_path, "a\0b").startswith('"a\\x00b" holds a line break or another character')
