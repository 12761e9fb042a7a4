"""What is believed of proxies in front, and what backends are told."""

from __future__ import annotations

import ipaddress

import pytest

from trioproxy.access import Network
from trioproxy.http.forwarded import Arrival, client_of
from trioproxy.http.headers import request_headers
from trioproxy.http.messages import Headers, RequestHead

PROXIES: tuple[Network, ...] = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
TRUSTED = Arrival("10.0.0.1", "http", 80, PROXIES)
STRANGER = Arrival("192.0.2.1", "http", 80)
ALL = ("x-forwarded-for", "x-real-ip", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port", "forwarded")


def request(**fields: str) -> RequestHead:
    headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    return RequestHead(b"GET", b"/", b"a.example", headers)


def told(arrival: Arrival, head: RequestHead, prefix: bytes | None = None) -> dict[str, str]:
    """The forwarding fields that a backend gets; each comes once at most."""
    found: Headers = [f for f in request_headers(head, arrival, prefix, b"us") if f[0] not in (b"host", b"via")]
    assert len({name for name, _ in found}) == len(found)
    return {name.decode(): value.decode() for name, value in found}


def test_a_trusted_proxy_that_says_nothing_is_the_client() -> None:
    assert told(TRUSTED, request()) == told(Arrival("10.0.0.1", "http", 80), request())
    assert client_of(request(), TRUSTED) == "10.0.0.1"


def test_what_a_trusted_proxy_says_is_extended() -> None:
    head = request(
        x_forwarded_for="198.51.100.7",
        x_forwarded_proto="https",
        x_forwarded_host="www.example",
        x_forwarded_port="8443",
        forwarded="for=198.51.100.7;proto=https;host=www.example",
    )
    assert told(TRUSTED, head) == {
        "x-forwarded-for": "198.51.100.7, 10.0.0.1",
        "x-real-ip": "198.51.100.7",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "www.example",
        "x-forwarded-port": "8443",
        "forwarded": 'for=198.51.100.7;proto=https;host=www.example, for=10.0.0.1;proto=http;host="a.example"',
    }


def test_what_anybody_else_says_is_replaced() -> None:
    made_up = dict.fromkeys((name.replace("-", "_") for name in ALL), "198.51.100.7")
    assert told(STRANGER, request(**made_up)) == told(STRANGER, request())
    assert client_of(request(**made_up), STRANGER) == "192.0.2.1"


@pytest.mark.parametrize(
    ("received", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("203.0.113.9, 198.51.100.7", "198.51.100.7"),  # the left one was made up by the right one
        ("10.9.9.9, 198.51.100.7, 10.1.1.1, fd00::5", "198.51.100.7"),
        ("10.1.1.1, 10.1.1.2", "10.1.1.1"),  # a client within
        ("198.51.100.7,10.1.1.1", "198.51.100.7"),
        ("198.51.100.7:4711", "198.51.100.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]:4711, 10.1.1.1", "2001:db8::7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("::ffff:10.1.1.1", "10.1.1.1"),
        ("198.51.100.7, , ", "198.51.100.7"),
        ("198.51.100.7, unknown, 10.1.1.1", "10.1.1.1"),  # 10.1.1.1 did not know, and nobody else does
        ("198.51.100.7, nonsense", "10.0.0.1"),
        ("", "10.0.0.1"),
        (", ,", "10.0.0.1"),
    ],
)
def test_the_client_is_found_from_right_to_left(received: str, client: str) -> None:
    head = request(x_forwarded_for=received)
    assert client_of(head, TRUSTED) == told(TRUSTED, head)["x-real-ip"] == client


def test_fields_that_come_twice_are_one_list() -> None:
    head = request()
    head.headers = [(b"x-forwarded-for", b"198.51.100.7"), (b"x-forwarded-for", b"10.1.1.1")]
    assert told(TRUSTED, head)["x-forwarded-for"] == "198.51.100.7, 10.1.1.1, 10.0.0.1"
    assert client_of(head, TRUSTED) == "198.51.100.7"


def test_forwarded_is_written_from_x_forwarded_for_where_it_lacks() -> None:
    fields = told(TRUSTED, request(x_forwarded_for="2001:db8::7, [2001:db8::8]:1, hidden, ?, fd00::5"))
    assert fields["forwarded"] == (
        'for="[2001:db8::7]", for="[2001:db8::8]", for=hidden, for=unknown, for="[fd00::5]", '
        'for=10.0.0.1;proto=http;host="a.example"'
    )


def test_x_forwarded_for_and_the_rest_are_written_from_forwarded_where_they_lack() -> None:
    sent = 'For="[2001:db8::7]:4711";Proto=https;host="www.example:8443", for=10.1.1.1;proto=http'
    fields = told(TRUSTED, request(forwarded=sent))
    assert fields == {
        "x-forwarded-for": "2001:db8::7, 10.1.1.1, 10.0.0.1",
        "x-real-ip": "2001:db8::7",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "www.example:8443",
        "x-forwarded-port": "443",
        "forwarded": f'{sent}, for=10.0.0.1;proto=http;host="a.example"',
    }


def test_of_two_lists_that_contradict_each_other_x_forwarded_for_counts() -> None:
    """Many proxies write only that one, and pass on what a client sent as Forwarded."""
    made_up = "for=203.0.113.9;proto=https;host=evil.example"
    fields = told(TRUSTED, request(x_forwarded_for="198.51.100.7", forwarded=made_up))
    assert fields == told(TRUSTED, request(x_forwarded_for="198.51.100.7"))
    assert fields["x-real-ip"] == "198.51.100.7"
    assert "203.0.113.9" not in fields["forwarded"]


def test_what_stands_left_of_the_client_says_nothing_of_its_request() -> None:
    head = request(forwarded="for=203.0.113.9;proto=https;host=evil.example, for=198.51.100.7;proto=http")
    fields = told(TRUSTED, head)
    assert (fields["x-real-ip"], fields["x-forwarded-proto"], fields["x-forwarded-host"]) == (
        "198.51.100.7",
        "http",
        "a.example",
    )


@pytest.mark.parametrize(
    "broken",
    [
        "for=198.51.100.7;",
        "for = 198.51.100.7",
        'for="198.51.100.7',
        "198.51.100.7",
        "for=[2001:db8::7]",
        "for=198.51.100.7;;proto=https",
        "=198.51.100.7",
        ",",
    ],
)
def test_a_forwarded_that_breaks_its_grammar_is_as_good_as_none(broken: str) -> None:
    assert told(TRUSTED, request(forwarded=broken)) == told(TRUSTED, request())


def test_an_element_that_names_nobody_hides_what_is_left_of_it() -> None:
    head = request(forwarded="for=198.51.100.7, proto=https, for=10.1.1.1")
    assert told(TRUSTED, head)["x-forwarded-for"] == "198.51.100.7, unknown, 10.1.1.1, 10.0.0.1"
    assert client_of(head, TRUSTED) == "10.1.1.1"


@pytest.mark.parametrize(
    ("fields", "port"),
    [
        ({}, "80"),
        ({"x_forwarded_proto": "http"}, "80"),
        ({"x_forwarded_proto": "https"}, "443"),
        ({"x_forwarded_proto": "https", "x_forwarded_port": "8443"}, "8443"),
        ({"x_forwarded_proto": "gopher"}, None),
    ],
)
def test_the_port_fits_the_scheme(fields: dict[str, str], port: str | None) -> None:
    assert told(TRUSTED, request(**fields)).get("x-forwarded-port") == port


def test_the_port_of_our_own_scheme_is_the_public_one() -> None:
    arrival = Arrival("10.0.0.1", "https", 8443, PROXIES)
    assert told(arrival, request(x_forwarded_proto="https"))["x-forwarded-port"] == "8443"


def test_prefixes_are_joined() -> None:
    assert told(TRUSTED, request(x_forwarded_prefix="/outer/"), b"/inner")["x-forwarded-prefix"] == "/outer/inner"
    assert told(TRUSTED, request(x_forwarded_prefix="/outer"))["x-forwarded-prefix"] == "/outer"
    assert told(TRUSTED, request(), b"/inner")["x-forwarded-prefix"] == "/inner"
    assert "x-forwarded-prefix" not in told(TRUSTED, request())


@pytest.mark.parametrize("name", ["x_forwarded_user", "x_forwarded_ssl", "x_forwarded_for_", "x_real_ip"])
def test_everything_else_of_a_trusted_proxy_is_dropped_too(name: str) -> None:
    assert told(TRUSTED, request(**{name: "198.51.100.7"})) == told(TRUSTED, request())


def test_look_alikes_of_a_trusted_proxy_are_dropped() -> None:
    head = request()
    head.headers = [(b"x_forwarded_for", b"198.51.100.7"), (b"x-forwarded.proto", b"https")]
    assert told(TRUSTED, head) == told(TRUSTED, request())


def test_naming_the_fields_in_connection_does_not_hide_the_client() -> None:
    head = request(connection="close, x-forwarded-for, forwarded", x_forwarded_for="198.51.100.7")
    assert told(TRUSTED, head)["x-forwarded-for"] == "198.51.100.7, 10.0.0.1"


def test_a_request_without_host() -> None:
    head = request(x_forwarded_for="198.51.100.7")
    head.authority = b""
    fields = told(TRUSTED, head)
    assert "x-forwarded-host" not in fields
    assert fields["forwarded"] == "for=198.51.100.7, for=10.0.0.1;proto=http"
