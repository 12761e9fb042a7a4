"""What is said of validations that failed: the cause behind a home router, from the words of Boulder and Pebble."""

from __future__ import annotations

import pytest

from trioproxy.acme.problems import NAMESPACE, Problem
from trioproxy.acme.remedies import explain_validation, failure_of

TOKEN_URL = "http://cloud.test/.well-known/acme-challenge/tok"


def problem(kind: str, detail: str) -> Problem:
    return Problem.parse({"type": NAMESPACE + kind, "detail": detail})


@pytest.mark.parametrize(
    ("kind", "detail", "hint"),
    [
        ("connection", "it did not work", "the router does not forward port 80"),
        (
            "connection",
            f"93.184.216.34: Fetching {TOKEN_URL}: Timeout during connect (likely firewall problem)",
            "port 80 of cloud.test at 93.184.216.34. The likely cause is that the router does not forward port 80",
        ),
        (
            "connection",
            f"93.184.216.34: Fetching {TOKEN_URL}: Timeout during connect (likely firewall problem)",
            "CGNAT: compare the address that the router shows",
        ),
        ("connection", f"93.184.216.34: Fetching {TOKEN_URL}: Connection refused", "the connection was refused"),
        (
            "connection",
            f'Get "{TOKEN_URL}": dial tcp 127.0.0.1:5002: connect: connection refused',
            "port 80 of cloud.test at 127.0.0.1: the connection was refused",
        ),
        (
            "connection",
            f"100.70.1.2: Fetching {TOKEN_URL}: Timeout during connect",
            "shares among its customers (CGNAT)",
        ),
        (
            "connection",
            f"192.168.1.20: Fetching {TOKEN_URL}: Timeout during connect",
            "192.168.1.20, to which the A record of cloud.test leads, is an address within a private network",
        ),
        (
            "connection",
            f"2a00:1450::1: Fetching {TOKEN_URL}: Timeout during connect (likely firewall problem)",
            "or remove the AAAA record",
        ),
        (
            "connection",
            f"During secondary validation: 2a00:1450::1: Fetching {TOKEN_URL}: Connection refused",
            "or remove the AAAA record",
        ),
        (
            "connection",
            f"93.184.216.34: Fetching {TOKEN_URL}: Timeout after connect (your server may be slow or overloaded)",
            "and then got no answer",
        ),
        (
            "connection",
            f'Get "{TOKEN_URL}": dial tcp [2a00:1450::1]:80: i/o timeout: x',
            "port 80 of cloud.test at 2a00:1450::1, which its AAAA record names",
        ),
        ("connection", f"93.184.216.34: Fetching {TOKEN_URL}: Connection reset by peer", "and then got no answer"),
        ("unauthorized", "no", "leads elsewhere than to this trioproxy"),
        ("incorrectResponse", "no", "leads elsewhere than to this trioproxy"),
        (
            "unauthorized",
            f"93.184.216.34: Invalid response from {TOKEN_URL}: 404",
            "something answered the CA on port 80 of cloud.test at 93.184.216.34",
        ),
        (
            "unauthorized",
            f'2a00:1450::1: Invalid response from {TOKEN_URL}: "<html>FRITZ!Box"',
            "Correct the AAAA record, or remove it",
        ),
        (
            "unauthorized",
            'The key authorization file from the server did not match this challenge "a" != "b"',
            "a second ACME client for cloud.test",
        ),
        (
            "unauthorized",
            f"93.184.216.34: Fetching {TOKEN_URL}: Too many redirects",
            "with a redirect that leads nowhere",
        ),
        ("dns", "it did not work", "found no address for cloud.test"),
        (
            "dns",
            "DNS problem: NXDOMAIN looking up A for cloud.test - check that a DNS record exists for this domain",
            "cloud.test is not in the DNS. Add an A record",
        ),
        (
            "dns",
            "no valid A records found for cloud.test; no valid AAAA records found for cloud.test",
            "without an address that the CA could use",
        ),
        ("dns", "DNS problem: SERVFAIL looking up CAA for cloud.test", "question for CAA records"),
        ("dns", "DNS problem: SERVFAIL looking up A for cloud.test: DNSSEC: Bogus", "DNSSEC signatures"),
        ("caa", "CAA record for cloud.test prevents issuance", "forbids this CA to issue"),
        ("tls", "remote error: tls: handshake failure", "redirect on port 80"),
        ("somethingNew", "it did not work", "did not accept"),
    ],
)
def test_a_failed_validation_is_explained(kind: str, detail: str, hint: str) -> None:
    text = explain_validation("cloud.test", problem(kind, detail))
    assert hint in text
    assert text.endswith(f". The CA says: {detail}")


@pytest.mark.parametrize(
    ("kind", "detail", "hint"),
    [
        ("connection", "93.184.216.34: Timeout during connect", "does not forward port 443"),
        ("tls", "remote error: tls: no application protocol", "on port 443 of cloud.test that does not know its"),
        ("unauthorized", "93.184.216.34: wrong certificate", "the router's forwarding of port 443"),
    ],
)
def test_a_proof_in_tls_fails_on_port_443(kind: str, detail: str, hint: str) -> None:
    text = explain_validation("cloud.test", problem(kind, detail), "tls-alpn-01")
    assert hint in text
    assert "port 80" not in text


def test_a_failed_validation_without_a_reason_says_so() -> None:
    assert explain_validation("cloud.test", None).endswith("The CA says: nothing")


def test_of_a_compound_problem_the_first_part_is_explained() -> None:
    parts = {"subproblems": [{"type": NAMESPACE + "caa", "detail": "CAA forbids it"}]}
    compound = Problem.parse({"type": NAMESPACE + "compound", "detail": "two things", **parts})
    assert "forbids this CA" in explain_validation("cloud.test", compound)
    assert failure_of(compound) == "caa"


@pytest.mark.parametrize("text", ["1.2.3.4.5: x", "999.1.1.1: x", ":::: x", "a:b: x", "12:30: x", ": : : x", ""])
def test_what_looks_like_an_address_and_is_none_is_none(text: str) -> None:
    assert " at " not in explain_validation("cloud.test", problem("connection", text)).partition(". The CA says")[0]


@pytest.mark.parametrize(
    ("kind", "failure"), [("caa", "caa"), ("dns", "dns"), ("connection", "validation"), ("", "validation")]
)
def test_kinds_of_failures(kind: str, failure: str) -> None:
    assert failure_of(problem(kind, "")) == failure
    assert failure_of(None) == "validation"
