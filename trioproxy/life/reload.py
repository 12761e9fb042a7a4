"""Going by a configuration that was read anew: all of it or, if anything is wrong, none of it.

What it changes is found out before it is done (`config/difference`), so it can be asked for without being done. Names
that stay keep every connection that they have; those of names that go are asked to end (`farewell`).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import trio

from trioproxy.certs.contexts import ContextSource, read_files
from trioproxy.certs.preflight import check_files
from trioproxy.config.difference import Difference, compare
from trioproxy.config.model import CertificateFiles, Config
from trioproxy.control import Report
from trioproxy.errors import CertificateError, ConfigError, ControlError, ListenError
from trioproxy.life.hands import Hands
from trioproxy.life.scrapes import Scrapes
from trioproxy.logs import configure
from trioproxy.process.notify import Notifier
from trioproxy.snapshot import Cell

log = logging.getLogger("trioproxy.server")


@attrs.frozen
class Outcome:
    """What a reload does, or would do.

    Attributes:
        difference: Between the configurations.
        certificates: Files that hold other certificates than those which are served.
        ending: How many connections of each name that goes there are.
    """

    difference: Difference
    certificates: tuple[str, ...]
    ending: dict[str, int]

    def lines(self) -> list[str]:
        """For people."""
        found = [*self.difference.lines(), *(f"~ certificate {text}" for text in self.certificates)]
        found += [f"- connections of {name}: {count}, which are to end" for name, count in self.ending.items()]
        return found or ["nothing changes"]

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "changes": attrs.asdict(self.difference),
            "renewed_files": list(self.certificates),
            "ending": self.ending,
            "lines": self.lines(),
        }


class Reloads:
    """Carries out reloads, one at a time.

    Args:
        cell: What the server goes by.
        hands: What it serves with.
        scrapes: Where it is asked for metrics.
        source: Knows which certificates are served.
        load: Reads the configuration; raises ConfigError.
        wake: Called when all is done.
        notifier: Is told of each reload.
        stopping: Whether the server is at its end already.

    Attributes:
        asked: To be set for a reload.
        outcomes: How many have "succeeded" and "failed".
        succeeded: When the configuration that is gone by was read, in seconds since 1970.
    """

    def __init__(
        self,
        cell: Cell,
        hands: Hands,
        scrapes: Scrapes,
        source: ContextSource,
        load: Callable[[], Config],
        wake: Callable[[], None],
        notifier: Notifier,
        stopping: Callable[[], bool],
    ) -> None:
        self.asked = trio.Event()
        self.outcomes: Counter[str] = Counter(succeeded=0, failed=0)
        self.succeeded = time.time()
        self._cell = cell
        self._hands = hands
        self._scrapes = scrapes
        self._source = source
        self._load = load
        self._wake = wake
        self._notifier = notifier
        self._stopping = stopping
        self._turn = trio.Lock()

    async def run(self) -> None:
        """Reload when `asked` is set, until cancelled.

        A task of its own, for reading may hang (a dead network drive, a FIFO), and SIGTERM must be heeded even then.
        Whatever is asked for while a reload is under way comes to one more.
        """
        while True:
            await self.asked.wait()
            self.asked = trio.Event()
            try:
                await self.reload()
            except (ConfigError, ListenError, ControlError):
                pass  # told in the log already
            except Exception:
                log.exception("a bug in trioproxy: not reloaded; still serving by the old configuration")

    async def reload(self, *, dry_run: bool = False) -> Outcome:
        """Read the configuration again and go by it; if anything is wrong with it, say so and change nothing.

        Running exchanges go on by the configuration they began with, and connections of names that are still configured
        live on.

        Args:
            dry_run: Only say what would change.

        Raises:
            ConfigError: the file has mistakes.
            ListenError: an address cannot be bound.
            ControlError: the server is stopping, or a worker cannot go by the file.
        """
        async with self._turn:
            if dry_run:
                return await self._look(await self._read())
            if not self._stopping():
                self._notifier.reloading()
            try:
                outcome = await self._reload()
            except (ConfigError, ListenError, ControlError) as exc:
                self.outcomes["failed"] += 1
                _tell(exc)
                raise
            finally:
                if not self._stopping():
                    self._notifier.ready(summary(self._cell.current.config))
            return outcome

    async def _reload(self) -> Outcome:
        config = await self._read()
        outcome = await self._look(config)
        if self._stopping():
            raise ControlError("the server is stopping")
        # What needs a restart stays as it is until then, also for the next comparison.
        old = self._cell.current.config
        config = attrs.evolve(config, storage=old.storage, control_socket=old.control_socket, process=old.process)
        with self._scrapes.moving(config.metrics):
            await self._hands.take(config)
        for line in outcome.lines():
            log.info("reload: %s", line)
        if (config.log.level, config.log.format) != (old.log.level, old.log.format):
            configure(config.log.level, config.log.format)
        self._wake()
        self.outcomes["succeeded"] += 1
        self.succeeded = time.time()
        log.info("reloaded: %s", summary(config))
        return outcome

    async def _read(self) -> Config:
        return await trio.to_thread.run_sync(self._load_checked, abandon_on_cancel=True)

    def _load_checked(self) -> Config:
        config = self._load()
        mistakes = check_files(config)
        if mistakes:
            raise ConfigError(config.path, tuple(mistakes))
        return config

    async def _look(self, new: Config) -> Outcome:
        old = self._cell.current.config
        renewed = await trio.to_thread.run_sync(lambda: tuple(self._renewed_files(old, new)), abandon_on_cancel=True)
        difference = compare(old, new)
        going = {(named.kind, named.name) for named in difference.removed}
        present = (await self._hands.census()).guests if going else Counter()
        ending = {name: count for (kind, name), count in present.items() if (kind, name) in going}
        return Outcome(difference, renewed, ending)

    def _renewed_files(self, old: Config, new: Config) -> Iterator[str]:
        """Files that are still the same ones, and hold something else than what is served."""
        for name, site in new.sites.items():
            served, before = self._source.served.get(name), old.sites.get(name)
            if served is None or before is None or before.tls != site.tls or not isinstance(site.tls, CertificateFiles):
                continue
            try:
                leaf = read_files(site.tls).leaf
            except CertificateError:  # a moment ago it could be read
                continue
            if leaf != served.leaf:
                yield f"{name}: {site.tls.certificate} holds another one, until {leaf.not_after:%Y-%m-%d}"


def _tell(exc: ConfigError | ListenError | ControlError) -> None:
    """Say in the log why there was no reload."""
    if isinstance(exc, ConfigError):
        for line in exc.lines():
            log.error("%s", line)
        log.error("not reloaded: the configuration has mistakes; still serving by the old one")
    elif isinstance(exc, ListenError):
        log.error("not reloaded: %s; still serving by the old configuration", exc)
    else:
        log.info("not reloaded: %s", exc)


def summary(config: Config) -> str:
    """What is served, in a few words."""
    return f"{len(config.sites)} sites, {len(config.passthrough)} passthrough names"


def handler(reloads: Reloads) -> Callable[[dict[str, Any], Report], Any]:
    """What the control socket carries out for `trioproxy reload`."""

    async def reload(arguments: dict[str, Any], _: Report) -> dict[str, Any]:
        try:
            outcome = await reloads.reload(dry_run=bool(arguments["dry_run"]))
        except ConfigError as exc:
            return {"mistakes": [attrs.asdict(mistake) for mistake in exc.mistakes], "lines": exc.lines()}
        return outcome.as_json()

    return reload
