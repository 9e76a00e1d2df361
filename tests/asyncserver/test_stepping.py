"""Handlers are stepped past their tasks; nothing but the speed may tell."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import random
import socket
import sys
import traceback
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import BusyResourceError, EndOfStream

from asyncserver import Server, Stream, Timeouts, current_connection
from tests.streams import Peer, connected, drive, driven, turns
from tests.waiting import MS, SECOND, wait_until, within

Handler = Callable[[Stream], Awaitable[Any]]


async def run_driven(handler: Handler, *, kind: str = "tcp") -> Any:
    """The handler's result, with a peer that echoes."""
    async with connected(kind) as (stream, peer), echoing(peer):
        return await within(driven(stream, handler))


@asynccontextmanager
async def echoing(peer: Peer) -> AsyncIterator[None]:
    async def echo() -> None:
        while data := await peer.receive():
            await peer.send(data)

    task = asyncio.create_task(echo())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def stepped(stream: Stream, data: bytes = b"x") -> None:
    """Returns in the middle of a step: the loop's callback has the coroutine in its hands."""
    await stream.send(data)
    assert await stream.receive_exactly(len(data)) == data


# What a handler sees around it.


async def test_current_task_and_context_stay_the_same() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable")
    seen = []

    async def handler(stream: Stream) -> None:
        task = asyncio.current_task()
        for number in range(5):
            variable.set(number)
            await stepped(stream)
            seen.append((asyncio.current_task() is task, variable.get()))
            await asyncio.sleep(0)
            seen.append((asyncio.current_task() is task, variable.get()))

    await run_driven(handler)
    assert seen == [(True, number) for number in range(5) for _ in range(2)]


async def test_no_task_is_current_afterwards() -> None:
    async with connected() as (stream, peer):
        looked: list[Any] = []
        loop = asyncio.get_running_loop()

        async def handler(stream: Stream) -> None:
            async for _ in stream:
                loop.call_soon(lambda: looked.append(asyncio.current_task()))

        task = driven(stream, handler)
        await turns()
        for _ in range(3):
            await peer.send(b"x")
            await turns(5)
        await peer.send_eof()
        await within(task)
        assert looked
        assert set(looked) == {None}


@pytest.mark.parametrize(
    "pause",
    [
        lambda: asyncio.sleep(0),
        lambda: asyncio.sleep(2 * MS),
        lambda: asyncio.to_thread(int),
        lambda: asyncio.create_task(asyncio.sleep(0)),
        lambda: asyncio.gather(asyncio.sleep(0), asyncio.sleep(0)),
        anyio.lowlevel.checkpoint,
        lambda: asyncio.wait_for(asyncio.sleep(0), 5),
    ],
    ids=["sleep0", "sleep", "to_thread", "task", "gather", "checkpoint", "wait_for"],
)
async def test_other_waits_in_between(pause: Callable[[], Awaitable[Any]]) -> None:
    async def handler(stream: Stream) -> int:
        for number in range(3):
            await stepped(stream, b"%d" % number)
            await pause()
            await stepped(stream, b"%d" % number)
        return 3

    assert await run_driven(handler) == 3


async def test_a_result_and_an_exception_in_the_middle_of_a_step() -> None:
    async def returning(stream: Stream) -> str:
        await stepped(stream)
        return "result"

    async def raising(stream: Stream) -> None:
        await stepped(stream)
        raise LookupError("handler")

    assert await run_driven(returning) == "result"
    with pytest.raises(LookupError, match="handler") as caught:
        await run_driven(raising)
    assert caught.value.__context__ is None
    assert "raising" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]


async def test_futures_resolved_by_another_connection() -> None:
    async with connected() as (one, one_peer), connected() as (other, other_peer):
        mailbox: asyncio.Queue[bytes] = asyncio.Queue()

        async def forward(stream: Stream) -> None:
            async for data in stream:
                mailbox.put_nowait(data)

        async def deliver(stream: Stream) -> None:
            assert await stream.receive() == b"go"
            for _ in range(3):
                await stream.send(await mailbox.get())

        forwarding, delivering = driven(one, forward), driven(other, deliver)
        await other_peer.send(b"go")
        for data in b"a", b"b", b"c":
            await one_peer.send(data)
            assert await within(other_peer.receive()) == data
        await one_peer.send_eof()
        await within(asyncio.gather(forwarding, delivering))


async def test_receiving_from_the_stream_of_another_handler() -> None:
    """As a proxy does, whose two directions are one task each."""
    async with connected() as (one, one_peer), connected() as (other, other_peer):
        gate = asyncio.Event()

        async def lend(stream: Stream) -> bytes:
            assert await stream.receive() == b"start"
            await gate.wait()
            return await stream.receive()

        borrowed: list[bytes] = []

        async def borrow(stream: Stream) -> None:
            assert await stream.receive() == b"start"
            for _ in range(3):
                borrowed[len(borrowed) :] = [await one.receive()]

        lending, borrowing = driven(one, lend), driven(other, borrow)
        await one_peer.send(b"start")
        await wait_until(lambda: one.bytes_received == len(b"start") and not one.receiving)
        await other_peer.send(b"start")
        await wait_until(lambda: one.receiving, what="the borrower to receive")
        for data in b"1", b"2", b"3":
            one_peer.send_now(data)
            await wait_until(lambda data=data: borrowed[-1:] == [data])
            await turns(6)
        await within(borrowing)
        assert borrowed == [b"1", b"2", b"3"]
        gate.set()
        await one_peer.send(b"4")
        assert await within(lending) == b"4"


# Cancellation.


async def test_cancelled_from_outside_while_it_waits() -> None:
    async with connected() as (stream, peer):

        async def handler(stream: Stream) -> None:
            await stream.receive()
            await stream.receive()

        task = driven(stream, handler)
        await peer.send(b"x")
        await wait_until(lambda: stream.bytes_received and stream.receiving)
        task.cancel("because")
        with pytest.raises(asyncio.CancelledError, match="because"):
            await task
        await peer.send(b"kept")
        assert await within(stream.receive()) == b"kept"


@pytest.mark.parametrize("first", ["data", "cancel"])
@pytest.mark.parametrize("is_driven", [True, False])
async def test_cancelled_in_the_turn_in_which_data_comes(first: str, is_driven: bool) -> None:
    """Whichever is first, no byte is lost and the cancellation is not either."""
    async with connected("unix") as (stream, peer):
        got: list[bytes] = []

        async def handler(stream: Stream) -> None:
            while True:
                got.append(await stream.receive())

        task = driven(stream, handler) if is_driven else asyncio.create_task(handler(stream))  # type: ignore[arg-type]
        await wait_until(lambda: stream.receiving)
        if first == "data":
            peer.send_now(b"data")
            task.cancel()
        else:
            task.cancel()
            peer.send_now(b"data")
        with pytest.raises(asyncio.CancelledError):
            await within(task)
        if not got:
            got.append(await within(stream.receive()))
        assert got == [b"data"]


@pytest.mark.parametrize("clock", ["asyncio.timeout", "wait_for", "move_on_after"])
async def test_timeouts_inside(clock: str) -> None:
    async def timed_out(stream: Stream) -> bool:
        if clock == "move_on_after":
            with anyio.move_on_after(5 * MS) as scope:
                await stream.receive()
            return scope.cancelled_caught
        try:
            if clock == "wait_for":
                await asyncio.wait_for(stream.receive(), 5 * MS)
            else:
                async with asyncio.timeout(5 * MS):
                    await stream.receive()
        except TimeoutError:
            return True
        return False

    async def handler(stream: Stream) -> list[Any]:
        task: Any = asyncio.current_task()
        seen: list[Any] = []
        for _ in range(3):
            await stepped(stream)
            seen.append(await timed_out(stream))
            seen.append(task.cancelling())
        await stepped(stream)
        return seen

    assert await run_driven(handler) == [True, 0] * 3


async def test_a_timeout_that_expires_while_bytes_arrive() -> None:
    """Every byte is seen once, whether a timeout falls before, into or behind its arrival."""
    async with connected("unix") as (stream, peer):
        text = bytes(range(256)) * 2
        loop = asyncio.get_running_loop()

        async def handler(stream: Stream) -> tuple[bytes, int]:
            got, timeouts = bytearray(), 0
            for number in range(10_000):
                if len(got) == len(text):
                    break
                try:
                    async with asyncio.timeout(0.0002 * (number % 5)):
                        got += await stream.receive_exactly(3 if len(text) - len(got) > 3 else 1)
                except TimeoutError:
                    timeouts += 1
            return bytes(got), timeouts

        task = driven(stream, handler)

        def send(at: int = 0) -> None:
            if at < len(text) and not task.done():
                peer.send_now(text[at : at + 1])
                loop.call_later(0.0001 * (at % 4), send, at + 1)

        send()
        got, timeouts = await within(task)
        assert got == text
        assert timeouts


@pytest.mark.parametrize("is_stepped", [True, False])
@pytest.mark.parametrize("then", ["receive", "future", "sleep0", "task", "other stream", "return", "raise"])
async def test_a_handler_that_cancels_itself(is_stepped: bool, then: str) -> None:
    """It is cancelled where it waits next, as any task is."""
    after: list[str] = []

    async def handler(stream: Stream) -> str:
        task: Any = asyncio.current_task()
        if is_stepped:
            await stepped(stream)
        else:
            await asyncio.sleep(0)
        task.cancel("myself")
        assert task.cancelling() == 1
        try:
            if then == "receive":
                await stream.receive()
            elif then == "future":
                await asyncio.get_running_loop().create_future()
            elif then == "sleep0":
                await asyncio.sleep(0)
            elif then == "task":
                await asyncio.create_task(asyncio.sleep(100))
            elif then == "other stream":
                await other.receive()
            elif then == "raise":
                raise LookupError
        except asyncio.CancelledError as exc:
            message = exc.args
            assert task.uncancel() == 0
            await stepped(stream)
            return f"cancelled: {message}"
        return "not cancelled"

    async def live(stream: Stream) -> Any:
        try:
            return await drive(stream, handler(stream))  # type: ignore[arg-type]
        except LookupError:
            return "raised"
        finally:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                after.append("cancelled")
                asyncio.current_task().uncancel()  # type: ignore[union-attr]
            stream.forget_handler()

    expected = {"return": "not cancelled", "raise": "raised"}.get(then, "cancelled: ('myself',)")
    async with connected() as (stream, peer), connected() as (other, _), echoing(peer):
        assert await within(asyncio.create_task(live(stream))) == expected
    assert after == (["cancelled"] if then in ("return", "raise") else [])


async def test_taking_a_cancellation_back_before_it_is_raised() -> None:
    """``uncancel()`` takes the exception back from Python 3.13 on; receiving goes on in any case."""

    async def handler(stream: Stream) -> bool:
        task: Any = asyncio.current_task()
        await stepped(stream)
        task.cancel()
        task.uncancel()
        asyncio.get_running_loop().call_later(5 * MS, send_x.set_result, None)
        try:
            assert await stream.receive() == b"x"
        except asyncio.CancelledError:
            assert await stream.receive() == b"x"
            return True
        return False

    async with connected() as (stream, peer):
        send_x: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        task = driven(stream, handler)
        await peer.send(await peer.receive())
        await send_x
        await peer.send(b"x")
        assert await within(task) == (sys.version_info < (3, 13))


async def test_a_task_group_inside() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError

    async def handler(stream: Stream) -> int:
        task: Any = asyncio.current_task()
        await stepped(stream)
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                await stepped(stream)
                group.create_task(fail())
                await stream.receive()
        assert isinstance(caught.value.exceptions[0], LookupError)
        await stepped(stream)
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(asyncio.sleep(0, number)) for number in range(3)]
            await stepped(stream)
        assert [task.result() for task in results] == [0, 1, 2]
        await stepped(stream)
        return int(task.cancelling())

    assert await run_driven(handler) == 0


async def test_cancelling_a_scope_around_oneself() -> None:
    async def handler(stream: Stream) -> bool:
        await stepped(stream)
        with anyio.CancelScope() as scope:
            await stepped(stream)
            scope.cancel()
            await stream.receive()
        await stepped(stream)
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]
        return scope.cancelled_caught

    assert await run_driven(handler)


async def test_an_anyio_task_group_sends() -> None:
    async def handler(stream: Stream) -> bytes:
        await stepped(stream)
        async with anyio.create_task_group() as group:
            group.start_soon(stream.send, b"1")
            group.start_soon(stream.send, b"2")
            return await stream.receive_exactly(2)

    assert await run_driven(handler) == b"12"


# Several tasks and one stream.


@pytest.mark.parametrize("is_driven", [True, False])
async def test_two_tasks_cannot_receive(is_driven: bool) -> None:
    async with connected() as (stream, peer):

        async def handler(stream: Stream) -> bytes:
            return await stream.receive()

        first = driven(stream, handler) if is_driven else asyncio.create_task(handler(stream))  # type: ignore[arg-type]
        await wait_until(lambda: stream.receiving)
        for operation in (
            stream.receive,
            lambda: stream.receive_exactly(1),
            lambda: stream.receive_until(b"\n", 10),
            lambda: anext(stream.lines()),
            lambda: anext(aiter(stream)),
            lambda: stream.start_tls(server_side=False),
        ):
            with pytest.raises(BusyResourceError):
                await operation()  # type: ignore[no-untyped-call]
        await peer.send(b"first")
        assert await within(first) == b"first"


@pytest.mark.parametrize("is_driven", [True, False])
async def test_receiving_in_a_task_of_the_handler(is_driven: bool) -> None:
    async def handler(stream: Stream) -> list[bytes]:
        got = []
        for _ in range(3):
            await stepped(stream)
            receiving = asyncio.create_task(stream.receive())
            done, _ = await asyncio.wait({receiving}, timeout=2 * MS)
            assert not done
            await stream.send(b"y")
            done, _ = await asyncio.wait({receiving})
            got.append(receiving.result())
        return got

    async with connected() as (stream, peer):
        task = driven(stream, handler) if is_driven else asyncio.create_task(handler(stream))  # type: ignore[arg-type]
        for _ in range(6):
            await peer.send(await within(peer.receive()))
        assert await within(task) == [b"y"] * 3


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly from Python 3.12 on")
@pytest.mark.parametrize("cancel", ["nobody", "reader", "oneself"])
async def test_a_task_that_starts_eagerly_in_the_middle_of_a_step(cancel: str) -> None:
    """It waits for the stream before the handler's own task has taken over."""
    async with connected() as (stream, peer):

        async def handler(stream: Stream) -> list[Any]:
            task: Any = asyncio.current_task()
            await stepped(stream)
            reader: asyncio.Task[bytes] = asyncio.Task(  # type: ignore[call-arg]
                stream.receive(), loop=asyncio.get_running_loop(), eager_start=True
            )
            assert stream.receiving
            if cancel == "reader":
                reader.cancel()
            elif cancel == "oneself":
                task.cancel()
            seen: list[Any] = []
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                seen.append(task.uncancel())
            await asyncio.sleep(2 * MS)
            if cancel == "reader":
                assert reader.cancelled()
            else:
                assert not reader.done()
                await stream.send(b"y")
                assert await reader == b"y"
            await stepped(stream)
            return seen

        task = driven(stream, handler)
        for _ in range(2 if cancel == "reader" else 3):
            await peer.send(await within(peer.receive()))
        assert await within(task) == ([0] if cancel == "oneself" else [])


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks start eagerly from Python 3.12 on")
async def test_the_eager_task_factory() -> None:
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    def eager(loop: Any, coroutine: Any, *, eager_start: bool | None = None, **options: Any) -> Any:
        return asyncio.Task(coroutine, loop=loop, eager_start=True, **options)  # type: ignore[call-arg]

    loop.set_task_factory(eager)
    try:
        async with Server(echo_in_pairs, "tcp://127.0.0.1:0") as server:
            address: Any = server.addresses[0]
            reader, writer = await asyncio.open_connection(address.host, address.port)
            for number in range(4):
                writer.write(b"%d" % number)
                assert await within(reader.readexactly(1)) == b"%d" % number
            writer.close()
            await writer.wait_closed()
    finally:
        loop.set_task_factory(before)


async def echo_in_pairs(stream: Stream) -> None:
    async for data in stream:
        await stream.send(data)
        await stream.send(await asyncio.create_task(stream.receive()))


async def test_a_task_that_is_left_behind_is_told() -> None:
    """The handler has returned and the connection is over: who still receives must not wait for ever."""
    left: list[asyncio.Task[Any]] = []

    async def handler(stream: Stream) -> None:
        left.append(asyncio.create_task(stream.receive()))
        await asyncio.sleep(0)

    async with Server(handler, "tcp://127.0.0.1:0") as server:
        server.update(linger=0)
        address: Any = server.addresses[0]
        near = socket.socket()
        near.setblocking(False)
        with near:
            await asyncio.get_running_loop().sock_connect(near, (address.host, address.port))
            await wait_until(lambda: left)
            done, _ = await asyncio.wait(left, timeout=2 * SECOND)
            assert done
            assert isinstance(left[0].exception(), anyio.ClosedResourceError)


# Debug mode.


@pytest.mark.parametrize("kind", ["tcp", "tls"])
async def test_debug_mode(kind: str) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 100
    try:

        async def handler(stream: Stream) -> int:
            for _ in range(3):
                await stepped(stream)
                await asyncio.sleep(0)
                with anyio.move_on_after(MS):
                    await stream.receive()
                repr(asyncio.current_task())
            return 1

        assert await run_driven(handler, kind=kind) == 1
    finally:
        loop.set_debug(False)


# Nothing keeps an ended connection alive.


async def last_words(stream: Stream) -> None:
    await stream.send(await stream.receive())


async def until_the_end(stream: Stream) -> None:
    while True:
        await stream.send(await stream.receive())


async def in_lines(stream: Stream) -> None:
    async for line in stream.lines():
        await stream.send(line)


async def with_a_timeout(stream: Stream) -> None:
    for _ in range(2):
        try:
            async with asyncio.timeout(MS):
                await stream.receive_exactly(100)
        except TimeoutError:
            pass
    await until_the_end(stream)


async def in_another_task(stream: Stream) -> None:
    await asyncio.create_task(until_the_end(stream))


async def exactly(stream: Stream) -> None:
    while True:
        await stream.receive_exactly(3)


async def without_end(stream: Stream) -> None:
    with pytest.raises(EndOfStream):
        await until_the_end(stream)
    raise LookupError


@pytest.mark.parametrize(
    "handler", [last_words, until_the_end, in_lines, with_a_timeout, in_another_task, exactly, without_end]
)
@pytest.mark.parametrize("end", ["eof", "reset", "cancel", "abort"])
async def test_a_connection_dies_at_once(handler: Any, end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the help of the garbage collector, which with many connections comes late."""
    monkeypatch.setattr(logging.getLogger("asyncserver"), "disabled", True)  # pytest keeps what is logged
    dead: list[weakref.ref[Any]] = []

    async def watched(stream: Stream) -> None:
        connection = current_connection()
        dead.extend((weakref.ref(stream), weakref.ref(asyncio.current_task())))  # type: ignore[arg-type]
        del connection
        await handler(stream)

    gc.collect()
    gc.disable()
    try:
        # (A timer that was set for lingering is kept by asyncio until it would have been due.)
        timeouts = Timeouts(linger=0 if handler is last_words else 5)
        async with Server(watched, "tcp://127.0.0.1:0", timeouts=timeouts) as server:
            address: Any = server.addresses[0]
            near = socket.socket()
            near.setblocking(False)
            peer = Peer(near)
            await asyncio.get_running_loop().sock_connect(near, (address.host, address.port))
            await peer.send(b"x\n")
            await wait_until(lambda: dead and server.connections)
            if handler is not exactly and handler is not with_a_timeout:
                await within(peer.receive(1))
            if end == "eof":
                await peer.send_eof()
            elif end == "reset":
                peer.reset()
            else:
                for connection in server.connections:
                    if end == "abort":
                        connection.abort()
                    else:
                        connection._task.cancel()
                    del connection
            if end == "cancel":
                peer.close()
            await wait_until(lambda: not len(server.connections))
            peer.close()
            await turns(5)
            await wait_until(lambda: not any(ref() for ref in dead), timeout=SECOND / 2)
    finally:
        gc.enable()


# The whole of it at random: driven and plainly awaited it has to be the same.


class Script:
    """A handler made of random steps, all of which have one possible result."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trace: list[Any] = []

    async def __call__(self, stream: Stream, peer: Peer) -> Any:
        self.random = random.Random(self.seed)
        self.stream, self.peer = stream, peer
        self.loop = asyncio.get_running_loop()
        self.me: Any = asyncio.current_task()
        for _ in range(self.random.randrange(3, 25)):
            step = self.random.choice(self.STEPS)
            try:
                result = await getattr(self, step)()
            except asyncio.CancelledError as exc:
                result = ("cancelled", exc.args)
                if self.random.random() < 0.8:
                    self.me.uncancel()
            except (TimeoutError, ExceptionGroup) as exc:
                result = repr(exc)
            self.trace.append((step, result, self.me.cancelling(), asyncio.current_task() is self.me))
        if self.random.random() < 0.2:
            self.me.cancel("last")
        if self.random.random() < 0.3:
            raise LookupError(self.seed)
        return self.seed

    STEPS = (
        "receive", "receive", "receive", "late", "cancel_and_data", "data_and_cancel", "cancelled", "myself",
        "myself_elsewhere", "sleep0", "task", "timeout", "timeout_too_late", "group", "scope", "child",
        "shielded", "waiting_child",
    )  # fmt: skip

    def data(self) -> bytes:
        return self.random.randbytes(self.random.randrange(1, 5))

    async def receive(self) -> bytes:
        data = self.data()
        self.peer.send_now(data)
        return await self.stream.receive_exactly(len(data))

    async def late(self) -> bytes:
        data = self.data()
        handle = self.loop.call_later(self.random.choice((0, 0.0005)), self.peer.send_now, data)
        try:
            return await self.stream.receive_exactly(len(data))
        except asyncio.CancelledError:
            handle.cancel()  # Nothing had been sent: the cancellation was under way before.
            raise

    async def cancel_and_data(self) -> bytes:
        data = self.data()
        self.loop.call_soon(self.me.cancel, "x")
        self.loop.call_soon(self.peer.send_now, data)
        try:
            return await self.stream.receive_exactly(len(data))
        except asyncio.CancelledError:
            self.trace.append(await self.stream.receive_exactly(len(data)))
            raise

    async def data_and_cancel(self) -> bytes:
        """The bytes may come before or after the cancellation; twice in a row there is one way only."""
        data = self.data()
        self.peer.send_now(data)
        self.loop.call_soon(self.me.cancel)
        got = b""
        try:
            got = await self.stream.receive_exactly(len(data))
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            got = got or await self.stream.receive_exactly(len(data))
            self.trace.append(got)
            raise
        return got

    async def cancelled(self) -> None:
        self.loop.call_soon(self.me.cancel, "y")
        await self.stream.receive()

    async def myself(self) -> None:
        self.me.cancel("z")
        await self.stream.receive()

    async def myself_elsewhere(self) -> None:
        self.me.cancel("w")
        await asyncio.Event().wait()

    async def sleep0(self) -> None:
        await asyncio.sleep(0)

    async def task(self) -> Any:
        return await asyncio.create_task(asyncio.sleep(0, 5))

    async def timeout(self) -> None:
        async with asyncio.timeout(0.0005):
            await self.stream.receive()

    async def timeout_too_late(self) -> bytes:
        async with asyncio.timeout(5):
            return await self.late()

    async def group(self) -> bytes:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
            if self.random.random() < 0.3:
                group.create_task(self.fail())
                await self.stream.receive()
            return await self.late()

    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError

    async def scope(self) -> bool:
        with anyio.CancelScope() as scope:
            if self.random.random() < 0.5:
                self.loop.call_soon(scope.cancel)
            else:
                scope.cancel()
            await self.stream.receive()
        return scope.cancelled_caught

    async def child(self) -> bytes:
        data = self.data()
        child = asyncio.create_task(self.stream.receive_exactly(len(data)))
        await asyncio.sleep(0)
        self.peer.send_now(data)
        return await child

    async def shielded(self) -> bytes:
        data = self.data()
        child = asyncio.ensure_future(self.stream.receive_exactly(len(data)))
        self.loop.call_soon(self.me.cancel)
        try:
            await asyncio.shield(child)
        except asyncio.CancelledError:
            self.peer.send_now(data)
            self.trace.append(await child)
            raise
        return b"never"

    async def waiting_child(self) -> Any:
        child = asyncio.create_task(self.stream.receive())
        done, _ = await asyncio.wait({child}, timeout=0.0005)
        child.cancel()
        await asyncio.wait({child})
        return len(done), child.cancelled()


async def perform(seed: int, *, is_driven: bool) -> list[Any]:
    script = Script(seed)

    async def live(stream: Stream, peer: Peer) -> Any:
        try:
            if is_driven:
                return await drive(stream, script(stream, peer))
            return await script(stream, peer)
        except (Exception, asyncio.CancelledError) as exc:
            script.trace.append(repr(exc))
        finally:
            stream.forget_handler()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                script.trace.append("cancelled in the end")

    async with connected("unix") as (stream, peer):
        task = asyncio.create_task(live(stream, peer))
        done, _ = await asyncio.wait({task}, timeout=2 * SECOND)
        if not done:
            script.trace.append("stuck")
            task.cancel()
        result = await asyncio.gather(task, return_exceptions=True)
        return [*script.trace, repr(result)]


@pytest.mark.parametrize("seeds", [range(start, start + 40) for start in range(0, 200, 40)], ids=str)
async def test_random_scripts_driven_and_not(seeds: range) -> None:
    for seed in seeds:
        assert await perform(seed, is_driven=True) == await perform(seed, is_driven=False), seed
