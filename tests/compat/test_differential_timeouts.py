"""How long servers wait: the timeouts of ``handle_request()``, and a selector of the program's own."""

from __future__ import annotations

import contextlib
import selectors
import socketserver as stdlib
import threading
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

import compat
from asyncserver import LoopName
from tests.compat.support import (
    LOCAL,
    POLL_INTERVAL,
    SERVERS,
    Client,
    InThread,
    Trace,
    address_for,
    agreed,
    blocks,
    noted_handler,
    on_loop,
    recorded,
    run_turns,
    serving,
)
from tests.waiting import MS, PATIENCE

LONG, SHORT = PATIENCE, 10 * MS

TURN = [
    *("get_request", "verify_request", "process_request", "finish_request", "setup", "handle", "finish"),
    *("shutdown_request", "close_request"),
]


# --- handle_request() ---


@pytest.mark.parametrize(
    ("of_server", "of_socket"),
    [(SHORT, None), (None, SHORT), (SHORT, LONG), (LONG, SHORT), (0, None), (None, 0), (0, LONG), (LONG, 0)],
)
def test_smaller_timeout_counts(
    of_server: float | None, of_socket: float | None, loop_name: LoopName
) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            timeout = of_server

            def handle_timeout(self) -> str:
                super().handle_timeout()
                return "in vain"

        with Server(LOCAL, noted_handler(socketserver, trace)) as server:
            server.socket.settimeout(of_socket)
            started = time.monotonic()
            trace(server.handle_request())
            waited = time.monotonic() - started
            trace("at least", waited >= min(each for each in (of_server, of_socket) if each is not None))
            trace("not for long", waited < LONG / 2)
            client = Client(server)
            trace(server.handle_request(), client.reply())
        return trace.events[2:]

    assert agreed(scenario, loop_name) == [
        "handle_timeout",
        "in vain",
        ("at least", True),
        ("not for long", True),
        *TURN,
        (None, b"served"),
        "server_close",
    ]


@pytest.mark.parametrize("server_name", SERVERS)
def test_timeout_of_every_kind_of_server(server_name: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(getattr(socketserver, server_name), trace)
        with (
            address_for(server_class) as address,
            server_class(address, noted_handler(socketserver, trace)) as server,
        ):
            server.timeout = SHORT
            trace(server.handle_request())
            client = Client(server)
            server.handle_request()
            trace(client.reply())
        return trace.events[2:]

    assert agreed(scenario, loop_name) == ["handle_timeout", None, *TURN, b"served", "server_close"]


def test_timeout_is_read_at_each_call(loop_name: LoopName) -> None:
    """From the instance, and it may be a property."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        timeouts = [0.0, 1 * MS, 0]

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            @property
            def timeout(self) -> float | None:
                return coming.pop()

        coming = timeouts.copy()
        with Server(LOCAL, None) as server:
            while coming:
                server.handle_request()
        with recorded(socketserver.TCPServer, trace)(LOCAL, None) as server:
            for server.timeout in timeouts:
                server.handle_request()
        return [event for event in trace.events if event == "handle_timeout"]

    assert agreed(scenario, loop_name) == ["handle_timeout"] * 6


def test_timeout_is_not_for_serve_forever(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.TCPServer, trace)(LOCAL, None) as server:
            server.timeout = 0
            server.socket.settimeout(0)
            server.turns = 3
            server.serve_forever(POLL_INTERVAL)
        return trace.events[2:]

    assert agreed(scenario, loop_name) == [*["service_actions"] * 3, "server_close"]


@pytest.mark.parametrize("what", ["raises", "closes", "serves"])
def test_handle_timeout_may_do_anything(what: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            timeout = 0

            def handle_timeout(self) -> Any:
                trace("handle_timeout")
                if what == "raises":
                    raise LookupError
                if what == "closes":
                    return self.server_close()
                clients.append(Client(self))
                self.timeout = LONG
                return self.handle_request()

        clients: list[Client] = []
        with Server(LOCAL, noted_handler(socketserver, trace)) as server:
            trace(trace.call(server.handle_request) is None)
            trace([client.reply() for client in clients])
            trace(server.socket.fileno() == -1)
        return trace.events[2:]

    happens = {
        "raises": [("raised", "LookupError"), False, [], False],
        "closes": ["server_close", True, [], True],
        "serves": [*TURN, True, [b"served"], False],
    }
    assert agreed(scenario, loop_name) == ["handle_timeout", *happens[what], "server_close"]


def test_shutdown_does_not_end_handle_request(loop_name: LoopName) -> None:
    """The request that comes next does; what was asked for is left for ``serve_forever()``."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.TCPServer, trace)(LOCAL, noted_handler(socketserver, trace)) as server:
            server.timeout = LONG
            thread = InThread("waiting", server.handle_request)
            trace(blocks(thread))
            shutdown = InThread("shutdown", server.shutdown)
            trace(blocks(shutdown), blocks(thread))
            client = Client(server)
            trace(client.reply(), thread.result(), server._BaseServer__shutdown_request)
            trace(server.serve_forever(LONG), shutdown.result(), server._BaseServer__shutdown_request)
        return trace.by_thread()[""][2:]

    assert agreed(scenario, loop_name) == [
        True,
        (True, True),
        (b"served", None, True),
        (None, None, False),
        "server_close",
    ]


def test_refused_or_failed_request_ends_handle_request(loop_name: LoopName) -> None:
    """It handles one request, and does not wait for a better one."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace({"get_request": OSError("on purpose")})

        class Server(recorded(socketserver.TCPServer, trace)):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                return False

        with Server(LOCAL, None) as server:
            server.timeout = LONG
            client = Client(server)
            trace("returns", server.handle_request())
            trace("returns", server.handle_request())
            trace(client.reply())
        return trace.events[2:]

    assert agreed(scenario, loop_name) == [
        *("get_request", ("returns", None)),
        *("get_request", "shutdown_request", "close_request", ("returns", None)),
        b"",
        "server_close",
    ]


# --- a selector of the program's own ---


def watching_selector(trace: Trace, waits: list[Any]) -> Any:
    """What programs and their tests put in the place of ``_ServerSelector``."""

    class Watching(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
        def register(self, fileobj: Any, events: int, data: Any = None) -> Any:
            trace("register", type(fileobj).__name__, events == selectors.EVENT_READ)
            return super().register(fileobj, events, data)

        def select(self, timeout: float | None = None) -> Any:
            waits.append(timeout)
            return super().select(timeout)

        def close(self) -> None:
            trace("close")
            super().close()

    return Watching


@pytest.mark.parametrize("where", ["the module", "the standard library"])
def test_selector_is_the_programs(where: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        waits: list[Any] = []
        module = socketserver if where == "the module" else stdlib
        with mock.patch.object(module, "_ServerSelector", watching_selector(trace, waits)):
            with recorded(socketserver.TCPServer, trace)(LOCAL, noted_handler(socketserver, trace)) as server:
                clients = [Client(server) for _ in range(3)]
                run_turns(server, "serve_forever", 2)
                server.timeout = 60
                server.handle_request()
                trace([client.reply() for client in clients])
                server.timeout = 0.001
                server.handle_request()
                server.timeout = None
                with Client(server):
                    server.handle_request()
                server.turns = 2
                server.serve_forever(0.001)
        rounded = [waits[:3], waits[3], all(each < 0.001 for each in waits[4:-3]), waits[-3:]]
        return [*trace.events[2:], rounded, module._ServerSelector.__name__]

    registered, closed = ("register", "Recorded", True), "close"
    assert agreed(scenario, loop_name) == [
        *[registered, *TURN, "service_actions", *TURN, "service_actions", closed],
        *[registered, *TURN, closed],
        [b"served", b"served", b"served"],
        *[registered, "handle_timeout", closed],
        *[registered, *TURN, closed],
        *[registered, "service_actions", "service_actions", closed],
        "server_close",
        [[PATIENCE, PATIENCE, 60], 0.001, True, [None, 0.001, 0.001]],
        "PollSelector",
    ]


def test_selector_is_closed_whatever_happens(loop_name: LoopName) -> None:
    def scenario(socketserver: Any, stage: str) -> list[Any]:
        trace = Trace({stage: KeyboardInterrupt()})
        with mock.patch.object(socketserver, "_ServerSelector", watching_selector(trace, [])):
            with recorded(socketserver.TCPServer, trace)(LOCAL, None) as server, Client(server):
                trace.call(run_turns, server, "serve_forever", 1)
                trace(server._BaseServer__is_shut_down.is_set())
            for request in trace.requests:
                request.close()
        return trace.events

    for stage in ("get_request", "verify_request", "process_request", "service_actions"):
        found = agreed(scenario, loop_name, stage)
        assert found[-4:] == ["close", ("raised", "KeyboardInterrupt"), True, "server_close"]


def test_selector_that_finds_nothing_or_too_much(loop_name: LoopName) -> None:
    """What it says is believed: a server that does not block accepts in vain, and goes on."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Lying(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                answers.insert(0, answers.pop())
                return [(None, selectors.EVENT_READ)] if answers[0] else []

        answers = [False, True]
        with mock.patch.object(socketserver, "_ServerSelector", Lying):
            with recorded(socketserver.TCPServer, trace)(LOCAL, noted_handler(socketserver, trace)) as server:
                server.socket.setblocking(False)
                run_turns(server, "serve_forever", 4)
        return trace.events[2:]

    assert agreed(scenario, loop_name) == [
        *["get_request", "service_actions", "service_actions"] * 2,
        "server_close",
    ]


@pytest.mark.parametrize("tool", ["mock", "monkeypatch", "assignment"])
def test_selector_that_was_given_back(tool: str, loop_name: LoopName) -> None:
    """Servers look for it when they begin to wait, and so they are back on the loop as well."""
    original = stdlib._ServerSelector  # type: ignore[attr-defined]
    used: list[str] = []

    class Counting(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> Any:
            used.append(threading.current_thread().name)
            return super().select(timeout)

    @contextlib.contextmanager
    def assignment() -> Iterator[None]:
        compat._ServerSelector = Counting  # type: ignore[attr-defined]
        yield
        compat._ServerSelector = original  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def monkeypatch() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(compat, "_ServerSelector", Counting)
            yield

    tools = {
        "mock": mock.patch.object(compat, "_ServerSelector", Counting),
        "monkeypatch": monkeypatch(),
        "assignment": assignment(),
    }
    try:
        with on_loop(loop_name), compat.TCPServer(LOCAL, noted_handler(compat, Trace())) as server:
            with tools[tool], serving(server):
                assert Client(server).reply() == b"served"
            count = len(used)
            assert count >= 1
            assert compat._ServerSelector is stdlib._ServerSelector is original  # type: ignore[attr-defined]
            with serving(server):
                assert Client(server).reply() == b"served"
            assert len(used) == count
    finally:
        stdlib._ServerSelector = original  # type: ignore[attr-defined]
