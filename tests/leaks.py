"""What a test may not leave behind, watched for every test by fixtures that nobody has to ask for.

======================  ==============================================================================
file descriptors        compared from before the test's event loop exists until after it is closed, so
threads                 that the loop's own selector, pipes and executor threads do not count
child processes
tasks                   compared at the end of the test, in its loop, after the teardown of its
                        other fixtures
errors                  whatever reached the exception handler of any event loop, on either kind of
                        loop (what reaches ``sys.unraisablehook`` and ``threading.excepthook``, such as
                        the ``ResourceWarning`` of a forgotten socket, pytest itself turns into errors)
blocking calls          made inside the running loop of an async test, its fixtures included, even if
                        the code that made them swallowed the ``BlockingError``
======================  ==============================================================================

What ends by itself gets ``PATIENCE`` seconds to do so; a test without leaks does not wait. A test that
raised (failed, skipped, expected to fail) is not examined, because its traceback keeps sockets alive.

``loop_errors`` is for the test that provokes an error in a loop on purpose: it is the list of those seen
so far, and the test takes out what it expects. ``@pytest.mark.allow_blocking("reason")`` is for the
test whose subject is a blocking call.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Hashable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from blockbuster import BlockBuster, BlockBusterFunction, BlockingError
from pytest_asyncio import is_async_test

from tests.waiting import POLL, SECOND

PATIENCE = 1 * SECOND
"""How long something may take to end by itself before it is called a leak."""

LINUX = sys.platform.startswith("linux")


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
    for name in os.listdir("/proc/self/fd" if LINUX else "/dev/fd"):
        with suppress(OSError):  # the listing's own descriptor is closed by now
            found.add(Descriptor(int(name), _target(int(name))))
    return found


def _target(number: int) -> str:
    if LINUX:
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
    frame = sys._current_frames().get(thread.ident or 0)
    place = f" at {_place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)}" if frame else ""
    return f"{thread.name!r} ({'daemon, ' if thread.daemon else ''}{type(thread).__name__}){place}"


# Child processes.


class Child(NamedTuple):
    """A child process that nobody has waited for: it still runs, or it is a zombie."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} ({self.command})"


def child_processes() -> set[Hashable]:
    """The children of this process; none is waited for here, so nobody misses an exit status."""
    if hasattr(os, "waitid"):
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return set()
    return set(_children_in_proc() if LINUX else _children_in_ps())


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


class ProcessWatch:
    """What the process holds at the end that it did not hold when the watch began."""

    def __init__(self, detectors: Iterable[Detector] = DETECTORS) -> None:
        self._before = [(detector, detector.observe()) for detector in detectors]

    def leaks(self, patience: float = PATIENCE) -> list[str]:
        """Describe what is left after at most ``patience`` seconds; leaked children are ended."""
        deadline = time.monotonic() + patience
        gc.collect()
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(POLL)
            gc.collect()
        descriptions = [f"{detector.kind} {detector.describe(item)}" for detector, item in left]
        for _, item in left:
            if isinstance(item, Child):
                end_child(item)
        return descriptions

    def _left(self) -> list[tuple[Detector, Hashable]]:
        return [
            (detector, item)
            for detector, before in self._before
            for item in sorted(detector.observe() - before, key=str)
        ]


# Tasks.


class TaskWatch:
    """The tasks of one loop that are not done, and where they were created."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._before = asyncio.all_tasks(loop)
        self._created_at: weakref.WeakKeyDictionary[asyncio.Task[Any], str] = weakref.WeakKeyDictionary()
        loop.set_task_factory(self._create_task)

    def _create_task(
        self, loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Task[Any]:
        task = asyncio.Task(coroutine, loop=loop, **options)
        self._created_at[task] = _nearest_place_outside_asyncio()
        return task

    async def leaks(self, patience: float = PATIENCE) -> list[str]:
        """Describe the tasks that are still there after at most ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while (left := self._left()) and time.monotonic() < deadline:
            await asyncio.sleep(POLL)
        return sorted(map(self._describe, left))

    def _left(self) -> set[asyncio.Task[Any]]:
        return asyncio.all_tasks(self._loop) - self._before - {asyncio.current_task()}

    def _describe(self, task: asyncio.Task[Any]) -> str:
        return f"task {task!r}, created at {self._created_at.get(task, 'a place that was not recorded')}"


def _nearest_place_outside_asyncio() -> str:
    inside = (os.path.dirname(asyncio.__file__), __file__)
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


def _place(filename: str, line: int | None, function: str) -> str:
    return f"{filename}:{line} in {function}"


# Errors that reached an event loop's exception handler.


class LoopErrors(logging.Handler):
    """Collects what the default exception handler of any loop reports: it logs, on every kind of loop."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        exception = record.exc_info[1] if record.exc_info else None
        trace = "".join(traceback.format_exception(exception)) if exception else ""
        self.seen.append(f"{record.getMessage()}\n{trace}".rstrip())

    @contextmanager
    def attached(self) -> Iterator[list[str]]:
        """The list of the errors seen while the context lasts."""
        logger = logging.getLogger("asyncio")
        logger.addHandler(self)
        try:
            yield self.seen
        finally:
            logger.removeHandler(self)


# Blocking calls.


class BlockingCalls:
    """Makes blocking calls inside a running loop raise ``BlockingError``, and remembers every one."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    @contextmanager
    def forbidden(self) -> Iterator[list[str]]:
        """The list of the blocking calls made while the context lasts."""
        detector = _blockbuster()
        detector.activate()
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(BlockingError, "__init__", self._recording(BlockingError.__init__))
                yield self.seen
        finally:
            detector.deactivate()

    def _recording(self, original: Callable[[BlockingError, str], None]) -> Callable[..., None]:
        @functools.wraps(original)
        def record(error: BlockingError, function: str) -> None:
            original(error, function)
            self.seen.append(f"blocking call to {function} at {_callers()}")

        return record


def _callers() -> str:
    machinery = (os.path.dirname(sys.modules[BlockBuster.__module__].__file__ or ""), __file__)
    frames = [frame for frame in traceback.extract_stack() if not frame.filename.startswith(machinery)]
    return ", from ".join(_place(frame.filename, frame.lineno, frame.name) for frame in frames[:-4:-1])


@functools.cache
def _blockbuster() -> BlockBuster:
    """One for the process: it only replaces attributes while it is active."""
    blockbuster = BlockBuster()
    for name in ("do_handshake", "unwrap"):
        _also_blocking(blockbuster, ssl.SSLSocket, name, can_block_predicate=_cannot_block)
    for name in ("sendmsg", "recvmsg_into", "sendfile"):
        _also_blocking(blockbuster, socket.socket, name, can_block_predicate=_cannot_block)
    for name in ("load_cert_chain", "load_verify_locations"):
        _also_blocking(blockbuster, ssl.SSLContext, name)
    _also_blocking(blockbuster, socket, "getaddrinfo")
    for name in ("chmod", "chown", "fsync"):
        _also_blocking(blockbuster, os, name)
    # A log record is written where it is made; pytest itself writes each to a file.
    for name in ("io.TextIOWrapper.write", "io.BufferedWriter.write"):
        blockbuster.functions[name].can_block_in("logging/__init__.py", {"emit", "flush"})
    return blockbuster


def _also_blocking(blockbuster: BlockBuster, owner: Any, name: str, **options: Any) -> None:
    function = BlockBusterFunction(owner, name, **options)
    blockbuster.functions[function.full_name] = function


def _cannot_block(sock: socket.socket, *_: object, **__: object) -> bool:
    return not sock.getblocking()


# The fixtures.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    if call.excinfo is not None:
        item.stash[_RAISED] = True
    return (yield)


_RAISED = pytest.StashKey[bool]()


def _fail_for(leaks: list[str]) -> None:
    if leaks:
        pytest.fail("left behind by this test:\n" + "\n".join(f"- {leak}" for leak in leaks), pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def frozen_heap() -> Iterator[None]:
    """Collecting garbage after every test is cheap only if what pytest holds is not walked each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def process_wide_descriptors() -> None:
    """libuv opens a pipe of its own with the first loop of a process, and keeps it."""
    with suppress(ImportError):
        import uvloop

        uvloop.new_event_loop().close()


@pytest.fixture
def loop_errors() -> Iterator[list[str]]:
    """The errors that reached a loop's exception handler; a test takes out those that it expects."""
    with LoopErrors().attached() as seen:
        yield seen


@pytest.fixture(autouse=True)
def nothing_left_in_process(request: pytest.FixtureRequest, loop_errors: list[str]) -> Iterator[None]:
    """Fails a test that leaves a descriptor, a thread, a child process or an unhandled loop error."""
    watch = ProcessWatch()
    yield
    if _RAISED not in request.node.stash:
        leaks = watch.leaks()
        _fail_for(leaks + [f"unhandled error in an event loop: {error}" for error in loop_errors])


@pytest.fixture(autouse=True)
def nothing_left_in_loop(request: pytest.FixtureRequest, nothing_left_in_process: None) -> None:
    """Brings in the watch over the loop for a test that has one."""
    if is_async_test(request.node):
        request.getfixturevalue("watched_loop")


@pytest.fixture
async def watched_loop(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    """Fails an async test that leaves a task behind or makes a blocking call inside the loop."""
    tasks = TaskWatch(asyncio.get_running_loop())
    with ExitStack() as stack:
        blocking = [] if _may_block(request) else stack.enter_context(BlockingCalls().forbidden())
        yield
        if _RAISED not in request.node.stash:
            _fail_for(await tasks.leaks() + blocking)


@pytest.fixture
def tasks_as_in_production(request: pytest.FixtureRequest) -> None:
    """For modules, by ``pytestmark = pytest.mark.usefixtures(...)``: tasks are made as in production.

    The watch over leaked tasks sets a task factory, and a connection's first task starts eagerly (3.12)
    only where there is none. Nothing changes for the module's synchronous tests.
    """
    if is_async_test(request.node):
        request.getfixturevalue("loop_without_task_factory")


@pytest.fixture
async def loop_without_task_factory(watched_loop: None) -> None:
    asyncio.get_running_loop().set_task_factory(None)


def _may_block(request: pytest.FixtureRequest) -> bool:
    marker = request.node.get_closest_marker("allow_blocking")
    if marker is None:
        return False
    if len(marker.args) != 1 or marker.kwargs or not isinstance(marker.args[0], str):
        pytest.fail('allow_blocking takes its reason: allow_blocking("why")', pytrace=False)
    return True
