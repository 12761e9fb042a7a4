"""Counts what happens on connections. A request costs it a microsecond: three look-ups and five additions."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable

import trio

from trioproxy.witness.exposition import HANDSHAKE_SECONDS, LAG_SECONDS, REQUEST_SECONDS, Samples
from trioproxy.witness.records import DONE, Exchange, Passage
from trioproxy.witness.witness import Listener

OTHER = "other"
"""Whatever is for no configured name, for one that is configured no more, or beyond `MOST`. What clients make up names
no series."""

MOST = 1000
"""Names that have series of their own: with ten thousand in use, each scrape would cost the proxy a second."""

AT_ONCE = 64
"""Requests that are counted together: one by one, between two other things, each would take three times as long."""

LOOK = 1.0
"""Seconds between two looks at how late the event loop is."""

MINUTE = 60
"""Looks that the longest lag is told of."""


class _Named:
    """What is counted for one name. In each list there is a place for every bucket, and the last one is the sum."""

    __slots__ = ("asked", "handshakes", "received", "refused", "sent", "shaken", "statuses", "tunnels")

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.asked = [0.0] * (len(REQUEST_SECONDS) + 2)
        self.received = 0
        self.sent = 0
        self.handshakes: Counter[str] = Counter()
        self.shaken = [0.0] * (len(HANDSHAKE_SECONDS) + 2)
        self.tunnels: Counter[tuple[str, str]] = Counter()
        self.refused = 0

    def take(self, other: _Named) -> None:
        """Have what was counted for `other` as well."""
        self.statuses.update(other.statuses)
        self.asked = [a + b for a, b in zip(self.asked, other.asked, strict=True)]
        self.received += other.received
        self.sent += other.sent
        self.handshakes.update(other.handshakes)
        self.shaken = [a + b for a, b in zip(self.shaken, other.shaken, strict=True)]
        self.tunnels.update(other.tunnels)
        self.refused += other.refused


class Metrics(Listener):
    """Counts from when it is added to a witness.

    Args:
        configured: Whether a name is that of an entry at this moment.
    """

    def __init__(self, configured: Callable[[str], bool]) -> None:
        self._configured = configured
        self._ended: list[Exchange] = []  # and not counted yet
        self._names: dict[str, _Named] = {}
        self._other = _Named()
        self._accepted: Counter[str] = Counter()
        self._lag = [0.0] * (len(LAG_SECONDS) + 2)
        self._lags: deque[float] = deque(maxlen=MINUTE)

    async def run(self) -> None:
        """Look how late the event loop is, until cancelled."""
        while True:
            due = trio.current_time() + LOOK
            await trio.sleep_until(due)
            lag = trio.current_time() - due
            self._lag[bisect_left(LAG_SECONDS, lag)] += 1
            self._lag[-1] += lag
            self._lags.append(lag)

    def _of(self, name: str) -> _Named:
        """What is counted for a name that nothing was counted for yet."""
        if len(self._names) >= MOST or not self._configured(name):
            return self._other
        named = self._names[name] = _Named()
        return named

    # ---- what happens -------------------------------------------------------------------------------

    def opened(self, connection: int, client: str, scheme: str) -> None:  # noqa: ARG002 - as listeners have it
        """See `Listener`."""
        self._accepted[scheme] += 1

    def refused(self, connection: int, client: str, name: str, reason: str) -> None:  # noqa: ARG002
        """See `Listener`."""
        (self._names.get(name) or self._of(name)).refused += 1

    def handshake(self, connection: int, client: str, name: str, protocol: str, seconds: float, outcome: str) -> None:  # noqa: ARG002
        """See `Listener`."""
        named = self._names.get(name) or self._of(name)
        if outcome != DONE:  # in words, of which there are too many for a label
            named.handshakes["failed"] += 1
            return
        named.handshakes[DONE] += 1
        named.shaken[bisect_left(HANDSHAKE_SECONDS, seconds)] += 1
        named.shaken[-1] += seconds

    def exchange(self, exchange: Exchange) -> None:
        """See `Listener`."""
        ended = self._ended
        ended.append(exchange)
        if len(ended) >= AT_ONCE:
            self._count_ended()

    def _count_ended(self) -> None:
        ended, self._ended = self._ended, []
        for exchange in ended:
            self._count(exchange)

    def _count(self, exchange: Exchange) -> None:
        named = self._names.get(exchange.name) or self._of(exchange.name)
        if exchange.upgraded:
            named.tunnels["upgraded", exchange.outcome] += 1
            seconds = exchange.answered - exchange.began
        else:
            seconds = exchange.ended - exchange.began
        statuses = named.statuses
        status = exchange.status
        statuses[status] = statuses.get(status, 0) + 1  # `+=` would ask the Counter in Python for what is missing
        asked = named.asked
        asked[bisect_left(REQUEST_SECONDS, seconds)] += 1
        asked[-1] += seconds
        named.received += exchange.received
        named.sent += exchange.sent

    def passage(self, passage: Passage) -> None:
        """See `Listener`."""
        named = self._names.get(passage.name) or self._of(passage.name)
        named.tunnels["passthrough", passage.outcome] += 1
        named.received += passage.up
        named.sent += passage.down

    # ---- what is told of it -------------------------------------------------------------------------

    def samples(self) -> Samples:
        """What was counted so far."""
        self._count_ended()
        for name in [name for name in self._names if not self._configured(name)]:
            self._other.take(self._names.pop(name))
        every = [*self._names.items(), (OTHER, self._other)]
        return {
            "trioproxy_connections_accepted_total": [((scheme,), count) for scheme, count in self._accepted.items()],
            "trioproxy_refused_total": [((name,), named.refused) for name, named in every if named.refused],
            "trioproxy_handshakes_total": [
                ((name, outcome), count) for name, named in every for outcome, count in named.handshakes.items()
            ],
            "trioproxy_handshake_seconds": [
                ((name,), list(named.shaken)) for name, named in every if named.handshakes[DONE]
            ],
            "trioproxy_requests_total": [
                ((name, str(status)), count) for name, named in every for status, count in named.statuses.items()
            ],
            "trioproxy_request_seconds": [((name,), list(named.asked)) for name, named in every if named.statuses],
            "trioproxy_tunnels_total": [
                ((name, kind, outcome), count)
                for name, named in every
                for (kind, outcome), count in named.tunnels.items()
            ],
            "trioproxy_bytes_total": [
                ((name, direction), count)
                for name, named in every
                for direction, count in (("in", named.received), ("out", named.sent))
                if named.statuses or named.tunnels
            ],
            "trioproxy_event_loop_lag_seconds": [((), list(self._lag))],
            "trioproxy_event_loop_lag_max_seconds": [((), max(self._lags, default=0.0))],
        }
