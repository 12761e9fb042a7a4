"""A worker, as its supervisor sees it: a process, and a channel to ask it things by.

Whoever does not answer in time is killed, and whoever waits for an answer of one that is gone hears of it. What is to
be done then is the crew's affair.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from trioproxy.errors import ControlError, TrioproxyError
from trioproxy.life.channel import FORMAT, Channel, ChannelClosed

log = logging.getLogger("trioproxy.workers")

VARIABLE = "TRIOPROXY_WORKER"
"""Tells a process that it is a worker, and by which descriptor it hears of its work."""

NOT_FOR_WORKERS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""It is the supervisor who speaks with systemd."""

PATIENCE = 5.0
"""Seconds for an answer. A CA that is to be told that a challenge can be looked at is kept waiting for no longer."""

LONG_PATIENCE = 30.0
"""Seconds for a start, and to take over a configuration: ten thousand sites on a busy machine."""

REAPING = 5.0
"""Seconds in which the kernel is done with a process that was killed."""


class WorkerGone(TrioproxyError):
    """A worker has ended, or was killed because it did not answer."""


@attrs.define
class _Reply:
    come: trio.Event = attrs.field(factory=trio.Event)
    said: dict[str, Any] | None = None


class Member:
    """One worker process.

    Attributes:
        slot: Its place in the crew, from 0 on.
        pid: Its process.
        accepting: It serves.
        begun: It has been given a configuration.
        heard: The Trio time of its last answer.
        unseen: Names whose certificates it does not have as they are now.
        acknowledged: Of all that was published, how much it has.
        moved: Set, and replaced, when one of these has changed.
        wanted: Set when there is something that it does not have.
    """

    def __init__(self, slot: int, process: trio.Process, channel: Channel) -> None:
        self.slot = slot
        self.pid = process.pid
        self.accepting = False
        self.begun = False
        self.heard = trio.current_time()
        self.unseen: set[str] = set()
        self.acknowledged = 0
        self.moved = trio.Event()
        self.wanted = trio.Event()
        self.process = process
        self._channel = channel
        self._sending = trio.Lock()
        self._numbers = itertools.count(1)
        self._replies: dict[int, _Reply] = {}
        self._gone = False

    def __str__(self) -> str:
        return f"worker {self.slot + 1} (process {self.pid})"

    def kill(self, why: str = "") -> None:
        """End it at once."""
        if why and not self._gone:
            log.error("%s %s, and is killed", self, why)
        self.lost()
        self.process.kill()

    def lost(self) -> None:
        """It is known to have ended: whoever waits for it need not any more."""
        self._gone = True
        self.accepting = False
        for reply in self._replies.values():
            reply.come.set()
        self.tell_moved()

    def tell_moved(self) -> None:
        """Wake whoever waits for it to get further."""
        self.moved.set()
        self.moved = trio.Event()

    async def hello(self) -> None:
        """Wait until it is there. Raises WorkerGone."""
        with trio.move_on_after(LONG_PATIENCE) as scope:
            try:
                heard, _ = await self._channel.receive()
            except ChannelClosed as exc:
                raise WorkerGone(f"{self} ended before it was there") from exc
        if scope.cancelled_caught:
            self.kill(f"has not started after {LONG_PATIENCE:g} s")
            raise WorkerGone(f"{self} did not start")
        if heard.get("format") != FORMAT:
            self.kill("is of another version than this server: `trioproxy upgrade` replaces both")
            raise WorkerGone(f"{self} is of another version")

    async def ask(
        self, word: str, socks: Sequence[socket.socket] = (), patience: float = PATIENCE, **more: Any
    ) -> dict[str, Any]:
        """Have it do something, and wait for its answer.

        Args:
            word: What is asked for; see `worker`.
            socks: Listening sockets that go with it.
            patience: Seconds after which it is killed.
            more: What belongs to it, JSON values.

        Raises:
            WorkerGone: it has ended, or was killed for not answering.
            ControlError: it refuses.
        """
        if self._gone:
            raise WorkerGone(f"{self} has ended")
        number = next(self._numbers)
        reply = self._replies[number] = _Reply()
        try:
            with trio.move_on_after(patience) as scope:
                await self._send({"id": number, "word": word, **more}, socks, patience)
                if not self._gone:
                    await reply.come.wait()
        finally:
            del self._replies[number]
        if scope.cancelled_caught:
            self.kill(f"has not answered within {patience:g} s")
        if reply.said is None:
            raise WorkerGone(f"{self} has ended")
        if "error" in reply.said:
            raise ControlError(f"{self}: {reply.said['error']}")
        return reply.said

    async def _send(self, message: dict[str, Any], socks: Sequence[socket.socket], patience: float) -> None:
        async with self._sending:
            # A line that is sent in part only would end the conversation.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + patience) as scope:
                try:
                    await self._channel.send(message, socks)
                except ChannelClosed:
                    self.lost()
            if scope.cancelled_caught:
                self.kill(f"has not listened for {patience:g} s")

    async def listen(self) -> None:
        """Take its answers, until it is gone."""
        try:
            while True:
                message, _ = await self._channel.receive()
                self.heard = trio.current_time()
                if reply := self._replies.get(int(message.get("id", 0))):
                    reply.said = message
                    reply.come.set()
        except ChannelClosed:
            self.kill()  # a process that does not listen any more is of no use

    def close(self) -> None:
        """Nothing is left to be said."""
        self._channel.close()


@asynccontextmanager
async def started(slot: int, command: Sequence[str]) -> AsyncIterator[Member]:
    """A worker that `command` starts, and that is killed at the end of the block if it has not ended then.

    Raises:
        WorkerGone: it cannot be started.
    """
    near, far = socket.socketpair()
    environ = {key: value for key, value in os.environ.items() if key not in NOT_FOR_WORKERS}
    with contextlib.ExitStack() as undo:
        undo.enter_context(near)
        with far:
            try:
                process = await trio.lowlevel.open_process(
                    list(command),
                    stdin=subprocess.DEVNULL,
                    pass_fds=[far.fileno()],
                    env={**environ, VARIABLE: str(far.fileno())},
                )
            except OSError as exc:
                raise WorkerGone(f"a worker cannot be started: {exc.strerror or exc}") from exc
        undo.pop_all()
    member = Member(slot, process, Channel(near))
    try:
        yield member
    finally:
        member.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REAPING):
            await process.wait()
        member.close()
