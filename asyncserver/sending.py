"""Sending: bytes, several buffers, files, and the end."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import Iterable
from typing import IO

from anyio import BrokenResourceError

from asyncserver.channel import FLUSH_SIZE, RECEIVE_SIZE
from asyncserver.receiving import ReceivingChannel
from asyncserver.tls_handshake import send_close_notify

__all__ = ["SendingChannel"]

# One sendfile() call moves at most this much; then other connections get their turn.
_SENDFILE_SIZE = 1 << 20


class SendingChannel(ReceivingChannel):
    """The sending half of ``Stream``."""

    __slots__ = ()

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``.

        Returns at once while the peer keeps up: the bytes leave at the end of this turn of the loop,
        together with whatever else is sent in it. Waits while more than the send limit
        (``Limits.send_buffer``) is still to be taken by the peer. Cancelling that wait does not take
        the bytes back.

        An error on the way shows in the next call. Raises ``ClosedResourceError`` after ``send_eof()``.
        """
        if self._closed or self._send_closed or self._send_error is not None:
            self._check_sending()
        if type(item) is not bytes:
            item = bytes(item)
        self._out.append(item)
        self._out_size = size = self._out_size + len(item)
        self._budget -= 1
        if size >= FLUSH_SIZE or self._budget < 0:
            await self._send_pressed()
        elif not self._flush_due:
            self._flush_soon()

    async def send_many(self, items: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several buffers, in one system call where the kernel takes them; otherwise as ``send``."""
        self._check_sending()
        buffers = [bytes(item) for item in items]
        self._out += buffers
        self._out_size += sum(map(len, buffers))
        self._budget -= 1
        if self._out_size >= FLUSH_SIZE or self._budget < 0:
            await self._send_pressed()
        elif self._out_size and not self._flush_due:
            self._flush_soon()

    async def _send_pressed(self) -> None:
        """Much is collected, or much has been sent without a pause."""
        self._flush()
        if self._out_size > self._send_limit:
            await self._wait_until_sent(self._send_limit)
            if self._send_error is not None:
                self._check_sending()
        elif self._budget < 0:
            await self._yield_turn()

    async def send_eof(self) -> None:
        """Send what is left and then the end of the stream; receiving goes on (half-close).

        Under TLS this is the closing alert of this direction (RFC 8446, section 6.1). Sending
        afterwards raises ``ClosedResourceError``. Cancellation leaves it to the closing of the stream.
        """
        self._check_sending()
        self._send_closed = True
        await self._wait_until_sent(0)
        if self._send_error is not None or self._closed:
            self._send_closed = False
            self._check_sending()
        if self._tls is not None:
            send_close_notify(self._tls)
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise BrokenResourceError(str(exc)) from exc

    async def send_file(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send ``count`` bytes (None: all there are) of a file from ``offset`` on; returns how many.

        By ``sendfile(2)`` on plain connections and real files, otherwise by reading in a thread. The
        file's own position does not matter; it moves where it has to be read. Cancellation and errors
        leave a part of it sent.
        """
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset={offset}, count={count}: cannot be negative")
        self._check_sending()
        await self._wait_until_sent(0)
        if self._tls is None and hasattr(os, "sendfile") and _is_regular(file):
            return await self._send_by_kernel(file.fileno(), offset, count)
        return await self._send_by_reading(file, offset, count)

    async def _send_by_kernel(self, source: int, offset: int, count: int | None) -> int:
        total = 0
        while count is None or total < count:
            self._check_sending()
            size = _SENDFILE_SIZE if count is None else min(_SENDFILE_SIZE, count - total)
            try:
                sent = os.sendfile(self._fd, source, offset + total, size)
            except BlockingIOError:
                await self._wait_until_writable()
                continue
            except ConnectionError as exc:
                self._fail_sending(exc)
                continue
            if not sent:
                break
            total += sent
            self.bytes_sent += sent
            await asyncio.sleep(0)
        return total

    async def _wait_until_writable(self) -> None:
        waiter = self._loop.create_future()
        self._send_waiters = [*(self._send_waiters or ()), waiter]
        self._wait_for_kernel(None)
        await waiter

    async def _send_by_reading(self, file: IO[bytes], offset: int, count: int | None) -> int:
        def read(position: int, size: int) -> bytes:
            file.seek(position)
            return file.read(size)

        total = 0
        while count is None or total < count:
            size = RECEIVE_SIZE if count is None else min(RECEIVE_SIZE, count - total)
            data = await asyncio.to_thread(read, offset + total, size)
            if not data:
                break
            await self.send(data)
            total += len(data)
        return total


def _is_regular(file: IO[bytes]) -> bool:
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except (OSError, AttributeError, ValueError):  # io.UnsupportedOperation is the first and the last
        return False
