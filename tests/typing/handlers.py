"""What a type checker has to say of handlers of streams. Never run: `make lint` has mypy and pyright read it.

A line with `type: ignore` is an error that both have to find: one that is not there is an error itself.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import assert_type

from asyncserver import (
    Connection,
    DrainReport,
    Endpoint,
    Handler,
    Limits,
    LineIterator,
    Server,
    ServerStatistics,
    Stream,
    StreamHandler,
    Timeouts,
    TLSConfig,
    current_connection,
    run,
    serve,
)


async def function(stream: Stream) -> None: ...


async def with_result(stream: Stream) -> int:
    return 1


def returns_awaitable(stream: Stream) -> Awaitable[None]:
    return function(stream)


class Class(StreamHandler):
    async def handle(self) -> None:
        assert_type(self.stream, Stream)
        assert_type(self.connection, Connection)
        assert_type(self.peer, Endpoint)


class Callables:
    async def __call__(self, stream: Stream) -> None: ...

    async def method(self, stream: Stream) -> None: ...


async def with_argument(greeting: bytes, stream: Stream) -> None: ...


accepted: list[Handler] = [
    function,
    with_result,
    returns_awaitable,
    Class,
    Callables(),
    Callables().method,
    partial(with_argument, b"hello"),
    lambda stream: with_argument(b"hello", stream),
]


def not_async(stream: Stream) -> None: ...


async def without_stream() -> None: ...


async def of_bytes(data: bytes) -> None: ...


class NoHandler: ...


async def generator(stream: Stream) -> AsyncIterator[bytes]:
    yield b""


not_async_refused: Handler = not_async  # type: ignore[assignment]
without_stream_refused: Handler = without_stream  # type: ignore[assignment]
of_bytes_refused: Handler = of_bytes  # type: ignore[assignment]
class_refused: Handler = NoHandler  # type: ignore[assignment]
instance_refused: Handler = NoHandler()  # type: ignore[assignment]
generator_refused: Handler = generator  # type: ignore[assignment]


@asynccontextmanager
async def lifespan(server: Server) -> AsyncGenerator[dict[str, int]]:
    yield {}


def welcome(connection: Connection) -> bool:
    return True


async def welcome_later(connection: Connection) -> bool:
    return True


def everything() -> None:
    run(function, "tcp://127.0.0.1:9999", "unix:/run/x.sock", limits=Limits(max_connections=5))
    run(Class, "tls+tcp://:9999", tls=TLSConfig(certificate="c.pem"), timeouts=Timeouts(idle=None))
    run(function, "tcp://:1", lifespan=lifespan, verify=welcome, drain_timeout=1.5)
    run(function, "tcp://:1", verify=welcome_later, loop="uvloop")
    run(function, "tcp://:1", limits={"max_connections": 5})  # type: ignore[arg-type]
    run(function, "tcp://:1", max_connections=5)  # type: ignore[call-arg]
    run(function, 9999)  # type: ignore[arg-type]
    run(function, "tcp://:1", loop="trio")  # type: ignore[arg-type]
    run(function("stream"), "tcp://:1")  # type: ignore[arg-type]
    Limits(max_connexions=5)  # type: ignore[call-arg]
    Limits(5)  # type: ignore[call-arg]
    Limits(when_full="drop")  # type: ignore[arg-type]
    Timeouts(idle="10")  # type: ignore[arg-type]


async def of_servers() -> None:
    async with Server(function, "tcp://:1") as server:
        assert_type(server, Server)
        assert_type(server.statistics(), ServerStatistics)
        assert_type(await server.drain(), DrainReport)
        for connection in server.connections:
            assert_type(connection, Connection)
        assert_type(server.connections.get(1), Connection | None)
    assert_type(await serve(function, "tcp://:1"), None)
    assert_type(current_connection(), Connection)


async def of_streams(stream: Stream) -> None:
    assert_type(await stream.receive(), bytes)
    assert_type(await stream.receive_exactly(4), bytes)
    assert_type(await stream.receive_until(b"\n", 100), bytes)
    assert_type(await stream.peek(4), bytes)
    assert_type(stream.lines(), LineIterator)
    assert_type([line async for line in stream.lines(max_bytes=100)], list[bytes])
    assert_type([chunk async for chunk in stream], list[bytes])
    await stream.send(bytearray(b"x"))
    await stream.send(memoryview(b"x"))
    await stream.send_many([b"x", bytearray(b"y")])
    await stream.send("text")  # type: ignore[arg-type]
    await stream.receive("5")  # type: ignore[arg-type]


factory: Callable[[Stream], StreamHandler] = Class
