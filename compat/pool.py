"""``ThreadPool``: a bounded number of threads that are used again."""

from __future__ import annotations

import atexit
import contextvars
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias

from asyncserver import OptionError
from compat.executors import Job, RequestExecutor

__all__ = ["ThreadPool", "WhenFull"]

WhenFull: TypeAlias = Literal["wait", "reject"]
"""What becomes of connections while all threads are busy: they wait in the kernel, or are closed."""

# Seconds after which a thread that had nothing to do ends.
_IDLE_SECONDS = 30.0

# Seconds for which jobs that were put off may wait for a thread that works them off one after the other;
# and the number of jobs after which that is tried again when it was too slow.
_SETTLE_SECONDS = 0.001
_JOBS_UNTIL_NEXT_TRY = 128

# Jobs that the end of the process has to wait for, as it does for threads that are no daemons.
_awaited: set[Job] = set()


class ThreadPool(RequestExecutor):
    """At most ``max_threads`` threads, started as they are needed; the one that was used last is used first.

    The threads are daemons, so that idle ones do not hold up the end of the process; it waits for
    those that serve a request, unless ``daemon_threads`` is set. Each request has a context
    (``contextvars``) of its own, while a ``threading.local`` keeps what earlier requests have left in it.
    """

    def __init__(self, max_threads: int, *, when_full: WhenFull = "wait", name: str = "request") -> None:
        """``name`` is what the names of its threads begin with."""
        self.max_threads = max_threads
        self.when_full = when_full
        self._name = name
        self._numbers = itertools.count(1)
        self._idle_seconds = _IDLE_SECONDS
        self._listeners: list[Callable[[], None]] = []
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # A signal handler may come in between anywhere in the main thread, use the pool itself, and raise.
        # So the lock can be taken again by its owner, and what it guards is right at every call inside.
        self._lock = threading.RLock()
        self._room = threading.Condition(self._lock)
        self._room_waiters = 0
        self._workers: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._queue: deque[Job] = deque()
        self._drainer: _Worker | None = None
        self._taken = threading.Lock()  # Released when they are. An Event has a lock that could stay locked.
        self._jobs_until_next_try = 0
        self._closed = False

    def __repr__(self) -> str:
        busy = len(self._workers) - len(self._idle)
        return f"<ThreadPool {busy} of {self._max_threads} threads busy>"

    @property
    def max_threads(self) -> int:
        """The most threads. May be changed at any time; raises ``OptionError`` for what is no number."""
        return self._max_threads

    @max_threads.setter
    def max_threads(self, value: int) -> None:
        check_max_threads(value)
        self._max_threads = value

    @property
    def when_full(self) -> WhenFull:
        """``"wait"`` or ``"reject"``. May be changed at any time; raises ``OptionError`` for another word."""
        return self._when_full

    @when_full.setter
    def when_full(self, value: WhenFull) -> None:
        check_when_full(value)
        self._when_full: WhenFull = value

    @property
    def rejects(self) -> bool:
        """See ``RequestExecutor``."""
        return self._when_full == "reject"

    def has_room(self) -> bool:
        """Whether a thread is idle, or may be started."""
        if self._pid != os.getpid():
            self._reset()  # A fork has copied the pool without its threads.
        return self._free > 0

    @property
    def _free(self) -> int:
        """How many more jobs could be begun."""
        return len(self._idle) + self._max_threads - len(self._workers) - len(self._queue)

    def wait_for_room(self, timeout: float | None = None) -> bool:
        """See ``RequestExecutor``."""
        if self.has_room():
            return True
        with self._lock:
            self._room_waiters += 1
            try:
                return self._room.wait_for(self.has_room, timeout)
            finally:
                self._room_waiters -= 1

    def add_room_listener(self, listener: Callable[[], None]) -> None:
        """See ``RequestExecutor``."""
        self._listeners.append(listener)

    def remove_room_listener(self, listener: Callable[[], None]) -> None:
        """See ``RequestExecutor``."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def start(self, job: Job) -> None:
        """Give it to a thread; while all are busy, to the first that is not any more."""
        if self._pid != os.getpid():
            self._reset()
        try:
            if not job.daemon:
                _awaited.add(job)
            with self._lock:
                worker = self._assign(job)
                if worker is None:
                    self._queue.append(job)
                    return
            self._rouse(worker)
        except BaseException:
            self._forget(job)
            if self._idle or not self._workers:
                self.begin_all()  # For those who have relied on this thread.
            raise

    def _assign(self, job: Job) -> _Worker | None:
        """To an idle thread, or to a new one, which has to be roused then; None: all are busy.

        To be called with the lock held, or two who start jobs at the same time would get past the bound.
        """
        if self._idle:
            worker = self._idle[-1]
            worker.given = [job]
            del self._idle[-1]  # Not pop(): as long as nothing is called, no signal handler comes in between.
            return worker
        if len(self._workers) >= self._max_threads:
            return None
        worker = _Worker(self, job, self._idle_seconds)
        self._workers.add(worker)
        return worker

    def _rouse(self, worker: _Worker) -> None:
        """Have it begin with what it is given."""
        if worker.lives:
            worker.wake()
        else:
            worker.start(f"{self._name}-{next(self._numbers)}")

    def _take_back(self, job: Job) -> bool:
        """Whether a worker had it, and had not begun; the worker is idle then, or gone if it was new."""
        with self._lock:
            for worker in list(self._workers):
                if worker.give_back(job):
                    self._unassign(worker)
                    return True
        return False

    def _unassign(self, worker: _Worker) -> None:
        if self._drainer is worker:
            self._drainer = None
        if not worker.lives:
            self._workers.discard(worker)  # If it has a thread nevertheless, that ends at once.
        elif worker not in self._idle:
            self._idle.append(worker)

    def _forget(self, job: Job) -> None:
        """It could not be begun, or a signal handler has raised: whoever wanted it begun is told."""
        with self._lock:
            if not self._take_back(job):
                with suppress(ValueError):
                    self._queue.remove(job)
        _awaited.discard(job)

    # --- many short jobs ---
    #
    # To wake a thread for each of many short jobs costs more than the jobs do: the system call, the switch
    # to the thread and back, and the wait for the interpreter's lock at both ends. So jobs that come
    # together are put off until there are no more, and one thread is woken to work them off. If it
    # has not taken them all within a millisecond, its jobs are not short: the others are woken as well.

    def put_off(self, job: Job) -> bool:
        """Have it begun by the next ``settle()``; False when it was begun at once. There has to be room."""
        if self._jobs_until_next_try > 0:
            self._jobs_until_next_try -= 1
            self.start(job)
            return False
        try:
            if not job.daemon:
                _awaited.add(job)
            with self._lock:
                self._queue.append(job)
        except BaseException:
            self._forget(job)
            raise
        return True

    def settle(self) -> None:
        """Have the jobs that were put off begun; returns when they are, or a millisecond later."""
        self._taken.acquire(blocking=False)
        if self._drainer is None:
            self._begin_one(drains=True)
        if self._queue and not self._taken.acquire(timeout=_SETTLE_SECONDS) and self._queue:
            self._jobs_until_next_try = _JOBS_UNTIL_NEXT_TRY
            self.begin_all()

    def begin_all(self) -> None:
        """Have each job that was put off begun by a thread of its own.

        All are, or have failed, when this raises what ``Job.fail()`` has raised, or a signal handler.
        """
        self._drainer = None
        error: BaseException | None = None
        more = True
        while more:
            try:
                more = self._begin_one()
            except BaseException as exc:
                error = exc if error is None else error
        if error is not None:
            raise error

    def _begin_one(self, *, drains: bool = False) -> bool:
        """Whether there was one, which is begun now or has failed, and a thread or room for another."""
        job: Job | None = None
        try:
            with self._lock:
                job = self._queue[0] if self._queue else None
                worker = None if job is None else self._assign(job)
                if worker is None:
                    return False
                del self._queue[0]
                if drains:
                    self._drainer = worker
            self._rouse(worker)
        except BaseException as exc:
            if job is not None and self._take_back(job):
                if isinstance(exc, RuntimeError):  # The system gives no more threads.
                    self._forget(job)
                    job.fail(exc)
                    return True
                self._put_back(job)
            raise
        return True

    def _put_back(self, job: Job) -> None:
        with self._lock:
            if job not in self._queue:
                self._queue.appendleft(job)

    def close(self) -> None:
        """Let the idle threads end, and the busy ones when they are done; idempotent."""
        if self._pid != os.getpid():
            self._reset()
        self._closed = True
        for worker in list(self._idle):
            worker.wake()  # It takes itself out of these: a signal handler may close in the midst of start().

    # --- what workers call ---

    def next_job(self, worker: _Worker) -> Job | None:
        """The worker is done with a job; None: there is no other, and it counts as idle or as gone."""
        with self._lock:
            if self._queue and not worker.superfluous:
                job = self._queue.popleft()
                if not self._queue:
                    _release(self._taken)
                return job
            if self._drainer is worker:
                self._drainer = None
            was_full = self._free <= 0
            self._idle.append(worker)
            # close() takes no lock: either it finds the worker here, or it is seen here that it was called.
            if self._closed or len(self._workers) > self._max_threads:
                self._remove(worker)
                worker.superfluous = True
            if self._room_waiters:
                self._room.notify()
            has_room = self._free > 0
        if was_full and has_room:
            for listener in list(self._listeners):
                listener()
        return None

    def retire(self, worker: _Worker, *, woken: bool) -> bool:
        """Whether the worker, which has waited in vain or was woken for nothing, may end."""
        with self._lock:
            if worker not in self._idle or (woken and not self._closed):
                return False
            self._remove(worker)
            return True

    def _remove(self, worker: _Worker) -> None:
        self._idle.remove(worker)
        self._workers.discard(worker)


class _Worker:
    """One thread. It is woken by a lock of its own, and no other with it.

    The job that it is to begin with is in ``given``. The thread takes it out, or who has given it takes
    it back: ``pop()`` is atomic, so one of them has it.
    """

    def __init__(self, pool: ThreadPool, job: Job, idle_seconds: float) -> None:
        self._pool = pool
        self.given: list[Job] = [job]
        self._idle_seconds = idle_seconds
        self._asleep = threading.Lock()
        self._asleep.acquire()
        self.superfluous = False
        self.lives: bool = False

    def start(self, name: str) -> None:
        threading.Thread(target=self._live, name=name, daemon=True).start()

    def wake(self) -> None:
        """Have it look what it is given; it may also be nothing."""
        _release(self._asleep)

    def give_back(self, job: Job) -> bool:
        """Whether it was given this, and has not begun with it; it does not any more."""
        return self.given == [job] and self._take() is job

    def _take(self) -> Job | None:
        try:
            return self.given.pop()
        except IndexError:
            return None

    def _live(self) -> None:
        pid = os.getpid()
        job = self._take()
        self.lives = True
        while job is not None:
            try:
                contextvars.Context().run(job.run)
            except SystemExit:
                pass  # It ends a thread without a word; this one is used again.
            except BaseException as exc:
                threading.excepthook(
                    threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread()))
                )
            finally:
                _awaited.discard(job)
            del job  # And with it the request: an idle thread keeps nothing alive.
            if os.getpid() != pid:
                return  # The job has forked, and this is the child: the pool is the parent's, even its lock.
            job = self._pool.next_job(self)
            if job is None and not self.superfluous:
                job = self._wait()

    def _wait(self) -> Job | None:
        job = None
        while job is None:
            woken = self._asleep.acquire(timeout=self._idle_seconds)
            job = self._take()
            if job is None and self._pool.retire(self, woken=woken):
                break
        return job


def _release(lock: threading.Lock) -> None:
    """By another thread than the one that waits for it; perhaps by several."""
    try:
        lock.release()
    except RuntimeError:
        return  # It is released already.


def check_max_threads(value: object) -> None:
    """Raise ``OptionError`` unless it is a number of threads."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise OptionError("max_threads", value, "has to be a whole number, at least 1")


def check_when_full(value: object) -> None:
    """Raise ``OptionError`` unless it is one of the two words."""
    if value not in ("wait", "reject"):
        raise OptionError("when_full", value, "has to be 'wait' or 'reject'")


def _wait_for_jobs() -> None:
    while _awaited:
        time.sleep(0.01)


def _forget_jobs() -> None:
    _awaited.clear()


# As for threads that are no daemons, before the functions of `atexit`. `concurrent.futures` does the same.
getattr(threading, "_register_atexit", atexit.register)(_wait_for_jobs)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_jobs)
