"""Hosts to play the scene on: network namespaces of our own, or loopback addresses where those are refused.

Every host is a namespace with one interface, and all interfaces hang on one bridge in a namespace that is nobody's
host, so nothing is added to the machine's own network. Names hold this process's id: runs beside each other do not
meet, and what a killed run left behind is recognised by its dead id and cleared away by the next. One process may have
several networks at a time, which do not know each other.

`ip netns exec` gives each host its own /etc/resolv.conf, so that a name which must not resolve does not, whatever the
machine's own resolver thinks of it.

On loopback a host is an address of 127.0.0.0/8 that only this process uses, and its ports become free high ones.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs

PREFIX = "trioproxy-test"
ETC_NETNS = Path("/etc/netns")

_numbers = itertools.count(1)


@attrs.frozen
class Plan:
    """A host to make: its addresses with their prefix lengths, where it sends the rest, and whom it asks for names."""

    name: str
    addresses: tuple[str, ...]
    gateway: str = ""
    nameserver: str = ""


@attrs.frozen
class Host:
    """A host of the scene.

    Attributes:
        addresses: Its addresses in the order of the plan; on loopback all of them are the same one.
        listen: The address that its servers bind.
        prefix: What to put before a command that shall run there.
    """

    name: str
    addresses: tuple[str, ...]
    listen: str
    prefix: tuple[str, ...]
    isolated: bool
    _ports: dict[int, int] = attrs.field(factory=dict)

    @property
    def address(self) -> str:
        """The first address: where others find it."""
        return self.addresses[0]

    def port(self, number: int) -> int:
        """The port that stands for `number` here: itself, or a free high one on loopback."""
        if self.isolated:
            return number
        if number not in self._ports:
            with socket.create_server((self.listen, 0)) as probe:
                self._ports[number] = probe.getsockname()[1]
        return self._ports[number]

    def at(self, number: int) -> str:
        """`address:port` of a server on this host."""
        return f"{self.address}:{self.port(number)}"


@attrs.frozen
class Network:
    """All hosts by name, and why they are only addresses on loopback, if they are."""

    hosts: dict[str, Host]
    refused: str = ""


@contextlib.contextmanager
def network(plans: Sequence[Plan]) -> Iterator[Network]:
    """Make the hosts of `plans`; take everything away at the end."""
    with contextlib.ExitStack() as undo:
        try:
            hosts = None if os.environ.get("TRIOPROXY_E2E") == "loopback" else _namespaces(plans, undo)
            refused = "TRIOPROXY_E2E=loopback asks for it"
        except subprocess.CalledProcessError as exc:
            undo.close()
            hosts, refused = None, exc.stderr.strip() or f"{exc.cmd} failed"
        except OSError as exc:
            undo.close()
            hosts, refused = None, str(exc)
        yield Network(_loopback(plans), refused) if hosts is None else Network(hosts)


def _loopback(plans: Sequence[Plan]) -> dict[str, Host]:
    hosts = {}
    for number, plan in enumerate(plans, start=1):
        address = f"127.{77 + os.getpid() // 250 % 100}.{os.getpid() % 250}.{number}"
        hosts[plan.name] = Host(plan.name, tuple(address for _ in plan.addresses), address, (), isolated=False)
    return hosts


def _namespaces(plans: Sequence[Plan], undo: contextlib.ExitStack) -> dict[str, Host]:
    _clear_away_what_killed_runs_left()
    names = f"{PREFIX}-{os.getpid()}-{next(_numbers)}_"
    hub = f"{names}hub"
    _make(hub, "", undo)
    _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
    _ip("-n", hub, "link", "set", "bridge", "up")
    hosts = {}
    for plan in plans:
        namespace = f"{names}{plan.name}"
        _make(namespace, plan.nameserver, undo)
        _ip("-n", hub, "link", "add", plan.name, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", hub, "link", "set", plan.name, "master", "bridge", "up")
        # Duplicate address detection would keep IPv6 addresses out of use for a second.
        _ip("netns", "exec", namespace, "sysctl", "-qw", "net.ipv6.conf.eth0.accept_dad=0")
        for address in plan.addresses:
            _ip("-n", namespace, "address", "add", address, "dev", "eth0", *(["nodad"] if ":" in address else []))
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        if plan.gateway:
            _ip("-n", namespace, "route", "add", "default", "via", plan.gateway)
        addresses = tuple(address.partition("/")[0] for address in plan.addresses)
        hosts[plan.name] = Host(plan.name, addresses, "0.0.0.0", ("ip", "netns", "exec", namespace), isolated=True)
    return hosts


def _make(namespace: str, nameserver: str, undo: contextlib.ExitStack) -> None:
    _ip("netns", "add", namespace)
    undo.callback(_ip, "netns", "delete", namespace)
    if nameserver:
        undo.callback(_forget_files_of, namespace)
        (ETC_NETNS / namespace).mkdir(parents=True)
        (ETC_NETNS / namespace / "resolv.conf").write_text(f"nameserver {nameserver}\noptions timeout:1 attempts:2\n")


def _forget_files_of(namespace: str) -> None:
    shutil.rmtree(ETC_NETNS / namespace, ignore_errors=True)
    with contextlib.suppress(OSError):  # other namespaces have files there: then it stays
        ETC_NETNS.rmdir()


def _clear_away_what_killed_runs_left() -> None:
    for namespace in re.findall(rf"^{PREFIX}-\d+-\w+", _ip("netns", "list"), re.MULTILINE):
        if not Path(f"/proc/{namespace.split('-')[2]}").exists():
            with contextlib.suppress(subprocess.CalledProcessError):  # another run is doing the same
                _ip("netns", "delete", namespace)
            _forget_files_of(namespace)


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=10)
    return done.stdout
