"""Two connected stream sockets that are no sockets: what the kernel does between them, done in memory.

A ``Stream`` calls a few methods of its socket and is told by a poller when they would not block. Here
both are objects of this process, so that everything above them, which is all of ``Stream``, is the
real thing, and no descriptor is open.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import socket
from collections.abc import Sequence
from typing import Any

from asyncserver.endpoints import Endpoint, IPEndpoint
from asyncserver.poller import Pollable

__all__ = ["MemoryPoller", "MemorySocket", "socket_family", "socket_pair"]

# What stands for descriptors. No descriptor is negative, and -1 is that of a closed socket.
_numbers = itertools.count(-2, -1)


class _Pipe:
    """One direction of a connection: what has been sent and not been received yet."""

    __slots__ = ("abandoned", "buffer", "capacity", "ended", "reset")

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity
        self.buffer: bytearray = bytearray()
        # The sending side has shut down or closed; or has closed with a RST.
        self.ended: bool = False
        self.reset: bool = False
        # The receiving side has closed.
        self.abandoned: bool = False

    @property
    def readable(self) -> bool:
        """Whether receiving would not block, or would fail."""
        return bool(self.buffer) or self.ended

    @property
    def writable(self) -> bool:
        """Whether sending would not block, or would fail."""
        return self.abandoned or len(self.buffer) < self.capacity


class MemoryPoller:
    """Tells the two ends of a pair what they can do; level-triggered, once in a turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._scheduled = False
        # What an end receives from and sends to. Not the sockets, which know this: that would be a cycle.
        self._pipes: dict[int, tuple[_Pipe, _Pipe]] = {}
        self._readers: dict[int, Pollable] = {}
        self._writers: dict[int, Pollable] = {}

    def add_end(self, fd: int, incoming: _Pipe, outgoing: _Pipe) -> None:
        """Know one end of a connection, for as long as the poller lives."""
        self._pipes[fd] = incoming, outgoing

    def add_reader(self, fd: int, pollable: Pollable) -> None:
        """See ``Poller``."""
        self._readers[fd] = pollable
        self.wake()

    def remove_reader(self, fd: int) -> None:
        """See ``Poller``."""
        del self._readers[fd]

    def add_writer(self, fd: int, pollable: Pollable) -> None:
        """See ``Poller``."""
        self._writers[fd] = pollable
        self.wake()

    def remove_writer(self, fd: int) -> None:
        """See ``Poller``."""
        del self._writers[fd]

    def close(self) -> None:
        """See ``Poller``."""
        self._readers.clear()
        self._writers.clear()

    def wake(self) -> None:
        """Something has changed: tell those whom it concerns, in the loop's next turn."""
        if not self._scheduled and self._somebody_is_ready():
            self._scheduled = True
            self._loop.call_soon(self._tell)

    def _somebody_is_ready(self) -> bool:
        return any(self._readable(fd) for fd in self._readers) or any(
            self._writable(fd) for fd in self._writers
        )

    def _readable(self, fd: int) -> bool:
        return self._pipes[fd][0].readable

    def _writable(self, fd: int) -> bool:
        return self._pipes[fd][1].writable

    def _tell(self) -> None:
        self._scheduled = False
        try:
            for fd, pollable in list(self._readers.items()):
                if self._readers.get(fd) is pollable and self._readable(fd):
                    pollable.on_readable()
            for fd, pollable in list(self._writers.items()):
                if self._writers.get(fd) is pollable and self._writable(fd):
                    pollable.on_writable()
        finally:
            self.wake()


class MemorySocket:
    """One end: as much of a connected, non-blocking socket as a ``Stream`` uses.

    A close is seen by the other end as an end behind the last byte, and sending to it fails at once, as
    on Unix sockets. SO_LINGER makes it a RST, as on TCP, which destroys what was not received yet.
    """

    def __init__(
        self, poller: MemoryPoller, incoming: _Pipe, outgoing: _Pipe, local: Endpoint, peer: Endpoint
    ) -> None:
        self._poller = poller
        self._incoming = incoming
        self._outgoing = outgoing
        self._local = local
        self._peer = peer
        self._resets = False
        self._number = next(_numbers)
        poller.add_end(self._number, incoming, outgoing)
        self.family: socket.AddressFamily = socket_family(local)
        self.chunk: int | None = None
        """The most that one ``recv()`` returns."""

    # --- receiving ---

    def recv(self, size: int) -> bytes:
        """At least a byte; none at the end. Raises as a socket does."""
        return self.take(size if self.chunk is None else min(size, self.chunk))

    def take(self, size: int) -> bytes:
        """As ``recv()``, whatever the ``chunk`` is."""
        self._check_open()
        pipe = self._incoming
        if pipe.reset:
            raise _error(errno.ECONNRESET)
        if not pipe.readable:
            raise _error(errno.EAGAIN)
        data = bytes(pipe.buffer[:size])
        del pipe.buffer[:size]
        self._poller.wake()
        return data

    # --- sending ---

    def send(self, data: bytes | memoryview) -> int:
        """Take as much as there is room for. Raises as a socket does."""
        room = self.room()
        if data and not room:
            raise _error(errno.EAGAIN)
        self.put(data[:room])
        return min(room, len(data))

    def sendmsg(self, buffers: Sequence[bytes | memoryview]) -> int:
        """Several in one go."""
        return self.send(b"".join(buffers))

    def room(self) -> int:
        """How many bytes would be taken now; raises ``OSError`` when none ever will be."""
        self._check_open()
        pipe = self._outgoing
        if self._incoming.reset:
            raise _error(errno.ECONNRESET)
        if pipe.ended or pipe.abandoned:
            raise _error(errno.EPIPE)
        return max(0, pipe.capacity - len(pipe.buffer))

    def put(self, data: bytes | memoryview) -> None:
        """Take all of it, whether there is room or not. Raises ``OSError`` when nothing will be taken."""
        self.room()
        self._outgoing.buffer += data
        self._poller.wake()

    def shutdown(self, how: int) -> None:
        """End what is sent; of receiving there is nothing to shut down."""
        self._check_open()
        if self._incoming.reset:
            raise _error(errno.ENOTCONN)
        if how != socket.SHUT_RD:
            self._outgoing.ended = True
            self._poller.wake()

    # --- closing ---

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Only SO_LINGER has a meaning here: a close is a RST then."""
        self._resets |= (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER)

    def close(self) -> None:
        """Idempotent."""
        if self._number == -1:
            return
        self._number = -1
        if self._resets:
            self._outgoing.reset = True
            self._outgoing.buffer.clear()
        self._outgoing.ended = True
        self._incoming.abandoned = True
        self._incoming.buffer.clear()
        self._poller.wake()

    def fileno(self) -> int:
        """A number of its own that is no descriptor: a system call on it fails. -1 once it is closed."""
        return self._number

    def _check_open(self) -> None:
        if self._number == -1:
            raise _error(errno.EBADF)

    # --- who is there ---

    def getsockname(self) -> Any:
        """This side's address, in the form of its family."""
        return _socket_address(self._local)

    def getpeername(self) -> Any:
        """The other side's."""
        return _socket_address(self._peer)


def socket_pair(
    poller: MemoryPoller, capacity: int, peer: Endpoint, local: Endpoint
) -> tuple[MemorySocket, MemorySocket]:
    """Two connected ends; ``capacity`` bytes fit in each direction. The first one is at ``local``."""
    there, back = _Pipe(capacity), _Pipe(capacity)
    return MemorySocket(poller, back, there, local, peer), MemorySocket(poller, there, back, peer, local)


def socket_family(endpoint: Endpoint) -> socket.AddressFamily:
    """Of the sockets that have such addresses."""
    if isinstance(endpoint, IPEndpoint):
        return socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    return getattr(socket, "AF_UNIX", socket.AF_UNSPEC)  # Windows knows no such family.


def _socket_address(endpoint: Endpoint) -> Any:
    if isinstance(endpoint, IPEndpoint):
        return tuple(endpoint) if ":" in endpoint.host else (endpoint.host, endpoint.port)
    if endpoint.path.startswith("@"):
        return b"\0" + os.fsencode(endpoint.path[1:])
    return endpoint.path


def _error(number: int) -> OSError:
    """Of the class that belongs to the number."""
    return OSError(number, os.strerror(number))
