"""The echo servers with which introductions to ``socketserver`` begin, and ``import compat as socketserver``.

One that tells each step, the shortest one there is, one with threads, one with child processes. What has
to happen is written down here.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import compat as socketserver
from asyncserver import LoopName
from tests.processes import PythonProcess, connect, run_python
from tests.waiting import PATIENCE

ADDRESS = ("127.0.0.1", 0)


@pytest.fixture(autouse=True)
def _on_loop(loop_name: LoopName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socketserver.EventLoopMixIn, "event_loop", loop_name)


@contextmanager
def thread_of(function: Callable[[], None]) -> Iterator[threading.Thread]:
    """The thread that serves; it has to end by itself."""
    thread = threading.Thread(target=function, name="of the server", daemon=True)
    thread.start()
    yield thread
    thread.join(PATIENCE)
    assert not thread.is_alive()


def echoed(address: tuple[str, int], text: bytes) -> tuple[bytes, bytes]:
    """The reply, and what comes after it."""
    with socket.create_connection(address, PATIENCE) as client:
        client.sendall(text)
        return client.recv(1024), client.recv(1024)


# The one that tells each step.

ONE_REQUEST = [
    "get_request",
    "verify_request",
    "process_request",
    "finish_request",
    "handler: __init__",
    "handler: setup",
    "handler: handle",
    "handler: finish",
    "shutdown_request",
    "close_request",
]

STEPS_OF_SERVER = [
    "__init__",
    "server_bind",
    "server_activate",
    "serve_forever",
    "handle_request",
    "handle_timeout",
    "handle_error",
    "server_close",
    *(step for step in ONE_REQUEST if not step.startswith("handler")),
]


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(self.request.recv(1024))


def telling(base: type, told: list[str], steps: list[str], prefix: str = "") -> Any:
    """A subclass whose methods tell their names, and then do what they always do."""

    def method(name: str) -> Callable[..., Any]:
        def tell(self: Any, *args: Any) -> Any:
            told.append(prefix + name)
            return getattr(super(made, self), name)(*args)

        return tell

    made = type(base.__name__, (base,), {name: method(name) for name in steps})
    return made


def test_each_step_when_served_for_ever() -> None:
    told: list[str] = []
    handler = telling(Echo, told, ["__init__", "setup", "handle", "finish"], "handler: ")
    server = telling(socketserver.TCPServer, told, STEPS_OF_SERVER)(ADDRESS, handler)
    with thread_of(server.serve_forever):
        assert echoed(server.server_address, b"a question") == (b"a question", b"")
        assert echoed(server.server_address, b"and another") == (b"and another", b"")
        server.shutdown()
    server.server_close()
    start = ["__init__", "server_bind", "server_activate", "serve_forever"]
    assert told == [*start, *ONE_REQUEST, *ONE_REQUEST, "server_close"]


def test_each_step_when_requests_are_handled_one_by_one() -> None:
    told: list[str] = []
    handler = telling(Echo, told, ["__init__", "setup", "handle", "finish"], "handler: ")
    server = telling(socketserver.TCPServer, told, STEPS_OF_SERVER)(ADDRESS, handler)

    def handle_two() -> None:
        server.handle_request()
        server.handle_request()

    with thread_of(handle_two):
        assert echoed(server.server_address, b"a question") == (b"a question", b"")
        assert echoed(server.server_address, b"and another") == (b"and another", b"")
    server.server_close()
    start = ["__init__", "server_bind", "server_activate"]
    one = ["handle_request", *ONE_REQUEST]
    assert told == [*start, *one, *one, "server_close"]


# The shortest one; its socket is closed under its feet, and the program ends.

SHORTEST = """
import socket, sys, threading
import compat as socketserver

socketserver.EventLoopMixIn.event_loop = sys.argv[1]

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(1024))

server = socketserver.TCPServer(("localhost", 0), Echo)
threading.Thread(target=server.serve_forever, daemon=True).start()
with socket.create_connection(server.server_address, 10) as client:
    client.sendall(b"some words")
    print(client.recv(1024).decode(), "from", server.server_address[0])
server.socket.close()
"""


def test_shortest_server(loop_name: LoopName, tmp_path: Path) -> None:
    assert run_python(tmp_path, "-c", SHORTEST, loop_name) == (0, "some words from 127.0.0.1\n", "")


# The one with threads: as long as each of them waits for the others, nobody is answered.


def test_thread_for_each_request() -> None:
    together = threading.Barrier(3)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            together.wait(PATIENCE)
            threads.append(threading.current_thread())
            self.request.sendall(threading.current_thread().name.encode())

    class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
        pass

    threads: list[threading.Thread] = []
    server = Server(ADDRESS, Handler)
    with thread_of(server.serve_forever) as serving:
        clients = [socket.create_connection(server.server_address, PATIENCE) for _ in range(3)]
        names = set()
        for client in clients:
            with client:
                names.add(client.recv(1024).decode())
        server.shutdown()
    server.server_close()
    assert len(set(threads)) == 3
    assert not {serving, threading.current_thread()} & set(threads)
    assert names == {thread.name for thread in threads}
    assert all(re.fullmatch(r"Thread-\d+ \(process_request_thread\)", name) for name in names)
    assert not any(thread.is_alive() for thread in threads)  # server_close() has waited for them


# The one with child processes. It ends when the children of two requests have been taken note of, which
# has to happen without another request.

FORKING = """
import json, os, sys
import compat as socketserver

socketserver.EventLoopMixIn.event_loop = sys.argv[1]

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        text = self.request.recv(1024).decode()
        self.request.sendall(json.dumps([text, os.getpid(), os.getppid()]).encode())

class Server(socketserver.ForkingMixIn, socketserver.TCPServer):
    requests = 0

    def process_request(self, *args):
        super().process_request(*args)
        self.requests += 1

    def service_actions(self):
        super().service_actions()
        if self.requests == 2 and not self.active_children:
            raise SystemExit("no children left")

with Server(("localhost", 0), Echo) as server:
    print("Listening on {}:{}".format(*server.server_address), flush=True)
    server.serve_forever()
"""


def test_child_process_for_each_request(loop_name: LoopName, tmp_path: Path) -> None:
    with PythonProcess(tmp_path, "-c", FORKING, loop_name) as program:
        port = program.wait_for_port()
        with connect(port) as first, connect(port) as second:
            second.sendall(b"second")  # The first has a child, which waits.
            answers = [json.loads(second.recv(1024))]
            first.sendall(b"first")
            answers.append(json.loads(first.recv(1024)))
        program.wait()
        assert program.stderr == "no children left\n"
    texts, children, parents = zip(*answers, strict=True)
    assert texts == ("second", "first")
    assert len({program.pid, *children}) == 3
    assert set(parents) == {program.pid}
