"""A WebSocket service that sends back what it gets, and a client that talks to it through the proxy.

    python echo.py serve ADDRESS PORT
    python echo.py talk ADDRESS PORT AUTHORITY PATH CA_FILE TEXT…

The client sends each TEXT over TLS as a message and prints the answers. `trio-websocket` stands on both sides.
"""

from __future__ import annotations

import functools
import ssl
import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket, wrap_client_stream


async def echo(request: WebSocketRequest) -> None:
    """Accept one client and repeat its messages."""
    async with await request.accept() as connection:
        try:
            while True:
                await connection.send_message(await connection.get_message())
        except ConnectionClosed:
            return


async def serve(address: str, port: int) -> None:
    """Serve until killed; says `ready` once it listens."""
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_websocket, echo, address, port, None)
        print("ready", flush=True)


async def talk(address: str, port: int, authority: str, path: str, ca_file: str, *texts: str) -> None:
    """Send every text and print what comes back."""
    tcp = await trio.open_tcp_stream(address, port)
    context = ssl.create_default_context(cafile=ca_file)
    stream = trio.SSLStream(tcp, context, server_hostname=authority.partition(":")[0], https_compatible=True)
    async with trio.open_nursery() as nursery:
        connection = await wrap_client_stream(nursery, stream, authority, path)
        async with connection:
            for text in texts:
                await connection.send_message(text)
                print(await connection.get_message(), flush=True)


if __name__ == "__main__":
    mode, host, number, *rest = sys.argv[1:]
    if mode == "serve":
        trio.run(serve, host, int(number))
    else:
        trio.run(functools.partial(talk, host, int(number), *rest))
