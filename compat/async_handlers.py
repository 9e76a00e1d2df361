"""Request handlers with ``async def`` methods, for servers whose other handlers block."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Any

from asyncserver import Stream, loop_factory
from compat.defaults import DEFAULTS
from compat.waiting import is_loop_running

__all__ = [
    "AsyncDatagramRequestHandler",
    "AsyncRequestHandler",
    "AsyncStreamRequestHandler",
    "collect",
    "run_to_end",
]


class _Here(threading.local):
    """What a thread is doing."""

    collecting: Any = None
    """The server whose ``finish_request()`` is to make a handler without running it."""
    collected: AsyncRequestHandler | None = None


_here = _Here()


def collect(server: Any, request: Any, client_address: Any) -> AsyncRequestHandler | None:
    """Call ``finish_request()``. An async handler that it makes is not run but returned."""
    here = _here
    outer = here.collecting
    here.collecting = server
    try:
        server.finish_request(request, client_address)
        handler = here.collected
    finally:
        here.collecting = outer
        here.collected = None
    return handler


class AsyncRequestHandler:
    """The base of async handlers: ``setup()``, ``handle()`` and ``finish()``, each ``async def``.

    Under ``serve_forever()`` it runs as a task of the server's event loop, beside all others, whatever
    mix-in the server has. Elsewhere (``handle_request()``, a child process, a thread that is to serve it
    because the server chooses its handlers one by one) it runs to its end in a loop of its own.
    """

    def __init__(self, request: Any, client_address: Any, server: Any) -> None:
        self.request = request
        """What ``get_request()`` gave."""
        self.client_address = client_address
        """Where it came from, as the socket module writes addresses."""
        self.server = server
        """The server that it came to."""
        if _here.collecting is server and _here.collected is None:
            _here.collected = self
        else:
            run_to_end(self)

    async def setup(self) -> None:
        """Called before ``handle()``. If it raises, neither that nor ``finish()`` is called."""

    async def handle(self) -> None:
        """Serve the request."""

    async def finish(self) -> None:
        """Called after ``handle()``, also if that has raised or was cancelled."""

    async def run(self) -> None:
        """Called by the server, once: the three in their order."""
        await self.setup()
        try:
            await self.handle()
        finally:
            await self.finish()


class AsyncStreamRequestHandler(AsyncRequestHandler):
    """One connection: ``self.stream`` is an ``asyncserver.Stream`` on ``self.request``.

    What was sent has left when ``shutdown_request()`` is called, and the socket is open then, and
    blocking again. On cancellation what is left to be sent is dropped.
    """

    stream: Stream
    """The bytes to and from the client."""

    async def run(self) -> None:
        """See ``AsyncRequestHandler``."""
        request: socket.socket = self.request
        timeout = request.gettimeout()
        request.setblocking(False)
        with suppress(OSError):  # Not on a Unix socket. The stream itself gathers what belongs together.
            request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.stream = Stream(request)
        try:
            try:
                await super().run()
            except Exception:
                await self._flush()
                raise
            await self._flush()
        finally:
            if not self.stream.closed:
                self.stream.detach().settimeout(timeout)

    async def _flush(self) -> None:
        """A peer that is gone is nothing that a handler would have to know when it is done."""
        with suppress(Exception):  # That it is closed, by either side.
            await self.stream.flush()


class AsyncDatagramRequestHandler(AsyncRequestHandler):
    """One datagram: ``self.packet``. ``await self.reply(data)`` answers; ``self.socket`` is the server's."""

    packet: bytes
    """What was in the datagram."""
    socket: socket.socket
    """The server's."""

    async def run(self) -> None:
        """See ``AsyncRequestHandler``."""
        self.packet, self.socket = self.request
        await super().run()

    async def reply(self, data: bytes) -> None:
        """Send a datagram to where the packet came from. Raises ``OSError`` where the kernel refuses it."""
        await send_to(self.socket, data, self.client_address)


async def send_to(sock: socket.socket, data: bytes, address: Any) -> None:
    """Send from a socket that blocks, without blocking."""
    flags = getattr(socket, "MSG_DONTWAIT", 0)
    pause = 0.001
    while True:
        try:
            sock.sendto(data, flags, address)
        except BlockingIOError:
            await asyncio.sleep(pause)  # The send buffer is full for as long as the card needs to empty it.
            pause = min(pause * 2, 0.1)
        else:
            return


def run_to_end(handler: AsyncRequestHandler) -> None:
    """Run it in a loop of its own, and return when it is done. Raises what it raises."""
    if is_loop_running():
        failure: list[BaseException] = []

        def run() -> None:
            try:
                _run_in_new_loop(handler)
            except BaseException as exc:
                failure.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
    else:
        _run_in_new_loop(handler)


def _run_in_new_loop(handler: AsyncRequestHandler) -> None:
    name = getattr(handler.server, "event_loop", None) or DEFAULTS.loop
    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(handler.run())
