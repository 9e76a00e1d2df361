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
raised (failed, skipped, expected to fail) is not examined, because its traceback keeps sockets alive. The
watches over the process and over tasks are those of ``asyncserver.testing``.

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
import socket
import ssl
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import pytest
from blockbuster import BlockBuster, BlockBusterFunction, BlockingError
from pytest_asyncio import is_async_test

from asyncserver.testing.leaks import (
    ProcessWatch,
    TaskWatch,
    child_processes,
    describe_place,
    open_descriptors,
)
from tests.waiting import SECOND

__all__ = [
    "BlockingCalls",
    "LoopErrors",
    "ProcessWatch",
    "TaskWatch",
    "child_processes",
    "open_descriptors",
]

PATIENCE = 1 * SECOND
"""How long something may take to end by itself before it is called a leak."""


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
    return ", from ".join(
        describe_place(frame.filename, frame.lineno, frame.name) for frame in frames[:-4:-1]
    )


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
        leaks = watch.leaks(PATIENCE)
        # What pytest keeps of every test grows, and the next test's collection would walk all of it.
        gc.freeze()
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
            _fail_for(await tasks.leaks(PATIENCE) + blocking)


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
