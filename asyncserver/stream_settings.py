"""What the streams of one server have in common."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from asyncserver.poller import LoopPoller, Poller

__all__ = ["FLUSH_SIZE", "StreamSettings"]

_RECEIVE_BUFFER = 131_072

# Collected bytes go out without waiting for the turn to end from here on: more would not save a
# noticeable part of the system call, and the peer could start working.
FLUSH_SIZE = 131_072


class StreamSettings:
    """Shared by streams rather than kept by each; changing it changes all of them."""

    __slots__ = ("_send_limit", "loop", "poller", "pressure", "receive_limit", "tls")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        poller: Poller | None = None,
        receive_limit: int = _RECEIVE_BUFFER,
        send_limit: int = FLUSH_SIZE,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """``tls`` gives the context for ``start_tls()``; the limits are those of ``Limits``, in bytes."""
        self.loop: asyncio.AbstractEventLoop = loop or asyncio.get_running_loop()
        self.poller: Poller = poller or LoopPoller(self.loop)
        self.receive_limit: int = receive_limit
        self.send_limit = send_limit
        self.tls: Callable[[], ssl.SSLContext] | None = tls

    @property
    def send_limit(self) -> int:
        """``Limits.send_buffer``, in bytes."""
        return self._send_limit

    @send_limit.setter
    def send_limit(self, limit: int) -> None:
        self._send_limit = limit
        # How much is collected before it has to go out, or be looked at more closely.
        self.pressure: int = min(FLUSH_SIZE, limit)
