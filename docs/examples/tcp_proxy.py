"""A TCP proxy: every connection is passed on to another server, in both directions.

Run it, from the repository's directory, in front of anything that listens on port 9999, such as
``line_echo.py``, and try it::

    UPSTREAM=127.0.0.1:9999 python -m asyncserver serve docs/examples/tcp_proxy.py:tcp_proxy tcp://127.0.0.1:9000
    nc -N 127.0.0.1 9000

Either side may say that it will send no more and go on receiving. Nothing is read from one side faster
than the other one takes it. With ``tls+tcp://127.0.0.1:9000`` and a certificate it is a TLS terminator.
"""

from __future__ import annotations

import logging
import os

import anyio
from anyio.abc import SocketStream

from asyncserver import Stream

CONNECT_TIMEOUT = 10.0
"""Seconds."""

logger = logging.getLogger(__name__)


async def tcp_proxy(client: Stream) -> None:
    """Serve one client by a connection of its own to ``UPSTREAM``."""
    host, _, port = os.environ.get("UPSTREAM", "127.0.0.1:9999").rpartition(":")
    try:
        with anyio.fail_after(CONNECT_TIMEOUT):
            upstream = await anyio.connect_tcp(host.strip("[]"), int(port))
    except OSError as exc:
        logger.warning("cannot connect to %s port %s: %s", host, port, exc)
        client.abort()
        return
    await join(client, upstream)


async def join(client: Stream, upstream: SocketStream) -> None:
    """Copy in both directions until both have ended, or one has broken."""
    try:
        async with upstream, anyio.create_task_group() as tasks:
            tasks.start_soon(copy, client, upstream)
            tasks.start_soon(copy, upstream, client)
    except* anyio.BrokenResourceError as broken:
        # A reset, so that the client does not take half an answer for a whole one.
        logger.info("connection from %s broken: %s", client.peer, broken.exceptions[0])
        client.abort()


async def copy(source: SocketStream, sink: SocketStream) -> None:
    """Pass on all that comes, and then that nothing more will."""
    async for chunk in source:
        await sink.send(chunk)
    await sink.send_eof()
