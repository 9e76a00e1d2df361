"""How and when a connection is ended: by others, by its deadlines, and in which steps."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, Protocol

from anyio import CapacityLimiter

from asyncserver.deadlines import DeadlineWheel
from asyncserver.errors import ConnectionTimeoutError
from asyncserver.limits import Limits, Timeouts
from asyncserver.states import CloseReason
from asyncserver.stream import Stream
from asyncserver.stream_settings import StreamSettings

__all__ = ["ConnectionHost", "Ending", "Phase"]

logger: logging.Logger = logging.getLogger("asyncserver")

# Seconds without a byte after which a connection whose handler waits for the next message counts as
# idle when it has been told to end. Long enough not to fall between two packets of one message.
_QUIET = 0.25


class ConnectionHost(Protocol):
    """What connections need from the server that they belong to."""

    loop: asyncio.AbstractEventLoop
    context: Context
    limits: Limits
    timeouts: Timeouts
    settings: StreamSettings
    wheel: DeadlineWheel
    handshakes: CapacityLimiter
    handler: Callable[[Stream], Coroutine[Any, Any, object]]
    verify: Callable[[Any], Coroutine[Any, Any, bool]] | None
    server: Any

    def tls_context(self) -> ssl.SSLContext: ...
    def handler_failed(self, connection: Any, exc: Exception) -> None: ...
    def connection_closed(self, connection: Any) -> None: ...
    def handler_stuck(self, connection: Any) -> None: ...
    def handler_ended(self, connection: Any) -> None: ...


class Phase:
    """Where a connection is in its life; only ever goes up."""

    NEW, HANDSHAKE, HANDLER, CLOSING, CLOSED = range(5)


class _Step:
    """What has been done to end a connection; each is given ``Timeouts.grace`` before the next."""

    NONE, TOLD, CANCELLED = range(3)


class Ending:
    """The end of a connection; the base of ``Connection``, which is its life."""

    __slots__ = (
        "_closed_waiters",
        "_draining_waiters",
        "_handler_started",
        "_host",
        "_lifetime_factor",
        "_next_step_at",
        "_opened",
        "_phase",
        "_quiet_since",
        "_reason",
        "_seen_received",
        "_seen_sent",
        "_send_since",
        "_step",
        "_task",
        "_told",
        "_was_busy",
        "id",
        "stream",
        "watch_slot",
    )

    def __init__(self, number: int, stream: Stream, host: ConnectionHost) -> None:
        self.id: int = number
        """Counted from 1 for each run of a server."""
        self._host = host
        self.stream: Stream = stream
        """The bytes to and from the peer."""
        self._opened = self._quiet_since = self._handler_started = host.loop.time()
        self._phase = Phase.NEW
        self._task: asyncio.Task[None] | None = None
        self._reason: CloseReason | None = None
        self._told: CloseReason | None = None
        self._draining_waiters: set[asyncio.Future[None]] | None = None
        self._closed_waiters: set[asyncio.Future[None]] | None = None
        self._step = _Step.NONE
        self._next_step_at = 0.0
        self._seen_received: int = 0
        self._seen_sent: int = 0
        self._send_since = math.inf
        self._was_busy = True
        self._lifetime_factor = 0.0
        self.watch_slot: int = 0

    @property
    def log_names(self) -> dict[str, object]:
        """What log records about it carry: ``extra=connection.log_names``."""
        return {"connection_id": self.id, "peer": str(self.stream.peer)}

    @property
    def draining(self) -> bool:
        """Whether it was told to end: by a drain of the server, ``close()`` or its lifetime."""
        return self._told is not None

    async def wait_draining(self) -> None:
        """Wait until it is told to end, so that a handler can say goodbye and return."""
        if self._told is None:
            if self._draining_waiters is None:
                self._draining_waiters = set()
            await _wait_among(self._draining_waiters, self._host.loop)

    async def wait_closed(self) -> None:
        """Wait until its socket is closed."""
        if self._phase != Phase.CLOSED:
            if self._closed_waiters is None:
                self._closed_waiters = set()
            await _wait_among(self._closed_waiters, self._host.loop)

    def _settle(self, reason: CloseReason) -> None:
        """The first reason is the one that counts."""
        if self._reason is None:
            if self._told is not None and reason in _PEACEFUL:
                reason = self._told
            self._reason = reason

    def _leave(self) -> None:
        """From here on the server does not count it any more."""
        if self._phase == Phase.CLOSED:
            return
        self._phase = Phase.CLOSED
        host = self._host
        host.wheel.forget(self)
        host.connection_closed(self)
        _wake_all(self._closed_waiters)
        self._closed_waiters = None
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "connection %d from %s closed: %s; %d bytes received, %d sent, %.3f s",
                self.id,
                self.stream.peer,
                self._reason,
                self.stream.bytes_received,
                self.stream.bytes_sent,
                self._host.loop.time() - self._opened,
                extra=self.log_names,
            )

    # --- ending it ---

    async def close(self) -> None:
        """End it in peace: as soon as it is idle, or, ``Timeouts.grace`` later, by cancelling its handler.

        Returns when the socket is closed. From its own handler, return instead.
        """
        self.tell_to_end(CloseReason.CLOSED_BY_SERVER)
        self._plan_next_step(_Step.TOLD)
        await self.wait_closed()

    def abort(self) -> None:
        """End it now: a RST to the peer, and its handler is cancelled; if that has not ended it after
        ``Timeouts.grace``, the server goes on without it."""
        self._settle(CloseReason.ABORTED)
        self.stream.abort()
        self._cancel_handler()
        self._plan_next_step(_Step.CANCELLED)

    def look_again(self) -> None:
        """The timeouts have changed."""
        if self._step == _Step.NONE and self._phase < Phase.CLOSING:
            self._host.wheel.watch(self, 0.0)

    def tell_to_end(self, reason: CloseReason) -> None:
        """Let it end as soon as it is idle, and tell its handler (``draining``, ``wait_draining()``)."""
        if self._told is None and self._phase < Phase.CLOSING:
            self._told = reason
            now = self._host.loop.time()
            self._note_progress(now)
            self._quiet_since = now
            _wake_all(self._draining_waiters)
            self._draining_waiters = None
            self._host.wheel.watch(self, _QUIET)

    def cancel(self, reason: CloseReason) -> None:
        """Cancel its handler; ``Timeouts.grace`` later its connection is aborted."""
        self._settle(reason)
        if self._step != _Step.CANCELLED:  # A second time would interrupt what it does to end.
            self._cancel_handler()
        self._plan_next_step(_Step.CANCELLED)

    def _cancel_handler(self) -> None:
        if self._task is not None and not self._task.done():
            self._task.cancel()

    def _plan_next_step(self, done: int) -> None:
        """It is due after the grace; asking for it again may hurry it, and never puts it off."""
        if self._phase == Phase.CLOSED or self._step > done:
            return
        now = self._host.loop.time()
        at = now + self._host.timeouts.grace
        self._next_step_at = min(at, self._next_step_at) if self._step == done else at
        self._step = done
        self._host.wheel.watch(self, self._next_look(now) or 0.0)

    def _take_next_step(self) -> float | None:
        if self._step == _Step.TOLD:
            if self._reason is None:
                self._reason = self._told or CloseReason.CANCELLED
            self._cancel_handler()
            self._step = _Step.CANCELLED
            self._next_step_at = self._host.loop.time() + self._host.timeouts.grace
            return self._host.timeouts.grace
        if self._phase == Phase.CLOSING:  # The handler has ended, it is the peer who does not.
            self._cancel_handler()
            return None
        logger.warning(
            "connection %d from %s: aborted, its handler goes on although it was cancelled (%s)",
            self.id,
            self.stream.peer,
            self._reason,
            extra=self.log_names,
        )
        self._reason = CloseReason.ABORTED
        self.stream.abort()
        self._host.handler_stuck(self)
        self._leave()
        return None

    # --- deadlines ---

    def _end_of_life(self, lifetime: float) -> float:
        if not self._lifetime_factor:  # Drawn once, when it is needed for the first time.
            self._lifetime_factor = 1.0 + self._host.timeouts.lifetime_jitter * (2.0 * random.random() - 1.0)
        return self._opened + lifetime * self._lifetime_factor

    def begin_watch(self) -> None:
        """Called by the server, soon after the start: connections that end before have no deadlines."""
        delay = self._next_look(self._opened)
        if delay is not None and not self.watch_slot and self._phase != Phase.CLOSED:
            self._host.wheel.watch(self, delay)

    def check_deadlines(self, now: float) -> float | None:
        """Called by the wheel: act on what is overdue; returns the seconds until the next look."""
        if self._phase == Phase.CLOSED or (self._phase == Phase.CLOSING and self._step == _Step.NONE):
            return None  # Closing has a bound of its own.
        if self._step != _Step.NONE and now >= self._next_step_at:
            return self._take_next_step()
        self._note_progress(now)
        if self._step == _Step.NONE and self._phase == Phase.HANDLER:
            overdue = self._overdue(now)
            if overdue is not None:
                self._enforce(*overdue)
        if self._phase == Phase.CLOSED:
            return None
        self._end_if_quiet(now)
        return self._next_look(now)

    def _note_progress(self, now: float) -> None:
        stream = self.stream
        received, sent = stream.bytes_received, stream.bytes_sent
        busy = not stream.receiving
        if received != self._seen_received or sent != self._seen_sent or busy or self._was_busy:
            self._quiet_since = now
        if not stream.stalled:
            self._send_since = math.inf
        elif sent != self._seen_sent or self._send_since == math.inf:
            self._send_since = now
        self._was_busy = busy
        self._seen_received, self._seen_sent = received, sent

    def _overdue(self, now: float) -> tuple[str, float, CloseReason] | None:
        timeouts = self._host.timeouts
        stream = self.stream
        since_start = now - self._handler_started
        if timeouts.send is not None and stream.stalled and now - self._send_since >= timeouts.send:
            return "send", timeouts.send, CloseReason.SEND_TIMEOUT
        if timeouts.handler is not None and since_start >= timeouts.handler:
            return "handler", timeouts.handler, CloseReason.HANDLER_TIMEOUT
        if timeouts.lifetime is not None and now >= self._end_of_life(timeouts.lifetime):
            return "lifetime", timeouts.lifetime, CloseReason.LIFETIME
        if not stream.receiving:
            return None
        if (
            timeouts.first_byte is not None
            and not stream.bytes_received
            and since_start >= timeouts.first_byte
        ):
            return "first_byte", timeouts.first_byte, CloseReason.FIRST_BYTE_TIMEOUT
        if timeouts.idle is not None and now - self._quiet_since >= timeouts.idle:
            return "idle", timeouts.idle, CloseReason.IDLE_TIMEOUT
        return None

    def _enforce(self, deadline: str, seconds: float, reason: CloseReason) -> None:
        logger.info(
            "connection %d from %s: %s timeout of %g s passed",
            self.id,
            self.stream.peer,
            deadline,
            seconds,
            extra=self.log_names,
        )
        if reason is CloseReason.LIFETIME:
            self.tell_to_end(reason)
            self._plan_next_step(_Step.TOLD)
            return
        self._settle(reason)
        if reason is CloseReason.HANDLER_TIMEOUT:
            self.cancel(reason)
            return
        error = ConnectionTimeoutError(deadline, seconds)
        if reason is CloseReason.SEND_TIMEOUT:
            self.stream.give_up(error)
        else:
            self.stream.fail_receive(error)
        self._plan_next_step(_Step.TOLD)

    def _end_if_quiet(self, now: float) -> None:
        if self._told is not None and self.stream.idle and now - self._quiet_since >= _QUIET:
            self.stream.end_input()

    def _next_look(self, now: float) -> float | None:
        """The time until the next deadline, or a part of one that starts again with each progress."""
        if self._step != _Step.NONE:
            delay = self._next_step_at - now
            return min(delay, _QUIET) if self._told is not None else delay
        timeouts = self._host.timeouts
        delays = [_QUIET] if self._told is not None else []
        if timeouts.idle is not None:
            delays.append(timeouts.idle / 8)
        if timeouts.send is not None:
            delays.append(timeouts.send / (8 if self.stream.stalled else 4))
        if timeouts.handler is not None:
            delays.append(self._handler_started + timeouts.handler - now)
        if timeouts.first_byte is not None and not self.stream.bytes_received:
            delays.append(max(self._handler_started + timeouts.first_byte - now, timeouts.first_byte / 8))
        if timeouts.lifetime is not None:
            delays.append(self._end_of_life(timeouts.lifetime) - now)
        return max(min(delays), 0.0) if delays else None


_PEACEFUL = frozenset({CloseReason.EOF, CloseReason.HANDLER_RETURNED})


async def _wait_among(waiters: set[asyncio.Future[None]], loop: asyncio.AbstractEventLoop) -> None:
    waiter = loop.create_future()
    waiters.add(waiter)
    try:
        await waiter
    finally:
        waiters.discard(waiter)


def _wake_all(waiters: set[asyncio.Future[None]] | None) -> None:
    for waiter in waiters or ():
        if not waiter.done():
            waiter.set_result(None)
