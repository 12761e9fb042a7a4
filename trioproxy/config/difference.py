"""What is different between two configurations, in words: what a reload is about to do. Pure.

A name that moves between `[sites]` and `[passthrough]` is one that goes and one that comes: nothing that it had can
live on.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import attrs

from trioproxy.config.model import (
    CATCH_ALL,
    Acme,
    CertificateFiles,
    Config,
    HostPort,
    Limits,
    Listen,
    Log,
    Passthrough,
    Route,
    Site,
    Timeouts,
)

T = TypeVar("T", Listen, Acme, Limits, Log)

Entry = Passthrough | Site

DISCREET = {"eab", "on_renew", "fallback"}
"""Settings whose values may hold secrets: of these it is told that they have changed, and not how."""

KINDS = {Passthrough: "passthrough", Site: "site"}


@attrs.frozen
class Changed:
    """A name that stays, and what is new about it, each in a few words."""

    name: str
    kind: str
    what: tuple[str, ...]


@attrs.frozen
class Named:
    """A name that comes or goes; `leads` says where to."""

    name: str
    kind: str
    leads: str


@attrs.frozen
class Difference:
    """What changes from one configuration to another.

    Attributes:
        added: Names that come.
        removed: Names that go, and whose connections are to end.
        changed: Names that stay and are not the same.
        opened: Listeners that come, `https 0.0.0.0:443`.
        closed: Listeners that go.
        settings: What else changes.
        certificates: What that means for certificates.
        restart: Settings that have changed and need a restart.
    """

    added: tuple[Named, ...] = ()
    removed: tuple[Named, ...] = ()
    changed: tuple[Changed, ...] = ()
    opened: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    certificates: tuple[str, ...] = ()
    restart: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether anything changes."""
        return any(getattr(self, field.name) for field in attrs.fields(Difference))

    def lines(self) -> list[str]:
        """For people: a line for each change."""
        found = [f"+ {named.kind} {named.name}: {named.leads}" for named in self.added]
        found += [f"- {named.kind} {named.name}" for named in self.removed]
        found += [f"~ {changed.kind} {changed.name}: {'; '.join(changed.what)}" for changed in self.changed]
        found += [f"+ listener {text}" for text in self.opened]
        found += [f"- listener {text}" for text in self.closed]
        found += [f"~ {text}" for text in self.settings]
        found += [f"~ certificate {text}" for text in self.certificates]
        found += [f"! {text}: needs a restart, and stays as it was until then" for text in self.restart]
        return found


def compare(old: Config, new: Config) -> Difference:
    """What changes when `new` takes the place of `old`."""
    before, after = entries(old), entries(new)
    general = _General(old, new)
    changed = (
        Changed(name, kind, what)
        for (kind, name), entry in after.items()
        if (kind, name) in before and (what := tuple(_differences(before[kind, name], entry, general)))
    )
    return Difference(
        added=tuple(Named(name, kind, _leads(e)) for (kind, name), e in after.items() if (kind, name) not in before),
        removed=tuple(Named(name, kind, _leads(e)) for (kind, name), e in before.items() if (kind, name) not in after),
        changed=tuple(changed),
        opened=_listeners(new, without=old),
        closed=_listeners(old, without=new),
        settings=tuple(_settings(old, new)),
        certificates=tuple(_certificates(old, new)),
        restart=tuple(_restart(old, new)),
    )


def entries(config: Config) -> dict[tuple[str, str], Entry]:
    """Every entry by its kind and name."""
    every: tuple[Entry, ...] = (*config.passthrough.values(), *config.sites.values())
    return {(KINDS[type(entry)], entry.name): entry for entry in every}


# ---- names --------------------------------------------------------------------------------------------


@attrs.frozen
class _General:
    """What entries inherit: a change of that is told once, not again for each of them."""

    old: Config
    new: Config

    def inherited(self, field: str, before: object, after: object) -> bool:
        """Whether both values of an entry are just those of its file."""
        if field == "key_type":
            return (before, after) == (self.old.acme.key_type, self.new.acme.key_type)
        was, now = (getattr(config.timeouts, field, None) for config in (self.old, self.new))
        return was is not None and (before, after) == (was, now)


def _differences(old: Entry, new: Entry, general: _General) -> Iterator[str]:
    for field in attrs.fields(type(old)):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after or general.inherited(field.name, before, after):
            continue
        if field.name == "routes":
            yield from _routes(before, after, general)
        elif field.name == "timeouts":
            yield from _timeouts(before, after, general, "timeouts.")
        elif field.name == "access":
            yield "allow or deny"
        else:
            yield _step(field.name, before, after)


def _routes(old: tuple[Route, ...], new: tuple[Route, ...], general: _General) -> Iterator[str]:
    before, after = ({route.prefix: route for route in routes} for routes in (old, new))
    for prefix in sorted(before.keys() | after.keys()):
        if prefix not in before:
            yield f"route {prefix} comes: {_target(after[prefix])}"
        elif prefix not in after:
            yield f"route {prefix} goes"
        else:
            yield from _route(before[prefix], after[prefix], general)


def _route(old: Route, new: Route, general: _General) -> Iterator[str]:
    if (was := _target(old)) != (now := _target(new)):
        yield f"route {new.prefix}: {was} becomes {now}"
    if old.tls != new.tls:
        yield f"route {new.prefix}: what its backends must prove"
    if old.proxy_protocol != new.proxy_protocol:
        yield f"route {new.prefix}: {_step('proxy_protocol', old.proxy_protocol, new.proxy_protocol)}"
    yield from _timeouts(old.timeouts, new.timeouts, general, f"route {new.prefix}: timeouts.")


def _timeouts(old: Timeouts, new: Timeouts, general: _General | None, prefix: str) -> Iterator[str]:
    for field in attrs.fields(Timeouts):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before != after and not (general and general.inherited(field.name, before, after)):
            yield prefix + _step(field.name, before, after)


def _target(route: Route) -> str:
    return f"redirect to {route.redirect}" if route.redirect else ", ".join(map(str, route.to))


def _leads(entry: Entry) -> str:
    if isinstance(entry, Passthrough):
        return ", ".join(map(str, entry.to))
    if entry.alias_of:
        return f"alias of {entry.alias_of}"
    return "; ".join(f"{route.prefix} -> {_target(route)}" for route in entry.routes)


# ---- the rest -----------------------------------------------------------------------------------------


def _listeners(config: Config, *, without: Config) -> tuple[str, ...]:
    def every(of: Config) -> list[str]:
        return [f"https {a}" for a in of.listen.https] + [f"http {a}" for a in of.listen.http]

    others = every(without)
    return tuple(text for text in every(config) if text not in others)


def _settings(old: Config, new: Config) -> Iterator[str]:
    yield from _fields("listen", old.listen, new.listen, {"https", "http", "https_written", "http_written"})
    yield from _fields("acme", old.acme, new.acme)
    yield from _timeouts(old.timeouts, new.timeouts, None, "timeouts.")
    yield from _fields("limits", old.limits, new.limits)
    yield from _fields("log", old.log, new.log)
    if old.metrics != new.metrics:
        yield _step("admin.metrics", old.metrics, new.metrics)


def _fields(section: str, old: T, new: T, told_elsewhere: Collection[str] = ()) -> Iterator[str]:
    for field in attrs.fields(type(old)):
        before, after = getattr(old, field.name), getattr(new, field.name)
        if before == after or field.name in told_elsewhere:
            continue
        key = f"{section}.{field.name}"
        yield key if field.name in DISCREET else _step(key, before, after)


def _certificates(old: Config, new: Config) -> Iterator[str]:
    for name, site in new.sites.items():
        if name == CATCH_ALL and site.tls == "acme":
            continue
        before = old.sites.get(name)
        if before is None:
            yield f"{name}: {_source(site)}"
        elif before.tls != site.tls:
            yield f"{name}: {_source(site)}; it was {_source(before).partition(',')[0]} before"
    if old.acme.directory != new.acme.directory and _by_acme(new.sites):
        yield f"renewals: by {new.acme.directory} from now on"


def _source(site: Site) -> str:
    if isinstance(site.tls, CertificateFiles):
        return f"from {site.tls.certificate}"
    return {"acme": "by ACME, asked for if the store has none", "internal": "of the internal authority"}[site.tls]


def _by_acme(sites: Mapping[str, Site]) -> bool:
    return any(site.tls == "acme" for site in sites.values())


def _restart(old: Config, new: Config) -> Iterator[str]:
    for key, before, after in (
        ("storage.path", old.storage, new.storage),
        ("control.socket", old.control_socket, new.control_socket),
        ("process.user", old.process.user, new.process.user),
        ("process.workers", old.process.workers, new.process.workers),
    ):
        if before != after:
            yield _step(key, before, after)
    if new.process.user and needs_raw(new) and not needs_raw(old):
        yield 'client_ip = "transparent", whose CAP_NET_RAW was given up with root'


def needs_raw(config: Config) -> bool:
    """Whether any name wants connections that come from its clients' own addresses."""
    return any(entry.client_ip == "transparent" for entry in config.passthrough.values())


def _step(key: str, before: object, after: object) -> str:
    was, now = _shown(before), _shown(after)
    return key if was is None or now is None else f"{key}: {was} becomes {now}"


def _shown(value: object) -> str | None:
    """A value as it may be told; None for one that is too long, or nobody's business."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "off" if value == float("inf") else f"{value:g} s"
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return value or "nothing"
    if isinstance(value, int | Path | HostPort | CertificateFiles):
        return str(value.certificate) if isinstance(value, CertificateFiles) else str(value)
    if value is None:
        return "nothing"
    if isinstance(value, tuple) and not any(isinstance(item, Acme) for item in value):
        return ", ".join(map(str, value)) or "nothing"
    return None
