"""``Dispatcher``: starts a handler for each packet, within the limits, and counts how they ended."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine, Hashable, Iterator
from contextvars import Context
from operator import length_hint
from typing import Any, Protocol

from asyncserver.ancillary import NetworkError
from asyncserver.checks import counted
from asyncserver.datagram import Datagram
from asyncserver.datagram_limits import DatagramLimits, DatagramTimeouts
from asyncserver.datagram_queue import PeerQueue, Queue, SingleQueue
from asyncserver.datagram_worker import Worker
from asyncserver.errors import ServerStateError

__all__ = ["Dispatcher", "Ended", "PacketHandler"]

PacketHandler = Callable[[Datagram], Coroutine[Any, Any, object]]

# Packets taken from the queue in one turn of the loop.
_AT_A_TIME = 64
_NAME = "datagram-handler"
# What tasks raise from the loop, beside keeping it as their result.
_ENDS_LOOP = (SystemExit, KeyboardInterrupt)


class Ended(Protocol):
    """What a dispatcher tells of handlers that raised."""

    def handler_failed(self, subject: Any, exc: Exception) -> None:
        """Log it, once, or find out that it was the peer's fault."""


class Dispatcher:
    """Belongs to one run of a server. All packets of all its endpoints come here."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        handler: PacketHandler,
        limits: DatagramLimits,
        timeouts: DatagramTimeouts,
        host: Ended,
    ) -> None:
        self._loop = loop
        self._context = contextvars.copy_context()
        self._handler = handler
        self._host = host
        self._queue: Queue[Datagram] = _queue_for(limits.order)
        self._worker = self._new_worker()
        # With the queue that has to be told of its end, which is not the present one after an update.
        self._tasks: dict[asyncio.Task[Any], tuple[Datagram, Queue[Datagram], Hashable]] = {}
        # What has been received and not been looked at yet.
        self._batch: Iterator[Datagram] = iter(())
        # Handlers that are in their first step: one, or none.
        self._stepping = 0
        self._pumping = False
        self._closed = False
        self._empty: asyncio.Event = asyncio.Event()
        self._stuck: dict[asyncio.Task[Any], Datagram] = {}
        self.handled: int = 0
        self.failed: int = 0
        self.cancelled: int = 0
        self.dropped: int = 0
        self.update(limits, timeouts)

    def update(self, limits: DatagramLimits, timeouts: DatagramTimeouts) -> None:
        """Obey other limits and timeouts from now on. Another order starts with what comes next."""
        self._limits = limits
        self._timeouts = timeouts
        self._most = 1 if limits.order == "strict" else limits.max_handlers
        by_peer = limits.order == "peer"
        if by_peer is not isinstance(self._queue, PeerQueue):
            old, self._queue = self._queue, _queue_for(limits.order)
            while len(old):
                datagram = old.drop_oldest()
                self._queue.put(datagram, self._key_of(datagram))
        self._note_restrictions()
        self._pump_later()

    # --- what there is ---

    @property
    def queued(self) -> int:
        """Packets that wait for a handler."""
        return len(self._queue) + length_hint(self._batch)

    @property
    def running(self) -> int:
        """Handlers that wait for something, and the one that is being started."""
        return len(self._tasks) + self._stepping

    @property
    def stuck(self) -> int:
        """Handlers that go on although they were cancelled and given up."""
        return len(self._stuck)

    @property
    def ended_in_peace(self) -> int:
        """Packets whose handlers ended without being cancelled."""
        return self.handled + self.failed

    @property
    def ended_by_force(self) -> int:
        """Packets whose handlers were cancelled."""
        return self.cancelled

    @property
    def under_way(self) -> str:
        """In words."""
        return counted(self.running, "handler")

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether a handler runs in this task; or has just been started in its name."""
        return task is not None and (task in self._tasks or task is self._worker.task)

    # --- starting handlers ---

    def deliver(self, batch: list[Datagram]) -> None:
        """Start their handlers, or let them wait, or drop them. Only from callbacks of the loop."""
        self._batch = packets = iter(batch)
        try:
            while length_hint(packets):
                if self._has_free_worker():
                    self._serve(packets)
                else:
                    self._serve_in_task(next(packets))
        except BaseException:
            self._keep(packets)
            raise

    def _keep(self, packets: Iterator[Datagram]) -> None:
        """Let those wait that are left because a handler ends the program (``SystemExit``)."""
        for datagram in packets:
            self._queue.put(datagram, self._key_of(datagram))
        self._note_restrictions()
        self._pump_later()

    def _has_free_worker(self) -> bool:
        """Whether handlers can be started in the name of a worker."""
        if self._worker.is_cancelled or self._worker.task.done():
            self._worker = self._new_worker()  # Somebody has cancelled it, with all tasks perhaps.
        return self._worker.is_parked

    def _serve(self, packets: Iterator[Datagram]) -> None:
        """Serve as many of them as can be started in the name of one worker."""
        worker = self._worker
        try:
            given = worker.context.run(self._step_all, worker, packets)
        except BaseException:
            self._replace_worker()
            raise
        if given is not None:
            datagram, coroutine, waits_for = given
            self._worker = self._new_worker()
            self._watch(worker.task, datagram)
            worker.hand_over(coroutine, waits_for)
        elif worker.is_cancelled or not _are_equal(worker.context, self._context):
            self._replace_worker()  # The next one shall not find what this one has left behind.

    def _step_all(
        self, worker: Worker, packets: Iterator[Datagram]
    ) -> tuple[Datagram, Coroutine[Any, Any, object], Any] | None:
        """The first steps, in the worker's context and with its task as the current one.

        Ends after one that waits, which is returned with what it waits for, and after one that has
        changed something, or may have.
        """
        handler, context, clean = self._handler, worker.context, self._context
        loop, task, seat = self._loop, worker.task, worker.seat
        asyncio.tasks._enter_task(loop, task)
        self._stepping = 1
        try:
            for datagram in packets:
                if self._is_restricted and self._has_to_wait(datagram):
                    continue
                try:
                    coroutine = handler(datagram)
                    waits_for = coroutine.send(None)
                except StopIteration:
                    if seat.cancelled:
                        self._has_returned_cancelled(worker)
                        return None
                    self.handled += 1
                except asyncio.CancelledError:
                    self.cancelled += 1
                    return None
                except BaseException as exc:
                    self._stepping = 0
                    self._has_raised(datagram, exc)
                    return None
                else:
                    return datagram, coroutine, waits_for
                try:
                    if context != clean:
                        return None
                except Exception:
                    return None  # There are values that cannot be compared.
        finally:
            self._stepping = 0
            asyncio.tasks._leave_task(loop, task)
        return None

    def _serve_in_task(self, datagram: Datagram) -> None:
        """The worker has not begun yet, because its predecessor was needed in this very turn of the loop.

        Only before Python 3.12.
        """
        if self._is_restricted and self._has_to_wait(datagram):
            return
        task = asyncio.Task(
            self._handler(datagram), loop=self._loop, name=_NAME, context=self._context.copy()
        )
        self._watch(task, datagram)

    def _watch(self, task: asyncio.Task[Any], datagram: Datagram) -> None:
        """A handler goes on in a task of its own."""
        key = self._key_of(datagram)
        self._tasks[task] = datagram, self._queue, key
        self._queue.started(key)
        self._note_restrictions()
        seconds = self._timeouts.handler
        timer = None if seconds is None else self._loop.call_later(seconds, task.cancel)
        task.add_done_callback(lambda ended: self._has_ended(ended, timer))

    def _new_worker(self) -> Worker:
        return Worker(self._loop, self._context.copy(), _NAME)

    def _replace_worker(self) -> None:
        old, self._worker = self._worker, self._new_worker()
        old.retire()

    def _key_of(self, datagram: Datagram) -> Hashable:
        """Whose turn it is; None where that does not matter."""
        return datagram.peer_key if self._limits.order == "peer" else None

    # --- waiting ---

    def _note_restrictions(self) -> None:
        """Whether packets have to be looked at, before they are served, for whether they may be."""
        self._is_full = self._closed or (self._most is not None and len(self._tasks) >= self._most)
        by_peer = isinstance(self._queue, PeerQueue) and bool(self._tasks)
        self._is_restricted = self._is_full or bool(self._queue) or by_peer

    def _has_to_wait(self, datagram: Datagram) -> bool:
        """If it has, it is in the queue now, or dropped."""
        if self._closed:
            self.dropped += 1
            return True
        queue, key = self._queue, self._key_of(datagram)
        if not self._is_full and not queue.holds_back(key):
            return False
        most = self._limits.max_queue
        if len(queue) >= most and (self._limits.when_full == "drop_newest" or not most):
            self.dropped += 1
            return True
        while len(queue) >= most:
            queue.drop_oldest()
            self.dropped += 1
        queue.put(datagram, key)
        return True

    def _pump_later(self) -> None:
        if len(self._queue) and not self._pumping and not self._closed:
            self._pumping = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        """Start handlers of packets that wait, while there is room."""
        self._pumping = False
        for _ in range(_AT_A_TIME):
            if self._is_full or (taken := self._queue.take()) is None:
                break
            self._is_restricted = False  # It has waited already.
            try:
                self.deliver([taken[0]])
            except BaseException:
                self._pump_later()
                raise
            finally:
                self._note_restrictions()
        else:
            self._pump_later()
        self._note_if_empty()

    # --- the end of handlers ---

    def _has_ended(self, task: asyncio.Task[Any], timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
        if task in self._stuck:
            self._has_ended_late(task)
            return
        datagram, queue, key = self._tasks.pop(task)
        queue.ended(key)
        self._note_restrictions()
        if task.cancelled():
            self.cancelled += 1
        elif (exc := task.exception()) is None:
            self.handled += 1
        elif isinstance(exc, _ENDS_LOOP):
            self.failed += 1  # It has been raised from the loop already.
        else:
            self._has_raised(datagram, exc)
        self._pump_later()
        self._note_if_empty()

    def _has_ended_late(self, task: asyncio.Task[Any]) -> None:
        """It was left behind, and is counted already. That its server is closed is no fault of its own."""
        datagram = self._stuck.pop(task)
        exc = None if task.cancelled() else task.exception()
        if isinstance(exc, Exception) and not isinstance(exc, ServerStateError):
            self._host.handler_failed(datagram, exc)

    def _has_raised(self, datagram: Datagram, exc: BaseException) -> None:
        self.failed += 1
        if isinstance(exc, Exception):
            self._host.handler_failed(datagram, exc)
        elif isinstance(exc, _ENDS_LOOP):
            raise exc
        else:
            message = f"{datagram}: the handler failed"
            self._loop.call_exception_handler({"message": message, "exception": exc})

    def _has_returned_cancelled(self, worker: Worker) -> None:
        """It has cancelled its own task and then not waited any more, which tasks count as cancelled."""
        if worker.is_to_raise:
            self.cancelled += 1
        else:
            self.handled += 1

    def _note_if_empty(self) -> None:
        if not self._tasks and not len(self._queue):
            self._empty.set()

    # --- the end of the server ---

    def network_error(self, endpoint: object, error: NetworkError) -> None:
        """It concerns nobody here."""

    def tell_to_end(self) -> int:
        """Nothing to tell: handlers of packets end by themselves. Returns how many are idle, none."""
        return 0

    async def wait_empty(self) -> None:
        """Wait until no handler runs and no packet waits."""
        while self._tasks or len(self._queue):
            self._empty.clear()
            await self._empty.wait()

    def cancel_all(self) -> int:
        """Drop the packets that wait and cancel the handlers that run; returns how many."""
        self._closed = True
        self._note_restrictions()
        while len(self._queue):
            self._queue.drop_oldest()
            self.dropped += 1
        for task in self._tasks:
            task.cancel()
        self._note_if_empty()
        return len(self._tasks)

    def abandon(self) -> int:
        """Leave the handlers behind that have not heeded their cancellation; returns how many."""
        left = len(self._tasks)
        self._stuck.update({task: datagram for task, (datagram, _, _) in self._tasks.items()})
        self.cancelled += left
        self._tasks.clear()
        self._empty.set()
        return left

    def close(self) -> None:
        """Nothing is delivered any more."""
        self.cancel_all()
        self._worker.retire()


def _queue_for(order: str) -> Queue[Datagram]:
    return PeerQueue() if order == "peer" else SingleQueue()


def _are_equal(context: Context, other: Context) -> bool:
    """Whether the same variables have the same values; quick if nothing was set."""
    try:
        return context == other
    except Exception:
        return False
