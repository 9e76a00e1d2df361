"""A non-blocking socket on an event loop: what is common to receiving, sending and closing.

No transport and no protocol: a ``Poller`` tells when the socket is ready, and ``recv`` and ``send``
are called on the socket, plain or TLS, right here.

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
from asyncio import _enter_task, _leave_task  # pyright: ignore[reportPrivateUsage] - documented hooks
from collections.abc import Callable
from contextlib import suppress

from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream

from asyncserver.stepping import RAISED, RETURNED, YIELDED, Steppable
from asyncserver.stream_settings import StreamSettings

__all__ = [
    "DISCARD_LIMIT",
    "EXHAUSTED",
    "ITEM_COST",
    "RECEIVE_SIZE",
    "YIELD_BUDGET",
    "Channel",
    "FileLock",
    "keep_memory",
]

# The most that one recv() asks for by default: a reply of 100 KB is then one call and not two, which with
# larger messages is what costs. See also `keep_memory`.
RECEIVE_SIZE = 131_072

# ... and for a peer that sends little at a time, this: Python's own allocator serves objects of up to 512
# bytes, which costs a tenth of what malloc needs for a large block that is cut down afterwards.
_SMALL_READ = 479
_LITTLE = 256

# Every item costs time however short it is, so that it is counted as that many bytes more: what is
# collected goes out after a thousand items at the latest.
ITEM_COST = 128

# Above this, several buffers go out by sendmsg() instead of being joined first.
_JOIN_SIZE = 32_768
_MAX_BUFFERS = 1_024  # IOV_MAX of Linux and macOS

# Operations that need not wait (lines that are already here, sends to a peer that keeps up) between
# two turns of the loop, so that one busy connection cannot keep all others waiting: about half a
# millisecond of them.
YIELD_BUDGET = 512

# A peer that goes on sending after our end is not listened to for ever.
DISCARD_LIMIT = 16 << 20

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, zero seconds; close() then sends a RST

# No descriptors or no memory: that concerns the process or the machine, and passes.
EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_WOULD_BLOCK = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


def keep_memory() -> None:
    """Have malloc keep the blocks that are read into, instead of asking the kernel for each.

    glibc serves blocks of 128 KiB and more by mmap() and returns free memory above that at once: three
    more system calls and the page faults, for every message (measured: four times the time). It
    stops doing both for blocks of a size that was freed once (mallopt(3), M_MMAP_THRESHOLD).
    """
    bytes(1 << 20)


class Channel(Steppable):
    """Readiness, buffers and closing of one connected socket; ``Stream`` is its public face."""

    __slots__ = (
        "_aborted",
        "_alert",
        "_at_eof",
        "_attention",
        "_blocked",
        "_broken",
        "_budget",
        "_buffer",
        "_buffer_at",
        "_chunk",
        "_closed",
        "_discarded",
        "_expected",
        "_fd",
        "_file_lock",
        "_flush_scheduled",
        "_grant",
        "_input_ended",
        "_out",
        "_out_size",
        "_overrun",
        "_partial",
        "_poller",
        "_readable",
        "_reader_on",
        "_receive_error",
        "_send_closed",
        "_send_error",
        "_send_waiters",
        "_settings",
        "_shaking_hands",
        "_sock",
        "_tls",
        "_want",
        "_writer_on",
        "bytes_received",
        "bytes_sent",
    )

    def __init__(self, sock: socket.socket, settings: StreamSettings) -> None:
        super().__init__(settings.loop)
        self._settings = settings
        self._poller = settings.poller
        self._sock = sock
        self._fd = sock.fileno()
        self._tls: ssl.SSLSocket | None = None
        self._shaking_hands = False
        self._closed = False
        self._aborted = False
        self.bytes_received: int = 0
        """Bytes taken from the kernel; under TLS what was inside."""
        self.bytes_sent: int = 0
        """Bytes given to the kernel; under TLS what was inside."""
        # What the coroutine that is being stepped may still do before the others have their turn.
        # Zero when none is, and when sending is over: whatever is zero takes the careful path.
        self._budget = 0
        self._grant = YIELD_BUDGET
        # Receiving. `_attention`: a receive has to look at more before it can wait. `_want`: how much
        # the receive that waits would take; zero when none does.
        self._attention = True
        self._want = 0
        self._expected = RECEIVE_SIZE
        self._chunk = b""
        self._buffer = b""
        self._buffer_at = 0
        self._partial = False
        self._reader_on = False
        self._readable = False
        self._at_eof = False
        self._overrun = False
        self._input_ended = False
        # How much of the input was dropped; None until this side closes.
        self._discarded: int | None = None
        self._broken: OSError | None = None
        self._receive_error: Exception | None = None
        # Sending. `_out_size` counts ITEM_COST more than its length for each item of `_out`, but not
        # the first item while there is no more: most messages are answered by one.
        self._out: list[bytes | memoryview] | None = None
        self._out_size = 0
        self._flush_scheduled = False
        self._blocked = False
        self._writer_on = False
        self._send_waiters: list[asyncio.Future[None]] | None = None
        self._send_error: OSError | None = None
        self._send_closed = False
        # What is left of TLS's closing alert, which OpenSSL takes for sent.
        self._alert: bytes | None = None
        # Held while a file is being sent.
        self._file_lock: FileLock | None = None

    # --- what is going on, for whoever looks after the connection ---

    @property
    def receiving(self) -> bool:
        """Whether a receive is waiting."""
        return self._want > 0

    @property
    def idle(self) -> bool:
        """Whether a receive waits for the first byte of something, and nothing is left to be sent."""
        return self._want > 0 and not self._partial and self._out is None and not self._sends_file

    @property
    def _sends_file(self) -> bool:
        return self._file_lock is not None and self._file_lock.locked()

    @property
    def unsent(self) -> int:
        """Bytes that were given to ``send`` and not yet taken by the kernel."""
        behind = () if self._file_lock is None else self._file_lock.behind
        return sum(map(len, self._out or ())) + sum(map(len, behind))

    @property
    def congested(self) -> bool:
        """Whether the kernel has refused bytes: the peer does not keep up, and more would pile up here."""
        return self._blocked

    @property
    def stalled(self) -> bool:
        """Whether it is the peer that has to take something before this side can go on sending."""
        return self._blocked and not self._shaking_hands

    @property
    def aborted(self) -> bool:
        """Whether it was reset from this side."""
        return self._aborted

    @property
    def all_is_said(self) -> bool:
        """Whether the peer has closed its side and been sent everything, so that closing loses nothing."""
        return self._at_eof and self._out is None and self._tls is None

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

    def on_readable(self) -> None:
        """Called by the poller. All that happens for one message in the usual case happens here."""
        step = self._step
        if step is None:
            self._on_readable_unstepped()
            return
        want, expected = self._want, self._expected
        data: bytes | None
        try:
            data = self._sock.recv(want if want < expected else expected)  # noqa: FURB136 - a call less
        except (OSError, ValueError) as exc:
            data = self._survived(exc)
            if data is None:
                return
        size = len(data)
        self.bytes_received += size
        if size < _LITTLE:
            self._expected = _SMALL_READ
            if not size and want > 0:
                self._end_of_input()
        elif size == expected:
            self._expected = RECEIVE_SIZE
        # Step the coroutine that waits for this past its task; see the module `stepping`.
        self._want = 0
        self._budget = self._grant
        loop, task = self._loop, self._task
        _enter_task(loop, task)  # type: ignore[arg-type]
        try:
            yielded = self._context.run(step, data)  # type: ignore[union-attr]
        except StopIteration as stop:
            self._outcome = (RETURNED, stop.value)
        except BaseException as exc:  # The task raises it again. Kept in no local: that would be a cycle.
            self._outcome = (RAISED, exc)
        else:
            if yielded is self._place:
                _leave_task(loop, task)  # type: ignore[arg-type]
                self._budget = 0
                if self._out is not None:
                    self._flush()
                return
            self._outcome = (YIELDED, yielded)
        _leave_task(loop, task)  # type: ignore[arg-type]
        self._hand_over()
        self._budget = 0
        self._flush()

    def _on_readable_unstepped(self) -> None:
        """Nobody waits, or a task that is not stepped past."""
        if not self._want:
            if self._discarded is None:
                self._found_readable()
            else:
                self._discard()
            return
        data = self._read(self._want)
        if data is not None:
            self._deliver(data)

    def _on_readable_tls(self) -> None:
        if self._blocked and not self._writer_on and not self._shaking_hands:
            self._go_on_writing()  # OpenSSL wanted to read before it could.
        self._receive_under_tls()

    def _deliver(self, data: bytes) -> None:
        """Continue, through its task, whoever waits. Only from a callback of the loop."""
        self._want = 0
        self._step = None
        self._chunk = data
        self._wake_task()

    def _read(self, want: int) -> bytes | None:
        """What has come; None if nothing has yet, b"" at the end or when the connection is broken."""
        try:
            data = self._sock.recv(want)
        except (OSError, ValueError) as exc:
            return self._survived(exc)
        if data:
            self.bytes_received += len(data)
        else:
            self._end_of_input()
        return data

    def _survived(self, exc: OSError | ValueError) -> bytes | None:
        """Reading has failed: None if that passes, b"" if the connection is broken."""
        if isinstance(exc, ssl.SSLWantWriteError):
            # A key update is to be answered first, and the kernel's buffer is full.
            self._start_writing()
            return None
        if isinstance(exc, _WOULD_BLOCK):
            return None
        if isinstance(exc, ssl.SSLZeroReturnError):
            self._end_of_input()  # The peer's end, which is an error to Python when ours was said before.
            return b""
        # Under TLS also an end without close_notify: what came may have been cut short by an attacker.
        self._break(exc if isinstance(exc, OSError) else OSError(errno.EBADF, str(exc)))
        self._end_of_input()
        return b""

    def _found_readable(self) -> None:
        """Readable with nobody waiting: keep quiet until somebody does, and remember it."""
        self._stop_reading()
        self._readable = True
        if self._shaking_hands:
            self._wake_senders()

    def _wake_receiver(self) -> None:
        """Let a waiting receive find out, in the loop's next turn, that its situation has changed."""
        self._attention = True
        if self._want:
            self._loop.call_soon(self._on_wake)

    def _on_wake(self) -> None:
        if self._want:
            self._deliver(b"")
        if self._closed:
            self._dissolve()

    def _before_parking(self, want: int) -> bytes | None:
        """All that has to be looked at before a receive may wait; returns bytes that need no wait."""
        self._raise_if_receiving()
        given: object = want
        if not isinstance(given, int) or given < 1:
            raise ValueError(f"max_bytes={want!r}: has to be a whole number, at least 1")
        if self._receive_error is not None:
            try:
                raise self._receive_error
            finally:
                self._receive_error = None
        if self._broken is not None:
            raise BrokenResourceError(str(self._broken)) from self._broken
        if self._discarded is not None:
            raise ClosedResourceError
        if self._at_eof or self._input_ended:
            raise EndOfStream
        tls = self._tls
        pending = tls is not None and tls.pending() > 0
        if pending and not self._budget:
            self._loop.call_soon(self._on_pending)  # The other connections' turn.
        elif self._readable or pending:
            self._budget -= pending
            self._readable = False
            data = self._read(want)
            if data is not None:
                return data or self._before_parking(want)
        if not self._reader_on:
            self._start_reading()
        self._attention = tls is not None
        return None

    def _receive_under_tls(self) -> None:
        """``on_readable``, but for a receive for which decrypted bytes were set aside: they came before."""
        if self._want and self._buffer:
            self._on_wake()
        else:
            self.on_readable()

    def _on_pending(self) -> None:
        if self._want:
            self._receive_under_tls()

    def _raise_if_receiving(self) -> None:
        if self._want or self._shaking_hands:
            raise BusyResourceError("receiving from")

    def _give_up_receiving(self) -> None:
        """A receive was cancelled: what may have come for it in the meantime is kept."""
        self._want = 0
        if self._chunk:
            self._buffer = self._chunk
            self._buffer_at = 0
            self._chunk = b""
            self._attention = True

    def _start_reading(self) -> None:
        self._reader_on = True
        self._poller.add_reader(
            self._fd, self if self._tls is None else _TLSFace(self._on_readable_tls, self.on_writable)
        )

    def _discard(self) -> None:
        """Closing: drop what the peer still sends, up to its end, but not without end."""
        try:
            data = self._receive_raw(RECEIVE_SIZE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        self._discarded = dropped = (self._discarded or 0) + len(data)
        if not data or dropped > DISCARD_LIMIT:
            self._discarded = DISCARD_LIMIT
            self._stop_reading()
            self._wake_senders()

    def _receive_raw(self, size: int) -> bytes:
        """Of the socket itself: nobody is interested in what it means, under TLS."""
        return socket.socket.recv(self._sock, size)

    def _stop_reading(self) -> None:
        self._attention = True
        if self._reader_on:
            self._reader_on = False
            self._poller.remove_reader(self._fd)

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
        self._broken = exc.with_traceback(None)  # It would lead back here: a reference cycle.
        self._fail_sending(exc)

    # --- sending ---

    def _flush_soon(self) -> None:
        """Flush at the end of this turn of the loop."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._on_turn_end)

    def _on_turn_end(self) -> None:
        self._flush_scheduled = False
        self._budget = 0
        self._flush()

    async def _take_turn(self) -> None:
        """The budget is used up, or none has been granted in this turn of the loop: get a new one.

        What is then sent leaves at the end of the turn. If there was one before in the same turn, this
        waits for the next: the other connections come first.
        """
        if self._flush_scheduled or not self._grant:
            self._flush()
            await asyncio.sleep(0)
        self._budget = self._grant
        self._flush_soon()

    def _flush(self) -> None:
        """Give what is collected to the kernel; what it does not take now follows when it can."""
        out = self._out
        if out is None or self._blocked:
            return
        try:
            if len(out) == 1:
                item = out[0]
                sent = self._sock.send(item)
                if sent == len(item):
                    self._out = None
                    self._out_size = 0
                    self.bytes_sent += sent
                    return
            else:
                sent = self._send_several(out)
            self._note_sent(out, sent)
            while self._out is not None:
                if self._tls is None:  # The kernel is full. (OpenSSL sends a record at a time.)
                    self._wait_for_kernel(None)
                    return
                self._note_sent(out, self._send_several(out))
        except _WOULD_BLOCK as exc:
            self._wait_for_kernel(exc)
        except OSError as exc:
            self._fail_sending(exc)
        except ValueError as exc:  # What OpenSSL says of a connection that is half gone.
            self._fail_sending(OSError(errno.EBADF, str(exc)))

    def _note_sent(self, out: list[bytes | memoryview], sent: int) -> None:
        self.bytes_sent += sent
        _drop_front(out, sent)
        if not out:
            self._out = None
        self._weigh()

    def _weigh(self) -> None:
        out = self._out or ()
        self._out_size = sum(map(len, out)) + ITEM_COST * len(out)

    def _send_several(self, out: list[bytes | memoryview]) -> int:
        if len(out) > 1:
            if self._out_size > _JOIN_SIZE and self._tls is None:
                return self._sock.sendmsg(out[:_MAX_BUFFERS])
            out[:] = [b"".join(out)]
        return self._sock.send(out[0])

    def _wait_for_kernel(self, exc: Exception | None) -> None:
        self._blocked = True
        self._weigh()
        if not isinstance(exc, ssl.SSLWantReadError):
            self._start_writing()
        elif not self._reader_on:
            self._start_reading()

    def _start_writing(self) -> None:
        if not self._writer_on:
            self._writer_on = True
            self._poller.add_writer(self._fd, self)

    def _stop_writing(self) -> None:
        if self._writer_on:
            self._writer_on = False
            self._poller.remove_writer(self._fd)

    def on_writable(self) -> None:
        """Called by the poller."""
        self._go_on_writing()
        if self._want and self._tls is not None:
            self._receive_under_tls()  # OpenSSL may have wanted to write before it could go on reading.

    def _go_on_writing(self) -> None:
        self._blocked = False
        if not self._shaking_hands:
            self._flush()
        if not self._blocked:
            self._stop_writing()
        if self._out_size * 4 <= self._settings.send_limit or self._out is None or self._shaking_hands:
            self._wake_senders()
        self._blocked |= self._shaking_hands

    def _wake_senders(self) -> None:
        waiters, self._send_waiters = self._send_waiters, None
        for waiter in waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _fail_sending(self, exc: OSError) -> None:
        if self._send_error is None:
            self._send_error = exc.with_traceback(None)
        self._stop_sending()
        self._stop_writing()
        self._wake_senders()

    def _stop_sending(self) -> None:
        """Nothing can be sent from now on; what is left is dropped."""
        self._out = None
        self._out_size = 0
        self._budget = self._grant = 0

    def _check_sending(self) -> None:
        if self._send_error is not None:
            raise BrokenResourceError(str(self._send_error)) from self._send_error
        if self._closed or self._send_closed:
            raise ClosedResourceError

    async def _wait_until_sent(self, at_most: int) -> None:
        """Wait until at most this many bytes are left to be sent, or sending has failed."""
        self._flush()
        while self._out is not None and self._out_size > at_most:
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
        self._discarded = self._discarded or 0
        self._stop_sending()
        self._buffer = b""
        self._wake_receiver()
        self._wake_senders()
        self._sock.close()
        if not self._want and self._step is None:
            self._dissolve()

    def close_copy(self) -> None:
        """In a forked child: close the descriptor, and tell neither the peer nor the poller, the parent's."""
        self._sock.close()

    def _reset_socket(self) -> None:
        if not self._closed:
            self._aborted = True
            with suppress(OSError):  # Not on a Unix socket, which has no RST either.
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close_now()

    def give_up(self, error: OSError) -> None:
        """Give the peer up; what waits here raises ``BrokenResourceError`` because of ``error``."""
        self._break(error)
        self._reset_socket()


class FileLock(asyncio.Lock):
    """Held while a file is being sent."""

    def __init__(self) -> None:
        super().__init__()
        self.behind: list[bytes | memoryview] = []
        """What was sent in the meantime, and follows the file."""


class _TLSFace:
    """What a poller calls of a channel under TLS, so that the plain one need not ask itself."""

    __slots__ = ("_on_readable", "_on_writable")

    def __init__(self, on_readable: Callable[[], None], on_writable: Callable[[], None]) -> None:
        self._on_readable = on_readable
        self._on_writable = on_writable

    def on_readable(self) -> None:
        """Called by the poller."""
        self._on_readable()

    def on_writable(self) -> None:
        """Called by the poller."""
        self._on_writable()


def _drop_front(out: list[bytes | memoryview], count: int) -> None:
    """Take ``count`` sent bytes off the front of the buffers."""
    done = 0
    while done < len(out) and count >= len(out[done]):
        count -= len(out[done])
        done += 1
    del out[:done]
    if count:
        out[0] = memoryview(out[0])[count:]
