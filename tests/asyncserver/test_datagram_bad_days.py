"""What a datagram server must survive. Each load is bounded, and nothing here depends on luck in time."""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from typing import Any

import pytest

from asyncserver import Datagram, DatagramLimits, DatagramOptions, DatagramServer, UDPAddress
from tests.clients import complaints
from tests.datagrams import UDP, Peer, adds_up, echo_datagram, ended, serving
from tests.waiting import MS, wait_until, within

FLOOD = 20_000


async def flooded(server: DatagramServer, peer: Peer, number: int, *, burst: int = 100) -> None:
    """Send so many packets, in bursts between which the server has one turn of the loop."""
    packet = b"x" * 100
    for _ in range(number // burst):
        peer.send(*[packet] * burst)
        await asyncio.sleep(0)


async def all_accounted_for(server: DatagramServer, sent: int) -> None:
    """Each packet was received or dropped by the kernel, and each that was received has ended."""

    def gone() -> bool:
        now = adds_up(server)
        return now.received + (now.dropped_by_kernel or 0) == sent and not now.queued and not now.running

    await wait_until(gone, what=lambda: f"{sent} packets: {server.statistics()}")


@pytest.mark.parametrize("when_full", ["drop_newest", "drop_oldest"])
@pytest.mark.parametrize("order", ["any", "peer", "strict"])
async def test_ten_times_as_much_as_the_handlers_take(when_full: Any, order: Any) -> None:
    most = 0

    async def handler(datagram: Datagram) -> None:
        nonlocal most
        most = max(most, adds_up(datagram.server).running)
        for _ in range(10):  # turns of the loop, each of which brings more than one handler can take
            await asyncio.sleep(0)

    limits = DatagramLimits(max_handlers=10, max_queue=100, when_full=when_full, order=order)
    async with serving(handler, limits=limits) as server, Peer(server) as peer:
        await flooded(server, peer, FLOOD // 10)
        gc.collect()
        tracemalloc.start()
        try:
            await flooded(server, peer, FLOOD // 10)
            before, _ = tracemalloc.get_traced_memory()
            await flooded(server, peer, FLOOD // 5)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 1 << 20
        await all_accounted_for(server, 2 * FLOOD // 5)
        now = adds_up(server)
        assert now.dropped > now.handled > 0
    assert most <= (1 if order == "strict" else 10)


@pytest.mark.allow_blocking("a handler that blocks is what this is about")
async def test_a_handler_that_blocks() -> None:
    """Meanwhile the kernel's buffer fills, and what finds no room is counted."""

    async def handler(datagram: Datagram) -> None:
        if datagram.data == b"block":
            with Peer(datagram.server) as other:
                time.sleep(50 * MS)  # noqa: ASYNC251
                other.send(*[bytes(1_000)] * 1_000)
                time.sleep(50 * MS)  # noqa: ASYNC251
        await datagram.reply(datagram.data)

    options = DatagramOptions(receive_buffer=100_000)
    async with serving(handler, options=options) as server, Peer(server) as peer:
        peer.send(b"block")
        assert await peer.receive() == b"block"
        await all_accounted_for(server, 1_001)
        now = adds_up(server)
        assert now.dropped_by_kernel
        assert now.dropped_by_kernel == now.endpoints[0].dropped_by_kernel
        assert now.dropped == 0
        assert await peer.ask(b"still there") == b"still there"
        dropped = now.dropped_by_kernel
    assert server.statistics().dropped_by_kernel == dropped


async def test_a_handler_that_always_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(datagram: Datagram) -> None:
        if datagram.data.endswith(b"5"):
            await asyncio.sleep(0)
        raise ValueError(datagram.data)

    async with serving(handler) as server, Peer(server) as peer:
        peer.send(*[b"%03d" % number for number in range(300)])
        assert (await ended(server, 300)).failed == 300
    assert len(complaints(caplog)) == 300


@pytest.mark.parametrize("address", [UDP, "udp://[::1]:0"])
async def test_packets_of_all_sizes(address: str) -> None:
    async with serving(echo_datagram, address) as server, Peer(server) as peer:
        for size in (0, 1, 2_047, 2_048, 2_049, 8_192, 65_507):
            assert await peer.ask(bytes(size)) == bytes(size)
        peer.send(b"", b"", b"x", b"")
        assert [await peer.receive() for _ in range(4)] == [b"", b"", b"x", b""]
        assert adds_up(server).truncated == 0


async def test_peers_that_are_gone_among_others(caplog: pytest.LogCaptureFixture) -> None:
    """What the kernel says about the ones does not cost the others their replies."""
    gate = asyncio.Event()

    async def handler(datagram: Datagram) -> None:
        await gate.wait()
        await datagram.reply(datagram.data)
        await asyncio.sleep(0)
        await datagram.reply(datagram.data)

    async with serving(handler, limits=DatagramLimits(max_handlers=200)) as server:
        gone = [Peer(server) for _ in range(20)]
        there = [Peer(server) for _ in range(20)]
        for peers in zip(gone, there, strict=True):
            for peer in peers:
                peer.send(b"x")
        await wait_until(lambda: adds_up(server).running == 40)
        for peer in gone:
            peer.sock.close()
        gate.set()
        for peer in there:
            assert [await peer.receive() for _ in range(2)] == [b"x"] * 2
            peer.sock.close()
        assert (await ended(server, 40)).handled == 40
        assert adds_up(server).network_errors > 0
        with Peer(server) as peer:
            assert await peer.ask(b"y") == b"y"
    assert not complaints(caplog)


@pytest.mark.parametrize("order", ["any", "peer", "strict"])
async def test_a_drain_under_load(order: Any) -> None:
    """All that was begun or queued is answered; nothing hangs, and nothing is lost without being counted."""

    async def handler(datagram: Datagram) -> None:
        await asyncio.sleep(0.001)
        await datagram.reply(datagram.data)

    limits = DatagramLimits(max_handlers=20, max_queue=200, order=order)
    server = DatagramServer(handler, UDP, limits=limits)
    await server.start()
    with Peer(server) as peer:
        load = asyncio.create_task(flooded(server, peer, 1_000, burst=50))
        await wait_until(lambda: adds_up(server).handled > 10)
        report = await within(server.drain())
        load.cancel()
        await asyncio.wait([load])
        if not load.cancelled():
            load.exception()  # Nobody listens there any more.
        answers = len(peer.received())
    now = adds_up(server)
    assert report.clean
    assert (now.cancelled, now.failed, now.queued, now.running) == (0, 0, 0, 0)
    assert now.sent == now.handled == answers


async def test_two_addresses_behind_one_wildcard() -> None:
    """The replies come from where the packets went to, or connected peers would not see them."""
    seen: set[str] = set()

    async def handler(datagram: Datagram) -> None:
        seen.add(str(datagram.local))
        if datagram.data == b"slow":
            await asyncio.sleep(0)
        await datagram.reply(datagram.data)

    async with serving(handler, "udp://0.0.0.0:0") as server:
        address = server.addresses[0]
        assert isinstance(address, UDPAddress)
        for host in ("127.0.0.1", "127.0.0.2"):
            with Peer(UDPAddress(host, address.port)) as peer:
                assert await peer.ask(b"quick") == b"quick"
                assert await peer.ask(b"slow") == b"slow"
        assert seen == {f"127.0.0.{number}:{address.port}" for number in (1, 2)}
