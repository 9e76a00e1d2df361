from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest

from asyncserver import Listener, SocketOptions, TCPAddress, parse_address
from asyncserver.sockets import ListeningSocket, open_listening_sockets
from tests.clients import Client
from tests.waiting import MS, SECOND, stays, wait_until


class Accepting:
    """A listener on a free port, and the sockets it has accepted."""

    def __init__(self, listening: ListeningSocket, may_accept: Callable[[], bool] | None = None) -> None:
        self.sockets: list[socket.socket] = []
        self.turns: list[int] = []
        self.listener = Listener(listening, asyncio.get_running_loop(), self._accepted, may_accept)
        self.on_connection: Callable[[], None] | None = None

    def _accepted(self, sock: socket.socket, sockaddr: Any, listener: Listener) -> None:
        assert listener is self.listener
        assert not sock.getblocking()
        if not self.turns or not self.turns[-1]:
            asyncio.get_running_loop().call_soon(self.turns.append, 0)
            self.turns.append(0)
        self.turns[-1] += 1
        self.sockets.append(sock)
        if self.on_connection is not None:
            self.on_connection()

    async def wait(self, count: int) -> None:
        await wait_until(
            lambda: len(self.sockets) >= count, what=lambda: f"{count}, have {len(self.sockets)}"
        )
        assert len(self.sockets) == count


Opened = Callable[..., AbstractContextManager[Accepting]]


@pytest.fixture
def accepting() -> Iterator[Opened]:
    """Gives listeners on free ports, two at most: they are opened here, because that blocks."""
    addresses = [parse_address("tcp://127.0.0.1:0")] * 2
    spare = open_listening_sockets(addresses, SocketOptions())
    opened = list(spare)

    @contextmanager
    def accept(
        may_accept: Callable[[], bool] | None = None, wrap: Callable[[socket.socket], Any] | None = None
    ) -> Iterator[Accepting]:
        listening = spare.pop()
        if wrap is not None:
            listening = replace(listening, socket=wrap(listening.socket))
        server = Accepting(listening, may_accept)
        try:
            yield server
        finally:
            server.listener.close()
            for sock in server.sockets:
                sock.close()

    yield accept
    for listening in opened:
        listening.release()


@pytest.fixture
def clients() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


async def connect(target: Accepting, clients: ExitStack, count: int = 1) -> None:
    for _ in range(count):
        client = await Client.connect(target.listener.address)
        clients.callback(client.close)


async def test_it_accepts_once_it_is_started(accepting: Opened, clients: ExitStack) -> None:
    with accepting() as server:
        await connect(server, clients, 3)
        await stays(lambda: not server.sockets)
        assert server.listener.paused == {"closed"}
        server.listener.start()
        assert not server.listener.paused
        await server.wait(3)
        await connect(server, clients, 2)
        await server.wait(5)
        statistics = server.listener.statistics()
        assert statistics.accepted == 5
        assert statistics.address == str(server.listener.address)
        assert statistics.paused == frozenset()
        address = server.listener.address
        assert isinstance(address, TCPAddress)
        assert address.port
        assert not server.listener.tls
        assert repr(server.listener) == f"<Listener {address} accepting>"


async def test_a_paused_one_loses_nothing(accepting: Opened, clients: ExitStack) -> None:
    with accepting() as server:
        server.listener.start()
        await connect(server, clients)
        await server.wait(1)
        server.listener.pause()
        server.listener.pause()
        await connect(server, clients, 20)
        await stays(lambda: len(server.sockets) == 1)
        assert repr(server.listener).endswith("paused>")
        server.listener.resume()
        server.listener.resume()
        await server.wait(21)


async def test_every_reason_to_pause_counts(accepting: Opened, clients: ExitStack) -> None:
    with accepting() as server:
        server.listener.start()
        server.listener.pause("lunch")
        server.listener.pause()
        server.listener.pause("tea")
        assert server.listener.statistics().paused == {"lunch", "requested", "tea"}
        await connect(server, clients)
        for reason in ("tea", "requested", "something else"):
            server.listener.resume(reason)
            await stays(lambda: not server.sockets, during=20 * MS)
        server.listener.resume("lunch")
        await server.wait(1)


async def test_closed_is_for_good_whatever_is_resumed(accepting: Opened, clients: ExitStack) -> None:
    with accepting() as server:
        server.listener.start()
        server.listener.pause()
        server.listener.close()
        server.listener.close()
        server.listener.resume()
        await connect(server, clients)
        await stays(lambda: not server.sockets)
        assert server.listener.paused == {"closed"}


async def test_pausing_in_the_middle_of_a_batch(accepting: Opened, clients: ExitStack) -> None:
    with accepting() as server:
        server.on_connection = server.listener.pause
        await connect(server, clients, 5)
        server.listener.start()
        for count in range(1, 6):
            await server.wait(count)
            await stays(lambda count=count: len(server.sockets) == count, during=10 * MS)  # type: ignore[misc]
            server.listener.resume()


async def test_a_batch_is_bounded(accepting: Opened, clients: ExitStack) -> None:
    """So that the connections that are there already have their turn."""
    with accepting() as server:
        await connect(server, clients, 150)
        server.listener.start()
        await server.wait(150)
        turns = [turn for turn in server.turns if turn]
        assert max(turns) == 64
        assert sum(turns) == 150


async def test_it_asks_before_each_one(accepting: Opened, clients: ExitStack) -> None:
    asked: list[bool] = []

    def may_accept() -> bool:
        asked.append(len(asked) < 2)
        if not asked[-1]:
            server.listener.pause("rate")
        return asked[-1]

    with accepting(may_accept) as server:
        await connect(server, clients, 5)
        server.listener.start()
        await server.wait(2)
        await stays(lambda: len(server.sockets) == 2)
        assert asked == [True, True, False]
        asked.clear()
        server.listener.resume("rate")
        await server.wait(4)


class Failing:
    """A listening socket whose accept() fails as it was told before it does what it should."""

    def __init__(self, sock: socket.socket, failures: list[int]) -> None:
        self._sock = sock
        self.failures = failures
        self.calls = 0

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> Any:
        self.calls += 1
        if self.failures:
            number = self.failures.pop(0)
            raise OSError(number, os.strerror(number))
        return self._sock.accept()


OF_ONE_CONNECTION = [
    errno.ECONNABORTED,
    errno.ECONNRESET,
    errno.EPROTO,
    errno.EPERM,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.ENOPROTOOPT,
    errno.EOPNOTSUPP,
    errno.ETIMEDOUT,
]


async def test_an_error_of_one_connection_does_not_stop_the_batch(
    accepting: Opened, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    failures = list(OF_ONE_CONNECTION)
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        await connect(server, clients, 3)
        server.listener.start()
        await server.wait(3)
        assert server.listener.statistics().accept_errors == len(OF_ONE_CONNECTION)
        assert server.listener.statistics().exhausted == 0
        assert [turn for turn in server.turns if turn] == [3]
    assert not caplog.records


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_backing_off_when_the_machine_has_no_more(
    accepting: Opened, number: int, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncserver")
    failures = [number] * 5
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        await connect(server, clients, 3)
        started = asyncio.get_running_loop().time()
        server.listener.start()
        await wait_until(lambda: server.listener.paused == {"exhausted"})
        await server.wait(3)
        # 10, 20, 40, 80 and 160 ms.
        assert asyncio.get_running_loop().time() - started >= 0.3
        statistics = server.listener.statistics()
        assert (statistics.exhausted, statistics.accept_errors, statistics.accepted) == (1, 0, 3)
        assert server.listener._sock.calls == 5 + 3 + 1  # type: ignore[attr-defined]
    bad, good = caplog.records
    assert "out of descriptors or memory" in bad.message
    assert bad.levelno == logging.ERROR
    assert not bad.exc_info
    assert "accepting again" in good.message


async def test_one_log_line_for_each_time(
    accepting: Opened, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [errno.EMFILE] * 3
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        server.listener.start()
        for episode in range(1, 4):
            await connect(server, clients)
            await server.wait(episode)
            assert server.listener.statistics().exhausted == episode
            assert len(caplog.records) == episode
            failures += [errno.EMFILE] * 2


async def test_the_delay_has_an_upper_bound(
    accepting: Opened, clients: ExitStack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("asyncserver.listener._LONGEST_DELAY", 0.03)
    failures = [errno.EMFILE] * 20
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        await connect(server, clients)
        server.listener.start()
        started = asyncio.get_running_loop().time()
        await server.wait(1)
        assert 0.5 <= asyncio.get_running_loop().time() - started < 5 * SECOND
    assert len(caplog.records) == 1


async def test_a_socket_that_is_broken_is_no_busy_loop(
    accepting: Opened, clients: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [errno.EINVAL] * 1_000
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        await connect(server, clients)
        server.listener.start()
        await stays(lambda: not server.sockets, during=200 * MS)
        assert server.listener._sock.calls < 8  # type: ignore[attr-defined]
    (record,) = caplog.records
    assert "cannot accept" in record.message


async def test_closing_while_it_backs_off(accepting: Opened, clients: ExitStack) -> None:
    failures = [errno.EMFILE] * 1_000
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        await connect(server, clients)
        server.listener.start()
        await wait_until(lambda: "exhausted" in server.listener.paused)
        server.listener.close()
        failures.clear()
        await stays(lambda: "closed" in server.listener.paused and not server.sockets, during=100 * MS)


async def test_a_pause_during_the_back_off_stays(accepting: Opened, clients: ExitStack) -> None:
    failures = [errno.EMFILE] * 2
    with accepting(wrap=lambda sock: Failing(sock, failures)) as server:
        await connect(server, clients)
        server.listener.start()
        await wait_until(lambda: "exhausted" in server.listener.paused)
        server.listener.pause()
        await wait_until(lambda: server.listener.paused == {"requested"})
        await stays(lambda: not server.sockets)
        server.listener.resume()
        await server.wait(1)


async def test_connections_reset_in_the_queue(accepting: Opened, clients: ExitStack) -> None:
    """They are accepted all the same (Linux), and their handler learns of it."""
    with accepting() as server:
        for _ in range(5):
            (await Client.connect(server.listener.address)).reset()
        await connect(server, clients)
        server.listener.start()
        await wait_until(lambda: server.sockets)
        statistics = server.listener.statistics
        await wait_until(lambda: statistics().accepted + statistics().accept_errors == 6)


async def test_a_connection_may_resume_another_listener(accepting: Opened, clients: ExitStack) -> None:
    with accepting() as first, accepting() as second:
        second.listener.start()
        second.listener.pause()
        first.on_connection = second.listener.resume
        await connect(second, clients)
        await connect(first, clients)
        first.listener.start()
        await second.wait(1)
        first.on_connection = second.listener.pause
        await connect(first, clients)
        await first.wait(2)
        await connect(second, clients)
        await stays(lambda: len(second.sockets) == 1)
