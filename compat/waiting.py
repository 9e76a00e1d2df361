"""Waiting for a server's next request on an event loop that the caller drives."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import stat
import weakref
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

__all__ = ["LoopWaiter", "UnwatchableError", "is_loop_running"]

# Entering uvloop in the main thread costs 28 us (asyncio 4 us), because it takes over the signals
# and gives them back. So while requests follow each other closely, the next one is waited for by
# poll(2) for this long before the loop is entered: a server with nothing else to do is then as fast as
# one without a loop, and what arrives on the loop (a wake-up, the end of a child) is a millisecond
# late at most.
_LINGER_MILLISECONDS = 1

# Requests that are worked off before the tasks of async handlers have a turn of the loop.
_MOST_IN_A_ROW = 8

_waiters: weakref.WeakSet[LoopWaiter] = weakref.WeakSet()

# Loops that a fork has copied into this process. Closing one here would take the parent's descriptors
# out of the epoll object, which both processes share (epoll(7), questions and answers).
_inherited: list[asyncio.AbstractEventLoop] = []


class UnwatchableError(OSError):
    """The loop's selector refuses the descriptor: epoll does so with regular files (epoll_ctl(2), EPERM)."""


class LoopWaiter:
    """An event loop that runs only inside ``wait()``, in the thread that calls it.

    Belongs to one thread at a time. ``wake()`` may be called from other threads and signal handlers.
    The loop is made when it is needed for the first time, and never becomes the thread's current one.
    """

    def __init__(self, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self._make_loop = make_loop
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: int | None = None
        self._asked: int | None = None
        self._is_readable: Callable[[int], Sequence[object]] = _nothing
        self._found = False
        self._woken = False
        self._busy = False
        self._in_a_row = 0
        self._had_tasks = False
        self._descriptors: dict[int, int] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        self.child_ended = False
        _waiters.add(self)

    # --- waiting ---

    def wait(self, fd: int | None, timeout: float | None) -> bool:
        """Whether ``fd`` is readable within ``timeout`` seconds; with no ``fd``, until woken.

        Returns early, with False, after ``wake()`` and when a child has ended. Raises
        ``UnwatchableError``, and whatever a signal handler or a task raises out of the loop.
        """
        if fd is not None and self.is_readable_soon(fd, timeout):
            return True
        if timeout is not None and timeout <= 0 and not self.tasks and self._loop is None:
            return False
        self._in_a_row = 0
        self._busy = self._run_loop(fd, timeout)
        return self._busy

    def is_readable_soon(self, fd: int, timeout: float | None) -> bool:
        """The part of ``wait()`` that does without the loop."""
        if fd != self._asked:
            _check_watchable(fd)  # poll(2) takes them, and says that they are always readable.
            self._asked, self._is_readable = fd, _poll_for(fd)
        if self.tasks or not self._busy or self._woken:
            return self._is_readable_already(fd)
        linger = timeout is None or timeout * 1000 > _LINGER_MILLISECONDS
        self._busy = bool(self._is_readable(_LINGER_MILLISECONDS if linger else 0))
        return self._busy

    def is_readable_now(self, fd: int) -> bool:
        """Whether the descriptor that was waited for last is this one, and is readable."""
        return fd == self._asked and bool(self._is_readable(0))

    def _is_readable_already(self, fd: int) -> bool:
        if (self.tasks and self._in_a_row >= _MOST_IN_A_ROW) or not self._is_readable(0):
            return False
        if not self._busy and fd == self._watched:
            # The loop should have said so: the number may be that of another file now.
            self._watch(None)
        self._busy = True
        self._in_a_row += 1
        return True

    def _run_loop(self, fd: int | None, timeout: float | None) -> bool:
        loop = self._loop
        if loop is None:
            loop = self._loop = self._make_loop()
        self._watch(fd)
        self._found = False
        timer = None
        if timeout is not None:
            timer = loop.call_later(timeout, loop.stop) if timeout > 0 else loop.call_soon(loop.stop)
        if self._woken:  # Before there was a loop to be woken.
            loop.call_soon(loop.stop)
        try:
            loop.run_forever()
        finally:
            self._woken = False
            if timer is not None:
                timer.cancel()
        return self._found

    def _watch(self, fd: int | None) -> None:
        """Have the loop watch this descriptor and no other."""
        if fd == self._watched or self._loop is None:
            return
        if self._watched is not None:
            with suppress(OSError, ValueError):  # It may be closed, or be another file's by now.
                self._loop.remove_reader(self._watched)
            self._watched = None
        if fd is not None:
            try:
                self._loop.add_reader(fd, self._on_readable)
            except PermissionError as exc:
                raise UnwatchableError(*exc.args) from exc
            self._watched = fd

    def _on_readable(self) -> None:
        self._found = True
        self._stop()

    def _stop(self) -> None:
        if self._loop is not None:
            self._loop.stop()

    def wake(self) -> None:
        """Let ``wait()`` return at once."""
        self._woken = True
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # Closed: nobody waits.
                loop.call_soon_threadsafe(loop.stop)

    # --- children ---

    def watch_children(self, pids: set[int]) -> bool:
        """Return early from ``wait()`` when one of these, and no other, ends; False where that cannot be.

        Through pidfd_open(2), which Linux has.
        """
        if not hasattr(os, "pidfd_open"):
            return False
        if self._loop is None:
            self._loop = self._make_loop()
        for pid in self._descriptors.keys() - pids:
            self._forget_child(pid)
        for pid in pids - self._descriptors.keys():
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:  # Somebody else has waited for it.
                self.child_ended = True
                continue
            except OSError:
                return False
            self._descriptors[pid] = descriptor
            self._loop.add_reader(descriptor, self._on_child_end, pid)
        return True

    def _on_child_end(self, pid: int) -> None:
        self._forget_child(pid)
        self.child_ended = True
        self._stop()

    def _forget_child(self, pid: int) -> None:
        descriptor = self._descriptors.pop(pid)
        if self._loop is not None:
            self._loop.remove_reader(descriptor)
        os.close(descriptor)

    # --- tasks ---

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run it while somebody waits here."""
        if self._loop is None:
            self._loop = self._make_loop()
        self._had_tasks = True
        task = self._loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def finish_tasks(self, *, cancel: bool) -> None:
        """Run until all tasks are done, and cancel them before where that is wanted, or when interrupted."""
        loop = self._loop
        if loop is None:
            return
        self._watch(None)
        try:
            while self.tasks:
                if cancel:
                    for task in self.tasks:
                        task.cancel()
                loop.run_until_complete(_wait_for(self.tasks))
        except BaseException:
            for task in self.tasks:
                task.cancel()
            if self.tasks:
                loop.run_until_complete(_wait_for(self.tasks))
            raise

    def close(self) -> None:
        """Close the loop. Tasks that are left are cancelled."""
        loop = self._loop
        if loop is None:
            return
        try:
            self.finish_tasks(cancel=True)
            self._watch(None)
            for pid in list(self._descriptors):
                self._forget_child(pid)
            if self._had_tasks:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            self._loop = None
            loop.close()

    def abandon(self) -> None:
        """In a forked child: the loop is the parent's. Another is made if this process waits, too."""
        loop, self._loop = self._loop, None
        self._watched = None
        self._busy = False
        self.tasks = set()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}
        if loop is not None:
            _inherited.append(loop)
            loop.is_closed = _yes  # type: ignore[method-assign]  # Or its finalizer would close it.


def _check_watchable(fd: int) -> None:
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return  # Whoever reads from it will say so.
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        raise UnwatchableError(errno.EPERM, os.strerror(errno.EPERM))


def _poll_for(fd: int) -> Callable[[int], Sequence[object]]:
    """A function of milliseconds: it gives something if reading does not block, or fails, within them."""
    if not hasattr(select, "poll"):
        return lambda milliseconds: select.select([fd], [], [], milliseconds / 1000)[0]
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return poll.poll


def is_loop_running() -> bool:
    """In this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _wait_for(tasks: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(tasks)


def _nothing(milliseconds: int) -> Sequence[object]:
    return ()


def _yes() -> bool:
    return True


def _abandon_all() -> None:
    for waiter in list(_waiters):
        waiter.abandon()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
