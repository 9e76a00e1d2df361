"""Names that a program uses for something else, and files and objects that look like those before."""

from __future__ import annotations

import contextlib
import copy
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import compat
from asyncserver import LoopName, OptionError
from tests.compat.held import NEVER, HeldClient, needs_fork, server_of, wait_until_blocked
from tests.compat.support import LOCAL, Client, InThread, agreed, answer, blocks, serving
from tests.waiting import MS, wait_until_blocking

# --- children ---


@contextlib.contextmanager
def ended_child(status: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that the program has started; it has ended, and nobody has asked for its status."""
    with subprocess.Popen([sys.executable, "-c", f"raise SystemExit({status})"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process


@needs_fork
def test_handle_request_does_not_wait_at_max_children(loop_name: LoopName) -> None:
    """Only after its timeout; and the end of a child takes none of the program's own with it."""

    def scenario(socketserver: Any) -> list[Any]:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.wfile.write(b"begun")
                self.rfile.readline()

        class Server(socketserver.ForkingTCPServer):
            max_children = 2
            timeout = None

        with Server(LOCAL, Handler) as server, contextlib.ExitStack() as stack:
            clients = []
            for _ in range(3):
                client = stack.enter_context(Client(server))
                handling = InThread("handling", server.handle_request)
                clients.append((client.receive(5), client))
                handling.result()
            process = stack.enter_context(ended_child(7))
            handling = InThread("handling", server.handle_request)
            waits = blocks(handling)
            clients[0][1].send(b"end\n")
            ended = clients[0][1].reply()
            waits_still = blocks(handling)
            last = stack.enter_context(Client(server))
            begun = last.receive(5)
            handling.result()
            for client in (clients[1][1], clients[2][1], last):
                client.send(b"end\n")
            status = process.wait()
        return [[greeting for greeting, _ in clients], waits, ended, waits_still, begun, status]

    assert agreed(scenario, loop_name) == [[b"begun"] * 3, True, b"", True, b"begun", 7]


@needs_fork
@pytest.mark.parametrize("kind", ["number", "list", "set"])
def test_active_children_of_another_meaning(kind: str, loop_name: LoopName) -> None:
    """On a server that forks nothing: a set of processes is the program's as well."""

    def scenario(socketserver: Any) -> list[Any]:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                answer(self, b"served")

        with ended_child(7) as process, socketserver.ThreadingTCPServer(LOCAL, Handler) as server:
            server.active_children = {"number": 1, "list": [process.pid], "set": {process.pid}}[kind]
            server.max_children = 1
            with serving(server):
                replies = [Client(server).reply() for _ in range(2)]
            server.server_close()
            left = server.active_children == {"number": 1, "list": [process.pid], "set": {process.pid}}[kind]
            return [replies, left, process.wait()]

    assert agreed(scenario, loop_name) == [[b"served", b"served"], True, 7]


# --- files that look like the one before ---


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs here")
def test_a_fifo_that_is_opened_anew(loop_name: LoopName, tmp_path: Path) -> None:
    """It has the same number and the same inode, but epoll has forgotten the one that was closed."""

    def scenario(socketserver: Any) -> list[Any]:
        path = tmp_path / socketserver.__name__
        os.mkfifo(path)
        received: list[bytes] = []

        class Server(socketserver.BaseServer):
            fd = -1

            def fileno(self) -> int:
                return self.fd

            def get_request(self) -> Any:
                data = os.read(self.fd, 100)
                self.open()
                return data, None

            def open(self) -> None:
                if self.fd >= 0:
                    os.close(self.fd)
                self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

            def finish_request(self, request: Any, client_address: Any) -> None:
                received.append(request)

        server = Server(str(path), None)
        server.socket = socket.socket()  # The standard library asks it for its timeout.
        server.open()
        with server.socket, path.open("wb", buffering=0) as writer:
            for number in range(3):
                handling = InThread("handling", server.handle_request)
                wait_until_blocked(handling)
                writer.write(b"%d" % number)
                handling.result()
        server.server_close()
        os.close(server.fd)
        return received

    assert agreed(scenario, loop_name) == [b"0", b"1", b"2"]


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll here")
def test_an_epoll_object_that_is_made_anew(loop_name: LoopName) -> None:
    """All of them have the same inode."""

    def scenario(socketserver: Any) -> list[Any]:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                answer(self, b"served")

        class Server(socketserver.TCPServer):
            watch: Any = None

            def fileno(self) -> int:
                return int((self.watch or self.socket).fileno())

        replies = []
        with Server(LOCAL, Handler) as server:
            for _ in range(3):
                if server.watch is not None:
                    server.watch.close()
                server.watch = select.epoll()
                server.watch.register(server.socket, select.EPOLLIN)
                handling = InThread("handling", server.handle_request)
                wait_until_blocked(handling)
                replies.append(Client(server).reply())
                handling.result()
            server.watch.close()
        return replies

    assert agreed(scenario, loop_name) == [b"served"] * 3


# --- the wake-up descriptor of the program ---


@contextlib.contextmanager
def wakeup_descriptor(near: socket.socket, *, warn: bool) -> Iterator[None]:
    near.setblocking(False)
    outer = signal.set_wakeup_fd(near.fileno(), warn_on_full_buffer=warn)
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)


def test_a_wakeup_descriptor_that_is_closed(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        near, far = socket.socketpair()
        with far, wakeup_descriptor(near, warn=True), socketserver.TCPServer(LOCAL, None) as server:
            near.close()
            server.timeout = 1 * MS
            return [server.handle_request() for _ in range(2)]

    assert agreed(scenario, loop_name) == [None, None]


def test_a_full_wakeup_descriptor(loop_name: LoopName, capfd: pytest.CaptureFixture[str]) -> None:
    """The program has said that this is no reason to warn."""

    def scenario(socketserver: Any) -> str:
        near, far = socket.socketpair()
        handler = signal.signal(signal.SIGUSR1, lambda *_: None)
        try:
            with near, far, wakeup_descriptor(near, warn=False):
                with socketserver.TCPServer(LOCAL, None) as server:
                    server.timeout = 1 * MS
                    server.handle_request()
                with contextlib.suppress(BlockingIOError):
                    while True:
                        near.send(b"." * 4096)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        near.send(b".")
                signal.raise_signal(signal.SIGUSR1)
        finally:
            signal.signal(signal.SIGUSR1, handler)
        return capfd.readouterr().err

    assert agreed(scenario, loop_name) == ""


# --- copies ---


def test_a_copy_of_a_server_that_has_served(loop_name: LoopName) -> None:
    """It is a server of its own, also when the original has gone."""

    def scenario(socketserver: Any) -> list[Any]:
        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                answer(self, self.server.name)

        def ask(server: Any) -> bytes | str:
            with Client(server) as client:
                handling = InThread("handling", server.handle_request)
                reply = client.reply()
                handling.result()
            return reply

        original = socketserver.TCPServer(LOCAL, Handler)
        original.name = b"original"
        replies = [ask(original)]
        with copy.copy(original) as duplicate:
            duplicate.name = b"copy"
            duplicate.socket = socket.create_server(LOCAL)
            replies += [ask(duplicate), ask(original)]
            original.server_close()
            del original
            replies.append(ask(duplicate))
        return replies

    assert agreed(scenario, loop_name) == [b"original", b"copy", b"original", b"copy"]


# --- options ---


def test_a_bad_executor_without_a_hash_is_an_error_of_each_request(loop_name: LoopName) -> None:
    errors: list[Any] = []

    def handle_error(server: Any, request: Any, client_address: Any) -> None:
        errors.append(sys.exc_info()[1])

    with server_of(compat.TCPServer, loop_name, handle_error=handle_error) as server:
        with serving(server, NEVER) as thread:
            wait_until_blocked(thread)
            server.request_executor = ["pool:4"]
            assert [Client(server).reply() for _ in range(2)] == [b"", b""]
            server.request_executor = None
            with HeldClient(server) as client:
                client.begun()
    assert [(type(error), error.value) for error in errors] == [(OptionError, ["pool:4"])] * 2


def test_an_option_that_is_a_property(loop_name: LoopName) -> None:
    """Only a server has its value; that is looked at when it begins to serve."""

    class Server(compat.ThreadingTCPServer):
        most: Any = 1
        timeout = 1 * MS

        @property
        def max_threads(self) -> Any:
            return self.most

        @property
        def when_full(self) -> Any:
            return "wait"

        @property
        def request_executor(self) -> Any:
            return None

    with server_of(Server, loop_name) as server:
        with serving(server, NEVER), HeldClient(server) as client:
            assert client.begun() == "AServer-1"
        server.most = 0
        with pytest.raises(OptionError, match="max_threads=0"):
            server.handle_request()


# --- async handlers ---


class OwnError(BaseException):
    """Of a program that wants nobody to catch it."""


class Raising(compat.AsyncStreamRequestHandler):
    async def handle(self) -> None:
        raise OwnError("from a handler")


@pytest.mark.parametrize("base", [compat.TCPServer, compat.ThreadingTCPServer])
def test_what_is_no_exception_out_of_an_async_handler(
    base: Any, loop_name: LoopName, loop_errors: list[str]
) -> None:
    """It is reported, and the server goes on, as when it ends a thread."""
    with server_of(base, loop_name, Raising) as server, serving(server, NEVER):
        assert [Client(server).reply() for _ in range(2)] == [b"", b""]
        wait_until_blocking(lambda: len(loop_errors) == 2)
    assert all("OwnError: from a handler" in error for error in loop_errors)
    loop_errors.clear()
