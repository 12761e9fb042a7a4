"""A connection of HTTP/1.1 to a backend, between one exchange and the next."""

from __future__ import annotations

import pytest
import trio

from tests.net.sockets import until
from tests.proxy.stage import HELLO, LOOPBACK, Recording, answering, backend, make_config, read_until, site, stage
from trioproxy.config.model import Timeouts
from trioproxy.errors import StreamTimeout, UpstreamTimeout
from trioproxy.http.messages import End, RequestHead
from trioproxy.http.rewriting import WrittenFields
from trioproxy.proxy.pool import IDLE_PER_BACKEND, Pool
from trioproxy.proxy.upstream import Backend, Upstream
from trioproxy.proxy.upstream_h1 import H1Upstream

REQUEST = RequestHead(b"GET", b"/", b"cloud.test", [])


class Patient:
    """A client that does not leave."""

    def left(self) -> bool:
        return False


async def _exchange(upstream: Upstream) -> None:
    upstream.ask(REQUEST, b"/", WrittenFields([(b"host", b"cloud.test")]), (End(),), Patient())
    while not isinstance(event := upstream.next(), End):
        if event is None:
            await upstream.receive()


async def _fresh(pool: Pool, port: int) -> tuple[Backend, Upstream]:
    whom = Backend("http", LOOPBACK, port, None, b"")
    return whom, await pool.connect(whom, Timeouts())


async def test_it_is_given_back_once_and_claimed_again() -> None:
    async with backend(answering(HELLO)) as (port, _), stage(make_config(site("cloud.test", port))) as proxy:
        pool = proxy.ctx.pool
        whom, upstream = await _fresh(pool, port)
        await _exchange(upstream)
        assert pool.claim(whom) is None
        upstream.done(keep=True)
        assert pool.claim(whom) is upstream
        assert pool.claim(whom) is None
        upstream.done(keep=False)


async def test_one_that_was_interrupted_carries_nothing_more() -> None:
    """The client left in the very moment in which the response was through: the next client must not hear of it."""
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site("cloud.test", port))) as proxy:
        pool = proxy.ctx.pool
        whom, upstream = await _fresh(pool, port)
        await _exchange(upstream)
        assert isinstance(upstream, H1Upstream)
        upstream.interrupt(StreamTimeout(""))
        upstream.done(keep=True)
        assert pool.claim(whom) is None
        await until(lambda: seen.ended)


async def test_one_whose_time_is_up_hears_so_though_more_comes_just_then() -> None:
    """Or it would be kept, and the next request be told that its time is up."""
    go_on = trio.Event()

    async def script(stream: trio.SocketStream, recording: Recording) -> None:
        await read_until(stream, recording, b"\r\n\r\n")
        await stream.send_all(HELLO[:-1])
        await go_on.wait()
        await stream.send_all(HELLO[-1:])

    async with backend(script) as (port, _), stage(make_config(site("cloud.test", port))) as proxy:
        _, upstream = await _fresh(proxy.ctx.pool, port)
        assert isinstance(upstream, H1Upstream)
        upstream.ask(REQUEST, b"/", WrittenFields([(b"host", b"cloud.test")]), (End(),), Patient())
        await upstream.receive()
        while upstream.next() is not None:
            pass
        woken: list[bool] = []
        upstream.listen(proxy.ctx.watch, lambda: None, lambda: woken.append(True))
        upstream._stream.interrupt(StreamTimeout(""))
        assert woken == [True]
        upstream.rest()
        go_on.set()
        await until(lambda: not upstream.quiet())
        with pytest.raises(UpstreamTimeout):
            await upstream.receive()
        upstream.done(keep=False)


async def test_one_on_which_something_came_unasked_is_not_claimed() -> None:
    async with backend(answering(HELLO + HELLO)) as (port, _), stage(make_config(site("cloud.test", port))) as proxy:
        pool = proxy.ctx.pool
        whom, upstream = await _fresh(pool, port)
        await _exchange(upstream)
        upstream.done(keep=True)
        await until(lambda: pool.claim(whom) is None)


async def test_no_more_idle_ones_are_kept_than_a_backend_may_have() -> None:
    async with backend(answering(HELLO)) as (port, seen), stage(make_config(site("cloud.test", port))) as proxy:
        pool = proxy.ctx.pool
        upstreams = [(await _fresh(pool, port))[1] for _ in range(IDLE_PER_BACKEND + 1)]
        for upstream in upstreams:
            await _exchange(upstream)
        for upstream in upstreams:
            upstream.done(keep=True)
        await until(lambda: seen.ended == 1)
        assert pool.close_idle() == IDLE_PER_BACKEND
