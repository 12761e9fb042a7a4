"""What `client_ip = "transparent"` asks of this machine: the commands that set it up, and what of them is missing.

A backend that is called from the client's address answers to the client's address. It sends that answer through this
machine, if this machine is its gateway, and there the kernel would pass it on to the client, who knows nothing of it.
So the answer must be recognised and taken in:

1. nftables marks packets that come from a backend and belong to a transparent socket of this machine. Both: what the
   backend says to others who reach it through this machine is none of our business.
2. A rule sends what is marked to a routing table of its own.
3. In that table every address is this machine's own.

`commands` writes them down. `missing` holds them against what the machine says of itself (`look`), and knows what no
command can put right: a client cannot be called IPv6 towards an IPv4 backend.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from trioproxy.access import Address, Network
from trioproxy.config.model import CATCH_ALL, Config, HostPort
from trioproxy.net.lan import on_link_networks
from trioproxy.net.resolve import NoAddress, literal, look_up
from trioproxy.net.transparent import allowed

MARK = "0x7470"  # "tp"
TABLE = "7470"
NFT_TABLE = "trioproxy"

_SETS = {4: "backends4", 6: "backends6"}
_EVERYWHERE = {4: "ip", 6: "ip6"}


@attrs.frozen
class Backend:
    """An address that a transparent name, as it is to be called to people, leads to."""

    name: str
    host: str
    port: int

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.host else 4


@attrs.frozen
class Plan:
    """What is to be set up.

    Attributes:
        backends: Every address of every transparent name, names resolved.
        unresolved: Names of backends that have no address now, with the reason.
        listens: The IP versions on which clients may come.
    """

    backends: tuple[Backend, ...]
    unresolved: tuple[tuple[HostPort, str], ...]
    listens: frozenset[int]

    def elements(self, version: int) -> set[tuple[str, int]]:
        """The addresses and ports of one IP version."""
        return {(b.host, b.port) for b in self.backends if b.version == version}


def plan(config: Config) -> Plan:
    """What the transparent names of a configuration ask for; names of backends are resolved now."""
    backends: list[Backend] = []
    unresolved: list[tuple[HostPort, str]] = []
    for entry in config.passthrough.values():
        if entry.client_ip != "transparent":
            continue
        for to in entry.to:
            known = literal(to.host)
            try:
                hosts = [known.host] if known else [address.host for address in look_up(to.host)]
            except NoAddress as exc:
                unresolved.append((to, str(exc)))
            else:
                name = "every other name" if entry.name == CATCH_ALL else entry.name
                backends += [Backend(name, str(ipaddress.ip_address(host)), to.port) for host in hosts]
    listens = frozenset(6 if ":" in address.host else 4 for address in config.listen.https)
    return Plan(tuple(dict.fromkeys(backends)), tuple(unresolved), listens)


# ---- setting it up ------------------------------------------------------------------------------------


def commands(plan: Plan, source: str) -> str:
    """A shell script that sets up what `plan` asks for; it may be run any number of times.

    Args:
        plan: What to set up.
        source: The configuration file, for the comment.
    """
    return "\n".join([*_opening(plan, source), *_marking(plan), *_routing(plan), *_undoing(), ""])


def _opening(plan: Plan, source: str) -> Iterator[str]:
    yield "#!/bin/sh"
    yield f"# Made by `trioproxy transparent-setup` from {source}."
    yield "#"
    yield '# With client_ip = "transparent" a backend answers to the client\'s own address. These commands let this'
    yield "# machine take those answers in, and nothing else. Run them as root, again after each boot, and make them"
    yield "# anew when backends or their addresses change. Running them twice does no harm."
    yield "#"
    yield "# They cannot make the backend send its answers here: its default route must lead to this machine."
    for to, problem in plan.unresolved:
        yield "#"
        yield f"# MISSING: {to} has no address now ({problem}). Make these lines anew when it has."
    yield "set -e"


def _marking(plan: Plan) -> Iterator[str]:
    yield ""
    yield "# 1. Mark what comes from a backend and belongs to a transparent connection of this machine."
    yield "nft -f - <<'END'"
    yield f"table inet {NFT_TABLE}"
    yield f"delete table inet {NFT_TABLE}"
    yield f"table inet {NFT_TABLE} {{"
    for version, name in _SETS.items():
        names: dict[str, list[str]] = {}
        for b in plan.backends:
            if b.version == version:
                names.setdefault(f"{b.host} . {b.port}", []).append(b.name)
        yield f"    set {name} {{"
        yield f"        type ipv{version}_addr . inet_service"
        if names:
            yield "        elements = {"
            yield from (f"            {element},  # {', '.join(of)}" for element, of in names.items())
            yield "        }"
        yield "    }"
    yield "    chain prerouting {"
    yield "        type filter hook prerouting priority mangle; policy accept;"
    for version, name in _SETS.items():
        family = _EVERYWHERE[version]
        yield f"        {family} saddr . tcp sport @{name} socket transparent 1 meta mark set {MARK}"
    yield "    }"
    yield "}"
    yield "END"


def _routing(plan: Plan) -> Iterator[str]:
    yield ""
    yield "# 2. What is marked goes by a routing table of its own,"
    for version in _versions(plan):
        rule = f"fwmark {MARK} lookup {TABLE}"
        yield f"ip -{version} rule show | grep -q '{rule}' || ip -{version} rule add {rule} priority {TABLE}"
    yield ""
    yield "# 3. in which every address is this machine's own."
    for version in _versions(plan):
        yield f"ip -{version} route replace local default dev lo table {TABLE}"


def _undoing() -> Iterator[str]:
    yield ""
    yield "# To undo it:"
    yield f"#   nft delete table inet {NFT_TABLE}"
    for version in (4, 6):
        yield f"#   ip -{version} rule del fwmark {MARK} lookup {TABLE}; ip -{version} route flush table {TABLE}"


def _versions(plan: Plan) -> list[int]:
    return sorted({b.version for b in plan.backends})


# ---- what is missing ----------------------------------------------------------------------------------


@attrs.frozen
class Machine:
    """What this machine says of itself, as far as it matters here.

    Attributes:
        may: Whether this process may speak from addresses of others.
        elements: What the nft table marks, by IP version; None where the table is not there.
        rules: The IP versions whose rule is there.
        routes: The IP versions whose route is there.
        unseen: What could not be found out, and why.
        own: Those of the backends' addresses that are this machine's.
        on_link: The networks that this machine is on.
        gateways: Where it sends what is for elsewhere.
        marked_sources: Whether the kernel looks senders up by their mark too, which WireGuard's tools switch on.
    """

    may: bool
    elements: Mapping[int, set[tuple[str, int]]] | None
    rules: frozenset[int]
    routes: frozenset[int]
    unseen: str = ""
    own: frozenset[str] = frozenset()
    on_link: tuple[Network, ...] = ()
    gateways: tuple[Address, ...] = ()
    marked_sources: bool = False


def missing(plan: Plan, machine: Machine) -> list[str]:
    """Sentences for a person, each about one thing that keeps transparent names from working; empty when all is well.

    Pure: what the machine says is handed in.
    """
    return [*_about_names(plan), *_about_addresses(plan, machine), *_about_setup(plan, machine)]


def _about_names(plan: Plan) -> Iterator[str]:
    for to, problem in plan.unresolved:
        yield f"{to} has no address now ({problem}), so it is not known what transparent mode needs for it"
    for name in dict.fromkeys(b.name for b in plan.backends):
        has = {b.version for b in plan.backends if b.name == name}
        for version in sorted(plan.listens - has):
            yield (
                f'{name}: clients that come by IPv{version} will be refused, for with client_ip = "transparent" only '
                f"an IPv{version} backend can see their address: name one in `to` as well, or use proxy-v2 if the "
                f"backend understands it{', or have no AAAA record for this name' if version == 6 else ''}"
            )


def _about_addresses(plan: Plan, machine: Machine) -> Iterator[str]:
    for backend in plan.backends:
        if backend.host in machine.own:
            yield (
                f"{backend.name}: {backend.host} is this machine itself, whose answers never come in from outside: "
                'client_ip = "transparent" does not work for it, so use proxy-v2'
            )
            continue
        address = ipaddress.ip_address(backend.host)
        shared = [n for n in machine.on_link if address in n and any(gateway in n for gateway in machine.gateways)]
        if shared:
            yield (
                f"{backend.name}: {backend.host} is in {shared[0]}, as this machine's own gateway is. What it answers "
                "to clients in there goes to them directly, past this machine, and they cannot connect; what it "
                "answers to others must go through this machine: put it into a network of its own behind this machine"
            )


def _about_setup(plan: Plan, machine: Machine) -> Iterator[str]:
    if not machine.may:
        yield (
            "this user may not speak from the addresses of clients, as transparent names ask for: the server must run "
            "as root, or with CAP_NET_RAW (AmbientCapabilities= in a systemd unit)"
        )
    if machine.unseen:
        yield f"it cannot be told whether this machine is set up for transparent names: {machine.unseen}"
        return
    lacking = []
    if machine.elements is None:
        lacking.append("the nft rules that mark what the backends answer")
    elif unmarked := [
        str(HostPort(*e)) for v in _SETS for e in sorted(plan.elements(v) - machine.elements.get(v, set()))
    ]:
        lacking.append(f"the nft rule for {', '.join(unmarked)}")
    lacking += [f"the IPv{v} rule for what is marked" for v in _versions(plan) if v not in machine.rules]
    lacking += [f"the IPv{v} route in table {TABLE}" for v in _versions(plan) if v not in machine.routes]
    if lacking:
        yield (
            f"transparent names do not work yet, for this machine lacks {'; '.join(lacking)}: run the commands that "
            "`trioproxy transparent-setup` prints"
        )
    if machine.marked_sources and 4 in _versions(plan):
        yield (
            "net.ipv4.conf.all.src_valid_mark is 1 (wg-quick sets it), so the kernel drops what the backends of "
            "transparent names answer: set it to 0"
        )


# ---- asking the machine -------------------------------------------------------------------------------

Ask = Callable[[Sequence[str]], str | None]
"""Runs a command; gives what it printed, None if it failed."""


def look(plan: Plan, ask: Ask | None = None) -> Machine:
    """What the machine says of itself; `ask` runs the commands `nft` and `ip`."""
    ask = ask or _run
    families = {4: socket.AF_INET, 6: socket.AF_INET6}
    versions = _versions(plan)
    unseen = _unseen(ask)
    gateways = [
        gateway for v in versions for gateway in _gateways(ask(["ip", "-j", f"-{v}", "route", "show", "default"]))
    ]
    return Machine(
        may=all(allowed(families[v]) for v in versions),
        elements=None if unseen else _elements(ask(["nft", "-j", "list", "table", "inet", NFT_TABLE])),
        rules=frozenset(v for v in versions if _has_rule(ask(["ip", "-j", f"-{v}", "rule"]))),
        routes=frozenset(
            v for v in versions if _has_route(ask(["ip", "-j", f"-{v}", "route", "show", "table", TABLE]))
        ),
        unseen=unseen,
        own=frozenset(b.host for b in plan.backends if _is_own(ask(["ip", "-j", "route", "get", b.host]))),
        on_link=on_link_networks(),
        gateways=tuple(gateways),
        marked_sources=_marked_sources(),
    )


def _run(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - ours
            command, capture_output=True, text=True, timeout=10, check=False, env={**os.environ, "PATH": _path()}
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _path() -> str:
    """Where commands are looked for: also where Debian keeps nft and ip, and ordinary users do not look."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _unseen(ask: Ask) -> str:
    """Why it cannot be told what is there; "" where it can."""
    for program, package in (("nft", "nftables"), ("ip", "iproute2")):
        if shutil.which(program, path=_path()) is None:
            return f"the command `{program}` is not installed (on Debian: apt-get install {package})"
    return "only root may look: run this command as root" if ask(["nft", "list", "tables"]) is None else ""


def _elements(table: str | None) -> dict[int, set[tuple[str, int]]] | None:
    """What the sets of our nft table hold, from `nft -j`; None if there is no such table."""
    if table is None:
        return None
    found: dict[int, set[tuple[str, int]]] = {}
    sets = [item["set"] for item in json.loads(table)["nftables"] if "set" in item]
    for version, name in _SETS.items():
        pairs = [e["concat"] for s in sets if s["name"] == name for e in s.get("elem", [])]
        found[version] = {(str(ipaddress.ip_address(host)), int(port)) for host, port in pairs}
    return found


def _has_rule(rules: str | None) -> bool:
    return any(r.get("fwmark") == MARK and r.get("table") == TABLE for r in _list(rules))


def _has_route(routes: str | None) -> bool:
    return any(r.get("type") == "local" and r.get("dst") == "default" for r in _list(routes))


def _is_own(route: str | None) -> bool:
    return any(r.get("type") == "local" for r in _list(route))


def _gateways(routes: str | None) -> list[Address]:
    return [ipaddress.ip_address(str(r["gateway"])) for r in _list(routes) if "gateway" in r]


def _list(text: str | None) -> list[dict[str, object]]:
    """What `ip -j` printed; it prints a stray `[` before it complains that a table does not exist."""
    try:
        found = json.loads(text or "[]")
    except ValueError:
        return []
    return found if isinstance(found, list) else []


def _marked_sources() -> bool:
    try:
        return Path("/proc/sys/net/ipv4/conf/all/src_valid_mark").read_text().strip() == "1"
    except OSError:
        return False
