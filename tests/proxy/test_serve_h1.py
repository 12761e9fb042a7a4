"""Client connections that end in the middle of a response."""

from __future__ import annotations

import pytest
import trio

from tests.proxy.stage import Recording, backend, make_config, read_until, site, stage

NAME = "cloud.test"


async def _part(stream: trio.SocketStream, recording: Recording) -> None:
    """Answer with a body that never comes to its end."""
    await read_until(stream, recording, b"\r\n\r\n")
    await stream.send_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npart\r\n")
    await trio.sleep_forever()


async def test_a_response_that_ends_with_the_connection_is_reset_when_stopping_cuts_it_short() -> None:
    async with backend(_part) as (port, _), stage(make_config(site(NAME, port, http="serve"))) as proxy:
        client = await proxy.plain()
        await client.send_all(b"GET / HTTP/1.0\r\nHost: cloud.test\r\n\r\n")
        await read_until(client, Recording(), b"part")
        proxy.connections.cancel_scope.cancel()
        # The test itself runs within what was cancelled.
        with trio.CancelScope(shield=True), trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await client.receive_some()
