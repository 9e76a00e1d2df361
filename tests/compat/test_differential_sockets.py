"""Sockets and addresses: what servers bind, accept and hand out, and when they look at their attributes."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import ssl
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from asyncserver import LoopName
from tests.certificates import authority
from tests.compat.support import (
    LINUX,
    LOCAL,
    SERVERS,
    Client,
    InThread,
    Trace,
    address_for,
    agreed,
    blocks,
    noted_handler,
    recorded,
    run_turns,
    serving,
)
from tests.waiting import MS, PATIENCE, wait_until_blocking

ENTRIES = ("serve_forever", "handle_request")


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
        return True
    return False


def echo(request: Any, client_address: Any, server: Any) -> None:
    """A handler that is a function, for one message."""
    if isinstance(request, tuple):
        request[1].sendto(request[0], client_address)
    else:
        request.sendall(request.recv(65_536))


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    with socket.create_server(LOCAL) as sock:
        yield sock


# --- addresses ---


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    ("server_name", "family"),
    [
        *((server_name, "own") for server_name in SERVERS),
        *(pytest.param(server_name, "IPv6", marks=needs_ipv6) for server_name in SERVERS[:2]),
    ],
)
def test_addresses(family: str, server_name: str, entry: str, loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        seen: list[Any] = []

        class Server(recorded(getattr(socketserver, server_name), Trace())):  # type: ignore[misc]
            if family == "IPv6":
                address_family = socket.AF_INET6

        def handler(request: Any, client_address: Any, server: Any) -> None:
            seen.append((client_address == client.name, type(client_address).__name__, server is its_server))
            echo(request, client_address, server)

        with address_for(Server) as address, Server(address, handler) as its_server:
            bound = its_server.server_address
            seen.append((bound == its_server.socket.getsockname(), type(bound).__name__, len(bound)))
            seen.append(bound == address if isinstance(bound, str) else (bound[0], bound[1] > 0))
            seen.append(its_server.fileno() == its_server.socket.fileno())
            client = Client(its_server, b"who am I?")
            run_turns(its_server, entry, 1)
            seen.append(client.reply())
            if isinstance(bound, str):
                seen[0] = seen[0][:2]  # How long the path is says nothing.
        return seen

    found = agreed(scenario, loop_name)
    if family == "IPv6":
        first = [(True, "tuple", 4), ("::1", True)]
    elif server_name.startswith("Unix"):
        first = [(True, "str"), True]
    else:
        first = [(True, "tuple", 2), ("127.0.0.1", True)]
    kind = "str" if server_name.startswith("Unix") else "tuple"
    assert found == [*first, True, (True, kind, True), b"who am I?"]


def test_address_that_is_not_the_bound_one(loop_name: LoopName) -> None:
    """``server_address`` is what was given, and after ``server_bind()`` what the socket says."""

    def scenario(socketserver: Any) -> list[Any]:
        seen = []
        for given in (("", 0), ("localhost", 0), ["127.0.0.1", 0]):
            server = socketserver.UDPServer(given, None, bind_and_activate=False)
            with server:
                seen.append(server.server_address is given)
                if isinstance(given, tuple):
                    server.server_bind()
                    seen.append(server.server_address[0])
                    seen.append(server.server_address == server.socket.getsockname())
        return seen

    assert agreed(scenario, loop_name) == [True, "0.0.0.0", True, True, "127.0.0.1", True, True]


@pytest.mark.skipif(not LINUX, reason="only Linux has abstract Unix addresses")
def test_abstract_unix_address(loop_name: LoopName) -> None:
    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        address = f"\0compat-{os.getpid()}"
        with getattr(socketserver, server_name)(address, echo) as server:
            with socket.socket(server.socket.family, server.socket.type) as sock:
                sock.settimeout(PATIENCE)
                sock.bind("")  # A name of its own, from the kernel.
                sock.connect(server.server_address)
                sock.send(b"hello")
                server.handle_request()
                return [server.server_address == address.encode(), sock.recv(100)]

    for server_name in ("UnixStreamServer", "UnixDatagramServer"):
        assert agreed(scenario, loop_name, server_name) == [True, b"hello"]


def test_client_without_a_name(loop_name: LoopName) -> None:
    """A Unix client that has bound nothing; nobody can answer its datagrams."""

    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        seen: list[Any] = []
        server_class = getattr(socketserver, server_name)
        with address_for(server_class) as address:
            with server_class(address, lambda request, name, server: seen.append(name)) as server:
                with socket.socket(server.socket.family, server.socket.type) as sock:
                    sock.connect(address)
                    sock.send(b"hello")
                    server.handle_request()
        return seen

    assert agreed(scenario, loop_name, "UnixStreamServer") == [""]
    assert agreed(scenario, loop_name, "UnixDatagramServer") in ([None], [""])


def test_address_in_use(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with listener() as taken:
            trace.call(recorded(socketserver.TCPServer, trace), taken.getsockname(), None)
        return trace.events

    assert agreed(scenario, loop_name) == ["server_bind", "server_close", ("raised", "OSError")]


# --- attributes ---

NAMES = (
    *("timeout", "address_family", "socket_type", "allow_reuse_address", "allow_reuse_port"),
    *("max_packet_size", "daemon_threads", "block_on_close"),
)


def test_class_attributes(loop_name: LoopName) -> None:
    """All but ``request_queue_size``."""

    def scenario(socketserver: Any) -> dict[str, list[Any]]:
        return {
            name: [getattr(getattr(socketserver, name), each, "none") for each in NAMES]
            for name in socketserver.__all__
            if name.endswith("Server")
        }

    found = agreed(scenario, loop_name)
    assert found["BaseServer"] == [None, *["none"] * 7]
    assert found["ThreadingUDPServer"] == [
        *(None, socket.AF_INET, socket.SOCK_DGRAM, False, False, 8192, False, True)
    ]


@pytest.mark.parametrize("where", ["class", "instance", "base"])
def test_attributes_of_the_listening_socket(where: str, loop_name: LoopName) -> None:
    """Looked up when it is bound: on the instance, the class, or TCPServer itself, for all servers."""
    values = {"allow_reuse_address": True, "request_queue_size": 7}
    if hasattr(socket, "SO_REUSEPORT"):
        values["allow_reuse_port"] = True

    def scenario(socketserver: Any) -> list[Any]:
        queues: list[int] = []

        class Server(socketserver.TCPServer):  # type: ignore[misc]
            def __init__(self) -> None:
                if where == "instance":
                    vars(self).update(values)
                super().__init__(LOCAL, echo)

        def listen(self: Any, queue: int) -> None:
            queues.append(queue)
            super(socket.socket, self).listen(queue)

        owner = {"class": Server, "instance": None, "base": socketserver.TCPServer}[where]
        with contextlib.ExitStack() as stack:
            stack.enter_context(mock.patch.object(socket.socket, "listen", listen))
            for name, value in values.items() if owner is not None else ():
                stack.enter_context(mock.patch.object(owner, name, value))
            server = stack.enter_context(Server())
            options = [socket.SO_REUSEADDR, getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR)]
            return [queues, [server.socket.getsockopt(socket.SOL_SOCKET, each) != 0 for each in options]]

    assert agreed(scenario, loop_name) == [[7], [True, True]]


def test_options_are_off_by_default(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        with socketserver.TCPServer(LOCAL, None) as server:
            options = [socket.SO_REUSEADDR, getattr(socket, "SO_REUSEPORT", socket.SO_REUSEADDR)]
            return [server.socket.getsockopt(socket.SOL_SOCKET, each) for each in options]

    assert agreed(scenario, loop_name) == [0, 0]


def test_family_and_type_of_an_instance(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        class Server(socketserver.TCPServer):  # type: ignore[misc]
            def __init__(self, address: str) -> None:
                self.address_family = socket.AF_UNIX
                self.socket_type = socket.SOCK_SEQPACKET if LINUX else socket.SOCK_STREAM
                super().__init__(address, echo)

        with tempfile.TemporaryDirectory(prefix="compat") as directory:
            with (
                Server(f"{directory}/socket") as server,
                socket.socket(socket.AF_UNIX, server.socket_type) as sock,
            ):
                sock.settimeout(PATIENCE)
                sock.connect(server.server_address)
                sock.send(b"hello")
                server.handle_request()
                return [sock.recv(100), sock.recv(100), server.socket.type == server.socket_type]

    assert agreed(scenario, loop_name) == [b"hello", b"", True]


@pytest.mark.parametrize("server_name", ["UDPServer", "ThreadingUDPServer"])
def test_datagrams_are_cut_to_max_packet_size(server_name: str, loop_name: LoopName) -> None:
    """As it is when the datagram is received; an empty datagram is a request like any other."""

    def scenario(socketserver: Any) -> list[Any]:
        seen: list[Any] = []

        def handler(request: Any, client_address: Any, server: Any) -> None:
            data, sock = request
            sock.sendto(b"%d of %d" % (len(data), server.max_packet_size), client_address)
            seen.append((type(data).__name__, sock is server.socket))

        class Server(recorded(getattr(socketserver, server_name), Trace())):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                if request[0] == b"longer!":
                    self.max_packet_size = 60_000
                return True

        with Server(LOCAL, handler) as server:
            replies = []
            clients = [Client(server, b"x" * 9000), Client(server, b"")]
            run_turns(server, "serve_forever", 2)
            replies += [client.reply() for client in clients]
            server.max_packet_size = 7
            # One by one where the next would change it: a thread looks when it comes to that.
            for words in ((b"12345678",), (b"longer!!", b"x" * 20_000)):
                clients = [Client(server, word) for word in words]
                run_turns(server, "serve_forever", len(words))
                replies += [client.reply() for client in clients]
        return [replies, seen]

    found = agreed(scenario, loop_name)
    first = [b"8192 of 8192", b"0 of 8192"]
    assert found[0] == [*first, b"7 of 7", b"7 of 60000", b"20000 of 60000"]
    assert found[1] == [("bytes", True)] * 5


@pytest.mark.parametrize("entry", [*ENTRIES, "own loop"])
def test_datagram_socket_of_the_programs_own(entry: str, loop_name: LoopName) -> None:
    """A wrapper has the methods that the standard library calls, with the arguments that it passes."""

    class Wrapper:
        def __init__(self, sock: socket.socket) -> None:
            self.fileno, self.close, self.gettimeout = sock.fileno, sock.close, sock.gettimeout
            self.getsockname, self.sendto = sock.getsockname, sock.sendto
            self.family, self.type = sock.family, sock.type
            self._sock = sock

        def recvfrom(self, size: int) -> Any:
            data, client_address = self._sock.recvfrom(size)
            return data.upper(), client_address

    def scenario(socketserver: Any) -> list[Any]:
        with recorded(socketserver.UDPServer, Trace())(LOCAL, echo) as server:
            server.socket = Wrapper(server.socket)
            clients = [Client(server, b"one"), Client(server, b"two")]
            run_turns(server, entry, 2)
            return [client.reply() for client in clients]

    assert agreed(scenario, loop_name) == [b"ONE", b"TWO"]


# --- the sockets that handlers get ---


def state(sock: socket.socket) -> list[Any]:
    """What programs rely on: a plain, blocking socket."""
    return [
        type(sock).__name__,
        sock.getblocking(),
        sock.gettimeout(),
        os.get_blocking(sock.fileno()),
        sock.get_inheritable(),
        sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) if sock.family == socket.AF_INET else 0,
    ]


PLAIN = ["socket", True, None, True, False, 0]


@pytest.mark.parametrize("server_name", ["TCPServer", "ThreadingTCPServer", "UnixStreamServer"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_sockets_are_plain_and_blocking(entry: str, server_name: str, loop_name: LoopName) -> None:
    """The connections and the listening socket, in every hook and while the server waits."""

    def scenario(socketserver: Any) -> list[Any]:
        seen: list[Any] = []

        class Server(recorded(getattr(socketserver, server_name), Trace())):  # type: ignore[misc]
            def verify_request(self, request: Any, client_address: Any) -> bool:
                seen.append(["verify_request", state(request), state(self.socket)])
                return True

            def finish_request(self, request: Any, client_address: Any) -> None:
                seen.append(["finish_request", state(request), state(self.socket)])
                echo(request, client_address, self)

        with address_for(Server) as address, Server(address, None) as server:
            client = Client(server, b"hello")
            run_turns(server, entry, 1)
            seen.append(client.reply())
            waiting = InThread("serving", run_turns, server, entry, 1)
            seen.append(["waiting", blocks(waiting), state(server.socket)])
            client = Client(server, b"hello")
            seen.append(client.reply())
            waiting.result()
        return seen

    hooks = [["verify_request", PLAIN, PLAIN], ["finish_request", PLAIN, PLAIN]]
    expected = [*hooks, b"hello", ["waiting", True, PLAIN], *hooks, b"hello"]
    assert agreed(scenario, loop_name) == expected


@pytest.mark.parametrize("entry", ENTRIES)
def test_sending_blocks_while_the_peer_is_slow(entry: str, loop_name: LoopName) -> None:
    """The socket of a datagram server is the one that handlers answer with, and it is a blocking one."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        count = 2000  # More than the queue of a Unix socket holds.

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                for number in range(count):
                    self.request[1].sendto(b"%d" % number, self.client_address)

        class Server(recorded(socketserver.UnixDatagramServer, Trace())):  # type: ignore[misc]
            def handle_error(self, request: Any, client_address: Any) -> None:
                trace(type(sys.exc_info()[1]).__name__)

        with address_for(Server) as address, Server(address, Handler) as server:
            waiting = InThread("serving", run_turns, server, entry, 1)
            trace(blocks(waiting))
            with Client(server) as client:
                trace(blocks(waiting))
                client.sock.settimeout(PATIENCE if not waiting.done else 0)
                with contextlib.suppress(BlockingIOError):
                    trace([int(client.receive()) for _ in range(count)] == list(range(count)))
            waiting.result()
        return trace.events

    assert agreed(scenario, loop_name) == [True, True, True]


def test_default_timeout_of_sockets(loop_name: LoopName) -> None:
    """``socket.setdefaulttimeout()`` makes the listening socket one with a timeout, and the others."""

    def scenario(socketserver: Any) -> list[Any]:
        seen: list[Any] = []
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(PATIENCE)
        try:
            server = recorded(socketserver.TCPServer, Trace())(
                LOCAL, lambda request, name, server: seen.append(state(request)[1:4])
            )
            with server:
                seen.append(state(server.socket)[1:4])
                for entry in ENTRIES:
                    with Client(server):
                        run_turns(server, entry, 1)
                server.socket.settimeout(1 * MS)
                seen.append(server.handle_request())
        finally:
            socket.setdefaulttimeout(before)
        return seen

    assert agreed(scenario, loop_name) == [*[[True, PATIENCE, False]] * 3, None]


def test_what_handlers_do_with_their_socket(loop_name: LoopName) -> None:
    """Timeouts, files, ``sendfile()``, ``dup()``, ``detach()`` and selectors."""

    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        trace = Trace()

        class Handler(socketserver.BaseRequestHandler):  # type: ignore[misc]
            def handle(self) -> None:
                sock = self.request
                sock.settimeout(1 * MS)
                outcome = trace.call(sock.recv, 1)
                sock.settimeout(PATIENCE)
                sock.sendall(type(outcome).__name__.encode() + b"\n")
                with selectors.DefaultSelector() as selector:
                    selector.register(sock, selectors.EVENT_READ)
                    selector.select(PATIENCE)
                with sock.makefile("rwb") as file:
                    file.write(b"read " + file.readline())
                with tempfile.TemporaryFile() as file:
                    file.write(b"from a file\n" * 100_000)
                    file.seek(0)
                    sock.sendfile(file)
                with sock.dup() as copy:
                    copy.sendall(b"from a copy\n")
                with socket.socket(fileno=sock.detach()) as own:
                    own.sendall(b"detached\n")

        with getattr(socketserver, server_name)(LOCAL, Handler) as server, serving(server):
            client = Client(server)
            with client.sock, client.sock.makefile("rb") as file:
                lines = [file.readline()]
                client.send(b"a line\n")
                lines += [*set(file.readlines(12 * 100_000 + 6)), *file.readlines()]
        return sorted(set(lines))

    for server_name in ("TCPServer", "ThreadingTCPServer"):
        assert agreed(scenario, loop_name, server_name) == [
            b"TimeoutError\n",
            b"detached\n",
            b"from a copy\n",
            b"from a file\n",
            b"read a line\n",
        ]


# --- one connection a turn ---


@pytest.mark.parametrize("entry", ["serve_forever", "handle_request"])
def test_nothing_is_accepted_ahead(entry: str, loop_name: LoopName) -> None:
    """While one connection is being handled, and after it, the next ones are there for others to accept."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        def accepted_elsewhere(server: Any) -> list[bytes]:
            words = []
            with server.socket.dup() as other:
                other.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sock, _ = other.accept()
                        with sock:
                            words.append(sock.recv(100))
                other.setblocking(True)  # The flag belongs to both.
            return words

        def handler(request: Any, client_address: Any, server: Any) -> None:
            trace("handled", request.recv(100), "and left", accepted_elsewhere(server))
            clients.append(Client(server, b"four"))

        with recorded(socketserver.TCPServer, Trace())(LOCAL, handler) as server:
            clients = [Client(server, word) for word in (b"one", b"two", b"three")]
            run_turns(server, entry, 1)
            trace("left", accepted_elsewhere(server))
            for client in clients:
                client.close()
        return trace.events

    assert agreed(scenario, loop_name) == [
        ("handled", b"one", "and left", [b"two", b"three"]),
        ("left", [b"four"]),
    ]


def test_two_servers_on_one_socket(loop_name: LoopName) -> None:
    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        server_class = recorded(socketserver.TCPServer, Trace())
        with server_class(LOCAL, lambda request, *_: request.sendall(b"first")) as first:
            second = server_class(
                LOCAL, lambda request, *_: request.sendall(b"second"), bind_and_activate=False
            )
            with second:
                second.socket.close()
                second.socket = first.socket.dup()
                clients = [Client(first) for _ in range(6)]
                for entry in (*ENTRIES, "own loop"):
                    for server in (first, second):
                        run_turns(server, entry, 1)
                trace([client.reply() for client in clients])
        return trace.events

    assert agreed(scenario, loop_name) == [[b"first", b"second"] * 3]


# --- another socket ---


@pytest.mark.parametrize("entry", [*ENTRIES, "own loop"])
@pytest.mark.parametrize("how", ["another", "dup", "detach", "fileno", "subclass"])
def test_socket_replaced_before_serving(how: str, entry: str, loop_name: LoopName) -> None:
    """With one that was inherited, activated by others, or wrapped: nothing is kept from construction."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Own(socket.socket):
            def accept(self) -> Any:
                trace("own accept")
                return super().accept()

        with recorded(socketserver.TCPServer, Trace())(LOCAL, echo) as server:
            old = server.socket
            if how == "another":
                server.socket = socket.create_server(LOCAL)
            elif how == "dup":
                server.socket = old.dup()
            elif how == "detach":
                server.socket = socket.socket(fileno=old.detach())
            elif how == "fileno":
                server.socket = socket.socket(fileno=os.dup(old.fileno()))
            else:
                server.socket = Own(fileno=os.dup(old.fileno()))
            old.close()
            for _ in range(2):
                client = Client(server, b"hello")
                run_turns(server, entry, 1)
                trace(client.reply())
        trace(server.socket.fileno())
        return trace.events

    turn = ["own accept", b"hello"] if how == "subclass" else [b"hello"]
    assert agreed(scenario, loop_name) == [*turn, *turn, -1]


def test_socket_for_each_request(loop_name: LoopName) -> None:
    """Another listening socket for each ``handle_request()``, and none in between."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        with socketserver.TCPServer(LOCAL, echo) as server:
            server.server_close()
            for word in (b"one", b"two", b"three"):
                with listener() as server.socket:
                    client = Client(server, word)
                    server.handle_request()
                    trace(client.reply())
                server.socket = None
            trace.call(server.handle_request)
            trace.call(server.fileno)
            with listener() as server.socket:
                server.timeout = 0
                trace(server.handle_request())
        return trace.events

    attribute_error = ("raised", "AttributeError")
    assert agreed(scenario, loop_name) == [
        *(b"one", b"two", b"three"),
        *(attribute_error, attribute_error, None),
    ]


@pytest.mark.parametrize("how", ["same number", "another number"])
def test_socket_replaced_while_serving(how: str, loop_name: LoopName) -> None:
    """By a handler: with an object for the same descriptor, or with another listening socket."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        sockets = [socket.create_server(LOCAL) for _ in range(2)] if how == "another number" else []

        def handler(request: Any, client_address: Any, server: Any) -> None:
            echo(request, client_address, server)
            old = server.socket
            if sockets:
                server.socket = sockets.pop()
            elif how == "same number":
                server.socket = socket.socket(fileno=old.detach())
            if server.socket is not old:
                clients.append(Client(server, b"later"))  # Before the old number is free again.
                old.close()

        with recorded(socketserver.TCPServer, Trace())(LOCAL, handler) as server:
            clients = [Client(server, b"first")]
            run_turns(server, "serve_forever", 3)
            trace([client.reply() for client in clients[:3]])
            for client in clients[3:]:
                client.close()
        return trace.events

    assert agreed(scenario, loop_name) == [[b"first", b"later", b"later"]]


def test_base_server_with_a_socket_of_its_own(loop_name: LoopName) -> None:
    """``BaseServer`` alone waits for whatever ``fileno()`` is: here the end of a socket pair."""

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()

        class Server(socketserver.BaseServer):  # type: ignore[misc]
            def __init__(self, sock: socket.socket) -> None:
                super().__init__("an address", noted_handler(socketserver, trace))
                self.socket = sock

            def fileno(self) -> int:
                return self.socket.fileno()

            def get_request(self) -> Any:
                return (self.socket.recv(100), self.socket), None

            def finish_request(self, request: Any, client_address: Any) -> None:
                data, sock = request
                sock.sendall(data.upper())

        near, far = socket.socketpair()
        with near, far, recorded(Server, trace)(near) as server:
            far.settimeout(PATIENCE)
            far.send(b"one")
            run_turns(server, "serve_forever", 1)
            far.send(b" two")
            server.timeout = PATIENCE
            server.handle_request()
            trace(far.recv(100), server.server_address)
            server.timeout = 0
            trace(server.handle_request())
        return trace.events

    turn = ["get_request", "verify_request", "process_request", "finish_request"]
    turn += ["shutdown_request", "close_request"]
    assert agreed(scenario, loop_name) == [
        *(*turn, "service_actions"),
        *turn,
        (b"ONE TWO", "an address"),
        *("handle_timeout", None, "server_close"),
    ]


# --- TLS ---


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's and a client's."""
    files = authority().server("localhost")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(files.certificate, files.private_key)
    return server, authority().client_context()


@pytest.mark.parametrize("server_name", ["TCPServer", "ThreadingTCPServer"])
@pytest.mark.parametrize("where", ["listening socket", "get_request", "handler"])
def test_tls(where: str, server_name: str, loop_name: LoopName) -> None:
    """The three ways of programs; a failed handshake in ``get_request()`` is an ``OSError``, and ignored."""
    context, client_context = contexts()

    def scenario(socketserver: Any) -> list[Any]:
        trace = Trace()
        seen: list[str] = []

        class Server(getattr(socketserver, server_name)):  # type: ignore[misc]
            def get_request(self) -> Any:
                request, client_address = super().get_request()
                if where == "get_request":
                    try:
                        request = context.wrap_socket(request, server_side=True)
                    except OSError:
                        seen.append("failed")
                        raise
                return request, client_address

            def handle_error(self, request: Any, client_address: Any) -> None:
                seen.append("failed")

        class Handler(socketserver.StreamRequestHandler):  # type: ignore[misc]
            def setup(self) -> None:
                if where == "handler":
                    self.request = context.wrap_socket(self.request, server_side=True)
                super().setup()

            def handle(self) -> None:
                seen.append(type(self.request).__name__)
                self.wfile.write(self.rfile.readline())

            def finish(self) -> None:
                super().finish()
                if where == "handler":
                    self.request.close()

        with Server(LOCAL, Handler) as server:
            if where == "listening socket":
                server.socket = context.wrap_socket(server.socket, server_side=True)
            with serving(server):
                plain = Client(server)
                plain.send(b"this is not TLS\n")
                trace(len(plain.reply()) > 0)  # An alert.
                for word in (b"one\n", b"two\n"):
                    client = Client(server)
                    with client_context.wrap_socket(client.sock, server_hostname="localhost") as sock:
                        sock.sendall(word)
                        trace(sock.recv(100))
        return [trace.events, sorted(seen)]

    failed = [] if where == "listening socket" else ["failed"]
    assert agreed(scenario, loop_name) == [[True, b"one\n", b"two\n"], ["SSLSocket"] * 2 + failed]


def test_many_clients_at_once(loop_name: LoopName) -> None:
    """Nobody is lost or served twice, whatever the server is doing meanwhile."""

    def scenario(socketserver: Any, server_name: str) -> list[Any]:
        server_class = type("Server", (getattr(socketserver, server_name),), {"request_queue_size": 64})
        with address_for(server_class) as address, server_class(address, echo) as server, serving(server):
            words = [b"client %d" % number for number in range(40)]
            clients = [Client(server, word) for word in words]
            wait_until_blocking(lambda: threading.active_count() < 40)
            return [client.reply() for client in clients] + [server.socket.type == server.socket_type]

    for server_name in (*SERVERS, "ThreadingTCPServer", "ThreadingUDPServer"):
        found = agreed(scenario, loop_name, server_name)
        assert found == [*(b"client %d" % number for number in range(40)), True]
