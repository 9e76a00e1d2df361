"""What the streams of one server have in common."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from asyncserver.poller import LoopPoller, Poller

__all__ = ["StreamSettings"]

_BUFFER = 65_536


class StreamSettings:
    """Shared by streams rather than kept by each; changing it changes all of them."""

    __slots__ = ("loop", "poller", "receive_limit", "send_limit", "tls")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        poller: Poller | None = None,
        receive_limit: int = _BUFFER,
        send_limit: int = _BUFFER,
        tls: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """``tls`` gives the context for ``start_tls()``; the limits are those of ``Limits``, in bytes."""
        self.loop = loop or asyncio.get_running_loop()
        self.poller: Poller = poller or LoopPoller(self.loop)
        self.receive_limit = receive_limit
        self.send_limit = send_limit
        self.tls = tls
