"""What a session's handler sees: packets, in order, until the end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio import BusyResourceError, ClosedResourceError, EndOfStream

from asyncserver import (
    Datagram,
    DatagramServer,
    IPEndpoint,
    PacketTooLargeError,
    PeerUnreachableError,
    Session,
    SessionEnd,
)
from tests.clients import complaints
from tests.sessions import PLACES, Peers, check_balance, serving
from tests.waiting import MS, SECOND, stays, wait_until, within

LINUX = sys.platform.startswith("linux")
linux_only = pytest.mark.skipif(not LINUX, reason="elsewhere a socket that is not connected is not told")


@pytest.fixture
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    with Peers(getattr(request, "param", "udp")) as peers:
        yield peers


def at(*places: str) -> pytest.MarkDecorator:
    """Run the test at each of these."""
    return pytest.mark.parametrize("peers", places, indirect=True)


everywhere = at(*PLACES)
over_ip = at(*(place for place in PLACES if place != "unixgram"))


class Kept:
    """Keeps the sessions that were opened, and runs the same for each."""

    def __init__(self, handler: Callable[[Session], Awaitable[object]]) -> None:
        self.sessions: list[Session] = []
        self._handler = handler

    async def __call__(self, session: Session) -> None:
        self.sessions.append(session)
        await self._handler(session)

    @property
    def reasons(self) -> list[SessionEnd | None]:
        return [session.close_reason for session in self.sessions]


async def count(session: Session) -> None:
    number = 0
    async for datagram in session:
        number += 1
        await session.send(b"%d:%b" % (number, datagram.data))


async def for_ever(session: Session) -> None:
    await asyncio.Event().wait()


# --- whose packets ---


@everywhere
async def test_one_for_each_peer(peers: Peers) -> None:
    handler = Kept(count)
    async with serving(handler, peers.url) as server:
        first, second = peers.new(server), peers.new(server)
        assert await first.ask(b"a") == b"1:a"
        assert await second.ask(b"b") == b"1:b"
        assert await first.ask(b"c") == b"2:c"
        assert await second.ask(b"d") == b"2:d"
        assert server.statistics().sessions == len(handler.sessions) == 2
    assert handler.reasons == [SessionEnd.CANCELLED] * 2


@linux_only
@at(*(place for place in PLACES if place in ("wildcard", "dual")))
async def test_one_for_each_address_that_a_peer_sends_to(peers: Peers) -> None:
    handler = Kept(count)
    async with serving(handler, peers.url) as server:
        peer = peers.new(server, to="127.0.0.2", source="127.0.0.1")
        port = peer.sock.getpeername()[1]
        assert await peer.ask(b"a") == b"1:a"
        peer.sock.connect(("127.0.0.3", port))  # From the same port, and only that one is heard.
        assert await peer.ask(b"b") == b"1:b"
        peer.sock.connect(("127.0.0.2", port))
        assert await peer.ask(b"c") == b"2:c"
        assert [session.local for session in handler.sessions] == [
            IPEndpoint("127.0.0.2", port),
            IPEndpoint("127.0.0.3", port),
        ]
        assert {session.peer for session in handler.sessions} == {IPEndpoint("127.0.0.1", peer.port)}


async def test_endpoints_are_apart(peers: Peers) -> None:
    """The same peer at two sockets of one server."""
    async with serving(count, "udp://127.0.0.1:0", "udp://127.0.0.1:0") as server:
        peer = peers.new(server)
        assert await peer.ask(b"a") == b"1:a"
        peer.sock.connect(("127.0.0.1", server.addresses[1].port))  # type: ignore[union-attr]
        assert await peer.ask(b"b") == b"1:b"
        assert server.statistics().sessions == 2


@linux_only
@at("unixgram")
async def test_unix_peers_without_a_name_are_one(peers: Peers) -> None:
    handler = Kept(for_ever)
    async with serving(handler, peers.url) as server:
        peers.new(server, bound=False).send(b"a")
        peers.new(server, bound=False).send(b"b")
        peers.new(server).send(b"c")
        await wait_until(lambda: server.statistics().received == 3)
        assert [session.queued for session in handler.sessions] == [2, 1]


@everywhere
async def test_what_it_says(peers: Peers) -> None:
    handler = Kept(count)
    async with serving(handler, peers.url) as server:
        peer = peers.new(server)
        before = time.time()
        await peer.ask(b"a")
        [session] = handler.sessions
        assert before - 20 * MS <= session.opened_at <= time.time()
        assert 0 <= session.age < 10 * SECOND
        assert session.server is server
        assert session.endpoint is server.endpoints[0]
        assert session.close_reason is None
        assert session.queued == 0
        if isinstance(session.peer, IPEndpoint):
            assert session.peer.port == peer.port
        assert repr(session) == f"<Session of {session.peer} open>"
    assert repr(session) == f"<Session of {session.peer} cancelled>"


# --- receiving ---


@everywhere
async def test_packets_wait_in_order_while_the_handler_is_busy(peers: Peers) -> None:
    go_on = asyncio.Event()

    async def handler(session: Session) -> None:
        await go_on.wait()
        async for datagram in session:
            await session.send(datagram.data)

    async with serving(handler, peers.url) as server:
        peer = peers.new(server)
        packets = [b"%d" % number for number in range(5)]
        peer.send(*packets)
        await wait_until(lambda: server.statistics().queued == 5)
        go_on.set()
        assert [await peer.receive() for _ in packets] == packets
        assert server.statistics().handled == 5


@pytest.mark.parametrize("when_full", ["drop_newest", "drop_oldest"])
async def test_full_queue(peers: Peers, when_full: str) -> None:
    go_on = asyncio.Event()

    async def handler(session: Session) -> None:
        await go_on.wait()
        async for datagram in session:
            await session.send(datagram.data)

    async with serving(handler, session_queue=3, when_full=when_full) as server:
        peer, other = peers.new(server), peers.new(server)
        peer.send(*(b"%d" % number for number in range(10)))
        other.send(b"other")
        await wait_until(lambda: server.statistics().received == 11)
        assert (server.statistics().dropped, server.statistics().queued) == (7, 4)
        check_balance(server)
        go_on.set()
        kept = [await peer.receive() for _ in range(3)]
        assert kept == ([b"0", b"1", b"2"] if when_full == "drop_newest" else [b"7", b"8", b"9"])
        assert await other.receive() == b"other"


async def test_shortened_queue(peers: Peers) -> None:
    handler = Kept(for_ever)
    async with serving(handler, session_queue=8, when_full="drop_oldest") as server:
        peer = peers.new(server)
        peer.send(*[b"x"] * 8)
        await wait_until(lambda: server.statistics().queued == 8)
        server.update(session_queue=2)
        peer.send(b"y")
        await wait_until(lambda: server.statistics().received == 9)
        assert (server.statistics().queued, server.statistics().dropped) == (2, 7)


@everywhere
async def test_receive_until_the_end(peers: Peers) -> None:
    ends: list[type[Exception]] = []

    async def handler(session: Session) -> None:
        with pytest.raises(EndOfStream):
            while True:
                await session.send((await session.receive()).data)
        with pytest.raises(EndOfStream):
            await session.receive()
        assert [datagram async for datagram in session] == []
        ends.append(EndOfStream)

    async with serving(handler, peers.url) as server:
        peer = peers.new(server)
        assert await peer.ask(b"a") == b"a"
        assert (await server.drain()).idle == 1
    assert ends == [EndOfStream]


@pytest.mark.parametrize("how", ["asyncio", "anyio", "wait_for", "task", "anext"])
async def test_receive_with_a_timeout_again_and_again(peers: Peers, how: str) -> None:
    """None of the packets is lost, whatever it comes together with."""
    received: list[bytes] = []
    timeouts = 0

    async def receive(session: Session) -> Datagram | None:
        delay = random.uniform(0, 2) * MS
        if how == "asyncio":
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    return await session.receive()
        elif how == "anyio":
            with anyio.move_on_after(delay):
                return await session.receive()
        elif how == "task":
            task = asyncio.create_task(session.receive())
            await asyncio.wait([task], timeout=delay)
            if not task.cancel():
                return task.result()
            with suppress(asyncio.CancelledError):
                return await task
        else:
            with suppress(TimeoutError):
                waits = session.receive() if how == "wait_for" else anext(session)
                return await asyncio.wait_for(waits, delay)
        return None

    async def handler(session: Session) -> None:
        nonlocal timeouts
        while len(received) < 200:
            datagram = await receive(session)
            if datagram is None:
                timeouts += 1
            else:
                received.append(datagram.data)

    async with serving(handler) as server:
        peer = peers.new(server)
        for number in range(200):
            peer.send(b"%d" % number)
            await asyncio.sleep(random.uniform(0, 2) * MS)
        await wait_until(lambda: len(received) == 200)
    assert received == [b"%d" % number for number in range(200)]
    assert timeouts


@pytest.mark.parametrize("packet_first", [True, False])
async def test_cancelled_together_with_a_packet(peers: Peers, packet_first: bool) -> None:
    """In the same turn of the loop, in either order."""
    received: list[bytes] = []
    cancelled = 0

    async def receive_all(session: Session) -> None:
        nonlocal cancelled
        while True:
            try:
                received.append((await session.receive()).data)
            except asyncio.CancelledError:
                cancelled += 1
            except EndOfStream:
                break

    handler = Kept(receive_all)
    async with serving(handler) as server:
        peer = peers.new(server)
        peer.send(b"first")
        await wait_until(lambda: received)
        [session] = handler.sessions
        loop, endpoint = asyncio.get_running_loop(), server.endpoints[0]
        assert session.task is not None
        calls = [endpoint.on_readable, session.task.cancel]
        peer.send(b"second")
        for call in calls if packet_first else reversed(calls):
            loop.call_soon(call)
        await wait_until(lambda: len(received) == 2)
        assert (received, cancelled) == ([b"first", b"second"], 1)
        assert (await server.drain()).clean


async def test_two_tasks_cannot_receive(peers: Peers) -> None:
    async def handler(session: Session) -> None:
        await session.receive()
        other = asyncio.create_task(session.receive())
        await asyncio.sleep(0)
        with pytest.raises(BusyResourceError):
            await session.receive()
        with pytest.raises(BusyResourceError):
            await anext(session)
        await session.send(b"busy")
        await session.send((await other).data)

    async with serving(handler) as server:
        peer = peers.new(server)
        assert await peer.ask(b"a") == b"busy"
        assert await peer.ask(b"b") == b"b"
        await wait_until(lambda: server.statistics().ended_sessions == {SessionEnd.HANDLER_RETURNED: 1})


@everywhere
async def test_another_task_receives_and_sends(peers: Peers) -> None:
    async def handler(session: Session) -> None:
        inbox: asyncio.Queue[bytes] = asyncio.Queue()

        async def read() -> None:
            async for datagram in session:
                inbox.put_nowait(datagram.data)

        async def write() -> None:
            for _ in range(2):
                await session.send(await inbox.get())

        async with asyncio.TaskGroup() as group:
            reader = group.create_task(read())
            await group.create_task(write())
            reader.cancel()

    async with serving(handler, peers.url) as server:
        peer = peers.new(server)
        assert await peer.ask(b"a") == b"a"
        assert await peer.ask(b"b") == b"b"
        await wait_until(lambda: server.statistics().ended_sessions == {SessionEnd.HANDLER_RETURNED: 1})


async def test_anyio_task_group_in_a_session(peers: Peers) -> None:
    async def handler(session: Session) -> None:
        async def tick() -> None:
            while True:
                await asyncio.sleep(1 * MS)
                await session.send(b"tick")

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            async for datagram in session:
                if datagram.data == b"stop":
                    group.cancel_scope.cancel()
        await session.send(b"over")

    async with serving(handler) as server:
        peer = peers.new(server)
        assert await peer.ask(b"go") == b"tick"
        peer.send(b"stop")
        while (answer := await peer.receive()) == b"tick":
            pass
        assert answer == b"over"


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python has eager tasks since 3.12")
async def test_eager_tasks_receive(peers: Peers) -> None:
    async def handler(session: Session) -> None:
        loop = asyncio.get_running_loop()
        while True:
            receiving: asyncio.Task[Datagram] = asyncio.Task(session.receive(), loop=loop, eager_start=True)  # type: ignore[call-arg, unused-ignore]
            await session.send((await receiving).data)

    async with serving(handler) as server:
        peer = peers.new(server)
        for packet in (b"a", b"b", b"c"):
            assert await peer.ask(packet) == packet


async def test_contexts_are_apart(peers: Peers) -> None:
    variable = contextvars.ContextVar("variable", default=b"unset")

    async def handler(session: Session) -> None:
        async for datagram in session:
            await session.send(variable.get())
            variable.set(datagram.data)

    async with serving(handler) as server:
        first, second = peers.new(server), peers.new(server)
        assert await first.ask(b"a") == b"unset"
        assert await second.ask(b"b") == b"unset"
        assert await first.ask(b"c") == b"a"
        assert await second.ask(b"d") == b"b"
    assert variable.get() == b"unset"


# --- closing ---


@everywhere
async def test_closes_itself(peers: Peers) -> None:
    go_on = asyncio.Event()

    async def close(session: Session) -> None:
        assert (await session.receive()).data == b"a"
        await session.aclose()
        await session.aclose()
        assert session.close_reason is SessionEnd.CLOSED
        with pytest.raises(ClosedResourceError):
            await session.send(b"too late")
        with pytest.raises(ClosedResourceError):
            await session.receive()
        assert [datagram async for datagram in session] == []
        await go_on.wait()

    handler = Kept(close)
    async with serving(handler, peers.url) as server:
        peer = peers.new(server)
        peer.send(b"a")
        await wait_until(lambda: handler.reasons == [SessionEnd.CLOSED])
        assert server.statistics().sessions == 1
        peer.send(b"a")
        await wait_until(lambda: handler.reasons == [SessionEnd.CLOSED] * 2)
        go_on.set()
        await wait_until(lambda: server.statistics().ended_sessions == {SessionEnd.CLOSED: 2})
        assert server.statistics().sessions == 0


async def test_closing_drops_what_was_not_received(peers: Peers) -> None:
    go_on = asyncio.Event()

    async def handler(session: Session) -> None:
        await go_on.wait()
        await session.aclose()

    async with serving(handler) as server:
        peers.new(server).send(b"a", b"b")
        await wait_until(lambda: server.statistics().queued == 2)
        go_on.set()
        await wait_until(lambda: server.statistics().dropped == 2)
        assert server.statistics().handled == 0


@pytest.mark.parametrize("iterates", [True, False])
async def test_closed_by_another_task(peers: Peers, caplog: pytest.LogCaptureFixture, iterates: bool) -> None:
    """Who waits is woken; that nothing more can be received is no error of the handler."""

    async def receive(session: Session) -> None:
        while True:
            await session.receive()

    handler = Kept(count if iterates else receive)
    async with serving(handler) as server:
        peers.new(server).send(b"a")
        await wait_until(lambda: server.statistics().handled == 1)
        await handler.sessions[0].aclose()
        await wait_until(lambda: server.statistics().ended_sessions == {SessionEnd.CLOSED: 1})
    assert complaints(caplog) == []


async def test_tasks_that_the_handler_leaves_behind(peers: Peers) -> None:
    """Whoever waits for a packet when the handler returns would wait for ever."""
    left: list[asyncio.Task[Any]] = []

    async def leave_behind(session: Session) -> None:
        await session.receive()
        left.append(asyncio.create_task(session.receive()))
        await asyncio.sleep(0)

    handler = Kept(leave_behind)
    async with serving(handler) as server:
        peers.new(server).send(b"a")
        await wait_until(lambda: left)
        with pytest.raises(ClosedResourceError):
            await within(left[0])
        with pytest.raises(ClosedResourceError):
            await handler.sessions[0].send(b"too late")
        assert handler.reasons == [SessionEnd.HANDLER_RETURNED]


async def test_too_large_to_send(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: Session) -> None:
        await session.receive()
        with pytest.raises(PacketTooLargeError):
            await session.send(bytes(70_000))
        await session.send(b"small")

    async with serving(handler) as server:
        assert await peers.new(server).ask(b"a") == b"small"
    assert complaints(caplog) == []


# --- peers that cannot be reached ---


@linux_only
@over_ip
async def test_unreachable_reaches_the_session_that_it_concerns(
    peers: Peers, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Kept(count)
    async with serving(handler, peers.url) as server:
        gone, other = peers.new(server), peers.new(server)
        await gone.ask(b"a")
        await other.ask(b"b")
        gone.leave()
        await handler.sessions[0].send(b"nobody is there")
        await wait_until(lambda: server.statistics().ended_sessions == {SessionEnd.UNREACHABLE: 1})
        assert await other.ask(b"c") == b"2:c"
        assert server.statistics().network_errors == 1
    assert handler.reasons == [SessionEnd.UNREACHABLE, SessionEnd.CANCELLED]
    assert complaints(caplog) == []


@linux_only
@at("wildcard")
async def test_unreachable_for_one_local_address(peers: Peers) -> None:
    """The same peer has talked to two addresses of a wildcard bind."""
    handler = Kept(count)
    async with serving(handler, peers.url) as server:
        peer = peers.new(server, to="127.0.0.2", source="127.0.0.1")
        await peer.ask(b"a")
        peer.sock.connect(("127.0.0.3", peer.sock.getpeername()[1]))
        await peer.ask(b"b")
        peer.leave()
        await handler.sessions[1].send(b"nobody is there")
        await wait_until(lambda: handler.reasons == [None, SessionEnd.UNREACHABLE])
        await stays(lambda: handler.reasons == [None, SessionEnd.UNREACHABLE])


@linux_only
@over_ip
async def test_unreachable_is_raised_once_after_the_packets(peers: Peers) -> None:
    go_on = asyncio.Event()
    seen: list[object] = []

    async def handler(session: Session) -> None:
        await go_on.wait()
        while True:
            try:
                seen.append((await session.receive()).data)
            except PeerUnreachableError as error:
                seen.append(error.peer)

    handlers = Kept(handler)
    async with serving(handlers, peers.url) as server:
        peer = peers.new(server)
        peer.send(b"a", b"b")
        await wait_until(lambda: server.statistics().queued == 2)
        peer.leave()
        await handlers.sessions[0].send(b"nobody is there")
        server.endpoints[0].packets.take_errors()
        await wait_until(lambda: server.statistics().network_errors == 1)
        go_on.set()
        await wait_until(lambda: len(seen) == 3)
        await stays(lambda: seen == [b"a", b"b", str(handlers.sessions[0].peer)])
        assert handlers.reasons == [None]


@linux_only
async def test_unreachable_in_a_task_group(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def group(session: Session) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(for_ever(session))
            await count(session)

    handler = Kept(group)
    async with serving(handler) as server:
        peer = peers.new(server)
        await peer.ask(b"a")
        peer.leave()
        await handler.sessions[0].send(b"nobody is there")
        await wait_until(lambda: handler.reasons == [SessionEnd.UNREACHABLE])
    assert complaints(caplog) == []


@at("unixgram")
async def test_unix_peer_is_gone(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def answer_twice(session: Session) -> None:
        await session.send((await session.receive()).data)
        await asyncio.sleep(0)
        await gone.wait()
        await session.send(b"nobody is there")

    gone = asyncio.Event()
    handler = Kept(answer_twice)
    async with serving(handler, peers.url) as server:
        peer = peers.new(server)
        await peer.ask(b"a")
        peer.leave()
        gone.set()
        await wait_until(lambda: handler.reasons == [SessionEnd.UNREACHABLE])
    assert complaints(caplog) == []


# --- nothing keeps it alive ---


async def fail(session: Session) -> None:
    await session.receive()
    raise ValueError("on purpose")


async def return_at_once(session: Session) -> None:
    pass


async def close_itself(session: Session) -> None:
    await session.receive()
    await session.aclose()


async def cancel_itself(session: Session) -> None:
    await session.receive()
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await session.receive()


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (count, SessionEnd.IDLE),
        (fail, SessionEnd.HANDLER_ERROR),
        (return_at_once, SessionEnd.HANDLER_RETURNED),
        (close_itself, SessionEnd.CLOSED),
        (cancel_itself, SessionEnd.HANDLER_CANCELLED),
        pytest.param(count, SessionEnd.UNREACHABLE, marks=linux_only),
    ],
)
async def test_ended_sessions_are_forgotten(
    peers: Peers, handler: Callable[[Session], Awaitable[None]], reason: SessionEnd
) -> None:
    """By counting references alone: no cycle has to be found."""
    found: list[weakref.ref[Session]] = []

    async def note(session: Session) -> None:
        found.append(weakref.ref(session))
        await handler(session)

    async def run(server: DatagramServer) -> None:
        peer = peers.new(server)
        peer.send(b"a")
        if reason is SessionEnd.UNREACHABLE:
            await peer.receive()
            peer.leave()
            session = found[0]()
            assert session is not None
            await session.send(b"nobody is there")
            del session
        await wait_until(lambda: server.statistics().ended_sessions == {reason: 1})

    idle = 20 * MS if reason is SessionEnd.IDLE else None
    async with serving(note, session_idle=idle) as server:
        gc.disable()
        try:
            # Log records keep what they tell of; pytest keeps log records.
            server._hub.handler_failed = lambda subject, exc: None  # type: ignore[method-assign, union-attr]
            await run(server)
            await wait_until(lambda: found[0]() is None, what="the last reference")
        finally:
            gc.enable()
