"""Requests that last for as long as the test wants, because their handler waits for its client.

::

    with server_of(compat.ThreadingTCPServer, loop_name, max_threads=2) as server, serving(server, NEVER):
        with HeldClient(server) as client:
            thread = client.begun()         # the request is in its handler, and stays there
            assert client.release() == b"done"
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import compat
from tests.compat.support import LOCAL, Client, blocks
from tests.waiting import PATIENCE

__all__ = [
    "NEVER",
    "Held",
    "HeldClient",
    "needs_fork",
    "needs_listen_queue",
    "numbered",
    "queued",
    "raising",
    "server_of",
    "wait_until_blocked",
]

NEVER = 60 * PATIENCE
"""A poll interval for servers that have to be woken up: if they only polled, the test would fail."""

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork() here")
needs_listen_queue = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells what is in the queue of a listening socket"
)


class Held(compat.StreamRequestHandler):
    """Says that it has begun, and in which thread and process, and waits for a line.

    It ends as the server's ``on_line(handler, line)`` says, or by sending what that returns.
    """

    timeout = 2 * PATIENCE
    """Only for tests that fail: a child process has its client's socket, too, and would never see its end."""

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, TimeoutError):
            self.wfile.write(f"{os.getpid()} {threading.current_thread().name}\n".encode())
            line = self.rfile.readline()
            self.wfile.write(self.server.on_line(self, line))


@contextlib.contextmanager
def server_of(base: Any, loop_name: str, handler: Any = Held, /, **attributes: Any) -> Iterator[Any]:
    """A server with these class attributes, on a free port of the loopback interface; closed at the end."""
    defaults = {"event_loop": loop_name, "on_line": lambda self, handler, line: b"done"}
    server = type(f"A{base.__name__}", (base,), defaults | attributes)(LOCAL, handler)
    try:
        yield server
    finally:
        server.server_close()


def wait_until_blocked(thread: threading.Thread) -> None:
    """Until it waits in a system call for what somebody else does."""
    assert blocks(thread), f"{thread.name} has ended"


class HeldClient(Client):
    """The client of one such request."""

    def __init__(self, server: Any) -> None:
        super().__init__(server)
        self._stream_file = self.sock.makefile("rb")

    def begun(self) -> str:
        """Wait until it is in its handler; returns the name of the thread."""
        return self.place()[1]

    def place(self) -> tuple[int, str]:
        """The same; returns the process, and the name of the thread."""
        line = self._stream_file.readline().decode()
        assert line, "it was closed, and not served"
        pid, _, thread = line.rstrip("\n").partition(" ")
        return int(pid), thread

    def release(self, line: bytes = b"go") -> bytes:
        """Let it end; returns what comes until it is closed."""
        self.send(line + b"\n")
        return self.rest()

    def rest(self) -> bytes:
        """What comes until it is closed."""
        try:
            return self._stream_file.read()
        except ConnectionResetError:
            return b""

    def close(self) -> None:
        """Close: a request that is held ends."""
        self._stream_file.close()
        super().close()


def raising(error: BaseException) -> Callable[..., bytes]:
    """For ``on_line``: raise when the line is "raise"."""

    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        if line == b"raise\n":
            raise error
        return b"done"

    return on_line


def numbered(state: Any) -> Callable[..., bytes]:
    """For ``on_line``: how many requests have found ``state.count`` as the one before has left it."""

    def on_line(server: Any, handler: Any, line: bytes) -> bytes:
        state.count = getattr(state, "count", 0) + 1
        return b"%d" % state.count

    return on_line


def queued(server: Any) -> tuple[int, int]:
    """How many connections wait to be accepted, and how many may."""
    _, _, _, _, waiting, most = struct.unpack(
        "8x6I", server.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
    )
    return waiting, most
