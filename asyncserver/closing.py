"""Closing so that the peer still gets what was sent."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from anyio import ClosedResourceError

from asyncserver.sending import SendingChannel
from asyncserver.tls_handshake import send_close_notify

__all__ = ["LINGER", "ClosingChannel"]

# Seconds. Long enough for a reply to cross the world and be acknowledged after one retransmission;
# short enough that peers which never close cannot pile up.
LINGER = 5.0

# A peer that goes on sending after our end is not listened to for ever.
_DISCARD_LIMIT = 16 << 20


class ClosingChannel(SendingChannel):
    """The closing of ``Stream``."""

    __slots__ = ()

    async def aclose(self) -> None:
        """Close in peace: send what is left, say so, and wait a little for the peer to have read it.

        Closing a socket while the peer is still sending makes the kernel answer with a RST, upon
        which the peer's kernel may throw away the reply that it has not read yet (RFC 1122, 4.2.2.13).
        So this half-closes, and reads and drops what still comes until the peer closes, for a few
        seconds at most. Returns with the socket closed. Cancellation closes it at once. Does
        nothing when it is closed already.
        """
        await self.close_gently(LINGER)

    async def close_gently(self, seconds: float) -> None:
        """As ``aclose()``, for ``seconds`` at most; a server uses ``Timeouts.linger``."""
        try:
            if not self._closed:
                await self._linger(seconds)
        finally:
            self.close_now()

    def abort(self) -> None:
        """Close at once, with a RST to the peer; nothing that is still to be sent will be."""
        self._reset_socket()

    async def _linger(self, seconds: float) -> None:
        """Send what is left, half-close and drop what still comes until the peer closes.

        Takes at most ``seconds``; the caller closes the socket afterwards, also after cancellation.
        """
        self._send_closed = True
        if self._parked:
            self._receive_error = ClosedResourceError()
            self._wake_receiver()
        if self._out_size:
            self._flush()
        if self._at_eof and not self._out_size:
            # The common case: the peer has closed and has everything.
            if self._tls is not None:
                send_close_notify(self._tls)
            return
        if seconds <= 0:
            return
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(seconds):
                await self._wait_until_sent(0)
                if self._broken is None and self._send_error is None and not self._closed:
                    await self._half_close()

    async def _half_close(self) -> None:
        if self._tls is not None:
            send_close_notify(self._tls)
        self._sock.shutdown(socket.SHUT_WR)
        if not self._at_eof:
            await self._discard_input()

    async def _discard_input(self) -> None:
        loop = self._loop
        done = loop.create_future()
        dropped = 0

        def drop() -> None:
            nonlocal dropped
            try:
                # Of the socket itself: under TLS, too, nobody is interested in what it means.
                data = socket.socket.recv(self._sock, 65_536)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            dropped += len(data)
            if (not data or dropped > _DISCARD_LIMIT) and not done.done():
                done.set_result(None)

        self._stop_reading()
        loop.add_reader(self._fd, drop)
        self._reader_on = True  # so that closing the socket removes it
        self._send_waiters = [*(self._send_waiters or ()), done]  # ... and ends the wait
        try:
            await done
        finally:
            self._stop_reading()
