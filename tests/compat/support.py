"""One program, run with ``socketserver`` and with ``compat``: what it notes has to be the same.

::

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with recorded(socketserver.TCPServer, trace)(LOCAL, noted_handler(socketserver, trace)) as server:
            client = Client(server)
            server.handle_request()
            trace(client.reply())
        return trace.events

    def test_one_request(loop_name: LoopName) -> None:
        assert agreed(scenario, loop_name) == ["server_bind", "server_activate", "get_request", ...]

A scenario is a function of the module. It returns plain values: names, numbers, lists of them, no
ports, no objects. Where several threads run at a time it is the scenario that puts them in an order.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
import select
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import compat
from asyncserver import LoopName
from tests.processes import LONG
from tests.waiting import MS, PATIENCE, wait_until_blocking

__all__ = [
    "ARRIVALS",
    "ENTRIES",
    "HOOKS",
    "LINUX",
    "LOCAL",
    "POLL_INTERVAL",
    "SERVERS",
    "Client",
    "InThread",
    "Trace",
    "address_for",
    "agreed",
    "answer",
    "arriving",
    "blocks",
    "noted_handler",
    "on_loop",
    "recorded",
    "run_turns",
    "serving",
    "wait_until_asleep",
]

LINUX = sys.platform.startswith("linux")

LOCAL = ("127.0.0.1", 0)

POLL_INTERVAL = 5 * MS
"""For scenarios that wait for the standard library to look at its flag."""

SERVERS = ("TCPServer", "UDPServer", "UnixStreamServer", "UnixDatagramServer")

ENTRIES = ("serve_forever", "handle_request", "own loop")
"""What ``run_turns`` can do."""

ARRIVALS = ("before", "while it waits")
"""When clients come: to a server that finds them there, or to one that is waiting already."""

HOOKS = (
    "server_bind",
    "server_activate",
    "get_request",
    "verify_request",
    "process_request",
    "process_request_thread",
    "finish_request",
    "shutdown_request",
    "close_request",
    "handle_timeout",
    "handle_error",
    "service_actions",
    "server_close",
)


def agreed(scenario: Callable[..., Any], loop_name: LoopName, *args: Any) -> Any:
    """What ``scenario(module, *args)`` returns: with the standard library, and with ``compat`` as well."""
    expected = scenario(socketserver, *args)
    with on_loop(loop_name):
        found = scenario(compat, *args)
    assert found == expected, "compat (left) does not do what the standard library (right) does"
    return expected


@contextlib.contextmanager
def on_loop(loop_name: LoopName) -> Iterator[Any]:
    """``compat``, whose servers run on that loop meanwhile; a program does not know of it."""
    with mock.patch.object(compat.EventLoopMixIn, "event_loop", loop_name):
        yield compat


# --- what is noted ---


class Trace:
    """What happened, in its order, and in which thread: none is named for the one that made the trace.

    ``fail`` says which steps raise what, each of them once.
    """

    def __init__(self, fail: Mapping[str, BaseException] | None = None) -> None:
        self._maker = threading.current_thread()
        self._others: list[threading.Thread] = []
        self._entries: list[tuple[str, Any]] = []
        self._fail = dict(fail or {})
        self.requests: list[Any] = []

    def __call__(self, *event: Any) -> None:
        """Note it. A hook must never find an event loop running, so that is noted as well."""
        what = event[0] if len(event) == 1 else event
        if _is_loop_running():
            what = ("inside a running loop", what)
        self._add(self.thread(), what)

    def _add(self, who: str, what: Any) -> None:
        self._entries.append((who, what))

    def thread(self) -> str:
        """The name of this thread: "" for the maker, an ``InThread``'s own, or a number for any other."""
        thread = threading.current_thread()
        if thread is self._maker:
            return ""
        if isinstance(thread, InThread):
            return thread.name
        if thread not in self._others:  # Two threads can be added at a time: each finds its own.
            self._others.append(thread)
        return f"thread {self._others.index(thread) + 1}"

    def step(self, *event: Any) -> None:
        """Note it, and raise what was planned for it."""
        self(*event)
        if (error := self._fail.pop(event[0], None)) is not None:
            raise error

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it; an exception is noted, and returned."""
        try:
            return function(*args)
        except BaseException as exc:
            self("raised", type(exc).__name__)
            return exc

    @property
    def events(self) -> list[Any]:
        """All of them: as they are from the maker's thread, and as ``(thread, event)`` from others."""
        return [(who, what) if who else what for who, what in self._entries]

    def by_thread(self) -> dict[str, list[Any]]:
        """For threads in no order."""
        found: dict[str, list[Any]] = {}
        for who, what in self._entries:
            found.setdefault(who, []).append(what)
        return found

    def close_requests(self) -> list[str]:
        """What has become of the connections that ``recorded`` servers accepted; they are closed then."""
        states = []
        for request in self.requests:
            if isinstance(request, socket.socket):
                states.append("open" if request.fileno() >= 0 else "closed")
                request.close()
        return states


def recorded(server_class: Any, trace: Trace) -> Any:
    """A subclass that notes the hooks as they are called, and can end itself after some turns (``turns``)."""

    class Recorded(server_class):  # type: ignore[misc]
        turns = 0

        def get_request(self) -> Any:
            trace.step("get_request")
            request, client_address = super().get_request()
            trace.requests.append(request)
            return request, client_address

        def service_actions(self) -> None:
            self.turns -= 1
            if self.turns == 0:
                self._BaseServer__shutdown_request = True
            trace.step("service_actions")
            super().service_actions()

        def handle_error(self, request: Any, client_address: Any) -> None:
            trace.step("handle_error", type(sys.exc_info()[1]).__name__)

    def noting(hook: str) -> Callable[..., Any]:
        def method(self: Any, *args: Any) -> Any:
            trace.step(hook)
            return getattr(super(Recorded, self), hook)(*args)

        return method

    for hook in HOOKS:
        if hasattr(server_class, hook) and hook not in vars(Recorded):
            setattr(Recorded, hook, noting(hook))
    return Recorded


def noted_handler(
    module: Any, trace: Trace, reply: bytes = b"served", base: str = "BaseRequestHandler"
) -> Any:
    """A handler class that notes its steps and sends ``reply``."""

    class Handler(getattr(module, base)):  # type: ignore[misc]
        def setup(self) -> None:
            trace.step("setup")
            super().setup()

        def handle(self) -> None:
            trace.step("handle")
            answer(self, reply)

        def finish(self) -> None:
            trace.step("finish")
            super().finish()

    return Handler


def answer(handler: Any, data: bytes) -> None:
    """Send the client of a plain handler something, whatever the kind of server."""
    if isinstance(handler.request, tuple):
        handler.request[1].sendto(data, handler.client_address)
    else:
        handler.request.sendall(data)


# --- servers ---


@contextlib.contextmanager
def address_for(server_class: Any) -> Iterator[Any]:
    """An address for a server of that class to bind."""
    if server_class.address_family == socket.AF_INET:
        yield LOCAL
    elif server_class.address_family == socket.AF_INET6:
        yield ("::1", 0)
    else:
        # A name of its own in /tmp, because pytest's own directories may be too long for a socket.
        with tempfile.TemporaryDirectory(prefix="compat") as directory:
            yield f"{directory}/socket"


def run_turns(server: Any, entry: str, turns: int = 1) -> None:
    """So many requests by one of ``ENTRIES``, in this thread, on a ``recorded`` server."""
    server.turns = turns
    match entry:
        case "serve_forever":
            server.serve_forever(PATIENCE)
        case "handle_request":
            while server.turns > 0:
                server.turns -= 1
                server.handle_request()
        case "own loop":
            while server.turns > 0:
                select.select([server], [], [], PATIENCE)
                server._handle_request_noblock()
                server.service_actions()
            server._BaseServer__shutdown_request = False


class InThread(threading.Thread):
    """A call in a thread of its own, that traces know by its name."""

    def __init__(self, name: str, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._args = args
        self._result: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function(*self._args)
        except BaseException as exc:
            self._error = exc

    @property
    def done(self) -> bool:
        return not self.is_alive()

    def result(self) -> Any:
        """What it returns or raises, when it does."""
        self.join(PATIENCE)
        assert not self.is_alive(), f"{self.name} did not end"
        if self._error is not None:
            raise self._error
        return self._result


@contextlib.contextmanager
def serving(server: Any, poll_interval: float = POLL_INTERVAL) -> Iterator[InThread]:
    """The server in the thread "serving", until it is shut down at the end."""
    thread = InThread("serving", server.serve_forever, poll_interval)
    try:
        yield thread
    finally:
        InThread("shutdown", server.shutdown).result()
        thread.result()


def blocks(thread: threading.Thread) -> bool:
    """Whether it waits in a system call, for as long as one can see, or else has ended."""
    sleeps: list[str | None] = []

    def condition() -> bool:
        sleeps.append(_sleep(thread))
        same = len(sleeps) >= _LOOKS and set(sleeps[-_LOOKS:]) == {sleeps[-1]} != {None}
        return same or not thread.is_alive()

    wait_until_blocking(condition, what=f"{thread.name} to wait, or to end")
    return thread.is_alive()


_LOOKS = 6


def _sleep(thread: threading.Thread) -> str | None:
    """Which sleep of the thread this is; None while it is awake."""
    if not LINUX:
        return "unknown"  # There is nothing to look at: a thread that lives for some milliseconds waits.
    task = Path(f"/proc/self/task/{thread.native_id}")
    try:
        if task.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "S":
            return None
        status = task.joinpath("status").read_text()
    except (FileNotFoundError, ProcessLookupError):  # It has ended.
        return None
    found = re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)
    return found[1] if found else None


# --- clients ---


_numbers = itertools.count(1)


class Client:
    """A client of any kind of server. It waits for nobody to connect and send: the kernel answers."""

    def __init__(self, server: Any, data: bytes | None = None) -> None:
        self.sock = socket.socket(server.socket.family, server.socket.type)
        self.sock.settimeout(PATIENCE)
        self._stream = server.socket.type == socket.SOCK_STREAM
        address = server.socket.getsockname()
        try:
            if server.socket.family == socket.AF_UNIX and not self._stream:
                self.sock.bind(f"{address}.{next(_numbers)}")  # Or nobody could reply.
            self.sock.connect(address)
            if data is not None or not self._stream:
                self.sock.sendall(b"a request" if data is None else data)
        except BaseException:
            self.sock.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> Any:
        """Its address, as the server sees it."""
        return self.sock.getsockname()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def receive(self, most: int = 65_536) -> bytes:
        """What has come, or comes; b"" at the end."""
        return self.sock.recv(most)

    def reply(self) -> bytes | str:
        """All that comes until the end, or "reset"; one datagram. Closes."""
        with self.sock:
            if not self._stream:
                return self.sock.recv(65_536)
            received = b""
            try:
                while data := self.sock.recv(65_536):
                    received += data
            except ConnectionResetError:
                return "reset"
            return received

    def close(self) -> None:
        self.sock.close()


def arriving(server: Any, count: int, arrival: str, data: bytes | None = None) -> Callable[[], list[Client]]:
    """Have clients connect, one of ``ARRIVALS``; the call gives them when this thread has served them."""
    if arrival == "before":
        clients = [Client(server, data) for _ in range(count)]
        return lambda: clients
    thread = threading.current_thread()

    def connect() -> list[Client]:
        assert blocks(thread), "nobody has waited for clients"
        return [Client(server, data) for _ in range(count)]

    return InThread("clients", connect).result


def _is_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def wait_until_asleep(pid: int) -> None:
    """Until the main thread of the process sits in a system call."""

    def switches() -> str | None:
        text = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^State:\s+S.*^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE | re.DOTALL)
        return found[1] if found else None

    def condition() -> bool:
        before = switches()
        return before is not None and not select.select([], [], [], 5 * MS)[0] and switches() == before

    wait_until_blocking(condition, timeout=LONG)
