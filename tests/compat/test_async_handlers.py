"""``AsyncStreamRequestHandler`` and ``AsyncDatagramRequestHandler``, in every kind of server."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio import BrokenResourceError, EndOfStream

import compat
from asyncserver import LoopName, Stream
from compat import AsyncDatagramRequestHandler, AsyncStreamRequestHandler
from compat.engine import engine_of
from tests.certificates import authority
from tests.clients import reset_at_close
from tests.compat.support import ENTRIES, LINUX, Client, InThread, address_for, blocks, run_turns, serving
from tests.waiting import PATIENCE, wait_until_blocking

STREAMS = ("TCPServer", "UnixStreamServer")
DATAGRAMS = ("UDPServer", "UnixDatagramServer")

PREFIXES = {"serial": "", "threading": "Threading", "max_threads": "Threading", "forking": "Forking"}
KINDS = tuple(PREFIXES)
MIXED_IN = ("mixed into serial", "mixed into threading", "mixed into forking")
"""``EventLoopMixIn`` in front of the standard library's classes."""

ANOTHER_THREAD, ANOTHER_PROCESS = "another thread", "another process"


def class_of(kind: str, transport: str) -> Any:
    """A server class of that kind. With ``max_threads`` there is but one thread."""
    into, _, plain = kind.rpartition("mixed into ")
    if not into:
        base = getattr(compat, PREFIXES[plain] + transport)
        return type(plain, (Noting, base), {"max_threads": 1} if kind == "max_threads" else {})
    if not hasattr(socketserver, PREFIXES[plain] + transport):
        pytest.skip("not in this Python")
    return type(
        plain, (Noting, compat.EventLoopMixIn, getattr(socketserver, PREFIXES[plain] + transport)), {}
    )


class Noting:
    """A server that notes what is asked of it at the end of a request."""

    def __init__(self, *args: Any) -> None:
        self.notes: list[Any] = []
        self.errors: list[Any] = []
        super().__init__(*args)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.notes.append("handle_error")
        self.errors.append((request, client_address, sys.exc_info()[1]))

    def shutdown_request(self, request: Any) -> None:
        self.notes.append("shutdown_request")
        super().shutdown_request(request)  # type: ignore[misc]


@contextlib.contextmanager
def made(server_class: Any, handler: Any, loop_name: LoopName, **attributes: Any) -> Iterator[Any]:
    """A server of that class on a free address; it is closed in the end."""
    with address_for(server_class) as address, server_class(address, handler) as server:
        server.event_loop = loop_name
        for name, value in attributes.items():
            setattr(server, name, value)
        yield server


@contextlib.contextmanager
def served(*args: Any, **attributes: Any) -> Iterator[Any]:
    """The same, and a thread serves with it. Nothing may depend on the poll interval."""
    with made(*args, **attributes) as server, serving(server, PATIENCE) as server.thread:
        yield server


def kind_of_loop() -> str:
    return type(asyncio.get_running_loop()).__module__.partition(".")[0]


def everywhere(test: Any) -> Any:
    return pytest.mark.parametrize("kind", KINDS + MIXED_IN)(test)


class Echo(AsyncStreamRequestHandler):
    async def handle(self) -> None:
        async for data in self.stream:
            await self.stream.send(data)


def echoed(client: Client, data: bytes = b"hello") -> bool:
    client.send(data)
    return client.receive() == data


def serves(server: Any) -> bool:
    """Whether it serves a new client."""
    with Client(server) as client:
        return echoed(client)


# Many at a time


MANY = 10


class Meeting:
    """Where handlers wait for each other; also how they were run."""

    name = contextvars.ContextVar("name", default="nobody")

    def __init__(self) -> None:
        self.all_are_here = asyncio.Event()
        self.came: list[Any] = []
        self.threads: set[int] = set()
        self.loops: set[asyncio.AbstractEventLoop] = set()

    async def join(self, who: Any) -> None:
        assert self.name.get() == "nobody"  # The context of a handler is its own.
        self.name.set("somebody")
        self.came.append(who)
        self.threads.add(threading.get_ident())
        self.loops.add(asyncio.get_running_loop())
        if len(self.came) == MANY:
            self.all_are_here.set()
        await self.all_are_here.wait()


@pytest.mark.parametrize("transport", STREAMS)
@everywhere
def test_streams_at_the_same_time(kind: str, transport: str, loop_name: LoopName) -> None:
    """Each waits for all others, and they do so in the thread that accepts them, whatever the mix-in says."""
    meeting = Meeting()

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            assert isinstance(self.stream, Stream)
            await meeting.join(self.client_address)
            await self.stream.send(await self.stream.receive() + b", " + kind_of_loop().encode())

    with served(class_of(kind, transport), Handler, loop_name) as server:
        clients = [Client(server, b"hello") for _ in range(MANY)]
        names = [client.name for client in clients]
        assert [client.reply() for client in clients] == [b"hello, " + loop_name.encode()] * MANY
        assert sorted(meeting.came) == sorted(names)
        assert meeting.threads == {server.thread.ident}
        assert len(meeting.loops) == 1
    assert server.notes == ["shutdown_request"] * MANY


@pytest.mark.parametrize("transport", DATAGRAMS)
@everywhere
def test_datagrams_at_the_same_time(kind: str, transport: str, loop_name: LoopName) -> None:
    meeting = Meeting()

    class Handler(AsyncDatagramRequestHandler):
        async def handle(self) -> None:
            assert self.socket is self.server.socket
            await meeting.join(self.client_address)
            await self.reply(self.packet + b", " + kind_of_loop().encode())

    with served(class_of(kind, transport), Handler, loop_name) as server:
        clients = [Client(server, b"%d" % number) for number in range(MANY)]
        names = [client.name for client in clients]
        replies = [client.reply() for client in clients]
        assert replies == [b"%d, %s" % (number, loop_name.encode()) for number in range(MANY)]
        assert sorted(meeting.came) == sorted(names)
        assert meeting.threads == {server.thread.ident}
    assert server.notes == ["shutdown_request"] * MANY


@pytest.mark.skipif(not LINUX, reason="elsewhere such sends fail with ENOBUFS, or datagrams are dropped")
def test_a_reply_waits_for_room_without_blocking_others(loop_name: LoopName) -> None:
    """A client that does not read lets the kernel's queue of its socket get full."""
    count = int(Path("/proc/sys/net/unix/max_dgram_qlen").read_text()) + 5

    class Handler(AsyncDatagramRequestHandler):
        async def handle(self) -> None:
            await self.reply(self.packet)

    with served(class_of("serial", "UnixDatagramServer"), Handler, loop_name) as server:
        # One that is connected to the server has room without bounds.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
            slow.settimeout(PATIENCE)
            slow.bind(f"{server.server_address}.slow")
            for number in range(count):
                slow.sendto(b"%d" % number, server.server_address)
            with Client(server, b"quick") as quick:
                assert quick.receive() == b"quick"
            assert "shutdown_request" in server.notes
            assert server.notes != ["shutdown_request"] * (count + 1)
            assert {slow.recv(100) for _ in range(count)} == {b"%d" % number for number in range(count)}
    assert not server.errors


@pytest.mark.parametrize("transport", STREAMS)
def test_a_client_that_does_not_read_holds_up_nobody(transport: str, loop_name: LoopName) -> None:
    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            much = await self.stream.receive() == b"much"
            await self.stream.send(bytes(20_000_000) if much else b"a little")

    with served(class_of("serial", transport), Handler, loop_name) as server:
        with Client(server, b"much") as slow:
            assert slow.receive(1) == b"\0"
            assert Client(server, b"hello").reply() == b"a little"
            received = 1
            while received < 20_000_000:
                received += len(slow.receive(1 << 20))
    assert not server.errors


def test_many_requests_do_not_starve_the_handlers(loop_name: LoopName) -> None:
    """They have their turn although the next request is always there already."""
    begun: list[int] = []

    class Handler(compat.AsyncRequestHandler):
        async def handle(self) -> None:
            for _ in range(5):
                await asyncio.sleep(0)
            self.server._BaseServer__shutdown_request = True

    class Server(compat.TCPServer):
        def get_request(self) -> Any:
            begun.append(len(begun))
            assert len(begun) < 1_000, "no end"
            return None, None  # And the connection is not accepted: the socket stays readable.

        def finish_request(self, request: Any, client_address: Any) -> None:
            if len(begun) == 1:
                Handler(request, client_address, self)

        def shutdown_request(self, request: Any) -> None:
            pass

    with made(Server, None, loop_name) as server, Client(server):
        server.serve_forever(PATIENCE)


# Beside blocking handlers


def where(server: Any) -> str:
    """Where this is called, seen from the thread that serves."""
    if os.getpid() != server.pid:
        return ANOTHER_PROCESS
    return "" if threading.get_ident() == server.thread.ident else ANOTHER_THREAD


class Async(AsyncStreamRequestHandler):
    """Says where it is, and then echoes."""

    async def handle(self) -> None:
        assert await self.stream.receive() == b"async"
        await self.stream.send(f"{where(self.server)}, {kind_of_loop()}".encode())
        async for data in self.stream:
            await self.stream.send(data)


class Blocking(compat.StreamRequestHandler):
    def handle(self) -> None:
        assert self.request.recv(10) == b"blocking"
        self.wfile.write(f"{where(self.server)}, no loop".encode())


def choose(request: Any, client_address: Any, server: Any) -> Any:
    """By the first byte that the client sends."""
    chosen = Async if request.recv(1, socket.MSG_PEEK) == b"a" else Blocking
    return chosen(request, client_address, server)


class Choosing:
    """A server that decides for each request who handles it."""

    pid = 0

    def finish_request(self, request: Any, client_address: Any) -> None:
        choose(request, client_address, self)


@pytest.mark.parametrize("by", ["finish_request", "a factory"])
@pytest.mark.parametrize("transport", STREAMS)
@everywhere
def test_beside_blocking_ones(kind: str, transport: str, by: str, loop_name: LoopName) -> None:
    server_class = class_of(kind, transport)
    if by == "finish_request":
        server_class = type("Choosing", (Choosing, server_class), {})
    elsewhere = {"serial": "", "forking": ANOTHER_PROCESS}.get(kind.split()[-1], ANOTHER_THREAD)
    extra = {"max_threads": 3} if kind == "max_threads" else {}
    with made(server_class, choose, loop_name, pid=os.getpid(), **extra) as server:
        with serving(server, PATIENCE) as server.thread:
            with Client(server, b"async") as one, Client(server, b"async") as two:
                for client in one, two:
                    assert client.receive() == f"{elsewhere}, {loop_name}".encode()
                for _ in range(2):
                    assert Client(server, b"blocking").reply() == f"{elsewhere}, no loop".encode()
                for client in two, one:
                    assert echoed(client)
                    # Not only closed: a child process may have a copy of a client that is in this one.
                    client.sock.shutdown(socket.SHUT_WR)


# From the first step to the last


class Stepping:
    """Notes the steps of a handler; ``server.raising`` is where it raises ``server.error``."""

    async def setup(self) -> None:
        await super().setup()  # type: ignore[misc]
        await self.step("setup")

    async def handle(self) -> None:
        await self.step("handle")

    async def finish(self) -> None:
        await self.step("finish")
        await super().finish()  # type: ignore[misc]

    async def step(self, name: str) -> None:
        server: Any = self.server  # type: ignore[attr-defined]
        assert kind_of_loop() == server.event_loop
        await asyncio.sleep(0)
        server.notes.append(name)
        if server.raising == name:
            raise server.error


class SteppingStream(Stepping, AsyncStreamRequestHandler):
    pass


class SteppingBase(Stepping, compat.AsyncRequestHandler):
    pass


class SteppingDatagram(Stepping, AsyncDatagramRequestHandler):
    pass


STEPS = {
    "": ["setup", "handle", "finish"],
    "setup": ["setup"],
    "handle": ["setup", "handle", "finish"],
    "finish": ["setup", "handle", "finish"],
}


class Ending:
    """A server that serves one request, and looks at it in ``shutdown_request()``."""

    turns = 0
    raising = ""
    error: BaseException = ValueError("from a handler")

    def __init__(self, *args: Any) -> None:
        self.endings: list[tuple[bool, Any]] = []
        super().__init__(*args)

    def shutdown_request(self, request: Any) -> None:
        if isinstance(request, socket.socket):
            self.endings.append((request.fileno() >= 0, request.gettimeout()))
        super().shutdown_request(request)  # type: ignore[misc]

    def service_actions(self) -> None:
        self.turns -= 1
        if self.turns == 0:
            self._BaseServer__shutdown_request = True
        super().service_actions()  # type: ignore[misc]


def run_one(server: Any, entry: str) -> None:
    """One request by one of ``ENTRIES``, to its end; also where an event loop is running."""
    entry, _, inside = entry.partition(" inside ")
    if not inside:
        run_turns(server, entry)
    else:

        async def main() -> None:
            with pytest.warns(RuntimeWarning, match="serve_async") if entry != "own loop" else _nothing():
                run_turns(server, entry)

        asyncio.run(main())
    server.server_close()


_nothing = contextlib.nullcontext

ALL_ENTRIES = (*ENTRIES, *(f"{entry} inside a loop" for entry in ENTRIES))


@pytest.mark.parametrize("raising", STEPS)
@pytest.mark.parametrize("entry", ALL_ENTRIES)
@pytest.mark.parametrize(
    ("transport", "handler"),
    [
        *[(transport, SteppingStream) for transport in STREAMS],
        *[(transport, SteppingDatagram) for transport in DATAGRAMS],
        ("TCPServer", SteppingBase),
    ],
)
def test_the_steps_of_a_request(
    transport: str, handler: Any, entry: str, raising: str, loop_name: LoopName
) -> None:
    server_class = type("Server", (Ending, class_of("serial", transport)), {})
    with made(server_class, handler, loop_name, raising=raising, timeout=PATIENCE) as server:
        with Client(server) as client:
            name = client.name
            run_one(server, entry)
            if transport in STREAMS:
                assert client.receive() == b""
    assert server.notes == [*STEPS[raising], *(["handle_error"] if raising else []), "shutdown_request"]
    assert server.endings == ([(True, None)] if transport in STREAMS else [])
    for _, client_address, error in server.errors:
        assert client_address == name
        assert error is server.error
        assert error.__traceback__ is not None


@everywhere
def test_a_handler_that_fails_is_the_only_one(kind: str, loop_name: LoopName) -> None:
    class Handler(Echo):
        async def handle(self) -> None:
            if await self.stream.receive() == b"fail":
                raise ValueError("from a handler")
            await self.stream.send(b"fine")
            await super().handle()

    with served(class_of(kind, "TCPServer"), Handler, loop_name) as server, Client(server, b"go on") as other:
        assert other.receive() == b"fine"
        assert Client(server, b"fail").reply() == b""
        assert server.notes == ["handle_error", "shutdown_request"]
        assert echoed(other)
        assert Client(server, b"fail").reply() == b""


@pytest.mark.parametrize("raising", ["setup", "handle", "finish"])
@pytest.mark.parametrize("entry", ALL_ENTRIES)
def test_a_handler_that_cancels_itself(entry: str, raising: str, loop_name: LoopName) -> None:
    """That is no error. On the loop it ends this handler; elsewhere it leaves the call, as ever."""
    server_class = type("Server", (Ending, class_of("serial", "TCPServer")), {})
    error = asyncio.CancelledError()
    attributes = {"raising": raising, "error": error, "timeout": PATIENCE}
    with made(server_class, SteppingStream, loop_name, **attributes) as server, Client(server) as client:
        leaves = entry != "serve_forever"
        with pytest.raises(asyncio.CancelledError) if leaves else _nothing():
            run_one(server, entry)
        assert client.receive() == b""
    assert server.notes == [*STEPS[raising], "shutdown_request"]
    assert server.endings == [(True, None)]


@pytest.mark.parametrize("error_class", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_ends_the_program(kind: str, error_class: Any, loop_name: LoopName) -> None:
    """As from a blocking handler of a server without mix-ins: ``serve_forever()`` raises it."""
    error = error_class()
    server_class = type("Server", (Ending, class_of(kind, "TCPServer")), {})
    with made(server_class, SteppingStream, loop_name, raising="handle", error=error) as server:
        with Client(server) as client:
            with pytest.raises(error_class) as raised:
                server.serve_forever(PATIENCE)
            assert raised.value is error
            assert client.receive() == b""
        assert server.notes == ["setup", "handle", "finish", "shutdown_request"]
        server.notes.clear()
        server.raising = ""
        with Client(server) as client, serving(server, PATIENCE):
            assert client.receive() == b""
    assert server.notes == ["setup", "handle", "finish", "shutdown_request"]


class Keeping:
    """A server that closes its connections when the test says so."""

    def shutdown_request(self, request: Any) -> None:
        self.notes.append("shutdown_request")  # type: ignore[attr-defined]
        self.kept.append(request)  # type: ignore[attr-defined]


SIZE = 3_000_000


class Sending(AsyncStreamRequestHandler):
    """Sends much, then a little, and ends in the way that the client asks for."""

    async def handle(self) -> None:
        way = await self.stream.receive()
        await self.stream.send(bytes(SIZE))
        await self.stream.send(b"the end")
        if way == b"raise":
            raise ValueError("from a handler")
        if way == b"half-close":
            await self.stream.send_eof()
        if way == b"close":
            await self.stream.aclose()
        if way == b"finish":
            self.finish = self.send_more  # type: ignore[method-assign]

    async def send_more(self) -> None:
        await self.stream.send(b", really")


@pytest.mark.parametrize("way", ["return", "finish", "raise", "half-close", "close"])
@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
@pytest.mark.parametrize("transport", STREAMS)
def test_what_was_sent_has_left(transport: str, entry: str, way: str, loop_name: LoopName) -> None:
    """When ``shutdown_request()`` is called: who overrides that may close as rudely as he likes."""
    server_class = type("Server", (Keeping, class_of("serial", transport)), {})
    end = b"the end, really" if way == "finish" else b"the end"
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(made(server_class, Sending, loop_name, kept=[]))
        client = stack.enter_context(Client(server, way.encode()))
        stack.callback(lambda: [request.close() for request in server.kept])
        thread = InThread("serving", getattr(server, entry))
        stack.callback(thread.join, PATIENCE)
        stack.callback(server.shutdown if entry == "serve_forever" else _nothing)
        received = b""
        while len(received) < SIZE + len(end) and (data := client.receive()):
            received += data
        assert received[SIZE:] == end
        client.sock.shutdown(socket.SHUT_WR)
        wait_until_blocking(lambda: server.kept)
        assert server.notes == [*(["handle_error"] if way == "raise" else []), "shutdown_request"]
        (request,) = server.kept
        if way == "close":
            assert request.fileno() == -1
        else:
            assert request.gettimeout() is None
        if way in {"close", "half-close"}:
            assert client.receive() == b""


def test_a_handler_that_closes_its_stream(loop_name: LoopName) -> None:
    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            if await self.stream.receive() == b"abort":
                self.stream.abort()
            else:
                await self.stream.send(b"goodbye")
                await self.stream.aclose()

    with served(class_of("serial", "TCPServer"), Handler, loop_name) as server:
        assert Client(server, b"close").reply() == b"goodbye"
        assert Client(server, b"abort").reply() == "reset"
    assert server.notes == ["shutdown_request"] * 2


def reset(client: Client) -> None:
    reset_at_close(client.sock)
    client.close()


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_a_peer_that_resets(entry: str, loop_name: LoopName) -> None:
    """The handler is told, and who does not care has it in ``handle_error()``, as with blocking ones."""
    begun = threading.Event()

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            begun.set()
            await self.stream.receive()

    with made(class_of("serial", "TCPServer"), Handler, loop_name) as server:
        with serving(server, PATIENCE) if entry == "serve_forever" else _nothing():
            client = Client(server)
            thread = InThread("handling", server.handle_request) if entry == "handle_request" else None
            wait_until_blocking(begun.is_set)
            reset(client)
            wait_until_blocking(lambda: "shutdown_request" in server.notes)
            if thread is not None:
                thread.result()
        assert server.notes == ["handle_error", "shutdown_request"]
        assert isinstance(server.errors[0][2], BrokenResourceError)


def test_peers_that_go_at_any_time(loop_name: LoopName) -> None:
    """Before the handler begins, in a large reply, and with an end."""

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            await self.stream.receive()
            await self.stream.send(bytes(SIZE))
            await self.stream.receive()

    with served(class_of("serial", "TCPServer"), Handler, loop_name) as server:
        reset(Client(server))
        with Client(server, b"x") as client:
            client.receive(1)
            reset(client)
        Client(server).close()
        wait_until_blocking(lambda: server.notes.count("shutdown_request") == 3)
        assert {type(error) for _, _, error in server.errors} == {BrokenResourceError, EndOfStream}
        with Client(server, b"x") as client:
            assert client.receive()


def test_what_a_handler_has_begun_goes_on_without_it(loop_name: LoopName) -> None:
    """While the server serves, with no other handler there."""
    done = threading.Event()
    background: list[asyncio.Task[Any]] = []

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0.01)
            assert await asyncio.to_thread(kind_of_thread) == "another"
        done.set()

    def kind_of_thread() -> str:
        return "serving" if threading.current_thread() is server.thread else "another"

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            background.append(asyncio.create_task(work()))

    with made(class_of("serial", "TCPServer"), Handler, loop_name) as server:
        with serving(server) as server.thread, Client(server) as client:
            assert client.receive() == b""
            wait_until_blocking(lambda: done.is_set() or background[0].done())
    assert done.is_set(), background[0]


def test_an_error_in_a_hook_is_not_swallowed(loop_name: LoopName, loop_errors: list[str]) -> None:
    """It is raised, as from a server without mix-ins, or at least reported."""

    class Server(class_of("serial", "TCPServer")):  # type: ignore[misc]
        def handle_error(self, request: Any, client_address: Any) -> None:
            raise sys.exc_info()[1]

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            raise ValueError("from a handler")

    raised: list[BaseException] = []
    with made(Server, Handler, loop_name) as server, Client(server) as client:
        thread = InThread("serving", server.serve_forever, PATIENCE)
        assert client.receive() == b""
        server.shutdown()
        try:
            thread.result()
        except ValueError as exc:
            raised.append(exc)
    assert raised or loop_errors
    loop_errors.clear()


@pytest.mark.parametrize("entry", ENTRIES)
def test_made_by_hand_it_runs_to_its_end(entry: str, loop_name: LoopName) -> None:
    """Wherever that is, and also where servers have made others before."""
    server_class = type("Server", (Ending, class_of("serial", "TCPServer")), {})
    with made(server_class, SteppingBase, loop_name, timeout=PATIENCE) as server:
        for _ in range(2):
            SteppingBase(None, None, server)
            assert server.notes == STEPS[""]
            server.notes.clear()
            with Client(server):
                run_turns(server, entry)
            wait_for_the_rest(server)
            assert server.notes == [*STEPS[""], "shutdown_request"]
            server.notes.clear()


def wait_for_the_rest(server: Any) -> None:
    """What ``serve_forever()`` has kept goes on with the next."""
    if "shutdown_request" not in server.notes:
        with serving(server):
            wait_until_blocking(lambda: "shutdown_request" in server.notes)


def test_what_a_handler_does_in_threads_and_in_the_background(loop_name: LoopName) -> None:
    """Its loop ends like that of ``asyncio.run()``: nothing goes on, and nobody is told of lost tasks."""
    background: list[asyncio.Task[Any]] = []

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            background.append(asyncio.create_task(asyncio.sleep(2 * PATIENCE)))
            self.numbers = self.count()
            assert await anext(self.numbers) == 0
            await self.stream.send(await asyncio.to_thread(self.stream.__class__.__name__.encode))

        async def count(self) -> Any:
            try:
                for number in range(10):
                    yield number
            finally:
                server.notes.append("closed")

    with served(class_of("threading", "TCPServer"), Handler, loop_name) as server:
        with Client(server) as client:
            assert client.receive() == b"Stream"
            assert client.receive() == b""
        assert not background[0].done()
    assert background[0].cancelled()
    assert "closed" in server.notes


@pytest.mark.parametrize("transport", ["TCPServer", "UDPServer"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_the_thread_is_as_it_was(entry: str, transport: str, loop_name: LoopName) -> None:
    handler = SteppingStream if transport in STREAMS else SteppingDatagram
    server_class = type("Server", (Ending, class_of("serial", transport)), {})
    own = asyncio.new_event_loop()
    asyncio.set_event_loop(own)
    try:
        with made(server_class, handler, loop_name, timeout=PATIENCE) as server, Client(server):
            before = signal.getsignal(signal.SIGINT)
            run_one(server, entry)
            assert signal.getsignal(signal.SIGINT) is before
            assert signal.set_wakeup_fd(-1) == -1
            assert asyncio.get_event_loop_policy().get_event_loop() is own
    finally:
        asyncio.set_event_loop(None)
        own.close()


# When serving ends


def test_a_handler_ends_serving(loop_name: LoopName) -> None:
    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            self.server._BaseServer__shutdown_request = True
            await self.stream.send(await self.stream.receive())

    with made(class_of("serial", "TCPServer"), Handler, loop_name) as server, Client(server) as client:
        server.serve_forever(PATIENCE)
        client.send(b"afterwards")
        server.server_close()
        assert client.reply() == b"afterwards"


ENDINGS: dict[str, dict[str, Any]] = {
    "waits": {},
    "waits, as it is told": {"block_on_close": True, "daemon_threads": False},
    "does not block": {"block_on_close": False},
    "has daemons": {"daemon_threads": True},
}


class Noted(AsyncStreamRequestHandler):
    """Echoes; notes how it ends."""

    async def handle(self) -> None:
        try:
            async for data in self.stream:
                await self.stream.send(data)
            self.server.notes.append("done")
        except asyncio.CancelledError:
            self.server.notes.append("cancelled")
            raise

    async def finish(self) -> None:
        await asyncio.sleep(0)
        self.server.notes.append("finish")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_closing_ends_what_still_runs(kind: str, ending: str, loop_name: LoopName) -> None:
    with made(class_of(kind, "TCPServer"), Noted, loop_name, **ENDINGS[ending]) as server:
        with Client(server) as client:
            with serving(server, PATIENCE):
                assert echoed(client)
            assert not server.notes  # The end of serve_forever() has ended nothing else.
            if ending.startswith("waits"):
                client.send(b"in between")
            closing = InThread("closing", server.server_close)
            if ending.startswith("waits"):
                assert client.receive() == b"in between"
                assert blocks(closing)
                assert echoed(client)
                client.sock.shutdown(socket.SHUT_WR)
            closing.result()
            assert client.receive() == b""
        outcome = "done" if ending.startswith("waits") else "cancelled"
        assert server.notes == [outcome, "finish", "shutdown_request"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_closing_while_another_thread_serves(ending: str, loop_name: LoopName) -> None:
    """Then it is that thread that ends what still runs, when it is told to end."""
    with made(class_of("threading", "TCPServer"), Noted, loop_name, **ENDINGS[ending]) as server:
        with Client(server) as client:
            thread = InThread("serving", server.serve_forever, PATIENCE)
            assert echoed(client)
            closing = InThread("closing", server.server_close)
            if not ending.startswith("waits"):
                closing.result()
            assert echoed(client)
            stopping = InThread("stopping", server.shutdown)
            if ending.startswith("waits"):
                assert echoed(client)
                client.sock.shutdown(socket.SHUT_WR)
            assert client.receive() == b""
            for each in closing, stopping, thread:
                each.result()
        outcome = "done" if ending.startswith("waits") else "cancelled"
        assert server.notes == [outcome, "finish", "shutdown_request"]


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if not ending.startswith("waits")])
def test_closing_just_before_the_handlers_are_kept(ending: str, loop_name: LoopName) -> None:
    """Then there is nothing to end yet, and the thread that has served ends them itself."""
    with made(class_of("threading", "TCPServer"), Noted, loop_name, **ENDINGS[ending]) as server:

        class Kept(list[Any]):
            def append(self, waiter: Any) -> None:
                InThread("closing", server.server_close).result()
                super().append(waiter)

        engine_of(server)._spare = Kept()
        with Client(server) as client:
            with serving(server, PATIENCE):
                assert echoed(client)
            assert client.receive() == b""
        assert server.notes == ["cancelled", "finish", "shutdown_request"]


@pytest.mark.parametrize("kind", KINDS)
def test_serving_again_goes_on(kind: str, loop_name: LoopName) -> None:
    with made(class_of(kind, "TCPServer"), Noted, loop_name) as server:
        with Client(server) as first:
            with serving(server, PATIENCE):
                assert echoed(first)
            first.send(b"in between")
            for _ in range(2):
                with serving(server, PATIENCE), Client(server) as second:
                    assert first.receive() == b"in between"
                    assert echoed(second)
                    first.send(b"in between")
            assert server.notes.count("shutdown_request") < 3
            with serving(server, PATIENCE):
                assert first.receive() == b"in between"
                first.sock.shutdown(socket.SHUT_WR)
                assert first.receive() == b""
        assert "cancelled" not in server.notes


@pytest.mark.parametrize("transport", DATAGRAMS)
@pytest.mark.parametrize("ending", ["waits", "has daemons"])
def test_datagrams_that_are_still_being_served(transport: str, ending: str, loop_name: LoopName) -> None:
    """The server's socket is closed by then, as it is for the threads of the standard library."""
    go_on = threading.Event()

    class Handler(AsyncDatagramRequestHandler):
        async def handle(self) -> None:
            await self.reply(b"begun")
            try:
                await asyncio.to_thread(go_on.wait, PATIENCE)
                self.server.notes.append((self.packet, self.socket.fileno()))
            except asyncio.CancelledError:
                self.server.notes.append("cancelled")
                raise

    server_class = class_of("threading", transport)
    with made(server_class, Handler, loop_name, **ENDINGS[ending]) as server:
        with serving(server, PATIENCE), Client(server, b"packet") as client:
            assert client.receive() == b"begun"
        closing = InThread("closing", server.server_close)
        assert blocks(closing) or ending != "waits"
        go_on.set()
        closing.result()
        outcome = (b"packet", -1) if ending == "waits" else "cancelled"
        assert server.notes == [outcome, "shutdown_request"]


@contextlib.contextmanager
def interrupted(when: threading.Event) -> Iterator[None]:
    """SIGINT comes when the event is set and the main thread waits again, and has to be raised there."""
    assert threading.current_thread() is threading.main_thread()

    def interrupt() -> None:
        if when.wait(PATIENCE) and blocks(threading.main_thread()):
            os.kill(os.getpid(), signal.SIGINT)

    thread = InThread("interrupting", interrupt)
    with pytest.raises(KeyboardInterrupt):
        yield
    thread.result()


class Interrupted(Noted):
    async def handle(self) -> None:
        assert await self.stream.receive() == b"now"
        self.server.now.set()
        await super().handle()


def test_interrupted_while_serving(loop_name: LoopName) -> None:
    """What runs is kept, as with any other end of ``serve_forever()``."""
    now = threading.Event()
    with made(class_of("serial", "TCPServer"), Interrupted, loop_name, now=now) as server:
        with Client(server, b"now") as client:
            with interrupted(now):
                server.serve_forever(PATIENCE)
            assert not server.notes
            with serving(server, PATIENCE):
                assert echoed(client)
                client.sock.shutdown(socket.SHUT_WR)
                assert client.receive() == b""
    assert server.notes == ["done", "finish", "shutdown_request"]


def test_interrupted_while_closing(loop_name: LoopName) -> None:
    """Nobody wants to wait any more: what still runs is cancelled, to its end."""
    now = threading.Event()
    with made(class_of("serial", "TCPServer"), Interrupted, loop_name, now=now) as server:
        begun = threading.Event()
        server.service_actions = begun.set
        with Client(server) as client:
            with serving(server, PATIENCE):
                wait_until_blocking(begun.is_set)
            client.send(b"now")
            with interrupted(now):
                server.server_close()
            assert client.receive() == b""
        assert server.notes == ["cancelled", "finish", "shutdown_request"]


# TLS


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return authority().server_context(), authority().client_context()


@pytest.mark.parametrize("wrapping", ["the listening socket", "each, without a handshake"])
@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
@pytest.mark.parametrize("kind", ["serial", "threading"])
def test_over_tls(
    kind: str,
    entry: str,
    wrapping: str,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    loop_name: LoopName,
) -> None:
    """As programs do it: ``get_request()`` returns TLS sockets."""
    lazily = wrapping.startswith("each")
    data = os.urandom(300_000)
    endings: list[tuple[type, Any]] = []

    class Handler(AsyncStreamRequestHandler):
        async def handle(self) -> None:
            assert self.stream.ssl_object is self.request
            await self.stream.send(await self.stream.receive_exactly(len(data)))
            await self.stream.send(b"the end")

    class Server(class_of(kind, "TCPServer")):  # type: ignore[misc]
        def get_request(self) -> Any:
            request, client_address = super().get_request()
            if lazily:  # It takes place with the first byte, so that nobody is waited for here.
                options = {"server_side": True, "do_handshake_on_connect": False}
                request = contexts[0].wrap_socket(request, **options)
            return request, client_address

        def shutdown_request(self, request: Any) -> None:
            endings.append((type(request), request.gettimeout()))
            super().shutdown_request(request)

    with made(Server, Handler, loop_name) as server:
        if not lazily:
            server.socket = contexts[0].wrap_socket(server.socket, server_side=True)
        with serving(server, PATIENCE) if entry == "serve_forever" else _nothing():
            thread = InThread("handling", server.handle_request) if entry == "handle_request" else None
            plain = Client(server)
            with contexts[1].wrap_socket(plain.sock, server_hostname="localhost") as client:
                client.sendall(data)
                received = b""
                while chunk := client.recv(65_536):
                    received += chunk
                assert received == data + b"the end"
            if thread is not None:
                thread.result()
    assert endings == [(ssl.SSLSocket, None)]
    assert server.notes == ["shutdown_request"]
