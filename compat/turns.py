"""``Turns``: when a server's serving thread may go on, and what for."""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socketserver
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from asyncserver import OptionError
from compat.executors import Job, RequestExecutor, names_executor
from compat.pool import ThreadPool
from compat.stdlib import is_forking
from compat.waiting import LoopWaiter
from compat.watching import UnwatchableError

__all__ = ["Exhaustion", "LoopTurns", "SelectorTurns", "Turns", "reap"]

logger: logging.Logger = logging.getLogger("asyncserver")

# No descriptors or no memory: accepting at once again would fail again, and burn the CPU.
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# Seconds. At the longest, a server is back a second after the descriptors are.
_FIRST_DELAY = 0.01
_LONGEST_DELAY = 1.0

# Seconds between two questions to a server that cannot be waited for, in `handle_request()`; and to the
# system about children, when it has no descriptor left for one.
_POLL_INTERVAL = 0.5
_POLL_INTERVAL_OF_CHILDREN = 0.02

# As in ForkingMixIn, for servers that are not made of it.
_MAX_CHILDREN = 40

# Seconds that a full server waits for one of its threads before it lets the loop run.
_ROOM_LINGER = 0.001


# What is called between two requests; and where those come from that do not wait.
_HOOKS_IN_BETWEEN = ("get_request", "verify_request", "process_request", "service_actions")
_QUICK_HOOKS = frozenset({"socketserver", "compat.servers", "compat.mixin"})


class Turns(Protocol):
    """One call of ``serve_forever()`` or ``handle_request()``."""

    in_vain: bool
    """Whether the last turn has found no request where it had to be tried to know."""
    spares_children: bool
    """Whether nothing is accepted while there are ``max_children``, so that nobody has to wait for one."""

    def wait(self, timeout: float | None) -> bool:
        """Whether there is a request within ``timeout`` seconds; may return False early."""
        ...

    def wake(self) -> None:
        """Let ``wait()`` return at once, if that is possible."""

    def got_request(self) -> None:
        """``get_request()`` has returned one."""

    def failed(self, error: OSError) -> None:
        """``get_request()`` has raised."""


class SelectorTurns:
    """By a selector that the program has put in the place of the standard library's (``_ServerSelector``)."""

    in_vain = False
    spares_children = False

    def __init__(self, server: Any, selector: Any) -> None:
        self._selector = selector
        selector.register(server, selectors.EVENT_READ)

    def wait(self, timeout: float | None) -> bool:
        """See ``Turns``."""
        return bool(self._selector.select(timeout))

    def wake(self) -> None:
        """A selector cannot be woken: it is asked again after the poll interval."""

    def got_request(self) -> None:
        """Nothing depends on it."""

    def failed(self, error: OSError) -> None:
        """The selector will say when to try again."""


class Exhaustion:
    """An episode without descriptors or memory: how long to wait before the next attempt to accept."""

    def __init__(self) -> None:
        self.lasts: bool = False
        self.ask: bool = False
        self._delay = 0.0
        self._resume_at = 0.0

    def begin(self, error: OSError, server: Any) -> None:
        """It goes on, or begins, which is logged."""
        if not self.lasts:
            where = getattr(server, "server_address", None)
            logger.error(
                "%s at %r: out of descriptors or memory (%s); accepting goes on when that is over",
                type(server).__name__,
                where,
                error,
            )
        self.lasts = self.ask = True
        self._delay = min(self._delay * 2 or _FIRST_DELAY, _LONGEST_DELAY)
        self._resume_at = time.monotonic() + self._delay

    def end(self, server: Any) -> None:
        """A request has been accepted."""
        if self.lasts:
            self.lasts = False
            self._delay = 0.0
            logger.info("%s: accepting again", type(server).__name__)

    @property
    def seconds_left(self) -> float:
        """Until the next attempt; zero or less when it is due."""
        return self._resume_at - time.monotonic()


class LoopTurns:
    """By an event loop."""

    def __init__(
        self,
        server: Any,
        waiter: LoopWaiter,
        exhaustion: Exhaustion,
        executor: Callable[[Any], RequestExecutor | None],
        children: Callable[[Any], set[int] | None],
        *,
        forever: bool,
    ) -> None:
        """``executor(server)`` gives what runs the requests; None where the class does that itself.

        ``children(server)`` gives the processes that serve some. Raises ``ValueError`` where the server is
        closed, or its ``fileno()`` gives no number, as registering it with a selector does.
        """
        self._server = server
        self.waiter = waiter
        waiter.scarce = exhaustion.lasts
        self._exhaustion = exhaustion
        self._executor = executor
        self._children = children
        self.forever = forever
        self._listened_to: RequestExecutor | None = None
        self._paused = False
        self._unsettled: ThreadPool | None = None
        self._polled = False
        self.in_vain: bool = False
        self.spares_children: bool = forever and hasattr(os, "pidfd_open")
        self.may_put_off: bool = forever and _comes_in_bursts(server)
        if not hasattr(server, "fileno"):
            self._polled = exhaustion.ask = True  # A queue, or a table: nothing can be waited for.
        else:
            _check_descriptor(server)

    def close(self) -> None:
        """Leave no listener and no job behind."""
        if self._listened_to is not None:
            self._listened_to.remove_room_listener(self._on_room)
        if self._unsettled is not None:
            self._unsettled.begin_all()

    def put_off(self, pool: ThreadPool, job: Job) -> None:
        """Have the job begun when no more requests are there; see ``ThreadPool.put_off()``."""
        before, self._unsettled = self._unsettled, pool  # First: a signal handler may raise after it.
        if not pool.put_off(job):
            self._unsettled = before

    def wake(self) -> None:
        """See ``Turns``."""
        self.waiter.wake()

    def got_request(self) -> None:
        """See ``Turns``."""
        self.in_vain = False
        if self._exhaustion.lasts:
            self.waiter.scarce = False
            self._exhaustion.end(self._server)

    def failed(self, error: OSError) -> None:
        """See ``Turns``."""
        if error.errno in _EXHAUSTED:
            self.waiter.scarce = True
            self._exhaustion.begin(error, self._server)

    def wait(self, timeout: float | None) -> bool:
        """See ``Turns``."""
        server = self._server
        children = self._children(server)
        if children is not None and not self._has_room_for_child(children, timeout):
            return False
        if self._exhaustion.lasts and (delay := self._exhaustion.seconds_left) > 0:
            self._settle()
            self.waiter.wait(None, delay if timeout is None else min(timeout, delay))
            return False
        if names_executor(server) and not self._has_room(timeout):
            return False
        if self._polled:
            return self._ask_again(timeout)
        self.waiter.prepare()
        try:
            fd = int(server.fileno())
        except (AttributeError, OSError, TypeError, ValueError):
            fd = -1  # It has no socket at the moment.
        if self._unsettled is not None:
            if self.waiter.is_readable_now(fd):
                return True
            self._settle()
        try:
            if children:
                if fd >= 0 and self.waiter.is_readable_soon(fd, timeout):
                    return True  # They are looked after when there is time.
                self.waiter.watch_children(children)
            return self.waiter.wait(fd if fd >= 0 else None, timeout)
        except UnwatchableError:
            self._polled = self._exhaustion.ask = self.in_vain = True
            return True
        finally:
            if self.waiter.child_ended:
                self._reap()

    def _ask_again(self, timeout: float | None) -> bool:
        """There is nothing to be waited for: the server has to be asked whether there is a request."""
        if self.in_vain:
            interval = _POLL_INTERVAL if timeout is None else timeout
            self.waiter.wait(None, interval if self.forever else min(interval, _POLL_INTERVAL))
        elif self.waiter.tasks:
            self.waiter.wait(None, 0)
        self.in_vain = True
        return True

    # --- executors that are full ---

    def _has_room(self, timeout: float | None) -> bool:
        try:
            executor = self._executor(self._server)
        except OptionError:
            return True  # Not an option: a program with a pool of its own uses the name, too.
        if executor is None or executor.has_room() or executor.rejects:
            return True
        self._settle()
        linger = _ROOM_LINGER if timeout is None else min(timeout, _ROOM_LINGER)
        if not self.waiter.tasks and executor.wait_for_room(max(linger, 0.0)):
            return True
        self._listen_to(executor)
        self._paused = True
        try:
            if not executor.has_room():
                self.waiter.wait(None, timeout)
        finally:
            self._paused = False
        return False

    def _settle(self) -> None:
        pool, self._unsettled = self._unsettled, None
        if pool is not None:
            try:
                pool.settle()
            except BaseException:
                self._unsettled = pool  # For close(): server_close() would wait for jobs that never begin.
                raise

    def _listen_to(self, executor: RequestExecutor) -> None:
        if executor is not self._listened_to:
            if self._listened_to is not None:
                self._listened_to.remove_room_listener(self._on_room)
            self._listened_to = executor
            executor.add_room_listener(self._on_room)

    def _on_room(self) -> None:
        if self._paused:
            self.waiter.wake()

    # --- children ---

    def _has_room_for_child(self, children: set[int], timeout: float | None) -> bool:
        """Below ``max_children``; with as many, wait for the end of one."""
        if self.waiter.child_ended:
            self._reap()
        if not self.spares_children or len(children) < getattr(self._server, "max_children", _MAX_CHILDREN):
            return True
        watched = self.waiter.watch_children(children)
        interval = _POLL_INTERVAL if watched else _POLL_INTERVAL_OF_CHILDREN
        self.waiter.wait(None, interval if timeout is None else min(timeout, interval))
        self._reap()
        return False

    def _reap(self) -> None:
        self.waiter.child_ended = False
        server = self._server
        if self.spares_children and is_forking(server):
            server.collect_children()  # The program may have extended it.
        else:
            # Not by that: with `max_children` it waits for any child, in the place of a request.
            reap(self._children(server), blocking=False)


def _check_descriptor(server: Any) -> None:
    try:
        fd = int(server.fileno())
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"Invalid file object: {server!r}") from None
    if fd < 0:
        raise ValueError(f"Invalid file descriptor: {fd}")


def _comes_in_bursts(server: Any) -> bool:
    """Whether it is a datagram server none of whose hooks can keep a request waiting that was put off."""
    return isinstance(server, socketserver.UDPServer) and all(
        getattr(getattr(server, name), "__module__", None) in _QUICK_HOOKS for name in _HOOKS_IN_BETWEEN
    )


def reap(children: set[int] | None, *, blocking: bool) -> None:
    """Wait for the children that have ended, or for all; each that is gone is taken out of the set."""
    for pid in list(children or ()):
        with suppress(OSError):
            if os.waitpid(pid, 0 if blocking else os.WNOHANG)[0] == 0:
                continue
        (children or set()).discard(pid)
