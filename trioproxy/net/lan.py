"""The networks that this machine is on, followed as they change: by rtnetlink(7), the kernel's own account of them.

A home's IPv6 prefix changes with the provider's mood, so "lan" is what the interfaces say now, not at the start.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct

import trio
from trio.lowlevel import wait_readable

from trioproxy.access import Network

log = logging.getLogger("trioproxy.lan")

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
"""An address and the network that it is in."""

# linux/netlink.h, linux/rtnetlink.h, linux/if_addr.h
_NETLINK_ROUTE = 0
_RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x10, 0x100
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS = 1

_MESSAGE = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_ATTRIBUTE = struct.Struct("=HH")  # length, type

SETTLE = 0.5
"""Seconds after a change before looking: an interface that comes up changes several times in a row."""


class Lan:
    """Holds `networks`, what the machine's interfaces are on."""

    def __init__(self) -> None:
        self.networks: tuple[Network, ...] = on_link_networks()

    async def run(self) -> None:
        """Follow changes, until cancelled. Where the kernel does not tell, what was there at the start stays."""
        try:
            events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_ROUTE)
            events.bind((0, _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))
        except OSError as exc:
            log.warning("changes of this machine's networks cannot be followed: %s", exc.strerror)
            return
        with events:
            while True:
                networks = on_link_networks()  # also at first: something may have changed before we listened
                if networks != self.networks:
                    self.networks = networks
                    log.info("this machine is now on %s", ", ".join(map(str, networks)))
                await wait_readable(events.fileno())
                await trio.sleep(SETTLE)
                _empty(events)


def _empty(events: socket.socket) -> None:
    while True:
        try:
            events.recv(65536)
        except BlockingIOError:
            return
        except OSError:  # ENOBUFS: more came than fitted; we look anew in any case
            continue


def on_link_networks() -> tuple[Network, ...]:
    """The network of every address of every interface, sorted; none where the kernel does not tell."""
    found = {interface.network for interface in _interfaces()}
    return tuple(sorted(found, key=lambda n: (n.version, n.network_address.packed, n.prefixlen)))


def public_addresses() -> tuple[Interface, ...]:
    """Every address of this machine that the whole internet could reach, each with its network."""
    return tuple(interface for interface in _interfaces() if interface.ip.is_global)


def _interfaces() -> list[Interface]:
    found: list[Interface] = []
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_ROUTE) as asking:
            request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            header = _MESSAGE.pack(_MESSAGE.size + len(request), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
            asking.send(header + request)
            while _read_dump(asking.recv(65536), found):
                pass
    except OSError as exc:
        log.warning("this machine's networks cannot be listed: %s", exc.strerror)
    return found


def _read_dump(data: bytes, found: list[Interface]) -> bool:
    """Add the addresses that a part of a dump names; whether more parts follow."""
    position = 0
    while position < len(data):
        length, kind, *_ = _MESSAGE.unpack_from(data, position)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR):
            return False
        if kind == _RTM_NEWADDR:
            interface = _interface(data[position + _MESSAGE.size : position + length])
            if interface is not None:
                found.append(interface)
        position += _aligned(length)
    return True


def _interface(message: bytes) -> Interface | None:
    _, prefix, *_ = _IFADDRMSG.unpack_from(message)
    position = _IFADDRMSG.size
    while position + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, position)
        if kind == _IFA_ADDRESS:
            address = ipaddress.ip_address(message[position + _ATTRIBUTE.size : position + length])
            return ipaddress.ip_interface((address, prefix))
        position += _aligned(length)
    return None


def _aligned(length: int) -> int:
    return (length + 3) & ~3
