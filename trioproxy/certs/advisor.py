"""Asks CAs when they would like our certificates to be renewed (RFC 9773), and keeps what they say.

Each certificate is asked about when it is new, and then as often as its CA wants, at least once a day. A moment within
the window is picked once and kept on disk for as long as the same window comes back: who picks anew at each look, or
after each restart, renews early in every window. What keeps us from asking keeps nobody from renewing: a suggestion
stands until there is another one, and without one the lifetime decides (`policy.renew_when`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from datetime import datetime, timedelta

import attrs
import trio

from trioproxy.acme.ari import SELDOM, Advice, pick
from trioproxy.certs.authorities import Authorities
from trioproxy.certs.bundle import Leaf
from trioproxy.certs.internal_ca import Clock
from trioproxy.certs.known import Known, renews
from trioproxy.certs.records import Suggestion
from trioproxy.certs.status import day
from trioproxy.certs.store import Store
from trioproxy.config.model import Acme
from trioproxy.errors import AcmeError, StoreError

log = logging.getLogger("trioproxy.certs")

NAP = 3600.0
"""Seconds after which the wall clock is looked at again."""

AGAIN = timedelta(minutes=10)
AT_MOST = timedelta(hours=6)
"""How long a CA that did not answer is left alone: at first, and at most; each time twice as long."""


class Advisor:
    """Keeps the suggestions for all certificates up to date.

    Args:
        known: What is known of each name; it gets new suggestions here.
        store: Where they are kept.
        authorities: Whom to ask.
        clock: The wall clock, UTC.
        rng: Picks moments.
        on_change: Is called when a moment has changed.
    """

    def __init__(
        self,
        known: dict[str, Known],
        store: Store,
        authorities: Authorities,
        clock: Clock,
        rng: random.Random,
        on_change: Callable[[], None],
    ) -> None:
        self._known = known
        self._store = store
        self._authorities = authorities
        self._clock = clock
        self._rng = rng
        self._on_change = on_change
        self._silent: dict[str, tuple[datetime, timedelta]] = {}  # by directory: until when, and how long that was
        self._woken = trio.Event()

    async def run(self) -> None:
        """Ask, until cancelled."""
        while True:
            asked = None
            for name, settings in self._stale():
                asked = settings
                await self._ask(name, settings)
            if asked is not None:
                continue  # that took its time: look again
            with trio.move_on_after(self._pause()):
                await self._woken.wait()
            self._woken = trio.Event()

    def wake(self) -> None:
        """There may be certificates that nobody was asked about."""
        self._woken.set()

    # ---- inside -------------------------------------------------------------------------------------

    def _whom(self, known: Known) -> Acme | None:
        """Who is to be asked about a certificate: whoever issued it, if that is known and still configured."""
        return self._authorities.of(known.where.origin.account) if known.leaf and known.where else None

    def _stale(self) -> list[tuple[str, Acme]]:
        now = self._clock()
        return [
            (name, settings)
            for name, known in self._known.items()
            if (known.suggestion is None or known.suggestion.stale(now))
            and (settings := self._whom(known)) is not None
            and not self._is_silent(settings.directory, now)
        ]

    def _is_silent(self, directory: str, now: datetime) -> bool:
        until, pause = self._silent.get(directory, (now, AGAIN))
        return until - pause <= now < until

    def _pause(self) -> float:
        moments = [known.suggestion.ask_at for known in self._known.values() if known.suggestion]
        moments += [until for until, _ in self._silent.values()]
        left = min((moment - self._clock() for moment in moments if moment > self._clock()), default=timedelta(days=1))
        return min(left.total_seconds(), NAP)

    async def _ask(self, name: str, settings: Acme) -> None:
        before = self._known.get(name)
        if before is None or before.leaf is None or self._is_silent(settings.directory, self._clock()):
            return
        leaf = before.leaf
        try:
            bundle = self._store.load(name)
        except StoreError:
            bundle = None
        if bundle is None or bundle.leaf != leaf:  # another process is at it; the manager will see what comes of that
            now, old = self._clock(), before.suggestion or Suggestion(leaf.serial, self._clock(), self._clock())
            self._known[name] = attrs.evolve(before, suggestion=attrs.evolve(old, asked_at=now, ask_at=now + AT_MOST))
            return
        client = self._authorities.client(settings)
        try:
            advice = await client.renewal_info(bundle.chain_pem)
        except AcmeError as exc:
            self._later(settings.directory)
            log.debug("%s  when its CA would like it to be renewed is not known: %s", name, exc)
            return
        finally:
            client.close()
        self._silent.pop(settings.directory, None)
        found = self._of(leaf, before.suggestion, advice)
        known = self._known.get(name)
        if known is None or known.leaf != leaf:
            return
        self._known[name] = attrs.evolve(known, suggestion=found)
        self._tell(name, leaf, before.suggestion, found, advice)
        self._on_change()
        try:
            await self._store.note_suggestion(name, found)
        except StoreError as exc:
            log.warning("%s  when its CA would like it to be renewed is not kept: %s", name, exc)

    def _of(self, leaf: Leaf, old: Suggestion | None, advice: Advice | None) -> Suggestion:
        """What the CA says, as it is kept."""
        now = self._clock()
        ask_at = now + timedelta(seconds=SELDOM if advice is None else advice.ask_again)
        window = advice.window if advice else None
        if window is None:
            moment = None
        elif old is not None and old.window == window:
            moment = old.moment
        else:
            moment = pick(window, self._rng.random())
        return Suggestion(leaf.serial, now, ask_at, window, moment)

    def _tell(self, name: str, leaf: Leaf, old: Suggestion | None, found: Suggestion, advice: Advice | None) -> None:
        if advice is None:
            return
        if advice.doubt:
            log.debug("%s  what its CA suggests is not gone by: %s", name, advice.doubt)
        elif found.moment and found.moment < renews(leaf) and (old is None or old.window != found.window):
            why = f", see {advice.explanation_url}" if advice.explanation_url else ""
            log.info("%s  its CA asks for it to be renewed on %s%s", name, day(found.moment, self._clock()), why)

    def _later(self, directory: str) -> None:
        """Leave a CA alone for a while, and all the names there with it: each would wait as long for nothing."""
        _, before = self._silent.get(directory, (None, AGAIN / 2))
        pause = min(2 * before, AT_MOST)
        self._silent[directory] = self._clock() + pause, pause
