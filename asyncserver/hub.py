"""``Hub``: what the connections of one server have in common, and what is counted of them."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from types import MappingProxyType
from typing import Any

from anyio import CapacityLimiter

from asyncserver.admission import Admission
from asyncserver.connection import Connection
from asyncserver.connections import Connections
from asyncserver.deadlines import DeadlineWheel
from asyncserver.errors import ServerStateError
from asyncserver.limits import Limits, Timeouts
from asyncserver.listener import Listener
from asyncserver.states import CloseReason
from asyncserver.statistics import ServerStatistics
from asyncserver.stream import Stream
from asyncserver.tls import ReloadableContext

__all__ = ["Hub"]

logger = logging.getLogger("asyncserver")

# Rejected connections that are being told so at the same time; more are closed without a word. And
# the seconds that each is given to read it.
_MOST_FAREWELLS = 100
_FAREWELL_SECONDS = 1.0


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
        self.handler = handler
        self.limits = limits
        self.timeouts = timeouts
        self.verify = verify
        self.connections = Connections()
        self.wheel = DeadlineWheel(loop)
        self.handshakes = CapacityLimiter(limits.max_handshakes or math.inf)
        self.listeners: tuple[Listener, ...] = ()
        self._tls = tls
        self._on_error = on_error
        self._admission = Admission(loop, limits)
        self._started = loop.time()
        self._last_id = 0
        self._peak = 0
        self._rejected = 0
        self._farewells: set[asyncio.Task[None]] = set()
        self._stuck: set[Connection] = set()
        self._closed: Counter[CloseReason] = Counter()
        self._bytes_received = 0
        self._bytes_sent = 0
        self._told_to_end: CloseReason | None = None

    # --- what the server does with it ---

    def start(self, listeners: tuple[Listener, ...]) -> None:
        """Begin to accept on all of them."""
        self.listeners = listeners
        self._admission.attach(listeners)
        self._started = self.loop.time()
        for listener in listeners:
            listener.start()

    def stop_accepting(self) -> None:
        """Accept no more; the sockets are not closed here."""
        for listener in self.listeners:
            listener.close()
        self._admission.close()

    def update(self, limits: Limits, timeouts: Timeouts) -> None:
        """Obey other limits and timeouts from now on."""
        self.limits = limits
        self.timeouts = timeouts
        self.handshakes.total_tokens = limits.max_handshakes or math.inf
        self._admission.update(limits)
        for connection in self.connections:
            connection.take_limits(limits)

    def tell_all_to_end(self, reason: CloseReason) -> None:
        """Let all connections end as soon as they are idle, and those that are still to come."""
        self._told_to_end = reason
        for connection in self.connections:
            connection.tell_to_end(reason)

    def cancel_all(self) -> None:
        """Cancel all handlers; ``Timeouts.grace`` later their connections are reset."""
        for connection in self.connections:
            connection.cancel(CloseReason.CANCELLED)

    async def close(self) -> None:
        """End what is left beside the connections."""
        self.stop_accepting()
        self.wheel.stop()
        farewells = list(self._farewells)
        for task in farewells:
            task.cancel()
        await asyncio.gather(*farewells, return_exceptions=True)

    def statistics(self) -> ServerStatistics:
        """All counters now."""
        connections = list(self.connections)
        listeners = tuple(listener.statistics() for listener in self.listeners)
        return ServerStatistics(
            uptime=self.loop.time() - self._started,
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
        connection.start()
        if self._told_to_end is not None:
            connection.tell_to_end(self._told_to_end)

    def _reject(self, sock: socket.socket, sockaddr: Any, listener: Listener, limit: str) -> None:
        self._rejected += 1
        self._closed[CloseReason.LIMIT] += 1
        logger.debug("a connection from %s was rejected: %s reached", sockaddr, limit)
        message = self.limits.reject_message
        if message is None or listener.tls or len(self._farewells) >= _MOST_FAREWELLS:
            sock.close()
            return
        task = self.loop.create_task(_say_farewell(Stream(sock, loop=self.loop, sockaddr=sockaddr), message))
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
        logger.error(
            "connection %d from %s: the handler failed",
            connection.id,
            connection.peer,
            exc_info=exc,
            extra={"connection_id": connection.id, "peer": str(connection.peer)},
        )
        if self._on_error is not None:
            try:
                self._on_error(connection, exc)
            except Exception:
                logger.exception("the on_error hook failed")

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
