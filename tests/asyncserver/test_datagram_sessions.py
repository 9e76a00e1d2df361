"""How sessions begin, end and make room for each other; and that every packet is counted."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import random
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from anyio import ClosedResourceError, EndOfStream

from asyncserver import DatagramLimits, DatagramServer, DatagramTimeouts, IPEndpoint, Session, SessionEnd
from asyncserver.datagram_sessions import Sessions
from tests.clients import complaints, ignore_cancellation
from tests.sessions import PLACES, Peers, check_balance, serving
from tests.waiting import MS, SECOND, stays, wait_until, within

MANY = 5_000


@pytest.fixture
def peers(request: pytest.FixtureRequest) -> Iterator[Peers]:
    with Peers(getattr(request, "param", "udp")) as peers:
        yield peers


everywhere = pytest.mark.parametrize("peers", PLACES, indirect=True)


async def echo(session: Session) -> None:
    async for datagram in session:
        await session.send(datagram.data)


async def listen(session: Session) -> None:
    """Never answers: from a port that is closed already, it would get an error back."""
    async for _ in session:
        pass


async def say_goodbye(session: Session) -> None:
    await echo(session)
    await session.send(f"{session.close_reason}".encode())


class Stubborn:
    """A handler that goes on although it was told, and even cancelled; until the end of the test."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.ended = 0

    async def __call__(self, session: Session) -> None:
        await ignore_cancellation(self.may_end)
        self.ended += 1


@asynccontextmanager
async def stubborn() -> AsyncIterator[Stubborn]:
    handler = Stubborn()
    begun = asyncio.all_tasks()
    try:
        yield handler
    finally:
        handler.may_end.set()
        await wait_until(lambda: asyncio.all_tasks() <= begun | {asyncio.current_task()})  # type: ignore[operator]


def ended(server: DatagramServer) -> dict[SessionEnd, int]:
    return dict(server.statistics().ended_sessions)


def from_new_port(peers: Peers, server: DatagramServer, packet: bytes = b"x") -> None:
    """As a flood with invented addresses does."""
    with peers.new(server).sock as sock:
        sock.send(packet)


async def flood(
    peers: Peers, server: DatagramServer, number: int, look: Callable[[], object] = lambda: None
) -> None:
    before = server.statistics().received
    for index in range(number):
        from_new_port(peers, server)
        if index % 50 == 49:
            await wait_until(lambda index=index: server.statistics().received == before + index + 1)  # type: ignore[misc]
            look()
    await wait_until(lambda: server.statistics().received == before + number)


# --- quiet ones ---


@everywhere
async def test_quiet_for_too_long(peers: Peers) -> None:
    async with serving(say_goodbye, peers.url, session_idle=80 * MS) as server:
        peer = peers.new(server)
        begun = time.monotonic()
        await peer.ask(b"a")
        assert await peer.receive() == b"idle"
        # An eighth late at most, but for what else this machine does meanwhile.
        assert 70 * MS <= time.monotonic() - begun <= 90 * MS + 2 * SECOND
        assert await peer.ask(b"b") == b"b", "the next packet begins another one"
        assert ended(server) == {SessionEnd.IDLE: 1}


async def test_noticed_within_an_eighth(peers: Peers) -> None:
    """By the clock of the loop: how late the timer is that ends it, whatever this machine does meanwhile."""
    loop = asyncio.get_running_loop()
    async with serving(echo, session_idle=400 * MS) as server:
        service = server._hub._service  # type: ignore[union-attr]
        await peers.new(server).ask(b"a")
        [session] = service._sessions.values()  # type: ignore[union-attr]
        look = service._timer  # type: ignore[union-attr]
        assert look is not None
        assert look.when() <= loop.time() + 51 * MS
        await wait_until(lambda: session.close_reason)
        assert loop.time() - session.used_at >= 400 * MS


@pytest.mark.parametrize("direction", ["received", "sent"])
async def test_packets_in_either_direction_prolong_it(peers: Peers, direction: str) -> None:
    opened: list[Session] = []

    async def handler(session: Session) -> None:
        opened.append(session)
        async for _ in session:
            pass

    async with serving(handler, session_idle=3600.0) as server:
        peer = peers.new(server)
        peer.send(b"a")
        await wait_until(lambda: opened)
        [session] = opened
        for _ in range(3):
            before = session.used_at
            await asyncio.sleep(5 * MS)
            if direction == "sent":
                await session.send(b"b")
            else:
                peer.send(b"b")
            await wait_until(lambda: session.used_at > before)  # noqa: B023
        server.update(session_idle=20 * MS)
        await wait_until(lambda: ended(server) == {SessionEnd.IDLE: 1})
        assert asyncio.get_running_loop().time() - session.used_at >= 20 * MS
        assert len(opened) == 1


async def test_never_too_long(peers: Peers) -> None:
    async with serving(say_goodbye, session_idle=None) as server:
        peer = peers.new(server)
        await peer.ask(b"a")
        assert server._hub._service._timer is None, "nothing to look for"  # type: ignore[union-attr]
        server.update(session_idle=20 * MS)
        assert await peer.receive() == b"idle"


async def test_packets_that_have_come_are_served_first(peers: Peers) -> None:
    go_on = asyncio.Event()

    async def handler(session: Session) -> None:
        await go_on.wait()
        await say_goodbye(session)

    async with serving(handler, session_idle=20 * MS, grace=30 * SECOND) as server:
        peer = peers.new(server)
        peer.send(b"a", b"b")
        await wait_until(lambda: server.statistics().queued == 2)
        await stays(lambda: not ended(server))
        go_on.set()
        assert [await peer.receive() for _ in range(3)] == [b"a", b"b", b"idle"]


# --- making room ---


@everywhere
async def test_least_recently_used_makes_room(peers: Peers) -> None:
    async with serving(say_goodbye, peers.url, max_sessions=3) as server:
        some = [peers.new(server) for _ in range(4)]
        for peer in some[:3]:
            assert await peer.ask(b"a") == b"a"
        assert await some[0].ask(b"b") == b"b"
        assert await some[3].ask(b"a") == b"a"
        assert await some[1].receive() == b"evicted"
        await wait_until(lambda: server.statistics().sessions == 3)
        for peer in (some[0], some[2], some[3]):
            assert await peer.ask(b"c") == b"c"
        assert ended(server) == {SessionEnd.EVICTED: 1}
        assert await some[1].ask(b"d") == b"d", "a new one"
        assert await some[0].receive() == b"evicted"


async def test_sending_is_using(peers: Peers) -> None:
    opened: list[Session] = []

    async def handler(session: Session) -> None:
        opened.append(session)
        await say_goodbye(session)

    async with serving(handler, max_sessions=2) as server:
        first, second, third = (peers.new(server) for _ in range(3))
        await first.ask(b"a")
        await second.ask(b"a")
        await opened[0].send(b"used")
        await third.ask(b"a")
        assert await second.receive() == b"evicted"


async def test_evicted_before_its_handler_has_begun(peers: Peers) -> None:
    async with serving(say_goodbye, max_sessions=1) as server:
        some = [peers.new(server) for _ in range(20)]
        for peer in some:
            peer.send(b"a")
        for peer in some:
            assert await peer.receive() == b"a"
        for peer in some[:-1]:
            assert await peer.receive() == b"evicted"
        assert server.statistics().dropped == 0


async def test_flood_with_handlers_that_end_at_once(peers: Peers) -> None:
    async with serving(listen, max_sessions=100) as server:
        await flood(peers, server, 2_000)
        await wait_until(lambda: server.statistics().sessions == 100)
        assert server.statistics().handled == 2_000
        assert server.statistics().peak_sessions < 1_100
        assert set(ended(server)) == {SessionEnd.EVICTED}
        # Not quite 1,900: a port that was given free may be used again.
        assert 1_700 < ended(server)[SessionEnd.EVICTED] <= 1_900


async def test_flood_with_handlers_that_are_slow_to_end(
    peers: Peers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are cancelled in the end, and until then there are not more of them than agreed."""
    monkeypatch.setattr("asyncserver.datagram_sessions._LEAST_LINGERING", 50)

    async def handler(session: Session) -> None:
        async for _ in session:
            pass
        await asyncio.Event().wait()

    async with serving(handler, max_sessions=100, grace=100 * MS) as server:
        await flood(peers, server, 400)
        seen = server.statistics()
        assert seen.peak_sessions <= 150
        assert seen.dropped > 0
        await wait_until(lambda: server.statistics().sessions == 100)
        assert set(ended(server)) == {SessionEnd.CANCELLED}
        before = server.statistics().dropped
        await flood(peers, server, 40)
        assert server.statistics().dropped == before, "there is room again"


@pytest.mark.parametrize("way", ["evicted", "closed"])
async def test_flood_with_handlers_that_do_not_end(
    peers: Peers, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Memory stays bounded, whatever they ignore: sessions that have closed themselves, too."""
    monkeypatch.setattr("asyncserver.datagram_sessions._LEAST_LINGERING", 50)
    async with stubborn() as ignores:

        async def handler(session: Session) -> None:
            if way == "closed":
                await session.aclose()
            await ignores(session)

        async with serving(handler, max_sessions=100, grace=20 * MS) as server:

            def look() -> None:
                seen = server.statistics()
                assert seen.sessions + seen.stuck_handlers <= 150

            await flood(peers, server, 500, look)
            check_balance(server)
            assert server.statistics().dropped >= (300 if way == "evicted" else 0)
            if way == "evicted":
                await wait_until(lambda: server.statistics().stuck_handlers == 50)
                await flood(peers, server, 100, look)
            assert len(asyncio.all_tasks()) <= 160
    assert server.statistics().stuck_handlers == 0, "they have ended after all"


# --- those that do not end ---


async def test_grace_and_then_cancellation(peers: Peers) -> None:
    """The grace counts also where the next look for quiet sessions is much later."""

    async def handler(session: Session) -> None:
        async for _ in session:
            pass
        await asyncio.Event().wait()

    async with serving(handler, max_sessions=1, session_idle=3600, grace=100 * MS) as server:
        peers.new(server).send(b"a")
        await wait_until(lambda: server.statistics().handled == 1)
        begun = time.monotonic()
        peers.new(server).send(b"b")
        await wait_until(lambda: ended(server) == {SessionEnd.CANCELLED: 1})
        assert 95 * MS <= time.monotonic() - begun < 2 * SECOND


async def test_stuck_ones_are_counted(peers: Peers) -> None:
    async with stubborn() as handler:
        async with serving(handler, max_sessions=1, grace=20 * MS) as server:
            peers.new(server).send(b"a")
            await wait_until(lambda: server.statistics().sessions == 1)
            peers.new(server).send(b"b")
            await wait_until(lambda: server.statistics().stuck_handlers == 1)
            assert server.statistics().sessions == 1
            assert server.statistics().dropped == 1
            report = await within(server.drain(20 * MS))
            assert (report.idle, report.finished, report.cancelled, report.aborted) == (0, 0, 0, 1)
            assert server.statistics().stuck_handlers == 2
    assert server.statistics().stuck_handlers == 0
    assert ended(server) == {SessionEnd.CANCELLED: 2}


async def test_stuck_ones_cannot_send_any_more(peers: Peers) -> None:
    outcomes: list[object] = []
    async with stubborn() as ignores:

        async def handler(session: Session) -> None:
            await ignores(session)
            for attempt in (session.receive, lambda: session.send(b"too late")):
                with pytest.raises(ClosedResourceError):
                    await attempt()
            outcomes.append(session.close_reason)

        async with serving(handler, grace=0.0) as server:
            peers.new(server).send(b"a")
            await wait_until(lambda: server.statistics().sessions == 1)
    assert outcomes == [SessionEnd.CANCELLED]


async def test_other_grace_while_they_use_it_up(peers: Peers) -> None:
    async def handler(session: Session) -> None:
        await asyncio.Event().wait()

    async with serving(handler, max_sessions=1, grace=3600.0) as server:
        for number in range(1, 4):
            from_new_port(peers, server)
            await wait_until(lambda number=number: server.statistics().received == number)  # type: ignore[misc]
        server.update(grace=20 * MS)
        await wait_until(lambda: ended(server) == {SessionEnd.CANCELLED: 2})


# --- handlers that end by themselves ---


@everywhere
async def test_handler_returns(peers: Peers) -> None:
    async def once(session: Session) -> None:
        await session.send((await session.receive()).data)

    async with serving(once, peers.url) as server:
        peer = peers.new(server)
        for number in range(3):
            assert await peer.ask(b"%d" % number) == b"%d" % number
        await wait_until(lambda: ended(server) == {SessionEnd.HANDLER_RETURNED: 3})
        assert server.statistics().sessions == 0


async def test_packet_right_after_the_handler_has_returned(peers: Peers) -> None:
    """It comes in the same batch, before the end of the task has been noticed; and is not lost."""

    async def twice(session: Session) -> None:
        await session.send((await session.receive()).data)
        await session.send((await session.receive()).data)

    async with serving(twice) as server:
        peer = peers.new(server)
        assert await peer.ask(b"0") == b"0"
        peer.send(b"1", b"2")
        assert [await peer.receive(), await peer.receive()] == [b"1", b"2"]
        assert server.statistics().dropped == 0
        assert ended(server) == {SessionEnd.HANDLER_RETURNED: 1}
        assert server.statistics().sessions == 1


async def test_handler_raises(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    hooked: list[tuple[Any, Exception]] = []
    logged: list[logging.LogRecord] = []

    async def handler(session: Session) -> None:
        async for datagram in session:
            if datagram.data == b"fail":
                raise ValueError("on purpose")
            await session.send(datagram.data)

    async with serving(handler, on_error=lambda *args: hooked.append(args)) as server:
        bad, good = peers.new(server), peers.new(server)
        assert await bad.ask(b"a") == await good.ask(b"a") == b"a"
        bad.send(b"fail")
        await wait_until(lambda: ended(server) == {SessionEnd.HANDLER_ERROR: 1})
        assert await good.ask(b"b") == b"b"
        assert await bad.ask(b"c") == b"c"
        [(session, exc)] = hooked
        assert session.close_reason is SessionEnd.HANDLER_ERROR
        assert session.peer == IPEndpoint("127.0.0.1", bad.port)
        assert str(exc) == "on purpose"
        logged += caplog.records
    assert len(complaints(caplog)) == 1
    assert [record.exc_info[1] for record in logged if record.exc_info] == [exc]


async def test_handler_that_does_not_catch_the_end(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    """``receive()`` in a loop is a fair way to write one: no traceback for each peer that falls silent."""

    async def handler(session: Session) -> None:
        while True:
            await session.send((await session.receive()).data)

    async def in_group(session: Session) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(handler(session))

    for each in (handler, in_group):
        async with serving(each, session_idle=20 * MS) as server:
            await peers.new(server).ask(b"a")
            await wait_until(lambda: ended(server) == {SessionEnd.IDLE: 1})
    assert complaints(caplog) == []


async def test_end_of_something_else(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: Session) -> None:
        raise EndOfStream

    async with serving(handler) as server:
        from_new_port(peers, server)
        await wait_until(lambda: ended(server) == {SessionEnd.HANDLER_ERROR: 1})
    assert len(complaints(caplog)) == 1


async def test_handler_cancels_itself(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(session: Session) -> None:
        asyncio.current_task().cancel()  # type: ignore[union-attr]
        await session.receive()

    async with serving(handler) as server:
        from_new_port(peers, server)
        await wait_until(lambda: ended(server) == {SessionEnd.HANDLER_CANCELLED: 1})
        assert server.statistics().sessions == 0
    assert complaints(caplog) == []


async def test_handler_cancelled_by_another_task(peers: Peers) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(session: Session) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        await echo(session)

    async with serving(handler) as server:
        peer = peers.new(server)
        await peer.ask(b"a")
        tasks[0].cancel()
        await wait_until(lambda: ended(server) == {SessionEnd.HANDLER_CANCELLED: 1})
        assert await peer.ask(b"b") == b"b"


async def test_handler_swallows_its_cancellation(peers: Peers) -> None:
    async def handler(session: Session) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    async with serving(handler) as server:
        from_new_port(peers, server)
        await wait_until(lambda: server.statistics().sessions == 1)
    assert ended(server) == {SessionEnd.CANCELLED: 1}


# --- the end of the server ---


@everywhere
async def test_drain_tells_all(peers: Peers) -> None:
    async with serving(say_goodbye, peers.url) as server:
        some = [peers.new(server) for _ in range(3)]
        for peer in some:
            await peer.ask(b"a")
        report = await within(server.drain())
        assert (report.idle, report.finished, report.cancelled, report.aborted) == (3, 0, 0, 0)
        assert report.clean
        for peer in some:
            assert await peer.receive() == b"drained"
    assert ended(server) == {SessionEnd.DRAINED: 3}


@everywhere
async def test_drain_serves_what_has_come(peers: Peers) -> None:
    """Also what still waits in the kernel, for sessions that wait for it and for new peers."""
    async with serving(say_goodbye, peers.url) as server:
        old, new = peers.new(server), peers.new(server)
        await old.ask(b"a")
        old.send(b"b", b"c")
        new.send(b"d", b"e")
        report = await within(server.drain())
        assert report.idle + report.finished == 2
        assert [await old.receive() for _ in range(3)] == [b"b", b"c", b"drained"]
        assert [await new.receive() for _ in range(3)] == [b"d", b"e", b"drained"]
        assert server.statistics().dropped == 0


async def test_drain_while_a_handler_is_busy(peers: Peers) -> None:
    go_on = asyncio.Event()

    async def handler(session: Session) -> None:
        async for datagram in session:
            await go_on.wait()
            await session.send(datagram.data)
        await session.send(b"bye")

    async with serving(handler) as server:
        peer = peers.new(server)
        peer.send(b"a", b"b")
        await wait_until(lambda: server.statistics().handled == 1)
        draining = asyncio.ensure_future(server.drain())
        await stays(lambda: not draining.done())
        go_on.set()
        report = await within(draining)
        assert (report.idle, report.finished, report.cancelled, report.aborted) == (0, 1, 0, 0)
        assert [await peer.receive() for _ in range(3)] == [b"a", b"b", b"bye"]


async def test_drain_that_takes_longer_than_idle_and_grace(peers: Peers) -> None:
    """It is the timeout of the drain that counts then."""
    go_on = asyncio.Event()

    async def handler(session: Session) -> None:
        async for datagram in session:
            await session.send(datagram.data)
        await go_on.wait()

    async with serving(handler) as server:
        await peers.new(server).ask(b"a")
        draining = asyncio.ensure_future(server.drain(60 * SECOND))
        await wait_until(lambda: not server.ready)
        server.update(session_idle=20 * MS, grace=20 * MS)
        await stays(lambda: not draining.done(), during=150 * MS)
        go_on.set()
        assert (await within(draining)).idle == 1
    assert ended(server) == {SessionEnd.DRAINED: 1}


async def test_counts_of_a_drain(peers: Peers) -> None:
    go_on = asyncio.Event()
    async with stubborn() as ignores:

        async def handler(session: Session) -> None:
            kind = (await session.receive()).data
            await session.send(kind)
            if kind == b"stubborn":
                await ignores(session)
            elif kind == b"slow":
                await asyncio.Event().wait()
            elif kind == b"fails":
                try:
                    await asyncio.Event().wait()
                finally:
                    raise ValueError("on purpose")
            elif kind == b"busy":
                await go_on.wait()
            else:
                await echo(session)
                go_on.set()  # The drain has begun.

        async with serving(handler, grace=30 * MS, on_error=lambda *_: None) as server:
            for kind in (b"idle", b"idle", b"busy", b"slow", b"slow", b"slow", b"stubborn", b"fails"):
                await peers.new(server).ask(kind)
            draining = asyncio.ensure_future(server.drain(300 * MS))
            report = await within(draining)
            assert (report.idle, report.finished, report.cancelled, report.aborted) == (2, 1, 4, 1)
            assert not report.clean
    seen = ended(server)
    assert seen.pop(SessionEnd.HANDLER_ERROR) == 1
    assert seen.pop(SessionEnd.CANCELLED) == 4
    assert sum(seen.values()) == 3


async def test_close(peers: Peers) -> None:
    async with serving(say_goodbye) as server:
        peer = peers.new(server)
        await peer.ask(b"a")
        await within(server.aclose())
        await peer.hears_nothing()
    assert ended(server) == {SessionEnd.CANCELLED: 1}


async def test_close_before_a_handler_has_begun(peers: Peers) -> None:
    async with serving(echo) as server:
        service = server._hub._service  # type: ignore[union-attr]
        peers.new(server).send(b"a", b"b")
        loop = asyncio.get_running_loop()
        closing: list[asyncio.Future[None]] = []
        loop.call_soon(server.endpoints[0].on_readable)
        loop.call_soon(lambda: closing.append(asyncio.ensure_future(server.aclose())))
        await wait_until(lambda: closing)
        await within(closing[0])
        assert service.current == 0  # type: ignore[union-attr]
        assert server.statistics().handled + server.statistics().dropped == 2


async def test_drain_is_cancelled(peers: Peers) -> None:
    async with stubborn() as handler:
        async with serving(handler, grace=20 * MS) as server:
            from_new_port(peers, server)
            await wait_until(lambda: server.statistics().sessions == 1)
            draining = asyncio.ensure_future(server.drain(None))
            await stays(lambda: not draining.done(), during=10 * MS)
            draining.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(draining)
            assert server.statistics().stuck_handlers == 1
    assert server.statistics().stuck_handlers == 0


@pytest.mark.parametrize("what", ["drain", "aclose"])
async def test_handler_ends_the_server(peers: Peers, what: str) -> None:
    ending: list[asyncio.Task[Any]] = []

    async def handler(session: Session) -> None:
        await session.receive()
        ending.append(asyncio.create_task(getattr(session.server, what)()))
        await listen(session)

    async with serving(handler) as server:
        from_new_port(peers, server)
        await within(server.wait_closed())
        await ending[0]


# --- other limits ---


async def test_fewer_sessions_from_now_on(peers: Peers, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may linger are told to end at once."""
    monkeypatch.setattr("asyncserver.datagram_sessions._LEAST_LINGERING", 3)
    async with serving(say_goodbye, max_sessions=20) as server:
        some = [peers.new(server) for _ in range(20)]
        for peer in some:
            await peer.ask(b"a")
        server.update(max_sessions=2)
        for peer in some[:-2]:
            assert await peer.receive() == b"evicted"
        await wait_until(lambda: server.statistics().sessions == 2)
        assert await some[0].ask(b"b") == b"b"
        assert await some[-2].receive() == b"evicted"
        server.update(max_sessions=3)
        assert await some[1].ask(b"b") == b"b"
        await wait_until(lambda: server.statistics().sessions == 3)


async def test_who_lingers_does_not_make_the_next_idle_later(peers: Peers) -> None:
    """The look for the end of the first one's grace is in minutes."""
    async with serving(echo, session_idle=20 * MS, grace=3_600) as server:
        for number in range(1, 4):
            await peers.new(server).ask(b"a")
            await wait_until(lambda number=number: ended(server) == {SessionEnd.IDLE: number})


async def test_shorter_idle_from_now_on(peers: Peers) -> None:
    async with serving(say_goodbye, session_idle=3600.0) as server:
        peer = peers.new(server)
        await peer.ask(b"a")
        server.update(session_idle=20 * MS)
        assert await peer.receive(timeout=5 * SECOND) == b"idle"
        server.update(session_idle=3600.0)
        await peer.ask(b"b")
        server.update(session_idle=20 * MS)
        server.update(session_idle=3600.0)
        await stays(lambda: server.statistics().sessions == 1, during=100 * MS)


# --- how many ---


async def test_many_peers(peers: Peers) -> None:
    async with serving(listen) as server:
        begun = time.monotonic()
        await flood(peers, server, MANY)
        await wait_until(lambda: server.statistics().handled == MANY)
        assert MANY * 0.7 < server.statistics().sessions <= MANY
        assert server.statistics().dropped == 0
        report = await within(server.drain())
        assert report.idle == server.statistics().peak_sessions
        assert time.monotonic() - begun < 20 * SECOND


async def test_ended_ones_take_no_memory(peers: Peers) -> None:
    alive: weakref.WeakSet[Session] = weakref.WeakSet()

    async def handler(session: Session) -> None:
        alive.add(session)
        await listen(session)

    async with serving(handler, max_sessions=50) as server:
        gc.disable()
        try:
            await flood(peers, server, 1_000)
            await wait_until(lambda: server.statistics().sessions == 50)
            await wait_until(lambda: len(alive) == 50)
        finally:
            gc.enable()


# --- the table itself ---


class FakeDatagram:
    """A packet of the peer that its key names."""

    _endpoint: Any = None
    _origin: Any = None

    def __init__(self, key: str, data: bytes = b"") -> None:
        self.peer_key = key
        self.data = data


class Host:
    def handler_failed(self, subject: Any, exc: Exception) -> None:
        raise AssertionError from exc


async def test_what_was_not_delivered_is_counted() -> None:
    """A handler ends the program in the middle of a batch."""

    async def handler(session: Session) -> None:
        async for datagram in session:
            if datagram.data == b"exit":
                raise SystemExit

    loop = asyncio.get_running_loop()
    service = Sessions(loop, handler, DatagramLimits(), DatagramTimeouts(), Host())
    context = contextvars.copy_context()
    left: list[BaseException] = []

    def deliver(batch: list[Any]) -> None:
        try:
            service.deliver(batch)
        except SystemExit as exc:
            left.append(exc)

    loop.call_soon(deliver, [FakeDatagram("a"), FakeDatagram("b")], context=context)
    await wait_until(lambda: service.handled == 2)
    batch = [FakeDatagram("b"), FakeDatagram("a", b"exit"), FakeDatagram("a"), FakeDatagram("c")]
    loop.call_soon(deliver, batch, context=context)
    await wait_until(lambda: left)
    assert (service.handled, service.dropped, service.queued) == (4, 2, 0)
    await wait_until(lambda: service.ended == {SessionEnd.HANDLER_ERROR: 1})
    service.close()
    await service.wait_empty()
    left.clear()


async def test_every_session_ends() -> None:
    """Whatever happens to them in whatever order: the table is empty in the end, and all is counted."""
    loop = asyncio.get_running_loop()
    dice = random.Random(7)
    begun = 0

    async def handler(session: Session) -> None:
        nonlocal begun
        begun += 1
        match dice.randrange(6):
            case 0:
                await session.receive()
            case 1:
                await session.aclose()
                await asyncio.sleep(dice.random() * 5 * MS)
            case 2:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(1)
                await asyncio.sleep(2 * MS)
            case 3:
                while True:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(dice.random() * MS):
                            await session.receive()
            case 4:
                asyncio.current_task().cancel()  # type: ignore[union-attr]
                await session.receive()
            case _:
                async for _ in session:
                    await asyncio.sleep(dice.random() * MS)

    limits = DatagramLimits(max_sessions=10, session_queue=3)
    timeouts = DatagramTimeouts(session_idle=20 * MS, grace=15 * MS)
    service = Sessions(loop, handler, limits, timeouts, Host())
    delivered = 0
    for _ in range(600):
        batch: list[Any] = [FakeDatagram(str(dice.randrange(30))) for _ in range(dice.randrange(5))]
        delivered += len(batch)
        loop.call_soon(service.deliver, batch, context=contextvars.copy_context())
        await asyncio.sleep(dice.random() * MS)
        assert delivered == service.handled + service.dropped + service.queued
    service.tell_to_end()
    with suppress(TimeoutError):
        async with asyncio.timeout(30 * MS):
            await service.wait_empty()
    service.cancel_all()
    await within(service.wait_empty())
    await wait_until(lambda: service.stuck == 0)
    service.close()
    assert delivered == service.handled + service.dropped
    assert service.queued == 0
    assert service.ended.total() == service.ended_in_peace + service.ended_by_force
    assert service.ended.total() >= begun
