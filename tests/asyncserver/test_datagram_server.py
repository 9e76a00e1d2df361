from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    BindError,
    Datagram,
    DatagramLimits,
    DatagramOptions,
    DatagramServer,
    DatagramTimeouts,
    DrainReport,
    LifespanError,
    OptionError,
    Server,
    ServerStateError,
    Session,
    SessionEnd,
    TCPAddress,
    UDPAddress,
    UnixDatagramAddress,
    parse_address,
    serve_datagrams,
    sessions,
)
from tests.clients import Client, complaints, echo, ignore_cancellation, kept_port
from tests.conftest import LOOP_FACTORIES
from tests.datagrams import UDP, Peer, adds_up, echo_datagram, ended, serving
from tests.waiting import MS, SECOND, stays, wait_until, within


def counts(report: DrainReport) -> tuple[int, int, int, int]:
    return report.idle, report.finished, report.cancelled, report.aborted


async def files_in(directory: Path) -> list[str]:
    return sorted(await asyncio.to_thread(os.listdir, directory))


class Slow:
    """Replies when the test says so; at once to ``quick``."""

    def __init__(self) -> None:
        self.done = asyncio.Event()
        self.begun = 0

    async def __call__(self, datagram: Datagram) -> None:
        self.begun += 1
        if datagram.data != b"quick":
            await self.done.wait()
        await datagram.reply(datagram.data)


async def works(server: DatagramServer) -> None:
    for address in server.addresses:
        if isinstance(address, UDPAddress):
            with Peer(address) as peer:
                assert await peer.ask(b"hello") == b"hello"


# Options.


def test_options_are_checked_before_anything_is_opened() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"limits": 5}, "limits"),
        ({"timeouts": 5}, "timeouts"),
        ({"options": {}}, "options"),
        ({"lifespan": 5}, "lifespan"),
        ({"on_error": 5}, "on_error"),
        ({"on_error": echo_datagram}, "on_error"),
    ]
    for options, option in wrong:
        with pytest.raises(OptionError) as caught:
            DatagramServer(echo_datagram, UDP, **options)
        assert caught.value.option == option
    with pytest.raises(OptionError, match="addresses"):
        DatagramServer(echo_datagram)


async def test_what_can_be_asked_of_a_server_that_was_not_started() -> None:
    server = DatagramServer(echo_datagram, UDP)
    assert server.addresses == ()
    assert server.endpoints == ()
    assert not server.ready
    assert server.under_way == "0 handlers"
    assert server.lifespan_state is None
    assert repr(server) == "<DatagramServer udp://127.0.0.1:0 stopped>"
    with pytest.raises(ServerStateError):
        server.statistics()
    with pytest.raises(ServerStateError):
        await server.drain()
    await server.aclose()
    await within(server.wait_closed())


# Start and end.


async def test_a_mix_of_addresses(tmp_path: Path) -> None:
    name = f"@asyncserver-test-{os.getpid()}-{id(tmp_path)}"
    path = f"{tmp_path}/s"
    async with serving(
        echo_datagram, UDP, UDPAddress("::1"), f"unixgram:{path}", f"unixgram:{name}"
    ) as server:
        kinds = [type(address) for address in server.addresses]
        assert kinds == [UDPAddress, UDPAddress, UnixDatagramAddress, UnixDatagramAddress]
        assert all(each.port for each in server.addresses if isinstance(each, UDPAddress))
        assert [parse_address(str(each)) for each in server.addresses] == list(server.addresses)
        assert [each.address for each in server.endpoints] == list(server.addresses)
        for number, address in enumerate(server.addresses):
            assert isinstance(address, UDPAddress | UnixDatagramAddress)
            own = f"{tmp_path}/c{number}" if isinstance(address, UnixDatagramAddress) else ""
            with Peer(address, name=own) as peer:
                assert await peer.ask(b"hello") == b"hello"
            assert server.statistics().endpoints[number].received == 1
        assert server.statistics().received == 4
    assert server.addresses == ()
    assert "s" not in await files_in(tmp_path)


async def test_it_starts_and_stops_any_number_of_times() -> None:
    server = DatagramServer(echo_datagram, UDP)
    for _ in range(5):
        await server.start()
        assert server.ready
        await works(server)
        assert adds_up(server).received == 1
        await server.aclose()
        assert not server.ready
        assert adds_up(server).handled == 1
        await server.aclose()


async def test_it_starts_again_at_the_same_port() -> None:
    with kept_port(kind=socket.SOCK_DGRAM) as port:
        address = UDPAddress("127.0.0.1", port)
        again = DatagramServer(echo_datagram, address, options=DatagramOptions(reuse_address=True))
        for _ in range(4):
            async with again:
                assert again.addresses == (address,)
                await works(again)


def test_it_starts_again_in_another_loop(loop_name: str) -> None:
    server = DatagramServer(echo_datagram, UDP)

    async def main() -> None:
        async with server:
            await works(server)

    for _ in range(2):
        with asyncio.Runner(loop_factory=LOOP_FACTORIES[loop_name]) as runner:
            runner.run(main())


async def test_it_cannot_start_twice() -> None:
    async with DatagramServer(echo_datagram, UDP) as server:
        with pytest.raises(ServerStateError, match="serving already"):
            await server.start()
        await works(server)


async def test_an_address_that_is_taken_leaves_nothing(tmp_path: Path) -> None:
    async with DatagramServer(echo_datagram, UDP) as first:
        taken = first.addresses[0]
        server = DatagramServer(echo_datagram, f"unixgram:{tmp_path}/s", UDP, taken)  # type: ignore[arg-type]
        with pytest.raises(BindError) as caught:
            await server.start()
        assert caught.value.address == str(taken)
        assert not server.ready
        assert server.addresses == ()
        assert await files_in(tmp_path) == []
        await works(first)
    async with server:
        await works(server)


async def test_the_lifespan_is_around_everything() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(server: DatagramServer) -> AsyncIterator[str]:
        events.append(f"begin {server.ready} {len(server.addresses)}")
        yield "state"
        events.append(f"end {server.statistics().cancelled}")

    async def handler(datagram: Datagram) -> None:
        events.append(datagram.server.lifespan_state)
        await asyncio.Event().wait()

    async with serving(handler, lifespan=lifespan) as server, Peer(server) as peer:
        assert server.lifespan_state == "state"
        peer.send(b"x")
        await wait_until(lambda: server.statistics().running == 1)
    assert events == ["begin False 0", "state", "end 1"]
    assert server.lifespan_state is None


async def test_a_lifespan_that_fails() -> None:
    @asynccontextmanager
    async def lifespan(server: DatagramServer) -> AsyncIterator[None]:
        raise KeyError("no database")
        yield

    server = DatagramServer(echo_datagram, UDP, lifespan=lifespan)
    with pytest.raises(LifespanError, match="no database") as caught:
        await server.start()
    assert isinstance(caught.value.__cause__, KeyError)
    assert server.addresses == ()


async def test_serve_until_it_is_cancelled() -> None:
    begun: list[DatagramServer] = []

    @asynccontextmanager
    async def lifespan(server: DatagramServer) -> AsyncIterator[None]:
        begun.append(server)
        yield

    serving_task = asyncio.create_task(serve_datagrams(echo_datagram, UDP, lifespan=lifespan))
    await wait_until(lambda: begun and begun[0].ready)
    await within(begun[0].wait_ready())
    await works(begun[0])
    serving_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(serving_task)
    assert not begun[0].ready


def sockets_at_one_port(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    """A port that is free for both: others on this machine have some that is free for one."""
    while True:
        stream = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        packets = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        with suppress(OSError):
            packets.bind(stream.getsockname())
            return stream, packets


async def test_both_kinds_of_servers_in_one_loop() -> None:
    with ExitStack() as stack:
        stream, packets = sockets_at_one_port(stack)
        async with (
            Server(echo, f"fd://{stream.detach()}") as streams,
            serving(echo_datagram, f"fd://{packets.detach()}") as server,
        ):
            (here,), (beside,) = server.addresses, streams.addresses
            assert isinstance(here, UDPAddress)
            assert isinstance(beside, TCPAddress)
            assert here.port == beside.port
            await works(server)
            async with await Client.connect(streams) as client:
                assert await client.ask(b"hello") == b"hello"
            await works(server)


# Close.


async def test_handlers_that_do_not_end(caplog: pytest.LogCaptureFixture) -> None:
    stop = asyncio.Event()

    async def handler(datagram: Datagram) -> None:
        if datagram.data == b"stubborn":
            await ignore_cancellation(stop)
        else:
            await asyncio.Event().wait()

    server = DatagramServer(handler, UDP, timeouts=DatagramTimeouts(grace=50 * MS))
    async with server, Peer(server) as peer:
        peer.send(b"stubborn", b"gentle", b"stubborn")
        await wait_until(lambda: adds_up(server).running == 3)
        assert server.under_way == "3 handlers"
        began = time.monotonic()
    assert time.monotonic() - began < 5 * SECOND
    assert adds_up(server).stuck_handlers == 2
    assert server.statistics().cancelled == 3
    stop.set()
    await wait_until(lambda: not server.statistics().stuck_handlers)


async def test_a_second_close_hurries_the_first() -> None:
    stop = asyncio.Event()

    async def handler(datagram: Datagram) -> None:
        await ignore_cancellation(stop)

    server = DatagramServer(handler, UDP, timeouts=DatagramTimeouts(grace=60 * SECOND))
    await server.start()
    with Peer(server) as peer:
        peer.send(b"x")
        await wait_until(lambda: adds_up(server).running == 1)
    first = asyncio.create_task(server.aclose())
    await stays(lambda: not first.done())
    await within(server.aclose(grace=10 * MS))
    await within(first)
    assert server.statistics().stuck_handlers == 1
    stop.set()
    await wait_until(lambda: not server.statistics().stuck_handlers)


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("what", ["drain", "aclose"])
async def test_a_handler_cannot_wait_for_its_own_end(what: str, *, later: bool) -> None:
    seen: list[str] = []

    async def handler(datagram: Datagram) -> None:
        if later:
            await asyncio.sleep(0)
        try:
            await getattr(datagram.server, what)()
        except ServerStateError as exc:
            seen.append(str(exc))

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(b"x")
        assert (await ended(server, 1)).handled == 1
    assert len(seen) == 1
    assert f"asyncio.create_task(server.{what}())" in seen[0]


async def test_a_handler_can_have_it_closed() -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def handler(datagram: Datagram) -> None:
        tasks.append(asyncio.create_task(datagram.server.drain()))
        await datagram.reply(b"bye")

    server = DatagramServer(handler, UDP)
    await server.start()
    with Peer(server) as peer:
        assert await peer.ask(b"x") == b"bye"
        await within(server.wait_closed())
    await within(tasks[0])


# Drain.


async def test_nobody_is_there() -> None:
    server = DatagramServer(echo_datagram, UDP)
    await server.start()
    report = await within(server.drain())
    assert counts(report) == (0, 0, 0, 0)
    assert server.addresses == ()
    assert counts(await server.drain()) == (0, 0, 0, 0)


async def test_what_waits_is_served_and_slow_replies_arrive() -> None:
    slow = Slow()
    server = DatagramServer(slow, UDP, limits=DatagramLimits(max_handlers=2))
    await server.start()
    with Peer(server) as peer, Peer(server) as late:
        peer.send(*[b"%d" % number for number in range(5)])
        await wait_until(lambda: adds_up(server).queued == 3)
        draining = asyncio.create_task(server.drain())
        await wait_until(lambda: not server.ready)
        await stays(lambda: not draining.done())
        late.send(b"quick")
        await stays(lambda: adds_up(server).received == 5)
        slow.done.set()
        report = await within(draining)
        assert counts(report) == (0, 5, 0, 0)
        assert report.clean
        assert sorted(peer.received()) == [b"%d" % number for number in range(5)]
        assert not server.endpoints[0].paused - {"closed"}
    assert adds_up(server).handled == 5


@pytest.mark.parametrize("wait", [True, False])
async def test_what_is_in_the_kernel_is_served(*, wait: bool) -> None:
    async def handler(datagram: Datagram) -> None:
        if wait:
            await asyncio.sleep(0)
        await datagram.reply(datagram.data)

    server = DatagramServer(handler, UDP)
    await server.start()
    with Peer(server) as peer:
        assert await peer.ask(b"x") == b"x"
        packets = [b"%03d" % number for number in range(200)]
        peer.send(*packets)
        await within(server.drain())
        assert adds_up(server).handled == 201
        assert sorted(peer.received()) == packets


async def test_sessions_take_what_is_in_the_kernel() -> None:
    @sessions
    async def handler(session: Session) -> None:
        async for datagram in session:
            await session.send(datagram.data)

    server = DatagramServer(handler, UDP)
    await server.start()
    with Peer(server) as peer:
        assert await peer.ask(b"x") == b"x"
        assert server.statistics().sessions == server.statistics().peak_sessions == 1
        peer.send(b"a", b"b", b"c")
        await within(server.drain())
        assert peer.received() == [b"a", b"b", b"c"]
    now = adds_up(server)
    assert (now.sessions, now.peak_sessions) == (0, 1)
    assert now.ended_sessions == {SessionEnd.DRAINED: 1}


async def test_who_does_not_finish_is_cancelled_and_then_left_behind() -> None:
    stop = asyncio.Event()

    async def handler(datagram: Datagram) -> None:
        if datagram.data == b"ignore":
            await ignore_cancellation(stop)
        else:
            await asyncio.Event().wait()

    server = DatagramServer(
        handler, UDP, limits=DatagramLimits(max_handlers=2), timeouts=DatagramTimeouts(grace=50 * MS)
    )
    await server.start()
    with Peer(server) as peer:
        peer.send(b"ignore", b"wait", b"queued")
        await wait_until(lambda: adds_up(server).queued == 1)
    report = await within(server.drain(100 * MS))
    assert counts(report) == (0, 0, 1, 1)
    assert not report.clean
    assert 140 * MS <= report.duration < 5 * SECOND
    now = adds_up(server)
    assert (now.cancelled, now.dropped, now.stuck_handlers) == (2, 1, 1)
    stop.set()
    await wait_until(lambda: not server.statistics().stuck_handlers)


async def test_for_a_while_it_still_receives() -> None:
    server = DatagramServer(echo_datagram, UDP)
    await server.start()
    with Peer(server) as peer:
        draining = asyncio.create_task(server.drain(delay=200 * MS))
        await wait_until(lambda: not server.ready)
        assert await peer.ask(b"late") == b"late"
        await within(draining)
    assert adds_up(server).handled == 1


async def test_a_second_drain_hurries_the_first() -> None:
    slow = Slow()
    server = DatagramServer(slow, UDP)
    await server.start()
    with Peer(server) as peer:
        peer.send(b"x")
        await wait_until(lambda: adds_up(server).running == 1)
    first = asyncio.create_task(server.drain(None))
    await stays(lambda: not first.done())
    await within(server.drain(0))
    await within(first)
    assert adds_up(server).cancelled == 1


async def test_a_drain_that_is_cancelled_closes_at_once() -> None:
    slow = Slow()
    server = DatagramServer(slow, UDP)
    await server.start()
    with Peer(server) as peer:
        peer.send(b"x")
        await wait_until(lambda: adds_up(server).running == 1)
    draining = asyncio.create_task(server.drain())
    await stays(lambda: not draining.done())
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await within(draining)
    assert server.addresses == ()
    assert adds_up(server).cancelled == 1


async def test_a_unix_path_is_free_while_it_drains(tmp_path: Path) -> None:
    slow = Slow()
    address = f"unixgram:{tmp_path}/s"
    server = DatagramServer(slow, address)
    await server.start()
    with Peer(server, name=f"{tmp_path}/c") as peer:
        peer.send(b"x")
        await wait_until(lambda: adds_up(server).running == 1)
        draining = asyncio.create_task(server.drain())
        while "s" in await files_in(tmp_path):
            assert not draining.done()
        async with serving(echo_datagram, address) as successor:
            with Peer(successor, name=f"{tmp_path}/d") as other:
                assert await other.ask(b"y") == b"y"
            slow.done.set()
            assert await peer.receive() == b"x"
            await within(draining)
            assert "s" in await files_in(tmp_path)


@pytest.mark.parametrize("options", [{"timeout": -1}, {"delay": -1}, {"delay": None}, {"timeout": "5"}])
async def test_options_of_the_drain(options: dict[str, Any]) -> None:
    async with DatagramServer(echo_datagram, UDP) as server:
        with pytest.raises(OptionError):
            await server.drain(**options)
        assert server.ready


# Statistics.


async def test_what_is_counted(tmp_path: Path) -> None:
    """What the other tests do not: bytes, replies, packets that are cut off."""
    limits = DatagramLimits(max_packet_size=10)
    async with serving(echo_datagram, UDP, f"unixgram:{tmp_path}/s", limits=limits) as server:
        with Peer(server) as peer:
            assert await peer.ask(b"12345") == b"12345"
            assert await peer.ask(bytes(20)) == bytes(10)
        now = server.statistics()
        assert (now.received, now.handled, now.sent) == (2, 2, 2)
        assert (now.bytes_received, now.bytes_sent, now.truncated) == (15, 15, 1)
        await wait_until(lambda: server.statistics().uptime > now.uptime)
        assert now.dropped_by_kernel == 0
        first, second = now.endpoints
        assert (first.received, first.sent, first.bytes_received, first.bytes_sent) == (2, 2, 15, 15)
        assert (first.truncated, first.send_errors, first.network_errors) == (1, 0, 0)
        assert (first.dropped_by_kernel, second.dropped_by_kernel) == (0, None)
        assert first.address == str(server.addresses[0])
        assert second == type(second)(str(server.addresses[1]), 0, 0, 0, 0, 0, None, 0, 0, frozenset())
        server.endpoints[1].pause()
        assert server.statistics().endpoints[1].paused == {"requested"}
        server.endpoints[1].resume()
        assert not server.statistics().endpoints[1].paused
    closed = server.statistics()
    assert [each.paused for each in closed.endpoints] == [{"closed"}] * 2
    assert (closed.received, closed.bytes_sent, closed.dropped_by_kernel) == (2, 15, 0)
    assert server.statistics().uptime == closed.uptime


async def test_errors_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    gone = asyncio.Event()

    async def handler(datagram: Datagram) -> None:
        await gone.wait()
        await datagram.reply(b"x")
        await datagram.reply(b"x")

    async with serving(handler, UDP, f"unixgram:{tmp_path}/s") as server:
        unix = server.addresses[1]
        assert isinstance(unix, UnixDatagramAddress)
        with Peer(server) as peer, Peer(unix, name=f"{tmp_path}/c") as named:
            peer.send(b"x")
            named.send(b"x")
            await wait_until(lambda: adds_up(server).running == 2)
        gone.set()
        await ended(server, 2)
        server.endpoints[0].packets.take_errors()
        await wait_until(lambda: server.statistics().network_errors >= 1)
        now = server.statistics()
        assert now.endpoints[0].network_errors == now.network_errors
        assert now.endpoints[1].send_errors == now.send_errors == 1
    assert not complaints(caplog)
