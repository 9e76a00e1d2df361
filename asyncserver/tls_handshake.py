"""The beginning and the end of TLS on a non-blocking socket."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Awaitable, Callable

__all__ = ["closing_alert", "handshake", "send_close_notify"]


async def handshake(
    tls: ssl.SSLSocket,
    wait_readable: Callable[[], Awaitable[None]],
    wait_writable: Callable[[], Awaitable[None]],
) -> None:
    """Shake hands; raises what ``ssl`` raises. After cancellation the connection is of no use."""
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            await wait_readable()
        except ssl.SSLWantWriteError:
            await wait_writable()
        else:
            return


def send_close_notify(tls: ssl.SSLSocket) -> bool:
    """Send the closing alert, for a connection from which nothing is read any more.

    The peer's alert is not waited for (RFC 8446, 6.1 asks for no more). False: the kernel's buffer is
    full, call this again when it is not. Other errors are of no interest any more.
    """
    try:
        tls.unwrap()
    except ssl.SSLWantWriteError:
        return False
    except (OSError, ValueError):
        pass
    return True


def closing_alert(tls: ssl.SSLSocket) -> bytes:
    """The closing alert, for a connection from which more is to be read; the caller sends the bytes.

    ``unwrap()`` sends the alert and then looks for the peer's. If it finds application data instead it
    loses them, and OpenSSL takes the connection for broken from then on. So for the time of the call
    the socket's descriptor stands for an end of another connection, which takes the alert and has
    nothing to be read. It must have no reader and no writer on a loop meanwhile.
    """
    if os.name != "posix":
        send_close_notify(tls)
        return b""
    descriptor = tls.fileno()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        kept = os.dup(descriptor)
        try:
            os.dup2(near.fileno(), descriptor, inheritable=False)
            send_close_notify(tls)
        finally:
            os.dup2(kept, descriptor, inheritable=False)
            os.close(kept)
        try:
            return far.recv(4096)
        except BlockingIOError:
            return b""
