"""Sockets that speak from an address which is not ours."""

from __future__ import annotations

import socket

import pytest

from tests.net.capabilities import CAP_NET_ADMIN, CAP_NET_RAW, without
from trioproxy.errors import CannotBeClient
from trioproxy.net.transparent import allowed, family_of, speak_as

FAMILIES = [(socket.AF_INET, "198.51.100.5"), (socket.AF_INET6, "2001:db8::5")]

transparency = pytest.mark.skipif(not allowed(socket.AF_INET), reason="only root may speak from others' addresses")


@transparency
@pytest.mark.parametrize(("family", "client"), FAMILIES)
def test_the_address_is_taken_and_the_port_left_open(family: socket.AddressFamily, client: str) -> None:
    assert family_of(client) == family
    with socket.socket(family) as sock:
        speak_as(sock, client)
        # A port that were chosen now would be used up for all backends, and not for the one that is connected to.
        assert sock.getsockname()[:2] == (client, 0)


@transparency
@pytest.mark.parametrize(("family", "client"), FAMILIES)
def test_either_of_two_capabilities_is_enough(family: socket.AddressFamily, client: str) -> None:
    for lacking in (CAP_NET_RAW, CAP_NET_ADMIN):
        with without(lacking):
            assert allowed(family)


@pytest.mark.parametrize(("family", "client"), FAMILIES)
def test_without_them_the_error_says_what_to_do(family: socket.AddressFamily, client: str) -> None:
    with without(CAP_NET_ADMIN, CAP_NET_RAW), socket.socket(family) as sock:
        assert not allowed(family)
        with pytest.raises(CannotBeClient, match=r"run it as root, or give it CAP_NET_RAW \(AmbientCapabilities="):
            speak_as(sock, client)


@transparency
def test_an_address_that_nobody_can_have_is_refused() -> None:
    refused = pytest.raises(CannotBeClient, match="this machine cannot speak from fe80::5: Invalid argument")
    with socket.socket(socket.AF_INET6) as sock, refused:
        speak_as(sock, "fe80::5")
