"""Follows what happens to one name, or to all: each event a small dictionary, which JSON can say."""

from __future__ import annotations

import time
from collections.abc import Callable
from time import perf_counter
from typing import Any

from trioproxy.wire.client_hello import ClientHello
from trioproxy.witness.records import Exchange, Passage, Phase
from trioproxy.witness.witness import Listener

Event = dict[str, Any]
"""What happened: `time` (seconds since 1970), `connection` and `client` whose it was, `phase`, and what belongs to it.
What is "seconds" counts from the beginning of the phase before, unless it says something else."""


class Tracer(Listener):
    """Tells what happens to a name.

    Args:
        tell: Is handed each event; it neither waits nor fails.
        entry: The entry to follow, as it is configured; "" for all of them, and for what is for none.
        leads_to: The entry that a name leads to at this moment, "" for none.
    """

    def __init__(self, tell: Callable[[Event], object], entry: str, leads_to: Callable[[str], str]) -> None:
        self._tell = tell
        self._entry = entry
        self._leads_to = leads_to
        self._named: dict[int, tuple[str, str]] = {}  # client and name of connections whose hello was followed

    def _say(self, phase: str, connection: int, client: str, name: str, **more: object) -> None:
        self._tell(
            {"time": time.time(), "phase": phase, "connection": connection, "client": client, "name": name, **more}
        )

    def _follows(self, name: str) -> bool:
        return self._entry in ("", name)

    # ---- connections --------------------------------------------------------------------------------

    def named(self, connection: int, client: str, hello: ClientHello, name: str) -> None:
        """See `Listener`."""
        if self._follows(name):
            self._named[connection] = client, name
            self._say(
                "hello",
                connection,
                client,
                name,
                server_name=hello.server_name,
                alpn=[protocol.decode("latin-1") for protocol in hello.alpn],
                versions=hello.versions,
                size=hello.size,
                encrypted_client_hello=hello.encrypted_client_hello,
            )

    def refused(self, connection: int, client: str, name: str, reason: str) -> None:
        """See `Listener`."""
        entry = self._leads_to(name) if name else ""
        if self._follows(entry):
            self._say("refused", connection, client, entry, server_name=name or None, reason=reason)

    def handshake(self, connection: int, client: str, name: str, protocol: str, seconds: float, outcome: str) -> None:
        """See `Listener`."""
        if self._follows(name):
            self._say("handshake", connection, client, name, protocol=protocol, seconds=seconds, outcome=outcome)

    def closed(self, connection: int) -> None:
        """See `Listener`."""
        if named := self._named.pop(connection, None):
            self._say("closed", connection, *named)

    # ---- requests -----------------------------------------------------------------------------------

    def under_way(self, exchange: Exchange, phase: Phase) -> None:
        """See `Listener`."""
        if self._follows(exchange.name):
            self._say(phase, exchange.connection, exchange.client, exchange.name, **_PHASES[phase](exchange))

    def exchange(self, exchange: Exchange) -> None:
        """See `Listener`."""
        e = exchange
        if self._follows(e.name):
            self._say(
                "request",
                e.connection,
                e.client,
                e.name,
                **_asked(e),
                backend=_name(e.backend),
                status=e.status,
                received=e.received,
                sent=e.sent,
                upgraded=e.upgraded,
                seconds=e.ended - e.began,
                seconds_to_backend=e.asked - e.began if e.asked else None,
                seconds_to_answer=e.answered - e.asked if e.asked and e.answered else None,
                outcome=e.outcome,
                reason=e.reason,
            )

    # ---- tunnels ------------------------------------------------------------------------------------

    def passing(self, connection: int, client: str, name: str, backend: object) -> None:
        """See `Listener`."""
        if self._follows(name):
            self._say("passing", connection, client, name, backend=str(backend))

    def passage(self, passage: Passage) -> None:
        """See `Listener`."""
        p = passage
        if self._follows(p.name):
            self._say(
                "passed",
                p.connection,
                p.client,
                p.name,
                backend=_name(p.backend),
                up=p.up,
                down=p.down,
                seconds=p.ended - p.began,
                outcome=p.outcome,
                reason=p.reason,
            )


def _asked(exchange: Exchange) -> Event:
    """What was asked for; nothing of it where no head could be understood."""
    request = exchange.request
    return {
        "scheme": exchange.scheme,
        "method": request.method.decode("latin-1") if request else None,
        "host": request.authority.decode("latin-1") if request else None,
        "target": request.target.decode("latin-1") if request else None,
    }


def _routed(exchange: Exchange) -> Event:
    route = exchange.route
    targets = [str(target) for target in route.to] if route else []
    return {**_asked(exchange), "route": route.prefix if route else None, "to": targets}


def _asking(exchange: Exchange) -> Event:
    return {"backend": _name(exchange.backend), "seconds": perf_counter() - exchange.began}


def _answered(exchange: Exchange) -> Event:
    return {
        "backend": _name(exchange.backend),
        "status": exchange.status,
        "seconds": exchange.answered - (exchange.asked or exchange.began),
    }


_PHASES: dict[Phase, Callable[[Exchange], Event]] = {
    "routed": _routed,
    "asking": _asking,
    "answered": _answered,
    "upgraded": lambda exchange: {**_answered(exchange), "status": 101},  # over HTTP/2, too
}


def _name(backend: object | None) -> str | None:
    return None if backend is None else str(backend)
