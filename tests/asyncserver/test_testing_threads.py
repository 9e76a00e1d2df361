"""``serving_in_thread``: every kind of server, its errors, and its end."""

from __future__ import annotations

import asyncio
import socket
import socketserver
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest

import compat
from asyncserver import (
    BindError,
    DatagramServer,
    LoopName,
    OptionError,
    Server,
    ServerStateError,
    Stream,
    current_connection,
)
from asyncserver.testing import leak_check, serving_in_thread, threads
from asyncserver.testing.targets import locate
from tests.clients import LOOPBACK, echo
from tests.datagrams import UDP, echo_datagram
from tests.waiting import MS, PATIENCE, wait_until_blocking


def ask(target: Any, data: bytes = b"hello") -> bytes:
    """Send it, and receive the first answer, in a thread without a loop."""
    place = locate(target)
    with socket.socket(place.family, place.kind) as client:
        client.settimeout(PATIENCE)
        client.connect(place.sockaddr)
        client.send(data)
        return client.recv(100)


class Echo(socketserver.BaseRequestHandler):
    """Answers once."""

    def handle(self) -> None:
        self.request.sendall(self.request.recv(100))


class EchoPacket(socketserver.BaseRequestHandler):
    """Answers a packet."""

    def handle(self) -> None:
        self.request[1].sendto(self.request[0], self.client_address)


def test_a_server_of_this_package(loop_name: LoopName) -> None:
    server = Server(echo, LOOPBACK)
    for _ in range(2):
        with leak_check(), serving_in_thread(server, loop=loop_name) as same:
            assert same is server
            assert ask(server) == b"hello"
        assert not server.addresses
    with leak_check(), serving_in_thread(DatagramServer(echo_datagram, UDP), loop=loop_name) as other:
        assert ask(other) == b"hello"


@pytest.mark.parametrize("module", [socketserver, compat])
@pytest.mark.parametrize("name", ["TCPServer", "ThreadingTCPServer", "UDPServer"])
def test_a_server_that_blocks(module: Any, name: str) -> None:
    handler = EchoPacket if "UDP" in name else Echo
    with leak_check(), serving_in_thread(getattr(module, name)(("127.0.0.1", 0), handler)) as server:
        assert ask(server) == b"hello"
        assert ask(server) == b"hello"
    assert server.socket.fileno() == -1


def test_one_that_serves_again() -> None:
    """The end of the first time is not the end of the second one."""

    class Kept(socketserver.TCPServer):
        def server_close(self) -> None:
            pass

    with Kept(("127.0.0.1", 0), Echo) as server:
        for _ in range(2):
            with serving_in_thread(server):
                assert ask(server) == b"hello"
        socketserver.TCPServer.server_close(server)


# Errors.


def test_a_start_that_fails() -> None:
    with leak_check(), serving_in_thread(Server(echo, LOOPBACK)) as server:
        with pytest.raises(BindError):
            with serving_in_thread(Server(echo, server.addresses[0])):
                pytest.fail("two servers on one port")


class Failing(socketserver.TCPServer):
    """Fails at the first request, or while it is closed."""

    when = "service_actions"

    def __init__(self) -> None:
        self.has_run = threading.Event()
        super().__init__(("127.0.0.1", 0), Echo)

    def service_actions(self) -> None:
        self.has_run.set()
        if self.when == "service_actions":
            raise RuntimeError("no service")

    def server_close(self) -> None:
        super().server_close()
        if self.when == "server_close":
            raise RuntimeError("not closed")


@pytest.mark.parametrize(
    ("when", "what"), [("service_actions", "no service"), ("server_close", "not closed")]
)
def test_what_ends_it_is_raised(when: str, what: str) -> None:
    failing = type("Server", (Failing,), {"when": when})
    with pytest.raises(RuntimeError, match=what):
        with serving_in_thread(failing()) as server:
            assert server.has_run.wait(PATIENCE)
    with pytest.raises(KeyError) as caught:
        with serving_in_thread(failing()) as server:
            assert server.has_run.wait(PATIENCE)
            raise KeyError("of the block")
    (note,) = caught.value.__notes__
    assert note.startswith("And when its server ended:\n")
    assert note.count("Traceback") == 1
    assert f"RuntimeError: {what}" in note


def test_a_lifespan_that_fails_at_the_end() -> None:
    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        yield
        raise RuntimeError("the database is gone")

    with leak_check(), pytest.raises(RuntimeError, match="the database is gone"):
        with serving_in_thread(Server(echo, LOOPBACK, lifespan=lifespan)):
            pass


def test_what_is_no_server() -> None:
    with pytest.raises(OptionError, match=r"is no server: it has no serve_forever\(\)"):
        with serving_in_thread(LOOPBACK):  # type: ignore[type-var]
            pass
    with pytest.raises(OptionError, match="timeout=0"):
        with serving_in_thread(Server(echo, LOOPBACK), timeout=0):
            pass


def test_one_that_is_running_already(loop_name: LoopName) -> None:
    with leak_check(), serving_in_thread(Server(echo, LOOPBACK), loop=loop_name) as server:
        with pytest.raises(ServerStateError):
            with serving_in_thread(server, loop=loop_name):
                pass
        assert ask(server) == b"hello"


# Its end.


def test_one_that_ends_by_itself() -> None:
    closing: list[object] = []

    async def handler(stream: Stream) -> None:
        closing.append(asyncio.create_task(current_connection().server.aclose()))
        await stream.receive()

    with leak_check(), serving_in_thread(Server(handler, LOOPBACK)) as server:
        assert ask(server) == b""
        wait_until_blocking(lambda: not server.addresses)


def test_its_handlers_have_their_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """However short the timeout is."""
    # It is for the end only: the start may take longer.
    result = threads._result
    monkeypatch.setattr(threads, "_result", lambda opened, worker, _: result(opened, worker, PATIENCE))

    async def handler(stream: Stream) -> None:
        await stream.send(b"hello")
        try:
            await asyncio.sleep(3_600)
        finally:
            await asyncio.sleep(600 * MS)
            ended.set()

    ended = threading.Event()
    with leak_check(), serving_in_thread(Server(handler, LOOPBACK), timeout=300 * MS) as server:
        assert ask(server) == b"hello"
    assert ended.is_set()


class Stubborn(socketserver.BaseServer):
    """Does not end before it may."""

    def __init__(self) -> None:
        self.may_end = threading.Event()

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        self.may_end.wait(PATIENCE)

    def shutdown(self) -> None:
        pass


def test_one_that_does_not_end() -> None:
    server = Stubborn()
    try:
        with pytest.raises(TimeoutError) as caught:
            with serving_in_thread(server, timeout=200 * MS):
                pass
        message = str(caught.value)
        assert message.startswith(
            f"waited {200 * MS:g} s for the end of thread 'serving-Stubborn' (daemon, Thread"
        )
        assert "threading.py" in message
        assert message.endswith("it is left behind")
    finally:
        server.may_end.set()


def test_one_that_does_not_start() -> None:
    may_start = threading.Event()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        await asyncio.to_thread(may_start.wait, PATIENCE)
        yield
        ended.set()

    ended = threading.Event()
    try:
        with pytest.raises(TimeoutError, match="for the start of a server in thread 'serving-in-a-loop'"):
            with serving_in_thread(Server(echo, LOOPBACK, lifespan=lifespan), timeout=200 * MS):
                pass
    finally:
        may_start.set()
    assert ended.wait(PATIENCE), "it went on serving when nobody waited any more"


@pytest.mark.parametrize("started", [False, True])
def test_an_interruption_of_the_start(started: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C before the server has started, or when that has just not been noticed yet."""
    ended = threading.Event()

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        await asyncio.to_thread(may_start.wait, PATIENCE)
        yield
        ended.set()

    def interrupted(future: Future[Any], *_: object) -> Any:
        if started:
            may_start.set()
            wait_until_blocking(future.done)
        raise KeyboardInterrupt

    may_start = threading.Event()
    server = Server(echo, LOOPBACK, lifespan=lifespan)
    with leak_check():
        try:
            with pytest.raises(KeyboardInterrupt):
                monkeypatch.setattr("asyncserver.testing.threads._result", interrupted)
                with serving_in_thread(server):
                    pytest.fail("nobody interrupted it")
        finally:
            may_start.set()
        assert ended.wait(PATIENCE), "it goes on serving"
