"""One timer for the many waits of one follower.

`asyncio.timeout` makes and cancels a timer for each wait, which costs as much as
all the rest of bringing a follower an event.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class Patience:
    """``with patience.within(limit_s):`` as ``async with asyncio.timeout(limit_s):``; one wait at a time.

    The timer stays armed from wait to wait, and is moved when it goes off too
    early: once a beat, however many events come. To be closed with :meth:`close`.
    """

    __slots__ = ("_cancelling", "_deadline_s", "_is_over", "_loop", "_task", "_timer", "_timer_s")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = float("inf")  # when it goes off
        self._deadline_s = float("inf")
        self._task: asyncio.Task[object] | None = None  # who waits
        self._cancelling = 0
        self._is_over = False

    def within(self, limit_s: float) -> Self:
        self._deadline_s = self._loop.time() + limit_s
        return self

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_s = None, float("inf")

    def __enter__(self) -> None:
        self._task = task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be patient")
        self._cancelling = task.cancelling()
        if self._deadline_s < self._timer_s:
            self._arm()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._is_over and task is not None:
            self._is_over = False
            # Cancelled by us alone, else whoever else cancelled the task wants it to end.
            if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
                raise TimeoutError from error

    def _arm(self) -> None:
        self.close()
        self._timer_s = self._deadline_s
        self._timer = self._loop.call_at(self._timer_s, self._on_time)

    def _on_time(self) -> None:
        self._timer, self._timer_s = None, float("inf")
        if self._task is None:
            return  # nobody waits; who does next arms it
        if self._loop.time() < self._deadline_s:
            self._arm()
        else:
            self._is_over = True
            self._task.cancel()
