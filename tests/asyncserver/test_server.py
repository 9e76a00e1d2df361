from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    BindError,
    CloseReason,
    ConnectionState,
    IPEndpoint,
    LifespanError,
    Limits,
    OptionError,
    Server,
    ServerStateError,
    SocketOptions,
    Stream,
    TCPAddress,
    Timeouts,
    TLSConfigurationError,
    UnixAddress,
    UnixEndpoint,
    current_connection,
    parse_address,
    serve,
)
from asyncserver import server as server_module
from tests.clients import (
    LOOPBACK,
    Client,
    TLSClient,
    complaints,
    connect_many,
    echo,
    ignore_cancellation,
    kept_port,
    local_server,
)
from tests.conftest import LOOP_FACTORIES
from tests.waiting import MS, POLL, stays, wait_until, within

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


async def files_in(directory: Path) -> list[str]:
    return await asyncio.to_thread(os.listdir, directory)


async def nobody_listens(address: Any) -> None:
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        (await Client.connect(address)).close()


async def works(server: Server) -> None:
    for index in range(len(server.addresses)):
        async with await Client.connect(server, index=index) as client:
            assert await client.ask(b"hello") == b"hello"


# Options.


def test_options_are_checked_before_anything_is_opened() -> None:
    for options, option in [
        ({"limits": 5}, "limits"),
        ({"timeouts": 5}, "timeouts"),
        ({"options": {}}, "options"),
        ({"lifespan": 5}, "lifespan"),
    ]:
        with pytest.raises(OptionError) as caught:
            Server(echo, LOOPBACK, **options)  # type: ignore[arg-type]
        assert caught.value.option == option
    with pytest.raises(OptionError, match="addresses"):
        Server(echo)
    with pytest.raises(OptionError, match=r"tls=None: is needed for tls\+tcp"):
        Server(echo, LOOPBACK, "tls+tcp://127.0.0.1:0")
    with pytest.raises(TypeError, match="max_connections"):
        Server(echo, LOOPBACK, max_connections=5)  # type: ignore[call-arg]


async def test_what_can_be_asked_of_a_server_that_was_not_started() -> None:
    server = local_server()
    assert server.addresses == ()
    assert server.listeners == ()
    assert not server.ready
    assert len(server.connections) == 0
    assert list(server.connections) == []
    assert server.connections.get(1) is None
    assert server.connections.find("127.0.0.1") == []
    assert server.lifespan_state is None
    assert server.tls_context is None
    assert repr(server) == "<Server tcp://127.0.0.1:0 stopped>"
    with pytest.raises(ServerStateError):
        server.statistics()
    for ask_later in (server.drain, server.reload_tls):
        with pytest.raises(ServerStateError):
            await ask_later()
    await server.aclose()
    await server.aclose(grace=0)
    await within(server.wait_closed())


# Start and end.


async def test_a_mix_of_addresses(
    tmp_path: Path, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    addresses = [
        LOOPBACK,
        TCPAddress("::1", 0),
        "tcp://localhost:0",
        f"unix:{tmp_path}/a",
        UnixAddress(f"{tmp_path}/b"),
        f"unix:@asyncserver-test-{os.getpid()}-{id(tmp_path)}",
        "tls+tcp://127.0.0.1:0",
    ]
    async with local_server(echo, *addresses, tls=server_context) as server:
        kinds = [type(address) for address in server.addresses]
        assert kinds.count(UnixAddress) == 3
        assert all(address.port for address in server.addresses if isinstance(address, TCPAddress))
        assert [parse_address(str(address)) for address in server.addresses] == list(server.addresses)
        assert [listener.address for listener in server.listeners] == list(server.addresses)
        for index, address in enumerate(server.addresses):
            if address.tls:
                async with await TLSClient.connect(server, client_context, index=index) as secure:
                    assert await secure.ask(b"hello") == b"hello"
            else:
                async with await Client.connect(server, index=index) as client:
                    assert await client.ask(b"hello") == b"hello"
        bound = server.addresses
    assert server.addresses == ()
    assert not await files_in(tmp_path)
    for address in bound:
        await nobody_listens(address)


async def test_endpoints_of_unix_connections(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    async with local_server(echo, f"unix:{path}") as server, await Client.connect(server) as client:
        await client.ask(b"x")
        (connection,) = server.connections
        assert connection.local == UnixEndpoint(path)
        assert connection.peer == UnixEndpoint("")
        assert server.connections.find(connection.peer) == [connection]


async def test_it_starts_and_stops_any_number_of_times() -> None:
    server = local_server()
    for _ in range(5):
        await server.start()
        assert server.ready
        await works(server)
        await server.aclose()
        assert not server.ready
        assert server.statistics().current == 0
        async with server:
            await works(server)
    assert server.statistics().accepted == 1


async def test_it_starts_again_at_the_same_port() -> None:
    with kept_port() as port:
        server = local_server(echo, f"tcp://127.0.0.1:{port}")
        for _ in range(4):
            async with server, await Client.connect(server) as client:
                assert server.addresses == (TCPAddress("127.0.0.1", port),)
                await client.ask(b"x")


def test_it_starts_again_in_another_loop(loop_name: str) -> None:
    server = local_server()

    async def run() -> None:
        ready = asyncio.ensure_future(server.wait_ready())
        async with server:
            await within(ready)
            await works(server)
        await within(server.wait_closed())

    for factory in [LOOP_FACTORIES[loop_name], *LOOP_FACTORIES.values()]:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(run())
        statistics = server.statistics()
        assert statistics.accepted == 1
        assert server.statistics().uptime == statistics.uptime
        server.update(max_connections=100)
        gc.collect()


async def test_it_cannot_be_started_twice() -> None:
    async with local_server() as server:
        with pytest.raises(ServerStateError, match="serving already"):
            await server.start()
        with pytest.raises(ServerStateError):
            async with server:
                pass
        await works(server)
        closing = asyncio.ensure_future(server.aclose())
        await asyncio.sleep(0)
        with pytest.raises(ServerStateError, match="draining already"):
            await server.start()
        await closing


async def test_it_cannot_be_started_while_it_starts() -> None:
    server = local_server()
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    with pytest.raises(ServerStateError, match="starting already"):
        await server.start()
    with pytest.raises(ServerStateError, match="not been started"):
        await server.drain()
    await starting
    await works(server)
    await server.aclose()


async def test_two_servers_in_one_loop() -> None:
    async with local_server() as first, local_server(limits=Limits(max_connections=1)) as second:
        async with await Client.connect(first) as one, await Client.connect(second) as two:
            await one.ask(b"x")
            await two.ask(b"x")
            assert [len(first.connections), len(second.connections)] == [1, 1]
            one.close()
            await within(first.aclose())
            assert await two.ask(b"x") == b"x"
            assert second.ready
        await works(second)


async def test_a_server_within_a_handler_of_another() -> None:
    async def handler(stream: Stream) -> None:
        async with local_server() as inner, await Client.connect(inner) as client:
            await stream.send(await client.ask(await stream.receive()))
            assert current_connection().stream is stream

    async with local_server(handler) as server, await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"
        assert await client.ended() == "eof"


async def test_ready() -> None:
    server = local_server()
    waiting = [asyncio.ensure_future(server.wait_ready()) for _ in range(3)]
    await stays(lambda: not any(task.done() for task in waiting), during=20 * MS)
    async with server:
        await within(asyncio.gather(*waiting))
        await within(server.wait_ready())
        assert server.ready
    assert not server.ready
    waiting = [asyncio.ensure_future(server.wait_ready())]
    await stays(lambda: not waiting[0].done(), during=20 * MS)
    async with server:
        await within(waiting[0])


async def test_serve_until_cancelled() -> None:
    with kept_port() as port:
        server = local_server(echo, f"tcp://127.0.0.1:{port}")
        serving = asyncio.ensure_future(server.serve())
        await within(server.wait_ready())
        await works(server)
        address = server.addresses[0]
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        await nobody_listens(address)
    serving = asyncio.ensure_future(server.serve())
    await within(server.wait_ready())
    await within(server.aclose())
    await within(serving)


async def test_the_function_serve(tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    serving = asyncio.ensure_future(serve(echo, f"unix:{path}", limits=Limits(max_connections=5)))
    while "s" not in await files_in(tmp_path):
        await asyncio.sleep(POLL)
    async with await Client.connect(UnixAddress(path)) as client:
        assert await client.ask(b"x") == b"x"
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)
    assert not await files_in(tmp_path)


@pytest.mark.parametrize("fails", ["tcp", "unix", "name", "tls"])
async def test_a_failed_start_leaves_nothing_bound(fails: str, tmp_path: Path) -> None:
    def bad_context() -> Any:
        raise ValueError("no certificate today")

    with socket.socket() as taken, kept_port() as port:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        bad = {
            "tcp": f"tcp://127.0.0.1:{taken.getsockname()[1]}",
            "unix": f"unix:{tmp_path}/no/such/directory",
            "name": "tcp://host.invalid:0",
            "tls": "tls+tcp://127.0.0.1:0",
        }[fails]
        expected = TLSConfigurationError if fails == "tls" else BindError
        ended = []

        @asynccontextmanager
        async def lifespan(server: Server) -> AsyncIterator[None]:
            yield
            ended.append(1)

        good = [f"tcp://127.0.0.1:{port}", f"unix:{tmp_path}/s"]
        server = local_server(
            echo, *good, bad, tls=bad_context if fails == "tls" else None, lifespan=lifespan
        )
        for _ in range(2):
            with pytest.raises(expected):
                await server.start()
            assert ended == ([] if fails == "tls" else [1])
            ended.clear()
            assert not await files_in(tmp_path)
            for address in good:
                await nobody_listens(parse_address(address))
            assert server.addresses == ()
            assert not server.ready
            await within(server.wait_closed())
            await within(server.aclose())


async def test_start_cancelled_at_every_await(tmp_path: Path, server_context: ssl.SSLContext) -> None:
    """Whichever turn of the loop the cancellation comes in, nothing is open afterwards."""
    entered: list[int] = []

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        entered.append(1)
        try:
            yield
        finally:
            await asyncio.sleep(0)
            entered.pop()

    server = local_server(echo, LOOPBACK, f"unix:{tmp_path}/s", tls=server_context, lifespan=lifespan)
    for turns in range(1_000):
        starting = asyncio.ensure_future(server.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        if starting.done():
            break
        starting.cancel()
        if turns % 2:  # ... and once more, while it cleans up.
            await asyncio.sleep(0)
            starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not entered
        assert not await files_in(tmp_path)
        assert server.addresses == ()
    assert turns > 3
    assert await starting is None  # type: ignore[func-returns-value]
    await works(server)
    await server.aclose()
    assert not await files_in(tmp_path)


@pytest.mark.parametrize("cancellations", [1, 2, 3])
async def test_start_cancelled_while_the_sockets_are_being_opened(
    cancellations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()
    real = server_module.open_listening_sockets

    def slow(*arguments: Any) -> Any:
        opening.set()
        go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(server_module, "open_listening_sockets", slow)
    server = local_server(echo, f"unix:{tmp_path}/s")
    starting = asyncio.ensure_future(server.start())
    await wait_until(opening.is_set)
    for _ in range(cancellations):
        starting.cancel()
        await stays(lambda: not starting.done(), during=10 * MS)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(starting)
    assert not await files_in(tmp_path)


async def test_an_adopted_descriptor_survives_a_start_that_is_cancelled(
    adopted: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, go_on = threading.Event(), threading.Event()
    real = server_module.open_listening_sockets

    def slow(*arguments: Any) -> Any:
        opening.set()
        go_on.wait(10)
        return real(*arguments)

    monkeypatch.setattr(server_module, "open_listening_sockets", slow)
    server = local_server(echo, f"fd://{adopted.fileno()}")
    starting = asyncio.ensure_future(server.start())
    await wait_until(opening.is_set)
    starting.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await within(starting)
    assert adopted.getsockname()
    async with server:
        await works(server)
    adopted.detach()


@pytest.fixture
def adopted() -> Iterator[socket.socket]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock


# The end.


async def test_aclose_any_number_of_times_and_at_once() -> None:
    server = local_server()
    await server.start()
    clients = await connect_many(server, 3)
    await wait_until(lambda: len(server.connections) == 3)
    closing = [asyncio.ensure_future(server.aclose()) for _ in range(5)]
    for client in clients:
        assert await client.ended() == "eof"
        client.close()
    await within(asyncio.gather(*closing, server.wait_closed()))
    await server.aclose()
    await server.aclose()
    assert server.statistics().closed == {CloseReason.CANCELLED: 3}


async def test_aclose_while_it_starts() -> None:
    server = local_server()
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    await within(server.aclose())
    with pytest.raises(ServerStateError, match="closed while it was starting"):
        await starting
    assert not server.ready
    assert server.addresses == ()
    async with server:
        await works(server)


async def test_aclose_in_the_lifespan() -> None:
    """It cannot wait for itself there: what comes in the end is the end of the start, or of the closing."""

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        if early:
            await within(server.aclose())
        try:
            yield
        finally:
            await within(server.aclose())

    early = False
    server = local_server(lifespan=lifespan)
    async with server:
        await works(server)
    early = True
    with pytest.raises(ServerStateError, match="closed while it was starting"):
        await within(server.start())


@pytest.mark.parametrize("method", ["drain", "aclose"])
async def test_a_handler_cannot_wait_for_its_own_end(method: str) -> None:
    """But any task that it starts can."""

    async def handler(stream: Stream) -> None:
        server = current_connection().server
        with pytest.raises(ServerStateError, match="waits for this handler"):
            await getattr(server, method)()
        assert server.ready
        await stream.send(b"closing")
        endings.append(asyncio.create_task(getattr(server, method)()))
        await stream.receive()

    endings: list[asyncio.Task[Any]] = []
    async with local_server(handler) as server, await Client.connect(server) as client:
        assert await client.receive_all() == b"closing"
        client.close()
        await within(endings[0])
        assert not server.addresses


@pytest.mark.parametrize("method", ["drain", "aclose"])
async def test_verify_cannot_wait_for_its_own_end(method: str) -> None:
    async def verify(connection: Any) -> bool:
        with pytest.raises(ServerStateError, match="waits for this handler"):
            await getattr(connection.server, method)()
        return True

    async with local_server(verify=verify) as server:
        await works(server)


async def test_aclose_does_not_wait_for_a_handler_that_does_not_heed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await ignore_cancellation(stop)
        raise ValueError("a bug at last")

    server = local_server(handler)
    await server.start()
    async with await Client.connect(server) as client:
        await wait_until(lambda: server.connections)
        await within(server.aclose(grace=50 * MS), timeout=5)
        assert await client.ended() == "reset"
    assert server.statistics().stuck_handlers == 1
    assert server.statistics().closed == {CloseReason.ABORTED: 1}
    async with server:
        stop.set()
        await works_not(server)
    (stuck, *bugs) = complaints(caplog)
    assert "its handler goes on" in stuck
    assert len(bugs) == 2


async def works_not(server: Server) -> None:
    async with await Client.connect(server) as client:
        assert await client.ended() == "eof"


async def test_a_second_aclose_hurries_the_first_and_never_puts_it_off() -> None:
    stop = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await ignore_cancellation(stop)

    server = local_server(handler, timeouts=Timeouts(grace=300))
    await server.start()
    async with await Client.connect(server) as client:
        await wait_until(lambda: server.connections)
        first = asyncio.ensure_future(server.aclose())
        await stays(lambda: not first.done())
        with pytest.raises(OptionError, match="grace=-1"):
            await server.aclose(grace=-1)
        second = asyncio.ensure_future(server.aclose(grace=100 * MS))
        third = asyncio.ensure_future(server.aclose(grace=60))
        await within(asyncio.gather(first, second, third))
        assert await client.ended() == "reset"
        stop.set()
        await wait_until(lambda: not server.statistics().stuck_handlers)
    assert server.timeouts.grace == 300


async def test_aclose_cancelled_closes_all_the_same() -> None:
    async def handler(stream: Stream) -> None:
        try:
            await stream.receive()
        except asyncio.CancelledError:
            await asyncio.sleep(50 * MS)

    server = local_server(handler)
    await server.start()
    address = server.addresses[0]
    async with await Client.connect(server) as client:
        await wait_until(lambda: server.connections)
        closing = asyncio.ensure_future(server.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(closing)
        await nobody_listens(address)
        assert await client.ended() == "reset"
        await wait_until(lambda: not server.connections)
    async with server:
        assert server.ready


async def test_aclose_cancelled_gives_up_who_does_not_heed(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await ignore_cancellation(stop)

    server = local_server(handler, timeouts=Timeouts(grace=50 * MS))
    await server.start()
    async with await Client.connect(server):
        await wait_until(lambda: server.connections)
        closing = asyncio.ensure_future(server.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(closing)
        await wait_until(lambda: server.statistics().stuck_handlers)
    assert not server.connections
    assert server.statistics().closed == {CloseReason.ABORTED: 1}
    stop.set()
    await wait_until(lambda: not server.statistics().stuck_handlers)
    (stuck,) = complaints(caplog)
    assert "its handler goes on" in stuck


# The lifespan.


async def test_the_lifespan_is_around_everything(tmp_path: Path) -> None:
    steps: list[object] = []
    path = f"{tmp_path}/s"

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[dict[str, int]]:
        assert not await files_in(tmp_path)
        assert not server.ready
        steps.append("enter")
        yield {"answer": 42}
        steps.append(("exit", await files_in(tmp_path), len(server.connections)))

    async def handler(stream: Stream) -> None:
        assert current_connection().lifespan_state is current_connection().server.lifespan_state
        steps.append(current_connection().lifespan_state["answer"])
        try:
            await stream.receive()
        finally:
            await asyncio.sleep(0.01)
            steps.append("handler ends")

    server = local_server(handler, f"unix:{path}", lifespan=lifespan)
    for _ in range(2):
        async with server:
            assert server.lifespan_state == {"answer": 42}
            async with await Client.connect(server) as client:
                await wait_until(lambda: server.connections)
                closing = asyncio.ensure_future(server.aclose())
                assert await client.ended() == "eof"
                client.close()
                await within(closing)
        assert server.lifespan_state is None
        assert steps == ["enter", 42, "handler ends", ("exit", [], 0)]
        steps.clear()


@pytest.mark.parametrize("fails", ["at once", "later", "no context manager"])
async def test_a_lifespan_that_fails_stops_the_start(fails: str, tmp_path: Path) -> None:
    @asynccontextmanager
    async def failing(server: Server) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        raise ValueError("no database")
        yield

    def at_once(server: Server) -> Any:
        raise ValueError("no database")

    lifespan = {
        "at once": at_once,
        "later": failing,
        "no context manager": lambda server: 5,
    }[fails]
    server = local_server(echo, f"unix:{tmp_path}/s", lifespan=lifespan)
    with pytest.raises(LifespanError) as caught:
        await server.start()
    assert caught.value.__cause__ is not None
    assert not await files_in(tmp_path)
    assert not server.ready
    with pytest.raises(LifespanError):
        await server.start()


async def test_a_lifespan_that_fails_at_the_end() -> None:
    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        yield
        raise ValueError("the database is gone")

    with kept_port() as port:
        server = local_server(echo, f"tcp://127.0.0.1:{port}", lifespan=lifespan)
        await server.start()
        address = server.addresses[0]
        with pytest.raises(ValueError, match="the database is gone"):
            await server.aclose()
        await nobody_listens(address)
    await within(server.wait_closed())
    await server.start()
    with pytest.raises(ValueError, match="the database is gone"):
        await server.aclose()


async def test_a_lifespan_that_fails_at_the_end_of_a_failed_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        yield
        raise ValueError("the database is gone")

    server = local_server(echo, f"unix:{tmp_path}/no/such/directory", lifespan=lifespan)
    for _ in range(2):
        with pytest.raises(BindError):
            await server.start()
        await within(server.wait_closed())
    assert complaints(caplog) == ["the lifespan failed to end after a start that had failed"] * 2


# Connections and statistics.


async def test_finding_connections() -> None:
    async with local_server(echo, "tcp://127.0.0.1:0", "tcp://[::1]:0") as server:
        sources = ["127.0.0.1", "127.0.0.2", "127.0.0.2"]
        clients = [await Client.connect(server, source=source) for source in sources]
        clients.append(await Client.connect(server, index=1))
        for client in clients:
            await client.ask(b"x")
        connections = server.connections
        assert len(connections) == 4
        assert sorted(connection.id for connection in connections) == [1, 2, 3, 4]
        first = connections.get(1)
        assert first is not None
        assert first in connections
        assert 1 not in connections
        assert connections.get(99) is None
        assert len(connections.find("127.0.0.1")) == 1
        assert len(connections.find("127.0.0.2")) == 2
        assert len(connections.find("::1")) == 1
        assert connections.find("127.0.0.3") == []
        for connection in connections:
            assert connections.find(connection.peer) == [connection]
            assert connections.find(str(connection.peer)) == [connection]
        assert connections.find(IPEndpoint("127.0.0.1", 1)) == []
        closing = asyncio.ensure_future(connections.find("127.0.0.1")[0].close())
        assert await clients[0].ended() == "eof"
        clients[0].close()
        await within(closing)
        assert first not in connections
        assert len(connections) == 3
        for connection in connections:  # Changes on the way do not matter.
            connection.abort()
            await within(connection.wait_closed())
        for client in clients:
            client.close()


async def test_the_statistics_add_up() -> None:
    async def handler(stream: Stream) -> None:
        command = await stream.receive()
        if command == b"bug":
            raise ValueError("a bug")
        if command == b"stay":
            await echo(stream)

    limits = Limits(max_connections=5, when_full="reject")
    async with local_server(handler, *[LOOPBACK] * 2, limits=limits) as server:
        stay = [await Client.connect(server, index=index) for index in (0, 1)]
        for client in stay:
            await client.send(b"stay")
        for index, command in enumerate([b"bug", b"return", b"", b"return"]):
            async with await Client.connect(server, index=index % 2) as client:
                await client.send(command)
                if not command:
                    client.half_close()
                assert await client.ended() == "eof"
            await wait_until(lambda: len(server.connections) == 2)
        more = await connect_many(server, 3)
        await wait_until(lambda: len(server.connections) == 5)
        async with await Client.connect(server) as rejected:
            assert await rejected.ended() == "eof"
        statistics = server.statistics()
        assert statistics.current == 5
        assert statistics.peak == 5
        assert statistics.accepted == 10
        assert statistics.accepted == sum(listener.accepted for listener in statistics.listeners)
        assert statistics.accepted == statistics.current + sum(statistics.closed.values())
        assert statistics.rejected == statistics.closed[CloseReason.LIMIT] == 1
        assert statistics.closed == {
            CloseReason.HANDLER_ERROR: 1,
            CloseReason.HANDLER_RETURNED: 2,
            CloseReason.EOF: 1,
            CloseReason.LIMIT: 1,
        }
        assert statistics.bytes_received == len(b"stay" * 2 + b"bug" + b"return" * 2)
        assert statistics.states == {ConnectionState.IDLE: 5}
        assert statistics.uptime > 0
        assert await stay[0].ask(b"12345") == b"12345"
        assert server.statistics().bytes_sent == statistics.bytes_sent + 5
        for client in stay + more:
            client.close()
        await wait_until(lambda: not server.connections)
    after = server.statistics()
    assert after.current == 0
    assert after.accepted == sum(after.closed.values()) == 10
    assert after.bytes_sent == 5


async def test_listeners_can_be_paused_one_by_one() -> None:
    async with local_server(echo, *[LOOPBACK] * 2, limits=Limits(max_connections=1)) as server:
        paused, _ = server.listeners
        paused.pause()
        async with await Client.connect(server) as waiting:
            await waiting.send(b"x")
            async with await Client.connect(server, index=1) as client:
                assert await client.ask(b"x") == b"x"
            await wait_until(lambda: not server.connections)
            await stays(lambda: not server.connections)
            assert paused.paused == {"requested"}
            paused.resume()
            assert await waiting.receive() == b"x"


async def test_socket_options_reach_the_sockets() -> None:
    async def handler(stream: Stream) -> None:
        sock = stream._sock
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        options.append(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))

    options: list[int] = []
    async with local_server(handler, options=SocketOptions(no_delay=True)) as server:
        await works_not(server)
    assert all(options)
    assert len(options) == 2


async def test_certificates_cannot_be_reloaded_where_there_are_none() -> None:
    async with local_server() as server:
        with pytest.raises(ServerStateError, match="no TLS"):
            await server.reload_tls()


def test_a_handler_that_exits_the_program_does(loop_name: str, loop_errors: list[str]) -> None:
    """``SystemExit`` is no error of a handler; the socket is closed all the same."""
    assert exit_status(loop_name) == 5
    gc.collect()
    assert all("Task exception was never retrieved" in error for error in loop_errors)
    loop_errors.clear()


def exit_status(loop_name: str) -> object:
    async def handler(stream: Stream) -> None:
        raise SystemExit(5)

    async def main() -> None:
        server = local_server(handler)
        await server.start()
        try:
            async with await Client.connect(server) as client:
                assert await client.ended() == "reset"
        finally:
            await server.aclose()

    try:
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop_name]) as runner:
            runner.run(main())
    except SystemExit as exc:
        return exc.code
    return None
