"""How a coroutine is continued at once when its stream has something for it.

A task that awaits a future is woken through the loop's queue: the future is created, resolved, its
callback scheduled, and in the loop's next turn the task runs. For a server that does little more
than receive and send, this costs more than the handler. Here the loop's readiness callback continues
the waiting coroutine itself, without a future and without another turn of the loop:

* All that the reader of a stream can wait for is one ``Parking``. It follows asyncio's protocol of
  future-like objects (``asyncio.isfuture``), so that *any* task can wait for it, and it wakes that
  task by calling its wake-up callback directly.
* A coroutine run by ``Steppable.drive()``, which is how every connection's handler runs, is even
  stepped past its task: the task stays parked while the coroutine goes round its
  receive-and-send loop. The task takes over again as soon as the coroutine waits for anything else,
  returns, raises or is cancelled. It stays the current task all the time (``_enter_task`` and
  ``_leave_task`` are asyncio's documented hooks for that), so that timeouts, task groups, cancel
  scopes and context variables work as they do in any task.
"""

# A Parking and its Steppable are two sides of one thing: what tasks see of it, and what streams extend.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from contextvars import Context
from functools import update_wrapper, wraps
from inspect import CO_COROUTINE, CO_GENERATOR
from types import CoroutineType
from typing import Any, NamedTuple, ParamSpec, TypeVar

__all__ = ["RAISED", "RETURNED", "YIELDED", "Parking", "Steppable", "suspending"]

P = ParamSpec("P")
T = TypeVar("T")

# How a step past the task ended, if it did not end where it began, waiting for the same parking.
YIELDED, RAISED, RETURNED = range(3)

# Not None: that is what a coroutine yields to let the loop have a turn.
_NOWHERE = object()


def suspending(function: Callable[P, Generator[Any, Any, T]]) -> Callable[P, CoroutineType[Any, Any, T]]:
    """Make a generator function a coroutine function: what it yields suspends the task.

    ``types.coroutine()`` does the same but for the kind of object that comes out, which here is a
    real coroutine: it can be given to ``create_task()`` and says so when it was never awaited. An
    ``async def`` around a generator would do that too, at the price of one more frame each time
    (a tenth of the time that the echo of a message takes in Python).
    """
    if sys.implementation.name != "cpython":
        suspended = types.coroutine(function)

        @wraps(function)
        async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
            return await suspended(*args, **kwargs)

        return wrapper  # type: ignore[return-value]
    code = function.__code__
    coroutine_function = types.FunctionType(
        code.replace(co_flags=code.co_flags & ~CO_GENERATOR | CO_COROUTINE),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    coroutine_function.__kwdefaults__ = function.__kwdefaults__
    return update_wrapper(coroutine_function, function)


class Parking:
    """The place where a task, or a coroutine driven by it, waits for one stream. One at a time."""

    __slots__ = ("_cancel_message", "_cancelled", "_owner", "wakeup")

    def __init__(self, owner: Steppable) -> None:
        self._owner = owner
        # Continues the task that waits here.
        self.wakeup: Callable[[Parking], object] | None = None
        self._cancelled = False
        self._cancel_message: str | None = None

    # --- asyncio's protocol of future-like objects: called by tasks ---

    # A task reads this flag from what a coroutine yields, and resets it. It is true each time that a
    # coroutine waits here, which is whenever a task sees it, so there is nothing to be stored.
    _asyncio_future_blocking = property(lambda self: True, lambda self, value: None)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that this belongs to."""
        return self._owner._loop

    def add_done_callback(
        self, callback: Callable[[Parking], object], *, context: Context | None = None
    ) -> None:
        """Take the wake-up callback of the task that starts to wait."""
        if self._owner._stepping:
            self._owner._take_guest(callback, context)
        else:
            self.wakeup = callback
            self._owner._parked(context)

    def remove_done_callback(self, callback: Callable[[Parking], object]) -> int:
        """Forget the callback; returns how many were forgotten."""
        if self.wakeup != callback:
            return 0
        self.wakeup = None
        return 1

    def done(self) -> bool:
        """Never: a parking is used again and again."""
        return False

    def result(self) -> None:
        """Called by the task that wakes up: raises if it was cancelled."""
        if self._cancelled:
            self._cancelled = False
            raise asyncio.CancelledError(*([self._cancel_message] if self._cancel_message else []))

    def cancel(self, msg: str | None = None) -> bool:
        """Called by ``Task.cancel()``; False means that the task has to remember it for itself."""
        if self._owner._interrupt() or self.wakeup is None:
            return False
        self._owner._stop_stepping()
        self._cancelled = True
        self._cancel_message = msg
        self._owner._loop.call_soon(self._wake_cancelled)
        return True

    def _wake_cancelled(self) -> None:
        # Data may have come first and woken the task already, which then has seen the cancellation.
        if self._cancelled:
            self._owner._wake_task()


class _Guest(NamedTuple):
    """A task that waits in the parking of a coroutine that is being stepped."""

    wakeup: Callable[[Parking], object]
    context: Context | None
    task: asyncio.Task[Any]
    cancelling: int


class Steppable:
    """What can step a coroutine that waits in its ``Parking``; the base of a stream."""

    __slots__ = ("_context", "_guest", "_loop", "_outcome", "_parking", "_place", "_step", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._parking = Parking(self)
        # What a step has to end with for the coroutine to be waiting here again: the parking. Nothing
        # that there is if the coroutine has cancelled its own task in the meantime.
        self._place: object = self._parking
        # Continues the driven coroutine past its task; set only while both wait here.
        self._step: Callable[[Any], Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._context: Context | None = None
        # What a step past the task ended with, for the task to take over.
        self._outcome: tuple[int, Any] | None = None
        # A task that began to wait here in the middle of a step.
        self._guest: _Guest | None = None

    @suspending
    def drive(self, coroutine: Coroutine[Any, Any, T], task: asyncio.Task[Any]) -> Generator[Any, None, T]:
        """Run ``coroutine`` to its end in the current task, ``task``, and return what it returns.

        Equal to ``await coroutine`` but for the speed: while the coroutine waits for this stream, it
        is stepped past the task.
        """
        yielded: Any = None
        try:
            yielded = self.begin(coroutine, task)
            while True:
                try:
                    yield yielded
                except BaseException as exc:
                    yielded = self.throw_in(coroutine, exc)
                else:
                    yielded = self.go_on(coroutine)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]
        finally:
            self._step = self._task = None
            yielded = None  # If that was a task which has failed, its traceback leads here.

    # What `drive` is made of. A coroutine that runs another one only for a part of its own life does
    # the same with these, and saves the frame. Each returns what is to be yielded to the task, and
    # raises StopIteration with the result when the driven coroutine has returned.

    def begin(self, coroutine: Coroutine[Any, Any, Any], task: asyncio.Task[Any]) -> Any:
        """Start the coroutine, in its task."""
        self._task = task
        return self._note_wait(coroutine, coroutine.send(None))

    def go_on(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """The task was woken: continue the coroutine, unless it has been stepped past the task."""
        self._step = None
        return self._note_wait(coroutine, coroutine.send(None) if self._outcome is None else self._continue())

    def throw_in(self, coroutine: Coroutine[Any, Any, Any], exc: BaseException) -> Any:
        """The task was woken with an exception: raise it where the coroutine waits."""
        self._step = None
        try:
            return self._note_wait(coroutine, self._throw(coroutine, exc))
        finally:
            del exc  # Its traceback leads here: that would be a cycle.

    def _note_wait(self, coroutine: Coroutine[Any, Any, Any], waits_for: Any) -> Any:
        if waits_for is self._parking:
            self._step = coroutine.send
        return waits_for

    def forget_handler(self) -> None:
        """Break the reference cycles that driving a coroutine makes, when it is over."""
        self._task = self._step = self._outcome = None
        if self._parking.wakeup is None:  # Otherwise a task that the handler has left behind waits here.
            self._context = None

    def _dissolve(self) -> None:
        """Break the reference cycle with the parking: nobody waits there now, and nobody will."""
        self._context = None
        with suppress(AttributeError):  # It may be broken already.
            del self._parking._owner

    # --- for the parking ---

    def _parked(self, context: Context | None) -> None:
        """A task has begun to wait in the parking; it runs in this context."""
        self._context = context

    def _interrupt(self) -> bool:
        """Whether the coroutine is being stepped just now, and cancels its own task; noted if so."""
        if not self._stepping:
            return False
        self._place = _NOWHERE
        return True

    @property
    def _stepping(self) -> bool:
        """Whether the driven coroutine runs, stepped past its task."""
        step: Any = self._step
        return step is not None and step.__self__.cr_running

    def _take_guest(self, wakeup: Callable[[Parking], object], context: Context | None) -> None:
        """A task begins to wait here before the driven one has taken over from the step.

        Only a task that the coroutine has started eagerly can do that.
        """
        task: Any = asyncio.current_task(self._loop)
        self._guest = _Guest(wakeup, context, task, task.cancelling())

    def _stop_stepping(self) -> None:
        """The task has to be woken the next time."""
        self._step = None

    def _wake_task(self) -> None:
        """Continue the task that waits in the parking. Only from a callback of the loop."""
        self._place = parking = self._parking
        wakeup, parking.wakeup = parking.wakeup, None
        if wakeup is not None:
            try:
                self._context.run(wakeup, parking)  # type: ignore[union-attr]
            finally:
                del wakeup  # If its task has failed, the traceback leads here: that would be a cycle.

    # --- handing over between the step and the task ---

    def _hand_over(self) -> None:
        """The task has to take over after a step past it."""
        self._step = None
        if self._outcome is not None and self._outcome[1] is self._parking:
            # Still waiting here, but its task was cancelled on the way, which the task remembers.
            self._outcome = None
            self._loop.call_soon(self._wake_interrupted)
        elif self._guest is None:
            self._wake_task()
        else:
            self._wake_task_before(self._guest)

    def _wake_interrupted(self) -> None:
        # Data may have come first and woken the task already, which then has seen its cancellation.
        if self._place is _NOWHERE:
            if self._task is not None:
                # Without anything for the coroutine: if its task is not cancelled any more, it waits again.
                self._outcome = (YIELDED, self._parking)
            self._wake_task()

    def _wake_guest(self, guest: _Guest) -> None:
        if self._parking.wakeup is guest.wakeup:
            self._wake_task()

    def _wake_task_before(self, guest: _Guest) -> None:
        """The driven task takes over; the guest stays."""
        parking = self._parking
        wakeup, context = parking.wakeup, self._context
        self._guest = None
        parking.wakeup, self._context = guest.wakeup, guest.context
        self._place = parking
        if guest.task.cancelling() > guest.cancelling:
            # It was cancelled at once, which it remembers for itself and has to be woken for.
            self._loop.call_soon(self._wake_guest, guest)
        context.run(wakeup, parking)  # type: ignore[union-attr, arg-type]

    def _continue(self) -> Any:
        """What the coroutine waits for after the last step past the task; or that it has ended."""
        kind, value = self._take_outcome()
        if kind == RETURNED:
            raise StopIteration(value)
        if kind == RAISED:
            try:
                raise value
            finally:
                del value
        return value

    def _throw(self, coroutine: Coroutine[Any, Any, Any], exc: BaseException) -> Any:
        """The task raises ``exc`` (it is cancelled, or closed) where the coroutine waits."""
        try:
            if self._outcome is None:
                return coroutine.throw(exc)
            if self._outcome[0] != YIELDED:
                # The coroutine has ended: what is cancelled is what comes after it.
                self._cancel_later(exc)
                return self._continue()
            waits_for = self._continue()
            if waits_for is not None and waits_for.cancel(*exc.args):
                # What the coroutine waits for now is what has to be cancelled; it will raise in turn.
                return waits_for
            return coroutine.throw(exc)
        finally:
            del exc  # Its traceback leads here: that would be a cycle.

    def _cancel_later(self, exc: BaseException) -> None:
        """Give a cancellation that the task has raised back to it."""
        if self._task is not None:
            self._task.cancel(*exc.args)
            self._task.uncancel()

    def _take_outcome(self) -> tuple[int, Any]:
        outcome, self._outcome = self._outcome, None
        assert outcome is not None
        return outcome
