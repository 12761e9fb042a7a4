"""A server replaces itself by a new process, which may run newer code, and nobody is refused meanwhile.

`process/inheritance` tells what the two say to each other. The old process gives up, in this order: renewing
certificates and answering commands (only one may do that; an order that breaks off is taken up by the new one where it
was written down last), being the service for systemd, and accepting connections. Then it lets those that it has come to
their end, as when it stops. Until the new one accepts connections everything can be taken back, and is, whatever
happens to it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs
import trio

from trioproxy.control import ControlSocket, Report
from trioproxy.errors import ControlError, ListenError
from trioproxy.process.inheritance import MAX_LINE, VARIABLE, Heirloom, Inheritance, bequeath, line
from trioproxy.process.notify import Notifier

log = logging.getLogger("trioproxy.server")

PATIENCE = 60.0
"""Seconds within which a new process must accept connections: a start takes less than one."""

FAREWELL = 5.0
"""Seconds that a new process which failed gets to end by itself."""


@attrs.frozen
class Estate:
    """What an old server hands over, and how it lets go of what only one may do.

    Attributes:
        command: What starts a server such as this one.
        heirlooms: Lists what it listens on.
        control: Where it takes commands.
        notifier: Who is told that the service is another process now.
        stopping: Whether the server is at its end already.
        let_go: Stop what only one process may do; returns when that has stopped.
        take_back: Do it again.
        leave: Let connections finish, and end.
    """

    command: Sequence[str]
    heirlooms: Callable[[], tuple[Heirloom, ...]]
    control: ControlSocket
    notifier: Notifier
    stopping: Callable[[], bool]
    let_go: Callable[[], Awaitable[None]]
    take_back: Callable[[], None]
    leave: Callable[[], None]


class Upgrades:
    """Carries out `trioproxy upgrade`.

    Attributes:
        successor: The process that has taken over; it goes on when this one has ended.
    """

    def __init__(self, estate: Estate) -> None:
        self.successor: trio.Process | None = None
        self._estate = estate
        self._under_way = False

    async def upgrade(self, _: dict[str, Any], report: Report) -> dict[str, Any]:
        """Hand over to a new process.

        Raises:
            ControlError: it did not come to serve; this one goes on.
        """
        if not self._estate.command:
            raise ControlError(
                "this server was not started by `trioproxy serve`, so nothing knows how to start it anew"
            )
        if self._estate.stopping():
            raise ControlError("the server is stopping")
        if self._under_way:
            raise ControlError("an upgrade is under way already")
        self._under_way = True
        try:
            pid = await self._hand_over(report)
        except ControlError as exc:
            log.error("not upgraded: %s; this process goes on", exc)
            raise
        finally:
            self._under_way = False
        return {"pid": pid, "old_pid": os.getpid()}

    async def _hand_over(self, report: Report) -> int:
        estate = self._estate
        near, far = socket.socketpair()
        talk = Conversation(near)
        try:
            with far:
                process = await _start(estate, far)
        except BaseException:
            talk.close()
            raise
        report(f"the new process is {process.pid}")
        let_go = False
        serving = False
        try:
            with trio.move_on_after(PATIENCE) as scope, contextlib.suppress(_Gone):
                await talk.expect("ready")
                let_go = True
                await estate.let_go()
                await talk.say("go")
                heard = await talk.expect("serving")
                serving = True
                estate.control.hand_over(same_path=bool(heard["control"]))
                estate.notifier.resign(process.pid)
                await talk.say("main")
            if not serving:
                raise ControlError(await _what_became_of(process, late=scope.cancelled_caught))
        finally:
            talk.close()
            if not serving:
                if let_go:
                    estate.take_back()
                process.kill()
                with trio.CancelScope(shield=True, deadline=trio.current_time() + FAREWELL):
                    await process.wait()
        self.successor = process
        log.info("process %d serves from now on; this one lets its connections finish", process.pid)
        estate.leave()
        return process.pid


async def _what_became_of(process: trio.Process, *, late: bool) -> str:
    if late:
        return f"the new process does not serve after {PATIENCE:g} s"
    with trio.move_on_after(FAREWELL):
        await process.wait()
    code = "" if process.returncode is None else f" with code {process.returncode}"
    return f"the new process ended{code} before it served; the log has its words"


async def _start(estate: Estate, channel: socket.socket) -> trio.Process:
    heirlooms = estate.heirlooms()
    control = (estate.control.sock, estate.control.path)
    descriptors = [channel.fileno(), control[0].fileno(), *(heirloom.sock.fileno() for heirloom in heirlooms)]
    environ = {**os.environ, VARIABLE: bequeath(heirlooms, control, channel)}
    environ.pop("WATCHDOG_PID", None)  # the new process will be the one that is watched
    try:
        return await trio.lowlevel.open_process(
            list(estate.command), stdin=subprocess.DEVNULL, pass_fds=descriptors, env=environ
        )
    except OSError as exc:
        raise ControlError(f"{estate.command[0]} cannot be started: {exc.strerror or exc}") from exc


# ---- the new process's side ---------------------------------------------------------------------------


class Succession:
    """What the new process has to do before it serves, and after."""

    def __init__(self, inheritance: Inheritance) -> None:
        self._talk = Conversation(inheritance.channel)

    async def wait_for_turn(self) -> None:
        """Say that all is ready, and wait until the old process has let go.

        Raises:
            ListenError: it has ended, or has thought better of it.
        """
        try:
            await self._talk.say("ready")
            await self._talk.expect("go")
        except (_Gone, ControlError) as exc:
            raise ListenError("the server that this one was to replace does not hand over any more") from exc

    async def serving(self, *, control: bool) -> None:
        """Say that connections are accepted, and wait until the old process has told systemd who is the service now.

        Args:
            control: The control socket is the inherited one.
        """
        try:
            await self._talk.say("serving", control=control)
            await self._talk.expect("main")
        except (_Gone, ControlError):
            log.warning("the old server ended before it had told systemd of this one")
        self._talk.close()


# ---- both ---------------------------------------------------------------------------------------------


class _Gone(Exception):
    """The other process has ended."""


class Conversation:
    """Lines of JSON between the two."""

    def __init__(self, sock: socket.socket) -> None:
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self._buffer = bytearray()

    async def say(self, word: str, **more: object) -> None:
        """Send one line."""
        try:
            await self._stream.send_all(line(word, **more))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise _Gone from exc

    async def expect(self, word: str) -> dict[str, Any]:
        """The next line, which must be `word`.

        Raises:
            ControlError: the other process refused, with its reasons, or said something else.
        """
        while b"\n" not in self._buffer:
            try:
                data = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
                raise _Gone from exc
            if not data or len(self._buffer) > MAX_LINE:
                raise _Gone
            self._buffer += data
        text, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        heard: dict[str, Any] = json.loads(text)
        if heard["word"] == "failed":
            raise ControlError("the new process did not start:\n" + "\n".join(map(str, heard["reasons"])))
        if heard["word"] != word:
            raise ControlError(f"the new process said {heard['word']} and not {word}")
        return heard

    def close(self) -> None:
        """No more is to be said."""
        self._stream.socket.close()
