"""Short blocking calls of the servers themselves, each in a thread of its own.

Not in the event loop's default executor: its few threads may all be busy with what handlers gave to
``asyncio.to_thread()``, and a drain has to close its listening sockets at once, however long those take.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ["in_thread"]

T = TypeVar("T")


async def in_thread(function: Callable[[], T]) -> T:
    """Call it in a new thread, to its end: a cancellation is raised after that.

    Where no thread can be started, it is called here: rather blocking for a moment than not at all.
    """
    loop = asyncio.get_running_loop()
    called: asyncio.Future[T] = loop.create_future()
    context = contextvars.copy_context()

    def call() -> None:
        try:
            result = context.run(function)
        except BaseException as exc:
            _tell(loop, called.set_exception, exc)
        else:
            _tell(loop, called.set_result, result)

    try:
        threading.Thread(target=call, name=f"asyncserver-{getattr(function, '__name__', 'call')}").start()
    except RuntimeError:
        return function()
    return await _to_its_end(called)


def _tell(loop: asyncio.AbstractEventLoop, setter: Callable[[T], None], value: T) -> None:
    with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
        loop.call_soon_threadsafe(setter, value)


async def _to_its_end(called: asyncio.Future[T]) -> T:
    try:
        return await asyncio.shield(called)
    except asyncio.CancelledError:
        while not called.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(called)
        called.exception()  # Looked at; the cancellation is what counts.
        raise
