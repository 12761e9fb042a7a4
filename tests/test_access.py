"""Rules about who may connect."""

from __future__ import annotations

import ipaddress

import pytest

from trioproxy.access import Access, Network


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


ON_LINK = networks("203.0.113.0/24", "2001:db8:1::/64")


@pytest.mark.parametrize(
    ("access", "permitted", "refused"),
    [
        (Access(), ["192.0.2.1", "2001:db8::1", "10.0.0.1"], []),
        (
            Access(allow=networks("192.0.2.0/24", "2001:db8::/48")),
            ["192.0.2.1", "2001:db8::1", "::ffff:192.0.2.9"],
            ["192.0.3.1", "2001:db8:1::1", "10.0.0.1"],
        ),
        (Access(deny=networks("192.0.2.0/24")), ["192.0.3.1", "2001:db8::1"], ["192.0.2.1", "::ffff:192.0.2.1"]),
        (
            Access(allow=networks("192.0.2.0/24"), deny=networks("192.0.2.128/25")),
            ["192.0.2.1"],
            ["192.0.2.200", "198.51.100.1"],
        ),
        (
            Access(allow_lan=True),
            ["10.1.2.3", "172.31.0.1", "192.168.1.1", "127.0.0.1", "203.0.113.9", "fd00::1", "fe80::1%eth0", "::1"],
            ["192.0.2.1", "172.32.0.1", "2001:db8:2::9", "8.8.8.8"],
        ),
        (Access(allow=networks("192.0.2.1/32"), allow_lan=True), ["192.0.2.1", "10.0.0.1"], ["192.0.2.2"]),
        (Access(allow_lan=True), ["2001:db8:1::9"], ["2001:db9::1"]),
        (Access(deny_lan=True), ["192.0.2.1"], ["10.0.0.1", "203.0.113.9"]),
    ],
)
def test_who_is_permitted(access: Access, permitted: list[str], refused: list[str]) -> None:
    assert [host for host in permitted if not access.permits(host, ON_LINK)] == []
    assert [host for host in refused if access.permits(host, ON_LINK)] == []


def test_lan_follows_the_networks_that_it_is_given() -> None:
    rule = Access(allow_lan=True)
    assert not rule.permits("203.0.113.9", ())
    assert rule.permits("203.0.113.9", ON_LINK)
