"""The unix socket between the commands and the running server.

One request for each connection: the command writes a line of JSON, `{"command": "certs.renew", "arguments": {…}}`;
the server writes any number of `{"progress": "a line for a person"}`, then either `{"result": {…}}` or
`{"error": "why not"}`, and ends. A command that follows something (`Endless`) has no result: its progress is objects,
and it ends when the client ends its side. The socket is 0600, so who may open it is who owns the server.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

from trioproxy.errors import ControlError, ListenError, TrioproxyError

log = logging.getLogger("trioproxy.control")

MAX_LINE = 4 * 1024 * 1024
"""Bytes of one line: a list of 10,000 certificates is half of that."""

REQUEST_SECONDS = 5.0
"""A command sends its line at once; who does not is no command of ours."""

UNKNOWN = "the running server does not know this command: it is another version of trioproxy, restart it"

Report = Callable[[str], None]
Handler = Callable[[dict[str, Any], Report], Awaitable[dict[str, Any]]]
"""Carries out one command: its arguments and a way to report progress go in, the result comes out."""

Tell = Callable[[dict[str, Any]], bool]
"""Tells of something that was followed. Returns False for what was left out, because the command reads too slowly."""


@attrs.frozen
class Endless:
    """Carries out a command that follows something, for as long as whoever asked listens.

    Attributes:
        follow: The command's arguments and a way to tell go in; it is cancelled at the end.
    """

    follow: Callable[[dict[str, Any], Tell], Awaitable[None]]


Handlers = Mapping[str, Handler | Endless]


class NoServer(ControlError):
    """No server listens on the control socket."""


# ---- the server's side --------------------------------------------------------------------------------


class ControlSocket:
    """The socket that commands come in by. Accepting can pause, for a newer process may answer in our place.

    Attributes:
        path: Where it is.
        sock: It listens, and does not block.
    """

    def __init__(self, path: Path, sock: socket.socket) -> None:
        self.path = path
        self.sock = sock
        self._handed_over = False
        self._paused = False
        self._accepting = trio.CancelScope()
        self._resumed = trio.Event()
        self._under_way = 0
        self._all_answered = trio.Event()
        self._all_answered.set()

    def pause(self) -> None:
        """Accept no command; those that are under way go on, and those that come wait."""
        self._paused = True
        self._accepting.cancel()

    def resume(self) -> None:
        """Accept commands again."""
        self._paused = False
        self._resumed.set()

    def hand_over(self, *, same_path: bool) -> None:
        """Another process has the socket now, and its path if that is the same."""
        self._handed_over = same_path
        self.sock.close()

    async def answer(self, handlers: Handlers) -> None:
        """Answer commands until cancelled."""

        async def serve_one(stream: trio.SocketStream) -> None:
            await self._serve_one(stream, handlers)

        async with trio.open_nursery() as commands:
            while True:
                if not self._paused:
                    # Each time another descriptor of the same socket: Trio closes what it has listened on.
                    listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.sock.dup()))
                    with trio.CancelScope() as self._accepting:
                        await trio.serve_listeners(serve_one, [listener], handler_nursery=commands)
                await self._resumed.wait()
                self._resumed = trio.Event()

    async def _serve_one(self, stream: trio.SocketStream, handlers: Handlers) -> None:
        if not self._under_way:
            self._all_answered = trio.Event()
        self._under_way += 1
        try:
            await _answer(stream, handlers)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):  # Ctrl-C; a nursery may have wrapped it
            log.info("a command went away before it was answered; what it had asked for is given up")
        except* Exception:
            log.exception("a bug in trioproxy ended a command")
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_answered.set()

    async def answered(self) -> None:
        """Wait until no command is under way."""
        await self._all_answered.wait()

    def close(self) -> None:
        """The end: the file goes too, unless another process has it."""
        self.sock.close()
        if not self._handed_over:
            self.path.unlink(missing_ok=True)


@contextmanager
def control_socket(path: Path, inherited: socket.socket | None = None) -> Iterator[ControlSocket]:
    """Listen on `path`, 0600, as long as the block runs; a file that a dead server left behind is replaced.

    Args:
        path: The socket's file.
        inherited: An older process's socket of that path, to go on with.

    Raises:
        ListenError: another server listens there, something else than a socket is there, or the folder cannot be
            written.
    """
    control = ControlSocket(path, inherited or _bind(path))
    try:
        yield control
    finally:
        control.close()


def _bind(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and not path.is_socket():
            raise ListenError(f"{path}: this is no socket; move it away, or set control.socket to another path")
        if path.exists() and _answers(path):
            raise ListenError(f"{path}: another trioproxy is running with this storage; stop it first")
        path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(mask)
        sock.listen(8)
    except OSError as exc:
        sock.close()
        raise ListenError(f"{path}: the control socket cannot be made: {exc.strerror or exc}") from exc
    except ListenError:
        sock.close()
        raise
    return sock


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


async def _answer(stream: trio.SocketStream, handlers: Handlers) -> None:
    with trio.move_on_after(REQUEST_SECONDS) as scope:
        line = await _Lines(stream).next()
    if scope.cancelled_caught or line is None:
        return
    send, receive = trio.open_memory_channel[dict[str, Any]](100)

    def tell(progress: object) -> bool:
        try:
            send.send_nowait({"progress": progress})
        except trio.WouldBlock:
            log.debug("a command reads too slowly to be told: %s", progress)
            return False
        return True

    request = _understood(line, handlers)
    async with stream, trio.open_nursery() as nursery:
        nursery.start_soon(_write_all, stream, receive, nursery.cancel_scope)
        async with send:
            if request is not None and isinstance(request.handler, Endless):
                nursery.start_soon(_end_with_client, stream, nursery.cancel_scope)
            await send.send(await _carry_out(request, tell))


async def _write_all(
    stream: trio.SocketStream, messages: trio.MemoryReceiveChannel[dict[str, Any]], scope: trio.CancelScope
) -> None:
    async for message in messages:
        await stream.send_all(json.dumps(message).encode() + b"\n")
    scope.cancel()


async def _end_with_client(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    while await stream.receive_some():
        pass
    scope.cancel()


@attrs.frozen
class _Request:
    command: str
    arguments: dict[str, Any]
    handler: Handler | Endless


def _understood(line: bytes, handlers: Handlers) -> _Request | None:
    """What is asked for; None for what nobody here knows."""
    try:
        request = json.loads(line)
        return _Request(request["command"], dict(request["arguments"]), handlers[request["command"]])
    except (ValueError, KeyError, TypeError):
        return None


async def _carry_out(request: _Request | None, tell: Callable[[object], bool]) -> dict[str, Any]:
    """The last line of the answer."""
    if request is None:
        return {"error": UNKNOWN}

    def report(line: str) -> None:
        tell(line)

    try:
        if isinstance(request.handler, Endless):
            await request.handler.follow(request.arguments, tell)
            return {"result": {}}
        return {"result": await request.handler(request.arguments, report)}
    except TrioproxyError as exc:
        return {"error": str(exc)}
    except Exception:
        log.exception("a bug in trioproxy ended the command %s", request.command)
        return {"error": "a bug in trioproxy ended this command; the server's log has the details"}


# ---- the command's side -------------------------------------------------------------------------------


async def ask(path: Path, command: str, arguments: dict[str, Any], report: Callable[[Any], None]) -> dict[str, Any]:
    """Have the running server carry out `command`.

    Args:
        path: The control socket.
        command: Its name, "certs.renew".
        arguments: What it takes; JSON values.
        report: Called with each line of progress, or with each thing that is told.

    Returns:
        The result, JSON values.

    Raises:
        NoServer: nobody listens there.
        ControlError: the server refused, or ended before it had answered.
    """
    try:
        stream = await trio.open_unix_socket(str(path))
    except (FileNotFoundError, ConnectionRefusedError) as exc:
        raise NoServer(f"no server is running with the control socket {path}") from exc
    except OSError as exc:
        raise ControlError(f"{path}: {exc.strerror or exc}: run this as the user that the server runs as") from exc
    async with stream:
        lines = _Lines(stream)
        try:
            await stream.send_all(json.dumps({"command": command, "arguments": arguments}).encode() + b"\n")
            while (line := await lines.next()) is not None:
                message = json.loads(line)
                if "progress" in message:
                    report(message["progress"])
                elif "error" in message:
                    raise ControlError(message["error"])
                else:
                    result: dict[str, Any] = message["result"]
                    return result
        except trio.BrokenResourceError as exc:
            raise ControlError("the server ended before it had answered") from exc
    raise ControlError("the server ended before it had answered")


class _Lines:
    """Lines of a stream, each at most `MAX_LINE` long."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """The next line without its end, None at the end of the stream."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            data = await self._stream.receive_some()
            if not data or searched > MAX_LINE:
                return None
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line
