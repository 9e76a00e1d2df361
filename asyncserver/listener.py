"""``Listener``: owns one bound socket, accepts from it, and can pause."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from asyncserver.addresses import Address, Endpoint, FDAddress, SystemdAddress, UnixAddress, UnixEndpoint
from asyncserver.channel import EXHAUSTED
from asyncserver.sockets import ListeningSocket
from asyncserver.statistics import ListenerStatistics

__all__ = ["Listener"]

logger: logging.Logger = logging.getLogger("asyncserver")

# The most connections taken in one turn of the loop: enough that a burst costs few turns, few enough
# that the connections which are there already do not wait for more than about a millisecond.
_BATCH = 64

# The most that are taken from the queue before it is closed; they could go on coming.
_QUEUE = 4_096

# Errors of the one connection that was about to be accepted, or of the network at this moment; accept(2)
# says to treat them like EAGAIN. EPERM is a firewall rule's.
_OF_ONE_CONNECTION = frozenset(
    getattr(errno, name)
    for name in (
        "ECONNABORTED",
        "ECONNRESET",
        "EPERM",
        "EPROTO",
        "ENETDOWN",
        "ENOPROTOOPT",
        "EHOSTDOWN",
        "ENONET",
        "EHOSTUNREACH",
        "EOPNOTSUPP",
        "ENETUNREACH",
        "ETIMEDOUT",
    )
    if hasattr(errno, name)
)

# Seconds. At the longest, a server is back a second after the descriptors are.
_FIRST_DELAY = 0.01
_LONGEST_DELAY = 1.0


class _AcceptingSocket(socket.socket):
    """Takes the place of the listening socket, only to accept faster from it.

    ``accept()`` looks its own family and type up for each new socket, and in ``socket.socket`` that
    means to find the members of two enumerations, 1.5 us a connection. Here they are plain numbers.
    """

    __slots__ = ("family", "type")

    family: int  # type: ignore[assignment]
    type: int  # type: ignore[assignment]

    def __init__(self, listening: socket.socket) -> None:
        super().__init__(listening.family, listening.type, listening.proto, listening.fileno())
        self.setblocking(False)  # The descriptor is that already, this object has to know.
        self.family = int(listening.family)  # pyright: ignore[reportIncompatibleMethodOverride]
        self.type = int(listening.type)  # pyright: ignore[reportIncompatibleMethodOverride]
        listening.detach()  # With two owners, a forgotten server would close somebody else's descriptor.


class Listener:
    """Accepts connections from one listening socket while nothing holds it back.

    It may be paused for several reasons at once, each by its name, and accepts when none is left.
    While it is paused, connections wait in the kernel's queue, and none is lost.
    """

    def __init__(
        self,
        listening: ListeningSocket,
        loop: asyncio.AbstractEventLoop,
        on_connection: Callable[[socket.socket, Any, Listener], None],
        may_accept: Callable[[], bool] | None = None,
    ) -> None:
        """``on_connection(sock, sockaddr, listener)`` is given each non-blocking socket and owns it.

        ``may_accept()`` is asked before each one; if it says no, it has to have paused the listener.
        """
        self.listening = listening
        self._fd = listening.socket.fileno()
        self._sock = listening.socket
        # What getsockname() would say of a Unix socket is where it was bound, not where it is.
        path = listening.address.path if isinstance(listening.address, UnixAddress) else None
        self.local_endpoint: Endpoint | None = None if path is None else UnixEndpoint(path)
        self._loop = loop
        self._context = contextvars.copy_context()
        self._on_connection = on_connection
        self._may_accept = may_accept
        self._paused: set[str] = {"closed"}
        self._accepted = 0
        self._accept_errors = 0
        self._episodes = 0
        self._delay = 0.0
        self._retry: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Listener {self.address} {'paused' if self._paused else 'accepting'}>"

    @property
    def address(self) -> Address:
        """Where it listens, with the real port."""
        return self.listening.address

    @property
    def tls(self) -> bool:
        """Whether its connections begin with a TLS handshake."""
        return self.listening.tls

    @property
    def paused(self) -> frozenset[str]:
        """The reasons for which nothing is being accepted."""
        return frozenset(self._paused)

    def start(self) -> None:
        """Begin to accept."""
        if type(self._sock) is socket.socket:
            self._sock = self.listening.socket = _AcceptingSocket(self._sock)
        self.resume("closed")

    def pause(self, reason: str = "requested") -> None:
        """Stop accepting, at once, until ``resume`` is called for the same reason. Idempotent."""
        if not self._paused:
            self._loop.remove_reader(self._fd)
        self._paused.add(reason)

    def resume(self, reason: str = "requested") -> None:
        """Take one reason to pause away, and accept if it was the last. Idempotent."""
        if reason in self._paused:
            self._paused.discard(reason)
            if not self._paused:
                # Not in the context of the connection that has just made room.
                self._context.run(self._loop.add_reader, self._fd, self._on_acceptable)

    async def accept_queued(self) -> None:
        """Accept what waits in the kernel's queue, unless paused: closing the socket would reset it.

        Not where somebody else has the socket, too, whose turn is next: systemd, or whoever passed it.
        """
        if isinstance(self.listening.requested, FDAddress | SystemdAddress):
            return
        for _ in range(_QUEUE // _BATCH):
            before = self._accepted
            if not self._paused:
                self._on_acceptable()
            if self._accepted - before < _BATCH:
                return
            await asyncio.sleep(0)

    def close(self) -> None:
        """Accept no more. The socket itself is released by its owner: ``listening.release()``."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.pause("closed")

    def statistics(self) -> ListenerStatistics:
        """Its counters now."""
        return ListenerStatistics(
            address=str(self.address),
            accepted=self._accepted,
            accept_errors=self._accept_errors,
            exhausted=self._episodes,
            paused=self.paused,
        )

    def _on_acceptable(self) -> None:
        accept = self._sock.accept
        may_accept = self._may_accept
        configure = self.listening.configure_accepted
        for _ in range(_BATCH):
            if may_accept is not None and not may_accept():
                return
            try:
                sock, sockaddr = accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno not in _OF_ONE_CONNECTION:
                    self._back_off(exc)
                    return
                self._accept_errors += 1
                continue
            sock.setblocking(False)
            if configure is not None:
                configure(sock)
            self._accepted += 1
            if self._delay:
                self._end_episode()
            self._on_connection(sock, sockaddr, self)
            if self._paused:
                return

    def _back_off(self, exc: OSError) -> None:
        """Out of descriptors or memory, or the socket is broken: try again later, logging once."""
        if not self._delay:
            self._episodes += 1
            what = "out of descriptors or memory" if exc.errno in EXHAUSTED else "cannot accept"
            logger.error("%s: %s (%s); accepting goes on when that is over", self.address, what, exc)
        self._delay = min(self._delay * 2 or _FIRST_DELAY, _LONGEST_DELAY)
        self.pause("exhausted")
        self._retry = self._loop.call_later(self._delay, self.resume, "exhausted")

    def _end_episode(self) -> None:
        self._delay = 0.0
        logger.info("%s: accepting again", self.address)
