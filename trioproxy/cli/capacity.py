"""What a configuration asks of the machine, and where the machine's own limits are smaller.

A kernel's limits announce themselves badly: connections are not accepted, or backends cannot be called, and under load
alone. `look` reads them; `shortcomings`, which is handed what it goes by, says which are too small for what is
configured, and what to do about it.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import attrs

from trioproxy.config.model import Config
from trioproxy.net.limits import connections_within, descriptors_for
from trioproxy.net.listen import BACKLOG
from trioproxy.net.memory import LEAST_MARGIN, MARGIN, margin
from trioproxy.net.pipes import MOST as PIPES
from trioproxy.net.pipes import SIZE as PIPE
from trioproxy.process.privileges import CAP_NET_BIND_SERVICE, may

MIB = 1024**2

EMPTY = 50 * MIB
"""What a process without connections takes."""

SITE_CONNECTION, TUNNEL = 22 * 1024, 4 * 1024
"""What an idle connection takes, to a site and passed through (docs/performance.md)."""

SYS = Path("/proc/sys")


@attrs.frozen
class Machine:
    """Limits of a machine, and of processes that are started as this one. None is no limit, or one that is not told.

    Attributes:
        descriptors: The most that a process may have (RLIMIT_NOFILE, the hard one).
        nr_open: The most that any process may be allowed.
        file_max: Of all processes together.
        somaxconn: Connections that may wait to be accepted by one listener.
        syn_backlog: Those that may be half-open; only where SYN cookies are off.
        local_ports: Ports for connections of this machine to one address and port.
        pipe_pages: Pages in pipes of one unprivileged user.
        tracked: Connections that the firewall can remember.
        first_free_port: Ports below it are privileged.
        may_bind: Whether this process may bind those.
        unprivileged: Whether the server will not be root.
        memory: Bytes that the machine has.
        processors: That this process may use.
    """

    descriptors: int | None = None
    nr_open: int | None = None
    file_max: int | None = None
    somaxconn: int | None = None
    syn_backlog: int | None = None
    local_ports: int | None = None
    pipe_pages: int | None = None
    tracked: int | None = None
    first_free_port: int = 0
    may_bind: bool = True
    unprivileged: bool = False
    memory: int | None = None
    processors: int | None = None


def look() -> Machine:
    """This machine. What cannot be read is not told."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    first, last = (_numbers("net/ipv4/ip_local_port_range") or [0, 0])[:2]
    root = os.geteuid() == 0
    return Machine(
        descriptors=None if descriptors == resource.RLIM_INFINITY else descriptors,
        nr_open=_number("fs/nr_open"),
        file_max=_number("fs/file-max"),
        somaxconn=_number("net/core/somaxconn"),
        syn_backlog=_number("net/ipv4/tcp_max_syn_backlog") if _number("net/ipv4/tcp_syncookies") == 0 else None,
        local_ports=last - first + 1 if last else None,
        pipe_pages=_number("fs/pipe-user-pages-soft") or None,  # 0 is no limit
        tracked=_number("net/netfilter/nf_conntrack_max") or None,
        first_free_port=_number("net/ipv4/ip_unprivileged_port_start") or 0,
        may_bind=root or may(CAP_NET_BIND_SERVICE),
        unprivileged=not root,
        memory=os.sysconf("SC_PHYS_PAGES") * resource.getpagesize(),
        processors=len(os.sched_getaffinity(0)),
    )


def _number(name: str) -> int | None:
    numbers = _numbers(name)
    return numbers[0] if numbers else None


def _numbers(name: str) -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        return [int(word) for word in (SYS / name).read_text().split()]
    return []


def shortcomings(config: Config, machine: Machine) -> list[str]:
    """Sentences for a person, each about one limit and what to do; empty when all is large enough."""
    return [
        *_descriptors(config, machine),
        *_waiting(machine),
        *_ports(config, machine),
        *_pipes(config, machine),
        *_tracking(config, machine),
        *_privileged(config, machine),
        *_memory(config, machine),
        *_processors(config, machine),
    ]


def _descriptors(config: Config, machine: Machine) -> Iterator[str]:
    connections, workers = config.limits.connections, config.process.workers
    wanted = descriptors_for(-(-connections // workers))
    each = " in each worker" if workers > 1 else ""
    asks = f"limits.connections = {connections} takes up to {wanted} descriptors{each}, two for each and some besides"
    if machine.nr_open is not None and machine.nr_open < wanted:
        yield f"{asks}, and no process may have more than {machine.nr_open}: {_sysctl('fs.nr_open', wanted)}"
    elif machine.descriptors is not None and machine.descriptors < wanted:
        yield (
            f"{asks}, and a process started from here may have {machine.descriptors}, enough for "
            f"{connections_within(machine.descriptors)} connections. As a service it has what its unit says: "
            f"LimitNOFILE=65536 in the one of install-service, or more by `systemctl edit trioproxy`. Without one: "
            f"`ulimit -Hn {wanted}` as root, or a line `* hard nofile {wanted}` in /etc/security/limits.conf"
        )
    together = wanted * workers
    if machine.file_max is not None and machine.file_max < together:
        yield f"{asks}, and all programs together may have {machine.file_max}: {_sysctl('fs.file-max', 2 * together)}"


def _waiting(machine: Machine) -> Iterator[str]:
    if machine.somaxconn is not None and machine.somaxconn < BACKLOG:
        yield (
            f"only {machine.somaxconn} connections may wait to be accepted, where trioproxy would let {BACKLOG}: when "
            f"many come at once, clients are left to try again a second later. {_sysctl('net.core.somaxconn', BACKLOG)}"
        )
    if machine.syn_backlog is not None and machine.syn_backlog < BACKLOG:
        yield (
            f"SYN cookies are off, and only {machine.syn_backlog} connections may be half-open: a few scanners can "
            f"keep everybody out. {_sysctl('net.ipv4.tcp_syncookies', 1)}"
        )


def _ports(config: Config, machine: Machine) -> Iterator[str]:
    ports, connections = machine.local_ports, config.limits.connections
    if ports is None or ports >= connections:
        return
    ours = [entry.name for entry in config.passthrough.values() if entry.client_ip != "transparent"]
    if ours or config.sites:
        yield (
            f"limits.connections = {connections}, and this machine has {ports} ports for connections to one backend: "
            f"beyond that it cannot be called. {_sysctl('net.ipv4.ip_local_port_range', '10240 65535')}"
        )


def _pipes(config: Config, machine: Machine) -> Iterator[str]:
    unprivileged = machine.unprivileged or bool(config.process.user)
    each = PIPE // resource.getpagesize()
    wanted = PIPES * each * config.process.workers
    if not config.passthrough or not unprivileged or machine.pipe_pages is None or machine.pipe_pages >= wanted:
        return
    yield (
        f"a user may have {machine.pipe_pages} pages in pipes, enough for {machine.pipe_pages // each} of the "
        f"{wanted // each} passthrough connections that are carried without copying; those beyond cost more of the "
        f"processor. {_sysctl('fs.pipe-user-pages-soft', wanted)}"
    )


def _tracking(config: Config, machine: Machine) -> Iterator[str]:
    wanted = 2 * config.limits.connections
    if machine.tracked is not None and machine.tracked < wanted:
        yield (
            f"the firewall remembers {machine.tracked} connections, and limits.connections = "
            f"{config.limits.connections} can be {wanted}, to clients and to backends: when it is full, packets are "
            f"dropped. {_sysctl('net.netfilter.nf_conntrack_max', 2 * wanted)}"
        )


def _privileged(config: Config, machine: Machine) -> Iterator[str]:
    listen = config.listen
    ports = sorted({at.port for at in (*listen.https, *listen.http) if at.port < machine.first_free_port})
    if ports and not machine.may_bind:
        some = " and ".join(map(str, ports))
        yield (
            f"this user may not listen on {some}: the service may (`sudo trioproxy install-service`), and so may root, "
            "who becomes process.user afterwards. To let everybody: "
            f"{_sysctl('net.ipv4.ip_unprivileged_port_start', ports[0])}"
        )


def _memory(config: Config, machine: Machine) -> Iterator[str]:
    limit, connections, workers = config.limits.memory, config.limits.connections, config.process.workers
    if limit is None:
        return
    said = f"limits.memory = {limit // MIB} MiB"
    if machine.memory is not None and limit > machine.memory:
        yield f"{said}, and this machine has {machine.memory // MIB}: as it stands nothing keeps to it"
    each, kind = (SITE_CONNECTION, "to sites") if config.sites else (TUNNEL, "passed through")
    fits = workers * max((limit // workers - margin(limit // workers) - EMPTY) // each, 0)
    if fits < connections:
        taken = workers * EMPTY + connections * each
        enough = max(taken * MARGIN // (MARGIN - 1), taken + workers * LEAST_MARGIN) // MIB + 1
        yield (
            f"{said} has room for some {fits} idle connections {kind}, {each // 1024} KiB each beside the "
            f"{EMPTY // MIB} MiB that an empty process takes, so limits.connections = {connections} cannot be reached: "
            f"raise it to {enough}MiB, or lower limits.connections"
        )


def _processors(config: Config, machine: Machine) -> Iterator[str]:
    workers = config.process.workers
    if machine.processors is not None and workers > max(machine.processors, 1):
        yield (
            f"process.workers = {workers}, and there are {machine.processors} processors: more workers than those "
            f"take memory and serve nobody the sooner"
        )


def _sysctl(name: str, value: int | str) -> str:
    setting = f"{name}={value}" if isinstance(value, int) else f"'{name}={value}'"
    return f"`sudo sysctl -w {setting}`; to keep it, write `{name} = {value}` into /etc/sysctl.d/trioproxy.conf"
