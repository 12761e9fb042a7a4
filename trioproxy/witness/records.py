"""What is told of a request and of a tunnel, when it is over.

One is made for each request and filled by assignment as things happen, whether anybody listens or not, so nothing in it
costs more than that: what is to be printed is kept as it is, and made text by whoever prints it. What most requests
leave as it is stands in the class, for setting it would cost each of them.

Moments are `time.perf_counter()`, which costs a fraction of Trio's clock; only their differences say something.
"""

from __future__ import annotations

from typing import Literal

import attrs

from trioproxy.config.model import Route
from trioproxy.http.messages import RequestHead

Phase = Literal["routed", "asking", "answered", "upgraded"]
"""How far a request has got: it has its route, there is a connection to its backend, the response has begun, or it has
become a tunnel."""

DONE = "done"
"""The outcome of what came to its proper end; the others are why something did not."""

REFUSED = "refused"
"""Answered here with an error: the client's fault, or nothing for it."""

CLIENT_LEFT = "client left"
CLIENT_SILENT = "client timed out"
BACKEND_FAILED = "backend failed"
BACKEND_SILENT = "backend timed out"
BROKEN_OFF = "broken off"
"""The backend failed when part of its response had been passed on; of a tunnel, one of its sides was reset."""

ENDED_HERE = "ended here"
"""The server stops, needed room, was told to end it, or had it silent for too long."""

BUG = "bug"

CLIENT_CLOSED = 499
"""The status of a request whose client left before it was told any; nginx writes the same."""


class Exchange:
    """One request and its response.

    Attributes:
        connection: The number of the client's connection.
        client: The client's address, without its port; the one that a trusted proxy told of, if there was one.
        scheme: "https" or "http".
        began: When its head had been read, or had turned out to be none.
        request: Its head; None when there was none that could be understood.
        name: What the request was found to be for, as it is configured: a site or, on port 80, a passthrough entry; ""
            when for none.
        backend: Whom it went to; str() names it. None when it was answered here, or never got that far.
        asked: When the backend had what there was of the request; 0.0 when it never did.
        answered: When the final head of the response was there; 0.0 when there was none.
        ended: When all was over.
        status: What the client was told, `CLIENT_CLOSED` when it left before, 0 when it was told nothing for another
            reason. A WebSocket is 101, over HTTP/2 too.
        received: Bytes of the request's body, and of what came through a WebSocket.
        sent: Bytes of the response's body, and of what went through a WebSocket.
        upgraded: It became a tunnel (a WebSocket): `ended` says when that one ended.
        outcome: One of the constants above.
        reason: The same in words that tell more, "" when it is `DONE`.
        route: The route that it took; None when it had none.
    """

    name: str = ""
    backend: object | None = None
    asked: float = 0.0
    answered: float = 0.0
    ended: float = 0.0
    status: int = 0
    received: int = 0
    sent: int = 0
    upgraded: bool = False
    outcome: str = DONE
    reason: str = ""
    route: Route | None = None

    def __init__(self, connection: int, client: str, scheme: str, began: float, request: RequestHead | None) -> None:
        self.connection = connection
        self.client = client
        self.scheme = scheme
        self.began = began
        self.request = request

    def count_received(self, size: int) -> None:
        """So many more bytes have come through its tunnel."""
        self.received += size

    def count_sent(self, size: int) -> None:
        """So many more bytes have gone through its tunnel."""
        self.sent += size


@attrs.define(eq=False)
class Passage:
    """One connection that was passed through to its backend, from when its entry was found.

    Attributes:
        connection: The number of the client's connection.
        client: The client's address, without its port.
        name: The entry, as it is configured.
        backend: Whom it went to; str() names it. None when none could be reached.
        began: When its entry had been found.
        ended: When it was over.
        up: Bytes from the client to the backend.
        down: Bytes from the backend to the client.
        outcome: As in `Exchange`, and so is the next one.
    """

    connection: int
    client: str
    name: str
    backend: object | None
    began: float
    ended: float = 0.0
    up: int = 0
    down: int = 0
    outcome: str = DONE
    reason: str = ""
