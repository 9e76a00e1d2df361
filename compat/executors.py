"""Where blocking request handlers run."""

from __future__ import annotations

import concurrent.futures
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from asyncserver import OptionError
from compat.defaults import DEFAULTS

__all__ = [
    "CallingThread",
    "ChildProcesses",
    "FreshThreads",
    "Job",
    "RequestExecutor",
    "as_executor",
    "names_executor",
]

OPTION = "request_executor"


class Job(Protocol):
    """One request that is to be served."""

    daemon: bool
    """Whether the process may end while it is being served."""

    def run(self) -> None:
        """Serve it, errors and closing included. For another thread; raises no ``Exception``."""

    def fail(self, error: Exception) -> None:
        """It cannot be served: handle the error, and close the request."""

    def run_here(self) -> None:
        """Serve it in the thread that accepts, as a server without any mix-in does, exceptions included."""

    def run_in_child(self) -> int:
        """Serve it in a child process; returns the exit status."""
        ...

    def left_to(self, pid: int) -> None:
        """A child process serves it: give up this process's copy."""


class RequestExecutor(ABC):
    """Decides where requests are served. One executor may be shared by servers.

    To write one, implement ``start``; and ``has_room``, ``wait_for_room`` and ``add_room_listener`` if
    there is a bound.
    """

    @abstractmethod
    def start(self, job: Job) -> None:
        """Have the job served: call ``job.run()`` once, somewhere. Does not wait for room.

        What it raises is the request's error: it goes to ``handle_error``, and the request is closed.
        """

    def has_room(self) -> bool:
        """Whether another job would be begun at once. As long as not, servers accept nothing."""
        return True

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """Block until there is room, for at most ``timeout`` seconds; whether there is."""
        return True

    def add_room_listener(self, listener: Callable[[], None]) -> None:  # noqa: B027 - nothing to do is right
        """Have ``listener()`` called, in any thread, whenever there is room after there was none."""

    def remove_room_listener(self, listener: Callable[[], None]) -> None:  # noqa: B027
        """Call it no more."""

    @property
    def rejects(self) -> bool:
        """Whether requests are accepted and closed, rather than left waiting, while there is no room."""
        return False


class CallingThread(RequestExecutor):
    """The thread that accepts, which is what a server without a mix-in does: one request after the other."""

    def start(self, job: Job) -> None:
        """Serve it before returning."""
        job.run_here()


class FreshThreads(RequestExecutor):
    """A new thread for each request, which is what ``ThreadingMixIn`` does."""

    def start(self, job: Job) -> None:
        """Start its thread."""
        threading.Thread(target=job.run, daemon=job.daemon).start()


class ChildProcesses(RequestExecutor):
    """A child process for each request, which is what ``ForkingMixIn`` does."""

    def __init__(self) -> None:
        if not hasattr(os, "fork"):
            raise OptionError(OPTION, "fork", "this platform has no fork()")

    def start(self, job: Job) -> None:
        """Fork. The child ends when the request is done."""
        pid = os.fork()
        if pid:
            job.left_to(pid)
            return
        status = 1
        try:
            status = job.run_in_child()
        finally:
            try:
                os._exit(status)
            finally:
                os._exit(1)  # It was no status, or a signal came. No copy of the program may go on.


class _Futures(RequestExecutor):
    """A thread pool of the standard library's; never full, because it keeps a queue."""

    def __init__(self, pool: concurrent.futures.Executor) -> None:
        self._pool = pool

    def start(self, job: Job) -> None:
        """Put it in the queue. When it is thrown out of there, it has failed.

        So it is with ``cancel_futures``, and when the threads cannot be made ready (``initializer``).
        """
        begun = False

        def run() -> None:
            nonlocal begun
            begun = True
            job.run()

        def on_end(future: concurrent.futures.Future[None]) -> None:
            if not begun:
                job.fail(_why_not_begun(future))

        self._pool.submit(run).add_done_callback(on_end)


def _why_not_begun(future: concurrent.futures.Future[None]) -> Exception:
    error = None if future.cancelled() else future.exception()
    if isinstance(error, Exception):
        return error
    return RuntimeError("the thread pool was shut down before the request was served")


def names_executor(server: Any) -> bool:
    """Whether something else than the class decides where requests run."""
    return (
        DEFAULTS.executor is not None
        or getattr(server, "max_threads", None) is not None
        or getattr(server, "request_executor", None) is not None
    )


def as_executor(value: Any, make_pool: Callable[[int], RequestExecutor]) -> RequestExecutor:
    """The executor that a ``request_executor`` stands for.

    ``"serial"``, ``"threads"``, ``"pool:N"``, ``"fork"``, a ``RequestExecutor`` or a thread pool of
    ``concurrent.futures``. Raises ``OptionError``.
    """
    if isinstance(value, RequestExecutor):
        return value
    if type(value).__module__ == "concurrent.futures.process":  # To name it would import multiprocessing.
        raise OptionError(OPTION, value, "sockets cannot be sent to the processes of a pool; use 'fork'")
    if isinstance(value, concurrent.futures.Executor):
        return _Futures(value)
    simple: dict[Any, type[RequestExecutor]] = {
        "serial": CallingThread,
        "threads": FreshThreads,
        "fork": ChildProcesses,
    }
    if isinstance(value, str):
        if value in simple:
            return simple[value]()
        kind, colon, number = value.partition(":")
        if kind == "pool" and colon:
            with suppress(ValueError):
                return make_pool(int(number))
    raise OptionError(
        OPTION, value, "has to be 'serial', 'threads', 'pool:N' with N at least 1, 'fork' or an executor"
    )
