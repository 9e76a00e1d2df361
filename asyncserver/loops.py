"""The one place where an event loop is chosen; and its whole life, for who has none yet."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeAlias, TypeVar

from asyncserver.errors import OptionError, ServerStateError

__all__ = ["LoopName", "check_no_loop_is_running", "loop_factory", "run_in_new_loop"]

logger: logging.Logger = logging.getLogger("asyncserver")

T = TypeVar("T")

# Seconds that even the impatient leave to a task or a thread that is about to end.
_LEAST_PATIENCE = 0.5

LoopName: TypeAlias = Literal["auto", "uvloop", "asyncio"]
"""``"auto"`` is uvloop where it is installed, and asyncio elsewhere."""


def loop_factory(loop: LoopName = "auto") -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes the event loops; raises ``OptionError`` for an unknown name or a missing uvloop."""
    if loop not in ("auto", "uvloop", "asyncio"):
        raise OptionError("loop", loop, "has to be 'auto', 'uvloop' or 'asyncio'")
    if loop != "asyncio":
        try:
            import uvloop
        except ImportError:
            if loop == "uvloop":
                raise OptionError("loop", loop, "uvloop is not installed: pip install uvloop") from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop


def run_in_new_loop(
    main: Callable[[], Coroutine[Any, Any, T]], loop: LoopName, *, patience: Callable[[], float]
) -> T:
    """``asyncio.run()`` with a bounded end.

    What is left over is given ``patience()`` seconds: the tasks, then the asynchronous generators, then
    the blocking calls in threads. Whatever has not ended by then is logged and left behind. Raises
    ``ServerStateError`` where a loop is running.
    """
    # asyncio.Runner waits for ever for a task that swallows its cancellation, and for a thread, so that
    # one bad handler would keep the process after its server is closed.
    check_no_loop_is_running("this", "await serve()")
    new_loop = loop_factory(loop)()
    executor = ThreadPoolExecutor(thread_name_prefix="asyncserver")
    try:
        asyncio.set_event_loop(new_loop)
        new_loop.set_default_executor(executor)
        return new_loop.run_until_complete(main())
    finally:
        try:
            seconds = max(patience(), _LEAST_PATIENCE)
            new_loop.run_until_complete(_end_leftovers(new_loop, seconds))
            _end_threads(executor, seconds)
        finally:
            asyncio.set_event_loop(None)
            new_loop.close()


def check_no_loop_is_running(what: str, instead: str) -> None:
    """Raise ``ServerStateError`` in a coroutine: ``what`` was called, and ``instead`` is to be written."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ServerStateError(
        f"{what} starts an event loop, and one is running in this thread already: write `{instead}` here"
    )


async def _end_leftovers(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await _wait(tasks, seconds)
    await _wait({asyncio.ensure_future(loop.shutdown_asyncgens())}, seconds)


async def _wait(futures: set[asyncio.Task[Any]], seconds: float) -> None:
    if not futures:
        return
    done, left = await asyncio.wait(futures, timeout=seconds)
    for future in done:
        if not future.cancelled() and future.exception() is not None:
            logger.error("a task failed while it was ending: %r", future, exc_info=future.exception())
    if left:
        logger.warning("left behind: %s", ", ".join(map(repr, left)))


def _end_threads(executor: ThreadPoolExecutor, seconds: float) -> None:
    waiter = threading.Thread(target=executor.shutdown, daemon=True)
    waiter.start()
    waiter.join(seconds)
    if waiter.is_alive():
        logger.warning("left behind: a blocking call in a thread")
