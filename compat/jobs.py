"""The requests of a server that an executor serves."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

__all__ = ["JobCounter", "RequestJob"]


_counters: weakref.WeakSet[JobCounter] = weakref.WeakSet()


class JobCounter:
    """The jobs of one server that ``server_close()`` has to wait for."""

    def __init__(self, *, has_children: bool = False) -> None:
        self._jobs: set[RequestJob] = set()
        self._none_is_left = threading.Condition()
        self._waiting = 0
        self.has_children: bool = has_children
        """Whether there may be child processes that serve requests."""
        _counters.add(self)

    def add(self, job: RequestJob) -> None:
        """It has begun."""
        self._jobs.add(job)

    def discard(self, job: RequestJob) -> None:
        """It has ended; without a lock, because adding to and taking from a set is atomic.

        Whoever begins to wait looks into the set after it has said so.
        """
        self._jobs.discard(job)
        if self._waiting:
            with self._none_is_left:
                self._none_is_left.notify_all()

    def wait(self) -> None:
        """Block until none is left. Raises ``RuntimeError`` in a thread that serves one of them.

        One that this very thread is about to begin is not waited for: a signal handler has come in between.
        """
        here = threading.get_ident()
        if any(job.thread == here for job in list(self._jobs)):
            raise RuntimeError("cannot wait for the request that this thread serves")
        with self._none_is_left:
            self._waiting += 1
            try:
                while self._jobs and any(job.begun_by != here for job in list(self._jobs)):
                    self._none_is_left.wait()
            finally:
                self._waiting -= 1

    def forget_all(self) -> None:
        """In a forked child: the threads are the parent's, and one of them may have held the lock."""
        self._jobs.clear()
        self._none_is_left = threading.Condition()
        self._waiting = 0


class RequestJob:
    """One request of one server: the hooks that serve it, in the order of the standard library."""

    __slots__ = ("_address", "_counter", "_request", "_server", "begun_by", "daemon", "thread")

    def __init__(self, server: Any, request: Any, client_address: Any, counter: JobCounter) -> None:
        self._server = server
        self._request = request
        self._address = client_address
        self._counter = counter
        self.thread: int | None = None
        self.begun_by: int | None = None
        self.daemon: bool = bool(getattr(server, "daemon_threads", False))

    def begin(self) -> None:
        """Count it; this thread is about to have it served, and sets ``begun_by`` to None after that.

        Not in the constructor: a signal handler may raise before its caller can ``forget()`` the job.
        """
        self.begun_by = threading.get_ident()
        if not self.daemon and getattr(self._server, "block_on_close", True):
            self._counter.add(self)

    def forget(self) -> None:
        """It could not be begun."""
        self._counter.discard(self)

    def run(self) -> None:
        """See ``Job``."""
        server = self._server
        self.thread = threading.get_ident()
        try:
            own = getattr(server, "process_request_thread", None)
            if own is not None:
                own(self._request, self._address)
            else:
                self._serve()
        finally:
            self._counter.discard(self)

    def _serve(self) -> None:
        server = self._server
        try:
            server.finish_request(self._request, self._address)
        except Exception:
            server.handle_error(self._request, self._address)
        finally:
            server.shutdown_request(self._request)

    def fail(self, error: Exception) -> None:
        """See ``Job``."""
        try:
            raise error
        except Exception:
            self._server.handle_error(self._request, self._address)
        finally:
            self._counter.discard(self)
            self._server.shutdown_request(self._request)

    def run_here(self) -> None:
        """See ``Job``."""
        try:
            self._server.finish_request(self._request, self._address)
            self._server.shutdown_request(self._request)
        finally:
            self._counter.discard(self)

    def run_in_child(self) -> int:
        """See ``Job``."""
        server = self._server
        try:
            server.finish_request(self._request, self._address)
        except Exception:
            server.handle_error(self._request, self._address)
            return 1
        finally:
            server.shutdown_request(self._request)
        return 0

    def left_to(self, pid: int) -> None:
        """See ``Job``."""
        self._counter.discard(self)
        server: Any = self._server
        if getattr(server, "active_children", None) is None:
            none_yet: set[int] = set()
            server.active_children = none_yet
        server.active_children.add(pid)
        self._counter.has_children = True
        server.close_request(self._request)


def _forget_all() -> None:
    for counter in list(_counters):
        counter.forget_all()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
