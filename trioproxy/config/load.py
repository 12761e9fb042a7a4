"""config.toml -> `Config`, or every mistake in it at once.

What a section may hold is said by a table: each key, and what reads its value. A key has the name of the attribute
that it sets. `[passthrough]` and `[sites]` have host names for keys and are read in entries.py.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

import attrs

from trioproxy.config import authority, syntax
from trioproxy.config.entries import Entries
from trioproxy.config.keys import TIMEOUTS
from trioproxy.config.model import Config, HostPort, Limits, Listen, Log, Process, Timeouts
from trioproxy.config.reading import Key, Keys, Reading
from trioproxy.config.values import (
    entry_name,
    file_path,
    integer,
    listen_address,
    log_file,
    near,
    network,
    one_of,
    quoted,
    size,
    user_name,
)
from trioproxy.errors import ConfigError, Mistake

SECTIONS: dict[str, Keys] = {
    "listen": {
        "https": Key(listen_address, many=True),
        "http": Key(listen_address, many=True),
        "public_https_port": Key(integer(1, 65535)),
        "no_sni": Key(entry_name, empty=True),
        "proxy_protocol_from": Key(network, many=True),
        "trusted_proxies": Key(network, many=True),
    },
    "acme": authority.ACME,
    "timeouts": TIMEOUTS,
    "limits": {
        "header_size": Key(size(1024, 1024**2)),
        "header_fields": Key(integer(10, 10_000)),
        "connections": Key(integer(1, 1_000_000)),
        "connections_per_ip": Key(integer(1, 1_000_000)),
        "memory": Key(size(64 * 1024**2, 1024**4), empty=True),
    },
    "process": {"user": Key(user_name, empty=True), "workers": Key(integer(1, 256))},
    "storage": {"path": Key(file_path, empty=True)},
    "control": {"socket": Key(file_path, empty=True)},
    "admin": {"metrics": Key(listen_address, empty=True)},
    "log": {
        "level": Key(one_of("debug", "info", "warning", "error")),
        "format": Key(one_of("console", "json")),
        "access": Key(log_file),
        "access_format": Key(one_of("console", "json", "combined")),
    },
}

ENTRIES = ("passthrough", "sites")

BELONGS = {
    **{key: section for section, keys in reversed(SECTIONS.items()) for key in keys},
    **dict.fromkeys(authority.EAB, "acme.eab"),
}
"""The section of a key that was found in a wrong one."""


def load(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: the file cannot be read, or holds mistakes; all of them are in the error.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigError(path, (Mistake(0, "", "there is no such file"),)) from exc
    except OSError as exc:
        raise ConfigError(path, (Mistake(0, "", f"cannot be read: {exc.strerror}"),)) from exc
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = raw.count(b"\n", 0, exc.start) + 1
        raise ConfigError(path, (Mistake(line, "", "no UTF-8: save the file in that encoding"),)) from exc
    return parse(text, path, os.environ, os.geteuid())


def parse(text: str, path: Path, environ: Mapping[str, str], euid: int) -> Config:
    """The configuration in `text`.

    Args:
        text: TOML.
        path: Where it was read, for messages and as the place that relative paths in it count from.
        environ: The process's environment, which the default of `storage.path` depends on.
        euid: Its effective user, likewise.

    Raises:
        ConfigError: `text` holds mistakes; all of them are in the error, by line.
    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise ConfigError(path, (syntax.explain(text, exc),)) from exc
    reading = Reading(text, path.parent, BELONGS)
    config = _config(reading, document, path, environ, euid)
    if reading.mistakes:
        raise ConfigError(path, tuple(sorted(reading.mistakes, key=lambda mistake: mistake.line)))
    return attrs.evolve(config, text=text)


def _config(reading: Reading, document: dict[str, object], path: Path, environ: Mapping[str, str], euid: int) -> Config:
    for name in document:
        if name not in SECTIONS and name not in ENTRIES:
            _unknown_section(reading, name)
    found = {name: reading.table((name,), document.get(name, {}), keys) for name, keys in SECTIONS.items()}

    listen = Listen(**found["listen"], https_written="https" in found["listen"], http_written="http" in found["listen"])
    metrics = found["admin"].get("metrics")
    _check_listen(reading, listen, metrics)
    acme = authority.read(reading, found["acme"], document.get("acme"))
    timeouts = Timeouts(**found["timeouts"])
    entries = Entries(reading, listen, timeouts, acme.key_type)
    entries.read_passthrough(document.get("passthrough", {}))
    entries.read_sites(document.get("sites", {}))
    if not reading.mistakes and not entries.passthrough and not entries.sites:
        reading.wrong((), "no name is configured: write one under [passthrough] or [sites]")
    _check_no_sni(reading, listen.no_sni, entries)

    process = Process(**found["process"])
    # With a user to become, the server is one that root starts, whoever reads this.
    storage = found["storage"].get("path") or _default_storage(reading, environ, 0 if process.user else euid)
    return Config(
        path=path,
        listen=listen,
        acme=acme,
        passthrough=entries.passthrough,
        sites=entries.sites,
        timeouts=timeouts,
        limits=Limits(**found["limits"]),
        storage=storage,
        control_socket=found["control"].get("socket", storage / "control.sock"),
        log=Log(**found["log"]),
        process=process,
        metrics=metrics,
    )


def _unknown_section(reading: Reading, name: str) -> None:
    if "." in name:
        meant = f"[sites.{quoted(name)}]"
        reading.wrong((name,), f"a host name stands in a section: {meant}, or [passthrough.{quoted(name)}]")
    else:
        reading.unknown((name,), (*SECTIONS, *ENTRIES))


def _check_listen(reading: Reading, listen: Listen, metrics: HostPort | None) -> None:
    if not listen.https:
        reading.wrong(("listen", "https"), 'write at least one address, such as "0.0.0.0:443"')
    seen: dict[HostPort, str] = {}
    for key in ("https", "http"):
        for index, address in enumerate(getattr(listen, key)):
            first = seen.setdefault(address, key)
            # https and http may both ask for any free port: they get different ones.
            if address in getattr(listen, key)[:index] or (first != key and address.port):
                reading.wrong(("listen", key, index), f"{quoted(str(address))} is in listen.{first} already")
    if metrics in seen and metrics.port:
        reading.wrong(("admin", "metrics"), f"{quoted(str(metrics))} is in listen.{seen[metrics]}: take another port")


def _check_no_sni(reading: Reading, name: str, entries: Entries) -> None:
    names = (*entries.passthrough, *entries.sites)
    # A name whose own entry is wrong has been reported there.
    if name and name not in names and not entries.knows(name):
        # Names of one domain are alike without being meant for one another.
        meant = near(name, names, likeness=0.9)
        reading.wrong(("listen", "no_sni"), f"{quoted(name)} is neither a site nor a passthrough entry{meant}")


def _default_storage(reading: Reading, environ: Mapping[str, str], euid: int) -> Path:
    if given := environ.get("STATE_DIRECTORY", "").partition(":")[0]:  # systemd.exec(5)
        return Path(given)
    if euid == 0:
        return Path("/var/lib/trioproxy")
    data = environ.get("XDG_DATA_HOME", "")
    if data.startswith("/"):  # the XDG Base Directory Specification: a relative one is to be ignored
        return Path(data, "trioproxy")
    if home := environ.get("HOME", ""):
        return Path(home, ".local/share/trioproxy")
    reading.wrong(("storage", "path"), "write a folder for keys and certificates: there is no $HOME to keep them in")
    return Path("trioproxy")
