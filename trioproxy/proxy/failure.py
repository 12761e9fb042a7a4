"""What is said of a request that failed: in the log, and to its client."""

from __future__ import annotations

import logging

from trioproxy.errors import RequestError, ResponseAborted, UpstreamError
from trioproxy.http.messages import RequestHead
from trioproxy.proxy.context import Visit

log = logging.getLogger("trioproxy.http")


def report(visit: Visit, request: RequestHead, error: RequestError | UpstreamError | ResponseAborted) -> None:
    """One line in the log: the client's fault is information, a backend's a warning."""
    level = logging.INFO if isinstance(error, RequestError) else logging.WARNING
    described = (request.method + b" " + request.authority + request.target).decode("latin-1")
    log.log(level, "%s: %s: %s", visit.client(request), described, error)


def told(error: RequestError | UpstreamError) -> str:
    """What the client's page says of it: of backends nothing that is not the client's business."""
    return str(error) if isinstance(error, RequestError) else "The server behind this name does not answer properly."
