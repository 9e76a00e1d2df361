"""Waiting for a server's next request on an event loop that the caller drives."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import threading
import time
import weakref
from asyncio import _set_running_loop  # pyright: ignore[reportPrivateUsage] - for event loops, documented
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from compat.deferring import signals_deferred
from compat.watching import Watch, check_watchable, open_watch

__all__ = ["LoopWaiter", "is_loop_running"]

# Entering uvloop in the main thread costs 28 us (asyncio 4 us), because it takes over the signals
# and gives them back. So while requests follow each other closely, the next one is waited for by
# poll(2) for this long before the loop is entered: a server with nothing else to do is then as fast as
# one without a loop, and what arrives on the loop (a wake-up, the end of a child) is a millisecond
# late at most.
_LINGER_MILLISECONDS = 1

# Requests that are worked off before the tasks of async handlers have a turn of the loop.
_MOST_IN_A_ROW = 8

# More descriptors than a loop and its watch need, and than uvloop needs each time it is entered in the main
# thread; and how often, in milliseconds, somebody who has none looks whether there is something to do.
_DESCRIPTORS_OF_A_LOOP = 10
_DESCRIPTORS_OF_A_RUN = 4
_LOOK_MILLISECONDS = 10

_waiters: weakref.WeakSet[LoopWaiter] = weakref.WeakSet()

# Loops that a fork has copied into this process. Closing one here would take the parent's descriptors
# out of the epoll object, which both processes share (epoll(7), questions and answers).
_inherited: list[asyncio.AbstractEventLoop] = []


class LoopWaiter:
    """An event loop that runs only inside ``wait()``, in the thread that calls it.

    Belongs to one thread at a time. ``wake()`` may be called from other threads and signal handlers.
    The loop is made when it is needed for the first time, and never becomes the thread's current one.
    """

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._make_loop = make_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: Watch | None = None
        self._asked: int | None = None
        self._is_readable: Callable[[int], Sequence[object]] = _nothing
        self._found = False
        self._stopped = False
        self._woken = False
        self._busy = False
        self._in_a_row = 0
        self._had_tasks = False
        self._finishing = False
        self._wakeup_descriptor = -1
        self._error: BaseException | None = None
        self._children: dict[int, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.child_ended: bool = False
        self.scarce: bool = False
        """Whether the process has run out of descriptors lately."""
        _waiters.add(self)

    # --- waiting ---

    def wait(self, fd: int | None, timeout: float | None) -> bool:
        """Whether ``fd`` is readable within ``timeout`` seconds; with no ``fd``, until woken.

        Returns early, with False, after ``wake()`` and when a child has ended. Raises
        ``UnwatchableError``, and whatever a signal handler or a task raises out of the loop.
        """
        if fd is not None and self.is_readable_soon(fd, timeout):
            return True
        if timeout is not None and timeout <= 0 and not self.tasks:
            return False
        self._in_a_row = 0
        self._busy = self._run_loop(fd, timeout)
        return self._busy

    def is_readable_soon(self, fd: int, timeout: float | None) -> bool:
        """The part of ``wait()`` that does without the loop."""
        if fd != self._asked:
            check_watchable(fd)
            self._asked, self._is_readable = fd, _poll_for(fd)
        if self.tasks:
            self._busy = self._in_a_row < _MOST_IN_A_ROW and bool(self._is_readable(0))
            self._in_a_row += self._busy
            return self._busy
        linger = self._busy and not self._woken and (timeout is None or timeout * 1000 > _LINGER_MILLISECONDS)
        ready = self._is_readable(_LINGER_MILLISECONDS if linger else 0)
        self._busy = bool(ready) and not _is_closed(ready)
        return self._busy

    def is_readable_now(self, fd: int) -> bool:
        """Whether the descriptor that was waited for last is this one, and is readable."""
        return fd == self._asked and bool(self._is_readable(0))

    def _run_loop(self, fd: int | None, timeout: float | None) -> bool:
        if self._may_lack_descriptors() and not _are_there_descriptors(_DESCRIPTORS_OF_A_RUN):
            return self._wait_without_loop(fd, timeout)
        loop = self._loop or self._open()
        if loop is None or self._watch is None:
            return self._wait_without_loop(fd, timeout)
        self._watch.set_request(fd)
        self._found = self._stopped = False
        timer = None
        if timeout is not None:
            timer = loop.call_later(timeout, self._stop) if timeout > 0 else loop.call_soon(self._stop)
        if self._takes_over_signals():
            self._wakeup_descriptor = signal.set_wakeup_fd(-1)
            _put_back_wakeup(self._wakeup_descriptor)
        if self._woken:  # Before there was a loop to be woken.
            loop.call_soon(self._stop)
        if not self._had_tasks:
            # Then nobody asks for it, and a signal handler may run a loop of its own, as it always could.
            loop.call_soon(_set_running_loop, None)
        try:
            loop.run_forever()
        except BaseException as exc:
            if not loop.is_running():
                raise
            self._give_up(loop)
            if not isinstance(exc, OSError) or self._had_tasks:
                raise
            self.scarce = True
            return self._wait_without_loop(fd, timeout)
        finally:
            self._woken = False
            if timer is not None:
                timer.cancel()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        if self._found and not self._is_readable(0):
            # The number is that of another file now, or another process was faster.
            self._watch.renew()
            return False
        return self._found

    def _may_lack_descriptors(self) -> bool:
        """For signals uvloop makes a pair of sockets each time that it is entered."""
        return self.scarce or self._takes_over_signals()

    def _takes_over_signals(self) -> bool:
        """uvloop does in the main thread; asyncio leaves the program's wake-up descriptor alone."""
        in_main_thread = threading.current_thread() is threading.main_thread()
        return in_main_thread and type(self._loop).__module__ == "uvloop"

    def prepare(self) -> None:
        """Make the loop, before a descriptor is asked for whose number it might get."""
        if self._loop is None:
            self._open()

    def _give_up(self, loop: asyncio.AbstractEventLoop) -> None:
        """It has failed while it was being entered or left, and is of no use.

        A signal handler has raised there, or uvloop has not got the descriptors for signals.
        """
        _set_running_loop(None)
        if self._takes_over_signals():
            signal.set_wakeup_fd(-1)
            _put_back_wakeup(self._wakeup_descriptor)
        self.abandon()

    def _on_request(self) -> None:
        self._found = True
        self._stop()

    def _stop(self) -> None:
        # Once: uvloop obeys in its next turn, and another one would end the next run at once.
        if self._loop is not None and not self._stopped:
            self._stopped = True
            self._loop.stop()

    def wake(self) -> None:
        """Let ``wait()`` return at once."""
        self._woken = True
        loop = self._loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(self._stop)
            except RuntimeError:
                return  # It is closed: nobody waits.

    def _open(self) -> asyncio.AbstractEventLoop | None:
        """The loop; None where there are not enough descriptors for one."""
        if not _are_there_descriptors(_DESCRIPTORS_OF_A_LOOP):
            return None
        with signals_deferred():
            loop = self._loop = self._make_loop()
        loop.set_exception_handler(self._on_exception)
        self._watch = open_watch(loop, self._on_request, self._on_child_end)
        return loop

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """uvloop calls signal handlers in a callback of its own, and takes what they raise for its error."""
        if "_read_from_self" in str(context.get("message")):
            self._error = context.get("exception")
            self._stop()
        else:
            loop.default_exception_handler(context)

    def _wait_without_loop(self, fd: int | None, timeout: float | None) -> bool:
        """A process that has run out of descriptors: look often enough."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._woken and (deadline is None or time.monotonic() < deadline):
            if fd is None:
                time.sleep(_LOOK_MILLISECONDS / 1000)
            elif self._is_readable(_LOOK_MILLISECONDS):
                return True
        self._woken = False
        return False

    # --- children ---

    def watch_children(self, pids: set[int]) -> bool:
        """Return early from ``wait()`` when one of these, and no other, ends; False where that cannot be.

        Through pidfd_open(2), which Linux has.
        """
        if not hasattr(os, "pidfd_open") or (self._loop is None and self._open() is None):
            return False
        for pid in [pid for pid in self._children.values() if pid not in pids]:
            self._forget_child(pid)
        for pid in pids.difference(self._children.values()):
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:  # Somebody else has waited for it.
                self.child_ended = True
                continue
            except OSError:
                return False
            self._children[descriptor] = pid
            if self._watch is not None:
                self._watch.add_child(descriptor)
        return True

    def _on_child_end(self, descriptor: int) -> None:
        self._forget_child(self._children[descriptor])
        self.child_ended = True
        self._stop()

    def _forget_child(self, pid: int) -> None:
        descriptor = next(each for each, owner in self._children.items() if owner == pid)
        del self._children[descriptor]
        if self._watch is not None:
            self._watch.remove_child(descriptor)
        os.close(descriptor)

    # --- tasks ---

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it while somebody waits here. Raises ``OSError`` where there are no descriptors for a loop."""
        loop = self._loop or self._open()
        if loop is None:
            coroutine.close()
            raise OSError("there are not enough file descriptors for an event loop")
        self._had_tasks = True
        task = loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            # SystemExit and KeyboardInterrupt have left the loop by themselves.
            if error is not None and not isinstance(error, (SystemExit, KeyboardInterrupt)):
                # As when it ends a thread of its own: that is reported, and the server goes on.
                message = "a request has ended with an exception that nobody has handled"
                task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})
        if self._finishing and not self.tasks:
            self._stop()

    def finish_tasks(self, *, cancel: bool) -> None:
        """Run until all tasks are done, and cancel them before where that is wanted, or when interrupted."""
        loop = self._loop
        if loop is None:
            return
        if self._watch is not None:
            self._watch.set_request(None)
        self._finishing = True
        try:
            if cancel:
                self._cancel_tasks()
            while self.tasks:
                self._stopped = False
                loop.run_forever()
        except BaseException:
            self._cancel_tasks()
            while self.tasks:
                self._stopped = False
                loop.run_forever()
            raise
        finally:
            self._finishing = False

    def _cancel_tasks(self) -> None:
        for task in self.tasks:
            task.cancel()

    def close(self) -> None:
        """Close the loop. Tasks that are left are cancelled."""
        loop = self._loop
        if loop is None:
            return
        try:
            self.finish_tasks(cancel=True)
            for pid in list(self._children.values()):
                self._forget_child(pid)
            if self._watch is not None:
                self._watch.close()
            if self._had_tasks:
                _run_to_end(loop, _end_leftovers(loop))
        finally:
            self._loop = self._watch = None
            loop.close()

    def abandon(self) -> None:
        """In a forked child: the loop is the parent's. Another is made if this process waits, too."""
        loop, self._loop = self._loop, None
        watch, self._watch = self._watch, None
        self._busy = False
        self.tasks = set()
        for descriptor in self._children:
            os.close(descriptor)
        self._children = {}
        if watch is not None:
            watch.abandon()
        if loop is not None:
            _inherited.append(loop)
            loop.is_closed = _yes  # type: ignore[method-assign]  # Or its finalizer would close it.


def _put_back_wakeup(descriptor: int) -> None:
    """Have signals written to the program's descriptor again, and to nothing where that is closed.

    Whether the program wants to be warned of a full buffer cannot be asked; uvloop puts it back without, too.
    """
    with suppress(OSError, ValueError):
        signal.set_wakeup_fd(descriptor, warn_on_full_buffer=False)


def _poll_for(fd: int) -> Callable[[int], Sequence[object]]:
    """A function of milliseconds: it gives something if reading does not block, or fails, within them."""
    if not hasattr(select, "poll"):
        return lambda milliseconds: select.select([fd], [], [], milliseconds / 1000)[0]
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll


def _is_closed(ready: Sequence[Any]) -> bool:
    """Whether poll(2) has said that there is no such descriptor, which is no reason to read from it."""
    return hasattr(select, "poll") and bool(ready[0][1] & select.POLLNVAL)


def _are_there_descriptors(count: int) -> bool:
    """Whether that many can be had. asyncio's loops are half made, and warn, when they get too few."""
    found: list[int] = []
    try:
        found.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    except OSError:
        return False
    finally:
        for fd in found:
            os.close(fd)
    return True


def is_loop_running() -> bool:
    """In this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_to_end(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None]) -> None:
    """Not ``run_until_complete()``, to which a ``stop()`` is an error: ``wake()`` may come at any time."""
    task = loop.create_task(coroutine)
    task.add_done_callback(lambda _: loop.stop())
    while not task.done():
        loop.run_forever()
    task.result()


async def _end_leftovers(loop: asyncio.AbstractEventLoop) -> None:
    """What the handlers have begun and left behind."""
    tasks = asyncio.all_tasks(loop) - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _nothing(milliseconds: int) -> Sequence[object]:
    return ()


def _yes() -> bool:
    return True


def _abandon_all() -> None:
    for waiter in list(_waiters):
        waiter.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
