"""``Worker``: a task in whose name handlers are started, so that most of them need none of their own.

A handler that does nothing but compute and reply never waits for anything, and a task for it would cost more
than the handler. So handlers are started right where their packets are received, one after the other, with
a parked task standing in as the current one (``_enter_task`` and ``_leave_task`` are asyncio's documented
hooks for that). A handler that does have to wait is handed over to that task, which runs it to its end as
if it had done so from the beginning: timeouts, task groups, cancel scopes and context variables hold. The
next handler then gets the next worker.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Generator
from contextvars import Context
from typing import Any

from asyncserver.seat import Seat
from asyncserver.stepping import suspending

__all__ = ["Worker"]

# Where that can be had, the task begins when it is made, so that it is parked at once.
_AT_ONCE: dict[str, Any] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
# Whether uncancel() takes back a cancellation that has not been raised yet.
_UNCANCEL_FORGETS = sys.version_info >= (3, 13)


class Worker:
    """One task, for any number of handlers that do not wait, and at most one that does."""

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context, name: str) -> None:
        self.seat: Seat = Seat(loop)
        self._given: tuple[Coroutine[Any, Any, object], Any] | None = None
        self.context = context
        """What handlers are to be started in; the task's own."""
        self.task: asyncio.Task[Any] = asyncio.Task(
            self._live(), loop=loop, name=name, context=context, **_AT_ONCE
        )

    @property
    def is_parked(self) -> bool:
        """Whether handlers can be started in its name: it has begun, and has not been given one yet."""
        return self.seat.wakeup is not None

    @property
    def is_cancelled(self) -> bool:
        """Whether a handler has cancelled its own task. No other may be started then."""
        return self.seat.cancelled

    @property
    def is_to_raise(self) -> bool:
        """Whether that handler's next wait will raise it."""
        return self.seat.cancelled and (self.task.cancelling() > 0 or not _UNCANCEL_FORGETS)

    def hand_over(self, coroutine: Coroutine[Any, Any, object], waits_for: Any) -> None:
        """Let the task go on with a handler that has yielded this. Only from callbacks of the loop."""
        self._given = coroutine, waits_for
        self.seat.cancelled = self.is_to_raise
        self.seat.wake()

    def retire(self) -> None:
        """End the task, unless it was given a handler."""
        if self._given is None:
            self.task.cancel()

    @suspending
    def _live(self) -> Generator[Any, Any, object]:
        waits_for: Any = None
        cancellation: asyncio.CancelledError | None = None
        try:
            yield self.seat
        except asyncio.CancelledError as exc:
            if self._given is None:
                raise
            cancellation = exc
        if self._given is None:
            return None
        coroutine, waits_for = self._given
        try:
            if cancellation is not None and not _cancelled(waits_for, cancellation):
                waits_for = coroutine.throw(cancellation)
            while True:
                try:
                    yield waits_for
                except BaseException as exc:
                    waits_for = coroutine.throw(exc)
                else:
                    waits_for = coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        finally:
            cancellation = waits_for = None  # Tracebacks lead here: these would be cycles.


def _cancelled(waits_for: Any, cancellation: asyncio.CancelledError) -> bool:
    """Whether what the handler waits for will raise the cancellation in its turn."""
    return waits_for is not None and bool(waits_for.cancel(*cancellation.args))
