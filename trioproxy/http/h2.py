"""HTTP/2: bytes to calls and messages to bytes, for both roles; needs ngh2, and is imported only where that is there.

The interface. A codec is a connection without a socket; bytes come in by `receive` and go out by `outgoing`, and what
has happened meanwhile it tells its listener, within either:

    codec = ServerCodec(limits, listener)      # or ClientCodec(listener)
    codec.receive(data)                        # what the peer sent
    while data := codec.outgoing(64 * 1024):   # also at the very beginning, and after each command:
        await stream.send_all(data)            # `restless` says whether there may be something

Streams are numbers. A server answers an `on_request` with `inform`, `respond`, `body`, `end`; a client begins by
`request`, which returns the number, and goes on with `body`, `end`. The last of these may carry the message's end
(`end=True`) instead of a call of its own. Both may `reset` a stream. A message that has come whole is told as `on_end`,
or by the `ended` of its head. `on_closed` is the last that is heard of a stream; before both messages were through it
means that the peer has gone, whatever its code. A command about a stream that has gone does nothing, so nobody needs to
look first.

Flow control is the caller's. Towards us: each piece of body counts against its stream's window until
`consumed(stream, size)` says that it was passed on; what nobody consumes stops that stream and no other. From us:
`body` queues without limit, `queued(stream)` says how much is left, and whoever sends waits until that is little
(after `outgoing` is the time to look again).

The end. `goaway` refuses new streams and lets those finish that there are; a server's `shutdown` does so after a
warning; `terminate` is at once. `on_over` comes when nothing is left to do, or when the connection is broken;
`outgoing` may then have a last word. `second` is to be called once a second (see `h2_vigil`), and `unfinished` names
what the peer has begun and not finished, for a deadline.
"""

from __future__ import annotations

from trioproxy.http.h2_codec import FAST_WINDOW, MAX_STREAMS, STREAM_WINDOW, Codec
from trioproxy.http.h2_events import ClientListener, Code, Listener, ServerListener
from trioproxy.http.h2_roles import ClientCodec, ServerCodec

__all__ = [
    "FAST_WINDOW",
    "MAX_STREAMS",
    "STREAM_WINDOW",
    "ClientCodec",
    "ClientListener",
    "Code",
    "Codec",
    "Listener",
    "ServerCodec",
    "ServerListener",
]
