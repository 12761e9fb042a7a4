"""An HTTP/1.1 client connection: request after request, until one side has had enough."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable
from time import perf_counter

import trio

from trioproxy.errors import RequestError, ResponseAborted, StreamInterrupted, StreamTimeout, UpstreamError
from trioproxy.http.h1 import RequestReader
from trioproxy.http.messages import RequestHead
from trioproxy.net.sock import Stream
from trioproxy.proxy.asking import Prepare
from trioproxy.proxy.client import Client
from trioproxy.proxy.context import FIRST_WORD, ProxyContext, Visit
from trioproxy.proxy.failure import blame, report
from trioproxy.proxy.h1_client import H1Client
from trioproxy.proxy.turnstile import Begun, Turnstile

log = logging.getLogger("trioproxy.http")

Answer = Callable[[ProxyContext, Visit, RequestHead, Client], Awaitable[None]]
"""Answers one request, or raises RequestError, UpstreamError, ResponseAborted or StreamError."""


async def serve_h1(
    ctx: ProxyContext, stream: Stream, visit: Visit, answer: Answer, prepare: Prepare | None = None
) -> None:
    """Serve requests on `stream`, one after the other.

    Args:
        ctx: The running proxy.
        stream: The client's connection; the caller closes it.
        visit: What is known of it.
        answer: Answers a request.
        prepare: The part of `answer` that needs no waiting; where there is one, most requests do without a task.

    Raises:
        StreamError: the client was lost.
    """
    config = ctx.cell.current.config
    timeouts = visit.timeouts(config)
    reader = RequestReader(config.limits)
    turnstile = None if prepare is None else Turnstile(ctx, stream, visit, reader, timeouts.idle, prepare)
    patience, first = timeouts.header, True
    while True:
        stream.write_patience = timeouts.idle
        begun: Begun | None = None
        try:
            if turnstile is None or first or reader.unread or ctx.drain.begun or stream.interrupted:
                request = await _next_request(ctx, stream, reader, patience, timeouts.header, first=first)
                if request is None:
                    return
                if turnstile is not None:
                    turnstile.begin(request)
                else:
                    client = H1Client(ctx, stream, reader, timeouts.idle, visit.record(request))
                    begun = Begun(client, functools.partial(answer, ctx, visit, request, client))
                del request  # an idle connection shall not keep it
            patience, first = timeouts.idle, False
            if turnstile is not None:
                begun = await turnstile.wait()
                if turnstile.ended:
                    return
            if begun is None:
                continue
        except RequestError as exc:
            log.info("%s: refused: %s", visit.peer, exc)
            begun = Begun(H1Client(ctx, stream, reader, timeouts.idle, visit.record(None)), None)
            blame(begun.client.record, exc)
            begun.client.fail(exc)
        client, rest = begun
        try:
            if rest is not None:
                await _finish(visit, client, rest)
            if client.broken:
                stream.abort()
                return
            if client.unsent:
                await client.flush()
        except BaseException as exc:
            blame(client.record, exc)
            if client.ends_by_closing:  # then an ordinary end would make a part look like the whole
                stream.abort()
            raise
        finally:
            client.record.ended = perf_counter()
            ctx.witness.exchange(client.record)
        if client.closing:
            stream.send_eof()
            await stream.drain()
            return
        del client, rest, begun  # as above


async def _finish(visit: Visit, client: H1Client, rest: Callable[[], Awaitable[None]]) -> None:
    try:
        await rest()
    except (RequestError, UpstreamError, ResponseAborted) as exc:
        request = client.record.request
        if request is not None:
            report(visit, request, client.record, exc)
        if client.started or isinstance(exc, ResponseAborted):
            client.broken = True
        else:
            client.fail(exc)


async def _next_request(
    ctx: ProxyContext, stream: Stream, reader: RequestReader, patience: float, header: float, *, first: bool
) -> RequestHead | None:
    """The next request's head; None when the client, its idle time, or the server came to an end before one began.

    Raises:
        RequestError: it breaks the rules, or was begun and not finished within `header` seconds (408).
    """
    while True:
        if not reader.unread:
            if ctx.drain.begun:
                if not first:
                    return None
                patience = min(patience, FIRST_WORD)
            stream.expect(patience)
            waiting = ctx.drain.fresh if first else ctx.drain.idle
            waiting.add(stream)
            try:
                # The first comes with the end of the handshake, or was waited for by the kernel (TCP_DEFER_ACCEPT).
                data = await stream.receive_some(likely=first)
            except (StreamTimeout, StreamInterrupted):
                return None
            finally:
                waiting.discard(stream)
            if not data:
                return None
            reader.feed(data)
        request = reader.next()
        if isinstance(request, RequestHead):
            return request
        if reader.unread:  # more than the empty line that may come before a request
            return await _rest_of_head(stream, reader, header)


async def _rest_of_head(stream: Stream, reader: RequestReader, header: float) -> RequestHead | None:
    stream.deadline = trio.current_time() + header
    try:
        while not isinstance(request := reader.next(), RequestHead):
            data = await stream.receive_some()
            if not data:
                return None
            reader.feed(data)
    except StreamTimeout:
        raise RequestError(f"the head was not complete within {header:g} s", 408) from None
    stream.deadline = math.inf
    return request
