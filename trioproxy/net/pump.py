"""Moves the bytes of all relayed connections, both ways, untouched.

A task for each direction would be woken through Trio's scheduler for every few bytes. Instead there is one
edge-triggered epoll that holds every relayed socket, and one task that waits for the epoll's own descriptor and moves
what can be moved. The structure stays what Trio wants: each connection has its own task, which owns both sockets,
sleeps while the pump works, and can be cancelled at any time; only the moving of bytes is shared.

What edge-triggered epoll asks for, and where it is done:

- An edge comes once. A direction is therefore moved until one of its sockets has nothing more to give or take; if it
  has had its quota before that, it goes on the run queue, because no new edge will come for what is left
  (`Pump._step`). A read that did not fill the buffer has emptied the socket, but for an end that was announced already
  (`_Direction.ending`).
- Only a sink that was full once is waited for (`Pump._wait_for_sink`). Most never are, and a socket that is listened to
  for its being writable wakes us for nothing, when it begins and when it is emptied.
- Descriptor numbers are reused. Nothing awaits between taking a batch of events and the end of working on it, and a
  relay that has ended is found in the table no more (`Pump._work`).
- EAGAIN says that nothing can be moved now, and for `splice` not which side of it is to blame; a pipe that is only
  filled when it is empty leaves no doubt (`_Direction._splice`).
- A reset shows as EPOLLERR even while we have no wish to read (the other side is slow), and the other side shall learn
  of it at once. What came before the reset is passed on first.
"""

from __future__ import annotations

import copy
import os
import select
import socket
from collections import deque

import trio
from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_readable

from trioproxy.errors import ConnectionLost, StreamError
from trioproxy.net.pipes import SIZE, Pipe, Pipes
from trioproxy.net.raw import Socket
from trioproxy.net.sock import Reaper, Stream

CHUNK = 64 * 1024
"""Bytes moved by one pair of system calls."""

QUOTA = 4
"""Chunks that a direction may move before others have their turn: 256 KiB, some 100 µs."""

BUSY_TURNS = 2
"""Turns in a row that a direction used up by copying, before it gets a pipe: 512 KiB that were there at once."""

SPLICE_QUOTA = 1024 * 1024
"""Bytes that a direction may splice before others have their turn: some 100 µs too, for nothing is copied to us."""

BATCH = 512
"""Events taken from epoll at once."""

_NON_BLOCKING = 0x01 | 0x02  # SPLICE_F_MOVE and SPLICE_F_NONBLOCK, which os does not name
_ENDING = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EDGES = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET


class _Direction:
    """From one socket to the other: what was read and could not be sent yet, and whether the end has come.

    It copies, until it has been busy for `BUSY_TURNS` whole turns; then it splices through a pipe, until a turn comes
    in which little was there.
    """

    __slots__ = (
        "awaited",
        "busy",
        "carried",
        "ended",
        "ending",
        "other",
        "pending",
        "pipe",
        "queued",
        "relay",
        "sink",
        "source",
    )

    other: _Direction  # the way back

    def __init__(self, relay: _Relay, source: Socket, sink: Socket) -> None:
        self.relay = relay
        self.source = source
        self.sink = sink
        self.pending = b""
        self.carried = 0  # bytes that the sink has taken
        self.ending = False  # the source's end, or an error, was announced: read on until it shows
        self.ended = False
        self.busy = 0  # turns in a row that ended with the quota
        self.queued = False
        self.awaited = False  # the sink was full once, and tells since then when it is not
        self.pipe: Pipe | None = None

    def stuck(self) -> bool:
        """Whether bytes wait for the sink to take more."""
        return bool(self.pending) or (self.pipe is not None and self.pipe.held > 0)

    def move(self, buffer: memoryview, pipes: Pipes) -> tuple[int, bool]:
        """Move until something blocks, the source ends, or the quota is used up.

        Returns:
            Bytes sent, and whether it was the quota that stopped us.
        """
        if self.pipe is not None:
            moved, stopped = self._splice(self.pipe)
            if self.pipe.held == 0 and (self.ended or moved < CHUNK):
                self.release(pipes)
            return moved, stopped
        moved, stopped = self._copy(buffer)
        if stopped:
            self.busy += 1
            if self.busy >= BUSY_TURNS:
                self.busy = 0
                self.pipe = pipes.take()
        else:
            self.busy = 0
        return moved, stopped

    def _copy(self, buffer: memoryview) -> tuple[int, bool]:
        moved = 0
        try:
            if self.pending:
                moved = self.sink.send(self.pending)
                self.carried += moved
                self.pending = self.pending[moved:]
                if self.pending:
                    return moved, False
            for _ in range(QUOTA):
                size = self.source.recv_into(buffer)
                if not size:
                    self.ended = True
                    return moved, False
                try:
                    sent = self.sink.send(buffer[:size])
                except BlockingIOError:
                    sent = 0
                moved += sent
                self.carried += sent
                if sent < size:
                    self.pending = bytes(buffer[sent:size])
                    return moved, False
                if size < CHUNK and not self.ending:
                    return moved, False  # the socket was empty then, and an edge comes with whatever comes
        except BlockingIOError:
            return moved, False
        return moved, True

    def _splice(self, pipe: Pipe) -> tuple[int, bool]:
        source, sink = self.source.fileno(), self.sink.fileno()
        moved = 0
        try:
            while moved < SPLICE_QUOTA:
                # Filled only when empty: a full pipe and an empty socket would look alike.
                if not pipe.held:
                    pipe.held = os.splice(source, pipe.write_end, SIZE, flags=_NON_BLOCKING)
                    if not pipe.held:
                        self.ended = True
                        return moved, False
                sent = os.splice(pipe.read_end, sink, pipe.held, flags=_NON_BLOCKING)
                pipe.held -= sent
                moved += sent
                self.carried += sent
        except BlockingIOError:
            return moved, False
        return moved, True

    def release(self, pipes: Pipes) -> None:
        """Give the pipe back, if there is one."""
        if self.pipe is not None:
            pipes.give_back(self.pipe)
            self.pipe = None


class _Relay:
    """Two sockets, and the task that sleeps until they are done with each other."""

    __slots__ = ("back", "error", "forth", "idle", "moved_at", "pump", "task")

    def __init__(self, pump: Pump, client: Socket, backend: Socket, idle: float) -> None:
        self.pump = pump
        self.forth = _Direction(self, client, backend)
        self.back = _Direction(self, backend, client)
        self.forth.other, self.back.other = self.back, self.forth
        self.idle = idle
        self.moved_at = trio.current_time()  # or began
        self.error: Exception | None = None
        self.task: Task | None = None  # until it sleeps

    def sleeping(self) -> bool:
        """Whether its task still waits for it to end."""
        return self.task is not None

    def overdue(self, now: float) -> bool:
        """See `Reaper`."""
        return self.moved_at + self.idle < now

    @property
    def idle_since(self) -> float | None:
        """The Trio time of the last byte in either direction; None when it has ended."""
        return self.moved_at if self.task is not None else None

    def interrupt(self, error: StreamError) -> None:
        """See `Reaper`."""
        self.error = error
        self.pump.finish(self)

    def abort(self, _: object) -> Abort:
        """Its task is cancelled; Trio wakes it."""
        self.task = None
        self.pump.finish(self)
        return Abort.SUCCEEDED


class Pump:
    """The shared epoll. `run` must be running while `relay` is used.

    Attributes:
        pipes: What busy relays splice through.
    """

    def __init__(self, reaper: Reaper) -> None:
        self._reaper = reaper
        self._epoll = select.epoll()
        self._from: dict[int, _Direction] = {}  # by the descriptor of the source
        self._run_queue: deque[_Direction] = deque()
        self._buffer = memoryview(bytearray(CHUNK))
        self.pipes = Pipes()

    async def relay(self, client: Stream, backend: Stream, idle: float) -> None:
        """Carry bytes both ways until both directions have ended. A half-close is passed on as one.

        Args:
            client: One side; plain, and owned by the caller, who closes it afterwards.
            backend: The other side, likewise.
            idle: Seconds without a byte in either direction after which it ends.

        Raises:
            ConnectionLost: one side was reset. The caller should abort both.
            StreamTimeout: nothing moved for `idle` seconds.

        However it ends, `carried` of both says how much has gone through.
        """
        relay = _Relay(self, client.sock, backend.sock, idle)
        from_client, from_backend = client.sock.fileno(), backend.sock.fileno()
        self._from[from_client] = relay.forth
        self._from[from_backend] = relay.back
        watched = self._reaper.watched
        watched.add(relay)
        watched.discard(client)  # they wait for nothing by themselves any more
        watched.discard(backend)
        # What the client has said is passed on now: it was waiting for the backend, and need not wait for the epoll
        # too. What lies in the sockets after that makes an edge when they are registered.
        self._epoll.register(from_backend, _EDGES)
        self._step(relay.forth, relay.moved_at)
        try:
            if relay.error is None:
                self._epoll.register(from_client, _EDGES)
                relay.task = current_task()
                await trio.lowlevel.wait_task_rescheduled(relay.abort)
        finally:
            forth, back = relay.forth, relay.back
            client.carried, backend.carried = forth.carried, back.carried
            del relay.forth, relay.back, forth.other, back.other  # rings, which the collector would come for late
        if isinstance(relay.error, OSError):
            raise ConnectionLost(f"relaying failed: {relay.error}") from relay.error.with_traceback(None)
        if isinstance(relay.error, StreamError):
            raise copy.copy(relay.error)  # itself, it would hold this frame, which holds it
        if relay.error is not None:
            raise relay.error

    def relays(self) -> set[_Relay]:
        """Every connection that is being relayed, as what a Shedder chooses from."""
        return {direction.relay for direction in self._from.values()}

    async def run(self) -> None:
        """Move bytes until cancelled."""
        try:
            while True:
                if self._run_queue:
                    await checkpoint()
                else:
                    await wait_readable(self._epoll.fileno())
                self._work()
        finally:
            self._epoll.close()
            self.pipes.close()

    def _work(self) -> None:
        turns = len(self._run_queue)
        now = trio.current_time()
        for descriptor, events in self._epoll.poll(0, BATCH):
            direction = self._from.get(descriptor)
            if direction is None:
                continue
            if events & _ENDING:
                direction.ending = True
            if not direction.ended and (events & select.EPOLLIN or direction.ending):
                self._step(direction, now)
            relay = direction.relay
            if events & select.EPOLLOUT and relay.sleeping() and direction.other.stuck():
                self._step(direction.other, now)
            if events & select.EPOLLERR and relay.sleeping():
                relay.interrupt(ConnectionLost("one side was reset"))
        for _ in range(turns):
            direction = self._run_queue.popleft()
            direction.queued = False
            if direction.relay.sleeping() and not direction.ended:
                self._step(direction, now)

    def _step(self, direction: _Direction, now: float) -> None:
        relay = direction.relay
        try:
            moved, again = direction.move(self._buffer, self.pipes)
            if direction.ended and not direction.other.ended:
                direction.sink.shutdown(socket.SHUT_WR)
            if not direction.awaited and (direction.pending or direction.pipe is not None) and direction.stuck():
                self._wait_for_sink(direction)
        except Exception as exc:  # whatever it is, it ends this relay alone, and is raised in its own task
            relay.error = exc
            self.finish(relay)
            return
        if direction.ended and direction.other.ended:
            self.finish(relay)  # closing says the second end
            return
        if moved:
            relay.moved_at = now
        if again and not direction.queued:
            direction.queued = True
            self._run_queue.append(direction)

    def _wait_for_sink(self, direction: _Direction) -> None:
        """Listen for the sink's being writable from now on; if it is already, that makes an edge at once."""
        direction.awaited = True
        self._epoll.modify(direction.sink.fileno(), _EDGES | select.EPOLLOUT)

    def finish(self, relay: _Relay) -> None:
        """Take a relay out and wake its task, if it still sleeps.

        The sockets are the task's to close, and closing takes them out of the epoll. Until then nobody is in the table
        for what comes from them.
        """
        self._reaper.watched.discard(relay)
        for direction in (relay.forth, relay.back):
            direction.release(self.pipes)
            self._from.pop(direction.source.fileno(), None)
        if relay.task is not None:
            task, relay.task = relay.task, None
            reschedule(task)
