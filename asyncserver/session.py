"""``Session``: all packets of one peer, in one task."""

# A session keeps of its packets what they are made of.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import Any, Protocol

from anyio import BusyResourceError, ClosedResourceError, EndOfStream

from asyncserver.datagram import Datagram
from asyncserver.datagram_endpoint import DatagramEndpoint
from asyncserver.datagram_statistics import SessionEnd
from asyncserver.endpoints import Endpoint
from asyncserver.errors import PeerUnreachableError
from asyncserver.packets import Bytes
from asyncserver.seat import Seat
from asyncserver.stepping import suspending

__all__ = ["Session", "SessionHost"]


class SessionHost(Protocol):
    """What sessions belong to."""

    def touch(self, session: Session) -> None:
        """A packet has gone: it is the most recently used now."""

    def took(self) -> None:
        """A packet was taken by a handler."""

    def forget(self, session: Session) -> None:
        """The next packet of its peer begins another one."""

    def handler_ended(self, session: Session) -> None:
        """Its handler has returned, raised, or was cancelled."""


class Session:
    """What one peer sends to one address of the server. Made by the server, and given to the handler.

    ``async for datagram in session`` ends when the session was idle for too long, had to make room for
    others, or the server drains, after the packets that had come until then; and when it is closed.
    All Unix peers that have not bound their sockets to a name are one peer: nothing tells them apart.
    """

    __slots__ = (
        "__weakref__",
        "_closed",
        "_endpoint",
        "_error",
        "_host",
        "_key",
        "_opened_at",
        "_origin",
        "_queue",
        "_seat",
        "_told",
        "end",
        "task",
        "used_at",
    )

    def __init__(
        self, first: Datagram, key: Any, host: SessionHost, loop: asyncio.AbstractEventLoop, now: float
    ) -> None:
        self._endpoint = first._endpoint
        # That of the last packet, which the handler often has as well.
        self._origin = first._origin
        self._key = key
        self._host = host
        self._seat = Seat(loop)
        # Packets that the handler has not taken yet; often none, and a list takes the least memory then.
        self._queue: list[Datagram] | None = None
        self._error: PeerUnreachableError | None = None
        self._told: SessionEnd | None = None
        self._closed = False
        self._opened_at = now
        self.used_at: float = now
        self.end: SessionEnd | None = None
        self.task: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return f"<Session of {self.peer} {self.close_reason or 'open'}>"

    # --- who and what ---

    @property
    def peer(self) -> Endpoint:
        """Whose packets they are."""
        return self._endpoint.packets.peer_of(self._origin)

    @property
    def local(self) -> Endpoint:
        """The address that the peer sends to; on a wildcard bind, each has sessions of its own."""
        return self._endpoint.local_of(self._origin)

    @property
    def endpoint(self) -> DatagramEndpoint:
        """The socket that they come in by."""
        return self._endpoint

    @property
    def server(self) -> Any:
        """The ``DatagramServer``."""
        return self._endpoint.server

    @property
    def opened_at(self) -> float:
        """When its first packet was received, in seconds as of ``time.time()``."""
        return time.time() - self.age

    @property
    def age(self) -> float:
        """Seconds since its first packet."""
        return self._seat.get_loop().time() - self._opened_at

    @property
    def queued(self) -> int:
        """Packets that have come, and that the handler has not taken yet."""
        return len(self._queue) if self._queue else 0

    @property
    def close_reason(self) -> SessionEnd | None:
        """Why it ended, or is ending; None while it lives."""
        return self.end or self._told

    # --- receiving ---

    def __aiter__(self) -> Session:
        return self

    @suspending
    def __anext__(self) -> Generator[Any, Any, Datagram]:
        while (datagram := self._take(StopAsyncIteration)) is None:
            yield self._seat
        return datagram

    @suspending
    def receive(self) -> Generator[Any, Any, Datagram]:
        """The next packet; waits for it. Cancelled, it loses none.

        Raises ``EndOfStream`` at the end of the session, ``ClosedResourceError`` after ``aclose()``,
        ``BusyResourceError`` while another task waits in it, and ``PeerUnreachableError`` when the
        peer's host, or a router, has said that a packet did not reach it (ICMP).
        """
        while (datagram := self._take()) is None:
            yield self._seat
        return datagram

    def _take(self, at_the_end: type[Exception] | None = None) -> Datagram | None:
        """The next packet; None if it has to be waited for, in the seat. Raises as ``receive()`` does."""
        if self._queue:
            self._host.took()
            return self._queue.pop(0)
        if self._error is not None:
            self._raise_error()
        if self._closed:
            raise at_the_end or ClosedResourceError
        if self._told is not None:
            raise at_the_end or EndOfStream
        if self._seat.wakeup is not None:
            raise BusyResourceError("receiving from")
        self._queue = None  # Most sessions are quiet at most times: an empty list is 56 bytes.
        return None

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # Its traceback leads here: that would be a cycle.

    # --- sending ---

    async def send(self, data: Bytes) -> None:
        """Send a packet to the peer; waits and raises as ``Datagram.reply()`` does.

        ``ClosedResourceError`` after ``aclose()``.
        """
        if self._closed:
            raise ClosedResourceError
        self._host.touch(self)
        if not self._endpoint.put(data, self._origin):
            await self._endpoint.put_when_possible(data, self._origin)

    async def aclose(self) -> None:
        """End the session: the next packet of this peer begins another one. Idempotent.

        A handler that goes on may do so; what it has not received is dropped.
        """
        if not self._closed:
            self._told = self._told or SessionEnd.CLOSED
            self._host.forget(self)
            self.close()

    # --- what the server does with it ---

    def feed(self, datagram: Datagram, most: int, *, drop_oldest: bool) -> int:
        """Give it a packet, with which its handler goes on at once; returns how many were dropped for it.

        Only from callbacks of the loop.
        """
        dropped = 0
        self._origin = datagram._origin
        queue = self._queue
        if queue is None:
            self._queue = [datagram]
        else:
            if len(queue) >= most:
                if not drop_oldest:
                    return 1
                dropped = len(queue) - most + 1
                del queue[:dropped]
            queue.append(datagram)
        self._seat.wake()
        return dropped

    def fail(self, error: PeerUnreachableError) -> None:
        """Let ``receive()`` raise it, after the packets that have come."""
        self._error = error
        self._wake_later()

    def tell_to_end(self, reason: SessionEnd) -> None:
        """Let it end when the packets that have come are taken."""
        if self._told is None:
            self._told = reason
            self._wake_later()

    def close(self) -> None:
        """Nothing can be received or sent any more."""
        self._closed = True
        self._wake_later()

    def _wake_later(self) -> None:
        if self._seat.wakeup is not None:
            self._seat.get_loop().call_soon(self._seat.wake)

    @property
    def is_waiting(self) -> bool:
        """Whether a task waits for the next packet, and there is none."""
        return self._seat.wakeup is not None and not self._queue

    def drop_queue(self) -> int:
        """Drop what was not taken; returns how many."""
        queue, self._queue = self._queue, None
        return len(queue) if queue else 0
