from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    CloseReason,
    ConnectionState,
    DrainReport,
    Limits,
    OptionError,
    Stream,
    Timeouts,
    current_connection,
    lifecycle,
)
from tests.clients import (
    Client,
    TLSClient,
    complaints,
    connect_many,
    echo,
    ignore_cancellation,
    local_server,
)
from tests.waiting import MS, SECOND, stays, wait_until, within

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


def counts(report: DrainReport) -> tuple[int, int, int, int]:
    return report.idle, report.finished, report.cancelled, report.aborted


async def follow(client: Client) -> bytes:
    """What a client does that closes when the server does."""
    try:
        return await client.receive_all()
    except ConnectionResetError:
        return b"reset"
    finally:
        client.close()


class Work:
    """A handler whose work ends when the test says so."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    async def __call__(self, stream: Stream) -> None:
        if await stream.receive() == b"work":
            await self.done.wait()
            await stream.send(b"done")
        else:
            await echo(stream)


async def test_nobody_is_there() -> None:
    server = local_server()
    await server.start()
    report = await within(server.drain())
    assert counts(report) == (0, 0, 0, 0)
    assert report.clean
    assert report.duration < 1 * SECOND
    assert server.addresses == ()
    assert counts(await server.drain()) == (0, 0, 0, 0)


async def test_fifty_idle_and_fifty_busy() -> None:
    work = Work()
    server = local_server(work)
    await server.start()
    address = server.addresses[0]
    idle, busy = await connect_many(server, 50), await connect_many(server, 50)
    for client in idle:
        await client.send(b"hello")
    for client in busy:
        await client.send(b"work")
    states = {ConnectionState.IDLE: 50, ConnectionState.ACTIVE: 50}
    await wait_until(lambda: server.statistics().states == states)
    started = time.monotonic()
    draining = asyncio.ensure_future(server.drain())
    assert await within(asyncio.gather(*map(follow, idle))) == [b""] * 50
    assert time.monotonic() - started < 5 * SECOND
    await wait_until(lambda: len(server.connections) == 50)
    assert server.statistics().states == {ConnectionState.DRAINING: 50}
    assert not server.ready
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(address)
    assert not draining.done()
    work.done.set()
    assert await within(asyncio.gather(*map(follow, busy))) == [b"done"] * 50
    report = await within(draining)
    assert counts(report) == (50, 50, 0, 0)
    assert report.clean
    assert server.statistics().closed == {CloseReason.DRAINED: 100}


async def test_who_does_not_finish_is_cancelled_and_then_aborted(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()

    async def handler(stream: Stream) -> None:
        command = await stream.receive()
        if command == b"finish":
            await current_connection().wait_draining()
            await stream.send(b"finished")
        elif command == b"work":
            await stop.wait()
        elif command == b"ignore":
            await ignore_cancellation(stop)
        else:
            await echo(stream)

    server = local_server(handler, timeouts=Timeouts(grace=100 * MS))
    await server.start()
    clients = await connect_many(server, 4)
    for client, command in zip(clients, [b"idle", b"finish", b"work", b"ignore"], strict=True):
        await client.send(command)
    await wait_until(lambda: server.statistics().states.get(ConnectionState.ACTIVE) == 3)
    started = time.monotonic()
    draining = asyncio.ensure_future(server.drain(600 * MS))
    answers = await within(asyncio.gather(*map(follow, clients)))
    assert answers == [b"", b"finished", b"", b"reset"]
    report = await within(draining)
    assert counts(report) == (1, 1, 1, 1)
    assert not report.clean
    # The clock of uvloop counts in whole milliseconds.
    assert 700 * MS - 0.05 <= report.duration <= time.monotonic() - started + 0.01
    assert server.statistics().stuck_handlers == 1
    assert len(complaints(caplog)) == 1
    stop.set()
    await wait_until(lambda: not server.statistics().stuck_handlers)


async def test_without_time_everybody_is_cancelled() -> None:
    server = local_server()
    await server.start()
    clients = await connect_many(server, 5)
    await wait_until(lambda: len(server.connections) == 5)
    draining = asyncio.ensure_future(server.drain(0))
    await asyncio.gather(*map(follow, clients))
    assert counts(await within(draining)) == (0, 0, 5, 0)
    assert server.statistics().closed == {CloseReason.CANCELLED: 5}


async def test_a_message_on_its_way_is_served() -> None:
    """A connection that is in the middle of a message, or gets one now, is not idle."""
    async with local_server(by_line) as server, await Client.connect(server) as client:
        await client.send(b"hel")
        await wait_until(lambda: server.statistics().states == {ConnectionState.ACTIVE: 1})
        draining = asyncio.ensure_future(server.drain())
        await stays(lambda: not draining.done(), during=600 * MS)
        await client.send(b"lo\n")
        assert await client.receive_exactly(6) == b"hello\n"
        await client.send(b"more\n")
        assert await client.receive_exactly(5) == b"more\n"
        assert await client.ended() == "eof"
        client.close()
        assert counts(await within(draining)) == (0, 1, 0, 0)


async def by_line(stream: Stream) -> None:
    async for line in stream.lines():
        await stream.send(line + b"\n")


async def test_what_is_still_to_be_sent_is_sent() -> None:
    size = 3 << 20

    async def handler(stream: Stream) -> None:
        await stream.send(bytes(size))
        await stream.receive()

    async with (
        local_server(handler, limits=Limits(send_buffer=8 << 20)) as server,
        await Client.connect(server, receive_buffer=4_096) as client,
    ):
        await wait_until(lambda: any(c.stream.receiving for c in server.connections))
        draining = asyncio.ensure_future(server.drain())
        await stays(lambda: not draining.done(), during=400 * MS)
        assert len(await client.receive_all()) == size
        client.close()
        assert (await within(draining)).clean


async def test_the_delay_is_waited_for() -> None:
    async with local_server() as server:
        started = time.monotonic()
        await within(server.drain(delay=200 * MS))
        assert time.monotonic() - started >= 200 * MS - 0.01


async def test_the_delay_goes_on_accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    over = asyncio.Event()

    async def until_over(ended: asyncio.Event, seconds: float) -> None:
        assert seconds == 200 * MS
        await over.wait()

    monkeypatch.setattr(lifecycle, "_wait_at_most", until_over)
    server = local_server()
    await server.start()
    ready = asyncio.ensure_future(server.wait_ready())
    await within(ready)
    async with await Client.connect(server) as before:
        await before.ask(b"x")
        draining = asyncio.ensure_future(server.drain(delay=200 * MS))
        await wait_until(lambda: not server.ready)
        assert server.addresses
        async with await Client.connect(server) as during:
            assert await during.ask(b"hello") == b"hello"
            assert await before.ask(b"hello") == b"hello"
            assert not next(iter(server.connections)).draining
            over.set()
            assert await within(asyncio.gather(follow(before), follow(during))) == [b"", b""]
    report = await within(draining)
    assert counts(report) == (2, 0, 0, 0)


@pytest.mark.parametrize("hurry", ["aclose", "drain", "cancel", "aclose(0)"])
async def test_a_drain_in_its_delay_can_be_hurried(hurry: str) -> None:
    server = local_server()
    await server.start()
    address = server.addresses[0]
    async with await Client.connect(server) as client:
        await client.ask(b"x")
        draining = asyncio.ensure_future(server.drain(300, delay=300))
        await wait_until(lambda: not server.ready)
        following = asyncio.ensure_future(follow(client))
        if hurry == "cancel":
            draining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(draining)
        else:
            methods: dict[str, Callable[[], Awaitable[Any]]] = {
                "aclose": server.aclose,
                "drain": server.drain,
                "aclose(0)": lambda: server.aclose(grace=0),
            }
            await within(methods[hurry]())
            await within(draining)
        await following
    with pytest.raises(ConnectionRefusedError):
        await Client.connect(address)
    assert not server.connections


@pytest.mark.parametrize("hurry", ["aclose", "drain", "cancel"])
async def test_a_drain_that_waits_can_be_hurried(hurry: str) -> None:
    work = Work()
    server = local_server(work)
    await server.start()
    async with await Client.connect(server) as client:
        await client.send(b"work")
        await wait_until(lambda: server.statistics().states == {ConnectionState.ACTIVE: 1})
        draining = asyncio.ensure_future(server.drain(None))
        await stays(lambda: not draining.done())
        following = asyncio.ensure_future(follow(client))
        if hurry == "cancel":
            draining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(draining)
        else:
            hurrying = server.aclose() if hurry == "aclose" else server.drain(50 * MS)
            await within(hurrying)  # type: ignore[arg-type]
            assert counts(await within(draining)) == (0, 0, 1, 0)
        assert await following == b""
    assert server.statistics().closed == {CloseReason.CANCELLED: 1}


async def test_a_drain_from_before_does_not_end_a_server_that_has_started_again() -> None:
    server = local_server()
    await server.start()
    draining = asyncio.ensure_future(server.drain(delay=300))
    await asyncio.sleep(0)
    await server.aclose()
    async with server:
        await within(draining)
        await stays(lambda: server.ready)
        async with await Client.connect(server) as client:
            assert await client.ask(b"x") == b"x"


async def test_connections_that_come_while_it_begins() -> None:
    """Each is served, or refused by the kernel: nobody hangs."""
    server = local_server(by_line)
    await server.start()
    address = server.addresses[0]
    outcomes: list[str] = []
    stop = False

    async def keep_coming() -> None:
        while not stop:
            try:
                async with await Client.connect(address) as client:
                    await client.send(b"hello\n")
                    answer = await client.receive_exactly(6)
                    outcomes.append("served" if answer == b"hello\n" else "cut off")
            except (ConnectionRefusedError, ConnectionResetError):
                outcomes.append("refused")
                await asyncio.sleep(0.001)

    coming = [asyncio.ensure_future(keep_coming()) for _ in range(10)]
    await wait_until(lambda: server.statistics().accepted >= 10)
    report = await within(server.drain())
    stop = True
    await within(asyncio.gather(*coming))
    assert report.clean
    assert set(outcomes) == {"served", "refused"}


async def test_accepted_in_the_last_moment() -> None:
    """A connection that comes when the others have been told is told, too."""
    server = local_server()
    await server.start()
    hub = server._hub
    assert hub is not None
    hub._told_to_end = CloseReason.DRAINED
    async with await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"
        assert await client.ended() == "eof"
    await within(server.aclose())
    assert server.statistics().closed == {CloseReason.DRAINED: 1}


@pytest.mark.allow_blocking("clients connect without a turn of the loop, in which they would be accepted")
async def test_who_is_connected_but_not_accepted_yet_is_served() -> None:
    """Closing the socket would reset who is in the kernel's queue."""
    async with local_server(limits=Limits(max_connections=200)) as server:
        clients = [connected_at_once(server) for _ in range(100)]
        for client in clients:
            client.sock.send(b"hello")
        assert not server.connections
        report = asyncio.ensure_future(server.drain())
        for client in clients:
            async with client:
                assert await client.receive_all() == b"hello"
        assert (await within(report)).clean
        assert server.statistics().closed == {CloseReason.DRAINED: len(clients)}


@pytest.mark.allow_blocking("clients connect without a turn of the loop, in which they would be accepted")
async def test_who_waits_for_a_place_is_not_accepted_by_a_drain() -> None:
    async with local_server(limits=Limits(max_connections=2)) as server:
        clients = [connected_at_once(server) for _ in range(3)]
        await within(server.drain())
        assert server.statistics().accepted == 2
        assert [await follow(client) for client in clients] == [b"", b"", b"reset"]


@pytest.mark.allow_blocking("clients connect without a turn of the loop, in which they would be accepted")
async def test_the_queue_of_an_adopted_socket_is_left_to_whoever_has_it_next() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        first, second = (os.dup(listening.fileno()) for _ in range(2))
    async with local_server(echo, f"fd://{first}") as server:
        clients = [connected_at_once(server) for _ in range(3)]
        await within(server.drain())
        assert server.statistics().accepted == 0
    async with local_server(echo, f"fd://{second}"):
        for client in clients:
            async with client:
                assert await client.ask(b"hello") == b"hello"


def connected_at_once(server: Any) -> Client:
    (address,) = server.addresses
    return Client(socket.create_connection((address.host, address.port)))


async def test_handshakes_are_awaited(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> None:
    async with local_server(echo, "tls+tcp://127.0.0.1:0", tls=server_context) as server:
        client = TLSClient(await Client.connect(server), client_context, "localhost")
        async with client:
            await wait_until(lambda: server.statistics().states == {ConnectionState.HANDSHAKE: 1})
            draining = asyncio.ensure_future(server.drain())
            await stays(lambda: not draining.done(), during=400 * MS)
            await client.handshake()
            assert await client.receive() == b""
        assert (await within(draining)).clean


async def test_silent_tls_clients_are_cancelled_in_the_end(
    server_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    server = local_server(
        echo,
        "tls+tcp://127.0.0.1:0",
        tls=server_context,
        limits=Limits(max_handshakes=2),
        timeouts=Timeouts(grace=1),
    )
    await server.start()
    clients = await connect_many(server, 5)
    await wait_until(lambda: server.statistics().states == {ConnectionState.HANDSHAKE: 5})
    draining = asyncio.ensure_future(server.drain(50 * MS))
    await asyncio.gather(*map(follow, clients))
    assert counts(await within(draining)) == (0, 0, 5, 0)
    assert not complaints(caplog)


@pytest.mark.parametrize("method", ["drain", "aclose"])
async def test_peers_that_do_not_close_are_not_waited_for(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The handler has ended, only the lingering is cut short: nobody is stuck."""
    server = local_server(timeouts=Timeouts(linger=300, grace=100 * MS))
    await server.start()
    clients = await connect_many(server, 3)
    for client in clients:
        await client.ask(b"x")
    if method == "drain":
        report = await within(server.drain(800 * MS))
        assert counts(report) == (3, 0, 0, 0)
        assert server.statistics().closed == {CloseReason.DRAINED: 3}
    else:
        await within(server.aclose())
        assert server.statistics().closed == {CloseReason.CANCELLED: 3}
    assert server.statistics().stuck_handlers == 0
    assert not complaints(caplog)
    for client in clients:
        assert await client.ended() == "eof"
        client.close()


async def test_unix_paths_are_gone_while_the_last_connections_end(tmp_path: Path) -> None:
    work = Work()
    server = local_server(work, f"unix:{tmp_path}/s")
    await server.start()
    async with await Client.connect(server) as client:
        await client.send(b"work")
        await wait_until(lambda: server.connections)
        draining = asyncio.ensure_future(server.drain())
        while await asyncio.to_thread(os.listdir, tmp_path):
            await asyncio.sleep(0)
        work.done.set()
        assert await client.receive_all() == b"done"
        client.close()
        assert counts(await within(draining)) == (0, 1, 0, 0)


async def test_a_paused_and_a_full_server_drain_too() -> None:
    async with local_server(limits=Limits(max_connections=1)) as server:
        client, waiting = await connect_many(server, 2)
        await client.ask(b"x")
        draining = asyncio.ensure_future(server.drain())
        assert await follow(client) == b""
        assert counts(await within(draining)) == (1, 0, 0, 0)
        assert await waiting.ended() == "reset"
        waiting.close()


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"timeout": -1}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"delay": -1}, "delay"),
        ({"delay": None}, "delay"),
        ({"delay": math.inf}, "delay"),
    ],
)
async def test_bad_times_are_refused_before_anything_happens(options: Any, option: str) -> None:
    async with local_server() as server:
        with pytest.raises(OptionError) as caught:
            await server.drain(**options)
        assert caught.value.option == option
        assert server.ready


@pytest.mark.parametrize("end", ["drain", "aclose"])
async def test_threads_of_handlers_do_not_hold_it_up(end: str) -> None:
    """They may have taken every thread of the loop's default executor."""
    free = threading.Event()

    async def handler(stream: Stream) -> None:
        await asyncio.to_thread(free.wait)

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
    try:
        async with local_server(handler, timeouts=Timeouts(grace=20 * MS)) as server:
            clients = await connect_many(server, 3)
            await wait_until(lambda: len(server.connections) == 3)
            if end == "drain":
                await within(server.drain(timeout=20 * MS))
            await within(server.aclose(grace=0))
            assert not free.is_set()
            for client in clients:
                client.close()
    finally:
        free.set()
