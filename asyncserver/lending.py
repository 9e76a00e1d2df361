"""A stream's socket in other hands for a while: lent to blocking code, or given away for good."""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

from anyio import BusyResourceError, ClosedResourceError

from asyncserver.closing import ClosingChannel
from asyncserver.errors import ServerStateError

__all__ = ["LendingChannel", "LentSocket"]


class LentSocket:
    """Stands in a stream for the socket that a thread is using.

    What only asks goes through. Closing does not close: the thread may be between two system calls on
    the descriptor, whose number would then belong to somebody else (OpenSSL keeps the number). It ends
    both directions, so that a blocked call returns; the descriptor is closed when the socket is back.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.lent = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lent, name)

    def close(self) -> None:
        """End both directions. Not by the method of a TLS socket, which would forget its TLS state."""
        with suppress(OSError):
            socket.socket.shutdown(self.lent, socket.SHUT_RDWR)


class _GivenAway:
    """Stands in a stream for a socket that is somebody else's now."""

    def __init__(self, sock: socket.socket) -> None:
        self.family = sock.family

    def close(self) -> None:
        """Nothing to close."""

    def fileno(self) -> int:
        """As a closed socket's."""
        return -1


class LendingChannel(ClosingChannel):
    """The part of ``Stream`` that parts with its socket."""

    __slots__ = ()

    @asynccontextmanager
    async def blocking_socket(self) -> AsyncGenerator[socket.socket]:
        """The socket itself, in blocking mode, for code in a thread: ``async with`` and ``to_thread``.

        Under TLS it is the ``ssl.SSLSocket``. Waits first until what was sent has been taken by the
        kernel. While it lasts the stream's own receives raise ``BusyResourceError`` and its sends wait;
        ``abort()`` ends both directions of the connection, so that a blocked call in the thread
        returns. The thread has to be done with the socket before the block is left, and may have
        closed it: the stream is closed then.

        Raises ``BusyResourceError`` while somebody receives, ``ServerStateError`` when bytes have been
        read ahead by ``receive_until()`` or ``lines()``, and what sending raises.
        """
        sock = await self._release_socket()
        lent: Any = LentSocket(sock)
        self._shaking_hands = self._blocked = True
        self._sock = lent
        timeout = sock.gettimeout()
        try:
            sock.settimeout(None)
            yield sock
        finally:
            self._take_back(sock, timeout)

    def _take_back(self, sock: socket.socket, timeout: float | None) -> None:
        self._shaking_hands = self._blocked = False
        self._sock = sock
        if self._closed:
            sock.close()
        elif sock.fileno() < 0:
            self.close_now()
        else:
            sock.settimeout(timeout)
            self._readable = self._attention = True  # OpenSSL may know of an end that has been read already.
            if self._tls is None:
                self._look_for_the_end(sock)
            elif self._tls.version() is None:
                self._tls = None  # shutdown() and unwrap() have ended TLS.
            self._flush()
        self._wake_senders()

    async def flush(self) -> None:
        """Wait until all that was sent has been taken by the kernel.

        Raises ``ClosedResourceError`` and ``BrokenResourceError``, but not after ``send_eof()``.
        """
        await self._wait_until_sent(0)
        if self._send_error is not None or self._closed:
            self._check_sending()

    async def _wait_until_sent(self, at_most: int) -> None:
        """What has nothing to send yet (an end, a file) waits for the socket as well."""
        while isinstance(self._sock, LentSocket) and not self._closed:
            waiter = self._loop.create_future()
            self._send_waiters = [*(self._send_waiters or ()), waiter]
            await waiter
        await super()._wait_until_sent(at_most)

    def _look_for_the_end(self, sock: socket.socket) -> None:
        """Whoever has used the socket may have seen it, and nobody will see it again."""
        with suppress(OSError):
            if not socket.socket.recv(sock, 1, socket.MSG_PEEK):
                self._end_of_input()

    def detach(self) -> socket.socket:
        """Give the socket away, still connected and non-blocking; the stream is closed, and it is not.

        What is not sent yet (``flush()``), and what was read ahead by ``receive_until()`` or ``lines()``,
        is dropped. The caller owns the socket then. Raises ``ClosedResourceError`` when the stream is
        closed, and ``BusyResourceError`` while the socket is lent.
        """
        if self._closed:
            raise ClosedResourceError
        if self._shaking_hands:
            raise BusyResourceError("using the socket of")
        sock = self._sock
        self._stop_reading()
        self._stop_writing()
        gone: Any = _GivenAway(sock)
        self._sock = gone
        self.close_now()
        return sock

    async def _release_socket(self) -> socket.socket:
        """Nothing is to be sent any more, and the loop does not watch the socket."""
        self._check_lendable()
        if self._file_lock is not None:
            await self._wait_for_file(self._file_lock)
        await self.flush()
        self._check_lendable()
        self._stop_reading()
        self._readable = False
        return self._sock

    def _check_lendable(self) -> None:
        self._check_sending()
        self._raise_if_receiving()
        if self._buffer:
            raise ServerStateError(
                f"{len(self._buffer) - self._buffer_at} bytes have been read ahead of the socket's new user:"
                " receive them first"
            )

    def close_copy(self) -> None:
        """See ``Channel``."""
        sock: Any = self._sock
        (sock.lent if isinstance(sock, LentSocket) else sock).close()

    async def close_gently(self, seconds: float) -> None:
        """See ``aclose()``. What is in other hands cannot be lingered on."""
        if isinstance(self._sock, LentSocket):
            self.close_now()
        else:
            await super().close_gently(seconds)
