"""The server classes of ``socketserver``, each with the engine replaced."""

from __future__ import annotations

import os
import socket
import socketserver
import sys
from typing import Any

from compat.engine import engine_of, existing_engine, start_request
from compat.mixin import LISTEN_QUEUE, EventLoopMixIn
from compat.pool import WhenFull
from compat.turns import LoopTurns, reap

_DO_NOT_WAIT = getattr(socket, "MSG_DONTWAIT", 0)


class BaseServer(EventLoopMixIn, socketserver.BaseServer):
    """``socketserver.BaseServer`` on an event loop; see ``EventLoopMixIn``."""


class TCPServer(BaseServer, socketserver.TCPServer):
    """``socketserver.TCPServer`` on an event loop, with a listen queue of 1,024 by default."""

    request_queue_size = LISTEN_QUEUE


class UDPServer(TCPServer, socketserver.UDPServer):
    """``socketserver.UDPServer`` on an event loop."""

    def get_request(self) -> Any:
        """``(data, socket), client_address``.

        While serving, a datagram that another process has taken in the meantime, or that the kernel has
        dropped for its checksum (recvmsg(2), select(2)), is not waited for: raises ``BlockingIOError``.
        """
        if engine_of(self).current_turns() is None or type(self.socket) is not socket.socket:
            return super().get_request()
        data, address = self.socket.recvfrom(self.max_packet_size, _DO_NOT_WAIT)
        return (data, self.socket), address


class ThreadingMixIn(socketserver.ThreadingMixIn):
    """A thread for each request: a new one, or, with ``max_threads``, one that is used again."""

    max_threads: int | None = None
    """The most threads; None: as many as there are requests, each of them new."""

    when_full: WhenFull = "wait"
    """While all ``max_threads`` are busy, connections ``"wait"`` in the kernel's queue, or the server
    ``"reject"`` s them: accepts and closes."""

    def process_request(self, request: Any, client_address: Any) -> None:
        """Have a thread serve it."""
        if not start_request(self, request, client_address):
            socketserver.ThreadingMixIn.process_request(self, request, client_address)

    def server_close(self) -> None:
        """Close the server's socket, and wait for the threads if ``block_on_close`` says so."""
        super().server_close()
        engine = existing_engine(self)
        if engine is not None and not isinstance(self, EventLoopMixIn):
            engine.close()


if hasattr(os, "fork"):

    class ForkingMixIn(socketserver.ForkingMixIn):
        """A child process for each request; reaped when it ends, where the system can tell (pidfd)."""

        def process_request(self, request: Any, client_address: Any) -> None:
            """Have a child serve it."""
            if not start_request(self, request, client_address):
                socketserver.ForkingMixIn.process_request(self, request, client_address)

        def collect_children(self, *, blocking: bool = False) -> None:
            """Take the children that have ended out of ``active_children``; with ``blocking``, all.

            Where there are ``max_children``, this waits for one, unless a ``serve_forever()`` that waits for
            it without standing still has called it.
            """
            turns = engine_of(self).current_turns()
            if not blocking and isinstance(turns, LoopTurns) and turns.spares_children:
                reap(self.active_children, blocking=False)
            else:
                super().collect_children(blocking=blocking)

    class ForkingTCPServer(ForkingMixIn, TCPServer, socketserver.ForkingTCPServer):
        """A TCP server with a child process for each connection."""

    class ForkingUDPServer(ForkingMixIn, UDPServer, socketserver.ForkingUDPServer):
        """A UDP server with a child process for each datagram."""


class ThreadingTCPServer(ThreadingMixIn, TCPServer, socketserver.ThreadingTCPServer):
    """A TCP server with a thread for each connection."""


class ThreadingUDPServer(ThreadingMixIn, UDPServer, socketserver.ThreadingUDPServer):
    """A UDP server with a thread for each datagram."""


if hasattr(socket, "AF_UNIX"):

    class UnixStreamServer(TCPServer, socketserver.UnixStreamServer):
        """``socketserver.UnixStreamServer`` on an event loop."""

        address_family: int = socket.AF_UNIX

    class UnixDatagramServer(UDPServer, socketserver.UnixDatagramServer):
        """``socketserver.UnixDatagramServer`` on an event loop."""

        address_family: int = socket.AF_UNIX

    class ThreadingUnixStreamServer(ThreadingMixIn, UnixStreamServer, socketserver.ThreadingUnixStreamServer):
        """A Unix server with a thread for each connection."""

    class ThreadingUnixDatagramServer(
        ThreadingMixIn, UnixDatagramServer, socketserver.ThreadingUnixDatagramServer
    ):
        """A Unix datagram server with a thread for each datagram."""

    if hasattr(os, "fork"):
        if sys.version_info >= (3, 12):

            class ForkingUnixStreamServer(
                ForkingMixIn, UnixStreamServer, socketserver.ForkingUnixStreamServer
            ):
                """A Unix server with a child process for each connection."""

            class ForkingUnixDatagramServer(
                ForkingMixIn, UnixDatagramServer, socketserver.ForkingUnixDatagramServer
            ):
                """A Unix datagram server with a child process for each datagram."""

        else:

            class ForkingUnixStreamServer(ForkingMixIn, UnixStreamServer):  # pyright: ignore[reportPossiblyUnboundVariable]
                """A Unix server with a child process for each connection; Python has it from 3.12 on."""

            class ForkingUnixDatagramServer(ForkingMixIn, UnixDatagramServer):  # pyright: ignore[reportPossiblyUnboundVariable]
                """A Unix datagram server with a child process for each datagram; Python 3.12 has it, too."""


class BaseRequestHandler(socketserver.BaseRequestHandler):
    """``socketserver.BaseRequestHandler``, unchanged."""


class StreamRequestHandler(BaseRequestHandler, socketserver.StreamRequestHandler):
    """``socketserver.StreamRequestHandler``, unchanged."""


class DatagramRequestHandler(BaseRequestHandler, socketserver.DatagramRequestHandler):
    """``socketserver.DatagramRequestHandler``, unchanged."""
