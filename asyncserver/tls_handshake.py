"""The beginning and the end of TLS on a non-blocking socket."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress

from asyncserver.readiness import wait_readable, wait_writable

__all__ = ["handshake", "send_close_notify"]


async def handshake(tls: ssl.SSLSocket, loop: asyncio.AbstractEventLoop) -> None:
    """Shake hands; raises what ``ssl`` raises. After cancellation the connection is of no use."""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await wait_readable(loop, tls.fileno())
        except ssl.SSLWantWriteError:
            await wait_writable(loop, tls.fileno())
        else:
            return


def send_close_notify(tls: ssl.SSLSocket) -> None:
    """Send the closing alert; the peer's is not waited for (RFC 8446, 6.1 asks for no more).

    Never raises: unwrap() goes on to look for the peer's alert, which need not have come, or finds
    application data before it, which is still there to be read.
    """
    with suppress(OSError, ValueError):
        tls.unwrap()
