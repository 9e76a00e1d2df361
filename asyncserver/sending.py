"""Sending: bytes, several buffers, files, and the end."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import ssl
import stat
from collections.abc import Iterable
from typing import IO, Any

from anyio import BrokenResourceError, ClosedResourceError

from asyncserver.channel import EXHAUSTED, ITEM_COST, RECEIVE_SIZE, YIELD_BUDGET, FileLock
from asyncserver.checks import as_bytes
from asyncserver.receiving import ReceivingChannel
from asyncserver.tls_handshake import closing_alert

__all__ = ["CannotSendFileError", "SendingChannel"]

# One sendfile() call moves at most this much; then other connections get their turn.
_SENDFILE_SIZE = 1 << 20

# Seconds until somebody who has found no free descriptors looks again.
_SCARCE_DELAY = 0.05

# What sendfile() says of files that it cannot send.
_NO_SENDFILE = frozenset({errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

# Of the budget of a turn; as much time as that many small operations.
_PRESSED_COST = 64

# Items that may be left waiting for a slow peer before they are joined.
_MANY_ITEMS = 8


class SendingChannel(ReceivingChannel):
    """The sending half of ``Stream``."""

    __slots__ = ()

    # The channel's: without these lines pyright takes those that are added to here for others.
    bytes_received: int
    bytes_sent: int

    async def send(self, item: bytes | bytearray | memoryview) -> None:
        """Send all of ``item``.

        Returns at once while the peer keeps up: the bytes leave at the end of this turn of the loop,
        together with whatever else is sent in it. Waits while more than the send limit
        (``Limits.send_buffer``) is still to be taken by the peer. Cancelling that wait does not take
        the bytes back.

        An error on the way shows in the next call. Raises ``ClosedResourceError`` after ``send_eof()``.
        """
        if type(item) is not bytes:
            item = as_bytes(item, "send()")
        if not self._budget:
            await self.send_many((item,))
            return
        out = self._out
        if out is None:
            self._out = [item]
            if len(item) < self._settings.pressure:
                return
        else:
            out.append(item)
            self._out_size = size = self._out_size + len(item) + ITEM_COST
            if size < self._settings.pressure:
                return
        await self._send_pressed()

    async def send_many(self, items: Iterable[bytes | bytearray | memoryview]) -> None:
        """Send several buffers, in one system call where the kernel takes them; otherwise as ``send``."""
        buffers: list[bytes | memoryview] = [
            item if isinstance(item, bytes) else as_bytes(item, "send_many()") for item in items
        ]
        self._check_sending()
        if self._file_lock is not None and self._file_lock.locked():
            self._file_lock.behind += buffers
            await self._wait_for_file(self._file_lock)
        elif buffers:
            self._out = [*(self._out or ()), *buffers]
            self._weigh()
        if self._out_size >= self._settings.pressure:
            await self._send_pressed()
        elif not self._budget:
            await self._take_turn()

    async def _send_pressed(self) -> None:
        """Much is collected: send it, and wait if the peer does not keep up."""
        self._flush()
        out = self._out
        if out is not None and len(out) > _MANY_ITEMS:
            # Many small ones: what they weigh above their length must not count towards the limit.
            out[:] = [b"".join(out)]
        self._weigh()
        if self._out_size > self._settings.send_limit + ITEM_COST * _MANY_ITEMS:
            await self._wait_until_sent(self._settings.send_limit)
            if self._send_error is not None or self._closed:
                self._check_sending()
        elif self._budget > _PRESSED_COST:
            self._budget -= _PRESSED_COST
        else:
            await self._take_turn()

    async def send_eof(self) -> None:
        """Send what is left and then the end of the stream; receiving goes on (half-close).

        Under TLS this is the closing alert of this direction (RFC 8446, section 6.1). Sending
        afterwards raises ``ClosedResourceError``; a second ``send_eof()`` does nothing. Cancellation
        leaves it to the closing of the stream. In a process that has no descriptors left the alert
        waits until there are some.
        """
        if self._send_closed and not self._closed and self._send_error is None:
            return
        self._check_sending()
        if self._file_lock is not None:
            await self._wait_for_file(self._file_lock)
        self._send_closed = True
        self._budget = self._grant = 0
        await self._wait_until_sent(0)
        while self._shaking_hands and not self._closed:
            await self._wait_for_change()
        if self._send_error is not None or self._closed:
            self._check_sending()
        try:
            if self._tls is None:
                self._sock.shutdown(socket.SHUT_WR)
            else:
                await self._send_closing_alert(self._tls)
        except OSError as exc:
            raise BrokenResourceError(str(exc)) from exc

    async def _wait_for_file(self, lock: asyncio.Lock) -> None:
        while lock.locked():
            async with lock:
                pass
        self._check_sending()

    async def _send_closing_alert(self, tls: ssl.SSLSocket) -> None:
        while (alert := self._make_closing_alert(tls)) is None:
            await asyncio.sleep(_SCARCE_DELAY)
            if self._closed:
                raise ClosedResourceError
        self._alert = alert
        await self._send_alert(tls)

    async def _send_alert(self, tls: ssl.SSLSocket) -> None:
        """Send what is left of the closing alert; the closing does so where ``send_eof()`` was cancelled."""
        while self._alert:
            try:
                self._alert = self._alert[socket.socket.send(tls, self._alert) :]
            except BlockingIOError:
                await self._wait_until_writable()
                if self._closed:
                    raise ClosedResourceError from None

    def _make_closing_alert(self, tls: ssl.SSLSocket) -> bytes | None:
        """The alert; None where there are no descriptors, which making it takes for a moment."""
        reading = self._reader_on
        self._stop_reading()
        if pending := tls.pending():
            self._set_aside(tls.recv(pending))
        try:
            return closing_alert(tls)
        except OSError as exc:
            if exc.errno in EXHAUSTED:
                return None
            raise
        finally:
            if reading:
                self._start_reading()

    def _set_aside(self, data: bytes) -> None:
        """Decrypted and not received yet: OpenSSL takes it for a breach of the protocol after its alert."""
        self.bytes_received += len(data)
        self._buffer = self._buffer[self._buffer_at :] + data
        self._buffer_at = 0
        self._wake_receiver()

    async def send_file(self, file: IO[bytes], offset: int = 0, count: int | None = None) -> int:
        """Send ``count`` bytes (None: all there are) of a file from ``offset`` on; returns how many.

        By ``sendfile(2)`` on plain connections and real files, otherwise by reading in a thread. The
        file's own position does not matter; it moves where it has to be read. What others send in the
        meantime follows the file. Cancellation and errors leave a part of it sent.
        """
        if offset < 0 or (count is not None and count < 0):
            raise ValueError(f"offset={offset}, count={count}: cannot be negative")
        self._check_sending()
        if self._file_lock is None:
            self._file_lock = FileLock()
        async with self._file_lock:
            self._check_sending()
            self._budget = self._grant = 0  # So that whoever sends has a look at the lock.
            try:
                await self._wait_until_sent(0)
                return await self._send_file(file, offset, count)
            finally:
                if self._send_error is None and not self._send_closed and not self._closed:
                    self._grant = YIELD_BUDGET
                    self._send_behind(self._file_lock)

    def _send_behind(self, lock: FileLock) -> None:
        """What was given to ``send()`` during a file follows it, also if nobody waits for that any more."""
        if lock.behind:
            self._out = [*(self._out or ()), *lock.behind]
            lock.behind = []
            self._weigh()
            self._flush_soon()

    async def _send_file(self, file: IO[bytes], offset: int, count: int | None) -> int:
        descriptor = _descriptor(file)
        sent = 0
        if descriptor is not None and file.writable():
            await asyncio.to_thread(file.flush)  # What was written may not be in the file yet.
        if descriptor is not None and self._tls is None and hasattr(os, "sendfile"):
            try:
                return await self._send_by_kernel(descriptor, offset, count)
            except CannotSendFileError:
                pass  # Nothing has been sent; files of some file systems have to be read.

        def read(position: int, size: int) -> bytes:
            if descriptor is not None and hasattr(os, "pread"):
                return os.pread(descriptor, size, position)
            file.seek(position)
            return file.read(size)

        while count is None or sent < count:
            size = RECEIVE_SIZE if count is None else min(RECEIVE_SIZE, count - sent)
            data = await asyncio.to_thread(read, offset + sent, size)
            if not data:
                break
            self._check_sending()
            self._out = [bytes(memoryview(data))]
            self._out_size = len(data) + ITEM_COST
            sent += len(data)
            await self._wait_until_sent(0)
        self._check_sending()
        return sent

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
            except (ConnectionError, TimeoutError) as exc:
                self._fail_sending(exc)
                continue
            except OSError as exc:
                if total == 0 and exc.errno in _NO_SENDFILE:
                    raise CannotSendFileError from exc
                raise
            if not sent:
                break
            total += sent
            self.bytes_sent += sent
            await asyncio.sleep(0)
        return total

    async def _wait_until_writable(self) -> None:
        """Or until the stream is closed. For when there is nothing in the buffer."""
        self._wait_for_kernel(None)
        await self._wait_for_change()

    async def _wait_until_readable(self) -> None:
        """Or until the stream is closed. For the TLS handshake."""
        if not self._reader_on:
            self._start_reading()
        await self._wait_for_change()

    async def _wait_for_change(self) -> None:
        waiter = self._loop.create_future()
        self._send_waiters = [*(self._send_waiters or ()), waiter]
        await waiter


class CannotSendFileError(Exception):
    """The kernel cannot send this kind of file."""


def _descriptor(file: Any) -> int | None:
    """The descriptor of a regular file whose content is what reading ``file`` gives.

    Many file objects have a descriptor that is another one's: ``gzip`` files that of the compressed.
    """
    file = getattr(file, "file", file)  # tempfile wraps the file in a Python object.
    raw = getattr(file, "raw", file)
    if not isinstance(raw, io.FileIO) or not isinstance(file, io.RawIOBase | io.BufferedIOBase):
        return None
    descriptor = raw.fileno()
    return descriptor if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
