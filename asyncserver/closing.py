"""Closing so that the peer still gets what was sent."""

from __future__ import annotations

import contextvars
import socket
from contextlib import suppress

from anyio import ClosedResourceError

from asyncserver.channel import DISCARD_LIMIT
from asyncserver.sending import SendingChannel
from asyncserver.tls_handshake import send_close_notify

__all__ = ["LINGER", "ClosingChannel"]

# Seconds. Long enough for a reply to cross the world and be acknowledged after one retransmission;
# short enough that peers which never close cannot pile up.
LINGER = 5.0

_NO_CONTEXT = contextvars.Context()


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
        self._budget = self._grant = 0
        self._discarded = self._discarded or 0
        if self._want:
            self._receive_error = ClosedResourceError()
            self._wake_receiver()
        self._flush()
        all_is_said = (self._at_eof or seconds <= 0) and self._out is None and not self._alert
        if all_is_said and (self._tls is None or send_close_notify(self._tls)):
            return  # The common case: the peer has closed and has everything.
        if seconds <= 0:
            return
        # Not asyncio.timeout(): asyncio keeps a timer that was cancelled until its time has come, and
        # with it the context, in which the connection is.
        timer = self._loop.call_later(seconds, self.close_now, context=_NO_CONTEXT)
        try:
            await self._wait_until_sent(0)
            if self._broken is None and self._send_error is None and not self._closed:
                with suppress(OSError):
                    await self._half_close()
        finally:
            timer.cancel()

    async def _half_close(self) -> None:
        if self._tls is not None:
            await self._send_alert(self._tls)
        while self._tls is not None and not self._closed and not send_close_notify(self._tls):
            await self._wait_until_writable()
        if self.closed:
            return
        self._end_output()
        if not self._reader_on and not self._at_eof:
            self._start_reading()
        while not self._at_eof and not self._closed and (self._discarded or 0) < DISCARD_LIMIT:
            await self._wait_for_change()

    def _end_output(self) -> None:
        """Not by the method of a TLS socket, which would go on in plain text."""
        socket.socket.shutdown(self._sock, socket.SHUT_WR)
