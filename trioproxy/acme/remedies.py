"""Why a validation did not succeed, in words for somebody who runs a server at home. Pure.

A CA says what it saw: an address, a refused connection, a status. What that means is known for the few causes that
there are behind a home router, and each leaves its mark in the CA's own words (here those of Boulder, which Let's
Encrypt runs, and of Pebble). Where nothing is recognised, the kind of the problem alone decides.
"""

from __future__ import annotations

import ipaddress
import re

from trioproxy.acme.problems import Problem
from trioproxy.config.model import ChallengeType
from trioproxy.errors import AcmeFailure

# "203.0.113.7: Fetching http://…", also behind "During secondary validation: "; and "dial tcp 203.0.113.7:80: …".
_ADDRESS = re.compile(
    r"(?:^|: |dial tcp )"
    r"(?:([0-9]{1,3}(?:\.[0-9]{1,3}){3})(?::[0-9]+)?|\[([0-9A-Fa-f:.]+)\](?::[0-9]+)?|([0-9A-Fa-f]*:[0-9A-Fa-f:.]*))"
    r": "
)

_CGNAT = ipaddress.ip_network("100.64.0.0/10")
"""RFC 6598: what providers give to customers who share one public address."""

PORTS: dict[ChallengeType, int] = {"http-01": 80, "tls-alpn-01": 443}


def failure_of(problem: Problem | None) -> AcmeFailure:
    """What kind of failure a validation is that ended with `problem`."""
    kind = "" if problem is None else problem.core
    return "caa" if kind == "caa" else "dns" if kind == "dns" else "validation"


def explain_validation(name: str, problem: Problem | None, challenge: ChallengeType = "http-01") -> str:
    """Why a validation did not succeed, what to do about it, and what the CA says of it.

    Args:
        name: The host name.
        problem: What the CA says, None for nothing.
        challenge: How it tried to validate.
    """
    said = "nothing" if problem is None else problem.words()
    return f"{_cause(name, problem, PORTS[challenge])}. The CA says: {said}"


def _cause(name: str, problem: Problem | None, port: int) -> str:
    kind = "" if problem is None else problem.core
    said = "" if problem is None else problem.words()
    if kind == "connection":
        return _unreachable(name, said, port)
    if kind in ("unauthorized", "incorrectResponse"):
        return _answered_otherwise(name, said, port)
    if kind == "dns":
        return _unresolved(name, said)
    if kind == "caa":
        return (
            f"a CAA record of {name} or of its domain forbids this CA to issue. Add the CA there, or remove the record"
        )
    if kind == "tls" and port == 443:
        return (
            f"something answered the CA on port 443 of {name} that does not know its challenge. Look where the router"
            " forwards port 443 to, and whether another proxy stands in front of this trioproxy"
        )
    if kind == "tls":
        return (
            f"the CA was led to an https address for {name} and could not speak TLS there. Look for a redirect on port"
            " 80 in front of this trioproxy"
        )
    return "the CA did not accept the answer to its challenge"


def _unreachable(name: str, said: str, port: int) -> str:
    at = _address(said)
    where = f"port {port} of {name}" if at is None else f"port {port} of {name} at {at}"
    record = "AAAA" if at is not None and at.version == 6 else "A"
    if at is not None and at in _CGNAT:
        return (
            f"{at}, to which the A record of {name} leads, is an address that your provider shares among its customers"
            " (CGNAT), and nobody can reach you there. Ask the provider for a public IPv4 address, or use its IPv6"
        )
    refused = "refused" in said.lower()
    if at is not None and at.is_private and not refused:  # who was refused did reach it: a CA within that network
        return (
            f"{at}, to which the {record} record of {name} leads, is an address within a private network, which a CA on"
            " the internet cannot reach. The record must hold the address that your router has on the internet"
        )
    if at is not None and at.version == 6:
        return (
            f"the CA could not connect to {where}, which its AAAA record names, and it asks there first. The likely"
            " cause is a AAAA record with an old address, or a router that lets no IPv6 in. Correct the AAAA record,"
            f" open port {port} for IPv6, or remove the AAAA record"
        )
    if refused:
        return (
            f"the CA could not connect to {where}: the connection was refused. The likely cause is that the router does"
            f" not forward port {port} to this machine, or forwards it to one where nothing listens; or that the name's"
            " A or AAAA record holds an old address"
        )
    if "after connect" in said or "reset" in said.lower():
        return (
            f"the CA reached {where}, and then got no answer. Something between it and this trioproxy takes connections"
            " and does not pass them on: the router itself, a firewall that looks into them, or an overloaded machine"
        )
    return (
        f"the CA could not connect to port {port} of {name}"
        + (f" at {at}" if at is not None else "")
        + f". The likely cause is that the router does not forward port {port} to this machine, that a firewall or the"
        " provider blocks it, that the provider gives you no public IPv4 address (CGNAT: compare the address that the"
        " router shows for the internet with the name's), or that the name's A or AAAA record holds an old address"
    )


def _answered_otherwise(name: str, said: str, port: int) -> str:
    at = _address(said)
    there = f"on port {port} of {name}" if at is None else f"on port {port} of {name} at {at}"
    lower = said.lower()
    if at is not None and at.version == 6:
        return (
            f"something answered the CA {there}, but not with the answer to its challenge. The CA asks first where the"
            " AAAA record leads: that is another machine, perhaps the router itself. Correct the AAAA record, or remove"
            " it"
        )
    if "redirect" in lower:
        return (
            f"something answered the CA {there} with a redirect that leads nowhere. Whatever stands in front of this"
            " trioproxy must pass /.well-known/acme-challenge/ on as it is"
        )
    if "did not match" in lower or "!=" in said:
        return (
            f"something answered the CA {there} with the answer to another challenge. The likely cause is a second ACME"
            f" client for {name}, on another machine or behind the same router: only one of them can be asked"
        )
    return (
        f"something answered the CA {there}, but not with the answer to its challenge. The likely cause is that the"
        f" name's A or AAAA record, or the router's forwarding of port {port}, leads elsewhere than to this trioproxy:"
        " to the router's own page, to another web server, or to an address that has become somebody else's"
    )


def _unresolved(name: str, said: str) -> str:
    lower = said.lower()
    if "caa" in lower and ("servfail" in lower or "timed out" in lower or "timeout" in lower):
        return (
            f"the DNS servers of {name} did not answer the CA's question for CAA records. Not having any is fine, not"
            " answering is not: this is the DNS provider's to repair"
        )
    if "nxdomain" in lower:
        return (
            f"{name} is not in the DNS. Add an A record (and an AAAA record, if it has IPv6) where its domain is kept"
        )
    if "no valid" in lower or "no ip addresses" in lower or "no addresses" in lower:
        return (
            f"{name} is in the DNS without an address that the CA could use. Add an A record with the address that your"
            " router has on the internet"
        )
    if "dnssec" in lower or "bogus" in lower:
        return (
            f"the DNSSEC signatures of {name} are not valid, so nobody who checks them finds the name. Repair or remove"
            " them where its domain is kept"
        )
    return f"the CA found no address for {name}. Look at its A and AAAA records, and at the DNS servers of its domain"


def _address(said: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that the CA's words speak of."""
    for found in _ADDRESS.finditer(said):
        try:
            return ipaddress.ip_address(next(filter(None, found.groups())))
        except ValueError:
            continue
    return None
