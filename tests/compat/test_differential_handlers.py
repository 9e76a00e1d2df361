"""``StreamRequestHandler`` and ``DatagramRequestHandler``: their files, and how they end."""

from __future__ import annotations

import contextlib
import io
import socket
import struct
import sys
import threading
from typing import Any
from unittest import mock

import pytest

from asyncserver import LoopName
from tests.clients import reset_at_close
from tests.compat.support import (
    LOCAL,
    SERVERS,
    Client,
    Trace,
    address_for,
    agreed,
    answer,
    recorded,
    run_turns,
)
from tests.waiting import PATIENCE, wait_until_blocking

SERVER_NAMES = ("TCPServer", "ThreadingTCPServer")


def one_request(
    socketserver: Any,
    handler_class: Any,
    trace: Trace,
    data: bytes | None = None,
    server_name: str = "TCPServer",
) -> None:
    """Serve one client, and note what it receives."""
    server_class = recorded(getattr(socketserver, server_name), Trace())
    with address_for(server_class) as address, server_class(address, handler_class) as server:
        client = Client(server, data)
        if server.socket.type == socket.SOCK_STREAM:
            client.sock.shutdown(socket.SHUT_WR)
        run_turns(server, "serve_forever", 1)
        trace("client", client.reply())


# --- streams ---


@pytest.mark.parametrize("server_name", SERVER_NAMES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rbufsize": 0, "wbufsize": -1},
        {"rbufsize": 16, "wbufsize": 16},
        {"timeout": 5, "disable_nagle_algorithm": True, "wbufsize": 1024},
        {"timeout": 0.0},
    ],
    ids=str,
)
def test_files_and_options_of_a_stream_handler(
    options: dict[str, Any], server_name: str, loop_name: LoopName
) -> None:
    """Looked up when the handler is set up, on its class."""

    def scenario(socketserver: Any) -> list[Any]:
        seen: list[Any] = []

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                request = self.request
                seen.append(
                    [self.connection is request, type(self.rfile).__name__, type(self.wfile).__name__]
                )
                seen.append([request.gettimeout(), request.getblocking()])
                seen.append(request.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                seen.append([self.rfile.readable(), self.wfile.writable(), self.wfile.closed])
                seen.append([self.rfile.fileno(), self.wfile.fileno()] == [request.fileno()] * 2)
                request.settimeout(PATIENCE)
                seen.append(self.rfile.readline())
                seen.append(self.wfile.write(memoryview(struct.pack("2i", 1, 2)).cast("i")))
                self.wfile.write(b"and bytes\n")
                seen.append(self.server.RequestHandlerClass is Handler)

            def finish(self) -> None:
                super().finish()
                seen.append([self.rfile.closed, self.wfile.closed, self.request.fileno() >= 0])

        for name, value in options.items():
            setattr(Handler, name, value)
        trace = Trace()
        one_request(socketserver, Handler, trace, b"hello\n", server_name)
        return [*seen, *trace.events]

    found = agreed(scenario, loop_name)
    timeout = options.get("timeout")
    assert found[0] == [
        True,
        "SocketIO" if options.get("rbufsize") == 0 else "BufferedReader",
        "BufferedWriter" if options.get("wbufsize") else "_SocketWriter",
    ]
    assert found[1:3] == [[timeout, timeout != 0], int(options.get("disable_nagle_algorithm", False))]
    assert found[3:] == [
        [True, True, False],
        True,
        b"hello\n",
        8,
        True,
        [True, True, True],
        ("client", struct.pack("2i", 1, 2) + b"and bytes\n"),
    ]


def test_class_attributes(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        handler = socketserver.StreamRequestHandler
        return [
            getattr(handler, each) for each in ("rbufsize", "wbufsize", "timeout", "disable_nagle_algorithm")
        ]

    assert agreed(scenario, loop_name) == [-1, 0, None, False]


@pytest.mark.parametrize("wbufsize", [0, 1024])
@pytest.mark.parametrize("closed", [(), ("wfile",), ("rfile",), ("wfile", "rfile"), ("request",)])
def test_files_that_the_handler_closes(closed: tuple[str, ...], wbufsize: int, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        size = wbufsize

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            wbufsize = size

            def handle(self) -> None:
                self.wfile.write(b"some bytes")
                for name in closed:
                    getattr(self, name).close()

            def finish(self) -> None:
                trace(self.wfile.closed, self.rfile.closed)
                super().finish()
                trace(self.wfile.closed, self.rfile.closed)

        one_request(socketserver, Handler, trace)
        return trace.events

    assert agreed(scenario, loop_name) == [
        ("wfile" in closed, "rfile" in closed),
        (True, True),
        ("client", b"some bytes"),
    ]


@pytest.mark.parametrize("wbufsize", [0, 1024])
@pytest.mark.parametrize("server_name", SERVER_NAMES)
def test_client_that_is_gone(server_name: str, wbufsize: int, loop_name: LoopName) -> None:
    """The error goes to ``handle_error()``: of a write, or of closing a file that still holds something."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        size = wbufsize

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            wbufsize = size

            def handle(self) -> None:
                trace.requests.append(self.request)
                with contextlib.suppress(ConnectionResetError):
                    self.rfile.read(1)
                self.wfile.write(b"to nobody")

            def finish(self) -> None:
                super().finish()
                trace.requests.append("finished")

        class Server(recorded(getattr(socketserver, server_name), Trace())):  # type: ignore[misc]
            def handle_error(self, request: Any, client_address: Any) -> None:
                error = sys.exc_info()[1]
                trace.requests.append(isinstance(error, OSError))

        with Server(LOCAL, Handler) as server:
            with Client(server) as client:
                reset_at_close(client.sock)
            run_turns(server, "serve_forever", 1)
        return [trace.requests[1:], trace.requests[0].fileno()]

    assert agreed(scenario, loop_name) == [["finished", True] if wbufsize == 0 else [True], -1]


def test_file_that_keeps_the_connection_open(loop_name: LoopName) -> None:
    """``close_request()`` closes the socket when the last file of it is closed, as sockets do."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        kept: list[Any] = []

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                kept.append(self.request.makefile("rb"))
                kept.append(self.request)

        with recorded(socketserver.TCPServer, Trace())(LOCAL, Handler) as server:
            client = Client(server)
            run_turns(server, "serve_forever", 1)
            trace(client.receive())
            client.send(b"still read")
            client.sock.shutdown(socket.SHUT_WR)
            with kept[0] as file:
                trace(file.read())
            trace(kept[1].fileno())
            client.close()
        return trace.events

    assert agreed(scenario, loop_name) == [b"", b"still read", -1]


@pytest.mark.parametrize("replaced", ["_SocketWriter", "own setup"])
def test_writer_of_the_programs_own(replaced: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Shouting(io.BufferedIOBase):
            def __init__(self, sock: Any) -> None:
                trace("made")
                self._sock = sock

            def write(self, data: Any) -> int:
                self._sock.sendall(data.upper())
                return len(data)

            def flush(self) -> None:
                if not self.closed:
                    trace("flush")

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            def setup(self) -> None:
                super().setup()
                if replaced == "own setup":
                    self.wfile = Shouting(self.connection)

            def handle(self) -> None:
                trace(type(self.wfile).__name__, isinstance(self.wfile, socketserver._SocketWriter))
                trace(self.wfile.write(b"quiet"))

        patch = mock.patch.object(socketserver, "_SocketWriter", Shouting)
        with patch if replaced == "_SocketWriter" else contextlib.nullcontext():
            one_request(socketserver, Handler, trace)
        trace(socketserver._SocketWriter.__name__)
        return trace.events

    assert agreed(scenario, loop_name) == [
        "made",
        ("Shouting", replaced == "_SocketWriter"),
        5,
        *["flush"] * 2,
        ("client", b"QUIET"),
        "_SocketWriter",
    ]


def test_socket_writer(loop_name: LoopName) -> None:
    """Also used by programs, by its own name."""

    def scenario(socketserver: Any) -> list[Any]:
        near, far = socket.socketpair()
        with near, far:
            writer = socketserver._SocketWriter(near)
            seen = [
                writer.write(b"bytes"),
                writer.writable(),
                writer.fileno() == near.fileno(),
                writer.closed,
            ]
            writer.close()
            return [*seen, writer.closed, near.fileno() >= 0, far.recv(100), type(writer).__mro__[1].__name__]

    assert agreed(scenario, loop_name) == [
        *(5, True, True, False, True, True),
        *(b"bytes", "BufferedIOBase"),
    ]


def test_large_replies_to_a_slow_client(loop_name: LoopName) -> None:
    """A handler blocks in ``write()`` for as long as the client takes."""

    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        trace = Trace()
        size = 5_000_000

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                trace.requests.append(self.wfile.write(bytes(size)))

        with getattr(socketserver, server_name)(LOCAL, Handler) as server:
            with Client(server) as client:
                thread = threading.Thread(target=server.handle_request)
                thread.start()
                wait_until_blocking(lambda: len(client.sock.recv(1, socket.MSG_PEEK)) > 0)
                trace(trace.requests == [])
                received = 0
                while data := client.receive():
                    received += len(data)
                trace(received)
            thread.join(PATIENCE)
        return [*trace.events, *trace.requests]

    for server_name in SERVER_NAMES:
        assert agreed(scenario, loop_name, server_name) == [True, 5_000_000, 5_000_000]


# --- datagrams ---


@pytest.mark.parametrize("server_name", [*SERVERS[1::2], "ThreadingUDPServer", "ThreadingUnixDatagramServer"])
def test_files_of_a_datagram_handler(server_name: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        seen: list[Any] = []

        class Handler(socketserver.DatagramRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                seen.append([self.packet, self.socket is self.server.socket, self.request[1] is self.socket])
                seen.append([type(self.rfile).__name__, type(self.wfile).__name__])
                seen.append([self.rfile.readline(), self.rfile.read()])
                self.wfile.write(b"one, ")
                self.wfile.write(b"two")

            def finish(self) -> None:
                seen.append("finish")
                super().finish()

        one_request(socketserver, Handler, trace, b"a line\nand more", server_name)
        return [*seen, *trace.events]

    assert agreed(scenario, loop_name) == [
        [b"a line\nand more", True, True],
        ["BytesIO", "BytesIO"],
        [b"a line\n", b"and more"],
        "finish",
        ("client", b"one, two"),
    ]


def test_datagram_handler_always_answers(loop_name: LoopName) -> None:
    """With an empty datagram if nothing was written, and also when it has failed."""

    def scenario(socketserver: Any, error: Exception | None) -> list[Any]:
        trace = Trace({} if error is None else {"handle": error})

        class Handler(socketserver.DatagramRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                trace.step("handle")

        server_class = recorded(socketserver.UDPServer, trace)
        with server_class(LOCAL, Handler) as server:
            client = Client(server)
            run_turns(server, "serve_forever", 1)
            trace(client.reply())
        return trace.events[6:]

    end = ["shutdown_request", "close_request", "service_actions", b"", "server_close"]
    assert agreed(scenario, loop_name, None) == ["handle", *end]
    assert agreed(scenario, loop_name, LookupError()) == ["handle", ("handle_error", "LookupError"), *end]


# --- handlers in general ---


@pytest.mark.parametrize("base", ["BaseRequestHandler", "StreamRequestHandler", "none"])
def test_constructor_of_the_handlers_own(base: str, loop_name: LoopName) -> None:
    """All that a server asks of a handler class is to be called with three arguments."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        parent = getattr(socketserver, base, object)

        class Handler(parent):  # type: ignore[misc]
            def __init__(self, *args: Any) -> None:
                trace(len(args), args[2] is not None)
                if parent is object:
                    args[0].sendall(b"handled")
                else:
                    super().__init__(*args)
                    trace(self.request is args[0], self.client_address is args[1], self.server is args[2])

            def handle(self) -> None:
                self.request.sendall(b"handled")

        one_request(socketserver, Handler, trace)
        return trace.events

    attributes = [] if base == "none" else [(True, True, True)]
    assert agreed(scenario, loop_name) == [(3, True), *attributes, ("client", b"handled")]


@pytest.mark.parametrize("server_name", [*SERVERS, "ThreadingTCPServer"])
def test_handler_without_a_class(server_name: str, loop_name: LoopName) -> None:
    """A function, or what ``functools.partial`` makes of a class."""
    from functools import partial

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def __init__(self, *args: Any, word: bytes) -> None:
                self.word = word
                super().__init__(*args)

            def handle(self) -> None:
                answer(self, self.word)

        def function(request: Any, client_address: Any, server: Any) -> None:
            Handler(request, client_address, server, word=b"a function")

        for handler in (function, partial(Handler, word=b"a partial")):
            one_request(socketserver, handler, trace, server_name=server_name)
        return trace.events

    assert agreed(scenario, loop_name) == [("client", b"a function"), ("client", b"a partial")]


def test_steps_of_a_handler_that_fails(loop_name: LoopName) -> None:
    """``finish()`` follows ``handle()`` whatever happens in it, and not a ``setup()`` that has failed."""

    def scenario(socketserver: Any) -> list[Any]:
        seen = []
        for stage in ("setup", "handle", "finish"):
            trace = Trace({stage: ValueError("on purpose")})

            class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
                def setup(self) -> None:
                    trace.step("setup")  # noqa: B023
                    super().setup()

                def handle(self) -> None:
                    trace.step("handle")  # noqa: B023

                def finish(self) -> None:
                    super().finish()
                    trace.step("finish")  # noqa: B023

            with recorded(socketserver.TCPServer, trace)(LOCAL, Handler) as server:
                with Client(server):
                    server.handle_request()
            seen.append(trace.events[6:-3])
        return seen

    assert agreed(scenario, loop_name) == [
        ["setup", ("handle_error", "ValueError")],
        ["setup", "handle", "finish", ("handle_error", "ValueError")],
        ["setup", "handle", "finish", ("handle_error", "ValueError")],
    ]
