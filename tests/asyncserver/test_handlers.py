from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest
from anyio import EndOfStream

from asyncserver import (
    CloseReason,
    Connection,
    ConnectionState,
    OptionError,
    Server,
    Stream,
    StreamHandler,
    Timeouts,
    current_connection,
)
from tests.clients import LOOPBACK, Client, complaints, echo, local_server
from tests.waiting import MS, wait_until, within

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


async def visit(handler: Any, data: bytes = b"", **options: Any) -> tuple[bytes, CloseReason, Server]:
    """What a client gets that sends ``data`` and then its end, and why its connection ended."""
    server = local_server(handler, **options)
    async with server:
        async with await Client.connect(server) as client:
            await client.send(data)
            client.half_close()
            answer = await client.receive_all()
        await wait_until(lambda: not server.connections)
        (reason,) = server.statistics().closed
        return answer, reason, server


# Kinds of handlers.


class CallableObject:
    func = "an attribute that means nothing"

    async def __call__(self, stream: Stream) -> None:
        await echo(stream)

    async def method(self, stream: Stream) -> None:
        await echo(stream)

    @staticmethod
    async def static(stream: Stream) -> None:
        await echo(stream)

    @classmethod
    async def of_class(cls, stream: Stream) -> None:
        await echo(stream)


class ClassWithHandle(StreamHandler):
    async def handle(self) -> None:
        await echo(self.stream)


async def with_options(prefix: bytes, stream: Stream, *, suffix: bytes = b"") -> None:
    await echo(stream)


async def with_default(stream: Stream, extra: int = 5) -> None:
    await echo(stream)


async def with_any(*args: Any, **options: Any) -> None:
    await echo(*args)


HANDLERS = [
    echo,
    CallableObject(),
    CallableObject().method,
    CallableObject.static,
    CallableObject.of_class,
    ClassWithHandle,
    functools.partial(with_options, b"x"),
    functools.partial(functools.partial(with_options, b"x"), suffix=b"y"),
    functools.partial(CallableObject()),
    with_default,
    with_any,
    AsyncMock(side_effect=echo),
]


@pytest.mark.parametrize("handler", HANDLERS)
async def test_what_can_be_a_handler(handler: Any) -> None:
    answer, reason, _ = await visit(handler, b"hello")
    assert answer == b"hello"
    assert reason is CloseReason.EOF


def plain(stream: Stream) -> None: ...


async def generator(stream: Stream) -> Any:
    yield 5


async def takes_none() -> None: ...


async def takes_two(stream: Stream, other: object) -> None: ...


async def takes_keyword(stream: Stream, *, other: object) -> None: ...


class NoHandler:
    async def handle(self) -> None: ...


class WithoutHandle(StreamHandler): ...


class PlainHandle(StreamHandler):
    def handle(self) -> None:  # type: ignore[override]
        ...


class PlainSetup(ClassWithHandle):
    def setup(self) -> None:  # type: ignore[override]
        ...


class PlainFinish(ClassWithHandle):
    def finish(self) -> None:  # type: ignore[override]
        ...


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (None, "async function"),
        (5, "async function"),
        ("module:handler", "async function"),
        (plain, "write `async def`"),
        (generator, "write `async def`"),
        (lambda stream: None, "write `async def`"),
        (functools.partial(plain), "write `async def`"),
        (takes_none, "one argument"),
        (takes_two, "one argument"),
        (takes_keyword, "one argument"),
        (functools.partial(echo, object()), "one argument"),
        (NoHandler, "StreamHandler"),
        (NoHandler(), "async function"),
        (int, "StreamHandler"),
        (StreamHandler, "async def handle(self)"),
        (WithoutHandle, "async def handle(self)"),
        (PlainHandle, "async def handle(self)"),
        (PlainSetup, "async def setup(self)"),
        (PlainFinish, "async def finish(self)"),
    ],
)
def test_what_cannot_be_a_handler(handler: Any, reason: str) -> None:
    with pytest.raises(OptionError) as caught:
        Server(handler, LOOPBACK)
    assert caught.value.option == "handler"
    assert caught.value.value is handler
    assert reason in caught.value.reason


# StreamHandler.


async def test_a_handler_class_knows_its_connection() -> None:
    seen: list[Any] = []

    class Handler(StreamHandler):
        async def setup(self) -> None:
            seen.append(self)

        async def handle(self) -> None:
            assert self.connection is current_connection()
            assert self.stream is self.connection.stream
            assert self.peer == self.connection.peer == self.stream.peer
            assert isinstance(self.server, Server)
            assert self.connection in self.server.connections
            assert isinstance(await self.stream.receive(), bytes)

        async def finish(self) -> None:
            seen.append(self)

    for _ in range(2):
        _, reason, _ = await visit(Handler, b"x")
        assert reason is CloseReason.HANDLER_RETURNED
    assert seen[0] is seen[1]
    assert seen[2] is seen[3]
    assert seen[0] is not seen[2]


class AnyBugError(Exception):
    pass


@pytest.mark.parametrize(
    ("failing", "steps", "bugs"),
    [
        ((), ["setup", "handle", "finish"], []),
        (("setup",), ["setup"], ["setup"]),
        (("handle",), ["setup", "handle", "finish"], ["handle"]),
        (("finish",), ["setup", "handle", "finish"], ["finish"]),
        (("handle", "finish"), ["setup", "handle", "finish"], ["finish", "handle"]),
        (("setup", "handle", "finish"), ["setup"], ["setup"]),
        (("__init__",), ["__init__"], ["__init__"]),
    ],
)
async def test_finish_runs_whenever_setup_has_succeeded(
    failing: tuple[str, ...], steps: list[str], bugs: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def step(name: str) -> None:
        done.append(name)
        if name in failing:
            raise AnyBugError(name)

    class Handler(StreamHandler):
        def __init__(self, stream: Stream) -> None:
            super().__init__(stream)
            if "__init__" in failing:
                step("__init__")

        async def setup(self) -> None:
            step("setup")

        async def handle(self) -> None:
            step("handle")

        async def finish(self) -> None:
            step("finish")

    _, reason, _ = await visit(Handler)
    assert done == steps
    assert reason is (CloseReason.HANDLER_ERROR if bugs else CloseReason.HANDLER_RETURNED)
    logged = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(exc) for exc in logged] == bugs[:1]
    if len(bugs) == 2:
        assert str(logged[0].__context__) == bugs[1]  # type: ignore[union-attr]


async def test_finish_runs_when_handle_is_cancelled() -> None:
    done: list[str] = []

    class Handler(StreamHandler):
        async def handle(self) -> None:
            await asyncio.get_running_loop().create_future()

        async def finish(self) -> None:
            await asyncio.sleep(0.01)
            await self.stream.send(b"goodbye")
            done.append("finish")

    async with local_server(Handler) as server, await Client.connect(server) as client:
        await wait_until(lambda: server.connections)
        closing = asyncio.ensure_future(server.aclose())
        # A second time does not interrupt what is done to end.
        again = asyncio.ensure_future(server.aclose())
        assert await client.receive_all() == b"goodbye"
        client.close()
        await within(asyncio.gather(closing, again))
        assert done == ["finish"]
        assert server.statistics().closed == {CloseReason.CANCELLED: 1}


async def test_nothing_runs_when_setup_is_cancelled() -> None:
    done: list[str] = []

    class Handler(StreamHandler):
        async def setup(self) -> None:
            done.append("setup")
            await asyncio.get_running_loop().create_future()

        async def handle(self) -> None:
            done.append("handle")

        async def finish(self) -> None:
            done.append("finish")

    async with local_server(Handler) as server, await Client.connect(server) as client:
        await wait_until(lambda: done)
        (connection,) = server.connections
        connection.abort()
        assert await client.ended() == "reset"
        await within(connection.wait_closed())
        assert done == ["setup"]


# Errors.


def bug_reports(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.exc_info]


async def test_an_error_is_logged_once_with_the_peer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    peers = []

    async def handler(stream: Stream) -> None:
        peers.append(str(stream.peer))
        raise AnyBugError("here")

    await visit(handler)
    (record,) = bug_reports(caplog)
    assert record.levelno == logging.ERROR
    assert record.name == "asyncserver"
    assert peers[0] in record.getMessage()
    assert record.peer == peers[0]  # type: ignore[attr-defined]
    assert record.connection_id == 1  # type: ignore[attr-defined]


async def at_end(stream: Stream) -> None:
    while True:
        await stream.receive()


async def in_message(stream: Stream) -> None:
    await stream.receive_exactly(10)


async def in_delimited(stream: Stream) -> None:
    await stream.receive_until(b"\n", 100)


async def too_long(stream: Stream) -> None:
    await stream.receive_until(b"\n", 2)


async def in_group(stream: Stream) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(at_end(stream))


async def sending(stream: Stream) -> None:
    while True:
        await stream.send(b"x" * 10_000)
        await asyncio.sleep(0)


async def swallowing(stream: Stream) -> None:
    try:
        await at_end(stream)
    except EndOfStream:
        raise RuntimeError("what a handler makes of it") from None


@pytest.mark.parametrize("end", [Client.half_close, Client.close, Client.reset])
@pytest.mark.parametrize("handler", [at_end, in_message, in_delimited, too_long, in_group, sending, echo])
async def test_what_peers_do_is_never_a_traceback(
    handler: Any, end: Callable[[Client], None], caplog: pytest.LogCaptureFixture
) -> None:
    async with local_server(handler) as server, await Client.connect(server) as client:
        await client.send(b"12345")
        await wait_until(lambda: server.connections)
        end(client)
        if end is Client.half_close:
            if handler is sending:
                client.close()
            else:
                await client.receive_all()
        client.close()
        await wait_until(lambda: not server.connections)
        allowed = {CloseReason.EOF, CloseReason.RESET, CloseReason.PROTOCOL_ERROR}
        assert set(server.statistics().closed) <= allowed
    assert not complaints(caplog)


async def test_what_the_handler_makes_of_it_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    _, reason, _ = await visit(swallowing)
    assert reason is CloseReason.HANDLER_ERROR
    (record,) = bug_reports(caplog)
    assert "what a handler makes of it" in str(record.exc_info)


async def test_the_same_error_of_another_stream_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(stream: Stream) -> None:
        raise EndOfStream  # of a database, say

    _, reason, _ = await visit(handler, b"x")
    assert reason is CloseReason.HANDLER_ERROR
    assert len(bug_reports(caplog)) == 1


@pytest.mark.parametrize("end", ["deadline", "cancelled"])
async def test_a_bug_in_cleaning_up_is_not_lost(end: str, caplog: pytest.LogCaptureFixture) -> None:
    """Even though the connection has ended for another reason already."""

    async def handler(stream: Stream) -> None:
        try:
            await stream.receive()
        finally:
            raise AnyBugError("in cleaning up")

    timeouts = Timeouts(idle=50 * MS) if end == "deadline" else Timeouts()
    async with local_server(handler, timeouts=timeouts) as server, await Client.connect(server) as client:
        await wait_until(lambda: server.connections)
        if end == "cancelled":
            await asyncio.gather(server.aclose(), wait_for_end(client))
        await wait_for_end(client)
        await wait_until(lambda: not server.connections)
        reason = CloseReason.IDLE_TIMEOUT if end == "deadline" else CloseReason.CANCELLED
        assert server.statistics().closed == {reason: 1}
    (record,) = bug_reports(caplog)
    assert isinstance(record.exc_info[1], AnyBugError)  # type: ignore[index]


async def wait_for_end(client: Client) -> None:
    if client.sock.fileno() != -1:
        await client.ended()
        client.close()


@pytest.mark.parametrize("misuse", ["receive", "send"])
async def test_using_what_was_aborted_is_no_bug(misuse: str, caplog: pytest.LogCaptureFixture) -> None:
    go_on = asyncio.Event()

    async def handler(stream: Stream) -> None:
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            await (stream.send(b"x") if misuse == "send" else stream.receive())

    async with local_server(handler) as server, await Client.connect(server) as client:
        await wait_until(lambda: ConnectionState.ACTIVE in server.statistics().states)
        (connection,) = server.connections
        connection.abort()
        assert await client.ended() == "reset"
        await within(connection.wait_closed())
    assert not complaints(caplog)


async def test_the_error_hook_is_called_once_for_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[tuple[Connection, Exception]] = []

    async def handler(stream: Stream) -> None:
        if await stream.receive() == b"bug":
            raise AnyBugError("here")
        await at_end(stream)

    async with local_server(handler, on_error=lambda *call: calls.append(call)) as server:
        for data in (b"bug", b"fine"):
            async with await Client.connect(server) as client:
                await client.send(data)
                client.half_close()
                await client.receive_all()
        await wait_until(lambda: not server.connections)
    ((connection, exc),) = calls
    assert connection.id == 1
    assert isinstance(exc, AnyBugError)
    assert len(bug_reports(caplog)) == 1


async def test_a_hook_that_fails_is_logged_and_that_is_all(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(stream: Stream) -> None:
        raise AnyBugError("here")

    def hook(connection: Connection, exc: Exception) -> None:
        raise ValueError("in the hook")

    _, reason, _ = await visit(handler, on_error=hook)
    assert reason is CloseReason.HANDLER_ERROR
    first, second = bug_reports(caplog)
    assert isinstance(first.exc_info[1], AnyBugError)  # type: ignore[index]
    assert isinstance(second.exc_info[1], ValueError)  # type: ignore[index]
    assert "hook" in second.getMessage()


async def async_hook(connection: Connection, exc: Exception) -> None: ...


@pytest.mark.parametrize("hook", [5, "log", async_hook])
def test_a_hook_has_to_be_a_plain_function(hook: Any) -> None:
    with pytest.raises(OptionError, match="on_error="):
        Server(echo, LOOPBACK, on_error=hook)


# verify.


async def verified(connection: Connection) -> bool:
    await asyncio.sleep(0)
    return True


async def refused(connection: Connection) -> bool:
    await asyncio.sleep(0)
    return False


@pytest.mark.parametrize("verify", [lambda connection: True, verified, lambda connection: [1]])
async def test_who_is_welcome(verify: Any) -> None:
    answer, reason, _ = await visit(echo, b"hello", verify=verify)
    assert answer == b"hello"
    assert reason is CloseReason.EOF


@pytest.mark.parametrize("verify", [lambda connection: False, refused, lambda connection: None])
async def test_who_is_not(verify: Any, caplog: pytest.LogCaptureFixture) -> None:
    called = []

    async def handler(stream: Stream) -> None:
        called.append(1)

    async with local_server(handler, verify=verify) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.REFUSED: 1}
    assert not called
    assert not complaints(caplog)


async def test_verify_looks_at_the_connection_before_a_byte_is_read() -> None:
    seen: list[Connection] = []

    def verify(connection: Connection) -> bool:
        assert connection is current_connection()
        assert connection.state is ConnectionState.NEW
        assert connection.bytes_received == 0
        seen.append(connection)
        return connection.peer == connection.stream.peer

    answer, _, _ = await visit(echo, b"hello", verify=verify)
    assert answer == b"hello"
    assert len(seen) == 1


async def raising(connection: Connection) -> bool:
    raise AnyBugError("in verify")


def raising_at_once(connection: Connection) -> bool:
    raise AnyBugError("in verify")


@pytest.mark.parametrize("verify", [raising, raising_at_once])
async def test_a_bug_in_verify_refuses_and_is_logged(verify: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with local_server(verify=verify) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        client.close()
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.HANDLER_ERROR: 1}
    (record,) = bug_reports(caplog)
    assert isinstance(record.exc_info[1], AnyBugError)  # type: ignore[index]


async def test_a_verify_that_times_out_by_itself_is_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    async def verify(connection: Connection) -> bool:
        raise TimeoutError("of a database, say")

    async with local_server(verify=verify) as server, await Client.connect(server) as client:
        assert await client.ended() == "eof"
        client.close()
        await wait_until(lambda: not server.connections)
        assert server.statistics().closed == {CloseReason.HANDLER_ERROR: 1}
    assert len(bug_reports(caplog)) == 1


@pytest.mark.parametrize("verify", [5, "everybody", True])
def test_verify_has_to_be_a_function(verify: Any) -> None:
    with pytest.raises(OptionError, match="verify="):
        Server(echo, LOOPBACK, verify=verify)
