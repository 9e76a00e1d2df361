"""The ways in which serving ends: ``shutdown()`` in every state, its private names, and closing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from asyncserver import LoopName
from tests.compat.support import (
    LOCAL,
    POLL_INTERVAL,
    Client,
    InThread,
    Trace,
    agreed,
    blocks,
    noted_handler,
    recorded,
    run_turns,
    serving,
)
from tests.processes import run_python
from tests.waiting import PATIENCE, wait_until_blocking

FLAG = "_BaseServer__shutdown_request"


def state(server: Any) -> tuple[bool, bool]:
    """Whether the end is asked for, and whether the server counts as not serving."""
    return server._BaseServer__shutdown_request, server._BaseServer__is_shut_down.is_set()


class Held:
    """A handler that says when it has begun, and ends when it is told to."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.begun = threading.Event()
        self.release = threading.Event()

    def __call__(self, request: Any, client_address: Any, server: Any) -> None:
        self.trace("handler begins")
        self.begun.set()
        self.release.wait(PATIENCE)
        self.trace("handler ends")


# --- shutdown() ---


def test_states_of_a_server(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(socketserver.TCPServer):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                trace("serving", state(self))
                return True

        with Server(LOCAL, noted_handler(socketserver, trace)) as server:
            trace("made", state(server))
            for _ in range(2):
                with serving(server):
                    trace(Client(server).reply())
                trace("shut down", state(server))
            server.shutdown()  # Nobody serves: it returns, and is remembered.
            trace("shut down late", state(server))
            client = Client(server)
            server.serve_forever()
            trace("served not at all", state(server))
            with serving(server):
                trace(client.reply())
            trace("closing", state(server))
        trace("closed", state(server))
        return [event for event in trace.events if event[1] not in ("setup", "handle", "finish")]

    serves = [("serving", ("serving", (False, False))), b"served"]
    assert agreed(scenario, loop_name) == [
        ("made", (False, False)),
        *serves,
        ("shut down", (False, True)),
        *serves,
        ("shut down", (False, True)),
        ("shut down late", (True, True)),
        ("served not at all", (False, True)),
        *serves,
        ("closing", (False, True)),
        ("closed", (False, True)),
    ]


def test_shutdown_before_serving(loop_name: LoopName) -> None:
    """It waits for somebody to serve, and that ends at once."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.TCPServer, trace)(LOCAL, None) as server, Client(server) as client:
            shutdown = InThread("shutdown", server.shutdown)
            trace("waits:", blocks(shutdown), state(server))
            trace(server.serve_forever(PATIENCE), state(server))
            trace(shutdown.result())
            server.server_close()
            trace(client.reply())
        return trace.events[2:-1]

    assert agreed(scenario, loop_name) == [
        ("waits:", True, (True, False)),
        (None, (False, True)),
        None,
        "server_close",
        "reset",
    ]


@pytest.mark.parametrize("times", [1, 3])
def test_shutdown_during_a_request(times: int, loop_name: LoopName) -> None:
    """It waits for the request, and for the rest of the turn; the next request is left alone."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        held = Held(trace)
        with recorded(socketserver.TCPServer, trace)(LOCAL, held) as server:
            clients = [Client(server) for _ in range(2)]
            thread = InThread("serving", server.serve_forever, PATIENCE)
            held.begun.wait(PATIENCE)
            shutdowns = [InThread(f"shutdown {number}", server.shutdown) for number in range(times)]
            trace("wait:", [blocks(each) for each in shutdowns], state(server))
            held.release.set()
            trace([each.result() for each in (*shutdowns, thread)], state(server))
            trace(clients[0].reply())
            server.server_close()
            trace(clients[1].reply())
        return trace.events[2:-1]

    def serving_thread(*hooks: str) -> list[Any]:
        return [("serving", hook) for hook in hooks]

    assert agreed(scenario, loop_name) == [
        *serving_thread(
            "get_request", "verify_request", "process_request", "finish_request", "handler begins"
        ),
        ("wait:", [True] * times, (True, False)),
        *serving_thread("handler ends", "shutdown_request", "close_request", "service_actions"),
        ([None] * (times + 1), (False, True)),
        b"",
        "server_close",
        "reset",
    ]


@pytest.mark.parametrize("who", ["the thread of a request", "a thread of the handler's", "service_actions"])
def test_shutdown_by_the_server_itself(who: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        own: list[InThread] = []

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                if who == "the thread of a request":
                    self.server.shutdown()
                    trace.requests.append(state(self.server))
                elif who == "a thread of the handler's":
                    own.append(InThread("own", self.server.shutdown))
                self.request.sendall(b"going down")

        class Server(getattr(socketserver, "ThreadingTCPServer" if "request" in who else "TCPServer")):  # type: ignore[misc]
            def service_actions(self) -> None:
                if who == "service_actions" and not own:
                    own.append(InThread("own", self.shutdown))

        with Server(LOCAL, Handler) as server:
            client = Client(server)
            thread = InThread("serving", server.serve_forever, POLL_INTERVAL)
            if who != "service_actions":
                trace(client.reply())
            trace(thread.result(), [each.result() for each in own], state(server))
            client.close()
        return [*trace.events, *trace.requests]

    with_reply = [] if who == "service_actions" else [b"going down"]
    threads: list[Any] = [] if who == "the thread of a request" else [None]
    seen = [(False, True)] if who == "the thread of a request" else []
    assert agreed(scenario, loop_name) == [*with_reply, (None, threads, (False, True)), *seen]


def test_shutdown_in_server_close(loop_name: LoopName) -> None:
    """Closing a server that another thread serves is how many programs end."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def server_close(self) -> None:
                trace("shutdown")
                self.shutdown()
                super().server_close()

        with Server(LOCAL, noted_handler(socketserver, trace)) as server:
            thread = InThread("serving", server.serve_forever, POLL_INTERVAL)
            trace(Client(server).reply())
        trace(thread.result(), state(server))
        return [
            event for event in trace.events[2:] if not (isinstance(event, tuple) and event[0] == "serving")
        ]

    assert agreed(scenario, loop_name) == [b"served", "shutdown", "server_close", (None, (False, True))]


def test_shutdown_extended_to_close_the_clients(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        held: list[socket.socket] = []

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                held.append(self.request)
                trace(self.request.recv(100))

        class Server(socketserver.ThreadingTCPServer):  # type: ignore[misc]
            def shutdown(self) -> None:
                super().shutdown()
                for each in held:
                    each.shutdown(socket.SHUT_RDWR)

        with Server(LOCAL, Handler) as server:
            with serving(server):
                client = Client(server)
                wait_until_blocking(lambda: held)
            trace(client.reply())
        return sorted(trace.by_thread().items())

    assert agreed(scenario, loop_name) == [("", [b""]), ("thread 1", [b""])]


# --- the flag ---

WAYS: dict[str, Callable[[Any], None]] = {
    "attribute": lambda server: setattr(server, FLAG, True),
    "vars": lambda server: vars(server).update({FLAG: True}),
    "__dict__": lambda server: server.__dict__.__setitem__(FLAG, True),
    "object.__setattr__": lambda server: object.__setattr__(server, FLAG, True),
    "a true value": lambda server: setattr(server, FLAG, "please"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", ["handler", "another thread"])
def test_flag_is_honoured(who: str, way: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        stop = WAYS[way]

        def handler(request: Any, client_address: Any, server: Any) -> None:
            if who == "handler":
                stop(server)
                trace(bool(vars(server)[FLAG]), bool(getattr(server, FLAG)))

        with socketserver.TCPServer(LOCAL, handler) as server:
            clients = [Client(server) for _ in range(2)]
            poll_interval = PATIENCE if who == "handler" else POLL_INTERVAL
            thread = InThread("serving", server.serve_forever, poll_interval)
            trace(clients[0].reply())
            if who == "another thread":
                trace(clients[1].reply())
                stop(server)
            trace(thread.result(), state(server), vars(server)[FLAG])
            clients[1].close()
        return trace.events

    seen = [("serving", (True, True)), b""] if who == "handler" else [b"", b""]
    found = agreed(scenario, loop_name)
    assert sorted(map(str, found)) == sorted(map(str, [*seen, (None, (False, True), False)]))


@pytest.mark.parametrize("where", ["handler", "verify_request", "service_actions"])
def test_flag_taken_back(where: str, loop_name: LoopName) -> None:
    """Nothing looks at it before the turn is over."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        def stop_and_go(here: str, server: Any) -> None:
            if here == where:
                server._BaseServer__shutdown_request = True
                trace(server._BaseServer__shutdown_request)
                server._BaseServer__shutdown_request = False

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                stop_and_go("verify_request", self)
                return True

            def service_actions(self) -> None:
                if self.turns > 1:
                    stop_and_go("service_actions", self)
                super().service_actions()

        with Server(LOCAL, lambda *args: stop_and_go("handler", args[2])) as server:
            clients = [Client(server) for _ in range(3)]
            run_turns(server, "serve_forever", 3)
            trace(*(client.reply() for client in clients), state(server))
        return [event for event in trace.events if event in (True, "get_request") or isinstance(event, tuple)]

    turn = {
        "handler": ["get_request", True] * 3,
        "verify_request": ["get_request", True] * 3,
        "service_actions": [*["get_request", True] * 2, "get_request"],
    }
    assert agreed(scenario, loop_name) == [*turn[where], (b"", b"", b"", (False, True))]


def test_flag_is_an_attribute_like_any_other(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with socketserver.TCPServer(LOCAL, None) as server:
            trace(FLAG in vars(server), getattr(server, FLAG))
            setattr(server, FLAG, "a value")
            trace(vars(server)[FLAG], getattr(server, FLAG))
            trace(server.serve_forever(PATIENCE))
            trace(vars(server)[FLAG])
            delattr(server, FLAG)
            trace(FLAG in vars(server))
            trace.call(delattr, server, FLAG)
            vars(server)[FLAG] = "another"
            trace(getattr(server, FLAG))
        return trace.events

    assert agreed(scenario, loop_name) == [
        (True, False),
        ("a value", "a value"),
        None,
        False,
        False,
        ("raised", "AttributeError"),
        "another",
    ]


@pytest.mark.parametrize("base", ["BaseServer", "TCPServer", "own"])
def test_private_names_mocked_on_a_class(base: str, loop_name: LoopName) -> None:
    """As tests of programs do with servers whose constructor they leave out."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def __init__(self, sock: socket.socket) -> None:
                self.socket = sock
                self.RequestHandlerClass = noted_handler(socketserver, trace)

        event = mock.Mock()
        event.clear.side_effect = lambda: trace("clear")
        event.set.side_effect = lambda: trace("set")
        event.wait.side_effect = lambda: trace("wait")
        owner = Server if base == "own" else getattr(socketserver, base)
        with (
            mock.patch.object(owner, "_BaseServer__is_shut_down", event, create=True),
            mock.patch.object(owner, FLAG, False, create=True),
            Server(socket.create_server(LOCAL)) as server,
        ):
            client = Client(server)
            run_turns(server, "serve_forever", 1)
            trace(client.reply())
            server.shutdown()
            trace(vars(server)[FLAG])
        return trace.events

    assert agreed(scenario, loop_name) == [
        "clear",
        *("get_request", "verify_request", "process_request", "finish_request", "setup", "handle", "finish"),
        *("shutdown_request", "close_request", "service_actions"),
        "set",
        b"served",
        "wait",
        True,
        "server_close",
    ]


def test_event_of_the_programs_own(loop_name: LoopName) -> None:
    """``_BaseServer__is_shut_down`` is looked up when it is used; others wait for it, too."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with socketserver.TCPServer(LOCAL, None) as server:
            own = server._BaseServer__is_shut_down = threading.Event()
            own.set()
            thread = InThread("serving", server.serve_forever, POLL_INTERVAL)
            trace(wait_until_blocking(lambda: not own.is_set()))
            waiting = InThread("waiting", own.wait)
            server._BaseServer__shutdown_request = True
            trace(waiting.result(), thread.result(), own.is_set())
        return trace.events

    assert agreed(scenario, loop_name) == [True, (True, None, True)]


# --- the socket ---


@pytest.mark.parametrize("who", ["another thread", "handler"])
def test_server_closed_while_it_serves(who: str, loop_name: LoopName) -> None:
    """It goes on without requests, until it is told to stop."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                if who == "handler":
                    self.server.server_close()
                    self.server.turns = 4  # This turn's, and three after it.
                self.request.sendall(b"served")

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def get_request(self) -> Any:
                return self.socket.accept()  # The standard library calls it again and again.

        with Server(LOCAL, Handler) as server:
            address = server.server_address
            client = Client(server)
            thread = InThread("serving", server.serve_forever, POLL_INTERVAL)
            trace(client.reply())
            if who == "another thread":
                trace(thread.done)
                server.server_close()
                server.turns = 3
            thread.result()
            with socket.socket() as sock:
                trace.call(sock.connect, address)
            trace(state(server))
        hooks = trace.by_thread()["serving"]
        return [
            trace.by_thread()[""][2:],
            hooks[: hooks.index("service_actions")],
            hooks.count("verify_request"),
        ]

    end = [("raised", "ConnectionRefusedError"), (False, True), "server_close"]
    closing = [b"served", False, "server_close"] if who == "another thread" else [b"served"]
    turn = ["verify_request", "process_request", "finish_request"]
    turn += ["server_close"] if who == "handler" else []
    turn += ["shutdown_request", "close_request"]
    assert agreed(scenario, loop_name) == [[*closing, *end], turn, 1]


CLOSED_IN_BETWEEN = """
import importlib, sys

socketserver = importlib.import_module(sys.argv[1])
if sys.argv[1] == "compat":
    socketserver.EventLoopMixIn.event_loop = sys.argv[2]


class Server(socketserver.TCPServer):
    calls = turns = 0

    def fileno(self):
        fd = super().fileno()
        self.calls += 1
        if self.calls == int(sys.argv[3]):
            self.socket.close()  # As another thread may, at any time.
        return fd

    def service_actions(self):
        self.turns += 1
        self._BaseServer__shutdown_request = self.turns == 5


with Server(("127.0.0.1", 0), None) as server:
    server.serve_forever(0.001)
    print(server.turns, "turns")
"""


@pytest.mark.parametrize("call", [1, 2, 3])
def test_server_closed_just_before_it_waits(call: int, loop_name: LoopName, tmp_path: Path) -> None:
    """The number may be that of another file by then, of one that the waiting itself needs.

    In a process of its own, because event loops end a process for such mistakes.
    """

    def run(module: str) -> tuple[int, str, str]:
        return run_python(tmp_path, "-c", CLOSED_IN_BETWEEN, module, loop_name, str(call))

    assert run("socketserver") == run("compat") == (0, "5 turns\n", "")


def test_closed_server_cannot_be_served(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server = socketserver.TCPServer(LOCAL, None)
        server.server_close()
        server.server_close()
        for call in (server.serve_forever, server.handle_request):
            trace(str(trace.call(call)), state(server))
        shutdown = InThread("shutdown", server.shutdown)
        trace(shutdown.result(), state(server))
        return trace.events

    error = "Invalid file descriptor: -1"
    assert agreed(scenario, loop_name) == [
        ("raised", "ValueError"),
        (error, (False, True)),
        ("raised", "ValueError"),
        (error, (False, True)),
        (None, (True, True)),
    ]


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request", "own loop"])
def test_server_closed_by_a_hook_ends_with_its_turn(entry: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Handler(noted_handler(socketserver, trace)):  # type: ignore[misc]
            def finish(self) -> None:
                self.server.server_close()

        with recorded(socketserver.ThreadingTCPServer, trace)(LOCAL, Handler) as server:
            server.process_request = server.process_request_thread
            client = Client(server)
            run_turns(server, entry, 1)
            trace(client.reply(), server.socket.fileno())
        return trace.events[2:]

    found = agreed(scenario, loop_name)
    assert found.count("server_close") == 2
    assert (b"served", -1) in found


def test_server_is_freed_at_once(loop_name: LoopName) -> None:
    """Without the garbage collector: nothing keeps a server that has served, been shut down and closed."""
    import gc
    import weakref

    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        seen = []
        gc.disable()
        try:
            server = getattr(socketserver, server_name)(LOCAL, noted_handler(socketserver, Trace()))
            with server:
                with serving(server):
                    seen.append(Client(server).reply())
                client = Client(server)
                server.handle_request()
                seen.append(client.reply())
            gone = weakref.ref(server)
            del server
            seen.append(gone() is None)
        finally:
            gc.enable()
        return seen

    for server_name in ("TCPServer", "ThreadingTCPServer"):
        assert agreed(scenario, loop_name, server_name) == [b"served", b"served", True]
