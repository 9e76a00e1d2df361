"""``Seat``: where one task waits, again and again, without a future for each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context

__all__ = ["Seat"]


class Seat:
    """Follows asyncio's protocol of future-like objects (``asyncio.isfuture``); a task waits by yielding it.

    ``wake()`` continues the task at once, without another turn of the loop. So it may be called from
    callbacks of the loop only, never by a task.
    """

    __slots__ = ("_context", "_loop", "_message", "cancelled", "wakeup")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._context: Context | None = None
        self._message: str | None = None
        self.cancelled: bool = False
        """The task was cancelled while it waited here, and has not been told yet."""
        self.wakeup: Callable[[Seat], object] | None = None
        """Continues the task that waits here; None while there is none."""

    def wake(self) -> None:
        """Continue the task that waits here, if there is one."""
        wakeup, self.wakeup = self.wakeup, None
        context, self._context = self._context, None
        if wakeup is not None:
            try:
                if context is None:
                    wakeup(self)
                else:
                    context.run(wakeup, self)
            finally:
                del wakeup  # If its task has failed, the traceback leads here: that would be a cycle.

    # --- what tasks call ---

    # A task reads this from what a coroutine yields, and resets it. It is true whenever a task sees it.
    _asyncio_future_blocking = property(lambda self: True, lambda self, value: None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this belongs to."""
        return self._loop

    def add_done_callback(
        self, callback: Callable[[Seat], object], *, context: Context | None = None
    ) -> None:
        """Take the wake-up callback of the task that starts to wait."""
        self.wakeup = callback
        self._context = context

    def remove_done_callback(self, callback: Callable[[Seat], object]) -> int:
        """Forget the callback; returns how many were forgotten."""
        if self.wakeup != callback:
            return 0
        self.wakeup = self._context = None
        return 1

    def done(self) -> bool:
        """Never: a seat is used again and again."""
        return False

    def result(self) -> None:
        """Called by the task that wakes up: raises if it was cancelled."""
        if self.cancelled:
            self.cancelled = False
            raise asyncio.CancelledError(*([self._message] if self._message else []))

    def cancel(self, msg: str | None = None) -> bool:
        """Called by ``Task.cancel()``; False means that the task has to remember it for itself."""
        if self.wakeup is None:
            return False
        self.cancelled = True
        self._message = msg
        self._loop.call_soon(self._wake_cancelled)
        return True

    def _wake_cancelled(self) -> None:
        # Something else may have woken the task already, which then has seen the cancellation.
        if self.cancelled:
            self.wake()
