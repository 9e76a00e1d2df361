"""Receiving: chunks, exact counts, up to a delimiter, lines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from typing import Any

from anyio import DelimiterNotFound, EndOfStream, IncompleteRead

from asyncserver.channel import RECEIVE_SIZE, Channel
from asyncserver.checks import wrong_data
from asyncserver.stepping import suspending

__all__ = ["LineIterator", "ReceivingChannel"]

_CARRIAGE_RETURN = 13


class ReceivingChannel(Channel):
    """The receiving half of ``Stream``."""

    __slots__ = ()

    @suspending
    def receive(self, max_bytes: int = RECEIVE_SIZE) -> Generator[Any, Any, bytes]:
        """Wait for bytes and return them: at least one, at most ``max_bytes``.

        Raises ``EndOfStream`` when the peer has sent all it will send (or the server is draining and
        the connection was idle), ``BusyResourceError`` when another task is receiving, and
        ``ConnectionTimeoutError`` when a deadline of the connection has passed. Cancellation loses no
        byte: what had come is returned by the next receive.
        """
        while True:
            if self._attention or self._want or max_bytes < 1:
                if self._buffer and max_bytes > 0:
                    return (yield from self._receive_buffered(max_bytes).__await__())
                ready = self._before_parking(max_bytes)
                if ready is not None:
                    return ready
            self._want = max_bytes
            try:
                data: bytes | None = yield self._parking
            except BaseException:
                self._give_up_receiving()
                raise
            if data:
                return data
            # Woken through its task, or for another reason than bytes.
            data = self._chunk
            if data:
                self._chunk = b""
                return data

    async def __anext__(self) -> bytes:
        try:
            return await self.receive(self._settings.receive_limit)
        except EndOfStream:
            raise StopAsyncIteration from None

    async def receive_exactly(self, count: int) -> bytes:
        """Wait for exactly ``count`` bytes and return them.

        Raises ``IncompleteRead`` when the peer stops sending before. Cancellation, like every error,
        leaves what had come to the next receive.
        """
        if count < 0:
            raise ValueError(f"count={count}: cannot be negative")
        if not count:
            return b""
        if self._buffer:
            await self._use_budget()
        if len(self._buffer) - self._buffer_at >= count:
            return self._take(count)
        gathered = self._take_all()
        try:
            while len(gathered) < count:
                self._partial = bool(gathered)
                gathered += await self.receive(min(count - len(gathered), RECEIVE_SIZE))
        except EndOfStream:
            self._put_back(gathered)
            raise IncompleteRead from None
        except BaseException:
            self._put_back(gathered)
            raise
        self._partial = False
        return bytes(gathered)

    async def peek(self, count: int) -> bytes:
        """Wait until ``count`` bytes have come and return them, and leave them for the next receive.

        Reads ahead, as ``receive_until()`` does: the receives that follow find what came together. A
        message that was peeked into has begun: a drain waits for the rest of it, if it is received with
        what was peeked at. Raises ``EndOfStream`` when the peer has stopped sending before the first
        byte, and ``IncompleteRead`` when it stops before the last one.
        """
        if count < 1:
            raise ValueError(f"count={count}: has to be at least 1")
        if self._buffer:
            await self._use_budget()
        if len(self._buffer) - self._buffer_at < count:
            await self._gather(count)
        at = self._buffer_at
        return self._buffer[at : at + count]

    async def _gather(self, count: int) -> None:
        """Have at least so many bytes in the buffer."""
        gathered = self._take_all()
        try:
            while len(gathered) < count:
                self._partial = bool(gathered)
                gathered += await self.receive(self._settings.receive_limit)
        except EndOfStream:
            if gathered:
                raise IncompleteRead from None
            raise
        finally:
            self._put_back(gathered)

    async def receive_until(self, delimiter: bytes, max_bytes: int) -> bytes:
        """Wait until ``delimiter`` has come and return what stood before it.

        Raises ``DelimiterNotFound`` when it is not among the first ``max_bytes`` bytes and the
        delimiter's length, and ``IncompleteRead`` when the peer stops sending before. Cancellation,
        like every error, leaves what had come to the next receive.
        """
        if not delimiter:
            raise ValueError("delimiter=b'': cannot be empty")
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: cannot be negative")
        if self._buffer:
            await self._use_budget()
        try:
            found = self._buffer.find(
                delimiter, self._buffer_at, self._buffer_at + max_bytes + len(delimiter)
            )
        except TypeError:
            raise wrong_data(delimiter, "receive_until()", "delimiter") from None
        if found >= 0:
            data = self._take(found - self._buffer_at)
            self._take(len(delimiter))
            return data
        gathered = self._take_all()
        try:
            found = await self._gather_until(gathered, delimiter, max_bytes)
        except EndOfStream:
            self._put_back(gathered)
            raise IncompleteRead from None
        except BaseException:
            self._put_back(gathered)
            raise
        self._partial = False
        self._put_back(gathered[found + len(delimiter) :])
        return bytes(gathered[:found])

    async def _gather_until(self, gathered: bytearray, delimiter: bytes, max_bytes: int) -> int:
        limit = max_bytes + len(delimiter)
        searched = 0
        while True:
            found = gathered.find(delimiter, searched, limit)
            if found >= 0:
                return found
            if len(gathered) >= limit:
                self._overrun = True
                raise DelimiterNotFound(max_bytes)
            searched = max(0, len(gathered) - len(delimiter) + 1)
            self._partial = bool(gathered)
            gathered += await self.receive(self._settings.receive_limit)

    def lines(self, max_bytes: int = 65_536) -> LineIterator:
        """Iterate over lines, without their line end (``\\n`` or ``\\r\\n``).

        The iteration ends where the peer stops sending; a last line without a line end is given
        too. (``receive_until(b"\\n", ...)`` is the strict form, which raises then.) A line of
        more than ``max_bytes`` bytes raises ``DelimiterNotFound``. The iterator holds nothing of its
        own: leave it at any time, and receive what follows by other means.
        """
        if max_bytes < 0:
            raise ValueError(f"max_bytes={max_bytes}: cannot be negative")
        return LineIterator(self._next_line, max_bytes)

    async def _next_line(self, max_bytes: int) -> bytes:
        buffer = self._buffer
        start = self._buffer_at
        end = buffer.find(b"\n", start)
        if end < 0 or end - start > max_bytes or not self._budget:
            return await self._next_line_slowly(max_bytes)  # also a line that "\r" makes too long
        self._budget -= 1
        if end + 1 == len(buffer):
            self._buffer = b""
            self._buffer_at = 0
        else:
            self._buffer_at = end + 1
        if end > start and buffer[end - 1] == _CARRIAGE_RETURN:
            end -= 1
        return buffer[start:end]

    async def _next_line_slowly(self, max_bytes: int) -> bytes:
        """The buffer is empty, holds no whole line, or it is the other connections' turn."""
        try:
            if not self._buffer:
                self._put_in_front(await self.receive(self._settings.receive_limit))
                self._attention = True
                if self._budget:
                    return await self._next_line(max_bytes)
            line = await self.receive_until(b"\n", max_bytes + 1)
            end = b"\n"
        except IncompleteRead:
            line, end = self._take(len(self._buffer)), b""
        except DelimiterNotFound:
            raise DelimiterNotFound(max_bytes) from None  # And not the number with room for a "\r".
        except EndOfStream:
            raise StopAsyncIteration from None
        if end and line.endswith(b"\r"):
            return line[:-1]
        if len(line) > max_bytes:
            self._overrun = True
            self._put_back(bytearray(line + end))
            raise DelimiterNotFound(max_bytes)
        return line

    async def _receive_buffered(self, max_bytes: int) -> bytes:
        await self._use_budget()
        # The buffer may have been emptied while the others had their turn.
        return self._take(max_bytes) if self._buffer else await self.receive(max_bytes)

    async def _use_budget(self) -> None:
        """Before anything is taken without waiting. The buffer may be another one afterwards."""
        self._raise_if_receiving()
        if self._budget:
            self._budget -= 1
        else:
            await self._take_turn()
            self._raise_if_receiving()
        if self._discarded is not None and self._buffer:
            self._buffer = b""
            self._buffer_at = 0

    def _take(self, count: int) -> bytes:
        """Up to so many bytes off the front of the buffer."""
        at = self._buffer_at
        end = at + count
        if end >= len(self._buffer):
            data = self._buffer[at:] if at else self._buffer
            self._buffer = b""
            self._buffer_at = 0
        else:
            data = self._buffer[at:end]
            self._buffer_at = end
        return data

    def _take_all(self) -> bytearray:
        self._raise_if_receiving()
        gathered = bytearray(memoryview(self._buffer)[self._buffer_at :])
        self._buffer = b""
        self._buffer_at = 0
        return gathered

    def _put_in_front(self, data: bytes) -> None:
        """Into the buffer, which may have the rest of what was set aside meanwhile (``send_eof()``)."""
        self._buffer = data + self._buffer[self._buffer_at :] if self._buffer else data
        self._buffer_at = 0

    def _put_back(self, gathered: bytearray) -> None:
        self._partial = False
        if self._buffer:  # A cancelled receive has kept what came for it.
            gathered += memoryview(self._buffer)[self._buffer_at :]
        self._buffer = bytes(gathered)
        self._buffer_at = 0
        self._attention = True


class LineIterator(AsyncIterator[bytes]):
    """The lines of a stream; see ``Stream.lines``. Lines not asked for yet stay in the stream."""

    __slots__ = ("_max_bytes", "_next_line")

    def __init__(self, next_line: Callable[[int], Coroutine[Any, Any, bytes]], max_bytes: int) -> None:
        self._next_line = next_line
        self._max_bytes = max_bytes

    def __anext__(self) -> Coroutine[Any, Any, bytes]:
        return self._next_line(self._max_bytes)
