"""What is said of a request that failed: in the log, to its client, and to the witness."""

from __future__ import annotations

import logging

import trio

from trioproxy.errors import (
    ClientLeft,
    ConnectionLost,
    HelloError,
    RequestError,
    ResponseAborted,
    StreamError,
    StreamTimeout,
    TrioproxyError,
    UpstreamError,
    UpstreamTimeout,
)
from trioproxy.http.messages import RequestHead
from trioproxy.proxy.context import Visit
from trioproxy.proxy.seldom import Seldom
from trioproxy.proxy.upstream import Backend
from trioproxy.witness.records import (
    BACKEND_FAILED,
    BACKEND_SILENT,
    BROKEN_OFF,
    BUG,
    CLIENT_CLOSED,
    CLIENT_LEFT,
    CLIENT_SILENT,
    ENDED_HERE,
    REFUSED,
    Exchange,
)

log = logging.getLogger("trioproxy.http")


def report(
    visit: Visit, request: RequestHead, record: Exchange, error: RequestError | UpstreamError | ResponseAborted
) -> None:
    """Blame `error`, and one line in the log: the client's fault is information, a backend's a warning."""
    blame(record, error)
    described = (request.method + b" " + request.authority + request.target).decode("latin-1")
    extra = {"site": record.name}
    level = logging.INFO
    if not isinstance(error, RequestError):
        level = logging.WARNING
        extra["about"] = f"{record.name} {record.backend} {error}"  # whoever has asked
    log.log(level, "%s: %s: %s", visit.client(request), described, error, extra=extra)


def explain_refusal(hints: Seldom, backend: Backend, request: RequestHead) -> None:
    """`backend` answered 400 to what was forwarded: some do so to proxies that they were not told of, and few say why.

    `hints` knows for whom that was said a while ago.
    """
    if hints.due(backend.for_anyone(), trio.current_time()):
        log.warning(
            "%s answered 400 to %s %s. If it does so to every request, it may have to be told that it is behind a "
            "proxy: let it trust this machine's address as one that sends X-Forwarded-For (in Home Assistant: "
            "http.use_x_forwarded_for and http.trusted_proxies), and the name %s as its own",
            backend,
            request.method.decode("latin-1"),
            request.target.decode("latin-1"),
            request.authority.decode("latin-1"),
        )


def told(error: RequestError | UpstreamError) -> str:
    """What the client's page says of it: of backends nothing that is not the client's business."""
    return str(error) if isinstance(error, RequestError) else "The server behind this name does not answer properly."


_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (RequestError, REFUSED),
    (HelloError, REFUSED),
    (UpstreamTimeout, BACKEND_SILENT),
    (UpstreamError, BACKEND_FAILED),
    (ResponseAborted, BROKEN_OFF),
    (ConnectionLost, CLIENT_LEFT),
    (ClientLeft, CLIENT_LEFT),
    (StreamTimeout, CLIENT_SILENT),
    (StreamError, ENDED_HERE),
    (Exception, BUG),
)
"""What it is called that something ended with such an error; what is no Exception is a cancellation, by us."""


def outcome(error: BaseException) -> str:
    """What the witness is told of something that ended with `error`."""
    return next((words for kind, words in _OUTCOMES if isinstance(error, kind)), ENDED_HERE)


def blame(record: Exchange, error: BaseException) -> None:
    """`error` is why this request did not come to its proper end."""
    record.outcome = outcome(error)
    record.reason = str(error) if isinstance(error, TrioproxyError) else type(error).__name__
    if record.outcome == CLIENT_LEFT and not record.status:
        record.status = CLIENT_CLOSED
