"""Servers and processes: ``ForkingMixIn`` and its children, and programs that fork by themselves."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import pytest

from asyncserver import LoopName
from tests.compat.support import (
    ARRIVALS,
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
    serving,
)
from tests.waiting import MS, PATIENCE, wait_until_blocking

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork()"),
    # The process of the tests has threads of pytest's; a child runs one handler, and needs none of them.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]

TAKING = ["get_request", "verify_request", "process_request"]
HANDLING = ["finish_request", "setup", "handle", "finish", "shutdown_request", "close_request"]


class ForkTrace(Trace):
    """A trace that child processes go on with: they write to a file."""

    def __init__(self, fail: dict[str, BaseException] | None = None) -> None:
        super().__init__(fail)
        self._pid = os.getpid()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115

    def __enter__(self) -> ForkTrace:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def _add(self, who: str, what: Any) -> None:
        if os.getpid() == self._pid:
            super()._add(who, what)
        else:
            os.write(self._file.fileno(), f"{(os.getpid(), what)!r}\n".encode())

    def children(self) -> list[list[Any]]:
        """The events of each child, the first child first."""
        self._file.seek(0)
        found: dict[int, list[Any]] = {}
        for line in self._file:
            pid, what = ast.literal_eval(line.decode())
            found.setdefault(pid, []).append(what)
        return list(found.values())


@contextlib.contextmanager
def forking(server: Any) -> Iterator[Any]:
    """A server whose children do not outlive a test that fails."""
    try:
        with server:
            yield server
    except BaseException:
        for pid in server.active_children or ():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        raise


def statuses(server: Any) -> list[int]:
    """How the children of a server end; they are left for the server to reap."""
    found = [os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT) for pid in server.active_children]
    return [each.si_status for each in found if each is not None]


# --- the hooks ---


@pytest.mark.parametrize("server_name", SERVERS)
@pytest.mark.parametrize("entry", ["serve_forever", "handle_request", "own loop"])
@pytest.mark.parametrize("arrival", ARRIVALS)
def test_order_of_the_hooks(server_name: str, entry: str, arrival: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        server_class = getattr(socketserver, f"Forking{server_name}", None)
        if server_class is None:  # The standard library has no Unix servers of this kind before Python 3.12.
            bases = (socketserver.ForkingMixIn, getattr(socketserver, server_name))
            server_class = type("Forking", bases, {})
        with ForkTrace() as trace, address_for(server_class) as address:
            handler = noted_handler(socketserver, trace)
            with forking(recorded(server_class, trace)(address, handler)) as server:
                clients = arriving(server, 2, arrival)
                run_turns(server, entry, 2)
                trace([client.reply() for client in clients()])
            trace(len(server.active_children))
            return [trace.events, trace.children()]

    turn = [*TAKING, "close_request", *(["service_actions"] if entry != "handle_request" else [])]
    assert agreed(scenario, loop_name) == [
        ["server_bind", "server_activate", *turn, *turn, [b"served", b"served"], "server_close", 0],
        [HANDLING, HANDLING],
    ]


# Without `close_request`: the parent calls it first, and then shuts the connection down under the child.
STAGES = (*TAKING, *HANDLING[:-1], "handle_error", "fork")


@pytest.mark.parametrize("stage", STAGES)
def test_error_at_any_stage(stage: str, loop_name: LoopName) -> None:
    """The child always ends, and its status says how; what the parent does is the same as ever."""

    def scenario(socketserver: Any, error_type: type[BaseException]) -> list[Any]:
        fail: dict[str, BaseException] = {stage: error_type("on purpose")}
        if stage == "handle_error":
            fail["handle"] = ValueError("before")
        with ForkTrace(fail) as trace, contextlib.ExitStack() as stack:
            handler = noted_handler(socketserver, trace)
            server = forking(recorded(socketserver.ForkingTCPServer, trace)(LOCAL, handler))
            with server as server, Client(server) as client:
                if stage == "fork":
                    stack.enter_context(mock.patch("os.fork", side_effect=error_type("on purpose")))
                trace.call(server.handle_request)
                trace(statuses(server) if server.active_children else "no child")
                trace(trace.close_requests())
                if stage != "get_request":
                    trace(client.reply())
            return [trace.events[2:], trace.children()]

    for error_type in (ValueError, OSError, KeyboardInterrupt, SystemExit, asyncio.CancelledError):
        parent, children = agreed(scenario, loop_name, error_type)
        if stage in (*TAKING, "fork"):
            assert ("no child" in parent, children) == (True, [])
        else:
            assert [int(stage != "shutdown_request")] in parent
            assert stage in str(children)


# --- the children that a server keeps ---


def test_class_attributes(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        names = ("timeout", "active_children", "max_children", "block_on_close")
        return [
            [getattr(getattr(socketserver, owner), name) for name in names]
            for owner in ("ForkingMixIn", "ForkingTCPServer", "ForkingUDPServer")
        ]

    assert agreed(scenario, loop_name) == [[300, None, 40, True]] * 3


def holding_handler(socketserver: Any) -> Any:
    """A handler that says who it is, and ends when its client says so."""

    class Holding(socketserver.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            self.request.sendall(b"%d" % os.getpid())
            self.request.recv(100)

    return Holding


def test_active_children(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with forking(socketserver.ForkingTCPServer(LOCAL, holding_handler(socketserver))) as server:
            trace(server.active_children, "active_children" in vars(server))
            clients = [Client(server) for _ in range(2)]
            pids = set()
            for number, client in enumerate(clients, 1):
                server.handle_request()
                pids.add(int(client.receive()))
                trace(
                    len(pids) == number, server.active_children == pids, type(server.active_children).__name__
                )
            server.collect_children()
            trace(server.active_children == pids)
            clients[0].send(b"end")
            trace(clients[0].reply())
            collecting = InThread("collecting", lambda: server.collect_children(blocking=True))
            trace(blocks(collecting), len(server.active_children) >= 1)
            clients[1].send(b"end")
            trace(clients[1].reply(), collecting.result(), server.active_children)
            server.collect_children()
        return trace.events

    assert agreed(scenario, loop_name) == [
        (None, False),
        (True, True, "set"),
        (True, True, "set"),
        True,
        b"",
        (True, True),
        (b"", None, set()),
    ]


@pytest.mark.parametrize("where", ["class", "instance"])
@pytest.mark.parametrize("block_on_close", [True, False])
def test_children_that_server_close_waits_for(
    *, block_on_close: bool, where: str, loop_name: LoopName
) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(socketserver.ForkingTCPServer):  # type: ignore[misc]
            pass

        if where == "class":
            Server.block_on_close = block_on_close
        with forking(Server(LOCAL, holding_handler(socketserver))) as server:
            server.block_on_close = block_on_close
            client = Client(server)
            server.handle_request()
            pid = int(client.receive())
            closing = InThread("closing", server.server_close)
            trace("waits:", blocks(closing), server.socket.fileno())
            client.send(b"end")
            trace(client.reply(), closing.result())
            if not block_on_close:
                trace(server.active_children == {pid}, os.waitpid(pid, 0) == (pid, 0))
            server.collect_children()
            trace(server.active_children)
        return trace.events

    assert agreed(scenario, loop_name) == [
        ("waits:", block_on_close, -1),
        (b"", None),
        *([] if block_on_close else [(True, True)]),
        set(),
    ]


@pytest.mark.parametrize("max_children", [1, 2])
def test_max_children(max_children: int, loop_name: LoopName) -> None:
    """While there are as many nobody else is served; the connections wait in the kernel's queue."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        started: list[int] = []

        class Server(socketserver.ForkingTCPServer):  # type: ignore[misc]
            def process_request(self, request: Any, client_address: Any) -> None:
                started.append(len(self.active_children or ()))
                super().process_request(request, client_address)

        Server.max_children = max_children
        with forking(Server(LOCAL, holding_handler(socketserver))) as server:
            clients = [Client(server) for _ in range(max_children + 2)]
            with serving(server, 100 * MS) as thread:
                for number, client in enumerate(clients):
                    expected = min(number + max_children, len(clients))
                    wait_until_blocking(lambda: len(started) >= expected)  # noqa: B023
                    trace("waits:", blocks(thread), len(started))
                    client.receive()
                    client.send(b"end")
                    trace(client.reply())
        return [started, trace.events, server.active_children]

    started, events, left = agreed(scenario, loop_name)
    assert started == [*range(max_children), max_children - 1, max_children - 1]
    most = max_children + 2
    counts = [min(number + max_children, most) for number in range(most)]
    assert events == [event for count in counts for event in (("waits:", True, count), b"")]
    assert left == set()


def test_children_are_collected_while_serving(loop_name: LoopName) -> None:
    """By ``service_actions()``, which may be extended; and no child is taken from anybody else."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(socketserver.ForkingTCPServer):  # type: ignore[misc]
            def service_actions(self) -> None:
                super().service_actions()
                collected.set()

        collected = threading.Event()
        with (
            subprocess.Popen(["true"]) as process,
            forking(Server(LOCAL, noted_handler(socketserver, Trace()))) as server,
            serving(server),
        ):
            trace([Client(server).reply() for _ in range(5)])
            trace(wait_until_blocking(lambda: not server.active_children), collected.is_set())
            trace(process.wait())
        return trace.events

    assert agreed(scenario, loop_name) == [[b"served"] * 5, (True, True), 0]


def test_handle_timeout_collects_children(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(socketserver.ForkingTCPServer):  # type: ignore[misc]
            def handle_timeout(self) -> str:
                super().handle_timeout()
                return "timeout"

        with forking(Server(LOCAL, noted_handler(socketserver, Trace()))) as server:
            clients = [Client(server) for _ in range(2)]
            trace([server.handle_request() for _ in clients], [client.reply() for client in clients])
            server.timeout = 1 * MS
            trace(set(statuses(server)))
            trace(server.handle_request(), server.active_children)
        return trace.events

    assert agreed(scenario, loop_name) == [
        ([None, None], [b"served", b"served"]),
        {0},
        ("timeout", set()),
    ]


def test_children_that_somebody_else_has_reaped(loop_name: LoopName) -> None:
    def scenario(socketserver: Any, how: str) -> list[Any]:
        trace = Trace()
        with forking(socketserver.ForkingTCPServer(LOCAL, noted_handler(socketserver, Trace()))) as server:
            client = Client(server)
            server.handle_request()
            trace(client.reply())
            for pid in server.active_children:
                os.waitpid(pid, 0)
            if how == "collect":
                server.collect_children()
            elif how == "full":
                server.max_children = 1
                server.collect_children()
            elif how == "serve":
                with serving(server):
                    trace(Client(server).reply())
                    wait_until_blocking(lambda: not server.active_children)
        trace(server.active_children)
        return trace.events

    for how in ("collect", "full", "serve", "close"):
        replies = [b"served"] * (2 if how == "serve" else 1)
        assert agreed(scenario, loop_name, how) == [*replies, set()]


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_child_may_run_an_event_loop_and_serve(entry: str, loop_name: LoopName) -> None:
    """It has nothing of its parent's: no running loop, and it may be a server itself."""

    def scenario(socketserver: Any) -> list[Any]:
        async def nap() -> bytes:
            await asyncio.sleep(0)
            return b"a loop has run; "

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                self.request.sendall(asyncio.run(nap()))
                with socketserver.TCPServer(LOCAL, noted_handler(socketserver, Trace())) as inner:
                    client = Client(inner)
                    inner.handle_request()
                    self.request.sendall(client.reply())  # type: ignore[arg-type]
                    for _ in range(2):
                        with serving(inner):
                            self.request.sendall(Client(inner).reply())  # type: ignore[arg-type]

        with forking(recorded(socketserver.ForkingTCPServer, Trace())(LOCAL, Handler)) as server:
            clients = [Client(server) for _ in range(2)]
            run_turns(server, entry, 2)
            return [client.reply() for client in clients]

    assert agreed(scenario, loop_name) == [b"a loop has run; " + b"served" * 3] * 2


# --- programs that fork ---


def in_child(function: Callable[[], object]) -> int:
    """Fork; the child calls the function, and ends with status 0, or 1 if that raises. Returns its number."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(int(3 * PATIENCE) + 1)  # Should the parent die, so does the child.
        function()
        status = 0
    finally:
        os._exit(status)


@contextlib.contextmanager
def children(*functions: Callable[[], object]) -> Iterator[list[int]]:
    """A child process for each; they are killed if the test fails, and waited for in any case."""
    pids = [in_child(function) for function in functions]
    try:
        yield pids
    except BaseException:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        pids[:] = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_prefork(entry: str, loop_name: LoopName) -> None:
    """Two processes serve one socket: neither takes more than it works on."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                self.request.sendall(b"%d" % os.getpid())
                if self.request.recv(100) == b"quit":
                    self.server._BaseServer__shutdown_request = True

        def serve() -> None:
            if entry == "serve_forever":
                server.serve_forever(POLL_INTERVAL)
            while not server._BaseServer__shutdown_request and entry == "handle_request":
                server.handle_request()

        with socketserver.TCPServer(LOCAL, Handler) as server:
            with children(serve, serve) as pids:
                for word in (b"again", b"again", b"quit"):
                    clients = [Client(server) for _ in range(2)]
                    trace({int(client.receive()) for client in clients} == set(pids))
                    for client in clients:
                        client.send(word)
                    trace([client.reply() for client in clients])
            trace(pids)
        return trace.events

    assert agreed(scenario, loop_name) == [*[True, [b"", b""]] * 3, [0, 0]]


@pytest.mark.parametrize("first", ["serve_forever", "handle_request"])
@pytest.mark.parametrize("then", ["serve_forever", "handle_request"])
def test_fork_between_requests(first: str, then: str, loop_name: LoopName) -> None:
    """Parent and child go on with the server, each on its own, although it has served before."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(socketserver.TCPServer, Trace())
        with server_class(LOCAL, noted_handler(socketserver, Trace())) as server:
            clients = arriving(server, 1, "while it waits")
            run_turns(server, first, 1)
            trace(clients()[0].reply())
            for _ in range(2):
                with children(lambda: run_turns(server, then, 1)) as pids:
                    trace(Client(server).reply())
                trace(pids)
                clients = arriving(server, 1, "while it waits")
                run_turns(server, then, 1)
                trace(clients()[0].reply())
        return trace.events

    assert agreed(scenario, loop_name) == [b"served", *[b"served", [0], b"served"] * 2]


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_fork_in_a_hook(entry: str, loop_name: LoopName) -> None:
    """A handler starts a process of its own, and another forks: both are what they would be anywhere."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                command = [sys.executable, "-S", "-c", "print('a process')"]
                trace(subprocess.run(command, capture_output=True, check=True).stdout)
                with children(lambda: self.request.sendall(b"from a child")) as pids:
                    pass
                trace(pids)

        with recorded(socketserver.TCPServer, Trace())(LOCAL, Handler) as server:
            clients = [Client(server) for _ in range(2)]
            run_turns(server, entry, 2)
            trace([client.reply() for client in clients])
        return trace.events

    handled = [b"a process\n", [0]]
    assert agreed(scenario, loop_name) == [*handled, *handled, [b"from a child", b"from a child"]]
