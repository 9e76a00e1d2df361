"""``compat.legacy()``: blocking request handlers on the native server, in threads and child processes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import gc
import http.server
import json
import logging
import os
import select
import socket
import ssl
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import compat
from asyncserver import (
    Address,
    CloseReason,
    ConnectionLogFilter,
    ConnectionState,
    DrainReport,
    Limits,
    OptionError,
    Server,
    Stream,
    Timeouts,
    UnixAddress,
    current_connection,
)
from tests.certificates import authority
from tests.clients import LOOPBACK, Client, TLSClient, complaints, local_server
from tests.compat.support import InThread
from tests.leaks import child_processes
from tests.processes import run_python
from tests.waiting import MS, PATIENCE, stays, wait_until, within

KINDS = ("tcp", "ipv6", "unix", "tls", "tls-unix")
THREADS = ("threads", "pool:2", "a ThreadPool", "of concurrent.futures", "FreshThreads")
EXECUTORS = (*THREADS, "fork")

all_kinds = pytest.mark.parametrize("kind", KINDS)
some_kinds = pytest.mark.parametrize("kind", ["tcp", "unix", "tls"])

Handler = compat.StreamRequestHandler


@pytest.fixture(autouse=True)
def impatient_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their idle threads end soon, and not after a minute or so."""
    monkeypatch.setattr("compat.pool._IDLE_SECONDS", 20 * MS)


@contextlib.asynccontextmanager
async def executor(name: str) -> AsyncIterator[Any]:
    """What is given to ``legacy()``."""
    if name == "a ThreadPool":
        pool = compat.ThreadPool(2)
        yield pool
        pool.close()
    elif name == "of concurrent.futures":
        futures = ThreadPoolExecutor(2)
        yield futures
        await asyncio.to_thread(futures.shutdown)
    else:
        yield compat.FreshThreads() if name == "FreshThreads" else name


class Site:
    """Servers and clients of one kind."""

    def __init__(self, kind: str, directory: Path) -> None:
        scheme = "tls+" if "tls" in kind else ""
        where = {"unix": f"unix:{directory}/s", "ipv6": "tcp://[::1]:0"}.get(
            kind.removeprefix("tls-"), LOOPBACK
        )
        self.address = scheme + where
        self.context = authority().server_context() if scheme else None
        self.client_context = authority().client_context() if scheme else None
        self.errors: list[Exception] = []

    def server(self, handler: Any, how: Any = "threads", facade: Any = None, **options: Any) -> Server:
        """A server of these handlers, not started yet."""
        served = compat.legacy(handler, how, server=facade)
        return local_server(served, self.address, tls=self.context, on_error=self._on_error, **options)

    def _on_error(self, connection: Any, error: Exception) -> None:
        self.errors.append(error)

    async def connect(self, server: Server | Address) -> Any:
        if self.client_context is None:
            return await Client.connect(server)
        return await TLSClient.connect(server, self.client_context)


@pytest.fixture
def kind() -> str:
    """For tests that are not about the kind of connection."""
    return "tcp"


@pytest.fixture
def site(kind: str, tmp_path: Path) -> Site:
    return Site(kind, tmp_path)


async def receive_all(client: Any) -> bytes:
    """Everything until the end, which has to be announced under TLS."""
    received = bytearray()
    if isinstance(client, Client):
        return await client.receive_all()
    with contextlib.suppress(ssl.SSLZeroReturnError):
        while True:
            try:
                data = client.tls.read(65_536)
            except ssl.SSLWantReadError:
                await within(client._exchange())  # Raises when the connection is closed.
            else:
                if not data:
                    break
                received += data
    return bytes(received)


async def receive_exactly(client: Any, count: int) -> bytes:
    received = bytearray()
    while len(received) < count and (data := await client.receive(min(65_536, count - len(received)))):
        received += data
    return bytes(received)


async def half_close(client: Any) -> None:
    if isinstance(client, Client):
        client.half_close()
    else:
        with contextlib.suppress(ssl.SSLWantReadError):
            client.tls.unwrap()
        await client._flush()


def underlying(client: Any) -> Client:
    return client if isinstance(client, Client) else client.client


def reason(server: Server) -> CloseReason:
    """Why the only connection has ended."""
    ((found, count),) = server.statistics().closed.items()
    assert count == 1
    return found


class Gate:
    """Where handlers wait, in their threads, until the test lets them go on."""

    def __init__(self) -> None:
        self._inside = 0
        self._open = threading.Event()
        self._lock = threading.Lock()

    def pass_through(self) -> None:
        with self._lock:
            self._inside += 1
        assert self._open.wait(2 * PATIENCE)

    async def wait_for(self, count: int = 1) -> None:
        await wait_until(lambda: self._inside >= count, what=f"{count} handlers")

    def open(self) -> None:
        self._open.set()


# What a handler finds


def server_address(request: socket.socket) -> Any:
    """Where a connection came in. A Unix socket is bound elsewhere, and then takes its place."""
    address = request.getsockname()
    if request.family == socket.AF_UNIX and isinstance(address, str):
        return os.path.join(os.path.dirname(os.path.dirname(address)), os.path.basename(address))
    return address


class Facts(Handler):
    """Tells the client what it finds, in JSON."""

    def handle(self) -> None:
        line = self.rfile.readline().decode()
        request, connection = self.request, current_connection()
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        facts = {
            "line": line,
            "type": type(request).__name__,
            "blocking": [request.getblocking(), os.get_blocking(request.fileno()), request.gettimeout()],
            "client_address": self.client_address,
            "getpeername": request.getpeername(),
            "server_address": self.server.server_address,
            "listening at": server_address(request),
            "same": [
                self.connection is request,
                type(self.server) is compat.LegacyServer,
                self.server.RequestHandlerClass is Facts,
                connection.server is self.server.native,
                self.server.native is self.server.the_native,
            ],
            "own": self.server.own,
            "id": connection.id,
            "daemon": threading.current_thread().daemon,
            "pid": os.getpid(),
            "thread": threading.get_ident(),
        }
        self.wfile.write(json.dumps(facts).encode())


@pytest.mark.parametrize("how", EXECUTORS)
@all_kinds
async def test_what_a_handler_finds(site: Site, kind: str, how: str) -> None:
    facade = compat.LegacyServer(Facts)
    facade.own = "the program's"  # type: ignore[attr-defined]
    async with executor(how) as chosen:
        server = site.server(Facts, chosen, facade)
        facade.the_native = server  # type: ignore[attr-defined]
        async with server:
            for number in (1, 2):
                client = await site.connect(server)
                async with client:
                    await client.send(b"hello\n")
                    facts = json.loads(await receive_all(client))
                assert facts["line"] == "hello\n"
                assert facts["type"] == ("SSLSocket" if "tls" in kind else "socket")
                assert facts["blocking"] == [True, True, None]
                assert facts["client_address"] == facts["getpeername"]
                assert facts["server_address"] == facts["listening at"]
                assert facts["same"] == [True] * 5
                assert facts["own"] == "the program's"
                assert facts["id"] == number
                assert (facts["pid"] == os.getpid()) == (how != "fork")
                assert facts["thread"] != threading.get_ident() or how == "fork"
    assert not site.errors


async def test_addresses_are_those_of_the_socket_module(tmp_path: Path) -> None:
    """What ``accept()`` and ``getsockname()`` say, whichever way the server has found them."""
    found: list[Any] = []

    class Addressed(compat.BaseRequestHandler):
        def handle(self) -> None:
            found.append((self.client_address, self.request.getpeername()))
            found.append((self.server.server_address, server_address(self.request)))

    addresses = [LOOPBACK, "tcp://[::1]:0", f"unix:{tmp_path}/s"]
    async with local_server(compat.legacy(Addressed), *addresses) as server:
        for index in range(len(addresses)):
            async with await Client.connect(server, index=index) as client:
                assert await client.ended() == "eof"
        with socket.socket(socket.AF_UNIX) as named:
            named.bind(f"{tmp_path}/client")
            named.setblocking(False)
            await asyncio.get_running_loop().sock_connect(named, f"{tmp_path}/s")
            await wait_until(lambda: len(found) == 8)
    assert [type(ours) for ours, _ in found] == [tuple, tuple, tuple, tuple, str, str, str, str]
    for ours, theirs in found:
        assert ours == theirs
    assert found[-2][0] == f"{tmp_path}/client"


@pytest.mark.skipif(not os.path.exists("/proc"), reason="the abstract namespace is Linux's")
async def test_addresses_in_the_abstract_namespace(tmp_path: Path) -> None:
    """There they are bytes, and begin with a zero."""
    found: list[Any] = []

    class Addressed(compat.BaseRequestHandler):
        def handle(self) -> None:
            found.append((self.client_address, self.request.getpeername()))
            found.append((self.server.server_address, server_address(self.request)))

    name = f"asyncserver-test-{os.getpid()}-{id(tmp_path)}"
    async with local_server(compat.legacy(Addressed), UnixAddress(f"@{name}")):
        with socket.socket(socket.AF_UNIX) as client:
            client.bind(f"\0{name}-client")
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, f"\0{name}")
            await wait_until(lambda: len(found) == 2)
    for ours, theirs in found:
        assert ours == theirs
        assert isinstance(ours, bytes)


async def test_the_default_server_belongs_to_all_connections(site: Site) -> None:
    class Counting(compat.BaseRequestHandler):
        def handle(self) -> None:
            assert self.server.RequestHandlerClass is Counting
            self.server.count = getattr(self.server, "count", 0) + 1
            self.request.sendall(b"%d" % self.server.count)

    async with site.server(Counting) as server:
        for number in (1, 2, 3):
            async with await site.connect(server) as client:
                assert await client.receive() == b"%d" % number


@pytest.mark.parametrize("facade", [None, object(), "text"], ids=["none", "object", "text"])
async def test_any_object_as_the_server(site: Site, facade: Any) -> None:
    class Simple(compat.BaseRequestHandler):
        def handle(self) -> None:
            assert self.server is facade or (facade is None and isinstance(self.server, compat.LegacyServer))
            self.request.sendall(b"fine")

    async with site.server(Simple, facade=facade) as server, await site.connect(server) as client:
        assert await receive_all(client) == b"fine"


async def test_handlers_log_as_their_connection(caplog: pytest.LogCaptureFixture, site: Site) -> None:
    class Logging(compat.BaseRequestHandler):
        def handle(self) -> None:
            logging.getLogger("program").warning("hello")
            self.request.sendall(b"logged")

    caplog.handler.addFilter(record_filter := ConnectionLogFilter())
    try:
        async with site.server(Logging) as server, await site.connect(server) as client:
            name = client.name
            assert await receive_all(client) == b"logged"
    finally:
        caplog.handler.removeFilter(record_filter)
    (record,) = [record for record in caplog.records if record.name == "program"]
    assert (record.connection_id, record.peer) == (1, f"{name[0]}:{name[1]}")


async def test_many_at_the_same_time(site: Site) -> None:
    together = threading.Barrier(20)

    class Meeting(compat.BaseRequestHandler):
        def handle(self) -> None:
            together.wait(PATIENCE)
            self.request.sendall(b"all here")

    async with site.server(Meeting) as server:
        clients = [await site.connect(server) for _ in range(20)]
        assert await asyncio.gather(*map(receive_all, clients)) == [b"all here"] * 20
        for client in clients:
            client.close()


# Sockets


class Sockets(compat.BaseRequestHandler):
    """Uses the socket in many ways; each is called with the handler's socket."""

    def handle(self) -> None:
        way = self.request.recv(100).decode()
        self.request.sendall(b"ok: ")
        getattr(self, way)(self.request)

    def times_out(self, sock: socket.socket) -> None:
        sock.settimeout(10 * MS)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.settimeout(None)
        sock.sendall(b"timed out, ")
        sock.sendall(sock.recv(100))

    def receives_into(self, sock: socket.socket) -> None:
        buffer = bytearray(100)
        count = sock.recv_into(buffer)
        sock.sendall(buffer[:count])

    def is_a_file(self, sock: socket.socket) -> None:
        with sock.makefile("rwb") as file:
            file.write(file.readline().upper())

    def half_closes(self, sock: socket.socket) -> None:
        sock.sendall(b"no more")
        sock.shutdown(socket.SHUT_WR)
        self.server.heard.append(read_all(sock))

    def is_selected(self, sock: socket.socket) -> None:
        readable, _, _ = select.select([sock], [], [], PATIENCE)
        sock.sendall(b"%d" % len(readable))
        sock.recv(100)

    def is_duplicated(self, sock: socket.socket) -> None:
        with sock.dup() as other:
            other.sendall(b"from another")

    def is_not_blocking(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.sendall(b"left so")

    def unwraps(self, sock: Any) -> None:
        sock.sendall(f"{sock.version()}, {sock.server_side}".encode())
        sock.unwrap()

    def closes(self, sock: socket.socket) -> None:
        sock.sendall(b"goodbye")
        sock.close()

    def wraps(self, sock: socket.socket) -> None:
        with self.server.context.wrap_socket(sock, server_side=True) as tls:
            tls.sendall(b"secret")


def read_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while data := sock.recv(65_536):
        received += data
    return bytes(received)


async def sockets(site: Site, way: str, data: bytes = b"") -> bytes:
    """What a client gets that sends ``data``, and its end, after the name of the way."""
    async with site.server(Sockets) as server, await site.connect(server) as client:
        await client.send(way.encode())
        received = await receive_exactly(client, 4)
        if way == "times_out":
            received += await receive_exactly(client, 11)
        if data:
            await client.send(data)
        received += await receive_all(client)
        client.close()
        await wait_until(lambda: not server.connections)
        assert reason(server) in {CloseReason.HANDLER_RETURNED, CloseReason.EOF}
    assert not site.errors
    return received


@pytest.mark.parametrize(
    ("way", "data", "reply"),
    [
        ("times_out", b"late", b"timed out, late"),
        ("receives_into", b"data", b"data"),
        ("is_a_file", b"line\n", b"LINE\n"),
        ("is_selected", b"data", b"1"),
        ("is_not_blocking", b"", b"left so"),
        ("closes", b"", b"goodbye"),
    ],
)
@all_kinds
async def test_sockets_can_be_used_in_every_way(
    site: Site, kind: str, way: str, data: bytes, reply: bytes
) -> None:
    if way == "closes" and "tls" in kind:
        pytest.skip("closing a TLS socket sends no closing alert, here as everywhere")
    assert await sockets(site, way, data) == b"ok: " + reply


@pytest.mark.parametrize("kind", ["tcp", "unix", "ipv6"])
async def test_a_duplicate(site: Site) -> None:
    """TLS sockets have none."""
    assert await sockets(site, "is_duplicated") == b"ok: from another"


@pytest.mark.parametrize("kind", ["tls", "tls-unix"])
async def test_the_end_of_tls(site: Site) -> None:
    async with site.server(Sockets) as server, await site.connect(server) as client:
        await client.send(b"unwraps")
        received = asyncio.create_task(receive_all(client))
        assert await within(received) == b"ok: TLSv1.3, True"
        await half_close(client)
        client.close()
        await wait_until(lambda: not server.connections)
    assert not site.errors


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_half_closing(site: Site) -> None:
    facade = compat.LegacyServer(Sockets)
    facade.heard = []  # type: ignore[attr-defined]
    async with site.server(Sockets, facade=facade) as server, await site.connect(server) as client:
        await client.send(b"half_closes")
        assert await receive_all(client) == b"ok: no more"
        await client.send(b"but the client has")
        await half_close(client)
        await wait_until(lambda: facade.heard == [b"but the client has"])  # type: ignore[attr-defined]
    assert not site.errors


async def test_a_handler_begins_tls_itself(
    site: Site, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """``wrap_socket()`` takes the descriptor away from the socket, as ``detach()`` does."""
    facade = compat.LegacyServer(Sockets)
    facade.context = server_context  # type: ignore[attr-defined]
    async with site.server(Sockets, facade=facade) as server, await site.connect(server) as client:
        await client.send(b"wraps")
        assert await client.receive_exactly(4) == b"ok: "
        tls = TLSClient(client, client_context, "localhost")
        await tls.handshake()
        assert await tls.receive() == b"secret"
        await wait_until(lambda: not server.connections)
    assert not site.errors


@pytest.mark.parametrize("how", ["threads", "fork"])
@all_kinds
async def test_large_messages_in_both_directions(site: Site, how: str) -> None:
    class Echo(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(read_all(self.request))

    data = os.urandom(1_000_000)
    async with site.server(Echo, how) as server, await site.connect(server) as client:
        await client.send(data)
        await half_close(client)
        assert await receive_exactly(client, len(data)) == data
    assert not site.errors


@pytest.mark.parametrize("unread", [0, 500_000])
@pytest.mark.parametrize("how", ["threads", "fork"])
@all_kinds
async def test_the_reply_is_not_lost(site: Site, kind: str, how: str, unread: int) -> None:
    """The handler returns with much on its way, and with bytes of the client that it has never read."""
    if how == "fork" and unread and "tls" in kind:
        pytest.skip("the session has ended with the child process")

    class Replying(compat.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(bytes(2_000_000))
            self.request.sendall(b"the end")

    async with site.server(Replying, how) as server, await site.connect(server) as client:
        sending = asyncio.create_task(client.send(bytes(unread)))
        received = await receive_exactly(client, 2_000_007)
        assert len(received) == 2_000_007
        assert received.endswith(b"the end")
        await within(sending)
        assert await client.receive() == b""
    assert not site.errors


class Pages(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("how", ["threads", "fork"])
@some_kinds
async def test_http(site: Site, how: str) -> None:
    """A handler that nobody here has written, made by a function, and its connection kept alive."""
    async with site.server(functools.partial(Pages), how) as server, await site.connect(server) as client:
        for page in b"/one", b"/two":
            await client.send(b"GET " + page + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
            received = b""
            while not received.endswith(page):
                received += await client.receive()
            assert received.startswith(b"HTTP/1.1 200 OK")
    assert not site.errors


# Options


class Silent(Handler):
    """Waits for the peer, and notes how that ends."""

    def handle(self) -> None:
        self.server.heard.append(self.request.recv(100))

    def finish(self) -> None:
        self.server.heard.append("finish")
        super().finish()


def silent() -> Any:
    facade: Any = compat.LegacyServer(Silent)
    facade.heard = []
    return facade


class AsyncHandler(compat.AsyncStreamRequestHandler):
    pass


BAD_EXECUTORS = {
    "serial": "serial",
    "the calling thread": compat.CallingThread(),
    "no threads": "pool:0",
    "a pool of nothing": "pool:",
    "no number": "pool:many",
    "nonsense": "nonsense",
    "none": None,
    "a number": 5,
    "a class": compat.ThreadPool,
}


@pytest.mark.parametrize("name", BAD_EXECUTORS)
def test_executors_that_cannot_work(name: str) -> None:
    with pytest.raises(OptionError) as raised:
        compat.legacy(Handler, BAD_EXECUTORS[name])
    assert raised.value.option == "executor"
    assert raised.value.value is BAD_EXECUTORS[name]


def test_processes_cannot_be_given_sockets() -> None:
    with ProcessPoolExecutor() as pool, pytest.raises(OptionError, match="fork"):
        compat.legacy(Handler, pool)


@pytest.mark.parametrize("handler", [None, "text", 5, AsyncHandler], ids=str)
def test_handlers_that_cannot_work(handler: Any) -> None:
    with pytest.raises(OptionError) as raised:
        compat.legacy(handler)
    assert raised.value.option == "handler_class"
    assert raised.value.value is handler


class Own(compat.RequestExecutor):
    """The least that an executor has to do."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.error: Exception | None = None

    def start(self, job: compat.Job) -> None:
        if self.error is not None:
            raise self.error
        self.threads.append(threading.Thread(target=job.run))
        self.threads[-1].start()


def test_threads_do_not_bring_in_multiprocessing(tmp_path: Path) -> None:
    """Which would be a blocking import of many modules, and most often inside the loop."""
    program = "import compat, sys; compat.legacy(print); compat.legacy(print, 'pool:2'); print(*sys.modules)"
    status, output, errors = run_python(tmp_path, "-c", program)
    assert status == 0, errors
    assert "multiprocessing" not in output.split()


async def test_an_executor_of_the_programs_own(site: Site) -> None:
    own = Own()
    async with site.server(Ending, own) as server:
        async with await site.connect(server) as client:
            assert await client.ask(b"return") == b"return"
            assert await receive_all(client) == b""
        own.error = RuntimeError("no more threads")
        async with await site.connect(server) as client:
            assert await client.ended() == "eof"
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed[CloseReason.HANDLER_ERROR] == 1
    assert len(own.threads) == 1
    assert site.errors == [own.error]


async def test_an_executor_that_fails_in_another_thread(site: Site) -> None:
    """As a pool of ``concurrent.futures`` that is shut down. A loop in debug mode sees who calls."""

    class FailingElsewhere(compat.RequestExecutor):
        def start(self, job: Any) -> None:
            loop.call_soon(lambda: threads.append(InThread("failing", job.fail, error)))

    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    threads: list[InThread] = []
    error = RuntimeError("the pool was shut down")
    async with site.server(Ending, FailingElsewhere()) as server:
        async with await site.connect(server) as client:
            assert await client.ended() == "eof"
        await wait_until(lambda: not server.connections)
    for thread in threads:
        await asyncio.to_thread(thread.result)
    assert site.errors == [error]


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there is no pidfd_open() here")
async def test_a_child_process_without_a_descriptor_for_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is waited for all the same, and its status is known."""

    def pidfd_open(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", pidfd_open)
    async with site.server(Raising, "fork") as server:
        for sent, count in ((b"nowhere nothing", 0), (b"handle ValueError", 1)):
            async with await site.connect(server) as client:
                await client.send(sent)
                assert await receive_all(client) == SAID["handle"]
            await wait_until(lambda: not server.connections)
            assert server.statistics().closed.get(CloseReason.HANDLER_ERROR, 0) == count
        assert not child_processes()
    (error,) = site.errors
    assert "status 1" in str(error)


@pytest.mark.parametrize("how", ["pool:1", "a ThreadPool", "of concurrent.futures"])
async def test_a_full_pool(site: Site, how: str) -> None:
    """Connections wait for a thread; their bytes wait with them, and other handlers do not."""
    gate = Gate()

    class Waiting(compat.BaseRequestHandler):
        def handle(self) -> None:
            data = self.request.recv(100)
            if data == b"wait":
                gate.pass_through()
            self.request.sendall(data)

    async with executor(how) as chosen:
        async with site.server(Waiting, chosen) as server:
            first = [await site.connect(server) for _ in range(1 if how == "pool:1" else 2)]
            for client in first:
                await client.send(b"wait")
            await gate.wait_for(len(first))
            async with await site.connect(server) as last:
                await last.send(b"later")
                reply = asyncio.create_task(receive_all(last))
                await stays(lambda: not reply.done())
                assert server.statistics().current == len(first) + 1
                gate.open()
                assert await within(asyncio.gather(*map(receive_all, first))) == [b"wait"] * len(first)
                assert await within(reply) == b"later"
            for client in first:
                client.close()
    assert not site.errors


async def test_a_full_pool_that_rejects(site: Site) -> None:
    """``when_full`` says so: connections "are closed" while all threads are busy."""
    gate = Gate()

    class Waiting(compat.BaseRequestHandler):
        def handle(self) -> None:
            gate.pass_through()
            self.request.sendall(b"served")

    pool = compat.ThreadPool(1, when_full="reject")
    async with site.server(Waiting, pool) as server, await site.connect(server) as first:
        await gate.wait_for()
        async with await site.connect(server) as rejected:
            assert await rejected.ended() == "eof"
        gate.open()
        assert await receive_all(first) == b"served"
    pool.close()
    assert not site.errors


# How handlers end


ERRORS = {"ValueError": ValueError, "SystemExit": SystemExit, "reset": ConnectionResetError}


class Raising(compat.BaseRequestHandler):
    """Raises what the client asks for, where it asks for it."""

    def setup(self) -> None:
        self.where, _, self.what = self.request.recv(100).decode().partition(" ")
        self.step("setup")

    def handle(self) -> None:
        self.step("handle")

    def finish(self) -> None:
        self.step("finish")

    def step(self, name: str) -> None:
        self.request.sendall(name.encode() + b" ")
        if name == self.where:
            raise ERRORS[self.what](name)


SAID = {"setup": b"setup ", "handle": b"setup handle finish ", "finish": b"setup handle finish "}


@pytest.mark.parametrize("where", SAID)
@some_kinds
async def test_a_handler_that_fails(site: Site, where: str, caplog: pytest.LogCaptureFixture) -> None:
    """Logged once, with its traceback; the program is told; the client has got all that was sent before."""
    async with site.server(Raising) as server:
        async with await site.connect(server) as client:
            await client.send(where.encode() + b" ValueError")
            assert await receive_all(client) == SAID[where]
        await wait_until(lambda: not server.connections)
        assert reason(server) == CloseReason.HANDLER_ERROR
    (error,) = site.errors
    assert isinstance(error, ValueError)
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [error]
    assert "in step" in caplog.text


class Unfinished(Handler):
    """Leaves two files of its socket open, as every such handler does that fails in ``setup()``."""

    def setup(self) -> None:
        super().setup()
        self.server.descriptors.append(self.request.fileno())
        raise ValueError("from a handler")


@some_kinds
async def test_a_handler_that_fails_keeps_no_socket(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The descriptor is free when the connection has ended, and not when garbage is collected one day."""
    monkeypatch.setattr(logging.getLogger("asyncserver"), "disabled", True)  # A record would keep it all.
    monkeypatch.setattr(site, "_on_error", lambda connection, error: None)
    facade: Any = compat.LegacyServer(Unfinished)
    facade.descriptors = []
    gc.disable()
    try:
        async with site.server(Unfinished, facade=facade) as server:
            client = await site.connect(server)
            assert await receive_all(client) == b""
            client.close()
            await wait_until(lambda: facade.descriptors and not server.connections)
            assert reason(server) == CloseReason.HANDLER_ERROR
            (descriptor,) = facade.descriptors
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(descriptor)
    finally:
        gc.enable()


async def test_a_child_process_that_fails(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    async with site.server(Raising, "fork") as server:
        async with await site.connect(server) as client:
            await client.send(b"handle ValueError")
            assert await receive_all(client) == SAID["handle"]
        await wait_until(lambda: not server.connections)
        assert reason(server) == CloseReason.HANDLER_ERROR
    (error,) = site.errors
    assert "status 1" in str(error)


class Exiting(compat.BaseRequestHandler):
    """Ends with the status that the client asks for."""

    def handle(self) -> None:
        sys.exit(int(self.request.recv(100)))


@pytest.mark.parametrize(("status", "seen"), [(3, 3), (-1, 255), (0xC000013A, 0x3A), (2**64 + 7, 7)])
async def test_a_child_process_that_exits(site: Site, status: int, seen: int) -> None:
    """With any number: the status is what a shell would see of it."""
    async with site.server(Exiting, "fork") as server:
        async with await site.connect(server) as client:
            await client.send(b"%d" % status)
            assert await receive_all(client) == b""
        await wait_until(lambda: not server.connections)
    (error,) = site.errors
    assert str(error).endswith(f"status {seen}")


@pytest.mark.parametrize("how", ["threads", "pool:2", "of concurrent.futures"])
@pytest.mark.parametrize("where", SAID)
async def test_a_handler_that_exits(
    site: Site, where: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """``SystemExit`` ends a thread without a word, and no server."""
    async with executor(how) as chosen:
        async with site.server(Raising, chosen) as server:
            for _ in range(3):
                async with await site.connect(server) as client:
                    await client.send(where.encode() + b" SystemExit")
                    assert await receive_all(client) == SAID[where]
            await wait_until(lambda: not server.connections)
            assert server.statistics().closed == {CloseReason.HANDLER_RETURNED: 3}
    assert not site.errors
    assert not complaints(caplog)


async def test_an_error_of_another_connection(site: Site) -> None:
    """The handler's own, to a database say: that is no fault of the peer."""
    async with site.server(Raising) as server:
        async with await site.connect(server) as client:
            await client.send(b"handle reset")
            assert await receive_all(client) == SAID["handle"]
        await wait_until(lambda: not server.connections)
        assert reason(server) == CloseReason.HANDLER_ERROR
    assert isinstance(site.errors[0], ConnectionResetError)


class TimingOut(compat.BaseRequestHandler):
    def handle(self) -> None:
        self.request.settimeout(10 * MS)
        self.request.recv(1)


@some_kinds
async def test_a_timeout_that_is_not_caught(site: Site) -> None:
    """The handler has set it, so it is the handler's error."""
    async with site.server(TimingOut) as server, await site.connect(server) as client:
        assert await client.receive() == b""
        client.close()
        await wait_until(lambda: not server.connections)
        assert reason(server) == CloseReason.HANDLER_ERROR
    assert isinstance(site.errors[0], TimeoutError)


class Talking(compat.BaseRequestHandler):
    """Receives, or sends without end; the peer does not stay."""

    def handle(self) -> None:
        self.request.sendall(b"hello")
        if self.request.recv(1) == b"s":
            while True:
                self.request.sendall(bytes(100_000))
        while self.request.recv(100):
            pass


@pytest.mark.parametrize("doing", ["receiving", "sending"])
@some_kinds
async def test_a_peer_that_resets(
    site: Site, kind: str, doing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Handlers need not catch what peers do to them: there is no traceback, and no error of the program."""
    async with site.server(Talking) as server:
        client = await site.connect(server)
        await client.send(doing[0].encode())
        if doing == "sending":
            await client.receive()
        elif kind == "unix":
            await wait_until(lambda: _has_bytes(client))  # Closing with unread bytes is a reset there.
        else:
            assert await client.receive() == b"hello"
        underlying(client).reset()
        await wait_until(lambda: not server.connections)
        # Before Python 3.13 a TLS socket takes this for an end as well.
        is_an_end = kind == "tls" and doing == "receiving" and sys.version_info < (3, 13)
        assert reason(server) == CloseReason.RESET or is_an_end
    assert not site.errors
    assert not complaints(caplog)


def _has_bytes(client: Client) -> bool:
    return bool(select.select([client.sock], [], [], 0)[0])


@some_kinds
async def test_a_peer_that_cuts_tls_off(site: Site) -> None:
    """An end without the closing alert is an end to a blocking handler, as the standard library has it."""
    facade = silent()
    async with site.server(Silent, facade=facade) as server:
        client = await site.connect(server)
        await wait_until(lambda: len(server.connections) == 1)
        underlying(client).close()
        await wait_until(lambda: not server.connections)
    assert facade.heard == [b"", "finish"]
    assert not site.errors


class Ending(compat.BaseRequestHandler):
    """Returns when the peer says so, or has said its end."""

    def handle(self) -> None:
        while data := self.request.recv(100):
            self.request.sendall(data)
            if data == b"return":
                return


@pytest.mark.parametrize("how", ["threads", "fork"])
@some_kinds
async def test_why_connections_end(site: Site, kind: str, how: str) -> None:
    async with site.server(Ending, how) as server:
        async with await site.connect(server) as client:
            assert await client.ask(b"return") == b"return"
            assert await receive_all(client) == b""
        await wait_until(lambda: not server.connections)
        assert reason(server) == CloseReason.HANDLER_RETURNED
        async with await site.connect(server) as client:
            assert await client.ask(b"hello") == b"hello"
            await half_close(client)
            if how == "threads":
                assert await receive_all(client) == b""
        await wait_until(lambda: not server.connections)
        closed = server.statistics().closed
        if kind == "tls":  # The closing alert was the thread's to see.
            assert closed == {CloseReason.HANDLER_RETURNED: 2}
        else:
            assert closed == {CloseReason.HANDLER_RETURNED: 1, CloseReason.EOF: 1}
    assert not site.errors


# How servers end


def counts(report: DrainReport) -> tuple[int, int, int, int]:
    return report.idle, report.finished, report.cancelled, report.aborted


class Goodbye(Silent):
    """Has a last word."""

    def finish(self) -> None:
        try:
            self.wfile.write(b"goodbye")
        finally:
            super().finish()


async def farewell(client: Any) -> None:
    """The handler's last word, and the end."""
    if isinstance(client, Client):
        assert await client.receive_all() == b"goodbye"
    else:
        # OpenSSL takes the end of the input for an attack, and says nothing more but that.
        with pytest.raises(ssl.SSLError, match="alert"):
            await client.receive()


@pytest.mark.parametrize("how", [*THREADS, "fork"])
@pytest.mark.parametrize("end", ["drain", "drain now", "aclose"])
@some_kinds
async def test_whoever_waits_for_the_peer_is_ended(site: Site, kind: str, how: str, end: str) -> None:
    """``recv()`` returns b"" when the drain has waited long enough; what the handler then says arrives."""
    if kind != "tcp" and how not in {"threads", "fork"}:
        pytest.skip("which thread it is makes no difference to sockets")
    facade = silent()
    async with executor(how) as chosen:
        server = site.server(Goodbye, chosen, facade)
        await server.start()
        async with await site.connect(server) as client:
            await wait_until(lambda: server.statistics().states == {ConnectionState.ACTIVE: 1})
            if end == "aclose":
                ending: Any = asyncio.create_task(server.aclose())
            else:
                ending = asyncio.create_task(server.drain(0 if end == "drain now" else 100 * MS))
            await farewell(client)
            client.close()
            report = await within(ending)
    assert reason(server) == CloseReason.CANCELLED
    if report is not None:
        assert counts(report) == (0, 0, 1, 0)
    if how != "fork":
        assert facade.heard == [b"", "finish"]
    assert not site.errors


async def test_who_ends_in_time_is_not_cancelled(site: Site) -> None:
    async with site.server(Ending) as server, await site.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"
        draining = asyncio.create_task(server.drain())
        await wait_until(lambda: server.statistics().states == {ConnectionState.DRAINING: 1})
        assert await client.ask(b"return") == b"return"
        assert await receive_all(client) == b""
        client.close()
        assert counts(await within(draining)) == (0, 1, 0, 0)
        assert reason(server) == CloseReason.DRAINED
    assert not site.errors


@pytest.mark.parametrize("how", ["threads", "pool:2"])
@some_kinds
async def test_who_goes_on_is_left_behind(site: Site, how: str, caplog: pytest.LogCaptureFixture) -> None:
    """A thread cannot be stopped: the drain resets its connection, and ends without it."""
    gate = Gate()
    errors: list[BaseException] = []

    class Stubborn(compat.BaseRequestHandler):
        def handle(self) -> None:
            gate.pass_through()
            try:
                while True:
                    self.request.sendall(bytes(100_000))
            except OSError as exc:
                errors.append(exc)

    server = site.server(Stubborn, how, timeouts=Timeouts(grace=50 * MS))
    await server.start()
    async with await site.connect(server):
        await gate.wait_for()
        assert counts(await within(server.drain(0))) == (0, 0, 0, 1)
        assert server.statistics().stuck_handlers == 1
        assert reason(server) == CloseReason.ABORTED
    gate.open()
    await wait_until(lambda: not server.statistics().stuck_handlers)
    assert len(errors) == 1
    assert not site.errors
    assert len(complaints(caplog)) == 1


@some_kinds
async def test_a_peer_that_reads_nothing(site: Site) -> None:
    """The end of the input does not wake ``sendall()`` up; the abortion after that does."""
    server = site.server(Talking, timeouts=Timeouts(grace=50 * MS))
    await server.start()
    async with await site.connect(server) as client:
        await client.send(b"s")
        await client.receive(5)
        assert counts(await within(server.drain(50 * MS))) == (0, 0, 0, 1)
        await wait_until(lambda: not server.statistics().stuck_handlers)
    assert not site.errors


@pytest.mark.parametrize("how", ["threads", "fork"])
@some_kinds
async def test_a_handler_that_takes_too_long(site: Site, how: str) -> None:
    facade = silent()
    timeouts = Timeouts(handler=100 * MS)
    async with site.server(Goodbye, how, facade, timeouts=timeouts) as server:
        async with await site.connect(server) as client:
            await farewell(client)
        await wait_until(lambda: not server.connections)
        assert reason(server) == CloseReason.HANDLER_TIMEOUT
    assert not site.errors


@pytest.mark.parametrize("how", ["abort", "close"])
@some_kinds
async def test_the_program_ends_one_connection(
    site: Site, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    facade = silent()
    timeouts = Timeouts(grace=PATIENCE if how == "abort" else 100 * MS)
    async with site.server(Silent, facade=facade, timeouts=timeouts) as server, await site.connect(server):
        await wait_until(lambda: server.statistics().states == {ConnectionState.ACTIVE: 1})
        (connection,) = server.connections
        if how == "abort":
            connection.abort()
        else:
            closing = asyncio.create_task(connection.close())
            await asyncio.sleep(0)  # Its handler is cancelled after this grace ...
            server.update(grace=PATIENCE)  # ... and then has time to end.
            await within(closing)
        await wait_until(lambda: not server.connections)
        assert reason(server) == {"abort": CloseReason.ABORTED, "close": CloseReason.CLOSED_BY_SERVER}[how]
    assert facade.heard == [b"", "finish"]
    assert not site.errors
    assert not complaints(caplog)


@pytest.mark.parametrize("times", [1, 2])
async def test_shutdown_from_a_handler(site: Site, times: int) -> None:
    """It drains the native server, and does not wait for the handler that calls it."""

    class Stopping(compat.BaseRequestHandler):
        def handle(self) -> None:
            if self.request.recv(100) == b"stop":
                for _ in range(times):
                    self.server.shutdown()
            self.request.sendall(b"goodbye")

    server = site.server(Stopping)
    await server.start()
    async with await site.connect(server) as other, await site.connect(server) as client:
        await wait_until(lambda: server.statistics().states == {ConnectionState.ACTIVE: 2})
        await client.send(b"stop")
        assert await receive_all(client) == b"goodbye"
        # What is under way is served to its end.
        await wait_until(lambda: server.statistics().states == {ConnectionState.DRAINING: 2})
        assert not server.ready
        client.close()
        await other.send(b"the last question")
        assert await receive_all(other) == b"goodbye"
        other.close()
        await within(server.wait_closed())
    # The one that called it may be gone before the drain tells anybody.
    closed = server.statistics().closed
    assert closed[CloseReason.DRAINED] + closed.get(CloseReason.HANDLER_RETURNED, 0) == 2
    assert not site.errors


# With async handlers, and limits


async def test_beside_async_handlers(site: Site) -> None:
    """On one port: what the peer says first decides. The loop goes on while handlers block."""
    gate = Gate()

    class Waiting(compat.BaseRequestHandler):
        def handle(self) -> None:
            data = self.request.recv(100)
            gate.pass_through()
            self.request.sendall(b"blocking " + data)

    blocking: Callable[[Stream], Awaitable[None]] = compat.legacy(Waiting)

    async def handler(stream: Stream) -> None:
        if await stream.receive(1) == b"b":
            await blocking(stream)
            await stream.send(b", and async again")
        else:
            async for data in stream:
                await stream.send(b"async " + data)

    async with local_server(handler, on_error=lambda _, exc: site.errors.append(exc)) as server:
        async with await Client.connect(server) as one, await Client.connect(server) as other:
            await one.send(b"bone")
            await gate.wait_for()
            await other.send(b"a")
            for data in b"two", b"three":
                await other.send(data)
                assert await other.receive() == b"async " + data
            gate.open()
            assert await one.receive_all() == b"blocking one, and async again"
    assert not site.errors


async def test_limits_and_statistics(site: Site) -> None:
    limits = Limits(max_connections=2, when_full="reject", reject_message=b"full")
    async with site.server(Ending, limits=limits) as server:
        clients = [await site.connect(server) for _ in range(2)]
        for client in clients:
            assert await client.ask(b"hello") == b"hello"
        async with await site.connect(server) as rejected:
            assert await rejected.receive_all() == b"full"
        statistics = server.statistics()
        assert (statistics.current, statistics.accepted, statistics.rejected) == (2, 3, 1)
        assert statistics.states == {ConnectionState.ACTIVE: 2}
        for client in clients:
            assert await client.ask(b"return") == b"return"
            client.close()
        await wait_until(lambda: not server.connections)
        async with await site.connect(server) as client:
            assert await client.ask(b"hello") == b"hello"
        closed = server.statistics().closed
        assert closed[CloseReason.LIMIT] == 1
        # The client's end may have come before the handler returned, or after.
        assert closed.get(CloseReason.HANDLER_RETURNED, 0) + closed.get(CloseReason.EOF, 0) >= 2
    assert not site.errors
