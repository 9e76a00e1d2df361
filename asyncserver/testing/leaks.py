"""What a piece of code may not leave behind: descriptors, threads, child processes, and tasks of a loop.

::

    with leak_check():
        main()

    async with leak_check(), task_leak_check():
        await something()

What ends by itself gets ``PATIENCE`` seconds to do so; where nothing is left behind, nobody waits. A block
that raised is not examined, because the traceback of its exception keeps sockets and files alive.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from asyncserver import loop_factory

__all__ = [
    "DETECTORS",
    "PATIENCE",
    "Child",
    "Descriptor",
    "Detector",
    "LeakCheck",
    "LeakError",
    "ProcessWatch",
    "TaskWatch",
    "child_processes",
    "describe_place",
    "describe_thread",
    "leak_check",
    "live_threads",
    "open_descriptors",
    "task_leak_check",
]

PATIENCE = 1.0
"""Seconds that something may take to end by itself before it is called a leak."""

# Seconds between two looks at what is left: the first, and the longest. (Each look collects garbage.)
_SHORTEST, _LONGEST = 0.002, 0.05

_LINUX = sys.platform.startswith("linux")


class LeakError(AssertionError):
    """Something was left behind; ``leaks`` describes each of it, and the message has all of them."""

    def __init__(self, leaks: Iterable[str]) -> None:
        self.leaks: list[str] = list(leaks)
        super().__init__("left behind:\n" + "\n".join(f"- {leak}" for leak in self.leaks))

    def __reduce__(self) -> tuple[type[LeakError], tuple[list[str]]]:
        return type(self), (self.leaks,)


# File descriptors.


class Descriptor(NamedTuple):
    """An open file descriptor and what it refers to: the number alone is used again at once."""

    number: int
    target: str

    def __str__(self) -> str:
        return f"{self.number} -> {self.target}{_socket_ends(self.number)}"


def open_descriptors() -> set[Hashable]:
    """Every open descriptor of this process."""
    found: set[Hashable] = set()
    for name in os.listdir("/proc/self/fd" if _LINUX else "/dev/fd"):
        with suppress(OSError):  # the listing's own descriptor is closed by now
            found.add(Descriptor(int(name), _target(int(name))))
    return found


def _target(number: int) -> str:
    if _LINUX:
        return os.readlink(f"/proc/self/fd/{number}")
    status = os.fstat(number)
    return f"{stat.filemode(status.st_mode)} {status.st_dev}:{status.st_ino}"


def _socket_ends(number: int) -> str:
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            return ""
        with socket.socket(fileno=os.dup(number)) as duplicate:
            ends = [duplicate.family.name, duplicate.type.name, f"local {duplicate.getsockname()!r}"]
            with suppress(OSError):
                ends.append(f"peer {duplicate.getpeername()!r}")
    except OSError:
        return ""
    return f" ({', '.join(ends)})"


# Threads.


def live_threads() -> set[Hashable]:
    """Every thread that Python knows."""
    return set(threading.enumerate())


def describe_thread(thread: threading.Thread) -> str:
    """The thread's name, its function and where it is now."""
    frame = sys._current_frames().get(thread.ident or 0)  # pyright: ignore[reportPrivateUsage]
    place = f" at {_place_of(frame)}" if frame else ""
    return f"{thread.name!r} ({'daemon, ' if thread.daemon else ''}{type(thread).__name__}){place}"


# The threads of a loop's default executor (``run()`` has one of its own), and those in which anyio runs
# what blocks, belong to the loop, and end with it.
_OF_LOOPS = re.compile(r"(asyncio|uvloop|asyncserver)_\d+|AnyIO worker thread")


def _threads_but_those_of_loops() -> set[Hashable]:
    return {thread for thread in threading.enumerate() if not _OF_LOOPS.fullmatch(thread.name)}


# Child processes.


@dataclass(frozen=True)
class Child:
    """A child process that nobody has waited for: it still runs, or it is a zombie.

    The command does not count in a comparison: it changes when the process ends, and with ``execve(2)``.
    """

    pid: int
    command: str = field(compare=False)

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"


def child_processes() -> set[Hashable]:
    """The children of this process; none is waited for here, so nobody misses an exit status."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()
    return set(_children_in_proc() if _LINUX else _children_in_ps())


def _children_in_proc() -> Iterator[Child]:
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                before, _, after = Path("/proc", entry, "stat").read_text(errors="replace").rpartition(")")
                state, parent = after.split()[:2]
                if int(parent) == os.getpid():
                    name = before.partition("(")[2]
                    yield Child(int(entry), "zombie" if state == "Z" else _command_line(entry) or name)


def _command_line(entry: str) -> str:
    return Path("/proc", entry, "cmdline").read_text(errors="replace").replace("\0", " ").strip()


def _children_in_ps() -> Iterator[Child]:
    with subprocess.Popen(["ps", "-axo", "pid=,ppid=,command="], stdout=subprocess.PIPE, text=True) as ps:
        listing, _ = ps.communicate()
    for line in listing.splitlines():
        pid, parent, command = line.split(None, 2)
        if int(parent) == os.getpid() and int(pid) != ps.pid:
            yield Child(int(pid), command)


def end_child(child: Child) -> None:
    """Kill and reap, so that a leaked process outlives neither its test nor the run."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(child.pid, signal.SIGKILL)
        os.waitpid(child.pid, 0)


# The three together.


class Detector(NamedTuple):
    """One kind of resource: how to list what there is, and how to describe one of them."""

    kind: str
    observe: Callable[[], set[Hashable]]
    describe: Callable[[Any], str] = str


DETECTORS = (
    Detector("child process", child_processes),
    Detector("thread", live_threads, describe_thread),
    Detector("file descriptor", open_descriptors),
)
"""For a watch that begins before a loop does, and ends after it."""

_DETECTORS_BESIDE_LOOPS = (
    DETECTORS[0],
    DETECTORS[1]._replace(observe=_threads_but_those_of_loops),
    DETECTORS[2],
)


def _pauses(patience: float) -> Iterator[float]:
    """Seconds to wait between looks, until the patience is over."""
    deadline = time.monotonic() + patience
    pause = _SHORTEST
    while time.monotonic() < deadline:
        yield pause
        pause = min(1.5 * pause, _LONGEST)


class ProcessWatch:
    """What the process holds at the end that it did not hold when the watch began."""

    def __init__(self, detectors: Iterable[Detector] = DETECTORS) -> None:
        self._before = [(detector, detector.observe()) for detector in detectors]

    def leaks(self, patience: float = PATIENCE) -> list[str]:
        """Describe what is left after at most ``patience`` seconds; leaked children are ended. Blocks."""
        pauses = _pauses(patience)
        while left := self._left():
            pause = next(pauses, None)
            if pause is None:
                break
            time.sleep(pause)
        return self._described(left)

    async def leaks_beside_loop(self, patience: float = PATIENCE) -> list[str]:
        """The same while the running loop goes on."""
        pauses = _pauses(patience)
        while left := await asyncio.to_thread(self._left):
            pause = next(pauses, None)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return await asyncio.to_thread(self._described, left)

    def _left(self) -> list[tuple[Detector, Hashable]]:
        gc.collect()
        return [
            (detector, item)
            for detector, before in self._before
            for item in sorted(detector.observe() - before, key=str)
        ]

    def _described(self, left: list[tuple[Detector, Hashable]]) -> list[str]:
        descriptions = [f"{detector.kind} {detector.describe(item)}" for detector, item in left]
        for _, item in left:
            if isinstance(item, Child):
                end_child(item)
        return descriptions


class LeakCheck:
    """What ``leak_check()`` returns: a context manager, in an event loop an asynchronous one."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._watch: ProcessWatch | None = None

    def __enter__(self) -> None:
        _open_what_stays_open()
        self._watch = ProcessWatch(_DETECTORS_BESIDE_LOOPS)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        watch, self._watch = self._watch, None
        if kind is None and watch is not None:
            _raise_for(watch.leaks(self._patience))

    async def __aenter__(self) -> None:
        await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        watch, self._watch = self._watch, None
        if kind is None and watch is not None:
            _raise_for(await watch.leaks_beside_loop(self._patience))


def leak_check(*, patience: float = PATIENCE) -> LeakCheck:
    """A context manager that raises ``LeakError`` for descriptors, threads and child processes left behind.

    What began before the block does not count, nor do the threads of a loop's default executor and those of
    ``anyio.to_thread``, which end with the loop. What is there at the end of the block is given ``patience``
    seconds to go away. Child processes that are left are killed. If the block raises, nothing is examined.

    The block looks at the whole process: what other threads open meanwhile counts. Around a program that has
    a loop of its own use ``with``; inside of one ``async with``, which lets the loop go on while it waits.
    """
    return LeakCheck(patience)


@functools.cache
def _open_what_stays_open() -> None:
    """libuv opens a pipe of its own with the first loop of a process, and keeps it."""
    loop_factory()().close()


def _raise_for(leaks: list[str]) -> None:
    if leaks:
        raise LeakError(leaks)


# Tasks.


class _TaskFactory:
    """Notes where tasks are created, for all watches over a loop, and calls the factory that was there.

    One for all, because they may end in any order.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.created_at: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.watches: set[TaskWatch] = set()
        self._loop = loop
        self._before: Any = loop.get_task_factory()
        loop.set_task_factory(self)

    @classmethod
    def of(cls, loop: asyncio.AbstractEventLoop) -> _TaskFactory:
        """The one that the loop has, or a new one."""
        factory: Any = loop.get_task_factory()
        return factory if isinstance(factory, cls) else cls(loop)

    def __call__(self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        if self._before is None:
            task = asyncio.Task(coroutine, loop=loop, **options)
        else:
            task = self._before(loop, coroutine, **options)
        self.created_at[task] = _nearest_place_outside_asyncio()
        return task

    def stop(self, watch: TaskWatch) -> None:
        """After the last watch the loop gets the factory back that it had, unless it has another one now."""
        self.watches.discard(watch)
        if not self.watches and self._loop.get_task_factory() is self:
            self._loop.set_task_factory(self._before)


class TaskWatch:
    """The tasks of one loop that are not done, and where they were created."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Until ``stop()`` the loop has a task factory that notes places, and calls the one before."""
        self._loop = loop
        self._before = asyncio.all_tasks(loop)
        self._factory = _TaskFactory.of(loop)
        self._factory.watches.add(self)

    def stop(self) -> None:
        """Give the loop the task factory back that it had; with other watches, the last one does."""
        self._factory.stop(self)

    async def leaks(self, patience: float = PATIENCE) -> list[str]:
        """Describe the tasks that are still there after at most ``patience`` seconds."""
        pauses = _pauses(patience)
        while left := self._left():
            pause = next(pauses, None)
            if pause is None:
                break
            await asyncio.sleep(pause)
        return sorted(map(self._describe, left))

    def _left(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks(self._loop) - self._before - {asyncio.current_task()}

    def _describe(self, task: asyncio.Task[Any]) -> str:
        return f"task {task!r}, created at {self._place_of(task)}"

    def _place_of(self, task: asyncio.Task[Any]) -> str:
        return self._factory.created_at.get(task, "a place that was not recorded")


@asynccontextmanager
async def task_leak_check(*, patience: float = PATIENCE) -> AsyncGenerator[None]:
    """Raise ``LeakError`` for tasks that were started in the block, in the running loop, and are not done.

    They are given ``patience`` seconds to end. Each is described with the place where it was created, for
    which the loop has a task factory of ours meanwhile. The tasks are not ended. If the block raises, nothing
    is examined.
    """
    watch = TaskWatch(asyncio.get_running_loop())
    try:
        yield
    finally:
        watch.stop()
    _raise_for(await watch.leaks(patience))


def _nearest_place_outside_asyncio() -> str:
    inside = (os.path.dirname(asyncio.__file__), __file__)
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return _place_of(frame)


def _place_of(frame: FrameType) -> str:
    return describe_place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def describe_place(filename: str, line: int | None, function: str) -> str:
    """A place in the code, in one line."""
    return f"{filename}:{line} in {function}"
