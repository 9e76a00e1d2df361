"""The threads in which hooks and requests run, what they carry with them, and what servers keep of them."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest

from asyncserver import LoopName
from tests.compat.support import (
    ARRIVALS,
    LOCAL,
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
    serving,
)
from tests.waiting import PATIENCE, wait_until_blocking

TAKING = ["get_request", "verify_request", "process_request"]
HANDLING = ["finish_request", "setup", "handle", "finish", "shutdown_request", "close_request"]


# --- which thread ---


@pytest.mark.parametrize("server_name", SERVERS)
def test_plain_server_stays_in_the_thread_that_serves(server_name: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> dict[str, list[Any]]:
        trace = Trace()
        server_class = recorded(getattr(socketserver, server_name), trace)
        with (
            address_for(server_class) as address,
            server_class(address, noted_handler(socketserver, trace)) as server,
        ):
            for name, entry in (("serving", "serve_forever"), ("another", "handle_request")):
                thread = InThread(name, run_turns, server, entry, 1)
                assert blocks(thread)
                trace(Client(server).reply())
                thread.result()
        return trace.by_thread()

    assert agreed(scenario, loop_name) == {
        "": ["server_bind", "server_activate", b"served", b"served", "server_close"],
        "serving": [*TAKING, *HANDLING, "service_actions"],
        "another": [*TAKING, *HANDLING],
    }


@pytest.mark.parametrize("server_name", SERVERS)
@pytest.mark.parametrize("entry", ["serve_forever", "handle_request", "own loop"])
@pytest.mark.parametrize("arrival", ARRIVALS)
def test_threading_server_has_a_thread_for_each_request(
    server_name: str, entry: str, arrival: str, loop_name: LoopName
) -> None:
    def scenario(socketserver: Any) -> dict[str, list[Any]]:
        trace = Trace()
        server_class = recorded(getattr(socketserver, f"Threading{server_name}"), trace)
        with (
            address_for(server_class) as address,
            server_class(address, noted_handler(socketserver, trace)) as server,
        ):
            clients = arriving(server, 3, arrival)
            run_turns(server, entry, 3)
            trace(*(client.reply() for client in clients()))
        return trace.by_thread()

    turn = [*TAKING, *(["service_actions"] if entry != "handle_request" else [])]
    assert agreed(scenario, loop_name) == {
        "": ["server_bind", "server_activate", *turn * 3, (b"served",) * 3, "server_close"],
        **{f"thread {number}": ["process_request_thread", *HANDLING] for number in (1, 2, 3)},
    }


# --- what a thread has ---

ours: contextvars.ContextVar[str] = contextvars.ContextVar("ours", default="nothing")
local = threading.local()


def what_handlers_see(socketserver: Any, server_name: str) -> list[Any]:
    """The context variable and the thread's own value, which each handler replaces."""
    trace = Trace()

    class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            word = self.request.recv(100).decode()
            trace.requests.append((ours.get(), getattr(local, "value", "nothing")))
            ours.set(word)
            local.value = word

    def serve() -> None:
        ours.set("caller")
        local.value = "caller"
        with getattr(socketserver, server_name)(LOCAL, Handler) as server:
            for word in (b"one", b"two", b"three"):
                clients = arriving(server, 1, "while it waits", word)
                server.handle_request()
                assert clients()[0].reply() == b""
            clients = arriving(server, 1, "while it waits", b"four")
            server.service_actions = functools.partial(stop, server)
            server.serve_forever(PATIENCE)
            assert clients()[0].reply() == b""
        trace.requests.append((ours.get(), local.value))

    InThread("serving", serve).result()
    return trace.requests


def stop(server: Any) -> None:
    server._BaseServer__shutdown_request = True


def test_plain_handlers_share_the_callers_context_and_thread(loop_name: LoopName) -> None:
    assert agreed(what_handlers_see, loop_name, "TCPServer") == [
        ("caller", "caller"),
        ("one", "one"),
        ("two", "two"),
        ("three", "three"),
        ("four", "four"),
    ]


def test_threads_of_requests_share_nothing(loop_name: LoopName) -> None:
    assert agreed(what_handlers_see, loop_name, "ThreadingTCPServer") == [
        *[("nothing", "nothing")] * 4,
        ("caller", "caller"),
    ]


def test_server_within_a_context(loop_name: LoopName) -> None:
    """All hooks run in the context in which ``serve_forever()`` is called, and change it."""

    def scenario(socketserver: Any) -> list[Any]:
        seen: list[Any] = []

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                seen.append(ours.get())
                ours.set("set by the handler")

        class Server(socketserver.TCPServer):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                seen.append(ours.get())
                ours.set("set by verify_request")
                return True

            def service_actions(self) -> None:
                seen.append(ours.get())
                stop(self)

        def serve() -> None:
            ours.set("set in the context")
            server.serve_forever(PATIENCE)

        context = contextvars.copy_context()
        with Server(LOCAL, Handler) as server:
            clients = arriving(server, 1, "while it waits")
            context.run(serve)
            clients()[0].close()
        return [*seen, context[ours], ours.get()]

    assert agreed(scenario, loop_name) == [
        "set in the context",
        "set by verify_request",
        "set by the handler",
        "set by the handler",
        "nothing",
    ]


@pytest.mark.parametrize("server_name", ["TCPServer", "ThreadingTCPServer"])
def test_asyncio_run_in_every_hook(server_name: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> dict[str, list[Any]]:
        trace = Trace()

        async def nap(where: str) -> str:
            await asyncio.sleep(0)
            return f"{where} has run a loop"

        def using(hook: str) -> Callable[..., Any]:
            def method(self: Any, *args: Any) -> Any:
                trace(asyncio.run(nap(hook)))
                return getattr(super(Server, self), hook)(*args)

            return method

        class Server(recorded(getattr(socketserver, server_name), trace)):  # type: ignore[misc]
            pass

        class Handler(noted_handler(socketserver, trace)):  # type: ignore[misc]
            def handle(self) -> None:
                trace(asyncio.run(nap("handle")))
                super().handle()

        for hook in (*TAKING, "finish_request", "shutdown_request", "service_actions", "handle_timeout"):
            setattr(Server, hook, using(hook))

        def serve() -> None:
            with Server(LOCAL, Handler) as server:
                for entry, count in (("serve_forever", 2), ("handle_request", 1)):
                    clients = arriving(server, count, "while it waits")
                    run_turns(server, entry, count)
                    trace(*(client.reply() for client in clients()))
                server.timeout = 0
                server.handle_request()

        InThread("serving", serve).result()
        return trace.by_thread()

    found = agreed(scenario, loop_name)
    assert found["serving"].count("service_actions has run a loop") == 2
    assert found["serving"].count("verify_request has run a loop") == 3
    assert found["serving"].count("handle_timeout has run a loop") == 1
    for events in found.values() if server_name == "ThreadingTCPServer" else ():
        assert events is found["serving"] or events.count("handle has run a loop") == 1


# --- what a server keeps of its threads ---


@pytest.mark.parametrize("where", ["class", "instance"])
@pytest.mark.parametrize("daemon_threads", [False, True])
@pytest.mark.parametrize("block_on_close", [False, True])
def test_threads_that_server_close_waits_for(
    *, block_on_close: bool, daemon_threads: bool, where: str, loop_name: LoopName
) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        threads: list[threading.Thread] = []
        release = threading.Event()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                threads.append(threading.current_thread())
                release.wait(PATIENCE)

        class Server(socketserver.ThreadingTCPServer):  # type: ignore[misc]
            pass

        if where == "class":
            Server.block_on_close, Server.daemon_threads = block_on_close, daemon_threads
        server = Server(LOCAL, Handler)
        if where == "instance":
            server.block_on_close, server.daemon_threads = block_on_close, daemon_threads
        trace("_threads" in vars(server), type(server._threads).__name__)
        try:
            with Client(server):
                server.handle_request()
                thread = wait_until_blocking(lambda: threads)[0]
                trace("_threads" in vars(server), type(server._threads).__name__, thread.daemon)
                if isinstance(server._threads, list):
                    trace([each is thread for each in server._threads])
                closing = InThread("closing", server.server_close)
                trace("server_close waits:", blocks(closing))
                trace(server.socket.fileno())
        finally:
            release.set()
        closing.result()
        thread.join(PATIENCE)
        if isinstance(server._threads, list):
            trace(len(server._threads))
        return trace.events

    waits = block_on_close and not daemon_threads
    assert agreed(scenario, loop_name) == [
        (False, "_NoThreads"),
        (block_on_close, "_Threads" if block_on_close else "_NoThreads", daemon_threads),
        *([[True] if waits else []] if block_on_close else []),
        ("server_close waits:", waits),
        -1,
        *([0] if block_on_close else []),
    ]


def test_ended_threads_are_not_kept(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[int]:
        seen: list[threading.Thread] = []

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                seen.append(threading.current_thread())

        kept = []
        with socketserver.ThreadingTCPServer(LOCAL, Handler) as server:
            for _ in range(3):
                client = Client(server)
                server.handle_request()
                assert client.reply() == b""
                seen[-1].join(PATIENCE)
                kept.append([each in server._threads for each in seen])
        return kept

    assert agreed(scenario, loop_name) == [[True], [False, True], [False, False, True]]


def test_each_request_has_a_new_thread_with_a_name_of_its_own(loop_name: LoopName) -> None:
    """Programs use the name as a key, and ``threading.local`` as if the thread were theirs alone."""

    def scenario(socketserver: Any) -> list[Any]:
        threads: list[threading.Thread] = []
        together = threading.Barrier(5)

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                threads.append(threading.current_thread())
                if self.request.recv(100) == b"together":
                    together.wait(PATIENCE)

        with socketserver.ThreadingTCPServer(LOCAL, Handler) as server, serving(server):
            for _ in range(3):
                assert Client(server, b"alone").reply() == b""
            clients = [Client(server, b"together") for _ in range(5)]
            assert {client.reply() for client in clients} == {b""}
        pattern = re.compile(r"Thread-(\d+) \(process_request_thread\)")
        numbers = [int(match[1]) for thread in threads if (match := pattern.fullmatch(thread.name))]
        return [len(set(threads)), len(set(numbers)), numbers[:4] == sorted(numbers[:4])]

    assert agreed(scenario, loop_name) == [8, 8, True]


def test_threads_of_a_server_that_is_served_again_and_closed_twice(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.ThreadingTCPServer, trace)(
            LOCAL, noted_handler(socketserver, trace)
        ) as server:
            for _ in range(2):
                with serving(server):
                    trace(Client(server).reply())
            server.server_close()
            trace(len(server._threads))
        return [event for event in trace.events if isinstance(event, (bytes, int)) or event == "server_close"]

    assert agreed(scenario, loop_name) == [b"served", b"served", "server_close", 0, "server_close"]


# --- errors in the threads of requests ---

STAGES = (
    "process_request",
    "process_request_thread",
    "finish_request",
    "setup",
    "handle",
    "finish",
    "handle_error",
    "shutdown_request",
    "close_request",
)


@pytest.mark.parametrize("stage", STAGES)
def test_error_in_the_thread_of_a_request(stage: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any, error_type: type[BaseException]) -> dict[str, list[Any]]:
        trace = Trace({stage: error_type("on purpose")})
        if stage == "handle_error":
            trace = Trace({stage: error_type("on purpose"), "handle": ValueError("before")})
        server_class = recorded(socketserver.ThreadingTCPServer, trace)
        hook = mock.patch("threading.excepthook", lambda args: trace("excepthook", args.exc_type.__name__))
        with hook, server_class(LOCAL, noted_handler(socketserver, trace)) as server:
            client = Client(server)
            trace.call(run_turns, server, "serve_forever", 1)
            server.server_close()  # Waits for the thread.
            trace(trace.close_requests())
            trace(client.reply())
        return trace.by_thread()

    for error_type in (
        ValueError,
        OSError,
        StopIteration,
        KeyboardInterrupt,
        SystemExit,
        asyncio.CancelledError,
    ):
        found = agreed(scenario, loop_name, error_type)
        assert stage in str(found)
        assert found[""][-2] in (b"", b"served")


def test_error_of_a_handler_in_a_thread(loop_name: LoopName) -> None:
    def scenario(socketserver: Any, error: BaseException) -> list[Any]:
        trace = Trace({"handle": error})
        server_class = recorded(socketserver.ThreadingTCPServer, trace)
        hook = mock.patch("threading.excepthook", lambda args: trace("excepthook", args.exc_value is error))
        with hook, server_class(LOCAL, noted_handler(socketserver, trace)) as server, Client(server):
            server.handle_request()
        return trace.by_thread()["thread 1"]

    before, after = ["process_request_thread", *HANDLING[:4]], HANDLING[4:]
    for error, expected in (
        (ValueError(), [*before, ("handle_error", "ValueError"), *after]),
        (KeyboardInterrupt(), [*before, *after, ("excepthook", True)]),
        (SystemExit(), [*before, *after, ("excepthook", True)]),
    ):
        assert agreed(scenario, loop_name, error) == expected


def test_thread_that_cannot_be_started(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(socketserver.ThreadingTCPServer, trace)
        with server_class(LOCAL, noted_handler(socketserver, trace)) as server:
            client = Client(server)
            with mock.patch("threading.Thread.start", side_effect=RuntimeError("can't start new thread")):
                server.handle_request()
            trace(client.reply())
            server._threads.clear()
        return trace.events[2:]

    assert agreed(scenario, loop_name) == [
        *TAKING,
        ("handle_error", "RuntimeError"),
        *HANDLING[4:],
        b"",
        "server_close",
    ]


# --- programs with ideas of their own ---


def test_pool_of_the_programs_own(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> dict[str, list[Any]]:
        trace = Trace()
        with ThreadPoolExecutor(1) as pool:

            class Pooled(recorded(socketserver.ThreadingTCPServer, trace)):  # type: ignore[misc]
                def process_request(self, request: Any, client_address: Any) -> None:
                    pool.submit(self.process_request_thread, request, client_address)

            with Pooled(LOCAL, noted_handler(socketserver, trace)) as server:
                clients = [Client(server) for _ in range(3)]
                run_turns(server, "serve_forever", 3)
                trace(*(client.reply() for client in clients))
        return trace.by_thread()

    assert agreed(scenario, loop_name) == {
        "": [
            "server_bind",
            "server_activate",
            *["get_request", "verify_request", "service_actions"] * 3,
            (b"served",) * 3,
            "server_close",
        ],
        "thread 1": ["process_request_thread", *HANDLING] * 3,
    }


def test_semaphore_around_the_threads(loop_name: LoopName) -> None:
    """The serving thread itself waits in ``process_request()``."""

    def scenario(socketserver: Any) -> list[Any]:
        semaphore = threading.Semaphore(2)
        pairs = threading.Barrier(2)
        running: list[int] = []
        most: list[int] = []

        class Bounded(socketserver.ThreadingTCPServer):  # type: ignore[misc]
            def process_request(self, request: Any, client_address: Any) -> None:
                semaphore.acquire()
                super().process_request(request, client_address)

            def process_request_thread(self, request: Any, client_address: Any) -> None:
                try:
                    super().process_request_thread(request, client_address)
                finally:
                    semaphore.release()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                running.append(1)
                pairs.wait(PATIENCE)
                most.append(len(running))
                pairs.wait(PATIENCE)
                running.pop()

        with Bounded(LOCAL, Handler) as server:
            clients = [Client(server) for _ in range(5)]
            with serving(server):
                replies = [client.reply() for client in clients[:4]]
                last = Client(server)
                replies += [last.reply(), clients[4].reply()]
        return [replies, most]

    assert agreed(scenario, loop_name) == [[b""] * 6, [2] * 6]


def test_connections_that_are_kept(loop_name: LoopName) -> None:
    """``shutdown_request()`` overridden to do nothing: the program goes on with the socket."""

    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        trace = Trace()

        class Keeping(recorded(getattr(socketserver, server_name), trace)):  # type: ignore[misc]
            def shutdown_request(self, request: Any) -> None:
                trace.step("kept")

        with Keeping(LOCAL, noted_handler(socketserver, trace)) as server, Client(server) as client:
            server.handle_request()
            trace(client.receive())
            server.server_close()
            (request,) = trace.requests
            with request:
                client.send(b"still here")
                trace(request.recv(100))
                request.sendall(b"so am I")
            trace(client.reply())
        return [event for event in trace.events if isinstance(event, bytes) or event == "server_close"]

    for server_name in ("TCPServer", "ThreadingTCPServer"):
        assert agreed(scenario, loop_name, server_name) == [
            b"served",
            "server_close",
            b"still here",
            b"so am I",
            "server_close",
        ]


def test_server_that_is_a_thread_as_well(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(threading.Thread, socketserver.ThreadingMixIn, socketserver.TCPServer):  # type: ignore[misc]
            daemon_threads = True

            def __init__(self) -> None:
                threading.Thread.__init__(self, name="the server", daemon=True)
                socketserver.TCPServer.__init__(self, LOCAL, noted_handler(socketserver, trace))

            def run(self) -> None:
                trace("run")
                self.serve_forever(poll_interval=0.005)

            def server_close(self) -> None:
                trace("server_close")
                super().server_close()

        server = Server()
        trace(server.name, server.daemon, server.is_alive())
        server.start()
        with server:
            client = Client(server)
            reply = client.reply()
            trace(reply, server.is_alive())
            server.shutdown()
            server.join(PATIENCE)
            trace(server.name, server.daemon, server.is_alive())
        return [trace.by_thread()[""], [event for event in trace.events if "run" in event]]

    assert agreed(scenario, loop_name) == [
        [
            ("the server", True, False),
            (b"served", True),
            ("the server", True, False),
            "server_close",
        ],
        [("thread 1", "run")],
    ]


NAMES = (
    *("_loop", "_thread", "_lock", "_shutdown", "_closing", "_closed", "_executor", "_engine", "_waiter"),
    *(
        "_server",
        "_jobs",
        "_turns",
        "_pool",
        "_tasks",
        "_children",
        "_started",
        "_stop",
        "_state",
        "_running",
    ),
    *(
        "_wake",
        "_woken",
        "_event",
        "_selector",
        "_poll_interval",
        "_timeout",
        "_fileno",
        "_socket",
        "_handler",
    ),
    *("loop", "thread", "lock", "engine", "executor", "turns", "pool", "tasks", "jobs", "wake", "running"),
    *("clients", "requests", "connections", "context", "name", "logger", "queue", "state", "stopped"),
)


@pytest.mark.parametrize("server_name", ["TCPServer", "ThreadingTCPServer"])
@pytest.mark.parametrize("where", ["class", "instance"])
def test_attributes_of_the_programs_own(where: str, server_name: str, loop_name: LoopName) -> None:
    """They are the program's, whatever they are called: nothing here reads or writes them."""

    def scenario(socketserver: Any) -> list[Any]:
        class Server(getattr(socketserver, server_name)):  # type: ignore[misc]
            def __init__(self) -> None:
                if where == "instance":
                    vars(self).update(dict.fromkeys(NAMES, "ours"))
                super().__init__(LOCAL, noted_handler(socketserver, Trace()))

        if where == "class":
            for name in NAMES:
                setattr(Server, name, "ours")
        with Server() as server:
            with serving(server):
                replies = [Client(server).reply()]
            client = Client(server)
            server.handle_request()
            replies.append(client.reply())
        own = [name for name in vars(server) if not name.startswith("_EventLoopMixIn__")]
        return [replies, {getattr(server, name) for name in NAMES}, sorted({*own} - {*NAMES})]

    attributes = ["RequestHandlerClass", "_BaseServer__is_shut_down", "_BaseServer__shutdown_request"]
    attributes += ["_threads"] if server_name == "ThreadingTCPServer" else []
    attributes += ["server_address", "socket"]
    assert agreed(scenario, loop_name) == [[b"served", b"served"], {"ours"}, attributes]
