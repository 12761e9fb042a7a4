"""What one task waits for and others ring: a wake-up, without the set of waiters that a trio.Event keeps."""

from __future__ import annotations

import trio
from trio.lowlevel import Abort, current_task, reschedule, wait_task_rescheduled


class Bell:
    """For one task at a time. Ringing is not remembered: who waits looks first, and again when it was woken."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    @property
    def awaited(self) -> bool:
        """Whether a task waits."""
        return self._task is not None

    def ring(self) -> None:
        """Wake the task that waits, if there is one."""
        task = self._task
        if task is not None:
            self._task = None
            reschedule(task)

    async def wait(self) -> None:
        """Sleep until it rings."""
        self._task = current_task()
        await wait_task_rescheduled(self._leave)

    def _leave(self, _: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED
