"""``Connection``: one accepted socket from its first to its last moment, in one task."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Coroutine, Generator
from contextvars import ContextVar
from typing import Any, cast

from asyncserver.blame import blame, follows_from_the_end
from asyncserver.ending import ConnectionHost, Ending, Phase
from asyncserver.endpoints import Endpoint
from asyncserver.errors import ConnectionTimeoutError
from asyncserver.listener import Listener
from asyncserver.states import CloseReason, ConnectionState
from asyncserver.stepping import suspending
from asyncserver.stream import Stream

__all__ = ["Connection", "ConnectionHost", "ConnectionLogFilter", "current_connection"]

logger: logging.Logger = logging.getLogger("asyncserver")

_current: ContextVar[Connection] = ContextVar("asyncserver_connection")


def current_connection() -> Connection:
    """The connection whose handler is running here; also in the tasks and threads that it started.

    Raises ``LookupError`` outside of a handler.
    """
    try:
        return _current.get()
    except LookupError:
        raise LookupError("no handler of a Server is running here, and so there is no connection") from None


class ConnectionLogFilter(logging.Filter):
    """Adds ``connection_id`` and ``peer`` to log records that are made in handlers ("-" elsewhere)."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the two; never drops a record."""
        connection = _current.get(None)
        names = {"connection_id": "-", "peer": "-"} if connection is None else connection.log_names
        for name, value in names.items():
            if not hasattr(record, name):  # Records about another connection, of the server, have them.
                setattr(record, name, value)
        return True


class _NotWelcome(Exception):  # noqa: N818 - no error: what the program wants
    """``verify`` has said no."""


class Connection(Ending):
    """One live session. Made by the server; handlers get it from ``current_connection()``."""

    __slots__ = ("_listener", "admission_key")

    def __init__(
        self, number: int, sock: socket.socket, sockaddr: Any, listener: Listener, host: ConnectionHost
    ) -> None:
        stream = Stream(sock, host.settings, sockaddr=sockaddr, local=listener.local_endpoint)
        super().__init__(number, stream, host)
        self._listener = listener
        self.admission_key: str | None = None

    def __repr__(self) -> str:
        return f"<Connection {self.id} peer={self.peer} {self.state}>"

    # --- who and what ---

    @property
    def peer(self) -> Endpoint:
        """The peer's address."""
        return self.stream.peer

    @property
    def local(self) -> Endpoint:
        """The address that the peer connected to."""
        return self.stream.local

    @property
    def listener(self) -> Listener:
        """The listener that accepted it."""
        return self._listener

    @property
    def server(self) -> Any:
        """The ``Server`` that it belongs to."""
        return self._host.server

    @property
    def lifespan_state(self) -> Any:
        """What the server's lifespan context manager gave."""
        return self._host.server.lifespan_state

    @property
    def opened_at(self) -> float:
        """When it was accepted, in seconds as of ``time.time()``."""
        return time.time() - self.age

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return self._host.loop.time() - self._opened

    @property
    def bytes_received(self) -> int:
        """Bytes taken from the kernel; under TLS what was inside."""
        return self.stream.bytes_received

    @property
    def bytes_sent(self) -> int:
        """Bytes given to the kernel; under TLS what was inside."""
        return self.stream.bytes_sent

    @property
    def state(self) -> ConnectionState:
        """Where it is in its life."""
        phase = self._phase
        if phase == Phase.CLOSED:
            return ConnectionState.CLOSED
        if self._told is not None or phase == Phase.CLOSING:
            return ConnectionState.DRAINING
        if phase == Phase.HANDSHAKE:
            return ConnectionState.HANDSHAKE
        if phase == Phase.NEW:
            return ConnectionState.NEW
        return ConnectionState.IDLE if self.stream.idle else ConnectionState.ACTIVE

    @property
    def close_reason(self) -> CloseReason | None:
        """Why it ended, or is ending; None while it lives."""
        return self._reason

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is the task of its handler."""
        return task is not None and self._task is task

    # --- its life ---

    def start(self) -> None:
        """Start its task."""
        host = self._host
        _start_task(self._live(), host, f"connection-{self.id}")

    @suspending
    def _live(self) -> Generator[Any, Any, None]:
        _current.set(self)
        host = self._host
        stream = self.stream
        self._task = task = cast("asyncio.Task[None]", asyncio.current_task(host.loop))
        waits_for: Any = None
        try:
            if self._reason is not None:
                raise asyncio.CancelledError  # It was ended before this task had begun.
            if self._listener.tls or host.verify is not None:
                yield from self._prepare().__await__()
            self._phase = Phase.HANDLER
            handler = host.handler(stream)
            # As `await stream.drive(handler, task)`, with a frame less for as long as the connection lives.
            waits_for = stream.begin(handler, task)
            while True:
                try:
                    yield waits_for
                except BaseException as exc:
                    waits_for = stream.throw_in(handler, exc)
                else:
                    waits_for = stream.go_on(handler)
        except StopIteration:
            self._settle(_reason_of_return(stream))
        except asyncio.CancelledError:
            self._settle(CloseReason.HANDLER_CANCELLED)
        except _NotWelcome:
            self._settle(CloseReason.REFUSED)
        except Exception as exc:
            self._judge(exc)
        except BaseException:
            self._settle(CloseReason.ABORTED)
            self._end()
            raise
        finally:
            waits_for = None  # If that was a task which has failed, its traceback leads here.
        if self._reason in _WITHOUT_GOODBYE or stream.all_is_said:
            self._end()
        else:
            self._phase = max(self._phase, Phase.CLOSING)
            yield from self._say_goodbye().__await__()

    async def _prepare(self) -> None:
        """``verify`` and the TLS handshake, in the time of the handshake."""
        host = self._host
        seconds = host.timeouts.handshake
        clock = asyncio.timeout(None if seconds is None else seconds - self.age)
        try:
            async with clock:
                if host.verify is not None and not await host.verify(self):
                    raise _NotWelcome
                if self._listener.tls:
                    self._phase = Phase.HANDSHAKE
                    await self.stream.wait_for_bytes()  # Who is silent takes nobody's place.
                    async with host.handshakes:
                        await self.stream.handshake(host.tls_context())
        except TimeoutError as exc:
            if not clock.expired():
                raise
            raise ConnectionTimeoutError("handshake", seconds or 0.0) from exc
        self._handler_started = self._quiet_since = host.loop.time()

    def _judge(self, exc: Exception) -> None:
        """The handler, or what comes before it, has raised: whose fault is it?"""
        reason = blame(exc, self.stream)
        if reason is None and not (self._reason is not None and follows_from_the_end(exc)):
            self._settle(CloseReason.HANDLER_ERROR)
            self._host.handler_failed(self, exc)
        else:
            self._settle(reason or CloseReason.HANDLER_ERROR)
            if logger.isEnabledFor(logging.DEBUG) and not _is_logged_already(exc):
                logger.debug("connection %d from %s: %s", self.id, self.peer, exc, extra=self.log_names)

    async def _say_goodbye(self) -> None:
        try:
            await self.stream.close_gently(self._host.timeouts.linger)
        except asyncio.CancelledError:
            pass  # It is closed now, which is all that a cancellation could want.
        except Exception as exc:
            self._host.handler_failed(self, exc)
        finally:
            self._end()

    def _end(self) -> None:
        self.stream.close_now()
        self.stream.forget_handler()
        self._task = None
        self._host.handler_ended(self)
        self._leave()


def _reason_of_return(stream: Stream) -> CloseReason:
    if stream.aborted:
        return CloseReason.ABORTED
    return CloseReason.EOF if stream.at_eof else CloseReason.HANDLER_RETURNED


# These are closed at once: nothing has been said that could be lost.
_WITHOUT_GOODBYE = frozenset(
    {
        CloseReason.REFUSED,
        CloseReason.RESET,
        CloseReason.ABORTED,
        CloseReason.HANDSHAKE_FAILED,
        CloseReason.HANDSHAKE_TIMEOUT,
        CloseReason.SEND_TIMEOUT,
    }
)


def _start_task(coroutine: Coroutine[Any, Any, None], host: ConnectionHost, name: str) -> None:
    """In the server's context: the one here may be that of another connection, which has made room.

    Until its first step the loop holds the task, and from then on the connection does.
    """
    loop = host.loop
    if sys.version_info >= (3, 12) and loop.get_task_factory() is None:
        # The first step runs here and now, which saves a turn of the loop.
        _ = asyncio.Task(coroutine, loop=loop, name=name, context=host.context.copy(), eager_start=True)
    else:
        _ = host.context.run(loop.create_task, coroutine, name=name)


def _is_logged_already(exc: Exception) -> bool:
    """A deadline is logged when it has passed; that of the handshake is noticed only here."""
    return isinstance(exc, ConnectionTimeoutError) and exc.deadline != "handshake"
