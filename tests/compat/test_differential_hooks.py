"""The hooks of a server are called as the standard library calls them: in its order, errors included.

What runs here runs in one thread. The clients have connected before anybody serves them, where nothing else
is said: then a server finds them without waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import sys
import tempfile
from typing import Any

import pytest

from asyncserver import LoopName
from tests.compat.support import (
    ARRIVALS,
    ENTRIES,
    LOCAL,
    POLL_INTERVAL,
    SERVERS,
    Client,
    InThread,
    Trace,
    address_for,
    agreed,
    arriving,
    blocks,
    noted_handler,
    recorded,
    run_turns,
)
from tests.waiting import PATIENCE

HANDLING = ["get_request", "verify_request", "process_request", "finish_request", "setup", "handle", "finish"]
CLOSING = ["shutdown_request", "close_request"]


# --- nothing goes wrong ---


def all_hooks(socketserver: Any, server_name: str, entry: str, arrival: str) -> list[Any]:
    trace = Trace()
    server_class = recorded(getattr(socketserver, server_name), trace)
    with (
        address_for(server_class) as address,
        server_class(address, noted_handler(socketserver, trace)) as server,
    ):
        clients = arriving(server, 3, arrival)
        run_turns(server, entry, 3)
        trace(*(client.reply() for client in clients()))
    return trace.events


@pytest.mark.parametrize("server_name", SERVERS)
@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("arrival", ARRIVALS)
def test_order_of_the_hooks(server_name: str, entry: str, arrival: str, loop_name: LoopName) -> None:
    turn = [*HANDLING, *CLOSING, *(["service_actions"] if entry != "handle_request" else [])]
    assert agreed(all_hooks, loop_name, server_name, entry, arrival) == [
        "server_bind",
        "server_activate",
        *turn,
        *turn,
        *turn,
        (b"served", b"served", b"served"),
        "server_close",
    ]


@pytest.mark.parametrize("server_name", SERVERS)
def test_refused_request_is_closed_and_not_handled(server_name: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Choosy(getattr(socketserver, server_name)):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                return len(trace.requests) > 1

        server_class = recorded(Choosy, trace)
        with (
            address_for(server_class) as address,
            server_class(address, noted_handler(socketserver, trace)) as server,
        ):
            refused, served = Client(server), Client(server)
            run_turns(server, "serve_forever", 2)
            if server.socket_type == socket.SOCK_STREAM:
                trace(refused.reply())
            refused.close()
            trace(served.reply())
        return trace.events[2:]

    refused = ["get_request", "verify_request", *CLOSING, "service_actions"]
    served = [*HANDLING, *CLOSING, "service_actions"]
    end = [b"", b"served"] if "Stream" in server_name or server_name == "TCPServer" else [b"served"]
    assert agreed(scenario, loop_name) == [*refused, *served, *end, "server_close"]


@pytest.mark.parametrize("poll_interval", [PATIENCE, None])
def test_service_actions_follow_every_request(poll_interval: float | None, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(socketserver.TCPServer, trace)
        server_class.request_queue_size = 20
        with server_class(LOCAL, socketserver.BaseRequestHandler) as server:
            clients = [Client(server) for _ in range(20)]
            server.turns = 20
            server.serve_forever(poll_interval)
            trace({client.reply() for client in clients})
        return [event for event in trace.events if event in ("get_request", "service_actions", {b""})]

    assert agreed(scenario, loop_name) == [*["get_request", "service_actions"] * 20, {b""}]


def test_waiting_is_no_turn(loop_name: LoopName) -> None:
    """One call for each request that wakes a server, and none in between."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        def handler(request: Any, client_address: Any, server: Any) -> None:
            server._BaseServer__shutdown_request = request.recv(100) == b"last"

        with recorded(socketserver.TCPServer, trace)(LOCAL, handler) as server:
            thread = InThread("serving", server.serve_forever, PATIENCE)
            for word in (b"one", b"two", b"three", b"last"):
                assert blocks(thread)
                assert Client(server, word).reply() == b""
            thread.result()
        return trace.by_thread()["serving"]

    turn = ["get_request", "verify_request", "process_request", "finish_request", *CLOSING, "service_actions"]
    assert agreed(scenario, loop_name) == turn * 4


def test_service_actions_without_requests(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.TCPServer, trace)(LOCAL, None) as server:
            server.turns = 3
            server.serve_forever(POLL_INTERVAL)
            server.turns = 2
            server.serve_forever(0)
            server.turns = 1
            server.serve_forever(poll_interval=-1)
        return trace.events

    assert agreed(scenario, loop_name) == [
        "server_bind",
        "server_activate",
        *["service_actions"] * 6,
        "server_close",
    ]


def test_constructor_alone_calls_no_hook(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.TCPServer, trace)(LOCAL, None, bind_and_activate=False) as server:
            trace(server.server_address, server.socket.getsockname()[1] == 0)
            server.server_bind()
            trace(server.server_address == server.socket.getsockname())
            server.server_activate()
        return trace.events

    assert agreed(scenario, loop_name) == [
        (LOCAL, True),
        "server_bind",
        True,
        "server_activate",
        "server_close",
    ]


@pytest.mark.parametrize("stage", ["server_bind", "server_activate"])
def test_constructor_that_fails_closes_the_server(stage: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        events: list[Any] = []
        for error in (OSError("on purpose"), KeyboardInterrupt()):
            trace = Trace({stage: error})
            trace(trace.call(recorded(socketserver.TCPServer, trace), LOCAL, None) is error)
            events.append(trace.events[-3:])
        return events

    assert agreed(scenario, loop_name) == [
        ["server_close", ("raised", "OSError"), True],
        ["server_close", ("raised", "KeyboardInterrupt"), True],
    ]


# --- something raises ---

ERRORS = (
    ValueError,
    OSError,
    TimeoutError,
    StopIteration,
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
)

STAGES = (
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "setup",
    "handle",
    "finish",
    "shutdown_request",
    "close_request",
    "service_actions",
)


def failing(
    socketserver: Any, entry: str, stage: str, error_type: type[BaseException], arrival: str = "before"
) -> list[Any]:
    """Two clients; at the first one's ``stage`` it happens, and the server goes on with the second."""
    error = error_type("on purpose")
    trace = Trace({stage: error})
    server_class = recorded(socketserver.TCPServer, trace)
    with server_class(LOCAL, noted_handler(socketserver, trace)) as server:
        clients = arriving(server, 2, arrival)
        while (left := 2 - len(trace.requests)) > 0:
            raised = trace.call(run_turns, server, entry, left)
            assert raised in (None, error)
            trace(server._BaseServer__shutdown_request, server._BaseServer__is_shut_down.is_set())
        trace(trace.close_requests())
        trace([client.reply() for client in clients()])
    return trace.events[2:]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("stage", STAGES)
def test_error_at_any_stage(stage: str, entry: str, loop_name: LoopName) -> None:
    for error_type in ERRORS:
        events = agreed(failing, loop_name, entry, stage, error_type)
        assert events[-2][-1] == b"served"
        assert (stage in events) == ((stage, entry) != ("service_actions", "handle_request"))


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
@pytest.mark.parametrize("stage", STAGES)
def test_error_after_waiting(stage: str, entry: str, loop_name: LoopName) -> None:
    for error_type in (ValueError, OSError, KeyboardInterrupt):
        expected = agreed(failing, loop_name, entry, stage, error_type)
        assert agreed(failing, loop_name, entry, stage, error_type, "while it waits") == expected


@pytest.mark.parametrize("error_type", ERRORS)
def test_error_of_a_handler(error_type: type[BaseException], loop_name: LoopName) -> None:
    served = [*HANDLING, *CLOSING, "service_actions", (False, True)]
    if issubclass(error_type, Exception):
        first = [*HANDLING, ("handle_error", error_type.__name__), *CLOSING, "service_actions"]
    else:
        first = [*HANDLING, *CLOSING, ("raised", error_type.__name__), (False, True)]
    assert agreed(failing, loop_name, "serve_forever", "handle", error_type) == [
        *first,
        *served,
        ["closed", "closed"],
        [b"", b"served"],
        "server_close",
    ]


def test_error_of_get_request(loop_name: LoopName) -> None:
    def events(error_type: type[BaseException]) -> Any:
        return agreed(failing, loop_name, "serve_forever", "get_request", error_type)

    served = [*HANDLING, *CLOSING, "service_actions"]
    ignored = ["get_request", "service_actions", *served, (False, True), *served, (False, True)]
    raised = ["get_request", ("raised", "ValueError"), (False, True), *served, *served, (False, True)]
    end = [["closed", "closed"], [b"served", b"served"], "server_close"]
    assert events(OSError) == events(TimeoutError) == [*ignored, *end]
    assert events(ValueError) == [*raised, *end]


def test_error_of_verify_request_leaves_the_request_open(loop_name: LoopName) -> None:
    for error_type in (OSError, KeyboardInterrupt):
        assert agreed(failing, loop_name, "serve_forever", "verify_request", error_type) == [
            "get_request",
            "verify_request",
            ("raised", error_type.__name__),
            (False, True),
            *HANDLING,
            *CLOSING,
            "service_actions",
            (False, True),
            ["open", "closed"],
            [b"", b"served"],
            "server_close",
        ]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("how", ["raise", "another", "from", "interrupt"])
def test_error_of_handle_error(how: str, entry: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        error = ValueError("on purpose")
        trace = Trace({"handle": error})

        class Strict(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def handle_error(self, request: Any, client_address: Any) -> None:
                kind, value, traceback = sys.exc_info()
                trace(kind is ValueError, value is error, traceback is error.__traceback__)
                if how == "raise":
                    raise  # noqa: PLE0704
                if how == "another":
                    raise LookupError("another")
                if how == "from":
                    raise LookupError("another") from value
                raise KeyboardInterrupt

        with Strict(LOCAL, noted_handler(socketserver, trace)) as server:
            with Client(server):
                raised = trace.call(run_turns, server, entry, 1)
            trace(raised is error, raised.__context__ is error, raised.__cause__ is error)
            trace(trace.close_requests())
        return trace.events[2:]

    kind = {"raise": "ValueError", "interrupt": "KeyboardInterrupt"}.get(how, "LookupError")
    assert agreed(scenario, loop_name) == [
        *HANDLING,
        (True, True, True),
        ("raised", kind),
        (how == "raise", how != "raise", how == "from"),
        ["open"],
        "server_close",
    ]


def test_what_handle_error_prints(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace({"handle": ValueError("on purpose")})
        with (
            socketserver.TCPServer(LOCAL, noted_handler(socketserver, trace)) as server,
            Client(server) as client,
            contextlib.redirect_stderr(io.StringIO()) as printed,
        ):
            server.handle_request()
            lines = printed.getvalue().replace(str(client.name), "CLIENT").splitlines()
        return [*lines[:3], *lines[-2:]]

    assert agreed(scenario, loop_name) == [
        "-" * 40,
        "Exception occurred during processing of request from CLIENT",
        "Traceback (most recent call last):",
        "ValueError: on purpose",
        "-" * 40,
    ]


# --- hooks that are not those of a class ---


@pytest.mark.parametrize("entry", ENTRIES)
def test_hooks_replaced_while_serving(entry: str, loop_name: LoopName) -> None:
    """They are looked up on the instance, each time."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Replacing(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                server = self.server
                for name in ("verify_request", "process_request", "finish_request", *CLOSING):
                    setattr(server, name, noting(name, getattr(server, name)))
                for name in ("get_request", "_handle_request_noblock", "service_actions"):
                    setattr(server, name, noting(name, getattr(server, name)))
                server.RequestHandlerClass = lambda request, address, server: request.send(b"by a function")

        def noting(name: str, hook: Any) -> Any:
            def call(*args: Any) -> Any:
                trace(f"own {name}")
                return hook(*args)

            return call

        with recorded(socketserver.TCPServer, trace)(LOCAL, Replacing) as server:
            clients = [Client(server) for _ in range(2)]
            run_turns(server, entry, 2)
            trace(*(client.reply() for client in clients))
        return trace.events[2:]

    def own(*names: str) -> list[str]:
        return [each for name in names for each in (f"own {name}", name)]

    serviced = entry != "handle_request"
    assert agreed(scenario, loop_name) == [
        *HANDLING[:4],
        "own shutdown_request",
        "shutdown_request",
        "own close_request",
        "close_request",
        *(own("service_actions") if serviced else []),
        "own _handle_request_noblock",
        *own(*HANDLING[:4], *CLOSING),
        *(own("service_actions") if serviced else []),
        (b"", b"by a function"),
        "server_close",
    ]


@pytest.mark.parametrize("entry", ENTRIES)
def test_handle_request_noblock_extended(entry: str, loop_name: LoopName) -> None:
    """Every way of serving goes through it, and ``handle_request()`` returns what it returns."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Extended(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def _handle_request_noblock(self) -> str:
                trace("before")
                trace(super()._handle_request_noblock())
                return "a value"

        with Extended(LOCAL, noted_handler(socketserver, trace)) as server:
            if entry == "handle_request":
                with Client(server):
                    trace(server.handle_request())
            else:
                with Client(server):
                    run_turns(server, entry, 1)
        return trace.events[2:]

    assert agreed(scenario, loop_name) == [
        "before",
        *HANDLING,
        *CLOSING,
        None,
        "a value" if entry == "handle_request" else "service_actions",
        "server_close",
    ]


def test_requests_and_addresses_may_be_anything(loop_name: LoopName) -> None:
    """A request that is no socket, from an address that can be neither printed nor compared."""

    class Untouchable:
        def _refuse(self, *_: object) -> Any:
            raise AssertionError("nobody has to know")

        __repr__ = __str__ = __eq__ = __hash__ = __bool__ = __len__ = _refuse  # type: ignore[assignment]

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        address, wrapper = Untouchable(), Untouchable()

        class Odd(socketserver.TCPServer):  # type: ignore[misc]
            def get_request(self) -> Any:
                self.socket.accept()[0].close()
                return wrapper, address

            def finish_request(self, request: Any, client_address: Any) -> None:
                trace(request is wrapper, client_address is address)
                raise ValueError("on purpose")

            def handle_error(self, request: Any, client_address: Any) -> None:
                trace(request is wrapper, client_address is address)

            def shutdown_request(self, request: Any) -> None:
                trace(request is wrapper)

        with Odd(LOCAL, None) as server, Client(server):
            server.handle_request()
        return trace.events

    assert agreed(scenario, loop_name) == [(True, True), (True, True), True]


@pytest.mark.parametrize("entry", ENTRIES)
def test_server_without_a_handler_class(entry: str, loop_name: LoopName) -> None:
    """Where ``finish_request()`` is the program's own, nobody asks for it."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Own(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def finish_request(self, request: Any, client_address: Any) -> None:
                request.sendall(b"without")

        with Own(LOCAL, None) as server:
            del server.RequestHandlerClass
            client = Client(server)
            run_turns(server, entry, 1)
            trace(client.reply())
        return trace.events[2:]

    expected = ["get_request", "verify_request", "process_request", *CLOSING]
    if entry != "handle_request":
        expected.append("service_actions")
    assert agreed(scenario, loop_name) == [*expected, b"without", "server_close"]


def test_server_that_never_called_the_constructor(loop_name: LoopName) -> None:
    """It lacks the state of ``serve_forever()``; ``handle_request()`` needs a socket and no more."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Bare(socketserver.BaseServer):  # type: ignore[misc]
            def __init__(self, sock: socket.socket) -> None:
                self.socket = sock
                self.RequestHandlerClass = lambda request, address, server: trace(request, address)

            def fileno(self) -> int:
                return self.socket.fileno()

            def get_request(self) -> Any:
                return self.socket.recv(100), "somebody"

        near, far = socket.socketpair()
        with near, far, Bare(near) as server:
            far.send(b"one")
            trace(server.handle_request())
            trace.call(server.serve_forever)
            trace.call(server.shutdown)
            far.send(b"two")
            server.handle_request()
        return trace.events

    assert agreed(scenario, loop_name) == [
        (b"one", "somebody"),
        None,
        ("raised", "AttributeError"),
        ("raised", "AttributeError"),
        (b"two", "somebody"),
    ]


# --- what a server waits for ---


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", ["pipe", "file"])
def test_server_on_another_kind_of_descriptor(kind: str, entry: str, loop_name: LoopName) -> None:
    """``fileno()`` says what is waited for; a regular file is always ready, though epoll refuses it."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with tempfile.TemporaryFile() as file, contextlib.ExitStack() as stack:
            if kind == "pipe":
                readable, writable = os.pipe()
                stack.callback(os.close, readable)
                stack.callback(os.close, writable)
            else:
                readable = writable = file.fileno()
            os.write(writable, b"onetwo")
            file.seek(0)

            class Reading(socketserver.BaseServer):  # type: ignore[misc]
                socket = mock_socket()

                def fileno(self) -> int:
                    return readable

                def get_request(self) -> Any:
                    return os.read(readable, 3), "somebody"

            server_class = recorded(Reading, trace)
            server = server_class("nowhere", lambda request, address, server: trace(request))
            run_turns(server, entry, 2)
            server.server_close()
        return trace.events

    turns: list[Any] = []
    for word in (b"one", b"two"):
        turns += [*HANDLING[:4], word, *CLOSING]
        turns += [] if entry == "handle_request" else ["service_actions"]
    assert agreed(scenario, loop_name) == [*turns, "server_close"]


def mock_socket() -> Any:
    """All that ``handle_request()`` asks of ``server.socket``."""

    class NoTimeout:
        def gettimeout(self) -> None:
            return None

    return NoTimeout()


@pytest.mark.parametrize("fileno", [-1, "none", None, AttributeError("no socket"), OSError("no file")])
def test_server_that_cannot_be_waited_for(fileno: Any, loop_name: LoopName) -> None:
    """A closed socket, or no descriptor at all."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Odd(socketserver.TCPServer):  # type: ignore[misc]
            def fileno(self) -> Any:
                if isinstance(fileno, Exception):
                    raise fileno
                return fileno

        with recorded(Odd, trace)(LOCAL, None) as server:
            for call in (server.handle_request, server.serve_forever):
                trace(str(trace.call(call)).partition(":")[0])
            trace(server._BaseServer__is_shut_down.is_set(), server._BaseServer__shutdown_request)
        return trace.events[2:]

    if isinstance(fileno, OSError):
        error = [("raised", "OSError"), "no file"]
    else:
        error = [("raised", "ValueError"), f"Invalid file {'descriptor' if fileno == -1 else 'object'}"]
    assert agreed(scenario, loop_name) == [*error, *error, (True, False), "server_close"]


# --- within each other ---


def test_request_handled_within_a_request(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Nested(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                word = self.request.recv(100)
                trace("begin", word)
                if word == b"outer":
                    trace(self.server.handle_request())
                trace("end", word)
                self.request.sendall(word)

        with recorded(socketserver.TCPServer, trace)(LOCAL, Nested) as server:
            clients = [Client(server, b"outer"), Client(server, b"inner"), Client(server, b"after")]
            run_turns(server, "serve_forever", 2)
            trace(*(client.reply() for client in clients))
        return [event for event in trace.events if not isinstance(event, str)]

    assert agreed(scenario, loop_name) == [
        ("begin", b"outer"),
        ("begin", b"inner"),
        ("end", b"inner"),
        None,
        ("end", b"outer"),
        ("begin", b"after"),
        ("end", b"after"),
        (b"outer", b"inner", b"after"),
    ]


def test_server_served_within_a_request_of_another(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace, inner_trace = Trace(), Trace()
        server_class = recorded(socketserver.TCPServer, inner_trace)

        class Outer(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                with server_class(LOCAL, noted_handler(socketserver, inner_trace, b"inner")) as inner:
                    client = Client(inner)
                    run_turns(inner, "serve_forever", 1)
                    trace(client.reply())
                self.request.sendall(b"outer")

        with recorded(socketserver.TCPServer, trace)(LOCAL, Outer) as server:
            client = Client(server)
            run_turns(server, "serve_forever", 1)
            trace(client.reply())
        return [trace.events[2:], inner_trace.events[2:]]

    outer = [*HANDLING[:4], b"inner", *CLOSING, "service_actions", b"outer", "server_close"]
    inner = [*HANDLING, *CLOSING, "service_actions", "server_close"]
    assert agreed(scenario, loop_name) == [outer, inner]
