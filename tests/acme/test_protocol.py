"""RFC 8555's objects as they come in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trioproxy.acme.problems import AcmeProtocolError
from trioproxy.acme.protocol import MAX_PROFILES, Authorization, Directory, Order, links

DIRECTORY: dict[str, Any] = {
    "newNonce": "https://ca.test/nonce",
    "newAccount": "https://ca.test/account",
    "newOrder": "https://ca.test/order",
    "keyChange": "https://ca.test/key",
    "revokeCert": "https://ca.test/revoke",
    "renewalInfo": "https://ca.test/renewal",
    "meta": {
        "termsOfService": "https://ca.test/terms",
        "externalAccountRequired": True,
        "profiles": {"short": "https://ca.test/short", "odd\n": 7},
    },
}
ORDER: dict[str, Any] = {
    "status": "valid",
    "identifiers": [{"type": "dns", "value": "Cloud.Test"}],
    "authorizations": ["https://ca.test/authz/1"],
    "finalize": "https://ca.test/finalize/1",
    "certificate": "https://ca.test/certificate/1",
}
CHALLENGE: dict[str, Any] = {
    "type": "http-01",
    "url": "https://ca.test/chall/1",
    "token": "abc_-9",
    "status": "pending",
}
AUTHORIZATION: dict[str, Any] = {"status": "pending", "challenges": [{"type": "dns-01", "url": "u"}, CHALLENGE]}


def as_json(fields: dict[str, Any], **changes: Any) -> bytes:
    """The object with members replaced, or left out (None)."""
    return json.dumps({k: v for k, v in {**fields, **changes}.items() if v is not None}).encode()


def test_a_directory() -> None:
    assert Directory.parse(as_json(DIRECTORY)) == Directory(
        "https://ca.test/nonce",
        "https://ca.test/account",
        "https://ca.test/order",
        "https://ca.test/terms",
        True,
        "https://ca.test/key",
        "https://ca.test/revoke",
        "https://ca.test/renewal",
        {"short": "https://ca.test/short", "odd ": ""},
    )
    bare = Directory.parse(as_json(DIRECTORY, meta=None, keyChange=None, revokeCert=None, renewalInfo=None))
    assert bare == Directory("https://ca.test/nonce", "https://ca.test/account", "https://ca.test/order")


@pytest.mark.parametrize("profiles", [None, 7, ["short"], "short"])
def test_profiles_that_make_no_sense_are_as_good_as_none(profiles: object) -> None:
    assert Directory.parse(as_json(DIRECTORY, meta={"profiles": profiles})).profiles == {}


def test_profiles_without_end_have_one() -> None:
    meta = {"profiles": {str(number): "" for number in range(1000)}}
    assert len(Directory.parse(as_json(DIRECTORY, meta=meta)).profiles) == MAX_PROFILES


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ([], []),
        (['<https://ca.test/1>;rel="alternate"'], ["https://ca.test/1"]),
        (["<https://ca.test/directory>;rel=index", "</2>; title=x ; REL = Alternate"], ["/2"]),
        (['<a>; rel="index", <b>; rel="up alternate", <c>;rel="alternate"; title="a, <d>; rel=x"'], ["b", "c"]),
        (['<a>; rel="alternates"', "<a>", "a; rel=alternate", '<a b>; rel="alternate"', '<a>; xrel="alternate"'], []),
        (["<" * 10_000, ";" * 10_000, "<a>;" + "a=" * 10_000], []),
    ],
)
def test_links(fields: list[str], found: list[str]) -> None:
    assert links(fields, "alternate") == found


@pytest.mark.parametrize("key", ["newNonce", "newAccount", "newOrder"])
def test_a_directory_that_lacks_something_names_it(key: str) -> None:
    with pytest.raises(AcmeProtocolError, match=f"the CA's directory has no valid '{key}'"):
        Directory.parse(as_json(DIRECTORY, **{key: None}))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"7", b'"x"', b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_an_error_of_the_ca(body: bytes) -> None:
    with pytest.raises(AcmeProtocolError, match="is no JSON object"):
        Directory.parse(body)


def test_an_order() -> None:
    order = Order.parse("https://ca.test/order/1", as_json(ORDER))
    assert order.url == "https://ca.test/order/1"
    assert order.status == "valid"
    assert order.names == ("cloud.test",)
    assert order.authorizations == ("https://ca.test/authz/1",)
    assert (order.finalize, order.certificate) == ("https://ca.test/finalize/1", "https://ca.test/certificate/1")
    assert order.error is None


def test_an_order_that_failed() -> None:
    failed = as_json(ORDER, status="invalid", certificate=None, error={"type": "x", "detail": "no"})
    order = Order.parse("u", failed)
    assert order.certificate == ""
    assert order.error is not None
    assert order.error.detail == "no"


@pytest.mark.parametrize(
    "change",
    [
        {"status": "lost"},
        {"status": None},
        {"status": ["valid"]},
        {"identifiers": None},
        {"identifiers": ["cloud.test"]},
        {"identifiers": [{"type": "dns"}]},
        {"authorizations": [1]},
        {"authorizations": "https://ca.test/authz/1"},
        {"finalize": 3},
        {"certificate": {}},
    ],
)
def test_an_order_that_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(AcmeProtocolError, match="the CA's order has no valid"):
        Order.parse("u", as_json(ORDER, **change))


def test_an_authorisation() -> None:
    authorization = Authorization.parse(as_json(AUTHORIZATION))
    assert authorization.status == "pending"
    assert [challenge.type for challenge in authorization.challenges] == ["dns-01", "http-01"]
    challenge = authorization.challenge("http-01")
    assert challenge is not None
    assert (challenge.token, challenge.status, challenge.error) == ("abc_-9", "pending", None)
    assert authorization.challenge("tls-alpn-01") is None
    assert authorization.error() is None


def test_the_error_of_an_authorisation_is_that_of_the_challenge_that_has_one() -> None:
    failed = {**CHALLENGE, "status": "invalid", "error": {"detail": "refused"}}
    authorization = Authorization.parse(as_json(AUTHORIZATION, challenges=[{"type": "dns-01", "url": "u"}, failed]))
    error = authorization.error()
    assert error is not None
    assert error.detail == "refused"


@pytest.mark.parametrize(
    "token", ["", "../../etc/passwd", "a b", "a/b", "a\r\nb", "x" * 129, "\N{LATIN SMALL LETTER E WITH ACUTE}"]
)
def test_a_token_that_is_none_never_gets_as_far_as_port_80(token: str) -> None:
    with pytest.raises(AcmeProtocolError, match="token"):
        Authorization.parse(as_json(AUTHORIZATION, challenges=[{**CHALLENGE, "token": token}]))


@pytest.mark.parametrize("change", [{"status": "?"}, {"status": None}, {"challenges": None}, {"challenges": [1]}])
def test_an_authorisation_that_makes_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(AcmeProtocolError, match="the CA's authorization has no valid"):
        Authorization.parse(as_json(AUTHORIZATION, **change))
