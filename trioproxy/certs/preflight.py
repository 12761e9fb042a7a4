"""Whether the files that a configuration names can be used; asked by `check` and a reload, not at the start.

At the start a file that cannot be read must not keep all other names from being served. Who asks before that is
still there to mend it.
"""

from __future__ import annotations

import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

from trioproxy.certs.contexts import read_files, server_context
from trioproxy.config.lines import Lines, Place, dotted_key
from trioproxy.config.model import CertificateFiles, Config
from trioproxy.errors import CertificateError, Mistake


def check_files(config: Config) -> list[Mistake]:
    """What is wrong with the files that `config` names; it reads them, so call it in a thread beside an event loop."""
    problems = [*_trust_anchors(config), *_certificates(config)]
    return _located(config.path, problems) if problems else []


def unusable_storage(path: Path) -> str:
    """Why the user of this process cannot keep keys and certificates in `path`; "" if nothing is in the way.

    It looks only, and makes nothing. A folder that is not there yet is judged by the one that it would be made in.
    """
    for place in (path, *path.parents):
        try:
            if not stat.S_ISDIR(place.stat().st_mode):
                return f"{place} is a file, where a folder should be"
            folders = [place, *(below for below in place.iterdir() if below.is_dir())] if place == path else [place]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as exc:
            return f"{place} cannot be read: {exc.strerror}"
        for folder in folders:
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK if place == path else os.W_OK | os.X_OK):
                return f"the user who runs this may not write to {folder}"
        return ""
    return ""


def _located(path: Path, problems: list[tuple[Place, str]]) -> list[Mistake]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):  # it was good a moment ago; the problems stand without their lines
        text = ""
    lines = Lines(text)
    written = [(_own_or_inherited(lines, lines.written(place)), problem) for place, problem in problems]
    mistakes = (Mistake(lines.of(place), dotted_key(place), problem) for place, problem in written)
    # Several routes may have one file from their site, and that is one mistake.
    return sorted(dict.fromkeys(mistakes), key=lambda mistake: mistake.line)


def _own_or_inherited(lines: Lines, place: Place) -> Place:
    """The place of a route's option, or that of its site's when the route has it from there."""
    return place if len(place) < 4 or lines.has(place) else (*place[:2], place[3])


def _certificates(config: Config) -> Iterator[tuple[Place, str]]:
    for site in config.sites.values():
        if isinstance(site.tls, CertificateFiles) and not site.alias_of:
            try:
                server_context(read_files(site.tls))
            except CertificateError as exc:
                yield ("sites", site.name, "tls"), str(exc)


def _trust_anchors(config: Config) -> Iterator[tuple[Place, str]]:
    path = config.acme.ca_file
    if path is not None and (problem := _unusable(path)):
        yield ("acme", "ca_file"), f"{path} {problem}"
    known = {path: _unusable(path) for path in _backends_authorities(config)}
    for site in config.sites.values():
        for route in site.routes:
            path = route.tls.ca_file
            if path is not None and not site.alias_of and known[path]:
                yield ("sites", site.name, route.prefix, "ca_file"), f"{path} {known[path]}"


def _backends_authorities(config: Config) -> set[Path]:
    routes = (route for site in config.sites.values() for route in site.routes)
    return {route.tls.ca_file for route in routes if route.tls.ca_file is not None}


def _unusable(path: Path) -> str:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        return "holds no certificates in PEM form (no BEGIN CERTIFICATE line)"
    except OSError as exc:
        return f"cannot be read: {exc.strerror}"
    return ""
