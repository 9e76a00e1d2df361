"""Signals while a server serves in the main thread, and what of the process is untouched by serving."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asyncserver import LoopName
from tests.compat.support import (
    LINUX,
    LOCAL,
    POLL_INTERVAL,
    Client,
    InThread,
    Trace,
    agreed,
    arriving,
    blocks,
    noted_handler,
    recorded,
    run_turns,
    wait_until_asleep,
)
from tests.processes import PythonProcess, connect
from tests.waiting import MS, PATIENCE, wait_until_blocking

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="there are no such signals"),
    pytest.mark.skipif(
        threading.current_thread() is not threading.main_thread(), reason="signals arrive in the main thread"
    ),
]

TURN = [
    *("get_request", "verify_request", "process_request", "finish_request", "setup", "handle", "finish"),
    *("shutdown_request", "close_request"),
]


@contextlib.contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    """That handler for the signal, and then the one before again."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def signal_when_blocked(*numbers: int, then: Callable[[], Any] | None = None) -> InThread:
    """Send the main thread these signals, each when it waits; and do something when it waits again."""
    main = threading.main_thread()

    def send() -> Any:
        for number in numbers:
            assert blocks(main)
            assert main.ident is not None
            signal.pthread_kill(main.ident, number)
        return then() if then is not None and blocks(main) else None

    return InThread("signals", send)


# --- exceptions that come from signal handlers ---


class OwnError(Exception):
    """What a signal handler of a program raises."""


def raise_own_error(*_: object) -> None:
    raise OwnError


def leave(*_: object) -> None:
    sys.exit("terminated")


SIGNALS = {
    "KeyboardInterrupt": (signal.SIGINT, signal.default_int_handler),
    "OwnError": (signal.SIGALRM, raise_own_error),
    "SystemExit": (signal.SIGTERM, leave),
}


@pytest.mark.parametrize("error", SIGNALS)
@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_signal_handler_that_raises(entry: str, error: str, loop_name: LoopName) -> None:
    """It ends the waiting at once, however long the poll interval, and the server can be used again."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(socketserver.TCPServer, trace)
        with handled(*SIGNALS[error]), server_class(LOCAL, noted_handler(socketserver, trace)) as server:
            server.timeout = PATIENCE
            for _ in range(2):
                sending = signal_when_blocked(SIGNALS[error][0])
                started = time.monotonic()
                trace.call(run_turns, server, entry, 1)
                trace("at once", time.monotonic() - started < PATIENCE / 2)
                sending.result()
                trace(server._BaseServer__shutdown_request, server._BaseServer__is_shut_down.is_set())
            client = Client(server)
            run_turns(server, entry, 1)
            trace(client.reply())
        return trace.events[2:]

    interrupted = [("raised", error), ("at once", True), (False, entry == "serve_forever")]
    served = [*TURN, *(["service_actions"] if entry == "serve_forever" else []), b"served"]
    assert agreed(scenario, loop_name) == [*interrupted, *interrupted, *served, "server_close"]


@pytest.mark.parametrize("error", SIGNALS)
def test_signal_handler_that_raises_within_a_request(error: str, loop_name: LoopName) -> None:
    """An ``Exception`` is the handler's own error; others close the connection and end the serving."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Handler(noted_handler(socketserver, trace)):  # type: ignore[misc]
            def handle(self) -> None:
                trace("waiting")
                self.request.recv(100)

        with handled(*SIGNALS[error]), recorded(socketserver.TCPServer, trace)(LOCAL, Handler) as server:
            client = Client(server)
            sending = signal_when_blocked(SIGNALS[error][0])
            trace.call(run_turns, server, "serve_forever", 1)
            sending.result()
            trace(client.reply())
        return trace.events[2:]

    waiting = [*TURN[:5], "waiting", "finish"]
    if error == "OwnError":
        expected = [*waiting, ("handle_error", error), *TURN[-2:], "service_actions"]
    else:
        expected = [*waiting, *TURN[-2:], ("raised", error)]
    assert agreed(scenario, loop_name) == [*expected, b"", "server_close"]


# --- signal handlers that do not raise ---


@pytest.mark.parametrize("how", ["the flag", "a thread"])
def test_signal_handler_that_ends_the_serving(how: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        threads: list[InThread] = []

        def handler(*_: object) -> None:
            trace("signal")
            if how == "the flag":
                server._BaseServer__shutdown_request = True
            else:
                threads.append(InThread("shutdown", server.shutdown))

        def send() -> None:
            client = Client(server)
            trace.requests.append(client.reply())
            signal_when_blocked(signal.SIGUSR1).result()

        with (
            handled(signal.SIGUSR1, handler),
            socketserver.TCPServer(LOCAL, noted_handler(socketserver, trace)) as server,
        ):
            sending = InThread("sending", send)
            trace(server.serve_forever(200 * MS))
            sending.result()
            trace([thread.result() for thread in threads], trace.requests)
        return trace.events

    threads: list[Any] = [] if how == "the flag" else [None]
    assert agreed(scenario, loop_name) == [
        *("setup", "handle", "finish", "signal"),
        None,
        (threads, [b"served"]),
    ]


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_signal_that_changes_nothing(entry: str, loop_name: LoopName) -> None:
    """Its handler is called while the server waits, and the server goes on waiting: that is no turn."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(socketserver.TCPServer, trace)
        signals: list[int] = []
        with (
            handled(signal.SIGUSR1, lambda *_: signals.append(len(trace.events))),
            server_class(LOCAL, noted_handler(socketserver, trace)) as server,
        ):
            server.timeout = PATIENCE
            sending = signal_when_blocked(*[signal.SIGUSR1] * 3, then=lambda: Client(server))
            run_turns(server, entry, 1)
            trace(sending.result().reply())
        return [signals, *trace.events[2:]]

    end = ["service_actions"] if entry == "serve_forever" else []
    assert agreed(scenario, loop_name) == [[2, 2, 2], *TURN, *end, b"served", "server_close"]


def test_signal_handler_may_run_an_event_loop(loop_name: LoopName) -> None:
    """There is none running that it would know of, whatever the server waits with."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        async def clean_up() -> None:
            await asyncio.sleep(0)
            server._BaseServer__shutdown_request = True

        def handler(*_: object) -> None:
            trace("signal")
            trace.call(asyncio.run, coroutine)

        coroutine = clean_up()
        with (
            contextlib.closing(coroutine),
            handled(signal.SIGTERM, handler),
            socketserver.TCPServer(LOCAL, None) as server,
        ):
            sending = signal_when_blocked(signal.SIGTERM)
            stopping = threading.Timer(PATIENCE / 5, setattr, (server, "_BaseServer__shutdown_request", True))
            stopping.start()
            server.serve_forever(200 * MS)
            stopping.cancel()
            stopping.join()
            sending.result()
        return trace.events

    assert agreed(scenario, loop_name) == ["signal"]


def test_many_signals(loop_name: LoopName) -> None:
    """Requests are served between them, none twice and none not."""

    def scenario(socketserver: Any) -> list[Any]:
        seen: list[int] = []

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                self.wfile.write(self.rfile.readline())

        def ask() -> list[Any]:
            replies = []
            for number in range(30):
                client = Client(server)
                client.send(b"%d" % number)
                client.send(b"\n")
                replies.append(client.reply())
            wait_until_blocking(lambda: seen)
            server._BaseServer__shutdown_request = True
            return replies

        with (
            handled(signal.SIGALRM, lambda number, frame: seen.append(number)),
            socketserver.TCPServer(LOCAL, Handler) as server,
        ):
            asking = InThread("asking", ask)
            signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
            try:
                server.serve_forever(POLL_INTERVAL)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            return [asking.result(), set(seen) == {signal.SIGALRM}]

    assert agreed(scenario, loop_name) == [[b"%d\n" % number for number in range(30)], True]


# --- what is left as it was ---


def test_signals_of_the_process_are_untouched(loop_name: LoopName) -> None:
    """In every hook and afterwards: each signal's handler, and the wakeup descriptor."""

    def scenario(socketserver: Any) -> list[Any]:
        near, far = socket.socketpair()
        near.setblocking(False)
        changed: list[Any] = []

        def look(where: str) -> None:
            now = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
            wakeup = signal.set_wakeup_fd(near.fileno())
            if now != before or wakeup != near.fileno():
                changed.append(where)

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                look("handle")

        class Server(socketserver.TCPServer):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                look("verify_request")
                return True

            def service_actions(self) -> None:
                look("service_actions")
                if sending.done:
                    self._BaseServer__shutdown_request = True

            def handle_timeout(self) -> None:
                look("handle_timeout")

        with near, far, handled(signal.SIGINT, signal.default_int_handler), Server(LOCAL, Handler) as server:
            before = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
            sending = InThread("sending", lambda: [Client(server).reply() for _ in range(3)])
            outer = signal.set_wakeup_fd(near.fileno())
            try:
                server.serve_forever(POLL_INTERVAL)
                look("serve_forever")
                server.timeout = 1 * MS
                server.handle_request()
                look("handle_request")
            finally:
                signal.set_wakeup_fd(outer)
            replies = sending.result()
        return [replies, changed]

    assert agreed(scenario, loop_name) == [[b"", b"", b""], []]


def test_wakeup_descriptor_of_the_program_is_told_of_signals() -> None:
    """On asyncio. uvloop has its own while it waits in the main thread; afterwards it is as it was."""

    def scenario(socketserver: Any) -> list[Any]:
        near, far = socket.socketpair()
        near.setblocking(False)
        far.settimeout(PATIENCE)
        with (
            near,
            far,
            handled(signal.SIGUSR1, lambda *_: None),
            recorded(socketserver.TCPServer, Trace())(LOCAL, noted_handler(socketserver, Trace())) as server,
        ):
            outer = signal.set_wakeup_fd(near.fileno())
            try:
                sending = signal_when_blocked(signal.SIGUSR1, then=lambda: Client(server))
                run_turns(server, "serve_forever", 1)
            finally:
                signal.set_wakeup_fd(outer)
            sending.result().close()
            near.send(b".")
            return [far.recv(100)]

    assert agreed(scenario, "asyncio") == [bytes([signal.SIGUSR1]) + b"."]


@pytest.mark.parametrize("current", ["a loop", "none", "never asked"])
def test_current_event_loop_of_the_thread_is_untouched(current: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        policy = asyncio.get_event_loop_policy()
        hooks = sys.get_asyncgen_hooks()

        def look() -> None:
            try:
                found = asyncio.get_event_loop()
            except RuntimeError:
                trace("no loop")
            else:
                trace("a loop", found is loop, found.is_closed(), found.is_running())
            trace(asyncio.get_event_loop_policy() is policy, sys.get_asyncgen_hooks() == hooks)

        def serve() -> None:
            asyncio.set_event_loop(loop)
            with recorded(socketserver.TCPServer, Trace())(LOCAL, lambda *_: look()) as server:
                for entry in ("serve_forever", "handle_request"):
                    clients = arriving(server, 1, "while it waits")
                    run_turns(server, entry, 1)
                    trace([client.reply() for client in clients()])
            look()
            asyncio.set_event_loop(None)

        loop = asyncio.new_event_loop() if current == "a loop" else None
        try:
            if current == "never asked":
                # In a thread of its own; without a loop, nobody may make one the thread's.
                with recorded(socketserver.TCPServer, Trace())(LOCAL, lambda *_: look()) as server:
                    thread = InThread("serving", run_turns, server, "serve_forever", 1)
                    assert blocks(thread)
                    client = Client(server)
                    thread.result()
                    trace(client.reply())
            else:
                InThread("serving", serve).result()
        finally:
            if loop is not None:
                loop.close()
        return trace.events

    if current == "never asked":
        expected = [("serving", "no loop"), ("serving", (True, True)), b""]
    else:
        seen: Any = ("a loop", True, False, False) if current == "a loop" else "no loop"
        found = [("serving", seen), ("serving", (True, True))]
        served = [*found, ("serving", [b""])]
        expected = [*served, *served, *found]
    assert agreed(scenario, loop_name) == expected


@pytest.mark.skipif(not LINUX, reason="nothing to count threads with")
def test_no_thread_but_those_of_the_program(loop_name: LoopName) -> None:
    """What forks must not have any other, not even one that Python does not know of."""

    def scenario(socketserver: Any) -> list[int]:
        counts: list[int] = []

        def count(*_: object) -> None:
            counts.append(len(set(os.listdir("/proc/self/task")) - before))

        with recorded(socketserver.TCPServer, Trace())(LOCAL, count) as server:
            before = set(os.listdir("/proc/self/task"))
            server.turns = 1
            server.serve_forever(1 * MS)
            clients = [Client(server) for _ in range(4)]
            run_turns(server, "serve_forever", 2)
            server.timeout = 1 * MS
            for _ in range(3):
                server.handle_request()  # The last one waits in vain.
            count()
            for client in clients:
                client.close()
        return counts

    assert agreed(scenario, loop_name) == [0, 0, 0, 0, 0]


# --- a whole process ---

PROGRAM = """
import importlib, sys

socketserver = importlib.import_module(sys.argv[1])
if sys.argv[1] == "compat":
    socketserver.EventLoopMixIn.event_loop = sys.argv[2]


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"served\\n")


with socketserver.TCPServer(("127.0.0.1", 0), Handler) as server:
    print("Listening on :%d" % server.server_address[1], flush=True)
    try:
        server.serve_forever(poll_interval=60)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    server.serve_forever(poll_interval=60)
"""


def test_interrupted_process(loop_name: LoopName, tmp_path: Path) -> None:
    """Ctrl-C in a terminal: the program catches it once and serves on, and dies of the second."""
    tmp_path.joinpath("program.py").write_text(PROGRAM)

    def run(module: str) -> list[Any]:
        with PythonProcess(tmp_path, "program.py", module, loop_name) as process:
            port = process.wait_for_port()
            replies = []
            for wait in (lambda: process.wait_for("interrupted"), process.wait):
                with connect(port) as client:
                    replies.append(client.recv(100))
                    replies.append(client.recv(100))
                if LINUX:  # What comes just before it waits is seen after the poll interval only.
                    wait_until_asleep(process.pid)
                process.send_signal(signal.SIGINT)
                status = wait()
            return [replies, process.stdout.splitlines()[1:], status, process.stderr.splitlines()[-1]]

    expected = [[b"served\n", b""] * 2, ["interrupted"], -signal.SIGINT, "KeyboardInterrupt"]
    assert run("socketserver") == expected
    assert run("compat") == expected
