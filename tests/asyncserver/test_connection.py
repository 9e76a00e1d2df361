from __future__ import annotations

import asyncio
import contextvars
import logging
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import SocketAttribute

from asyncserver import (
    CloseReason,
    Connection,
    ConnectionLogFilter,
    ConnectionState,
    ConnectionTimeoutError,
    Limits,
    Server,
    Stream,
    StreamHandler,
    Timeouts,
    current_connection,
)
from tests.clients import (
    Client,
    TLSClient,
    complaints,
    echo,
    ignore_cancellation,
    local_server,
)
from tests.waiting import MS, SECOND, stays, wait_until, within

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


async def only(server: Server) -> Connection:
    """The one connection of a server."""
    await wait_until(lambda: len(server.connections) == 1)
    return next(iter(server.connections))


async def reasons(server: Server) -> list[CloseReason]:
    """Why its connections have ended, when all of them have."""
    await wait_until(lambda: not server.connections and server.statistics().accepted)
    return list(server.statistics().closed)


async def stay_busy(stream: Stream) -> None:
    """A handler that is at work and neither receives nor sends."""
    await asyncio.get_running_loop().create_future()


async def do_not_heed(stream: Stream) -> None:
    """A handler that is at work, come what may, until the event of its server is set."""
    await ignore_cancellation(current_connection().lifespan_state)


class Until:
    """A lifespan whose state is an event that is set by the test."""

    def __init__(self) -> None:
        self.event = asyncio.Event()

    def __call__(self, server: Server) -> Until:
        return self

    async def __aenter__(self) -> asyncio.Event:
        return self.event

    async def __aexit__(self, *_: object) -> None:
        return


# Every reason for which a connection ends.

Scenario = Callable[[ssl.SSLContext], Awaitable[list[CloseReason]]]

SCENARIOS: dict[CloseReason, Scenario] = {}


def reaches(reason: CloseReason) -> Callable[[Scenario], Scenario]:
    def add(scenario: Scenario) -> Scenario:
        SCENARIOS[reason] = scenario
        return scenario

    return add


@reaches(CloseReason.EOF)
async def the_peer_ends(tls: ssl.SSLContext) -> list[CloseReason]:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        client.half_close()
        assert await client.ended() == "eof"
        return await reasons(server)


@reaches(CloseReason.RESET)
async def the_peer_resets(tls: ssl.SSLContext) -> list[CloseReason]:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        client.reset()
        return await reasons(server)


@reaches(CloseReason.PROTOCOL_ERROR)
async def the_peer_sends_too_much(tls: ssl.SSLContext) -> list[CloseReason]:
    async def handler(stream: Stream) -> None:
        async for _ in stream.lines(max_bytes=10):
            pass

    async with local_server(handler) as server, await Client.connect(server) as client:
        await client.send(b"x" * 100)
        assert await client.ended() in ("eof", "reset")
        client.close()
        return await reasons(server)


@reaches(CloseReason.HANDLER_RETURNED)
async def the_handler_returns(tls: ssl.SSLContext) -> list[CloseReason]:
    async def handler(stream: Stream) -> None:
        await stream.send(b"bye")

    async with local_server(handler) as server, await Client.connect(server) as client:
        assert await client.receive_all() == b"bye"
        client.close()
        return await reasons(server)


@reaches(CloseReason.HANDLER_ERROR)
async def the_handler_raises(tls: ssl.SSLContext) -> list[CloseReason]:
    async def handler(stream: Stream) -> None:
        raise ValueError("a bug")

    async with local_server(handler) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        client.close()
        return await reasons(server)


@reaches(CloseReason.HANDLER_CANCELLED)
async def the_program_cancels_the_handler(tls: ssl.SSLContext) -> list[CloseReason]:
    async def handler(stream: Stream) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await stream.receive()

    async with local_server(handler) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        client.close()
        return await reasons(server)


@reaches(CloseReason.REFUSED)
async def verify_says_no(tls: ssl.SSLContext) -> list[CloseReason]:
    async with (
        local_server(verify=lambda connection: False) as server,
        await Client.connect(server) as client,
    ):
        assert await client.ended() == "eof"
        return await reasons(server)


@reaches(CloseReason.LIMIT)
async def there_are_too_many(tls: ssl.SSLContext) -> list[CloseReason]:
    limits = Limits(max_connections=1, when_full="reject")
    async with local_server(limits=limits) as server, await Client.connect(server) as first:
        await first.ask(b"x")
        async with await Client.connect(server) as second:
            assert await second.ended() == "eof"
        return list(server.statistics().closed)


@reaches(CloseReason.HANDSHAKE_FAILED)
async def the_peer_speaks_no_tls(tls: ssl.SSLContext) -> list[CloseReason]:
    async with (
        local_server(echo, "tls+tcp://127.0.0.1:0", tls=tls) as server,
        await Client.connect(server) as client,
    ):
        await client.send(b"GET / HTTP/1.0\r\n\r\n")
        return await reasons(server)


@reaches(CloseReason.HANDSHAKE_TIMEOUT)
async def the_peer_is_silent(tls: ssl.SSLContext) -> list[CloseReason]:
    timeouts = Timeouts(handshake=50 * MS)
    async with (
        local_server(echo, "tls+tcp://127.0.0.1:0", tls=tls, timeouts=timeouts) as server,
        await Client.connect(server),
    ):
        return await reasons(server)


@reaches(CloseReason.FIRST_BYTE_TIMEOUT)
async def no_first_byte(tls: ssl.SSLContext) -> list[CloseReason]:
    async with (
        local_server(timeouts=Timeouts(first_byte=50 * MS)) as server,
        await Client.connect(server) as client,
    ):
        assert await client.ended() == "eof"
        client.close()
        return await reasons(server)


@reaches(CloseReason.IDLE_TIMEOUT)
async def nothing_moves(tls: ssl.SSLContext) -> list[CloseReason]:
    async with (
        local_server(timeouts=Timeouts(idle=50 * MS)) as server,
        await Client.connect(server) as client,
    ):
        assert await client.ask(b"x") == b"x"
        assert await client.ended() == "eof"
        client.close()
        return await reasons(server)


@reaches(CloseReason.SEND_TIMEOUT)
async def the_peer_does_not_read(tls: ssl.SSLContext) -> list[CloseReason]:
    async def handler(stream: Stream) -> None:
        while True:
            await stream.send(bytes(65_536))

    async with (
        local_server(handler, timeouts=Timeouts(send=50 * MS)) as server,
        await Client.connect(server, receive_buffer=4_096),
    ):
        return await reasons(server)


@reaches(CloseReason.HANDLER_TIMEOUT)
async def the_handler_takes_too_long(tls: ssl.SSLContext) -> list[CloseReason]:
    async with (
        local_server(stay_busy, timeouts=Timeouts(handler=50 * MS)) as server,
        await Client.connect(server) as client,
    ):
        assert await client.ended() == "eof"
        client.close()
        return await reasons(server)


@reaches(CloseReason.LIFETIME)
async def it_gets_old(tls: ssl.SSLContext) -> list[CloseReason]:
    async with (
        local_server(timeouts=Timeouts(lifetime=50 * MS, lifetime_jitter=0)) as server,
        await Client.connect(server) as client,
    ):
        assert await client.ended() == "eof"
        client.close()
        return await reasons(server)


@reaches(CloseReason.DRAINED)
async def the_server_drains(tls: ssl.SSLContext) -> list[CloseReason]:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        draining = asyncio.ensure_future(server.drain())
        assert await client.ended() == "eof"
        client.close()
        await draining
        return await reasons(server)


@reaches(CloseReason.CANCELLED)
async def the_server_closes(tls: ssl.SSLContext) -> list[CloseReason]:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        closing = asyncio.ensure_future(server.aclose())
        assert await client.ended() == "eof"
        client.close()
        await closing
        return await reasons(server)


@reaches(CloseReason.ABORTED)
async def the_program_aborts_it(tls: ssl.SSLContext) -> list[CloseReason]:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        (await only(server)).abort()
        assert await client.ended() == "reset"
        return await reasons(server)


@reaches(CloseReason.CLOSED_BY_SERVER)
async def the_program_closes_it(tls: ssl.SSLContext) -> list[CloseReason]:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        closing = asyncio.ensure_future((await only(server)).close())
        assert await client.ended() == "eof"
        client.close()
        await within(closing)
        return await reasons(server)


@pytest.mark.parametrize("reason", list(CloseReason), ids=str)
async def test_every_reason_is_reached(
    reason: CloseReason, server_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asyncserver")
    assert await SCENARIOS[reason](server_context) == [reason]
    assert len(complaints(caplog)) == (reason is CloseReason.HANDLER_ERROR)


# What is seen from outside.


async def test_the_states_of_a_plain_connection() -> None:
    work, verified = asyncio.Event(), asyncio.Event()

    async def verify(connection: Connection) -> bool:
        return await verified.wait()

    async def handler(stream: Stream) -> None:
        await work.wait()
        assert await stream.receive_exactly(4) == b"abcd"
        await stream.receive()

    async with local_server(handler, verify=verify) as server, await Client.connect(server) as client:
        connection = await only(server)
        assert connection.state is ConnectionState.NEW
        assert connection.close_reason is None
        verified.set()
        await wait_until(lambda: connection.state is ConnectionState.ACTIVE)
        work.set()
        await wait_until(lambda: connection.state is ConnectionState.IDLE)
        await client.send(b"ab")
        await wait_until(lambda: connection.state is ConnectionState.ACTIVE)
        await client.send(b"cd")
        await wait_until(lambda: connection.state is ConnectionState.IDLE)
        assert server.statistics().states == {ConnectionState.IDLE: 1}
        assert not connection.draining
        await client.send(b"x")
        assert await client.ended() == "eof"
        assert connection.state is ConnectionState.DRAINING
        assert connection.close_reason is CloseReason.HANDLER_RETURNED
        client.close()
        await within(connection.wait_closed())
        assert connection.state is ConnectionState.CLOSED
        assert connection not in server.connections
        await within(connection.wait_closed())


async def test_the_states_of_a_tls_connection(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    async with local_server(echo, "tls+tcp://127.0.0.1:0", tls=server_context) as server:
        client = TLSClient(await Client.connect(server), client_context, "localhost")
        connection = await only(server)
        await wait_until(lambda: connection.state is ConnectionState.HANDSHAKE)
        async with client:
            await client.handshake()
            await wait_until(lambda: connection.state is ConnectionState.IDLE)
            assert await client.ask(b"x" * 1_000) == b"x" * 1_000
            assert connection.bytes_received == connection.bytes_sent == 1_000
            connection.tell_to_end(CloseReason.CLOSED_BY_SERVER)
            assert connection.state is ConnectionState.DRAINING
            assert connection.draining
            assert await client.receive() == b""
        await within(connection.wait_closed())


async def test_who_where_and_how_much() -> None:
    async with local_server() as server, await Client.connect(server) as client:
        before = time.time()
        assert await client.ask(b"12345") == b"12345"
        connection = await only(server)
        assert connection.peer[:2] == client.name
        assert connection.local[:2] == client.sock.getpeername()
        assert connection.server is server
        assert connection.listener is server.listeners[0]
        assert connection.bytes_received == connection.bytes_sent == 5
        assert 0 <= connection.age < 10 * SECOND
        assert abs(connection.opened_at - before) < 10 * SECOND
        assert repr(connection) == f"<Connection 1 peer={connection.peer} idle>"
        connection.abort()
        await within(connection.wait_closed())
        assert connection.peer == (await asyncio.to_thread(lambda: connection.peer))
        assert repr(connection).endswith("closed>")


async def test_the_current_connection() -> None:
    seen: list[Connection] = []

    async def in_task() -> None:
        await asyncio.sleep(0)
        seen.append(current_connection())

    async def handler(stream: Stream) -> None:
        seen.append(current_connection())
        await stream.receive()
        seen.append(current_connection())
        await asyncio.create_task(in_task())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(in_task())
        seen.append(await asyncio.to_thread(current_connection))
        asyncio.get_running_loop().call_soon(lambda: seen.append(current_connection()))
        await asyncio.sleep(0)

    async with local_server(handler) as server:
        for _ in range(2):
            async with await Client.connect(server) as client:
                connection = await only(server)
                await client.send(b"x")
                assert await client.ended() == "eof"
            assert seen == [connection] * 6
            assert seen[0].stream is connection.stream
            seen.clear()
            await wait_until(lambda: not server.connections)
    with pytest.raises(LookupError):
        current_connection()


async def test_context_variables_of_one_connection_do_not_reach_another() -> None:
    """Accepting goes on, at the limit, in the task of the connection that has made room."""
    variable = contextvars.ContextVar[str]("variable", default="not set")
    variable.set("by the program")
    seen = []

    async def handler(stream: Stream) -> None:
        seen.append(variable.get())
        variable.set("by a handler")
        await stream.receive()
        server.update(idle=100)
        current_connection().tell_to_end(CloseReason.CLOSED_BY_SERVER)

    async with local_server(handler, limits=Limits(max_connections=1)) as server:
        clients = [await Client.connect(server) for _ in range(3)]
        for number, client in enumerate(clients, 1):
            await wait_until(lambda number=number: len(seen) == number)
            await client.send(b"x")
            assert await client.ended() == "eof"
            client.close()
    assert seen == ["by the program"] * 3


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[object, object, str]] = []
        self.addFilter(ConnectionLogFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((record.connection_id, record.peer, record.getMessage()))  # type: ignore[attr-defined]


@pytest.fixture
def records() -> Any:
    handler = Records()
    loggers = [logging.getLogger("application"), logging.getLogger("asyncserver")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    yield handler
    for logger in loggers:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)


async def test_log_records_have_the_connection(records: Records) -> None:
    logger = logging.getLogger("application")

    async def handler(stream: Stream) -> None:
        logger.info("inside")
        await stream.receive()
        await asyncio.to_thread(logger.info, "in a thread")
        raise ValueError("a bug")

    async with local_server(handler) as server:
        logger.info("outside")
        async with await Client.connect(server) as client:
            peer = str((await only(server)).peer)
            await client.send(b"x")
            assert await client.ended() == "eof"
        await wait_until(lambda: not server.connections)
    ours = [line for line in records.lines if line[1] == peer]
    assert [line[0] for line in ours] == [1] * len(ours)
    assert [line[2] for line in ours][:3] == [
        "inside",
        "in a thread",
        f"connection 1 from {peer}: the handler failed",
    ]
    assert ("-", "-", "outside") in records.lines


async def test_what_is_logged_about_a_connection_names_that_one(records: Records) -> None:
    """Also when it is noticed by the timer, or done by the handler of another one."""

    async def handler(stream: Stream) -> None:
        if await stream.receive() == b"abort the others":
            me = current_connection()
            for connection in me.server.connections:
                if connection is not me:
                    connection.abort()
        await stream.receive()

    timeouts = Timeouts(idle=200 * MS)
    async with local_server(handler, timeouts=timeouts) as server:
        async with await Client.connect(server) as first, await Client.connect(server) as second:
            await wait_until(lambda: len(server.connections) == 2)
            await second.send(b"abort the others")
            assert await first.ended() == "reset"
            assert await second.ended() == "eof"
        await wait_until(lambda: not server.connections)
    about = [line for line in records.lines if line[2].startswith("connection ")]
    assert len(about) >= 3
    for number, peer, message in about:
        assert message.startswith(f"connection {number} from {peer}")


# Deadlines.


async def test_the_deadline_of_the_handshake(
    server_context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "asyncserver")
    timeouts = Timeouts(handshake=100 * MS)
    async with local_server(echo, "tls+tcp://127.0.0.1:0", tls=server_context, timeouts=timeouts) as server:
        started = time.monotonic()
        async with await Client.connect(server) as client:
            assert await client.ended() in ("eof", "reset")
            assert time.monotonic() - started >= 100 * MS - 0.01
            assert await reasons(server) == [CloseReason.HANDSHAKE_TIMEOUT]
    assert not complaints(caplog)


async def test_the_deadline_of_the_handshake_holds_for_verify() -> None:
    async def verify(connection: Connection) -> bool:
        await asyncio.get_running_loop().create_future()
        return True

    async with (
        local_server(verify=verify, timeouts=Timeouts(handshake=50 * MS)) as server,
        await Client.connect(server) as client,
    ):
        assert await client.ended() == "eof"
        assert await reasons(server) == [CloseReason.HANDSHAKE_TIMEOUT]


@pytest.mark.parametrize(
    ("deadline", "hello"), [("first_byte", b""), ("idle", b""), ("idle", b"hello")], ids=str
)
async def test_the_handler_may_say_goodbye(deadline: str, hello: bytes) -> None:
    async def handler(stream: Stream) -> None:
        try:
            while await stream.receive():
                pass
        except ConnectionTimeoutError as exc:
            raised.append((exc.deadline, exc.seconds))
            await stream.send(b"too late")
            raise

    raised: list[tuple[str, float]] = []
    timeouts = Timeouts(**{deadline: 100 * MS})  # type: ignore[arg-type]
    async with local_server(handler, timeouts=timeouts) as server, await Client.connect(server) as client:
        await client.send(hello)
        assert await client.receive_all() == b"too late"
        assert raised == [(deadline, 100 * MS)]
        client.close()
        assert await reasons(server) == [CloseReason(f"{deadline}_timeout")]


async def test_the_first_byte_keeps_its_deadline_off() -> None:
    async with (
        local_server(timeouts=Timeouts(first_byte=100 * MS)) as server,
        await Client.connect(server) as client,
    ):
        await client.ask(b"x")
        connection = await only(server)
        await stays(lambda: connection.state is ConnectionState.IDLE, during=250 * MS)


@pytest.mark.parametrize("deadline", ["first_byte", "idle"])
async def test_a_handler_with_work_of_its_own_is_not_idle(deadline: str) -> None:
    done = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await done.wait()
        await stream.send(b"done")
        await echo(stream)

    timeouts = Timeouts(**{deadline: 60 * MS})  # type: ignore[arg-type]
    async with local_server(handler, timeouts=timeouts) as server, await Client.connect(server) as client:
        connection = await only(server)
        await stays(lambda: connection.close_reason is None, during=300 * MS)
        done.set()
        assert await client.receive_exactly(4) == b"done"
        assert await client.ended() == "eof"


async def test_progress_in_either_direction_keeps_a_connection(
    records: Records,
) -> None:
    """It ends no earlier than the time of the deadline after the last byte."""
    idle = 400 * MS
    last = 0.0

    async def handler(stream: Stream) -> None:
        nonlocal last
        for _ in range(4):
            await stream.receive()
            last = time.monotonic()
        ticking = asyncio.ensure_future(tick(stream))
        try:
            await stream.receive()
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)

    async def tick(stream: Stream) -> None:
        nonlocal last
        for _ in range(4):
            await asyncio.sleep(idle / 3)
            await stream.send(b"tick")
            last = time.monotonic()

    async with (
        local_server(handler, timeouts=Timeouts(idle=idle)) as server,
        await Client.connect(server) as client,
    ):
        await client.send_slowly(b"abcd", idle / 3)
        assert await client.receive_all() == b"tick" * 4
        assert time.monotonic() - last >= idle - 0.01
        client.close()
        assert await reasons(server) == [CloseReason.IDLE_TIMEOUT]


async def test_a_peer_that_never_reads() -> None:
    """Its handler gets an error that is nobody's bug, and what was buffered is let go."""
    raised: list[BaseException] = []

    async def handler(stream: Stream) -> None:
        try:
            while True:
                await stream.send(bytes(65_536))
        except BrokenResourceError as exc:
            raised.append(exc)
            raise

    async with (
        local_server(handler, timeouts=Timeouts(send=100 * MS)) as server,
        await Client.connect(server, receive_buffer=4_096) as client,
    ):
        connection = await only(server)
        assert await reasons(server) == [CloseReason.SEND_TIMEOUT]
        (exc,) = raised
        assert isinstance(exc.__cause__, ConnectionTimeoutError)
        assert not connection.stream.unsent
        with pytest.raises(ConnectionResetError):
            await client.receive_all()


@pytest.mark.allow_blocking("os.sendfile")
@pytest.mark.parametrize("secure", [False, True])
async def test_a_peer_that_never_reads_a_file(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext, *, secure: bool
) -> None:
    async def handler(stream: Stream) -> None:
        with tempfile.TemporaryFile() as file:
            file.truncate(100 << 20)
            await stream.send_file(file)

    address = "tls+tcp://127.0.0.1:0" if secure else "tcp://127.0.0.1:0"
    timeouts = Timeouts(send=100 * MS)
    async with (
        Server(handler, address, timeouts=timeouts, tls=server_context if secure else None) as server,
        await Client.connect(server, receive_buffer=4_096) as client,
    ):
        if secure:
            await TLSClient(client, client_context, "localhost").handshake()
        assert await reasons(server) == [CloseReason.SEND_TIMEOUT]


async def test_a_sender_that_waits_for_the_lent_socket_is_not_the_peers_fault() -> None:
    send = 50 * MS

    async def handler(stream: Stream) -> None:
        async with stream.blocking_socket():
            sending = asyncio.create_task(stream.send(b"x"))
            await wait_until(lambda: stream.unsent)
            await stays(lambda: not stream.closed, during=4 * send)
        await sending

    async with (
        local_server(handler, timeouts=Timeouts(send=send)) as server,
        await Client.connect(server) as client,
    ):
        assert await client.receive_all() == b"x"
        client.close()
        assert await reasons(server) == [CloseReason.HANDLER_RETURNED]


async def test_a_peer_that_reads_slowly_is_not_given_up() -> None:
    count = 2 << 20
    timeouts = Timeouts(send=300 * MS)

    async def handler(stream: Stream) -> None:
        await stream.send(bytes(count))

    async with (
        local_server(handler, timeouts=timeouts) as server,
        await Client.connect(server, receive_buffer=65_536) as client,
    ):
        received = 0
        while received < count:
            received += len(await client.receive_exactly(min(count - received, 200_000)))
            await asyncio.sleep(80 * MS)
        assert await client.ended() == "eof"


async def test_the_deadline_of_a_send_counts_from_when_something_had_to_wait() -> None:
    """And not from the last look at the connection, which may have been long before."""
    send = 800 * MS
    blocked_at = 0.0

    async def handler(stream: Stream) -> None:
        nonlocal blocked_at
        sock = stream.extra(SocketAttribute.raw_socket)
        until = time.monotonic() + send / 4 * 0.9  # The first look comes after a quarter.
        while time.monotonic() < until:
            with suppress(BlockingIOError):
                while True:
                    sock.send(bytes(65_536))
            await asyncio.sleep(0.005)
        blocked_at = time.monotonic()
        await stream.send(bytes(200_000))

    async with (
        local_server(handler, timeouts=Timeouts(send=send)) as server,
        await Client.connect(server, receive_buffer=4_096),
    ):
        assert await reasons(server) == [CloseReason.SEND_TIMEOUT]
        assert time.monotonic() - blocked_at >= send - 0.01


async def test_the_handlers_own_deadline_cancels_it() -> None:
    cancelled = []

    async def handler(stream: Stream) -> None:
        try:
            await stream.send(b"working")
            await stay_busy(stream)
        except asyncio.CancelledError:
            cancelled.append(current_connection().close_reason)
            await stream.send(b", cancelled")
            raise

    async with (
        local_server(handler, timeouts=Timeouts(handler=100 * MS)) as server,
        await Client.connect(server) as client,
    ):
        started = time.monotonic()
        assert await client.receive_all() == b"working, cancelled"
        assert time.monotonic() - started >= 100 * MS - 0.01
        assert cancelled == [CloseReason.HANDLER_TIMEOUT]


async def test_lifetimes_differ_by_their_jitter() -> None:
    ended: list[float] = []

    async def handler(stream: Stream) -> None:
        await current_connection().wait_draining()
        ended.append(current_connection().age)

    lifetime = 500 * MS
    timeouts = Timeouts(lifetime=lifetime, lifetime_jitter=0.8, linger=0)
    async with local_server(handler, timeouts=timeouts) as server:
        clients = [await Client.connect(server) for _ in range(30)]
        await wait_until(lambda: len(ended) == 30)
        for client in clients:
            client.close()
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.LIFETIME: 30}
    assert min(ended) >= lifetime * 0.2 - 0.01
    assert max(ended) - min(ended) >= lifetime * 0.4


async def test_a_lifetime_given_later_counts_from_the_start_of_the_connection() -> None:
    async with local_server() as server, await Client.connect(server) as client:
        await client.ask(b"x")
        connection = await only(server)
        server.update(lifetime=3_600)
        await stays(lambda: connection.state is ConnectionState.IDLE, during=200 * MS)
        server.update(lifetime=50 * MS)
        assert await client.ended() == "eof"
        client.close()
        assert await reasons(server) == [CloseReason.LIFETIME]


async def test_deadlines_given_later_hold_for_those_who_were_there(
    server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    """Whatever they were doing at that moment."""
    nothing = Timeouts(handshake=None, idle=None, send=None)
    addresses = ["tcp://127.0.0.1:0", "tls+tcp://127.0.0.1:0"]
    async with local_server(echo, *addresses, tls=server_context, timeouts=nothing) as server:
        shaking = TLSClient(await Client.connect(server, index=1), client_context, "localhost")
        async with await Client.connect(server) as idle, shaking:
            await idle.ask(b"x")
            await wait_until(lambda: ConnectionState.HANDSHAKE in server.statistics().states)
            server.update(idle=100 * MS)
            assert await idle.ended() == "eof"
            idle.close()
            await shaking.handshake()
            assert await shaking.receive() == b""
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.IDLE_TIMEOUT: 2}


async def test_no_deadlines_at_all() -> None:
    nothing = Timeouts(handshake=None, idle=None, send=None, linger=0, grace=0)
    async with local_server(timeouts=nothing) as server, await Client.connect(server) as client:
        await client.ask(b"x")
        await within(server.drain())


# Steps that follow when a handler does not heed.


async def test_a_handler_that_goes_on_after_a_deadline_is_cancelled() -> None:
    cancelled = asyncio.Event()

    async def handler(stream: Stream) -> None:
        with pytest.raises(ConnectionTimeoutError):
            await stream.receive()
        try:
            await stay_busy(stream)
        finally:
            cancelled.set()

    timeouts = Timeouts(idle=50 * MS, grace=50 * MS)
    async with local_server(handler, timeouts=timeouts) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        assert cancelled.is_set()
        client.close()
        assert await reasons(server) == [CloseReason.IDLE_TIMEOUT]


@pytest.mark.parametrize("begin", ["deadline", "close", "lifetime", "handler"])
async def test_a_handler_that_does_not_heed_cancellation_is_left_behind(
    begin: str, caplog: pytest.LogCaptureFixture
) -> None:
    until = Until()

    async def handler(stream: Stream) -> None:
        if begin == "deadline":
            with pytest.raises(ConnectionTimeoutError):
                await stream.receive()
        await do_not_heed(stream)

    timeouts = {
        "deadline": Timeouts(idle=50 * MS, grace=50 * MS),
        "close": Timeouts(grace=50 * MS),
        "lifetime": Timeouts(lifetime=50 * MS, lifetime_jitter=0, grace=50 * MS),
        "handler": Timeouts(handler=50 * MS, grace=50 * MS),
    }[begin]
    server = local_server(handler, timeouts=timeouts, lifespan=until)
    async with server, await Client.connect(server) as client:
        connection = await only(server)
        if begin == "close":
            await within(connection.close())
        else:
            await within(connection.wait_closed())
        assert await client.ended() == "reset"
        assert connection.close_reason is CloseReason.ABORTED
        assert server.statistics().stuck_handlers == 1
        assert not server.connections
        assert server.statistics().closed == {CloseReason.ABORTED: 1}
        assert "its handler goes on although it was cancelled" in caplog.text
        until.event.set()
        await wait_until(lambda: not server.statistics().stuck_handlers)
        assert server.statistics().closed == {CloseReason.ABORTED: 1}


# Ending it from outside.


async def test_abort_at_every_stage(server_context: ssl.SSLContext) -> None:
    async def verify(connection: Connection) -> bool:
        if connection.listener.address == server.addresses[0]:
            await asyncio.get_running_loop().create_future()
        return True

    addresses = ["tcp://127.0.0.1:0", "tls+tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]
    async with local_server(stay_busy, *addresses, verify=verify, tls=server_context) as server:
        states = [ConnectionState.NEW, ConnectionState.HANDSHAKE, ConnectionState.ACTIVE]
        for index, state in enumerate(states):
            async with await Client.connect(server, index=index) as client:
                connection = await only(server)
                await wait_until(lambda c=connection, s=state: c.state is s)  # type: ignore[misc]
                connection.abort()
                connection.abort()
                assert await client.ended() == "reset"
                await within(connection.wait_closed())
                connection.abort()
                assert connection.close_reason is CloseReason.ABORTED
        assert server.statistics().closed == {CloseReason.ABORTED: 3}


async def test_abort_while_it_lingers() -> None:
    async def handler(stream: Stream) -> None:
        await stream.send(b"bye")

    async with local_server(handler) as server, await Client.connect(server) as client:
        connection = await only(server)
        assert await client.receive_all() == b"bye"
        assert connection.state is ConnectionState.DRAINING
        connection.abort()
        await within(connection.wait_closed())
        assert connection.close_reason is CloseReason.HANDLER_RETURNED


async def test_abort_does_not_wait_for_a_handler_that_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    until = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await ignore_cancellation(until)

    timeouts = Timeouts(grace=20 * MS)
    async with local_server(handler, timeouts=timeouts) as server, await Client.connect(server) as client:
        connection = await only(server)
        connection.abort()
        assert await client.ended() == "reset"
        await wait_until(lambda: not server.connections)
        assert [text for text in complaints(caplog) if "goes on although it was cancelled" in text]
        until.set()


async def test_a_handler_may_abort_its_own_connection() -> None:
    went_on = []

    async def handler(stream: Stream) -> None:
        current_connection().abort()
        await asyncio.sleep(0)
        went_on.append(1)

    async with local_server(handler) as server:
        with suppress(ConnectionResetError):  # It may come before the connect has been noticed.
            async with await Client.connect(server) as client:
                assert await client.ended() == "reset"
        assert await reasons(server) == [CloseReason.ABORTED]
        assert not went_on


@pytest.mark.parametrize("end", ["abort", "cancel", "aclose", "close"])
async def test_ended_before_its_task_has_begun(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """Where tasks do not start eagerly, that is a turn of the loop in which anything can happen."""
    asyncio.get_running_loop().set_task_factory(lambda loop, coro, **kw: asyncio.Task(coro, loop=loop, **kw))
    began = []

    async def handler(stream: Stream) -> None:
        began.append(1)
        await stream.receive()

    server = local_server(handler, timeouts=Timeouts(grace=50 * MS))
    async with server:
        hub = server._hub
        assert hub is not None
        accepted = hub.accepted
        ending: list[asyncio.Task[None]] = []

        def accept_and_end(*arguments: Any) -> None:
            if end == "aclose":  # Its first step runs before that of the connection.
                ending.append(asyncio.ensure_future(server.aclose()))
            accepted(*arguments)
            connection = next(iter(server.connections))
            if end == "abort":
                connection.abort()
            elif end == "cancel":
                connection.cancel(CloseReason.CANCELLED)
            elif end == "close":
                ending.append(asyncio.ensure_future(connection.close()))

        server.listeners[0]._on_connection = accept_and_end
        with suppress(ConnectionResetError):
            async with await Client.connect(server) as client:
                assert await client.ended() in ("eof", "reset")
        await wait_until(lambda: not server.connections)
        await within(asyncio.gather(*ending))
        if end == "close":
            assert server.statistics().closed == {CloseReason.CLOSED_BY_SERVER: 1}
        else:
            assert len(server.statistics().closed) == 1
            assert not began
    assert not complaints(caplog)


async def test_close_lets_an_idle_connection_end_in_peace() -> None:
    finished = []

    class Handler(StreamHandler):
        async def handle(self) -> None:
            with pytest.raises(EndOfStream):
                await self.stream.receive()
            await self.stream.send(b"goodbye")

        async def finish(self) -> None:
            finished.append(self.connection.close_reason)

    async with local_server(Handler) as server, await Client.connect(server) as client:
        connection = await only(server)
        closing = asyncio.ensure_future(connection.close())
        assert await client.receive_all() == b"goodbye"
        assert finished == [None]
        client.close()
        await within(closing)
        assert connection.close_reason is CloseReason.CLOSED_BY_SERVER
        await within(connection.close())


async def test_close_does_not_end_a_message_in_the_middle() -> None:
    async def handler(stream: Stream) -> None:
        await stream.send(await stream.receive_exactly(4))
        await stream.receive()

    async with local_server(handler) as server, await Client.connect(server) as client:
        await client.send(b"ab")
        connection = await only(server)
        await wait_until(lambda: connection.bytes_received == 2)
        closing = asyncio.ensure_future(connection.close())
        await stays(lambda: not closing.done(), during=600 * MS)
        await client.send(b"cd")
        assert await client.receive_all() == b"abcd"
        client.close()
        await within(closing)


async def test_closing_again_and_again_puts_nothing_off() -> None:
    until = Until()
    timeouts = Timeouts(grace=300 * MS)
    server = local_server(do_not_heed, timeouts=timeouts, lifespan=until)
    async with server, await Client.connect(server):
        connection = await only(server)
        started = time.monotonic()
        calls = []
        while connection.state is not ConnectionState.CLOSED:
            calls.append(asyncio.ensure_future(connection.close()))
            await asyncio.sleep(50 * MS)
            assert time.monotonic() - started < 5 * SECOND
        await within(asyncio.gather(*calls))
        assert connection.close_reason is CloseReason.ABORTED
        until.event.set()
        await wait_until(lambda: not server.statistics().stuck_handlers)


async def test_close_cancels_a_busy_handler_after_the_grace() -> None:
    async with (
        local_server(stay_busy, timeouts=Timeouts(grace=50 * MS)) as server,
        await Client.connect(server) as client,
    ):
        connection = await only(server)
        closing = asyncio.ensure_future(connection.close())
        assert await client.ended() == "eof"
        client.close()
        await within(closing)
        assert connection.close_reason is CloseReason.CLOSED_BY_SERVER


async def test_close_during_the_handshake(server_context: ssl.SSLContext) -> None:
    timeouts = Timeouts(grace=50 * MS)
    async with (
        local_server(echo, "tls+tcp://127.0.0.1:0", tls=server_context, timeouts=timeouts) as server,
        await Client.connect(server) as client,
    ):
        connection = await only(server)
        await wait_until(lambda: connection.state is ConnectionState.HANDSHAKE)
        await within(connection.close())
        assert await client.ended() in ("eof", "reset")
        assert connection.close_reason is CloseReason.CLOSED_BY_SERVER
        assert server.statistics().handshakes == 0


async def test_a_busy_handler_learns_that_it_is_to_end() -> None:
    async def handler(stream: Stream) -> None:
        connection = current_connection()
        assert not connection.draining
        await connection.wait_draining()
        assert connection.draining
        assert connection.state is ConnectionState.DRAINING
        await connection.wait_draining()
        await stream.send(b"goodbye")

    async with local_server(handler) as server, await Client.connect(server) as client:
        connection = await only(server)
        closing = asyncio.ensure_future(connection.close())
        assert await client.receive_all() == b"goodbye"
        client.close()
        await within(closing)


@pytest.mark.parametrize("waiting", ["wait_draining", "wait_closed"])
async def test_waits_that_were_given_up_leave_nothing(waiting: str) -> None:
    """As in a handler that waits for its next message, or to be told to end, whichever comes first."""
    async with local_server() as server, await Client.connect(server):
        connection = await only(server)
        for _ in range(100):
            task = asyncio.ensure_future(getattr(connection, waiting)())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        kept = asyncio.ensure_future(getattr(connection, waiting)())
        await asyncio.sleep(0)
        assert len(connection._draining_waiters or ()) + len(connection._closed_waiters or ()) == 1
        connection.abort()
        if waiting == "wait_closed":
            await within(kept)
        kept.cancel()
        await asyncio.gather(kept, return_exceptions=True)


async def test_its_stream_is_closed_for_those_who_kept_it() -> None:
    kept: list[Stream] = []

    async def handler(stream: Stream) -> None:
        kept.append(stream)

    async with local_server(handler) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        client.close()
        await wait_until(lambda: not server.connections)
        with pytest.raises(ClosedResourceError):
            await kept[0].send(b"x")
        with pytest.raises(ClosedResourceError):
            await kept[0].receive()


async def test_one_connections_error_does_not_touch_another() -> None:
    async def handler(stream: Stream) -> None:
        async for chunk in stream:
            if chunk == b"bug":
                raise ValueError("a bug")
            await stream.send(chunk)

    async with local_server(handler) as server, await Client.connect(server) as good:
        for _ in range(5):
            async with await Client.connect(server) as bad:
                await bad.send(b"bug")
                assert await bad.ended() == "eof"
            assert await good.ask(b"x") == b"x"
