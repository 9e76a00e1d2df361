"""``Hub``: what the connections of one server have in common, and what is counted of them."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from types import MappingProxyType
from typing import Any

from anyio import CapacityLimiter

from asyncserver.admission import Admission
from asyncserver.channel import keep_memory
from asyncserver.connection import Connection
from asyncserver.connections import Connections
from asyncserver.deadlines import DeadlineWheel
from asyncserver.draining import drain_connections
from asyncserver.errors import ServerStateError
from asyncserver.hints import add_hint
from asyncserver.limits import Limits, Timeouts
from asyncserver.listener import Listener
from asyncserver.peers import endpoint_from_sockaddr
from asyncserver.poller import open_poller
from asyncserver.states import CloseReason
from asyncserver.statistics import DrainReport, ServerStatistics
from asyncserver.stream import Stream
from asyncserver.stream_settings import StreamSettings
from asyncserver.threads import in_thread
from asyncserver.tls import ReloadableContext

__all__ = ["Hub"]

logger: logging.Logger = logging.getLogger("asyncserver")

# Rejected connections that are being told so at the same time; more are closed without a word. And
# the seconds that each is given to read it.
_MOST_FAREWELLS = 100
_FAREWELL_SECONDS = 1.0

# Connections that end within this time are never put into the wheel of deadlines, which is a
# twentieth of what a short connection costs. Less where a deadline is so short that it would be late.
_NEWCOMER_SECONDS = 1.0


class Hub:
    """Turns accepted sockets into connections, and knows all of them. Belongs to one run of a server."""

    def __init__(
        self,
        server: Any,
        loop: asyncio.AbstractEventLoop,
        *,
        handler: Callable[[Stream], Coroutine[Any, Any, object]],
        limits: Limits,
        timeouts: Timeouts,
        tls: ReloadableContext | None,
        verify: Callable[[Connection], Coroutine[Any, Any, bool]] | None,
        on_error: Callable[[Connection, Exception], object] | None,
    ) -> None:
        self.server = server
        self.loop = loop
        self.context: contextvars.Context = contextvars.copy_context()
        self.handler = handler
        self.limits: Limits = limits
        self.timeouts: Timeouts = timeouts
        self.verify = verify
        self.connections: Connections = Connections()
        self.wheel: DeadlineWheel = DeadlineWheel(loop)
        self.handshakes: CapacityLimiter = CapacityLimiter(limits.max_handshakes or math.inf)
        self.listeners: tuple[Listener, ...] = ()
        self._tls = tls
        self._on_error = on_error
        self._admission = Admission(loop, limits)
        self._started = loop.time()
        self._stopped: float | None = None
        self.settings: StreamSettings = StreamSettings(
            loop,
            poller=open_poller(loop),
            receive_limit=limits.receive_buffer,
            send_limit=limits.send_buffer,
            tls=self.tls_context,
        )
        self._last_id = 0
        self._peak = 0
        self._rejected = 0
        self._farewells: set[asyncio.Task[None]] = set()
        self._stuck: set[Connection] = set()
        self._closed: Counter[CloseReason] = Counter()
        self._bytes_received = 0
        self._bytes_sent = 0
        self._told_to_end: CloseReason | None = None
        self._newcomer_timer: asyncio.TimerHandle | None = None
        self._last_watched = 0

    # --- what the server does with it ---

    def start(self, listeners: tuple[Listener, ...]) -> None:
        """Begin to accept on all of them."""
        keep_memory()
        self.listeners = listeners
        self._admission.attach(listeners)
        self._started = self.loop.time()
        for listener in listeners:
            listener.start()

    async def accept_queued(self) -> None:
        """Take the connections that the kernel has taken already, as far as the limits allow."""
        for listener in self.listeners:
            await listener.accept_queued()

    def stop_accepting(self) -> None:
        """Accept no more; the sockets are not closed here."""
        for listener in self.listeners:
            listener.close()
        self._admission.close()

    async def release_sockets(self) -> None:
        """Close the listening sockets, and unlink Unix paths; idempotent."""
        for listener in self.listeners:
            await in_thread(listener.listening.release)

    def update(self, limits: Limits, timeouts: Timeouts) -> None:
        """Obey other limits and timeouts from now on."""
        self.limits = limits
        self.timeouts = timeouts
        self.handshakes.total_tokens = limits.max_handshakes or math.inf
        self._admission.update(limits)
        self.settings.send_limit = limits.send_buffer
        self.settings.receive_limit = limits.receive_buffer
        if self._newcomer_timer is not None:
            self._newcomer_timer.cancel()
            self._watch_newcomers_later()
        for connection in self.connections:
            if connection.admission_key is None:
                connection.admission_key = self._admission.count_for_peer(connection.stream)
            connection.look_again()

    def tell_all_to_end(self, reason: CloseReason) -> None:
        """Let all connections end as soon as they are idle, and those that are still to come."""
        self._told_to_end = reason
        for connection in self.connections:
            connection.tell_to_end(reason)

    def cancel_all(self) -> None:
        """Cancel all handlers; ``Timeouts.grace`` later their connections are reset."""
        for connection in self.connections:
            connection.cancel(CloseReason.CANCELLED)

    def abort_all(self) -> None:
        """Reset all connections, without waiting for their handlers."""
        for connection in self.connections:
            connection.abort()

    async def drain(
        self, timeout: float | None, release: Callable[[], Awaitable[None]] | None
    ) -> DrainReport:
        """Accept no more, then end all connections; see ``drain_connections``."""
        return await drain_connections(self, timeout, release)

    def runs_in(self, task: asyncio.Task[Any] | None) -> bool:
        """Whether this is the task of a connection's handler."""
        return any(connection.runs_in(task) for connection in self.connections)

    def close_copies(self, keep: Stream | None) -> None:
        """In a forked child: close the sockets of the listeners and of all connections but one."""
        for listener in self.listeners:
            listener.listening.socket.close()
        for connection in self.connections:
            if connection.stream is not keep:
                connection.stream.close_copy()

    async def close(self) -> None:
        """End what is left beside the connections."""
        self.stop_accepting()
        self._stopped = self.loop.time()
        # The wheel ends with the last connection, or has one to give up that a cancelled aclose() has left.
        if self._newcomer_timer is not None:
            self._newcomer_timer.cancel()
            self._newcomer_timer = None
        farewells = list(self._farewells)
        for task in farewells:
            task.cancel()
        await asyncio.gather(*farewells, return_exceptions=True)
        self.settings.poller.close()

    def statistics(self) -> ServerStatistics:
        """All counters now."""
        connections = list(self.connections)
        listeners = tuple(listener.statistics() for listener in self.listeners)
        return ServerStatistics(
            uptime=(self._stopped or self.loop.time()) - self._started,
            current=len(connections),
            peak=self._peak,
            accepted=sum(listener.accepted for listener in listeners),
            rejected=self._rejected,
            handshakes=int(self.handshakes.borrowed_tokens),
            bytes_received=self._bytes_received + sum(c.bytes_received for c in connections),
            bytes_sent=self._bytes_sent + sum(c.bytes_sent for c in connections),
            stuck_handlers=len(self._stuck),
            states=MappingProxyType(dict(Counter(connection.state for connection in connections))),
            closed=MappingProxyType(dict(self._closed)),
            listeners=listeners,
        )

    @property
    def closed_by_reason(self) -> Counter[CloseReason]:
        """A copy of the counts of ended connections."""
        return self._closed.copy()

    # --- what listeners call ---

    def make_listener(self, listening: Any) -> Listener:
        """A listener whose connections come here; not accepting yet."""
        return Listener(listening, self.loop, self.accepted, self._admission.may_accept)

    def accepted(self, sock: socket.socket, sockaddr: Any, listener: Listener) -> None:
        """Take on, or reject, a socket that was just accepted."""
        admission = self._admission
        key = admission.key_of(sock, sockaddr)
        refusal = admission.admit(key)
        if refusal is not None:
            self._reject(sock, sockaddr, listener, refusal)
            return
        self._last_id = number = self._last_id + 1
        connection = Connection(number, sock, sockaddr, listener, self)
        connection.admission_key = key
        self.connections.add(connection)
        if len(self.connections) > self._peak:
            self._peak = len(self.connections)
        if self._newcomer_timer is None:
            self._watch_newcomers_later()
        connection.start()
        if self._told_to_end is not None:
            connection.tell_to_end(self._told_to_end)

    def _watch_newcomers_later(self) -> None:
        # In the server's context: the one here may be that of a handler which has changed the timeouts.
        delay, context = self._newcomer_delay(), self.context
        self._newcomer_timer = self.loop.call_later(delay, self._watch_newcomers, context=context)

    def _newcomer_delay(self) -> float:
        shortest = self.timeouts.shortest
        return _NEWCOMER_SECONDS if shortest is None else min(_NEWCOMER_SECONDS, shortest / 8)

    def _watch_newcomers(self) -> None:
        """Give those that have come since the last time their deadlines; most are gone again already."""
        self._newcomer_timer = None
        watched, self._last_watched = self._last_watched, self._last_id
        for connection in self.connections.newest():
            if connection.id <= watched:
                break
            connection.begin_watch()

    def _reject(self, sock: socket.socket, sockaddr: Any, listener: Listener, limit: str) -> None:
        self._rejected += 1
        self._closed[CloseReason.LIMIT] += 1
        if logger.isEnabledFor(logging.DEBUG):
            peer = endpoint_from_sockaddr(sock.family, sockaddr)
            logger.debug("a connection from %s was rejected: %s reached", peer, limit)
        message = self.limits.reject_message
        if message is None or listener.tls or len(self._farewells) >= _MOST_FAREWELLS:
            sock.close()
            return
        task = self.loop.create_task(_say_farewell(Stream(sock, self.settings, sockaddr=sockaddr), message))
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    # --- what connections call ---

    def tls_context(self) -> ssl.SSLContext:
        """The context for a new handshake."""
        if self._tls is None:
            raise ServerStateError("start_tls() needs a context: this server was given no tls=")
        return self._tls.context

    def handler_failed(self, connection: Connection, exc: Exception) -> None:
        """Log what a handler raised, once, and tell the program's error hook."""
        add_hint(exc)
        logger.error(
            "connection %d from %s: the handler failed",
            connection.id,
            connection.peer,
            exc_info=exc,
            extra=connection.log_names,
        )
        if self._on_error is not None:
            try:
                self._on_error(connection, exc)
            except Exception:
                logger.exception("the on_error hook failed", extra=connection.log_names)

    def connection_closed(self, connection: Connection) -> None:
        """The socket of a connection is closed."""
        self._bytes_received += connection.bytes_received
        self._bytes_sent += connection.bytes_sent
        self._closed[connection.close_reason or CloseReason.ABORTED] += 1
        self.connections.remove(connection)
        self._admission.discharge(connection.admission_key)

    def handler_stuck(self, connection: Connection) -> None:
        """A connection was aborted whose handler goes on; somebody has to keep its task."""
        self._stuck.add(connection)

    def handler_ended(self, connection: Connection) -> None:
        """The task of a connection is about to end."""
        self._stuck.discard(connection)


async def _say_farewell(stream: Stream, message: bytes) -> None:
    try:
        await stream.send(message)
        await stream.close_gently(_FAREWELL_SECONDS)
    finally:
        stream.close_now()
