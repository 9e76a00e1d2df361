"""A non-blocking socket on an event loop: what is common to receiving, sending and closing.

No transport and no protocol: the loop only tells when the socket is ready (``add_reader``,
``add_writer``), and ``recv`` and ``send`` are called on the socket, plain or TLS, right here.

* **Nothing is read ahead.** The socket is read only while somebody waits for its bytes; otherwise
  they stay in the kernel, whose window then stops the peer. Bytes that ``receive_until`` and
  ``lines`` got beyond what they returned are the only ones kept here.
* **Sends of one turn leave in one system call.** They are collected and go out when the handler
  waits again, at the end of the loop's turn, or as soon as ``FLUSH_SIZE`` is reached.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
import struct
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream

from asyncserver.stepping import Parking

__all__ = ["FLUSH_SIZE", "RECEIVE_SIZE", "YIELD_BUDGET", "Channel"]

T = TypeVar("T")

# The most that one recv() asks for. malloc serves 128 KiB and more by mmap, which costs three more
# system calls and the page faults for every message, so this has to stay well below.
RECEIVE_SIZE = 65_536

# Collected bytes go out without waiting for the turn to end from here on: more would not save a
# noticeable part of the system call, and the peer could start working.
FLUSH_SIZE = 65_536

# Above this, several buffers go out by sendmsg() instead of being joined first.
_JOIN_SIZE = 32_768
_MAX_BUFFERS = 1_024  # IOV_MAX of Linux and macOS

# Operations that need not wait (lines that are already here, sends to a peer that keeps up) between
# two turns of the loop, so that one busy connection cannot keep all others waiting: about half a
# millisecond of them.
YIELD_BUDGET = 512

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds; close() then sends a RST

_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Channel:
    """Readiness, buffers and closing of one connected socket; ``Stream`` is its public face."""

    __slots__ = (
        "_at_eof",
        "_attention",
        "_blocked",
        "_broken",
        "_buffer",
        "_buffer_at",
        "_budget",
        "_chunk",
        "_closed",
        "_fd",
        "_flush_due",
        "_input_ended",
        "_loop",
        "_out",
        "_out_size",
        "_overrun",
        "_parked",
        "_parking",
        "_partial",
        "_readable",
        "_reader_on",
        "_receive_error",
        "_receive_limit",
        "_send_closed",
        "_send_error",
        "_send_limit",
        "_send_waiters",
        "_sock",
        "_tls",
        "_want",
        "_writer_on",
        "bytes_received",
        "bytes_sent",
    )

    def __init__(
        self, sock: socket.socket, loop: asyncio.AbstractEventLoop, send_limit: int, receive_limit: int
    ) -> None:
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = loop
        self._parking = Parking(loop)
        self._tls: ssl.SSLSocket | None = None
        self._closed = False
        self._budget = YIELD_BUDGET
        self.bytes_received: int = 0
        self.bytes_sent: int = 0
        # Receiving. `_attention` is set when a receive has to look at anything but its buffer.
        self._attention = True
        self._parked = False
        self._want = 0
        self._receive_limit = receive_limit
        self._chunk = b""
        self._buffer = b""
        self._buffer_at = 0
        self._partial = False
        self._reader_on = False
        self._readable = False
        self._at_eof = False
        self._overrun = False
        self._input_ended = False
        self._broken: OSError | None = None
        self._receive_error: Exception | None = None
        # Sending.
        self._out: list[bytes | memoryview] = []
        self._out_size = 0
        self._send_limit = send_limit
        self._flush_due = False
        self._blocked = False
        self._writer_on = False
        self._send_waiters: list[asyncio.Future[None]] | None = None
        self._send_error: OSError | None = None
        self._send_closed = False

    # --- what is going on, for whoever looks after the connection ---

    @property
    def receiving(self) -> bool:
        """Whether a receive is waiting."""
        return self._parked

    @property
    def idle(self) -> bool:
        """Whether a receive waits for the first byte of something, and nothing is left to be sent."""
        return self._parked and not self._partial and not self._out_size

    @property
    def unsent(self) -> int:
        """Bytes that were given to ``send`` and not yet taken by the kernel."""
        return self._out_size

    @property
    def at_eof(self) -> bool:
        """Whether the peer has said that it will send no more."""
        return self._at_eof

    @property
    def input_over(self) -> bool:
        """Whether ``EndOfStream`` has been due: the peer's end, or one that the server has set."""
        return self._at_eof or self._input_ended

    @property
    def broken(self) -> bool:
        """Whether the connection has broken."""
        return self._broken is not None or self._send_error is not None

    @property
    def overrun(self) -> bool:
        """Whether the peer sent more than a receive was ready to take before its delimiter."""
        return self._overrun

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._closed

    # --- receiving ---

    def _on_readable(self) -> None:
        if not self._parked:
            self._found_readable()
            return
        try:
            data = self._sock.recv(self._want)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as exc:
            self._break(exc)
            data = b""
        if data:
            self.bytes_received += len(data)
        else:
            self._end_of_input()
        self._chunk = data
        self._resume_receiver()

    def _on_readable_tls(self) -> None:
        if self._blocked and not self._writer_on:
            self._on_writable()  # OpenSSL wanted to read before it could go on writing.
        if not self._parked:
            self._found_readable()
            return
        data = self._read_tls(self._want)
        if data is None:
            return
        self._chunk = data
        self._resume_receiver()

    def _read_tls(self, want: int) -> bytes | None:
        """What OpenSSL has decrypted; None when it needs more from the peer, b"" at the end."""
        try:
            data = self._tls.read(want)  # type: ignore[union-attr]
        except ssl.SSLWantReadError:
            return None
        except ssl.SSLWantWriteError:
            # A key update is to be answered first, and the kernel's buffer is full.
            self._start_writing()
            return None
        except OSError as exc:
            # Also an end without close_notify: what came may have been cut short by an attacker.
            self._break(exc)
            data = b""
        except ValueError as exc:
            self._break(OSError(errno.EBADF, str(exc)))
            data = b""
        if data:
            self.bytes_received += len(data)
        else:
            self._end_of_input()
        return data

    def _found_readable(self) -> None:
        """Readable with nobody waiting: keep quiet until somebody does, and remember it."""
        self._stop_reading()
        self._readable = True

    def _resume_receiver(self) -> None:
        self._parked = False
        self._budget = YIELD_BUDGET
        self._flush_due = True
        self._parking.resume()
        self._flush_due = False
        if self._out_size:
            self._flush()

    def _wake_receiver(self) -> None:
        """Let a waiting receive find out, in the loop's next turn, that its situation has changed."""
        self._attention = True
        if self._parked:
            self._loop.call_soon(self._on_wake)

    def _on_wake(self) -> None:
        if self._parked:
            self._chunk = b""
            self._resume_receiver()

    def _before_parking(self, want: int) -> bytes | None:
        """All that has to be looked at before a receive may wait; returns bytes that need no wait."""
        self._raise_if_parked()
        if self._receive_error is not None:
            error, self._receive_error = self._receive_error, None
            raise error
        if self._broken is not None:
            raise BrokenResourceError(str(self._broken)) from self._broken
        if self._closed:
            raise ClosedResourceError
        if self._at_eof or self._input_ended:
            raise EndOfStream
        tls = self._tls
        if self._readable or (tls is not None and tls.pending()):
            data = self._read_now(want)
            if data is not None:
                return data or self._before_parking(want)
        if not self._reader_on:
            self._start_reading()
        self._attention = tls is not None
        return None

    def _raise_if_parked(self) -> None:
        if self._parked:
            raise BusyResourceError("receiving from")

    def _read_now(self, want: int) -> bytes | None:
        self._readable = False
        if self._tls is not None:
            return self._read_tls(want)
        try:
            data = self._sock.recv(want)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as exc:
            self._break(exc)
            return b""
        if data:
            self.bytes_received += len(data)
        else:
            self._end_of_input()
        return data

    def _unpark(self) -> None:
        """A receive was cancelled: what may have come for it in the meantime is kept."""
        self._parked = False
        if self._chunk:
            self._buffer = self._chunk
            self._buffer_at = 0
            self._chunk = b""

    def _start_reading(self) -> None:
        self._reader_on = True
        callback = self._on_readable if self._tls is None else self._on_readable_tls
        self._loop.add_reader(self._fd, callback)

    def _stop_reading(self) -> None:
        self._attention = True
        if self._reader_on:
            self._reader_on = False
            self._loop.remove_reader(self._fd)

    def drive(self, coroutine: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Await ``coroutine``, continuing it at once whenever this has bytes for it: ``Parking.drive``."""
        return self._parking.drive(coroutine)

    def forget_handler(self) -> None:
        """Break the reference cycles that driving a coroutine makes, when it is over."""
        self._parking.forget()

    def set_limits(self, send_limit: int, receive_limit: int) -> None:
        """Change the limits that this was made with, in bytes."""
        self._send_limit = send_limit
        self._receive_limit = receive_limit

    def fail_receive(self, error: Exception) -> None:
        """Raise ``error`` from the receive that waits, or else from the next one."""
        self._receive_error = error
        self._wake_receiver()

    def end_input(self) -> None:
        """Behave as if the peer had sent its end."""
        self._input_ended = True
        self._wake_receiver()

    def _end_of_input(self) -> None:
        # The descriptor stays readable from now on; the loop would report it without end.
        self._at_eof = True
        self._stop_reading()

    def _break(self, exc: OSError) -> None:
        """The kernel or OpenSSL reports that the connection is no more."""
        self._broken = exc
        self._fail_sending(exc)

    # --- sending ---

    def _flush_soon(self) -> None:
        self._flush_due = True
        self._loop.call_soon(self._on_turn_end)

    def _on_turn_end(self) -> None:
        self._flush_due = False
        if self._out_size:
            self._flush()

    def _flush(self) -> None:
        """Give what is collected to the kernel; what it does not take now follows when it can."""
        if self._blocked:
            return
        out = self._out
        try:
            while self._out_size:
                sent = self._sock.send(out[0]) if len(out) == 1 else self._send_several(out)
                self.bytes_sent += sent
                self._out_size -= sent
                if not self._out_size:
                    out.clear()
                else:
                    _drop_front(out, sent)
                    if self._tls is None:  # The kernel is full. (OpenSSL sends a record at a time.)
                        self._wait_for_kernel(None)
                        return
        except _WOULD_BLOCK as exc:
            self._wait_for_kernel(exc)
        except OSError as exc:
            self._fail_sending(exc)
        except ValueError as exc:  # What OpenSSL says of a connection that is half gone.
            self._fail_sending(OSError(errno.EBADF, str(exc)))

    def _send_several(self, out: list[bytes | memoryview]) -> int:
        if self._out_size > _JOIN_SIZE and self._tls is None:
            return self._sock.sendmsg(out[:_MAX_BUFFERS])
        out[:] = [b"".join(out)]
        return self._sock.send(out[0])

    def _wait_for_kernel(self, exc: Exception | None) -> None:
        self._blocked = True
        if not isinstance(exc, ssl.SSLWantReadError):
            self._start_writing()
        elif not self._reader_on:
            self._start_reading()

    def _start_writing(self) -> None:
        if not self._writer_on:
            self._writer_on = True
            self._loop.add_writer(self._fd, self._on_writable)

    def _stop_writing(self) -> None:
        if self._writer_on:
            self._writer_on = False
            self._loop.remove_writer(self._fd)

    def _on_writable(self) -> None:
        self._blocked = False
        self._flush()
        if not self._blocked:
            self._stop_writing()
        if self._out_size * 4 <= self._send_limit:
            self._wake_senders()
        if self._parked and self._tls is not None:
            self._on_readable_tls()  # OpenSSL may have wanted to write before it could go on reading.

    def _wake_senders(self) -> None:
        waiters, self._send_waiters = self._send_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _fail_sending(self, exc: OSError) -> None:
        if self._send_error is None:
            self._send_error = exc
        self._out.clear()
        self._out_size = 0
        self._stop_writing()
        self._wake_senders()

    def _check_sending(self) -> None:
        if self._send_error is not None:
            raise BrokenResourceError(str(self._send_error)) from self._send_error
        if self._closed or self._send_closed:
            raise ClosedResourceError

    async def _wait_until_sent(self, at_most: int) -> None:
        """Wait until at most this many bytes are left to be sent, or sending has failed."""
        if self._out_size:
            self._flush()
        while self._out_size > at_most:
            waiter = self._loop.create_future()
            if self._send_waiters is None:
                self._send_waiters = []
            self._send_waiters.append(waiter)
            await waiter

    # --- closing ---

    def close_now(self) -> None:
        """Close the socket as it is, and wake everybody who waits on it; idempotent."""
        if self._closed:
            return
        self._stop_reading()
        self._stop_writing()
        self._closed = True
        self._out.clear()
        self._out_size = 0
        self._wake_receiver()
        self._wake_senders()
        self._sock.close()

    def _reset_socket(self) -> None:
        if not self._closed:
            with suppress(OSError):  # Not on a Unix socket, which has no RST either.
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close_now()

    def give_up(self, error: OSError) -> None:
        """Give the peer up; what waits here raises ``BrokenResourceError`` because of ``error``."""
        self._break(error)
        self._reset_socket()


def _drop_front(out: list[bytes | memoryview], count: int) -> None:
    """Take ``count`` sent bytes off the front of the buffers."""
    done = 0
    while count >= len(out[done]):
        count -= len(out[done])
        done += 1
    del out[:done]
    if count:
        out[0] = memoryview(out[0])[count:]
