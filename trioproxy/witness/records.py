"""What is told of a request and of a tunnel, when it is over.

One is made for each request and filled by assignment as things happen, whether anybody listens or not, so nothing in it
costs more than that: what is to be printed is kept as it is, and made text by whoever prints it.

Moments are `time.perf_counter()`, which costs a fraction of Trio's clock; only their differences say something.
"""

from __future__ import annotations

import attrs

from trioproxy.http.messages import RequestHead

DONE = "done"
"""The outcome of what came to its proper end."""

CLIENT_LEFT = "client left"
BACKEND_FAILED = "backend failed"


@attrs.define(eq=False)
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
        status: What the client was told, 499 when it left before. A WebSocket is 101, over HTTP/2 too.
        received: Bytes of the request's body, and of what came through a WebSocket.
        sent: Bytes of the response's body, and of what went through a WebSocket.
        upgraded: It became a tunnel (a WebSocket): `ended` says when that one ended.
        outcome: `DONE`, `CLIENT_LEFT`, `BACKEND_FAILED`, or in other words why it did not come to its proper end.
    """

    connection: int
    client: str
    scheme: str
    began: float
    request: RequestHead | None = None
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
        outcome: As in `Exchange`.
    """

    connection: int
    client: str
    name: str
    backend: object | None
    began: float
    ended: float
    up: int
    down: int
    outcome: str = DONE
