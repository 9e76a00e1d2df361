from __future__ import annotations

import asyncio
import contextvars
import logging
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asyncserver import Datagram, DatagramLimits, DatagramServer, DatagramTimeouts, OptionError
from tests.clients import complaints, ignore_cancellation
from tests.conftest import LOOP_FACTORIES
from tests.datagrams import UDP, Peer, adds_up, echo_datagram, ended, serving
from tests.waiting import MS, wait_until, within

Step = Callable[[], Awaitable[object]]


def own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


class Gate:
    """A handler that waits at a gate, each packet at its own; ``now`` is how many do."""

    def __init__(self) -> None:
        self.gates: dict[bytes, asyncio.Event] = {}
        self.begun: list[bytes] = []
        self.ended: list[bytes] = []
        self.most = 0

    async def __call__(self, datagram: Datagram) -> None:
        name = datagram.data
        self.begun.append(name)
        gate = self.gates[name] = asyncio.Event()
        self.most = max(self.most, len(self.gates))
        try:
            await gate.wait()
        finally:
            del self.gates[name]
            self.ended.append(name)

    @property
    def now(self) -> list[bytes]:
        return sorted(self.gates)

    def open(self, *names: bytes) -> None:
        for name in names or list(self.gates):
            self.gates[name].set()


def numbered(count: int, prefix: bytes = b"") -> list[bytes]:
    return [b"%b%03d" % (prefix, number) for number in range(count)]


# What a handler may wait for.


async def wait_for_a_lock() -> None:
    lock = asyncio.Lock()
    await lock.acquire()
    asyncio.get_running_loop().call_later(0.001, lock.release)
    async with lock:
        pass


async def wait_for_a_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, None)
    await future


async def wait_for_a_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        asyncio.get_running_loop().call_later(0.001, theirs.send, b"x")
        assert await asyncio.get_running_loop().sock_recv(ours, 1) == b"x"


async def wait_for_a_thread() -> None:
    assert await asyncio.to_thread(lambda: 5) == 5


async def wait_within_a_timeout() -> None:
    async with asyncio.timeout(60):
        await asyncio.sleep(0.001)
    await asyncio.wait_for(asyncio.sleep(0), 60)


async def wait_until_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.sleep(60)
    assert own_task().cancelling() == 0


async def wait_for_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(asyncio.sleep(0.001, "done"))
        group.create_task(asyncio.sleep(0))
    assert task.result() == "done"


async def wait_for_a_group_that_fails() -> None:
    async def fail() -> None:
        raise KeyError

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(60))
            group.create_task(fail())
    await asyncio.sleep(0)
    if sys.version_info >= (3, 13):  # Before, groups did not take their cancellation back.
        assert own_task().cancelling() == 0


async def wait_in_cancel_scopes() -> None:
    with anyio.move_on_after(0.001) as scope:
        await anyio.sleep(60)
    assert scope.cancelled_caught
    with anyio.move_on_after(60) as scope:
        await anyio.lowlevel.checkpoint()
    assert not scope.cancelled_caught
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anyio.sleep(60)
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError), anyio.fail_after(0.001):
        await asyncio.Event().wait()
    with anyio.move_on_after(0):
        await anyio.sleep(60)
    await asyncio.sleep(0)


async def wait_for_an_anyio_group() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep, 60)
        group.start_soon(anyio.sleep, 0)
        await anyio.sleep(0.001)
        group.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint()


async def wait_for_eager_tasks() -> None:
    if sys.version_info >= (3, 12):
        loop, own = asyncio.get_running_loop(), own_task()
        seen: list[object] = []

        async def child(*, wait: bool) -> None:
            seen.append(asyncio.current_task())
            if wait:
                await asyncio.sleep(0)

        at_once: Any = {"loop": loop, "eager_start": True}
        quick = asyncio.Task(child(wait=False), **at_once)
        assert quick.done()
        assert own_task() is own
        slow = asyncio.Task(child(wait=True), **at_once)
        assert own_task() is own
        await slow
        assert seen == [quick, slow]
    await asyncio.sleep(0)


WAITS: list[Step] = [
    wait_for_a_lock,
    wait_for_a_future,
    wait_for_a_socket,
    wait_for_a_thread,
    wait_within_a_timeout,
    wait_until_a_timeout,
    wait_for_a_group,
    wait_for_a_group_that_fails,
    wait_in_cancel_scopes,
    wait_for_an_anyio_group,
    wait_for_eager_tasks,
]


async def test_handlers_that_never_wait() -> None:
    seen: list[bytes] = []
    tasks: set[object] = set()

    async def handler(datagram: Datagram) -> None:
        tasks.add(asyncio.current_task())
        seen.append(datagram.data)
        await datagram.reply(datagram.data)

    async with serving(handler, limits=DatagramLimits(max_handlers=1, max_queue=0)) as server:
        with Peer(server) as peer:
            peer.send(*numbered(200))
            now = await ended(server, 200)
            assert (now.handled, now.dropped) == (200, 0)
            await wait_until(lambda: server.statistics().sent == 200)
            assert peer.received() == numbered(200) == seen
    assert len(tasks) == 1
    assert None not in tasks


@pytest.mark.parametrize("wait", WAITS, ids=lambda wait: wait.__name__)
@pytest.mark.parametrize("first", [True, False], ids=["at once", "later"])
async def test_handlers_that_wait(wait: Step, *, first: bool) -> None:
    """What waits at once begins without a task of its own; later it is in one."""
    tasks: list[object] = []

    async def handler(datagram: Datagram) -> None:
        own = own_task()
        assert own.get_loop() is asyncio.get_running_loop()
        if not first:
            await asyncio.sleep(0)
            assert own_task() is own
        await wait()
        assert own_task() is own
        tasks.append(own)
        await datagram.reply(datagram.data)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*numbered(5))
        assert sorted([await peer.receive() for _ in range(5)]) == numbered(5)
        assert (await ended(server, 5)).handled == 5
    assert len(set(tasks)) == 5


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks begin eagerly since Python 3.12")
@pytest.mark.asyncio(loop_factories=["asyncio"])  # That of uvloop cannot have this factory in Python 3.13.
async def test_all_tasks_begin_eagerly() -> None:
    factory: Any = getattr(asyncio, "eager_task_factory")  # noqa: B009 - 3.11 has none
    asyncio.get_running_loop().set_task_factory(factory)

    async def handler(datagram: Datagram) -> None:
        own = own_task()
        await wait_for_a_group()
        assert own_task() is own
        await wait_for_a_group_that_fails()
        await datagram.reply(datagram.data)

    async with serving(handler) as server, Peer(server) as peer:
        assert await peer.ask(b"x") == b"x"


async def test_handlers_of_both_kinds_in_one_batch() -> None:
    async def handler(datagram: Datagram) -> None:
        if datagram.data[-1] % 2:
            await asyncio.sleep(0)
        await datagram.reply(datagram.data)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*numbered(50))
        assert sorted([await peer.receive() for _ in range(50)]) == numbered(50)
        assert (await ended(server, 50)).handled == 50


async def test_the_counters_in_a_handler() -> None:
    """They add up there, too: what is being served is running, and the rest of the batch is queued."""
    seen: list[tuple[int, int, int]] = []

    async def handler(datagram: Datagram) -> None:
        for _ in range(2):
            now = adds_up(datagram.server)
            seen.append((now.handled, now.running, now.queued))
            if datagram.data != b"slow":
                break
            await asyncio.sleep(0)
        if datagram.data == b"fail":
            raise ValueError

    def on_error(datagram: Any, exc: Exception) -> None:
        now = adds_up(datagram.server)
        assert (now.failed, now.running) == (1, 0)

    async with serving(handler, on_error=on_error) as server, Peer(server) as peer:
        peer.send(b"a", b"b", b"fail", b"c")
        await ended(server, 4)
        assert seen == [(0, 1, 3), (1, 1, 2), (2, 1, 1), (2, 1, 0)]
        peer.send(b"slow")
        await ended(server, 5)
        assert seen[4:] == [(3, 1, 0)] * 2


# Context variables.

VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")


@pytest.mark.parametrize("wait_before", [True, False])
@pytest.mark.parametrize("wait_after", [True, False])
async def test_what_a_handler_sets_is_its_own(*, wait_before: bool, wait_after: bool) -> None:
    VARIABLE.set("outside")
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> None:
        if wait_before:
            await asyncio.sleep(0)
        seen.append(VARIABLE.get())
        VARIABLE.set(datagram.data)
        if wait_after:
            await asyncio.sleep(0)
        assert VARIABLE.get() == datagram.data

    async with serving(handler) as server, Peer(server) as peer:
        for round_ in range(1, 4):
            peer.send(*numbered(20))
            await ended(server, 20 * round_)
    assert seen == ["outside"] * 60
    assert server.statistics().handled == 60


async def test_what_a_handler_sets_and_raises() -> None:
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> None:
        seen.append(VARIABLE.get("nothing"))
        VARIABLE.set(datagram.data)
        raise asyncio.CancelledError if datagram.data.endswith(b"1") else ValueError

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*numbered(12))
        now = await ended(server, 12)
        assert (now.cancelled, now.failed) == (2, 10)
    assert seen == ["nothing"] * 12


async def test_values_that_cannot_be_compared() -> None:
    class Odd:
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            raise ValueError("ambiguous")

    VARIABLE.set(outside := Odd())
    seen: list[Any] = []

    async def handler(datagram: Datagram) -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set(Odd())

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*numbered(10))
        assert (await ended(server, 10)).handled == 10
    assert all(each is outside for each in seen)


async def test_variables_of_the_program_are_seen() -> None:
    VARIABLE.set("outside")

    async def handler(datagram: Datagram) -> None:
        token = VARIABLE.set("inside")
        VARIABLE.reset(token)
        await datagram.reply(VARIABLE.get().encode())

    async with serving(handler) as server, Peer(server) as peer:
        VARIABLE.set("changed after the start")
        assert [await peer.ask(b"x") for _ in range(3)] == [b"outside"] * 3


# Handlers that are cancelled.


@pytest.mark.parametrize("wait_before", [True, False])
@pytest.mark.parametrize("wait_after", [True, False])
async def test_a_handler_that_cancels_its_own_task(*, wait_before: bool, wait_after: bool) -> None:
    async def handler(datagram: Datagram) -> None:
        if wait_before:
            await asyncio.sleep(0)
        assert own_task().cancelling() == 0
        if datagram.data.endswith(b"5"):
            own_task().cancel()
        if wait_after:
            await asyncio.sleep(0)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*numbered(20))
        now = await ended(server, 20)
        assert (now.cancelled, now.handled) == (2, 18)


@pytest.mark.parametrize("wait_before", [True, False])
async def test_a_handler_that_takes_its_cancellation_back(*, wait_before: bool) -> None:
    async def handler(datagram: Datagram) -> None:
        if wait_before:
            await asyncio.sleep(0)
        own_task().cancel()
        own_task().uncancel()

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*numbered(3))
        now = await ended(server, 3)
        assert (now.handled, now.cancelled) == ((3, 0) if sys.version_info >= (3, 13) else (0, 3))


async def test_a_handler_that_is_cancelled_from_outside() -> None:
    tasks: dict[bytes, asyncio.Task[Any]] = {}
    cleaned: list[bytes] = []

    async def handler(datagram: Datagram) -> None:
        tasks[datagram.data] = own_task()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(datagram.data)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"a", b"b")
        await wait_until(lambda: adds_up(server).running == 2)
        tasks[b"a"].cancel()
        await wait_until(lambda: adds_up(server).cancelled == 1)
        assert cleaned == [b"a"]
        assert adds_up(server).running == 1
    assert cleaned == [b"a", b"b"]
    assert server.statistics().cancelled == 2


async def test_somebody_cancels_all_tasks() -> None:
    """Handlers end, and the server goes on."""
    gate = Gate()
    tasks: list[asyncio.Task[Any]] = []

    async def handler(datagram: Datagram) -> None:
        tasks.append(own_task())
        if datagram.data == b"wait":
            await gate(datagram)
        await datagram.reply(datagram.data)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"wait")
        await wait_until(lambda: adds_up(server).running == 1)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        await wait_until(lambda: adds_up(server).cancelled == 1)
        for _ in range(5):
            assert await peer.ask(b"x") == b"x"
        # Without a task for each again.
        assert tasks[-1] is tasks[-2]


async def test_a_handler_that_is_too_slow() -> None:
    cleaned: list[bytes] = []

    async def handler(datagram: Datagram) -> None:
        if datagram.data == b"quick":
            await asyncio.sleep(0)
            return
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(datagram.data)

    timeouts = DatagramTimeouts(handler=20 * MS)
    async with serving(handler, timeouts=timeouts) as server, Peer(server) as peer:
        peer.send(b"slow", b"quick", b"slow too")
        now = await ended(server, 3)
        assert (now.cancelled, now.handled) == (2, 1)
        assert cleaned == [b"slow", b"slow too"]
        server.update(handler=None)
        peer.send(b"slow")
        await wait_until(lambda: adds_up(server).running == 1)
        await asyncio.sleep(60 * MS)
        assert adds_up(server).running == 1


# Handlers that raise.


class Strange(BaseException):
    """Neither a failure nor the end of a program."""


@pytest.mark.parametrize("later", [True, False], ids=["later", "at once"])
async def test_handlers_that_raise(caplog: pytest.LogCaptureFixture, *, later: bool) -> None:
    told: list[tuple[bytes, Exception]] = []

    async def handler(datagram: Datagram) -> None:
        if later:
            await asyncio.sleep(0)
        if datagram.data == b"cancelled":
            raise asyncio.CancelledError
        if datagram.data != b"fine":
            raise ValueError(datagram.data)

    def on_error(datagram: Any, exc: Exception) -> None:
        told.append((datagram.data, exc))
        raise KeyError("the hook")

    async with serving(handler, on_error=on_error) as server, Peer(server) as peer:
        peer.send(b"one", b"fine", b"cancelled", b"two")
        now = await ended(server, 4)
        assert (now.handled, now.failed, now.cancelled) == (1, 2, 1)
    assert [data for data, _ in told] == [b"one", b"two"]
    assert [exc.args for _, exc in told] == [(b"one",), (b"two",)]
    failures, hooks = complaints(caplog)[::2], complaints(caplog)[1::2]
    assert all("from 127.0.0.1" in each and "the handler failed" in each for each in failures)
    assert hooks == ["the on_error hook failed"] * 2
    assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize("later", [True, False], ids=["later", "at once"])
async def test_a_handler_that_raises_what_is_no_exception(loop_errors: list[str], *, later: bool) -> None:
    async def handler(datagram: Datagram) -> None:
        if later:
            await asyncio.sleep(0)
        raise Strange

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"x", b"y")
        assert (await ended(server, 2)).failed == 2
    assert len(loop_errors) == 2
    assert all("the handler failed" in each for each in loop_errors)
    loop_errors.clear()


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("later", [True, False], ids=["later", "at once"])
def test_a_handler_that_ends_the_program(loop_name: str, kind: type[BaseException], *, later: bool) -> None:
    servers: list[DatagramServer] = []

    async def handler(datagram: Datagram) -> None:
        if later:
            await asyncio.sleep(0)
        if datagram.data == b"end":
            raise kind

    async def main() -> None:
        async with serving(handler) as server, Peer(server) as peer:
            servers.append(server)
            peer.send(b"a", b"end", b"b", b"c")
            await asyncio.sleep(60)

    with pytest.raises(kind), asyncio.Runner(loop_factory=LOOP_FACTORIES[loop_name]) as runner:
        runner.run(main())
    now = adds_up(servers[0])
    assert (now.received, now.failed) == (4, 1)


async def test_a_handler_that_cannot_be_called() -> None:
    class Odd:
        async def __call__(self, datagram: Datagram) -> None:
            """Replaced below."""

        def __getattribute__(self, name: str) -> Any:
            return super().__getattribute__(name)

    async def good(datagram: Datagram) -> None:
        pass

    calls: list[bytes] = []

    def calling(datagram: Datagram) -> Coroutine[Any, Any, None]:
        calls.append(datagram.data)
        if datagram.data == b"bad":
            raise TypeError("cannot be called")
        return good(datagram)

    server = DatagramServer(Odd(), UDP)
    server._packet_handler = calling
    async with server, Peer(server) as peer:
        await asyncio.sleep(0)
        peer.send(b"good", b"bad", b"good")
        now = await ended(server, 3)
        assert (now.handled, now.failed) == (2, 1)
    assert len(calls) == 3


async def test_the_fault_of_a_peer_is_no_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Peers without a name, and peers that are gone, cannot be answered."""
    told: list[Exception] = []

    async def handler(datagram: Datagram) -> None:
        if datagram.data == b"later":
            await gone.wait()
        await datagram.reply(datagram.data)

    def on_error(_: Any, exc: Exception) -> None:
        told.append(exc)

    gone = asyncio.Event()
    async with serving(handler, f"unixgram:{tmp_path}/s", on_error=on_error) as server:
        with Peer(server) as nameless, Peer(server, name=f"{tmp_path}/c") as named:
            nameless.send(b"x")
            assert await named.ask(b"y") == b"y"
            named.send(b"later")
            await wait_until(lambda: adds_up(server).running == 1)
        gone.set()
        now = await ended(server, 3)
        assert (now.handled, now.failed) == (1, 2)
    assert not complaints(caplog)
    assert not told


async def test_a_reply_that_is_too_large_is_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(datagram: Datagram) -> None:
        await datagram.reply(bytes(65_508))

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"x")
        assert (await ended(server, 1)).failed == 1
    assert len(complaints(caplog)) == 1


async def test_a_failure_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(datagram: Datagram) -> None:
        raise ValueError("mine")

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"x")
        await ended(server, 1)
        name = str(peer.port)
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert record.name == "asyncserver"
    assert name in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


# Limits.


@pytest.mark.parametrize("most", [1, 2, 7])
async def test_so_many_handlers_and_no_more(most: int) -> None:
    gate = Gate()
    async with serving(gate, limits=DatagramLimits(max_handlers=most)) as server, Peer(server) as peer:
        peer.send(*numbered(30))
        await wait_until(lambda: adds_up(server).received == 30)
        assert adds_up(server).running == most
        assert adds_up(server).queued == 30 - most
        while gate.gates:
            assert gate.now == sorted(gate.begun)[-len(gate.now) :]
            before = len(gate.ended)
            gate.open(gate.now[0])
            await wait_until(lambda: len(gate.ended) == before + 1)  # noqa: B023
            await wait_until(lambda: len(gate.gates) == min(most, 30 - before - 1))  # noqa: B023
            adds_up(server)
        assert (await ended(server, 30)).handled == 30
    assert gate.most == most
    assert gate.begun == numbered(30)


async def test_any_number_of_handlers() -> None:
    gate = Gate()
    async with serving(gate, limits=DatagramLimits(max_handlers=None)) as server, Peer(server) as peer:
        peer.send(*numbered(150))
        await wait_until(lambda: adds_up(server).running == 150)
        gate.open()
        assert (await ended(server, 150)).handled == 150


@pytest.mark.parametrize(
    ("when_full", "kept"),
    [("drop_newest", slice(1, 6)), ("drop_oldest", slice(25, 30))],
)
@pytest.mark.parametrize("order", ["any", "peer", "strict"])
async def test_which_packets_are_dropped(when_full: Any, kept: slice, order: Any) -> None:
    gate = Gate()
    limits = DatagramLimits(max_handlers=1, max_queue=5, when_full=when_full, order=order)
    async with serving(gate, limits=limits) as server, Peer(server) as peer:
        peer.send(*numbered(30))
        await wait_until(lambda: adds_up(server).received == 30)
        now = adds_up(server)
        assert (now.running, now.queued, now.dropped) == (1, 5, 24)
        expected = [b"000", *numbered(30)[kept]]
        while len(gate.ended) < 6:
            await wait_until(lambda: gate.gates)
            gate.open()
            await asyncio.sleep(0)
        await ended(server, 30)
        assert gate.begun == expected


@pytest.mark.parametrize("when_full", ["drop_newest", "drop_oldest"])
async def test_no_queue(when_full: Any) -> None:
    gate = Gate()
    limits = DatagramLimits(max_handlers=2, max_queue=0, when_full=when_full)
    async with serving(gate, limits=limits) as server, Peer(server) as peer:
        peer.send(*numbered(10))
        await wait_until(lambda: adds_up(server).received == 10)
        assert gate.now == numbered(2)
        assert adds_up(server).dropped == 8
        gate.open()
        await ended(server, 10)
        peer.send(b"again")
        await wait_until(lambda: gate.now == [b"again"])


# Order.


async def test_packets_of_one_peer_are_served_in_their_order() -> None:
    """Whether their handlers wait or not, and those of others beside them."""
    order: dict[int, list[bytes]] = {}
    inside: Counter[int] = Counter()
    beside = 0

    async def handler(datagram: Datagram) -> None:
        nonlocal beside
        port = datagram.peer.port  # type: ignore[union-attr]
        inside[port] += 1
        beside = max(beside, inside.total())
        assert inside[port] == 1
        order.setdefault(port, []).append(datagram.data)
        for _ in range(datagram.data[-1] % 3):
            await asyncio.sleep(0.001)
        inside[port] -= 1

    async with serving(handler, limits=DatagramLimits(order="peer")) as server:
        with Peer(server) as first, Peer(server) as second, Peer(server) as third:
            for number in numbered(50):
                for peer in (first, second, third):
                    peer.send(number)
            assert (await ended(server, 150)).handled == 150
    assert list(order.values()) == [numbered(50)] * 3
    assert beside == 3


async def test_who_sends_much_does_not_keep_others_waiting() -> None:
    gate = Gate()
    limits = DatagramLimits(order="peer", max_handlers=1)
    async with serving(gate, limits=limits) as server, Peer(server) as much, Peer(server) as little:
        much.send(*numbered(20, b"much"))
        await wait_until(lambda: adds_up(server).received == 20)
        little.send(b"little0", b"little1")
        await wait_until(lambda: adds_up(server).received == 22)
        while len(gate.ended) < 22:
            await wait_until(lambda: gate.gates)
            gate.open()
            await asyncio.sleep(0)
        await ended(server, 22)
    assert gate.begun.index(b"little0") <= 2
    assert gate.begun.index(b"little1") <= 4
    assert [each for each in gate.begun if each.startswith(b"much")] == numbered(20, b"much")


async def test_who_has_lost_its_place_in_the_queue_is_served_later() -> None:
    """All that waited of one peer was dropped; its next packet waits for nobody else."""
    gate = Gate()
    limits = DatagramLimits(order="peer", max_handlers=2, max_queue=1, when_full="drop_oldest")
    async with serving(gate, limits=limits) as server:
        with Peer(server) as one, Peer(server) as two, Peer(server) as three:
            one.send(b"one")
            two.send(b"two")
            await wait_until(lambda: gate.now == [b"one", b"two"])
            one.send(b"one more")
            await wait_until(lambda: adds_up(server).queued == 1)
            three.send(b"three")
            await wait_until(lambda: adds_up(server).dropped == 1)
            gate.open(b"two")
            await wait_until(lambda: gate.now == [b"one", b"three"])
            gate.open(b"one")
            await wait_until(lambda: gate.now == [b"three"])
            one.send(b"again")
            await wait_until(lambda: gate.now == [b"again", b"three"])


async def test_strictly_one_after_the_other() -> None:
    gate = Gate()
    async with serving(gate, limits=DatagramLimits(order="strict")) as server:
        with Peer(server) as first, Peer(server) as second:
            for number in numbered(5):
                first.send(b"1" + number)
                second.send(b"2" + number)
            while len(gate.ended) < 10:
                await wait_until(lambda: gate.gates)
                gate.open()
                await asyncio.sleep(0)
            await ended(server, 10)
    assert gate.most == 1
    assert gate.begun == gate.ended == [each + number for number in numbered(5) for each in (b"1", b"2")]


# Changes while it runs.


async def test_more_handlers_from_now_on() -> None:
    gate = Gate()
    async with serving(gate, limits=DatagramLimits(max_handlers=1)) as server, Peer(server) as peer:
        peer.send(*numbered(10))
        await wait_until(lambda: adds_up(server).queued == 9)
        server.update(max_handlers=4)
        await wait_until(lambda: gate.now == numbered(4))
        server.update(max_handlers=2)
        gate.open()
        await wait_until(lambda: gate.now == [b"004", b"005"])
        assert adds_up(server).queued == 4
        server.update(max_handlers=None)
        await wait_until(lambda: len(gate.now) == 6)
        with pytest.raises(OptionError, match="max_handlers"):
            server.update(max_handlers=0)
        assert server.limits.max_handlers is None


async def test_a_shorter_queue_from_now_on() -> None:
    gate = Gate()
    limits = DatagramLimits(max_handlers=1, when_full="drop_oldest")
    async with serving(gate, limits=limits) as server, Peer(server) as peer:
        peer.send(*numbered(10))
        await wait_until(lambda: adds_up(server).queued == 9)
        server.update(max_queue=3)
        assert adds_up(server).queued == 9
        peer.send(b"more")
        await wait_until(lambda: adds_up(server).received == 11)
        assert (adds_up(server).queued, adds_up(server).dropped) == (3, 7)
        server.update(max_queue=5, when_full="drop_newest")
        peer.send(*numbered(4))
        await wait_until(lambda: adds_up(server).received == 15)
        assert (adds_up(server).queued, adds_up(server).dropped) == (5, 9)


@pytest.mark.parametrize("orders", [("any", "peer", "any", "peer"), ("peer", "strict", "peer", "any")])
async def test_another_order_from_now_on(orders: tuple[Any, ...]) -> None:
    """Nothing is lost or served twice, however often it changes."""
    gate = Gate()
    limits = DatagramLimits(order=orders[0], max_handlers=3)
    async with serving(gate, limits=limits) as server, Peer(server) as first, Peer(server) as second:
        number = 0
        for order in orders * 3:
            server.update(order=order)
            for peer, prefix in ((first, b"1"), (second, b"2")):
                peer.send(*[prefix + b"-%03d" % (number + offset) for offset in range(4)])
            number += 4
            await wait_until(lambda: adds_up(server).received == 2 * number)  # noqa: B023
            for name in gate.now[1:]:
                gate.open(name)
            await asyncio.sleep(0)
            adds_up(server)
        while len(gate.ended) < 2 * number:
            await wait_until(lambda: gate.gates)
            gate.open()
            await asyncio.sleep(0)
        assert (await ended(server, 2 * number)).handled == 2 * number
    assert len(set(gate.begun)) == len(gate.begun) == 2 * number


async def test_an_update_by_a_handler() -> None:
    async def handler(datagram: Datagram) -> None:
        datagram.server.update(max_handlers=len(datagram.data), order="peer")
        await asyncio.sleep(0)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"1", b"22", b"333")
        assert (await ended(server, 3)).handled == 3
        assert server.limits == DatagramLimits(max_handlers=3, order="peer")


# The end.


async def test_what_waits_is_dropped_at_the_end() -> None:
    gate = Gate()
    server = DatagramServer(gate, UDP, limits=DatagramLimits(max_handlers=3))
    async with server, Peer(server) as peer:
        await asyncio.sleep(0)
        peer.send(*numbered(10))
        await wait_until(lambda: adds_up(server).received == 10)
    now = adds_up(server)
    assert (now.cancelled, now.dropped, now.queued, now.running) == (3, 7, 0, 0)


@pytest.mark.parametrize("late", ["a bug", "a reply", "nothing"])
async def test_a_handler_that_is_left_behind_raises_later(late: str) -> None:
    """A reply raises that the server is closed, of which nobody need be told."""
    stop = asyncio.Event()
    failures: list[Exception] = []

    async def handler(datagram: Datagram) -> None:
        await ignore_cancellation(stop)
        if late == "a bug":
            raise ValueError(late)
        if late == "a reply":
            await datagram.reply(b"x")

    server = DatagramServer(
        handler,
        UDP,
        timeouts=DatagramTimeouts(grace=10 * MS),
        on_error=lambda _, error: failures.append(error),
    )
    async with server, Peer(server) as peer:
        peer.send(b"x")
        await wait_until(lambda: adds_up(server).running == 1)
    assert adds_up(server).stuck_handlers == 1
    stop.set()
    await wait_until(lambda: not adds_up(server).stuck_handlers)
    assert (server.statistics().cancelled, server.statistics().failed) == (1, 0)
    assert [str(error) for error in failures] == (["a bug"] if late == "a bug" else [])


async def test_echo() -> None:
    async with serving(echo_datagram) as server, Peer(server) as peer:
        assert await within(peer.ask(b"hello")) == b"hello"
