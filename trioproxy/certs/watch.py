"""Certificate files of the user's own are watched, so that whoever replaces them need tell nobody.

Once a minute it is looked whether one of the two files is another one, or was written to. A good new pair is served at
once. A pair that is bad may be half written: a program that writes two files does it one after the other. So it is
looked at a second time before it is called bad, which is said once, and until it is mended the old pair is served.

Polling, because inotify is not to be had without a library or ctypes, and sees nothing on a network drive.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import attrs
import trio

from trioproxy.certs.bundle import Bundle, Leaf
from trioproxy.certs.contexts import ContextSource, read_files
from trioproxy.certs.internal_ca import Clock
from trioproxy.certs.status import day
from trioproxy.config.model import CertificateFiles, Site
from trioproxy.errors import CertificateError
from trioproxy.snapshot import Cell

log = logging.getLogger("trioproxy.certs")

EVERY = 60.0
"""Seconds between looks."""

_FileState = tuple[int, int, int, int] | None
State = tuple[_FileState, _FileState]
"""Of certificate and key: which file it is and when it was last written; None where there is none."""


@attrs.frozen
class _Seen:
    """What was found at the last look.

    Attributes:
        state: The files that it was found in.
        settled: There is nothing more to be done about them: they are served, or their fault has been told.
    """

    files: CertificateFiles
    state: State
    settled: bool


class FileWatch:
    """Watches the files of all sites that have some.

    Args:
        cell: Where the configuration is read and new contexts are published.
        source: Makes contexts.
        check: Looks what is served after a swap, and says so in words.
        clock: The wall clock, UTC.

    Attributes:
        leaves: The certificate that was last good in the files of each site.
    """

    def __init__(
        self, cell: Cell, source: ContextSource, check: Callable[[Site, Leaf], Awaitable[str]], clock: Clock
    ) -> None:
        self._cell = cell
        self._source = source
        self._check = check
        self._clock = clock
        self.leaves: dict[str, Leaf] = {}
        self._seen: dict[str, _Seen] = {}
        self._woken = trio.Event()

    def wake(self) -> None:
        """There may be other sites now: called after a reload."""
        self._woken.set()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            self._woken = trio.Event()
            if any(self._sites()):
                await trio.sleep(EVERY)
                await self.look()
            else:
                await self._woken.wait()

    async def look(self) -> None:
        """Look at every file once."""
        sites = dict(self._sites())
        for name in self._seen.keys() - sites.keys():
            del self._seen[name]
            self.leaves.pop(name, None)
        for name, files in sites.items():
            # A network drive may not answer: whoever stops the server need not wait for it.
            state, pair = await trio.to_thread.run_sync(
                _read_if_changed, files, self._seen.get(name), abandon_on_cancel=True
            )
            if pair is not None:
                await self._consider(name, files, state, pair)

    def _sites(self) -> Iterator[tuple[str, CertificateFiles]]:
        for site in self._cell.current.config.sites.values():
            if isinstance(site.tls, CertificateFiles):
                yield site.name, site.tls

    async def _consider(self, name: str, files: CertificateFiles, state: State, pair: Bundle | str) -> None:
        before, site = self._seen.get(name), self._cell.current.config.sites.get(name)
        if site is None or site.tls != files:  # a reload came between
            return
        if isinstance(pair, Bundle):
            self.leaves[name] = pair.leaf
        known = before is not None and before.files == files
        came = self._publish(site, pair, known=known) if isinstance(pair, Bundle) else pair
        if isinstance(came, Leaf):
            self._seen[name] = _Seen(files, state, settled=True)
            log.info(
                "%s  %s is new: valid to %s; %s",
                name,
                files.certificate,
                day(came.not_after, self._clock()),
                await self._check(site, came),
            )
            return
        again = before is not None and (before.files, before.state) == (files, state)
        self._seen[name] = _Seen(files, state, settled=again or not came)
        if again and came and self._source.complain(name, came):
            log.error("%s  its new files are not used, the certificate before them is served: %s", name, came)

    def _publish(self, site: Site, pair: Bundle, *, known: bool) -> Leaf | str:
        """Serve a pair; its leaf, or why not, or "" if it is served already."""
        served = self._source.served.get(site.name)
        if not known and (served is None or (served.leaf == pair.leaf and served.by == "files")):
            return ""  # the context was made of it, or will be
        try:
            context = self._source.context_of(site, pair, "files")
        except CertificateError as exc:
            return str(exc)
        self._cell.update(lambda s: attrs.evolve(s, contexts=s.contexts.replaced(site.name, context)))
        return pair.leaf


def _read_if_changed(files: CertificateFiles, seen: _Seen | None) -> tuple[State, Bundle | str | None]:
    """The files' state; and the pair, or what is wrong with it, or None where there is nothing new to know."""
    before = _state(files)
    if seen is not None and (seen.files, seen.state) == (files, before) and seen.settled:
        return before, None
    try:
        pair: Bundle | str = read_files(files)
    except CertificateError as exc:
        pair = str(exc)
    if _state(files) != before:  # somebody writes them at this moment: what was read may be of two minds
        return before, None
    return before, pair


def _state(files: CertificateFiles) -> State:
    return _file_state(files.certificate), _file_state(files.key)


def _file_state(path: Path) -> _FileState:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size
