from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from asyncserver import (
    Address,
    CloseReason,
    Limits,
    OptionError,
    Server,
    Stream,
    TCPAddress,
    Timeouts,
    current_connection,
)
from asyncserver import admission as admission_module
from asyncserver import hub as hub_module
from asyncserver.admission import Admission
from tests.clients import Client, complaints, connect_many, echo, ignore_cancellation, local_server
from tests.waiting import MS, stays, wait_until, within

pytestmark = pytest.mark.usefixtures("tasks_as_in_production")


def close_all(clients: list[Client]) -> None:
    for client in clients:
        client.close()


async def has(server: Server, count: int) -> None:
    await wait_until(lambda: len(server.connections) == count, what=lambda: f"{count}: {server.statistics()}")


def per_peer(server: Server) -> dict[str, int]:
    assert server._hub is not None
    return server._hub._admission._per_peer


# max_connections.


async def test_the_full_server_waits_and_loses_nobody() -> None:
    async with local_server(limits=Limits(max_connections=3)) as server:
        clients = await connect_many(server, 10)
        for client in clients:
            await client.send(b"hello")
        await has(server, 3)
        await stays(lambda: len(server.connections) == 3)
        assert server.statistics().listeners[0].paused == {"full"}
        for client in clients:
            assert await client.receive_exactly(5) == b"hello"
            assert len(server.connections) <= 3
            client.close()
        await has(server, 0)
        statistics = server.statistics()
        assert (statistics.accepted, statistics.peak, statistics.rejected) == (10, 3, 0)
        assert statistics.listeners[0].paused == frozenset()


async def test_the_limit_is_that_of_all_addresses_together() -> None:
    addresses = ["tcp://127.0.0.1:0"] * 3
    async with local_server(echo, *addresses, limits=Limits(max_connections=2)) as server:
        clients = [await Client.connect(server, index=index) for index in (0, 1, 2, 0, 1, 2)]
        await has(server, 2)
        assert all(listener.paused == {"full"} for listener in server.listeners)

        async def visit(client: Client) -> None:
            assert await client.ask(b"x") == b"x"
            assert len(server.connections) <= 2
            client.close()

        await asyncio.gather(*map(visit, clients))
        await has(server, 0)
        assert server.statistics().peak == 2


async def test_no_address_is_forgotten_while_another_one_is_flooded() -> None:
    served: list[Address] = []

    async def handler(stream: Stream) -> None:
        served.append(current_connection().listener.address)
        await asyncio.sleep(0)

    limits, timeouts = Limits(max_connections=1), Timeouts(linger=0)
    addresses = ["tcp://127.0.0.1:0"] * 3
    async with local_server(handler, *addresses, limits=limits, timeouts=timeouts) as server:
        for listener in server.listeners:
            listener.pause()
        flood = [await Client.connect(server, index=index) for index in (0, 2) for _ in range(20)]
        others = [await Client.connect(server, index=1) for _ in range(3)]
        for listener in server.listeners:
            listener.resume()
        await wait_until(lambda: len(served) == 43)
        last = max(index for index, address in enumerate(served) if address == server.addresses[1])
        assert last < 20
        close_all(flood + others)


async def test_the_full_server_rejects_if_it_is_told_to() -> None:
    limits = Limits(max_connections=2, when_full="reject")
    async with local_server(limits=limits) as server:
        first, second = clients = await connect_many(server, 2)
        await has(server, 2)
        async with await Client.connect(server) as third:
            assert await third.ended() == "eof"
        assert await first.ask(b"x") == b"x"
        second.close()
        await has(server, 1)
        async with await Client.connect(server) as fourth:
            assert await fourth.ask(b"x") == b"x"
        close_all(clients)
        await has(server, 0)
        statistics = server.statistics()
        assert (statistics.accepted, statistics.rejected) == (4, 1)
        assert statistics.closed == {CloseReason.LIMIT: 1, CloseReason.EOF: 3}


async def test_the_rejected_get_a_last_message() -> None:
    limits = Limits(max_connections=1, when_full="reject", reject_message=b"full, come back later\n")
    async with local_server(limits=limits) as server, await Client.connect(server) as first:
        await first.ask(b"x")
        for talk in (b"", b"hello" * 1_000):
            async with await Client.connect(server) as second:
                await second.send(talk)
                assert await second.receive_all() == b"full, come back later\n"
        assert server.statistics().rejected == 2
        assert len(server.connections) == 1


async def test_a_flood_of_rejected_ones(caplog: pytest.LogCaptureFixture) -> None:
    """Who does not read or resets costs nothing and is not logged; farewells are bounded."""
    limits = Limits(max_connections=1, when_full="reject", reject_message=b"x" * 4_096)
    async with local_server(limits=limits) as server, await Client.connect(server) as first:
        await first.ask(b"x")
        clients = await connect_many(server, 150)
        await wait_until(lambda: server.statistics().rejected == 150)
        hub = server._hub
        assert hub is not None
        assert len(hub._farewells) <= 100
        for client in clients[::2]:
            client.reset()
        assert await first.ask(b"x") == b"x"
        await wait_until(lambda: not hub._farewells)
        close_all(clients)
    assert not complaints(caplog)


async def test_closing_does_not_wait_for_farewells() -> None:
    limits = Limits(max_connections=1, when_full="reject", reject_message=b"full")
    server = local_server(limits=limits)
    await server.start()
    async with await Client.connect(server) as first, await Client.connect(server) as second:
        await wait_until(lambda: server.statistics().rejected == 1)
        first.close()
        await within(server.aclose(), timeout=0.9)
        assert await second.receive_all() == b"full"


# Per peer.


async def test_no_peer_has_more_than_its_share() -> None:
    limits = Limits(max_connections_per_peer=2)
    async with local_server(limits=limits) as server:
        clients = [await Client.connect(server, source="127.0.0.1") for _ in range(2)]
        for client in clients:
            assert await client.ask(b"x") == b"x"
        async with await Client.connect(server, source="127.0.0.1") as third:
            assert await third.ended() == "eof"
        async with await Client.connect(server, source="127.0.0.2") as other:
            assert await other.ask(b"x") == b"x"
            assert server.statistics().rejected == 1
            clients.pop().close()
            await has(server, 2)
        async with await Client.connect(server, source="127.0.0.1") as again:
            assert await again.ask(b"x") == b"x"
        close_all(clients)


async def test_ipv6_peers() -> None:
    async with local_server(echo, "tcp://[::1]:0", limits=Limits(max_connections_per_peer=1)) as server:
        async with await Client.connect(server) as first:
            assert await first.ask(b"x") == b"x"
            async with await Client.connect(server) as second:
                assert await second.ended() == "eof"


async def test_users_are_the_peers_of_a_unix_socket(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    async with local_server(echo, address, limits=Limits(max_connections_per_peer=1)) as server:
        async with await Client.connect(server) as first:
            assert await first.ask(b"x") == b"x"
            async with await Client.connect(server) as second:
                assert await second.ended() == "eof"
            assert list(per_peer(server)) == [f"uid:{os.getuid()}"]


async def test_nothing_is_kept_of_peers_that_are_gone() -> None:
    async with local_server(limits=Limits(max_connections_per_peer=5)) as server:
        for last in range(1, 20):
            async with await Client.connect(server, source=f"127.0.0.{last}") as client:
                await client.ask(b"x")
        await has(server, 0)
        assert not per_peer(server)


async def test_a_limit_per_peer_counts_those_who_came_before_it() -> None:
    async with local_server() as server:
        clients = [await Client.connect(server, source="127.0.0.1") for _ in range(3)]
        await has(server, 3)
        server.update(max_connections_per_peer=2)
        async with await Client.connect(server, source="127.0.0.1") as refused:
            assert await refused.ended() == "eof"
        async with await Client.connect(server, source="127.0.0.2") as other:
            assert await other.ask(b"x") == b"x"
            for client in clients:
                assert await client.ask(b"x") == b"x"
            while len(clients) > 1:
                clients.pop().close()
            await has(server, 2)
            async with await Client.connect(server, source="127.0.0.1") as again:
                assert await again.ask(b"x") == b"x"
        close_all(clients)
        await has(server, 0)
        assert server.statistics().rejected == 1
        assert not per_peer(server)


async def test_a_limit_per_peer_that_is_turned_off_and_on_again_counts_right() -> None:
    async with local_server(limits=Limits(max_connections_per_peer=5)) as server:
        clients = await connect_many(server, 3)
        await has(server, 3)
        for expected in (4, 5):
            server.update(max_connections_per_peer=None)
            clients.pop(0).close()
            await has(server, expected - 2)
            clients += await connect_many(server, 2)
            await has(server, expected)
            for _ in range(2):
                server.update(max_connections_per_peer=5)
            assert per_peer(server) == {"127.0.0.1": expected}
        async with await Client.connect(server) as refused:
            assert await refused.ended() == "eof"
        close_all(clients)
        await has(server, 0)
        assert not per_peer(server)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("tcp://127.0.0.1:0", "127.0.0.1"),
        ("tcp://[::1]:0", "::1"),
        ("tcp://[::]:0?dual_stack=1", "127.0.0.1"),
        ("unix:{directory}/s", None),
    ],
)
async def test_a_peer_is_the_same_before_and_after_the_limit(
    address: str, host: str | None, tmp_path: Path
) -> None:
    async with local_server(echo, address.format(directory=tmp_path)) as server:
        target = server.addresses[0]
        if isinstance(target, TCPAddress):
            target = TCPAddress(host, target.port)
        async with await Client.connect(target):
            await has(server, 1)
            server.update(max_connections_per_peer=2)
            async with await Client.connect(target) as second:
                assert await second.ask(b"x") == b"x"
                assert list(per_peer(server).values()) == [2]
            await has(server, 1)
        await has(server, 0)
        assert not per_peer(server)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:0", "unix:{directory}/s"])
@pytest.mark.parametrize("part", ["abort", "detach", "lend"])
async def test_a_limit_per_peer_finds_connections_without_a_socket(
    address: str, part: str, tmp_path: Path
) -> None:
    parted, until = asyncio.Event(), asyncio.Event()

    async def handler(stream: Stream) -> None:
        if part == "lend":
            async with stream.blocking_socket():
                parted.set()
                await until.wait()
        elif part == "detach":
            with stream.detach():
                parted.set()
                await until.wait()
        else:
            parted.set()
            await ignore_cancellation(until)

    timeouts = Timeouts(linger=0)
    async with local_server(handler, address.format(directory=tmp_path), timeouts=timeouts) as server:
        async with await Client.connect(server):
            await within(parted.wait())
            if part == "abort":
                next(iter(server.connections)).abort()
            server.update(max_connections_per_peer=1)
            assert list(per_peer(server).values()) == [1]
            until.set()
            await has(server, 0)
            assert not per_peer(server)


class TestCounting:
    """Without sockets."""

    @staticmethod
    async def make(**limits: Any) -> Admission:
        return Admission(asyncio.get_running_loop(), Limits(**limits))

    @staticmethod
    def key(admission: Admission, sockaddr: Any, family: int = socket.AF_INET6) -> str | None:
        sock = type("FakeSocket", (), {"family": family})()
        return admission.key_of(sock, sockaddr)

    async def test_a_64_network_is_one_peer(self) -> None:
        admission = await self.make(max_connections_per_peer=2)
        admission.attach(())
        neighbours = [self.key(admission, (f"2001:db8:0:1::{n}", 5, 0, 0)) for n in (1, 2, 3)]
        assert [admission.admit(key) for key in neighbours] == [None, None, "max_connections_per_peer"]
        assert admission.admit(self.key(admission, ("2001:db8:0:2::1", 5, 0, 0))) is None
        admission.discharge(neighbours[0])
        assert admission.admit(neighbours[2]) is None

    async def test_an_ipv4_peer_is_the_same_on_either_kind_of_socket(self) -> None:
        admission = await self.make(max_connections_per_peer=1)
        admission.attach(())
        assert admission.admit(self.key(admission, ("192.0.2.1", 5), socket.AF_INET)) is None
        mapped = self.key(admission, ("::ffff:192.0.2.1", 5, 0, 0))
        assert admission.admit(mapped) == "max_connections_per_peer"

    async def test_nobody_is_asked_who_he_is_without_a_limit(self) -> None:
        admission = await self.make()
        assert admission.key_of(None, None) is None  # type: ignore[arg-type]

    async def test_those_who_were_counted_for_nobody_may_end_at_any_time(self) -> None:
        admission = await self.make()
        admission.attach(())
        assert [admission.admit(None) for _ in range(5)] == [None] * 5
        admission.update(Limits(max_connections_per_peer=1))
        assert admission.admit("192.0.2.1") is None
        assert admission.admit("192.0.2.1") == "max_connections_per_peer"
        admission.update(Limits())
        for key in [None, "192.0.2.1", None, None, None, None]:
            admission.discharge(key)
        assert admission._open == 0
        assert not admission._per_peer


# Rates.


async def test_a_rate_holds_connections_back_and_loses_none() -> None:
    limits = Limits(accept_rate=20, accept_burst=3)
    async with local_server(limits=limits) as server:
        loop = asyncio.get_running_loop()
        started = loop.time()
        clients = await connect_many(server, 9)
        await wait_until(lambda: server.statistics().listeners[0].paused == {"rate"})
        await wait_until(lambda: server.statistics().accepted == 9)
        # Three at once, then one each 50 ms.
        assert loop.time() - started >= 6 * 0.05 - 0.01
        close_all(clients)


async def test_the_rate_is_that_of_all_addresses_together() -> None:
    limits = Limits(accept_rate=0.001, accept_burst=4)
    async with local_server(echo, *["tcp://127.0.0.1:0"] * 2, limits=limits) as server:
        clients = [await Client.connect(server, index=index) for index in (0, 1) * 4]
        await wait_until(lambda: server.statistics().accepted == 4)
        await wait_until(lambda: all(listener.paused == {"rate"} for listener in server.listeners))
        await stays(lambda: server.statistics().accepted == 4)
        server.update(accept_rate=None, accept_burst=None)
        await has(server, 8)
        close_all(clients)


async def test_an_accept_that_finds_nobody_costs_nothing() -> None:
    limits = Limits(accept_rate=0.001, accept_burst=5)
    async with local_server(limits=limits) as server:
        clients = []
        for _ in range(5):
            clients.append(await Client.connect(server))
            assert await clients[-1].ask(b"x") == b"x"
        assert server.statistics().accepted == 5
        close_all(clients)


async def test_a_change_lets_no_other_burst_in() -> None:
    async with local_server(limits=Limits(accept_rate=0.001, accept_burst=3)) as server:
        clients = await connect_many(server, 8)
        (listener,) = server.listeners
        await wait_until(lambda: listener.paused == {"rate"})
        for change in [{"idle": 100}, {"accept_burst": 4}, {"accept_burst": None}, {"accept_rate": 0.002}]:
            server.update(**change)
            await wait_until(lambda: listener.paused == {"rate"})
        assert server.statistics().accepted == 3
        close_all(clients)


@pytest.mark.parametrize(
    ("before", "after", "left"),
    [
        (Limits(accept_rate=0.001, accept_burst=5), Limits(accept_rate=0.001, accept_burst=5), 3),
        (Limits(accept_rate=0.001, accept_burst=5), Limits(accept_rate=0.002, accept_burst=5), 3),
        (Limits(accept_rate=0.001, accept_burst=5), Limits(accept_rate=0.001, accept_burst=9), 3),
        (Limits(accept_rate=0.001, accept_burst=5), Limits(accept_rate=0.001, accept_burst=2), 2),
        (Limits(accept_rate=0.001, accept_burst=5), Limits(accept_rate=0.001), 1),
        (Limits(), Limits(accept_rate=0.001, accept_burst=5), 5),
    ],
)
async def test_what_a_change_leaves_of_the_burst(before: Limits, after: Limits, left: int) -> None:
    admission = Admission(asyncio.get_running_loop(), before)
    admission.attach(())
    for _ in range(2):
        assert admission.may_accept()
        admission.admit(None)
    admission.update(after)
    for _ in range(left):
        assert admission.may_accept()
        admission.admit(None)
    assert not admission.may_accept()
    admission.close()


# Changes while it runs.


async def test_more_room_lets_the_waiting_in() -> None:
    async with local_server(limits=Limits(max_connections=2)) as server:
        clients = await connect_many(server, 8)
        await has(server, 2)
        server.update(max_connections=5)
        await has(server, 5)
        await stays(lambda: len(server.connections) == 5)
        server.update(max_connections=None)
        await has(server, 8)
        close_all(clients)


async def test_less_room_puts_nobody_out() -> None:
    async with local_server(limits=Limits(max_connections=6)) as server:
        clients = await connect_many(server, 5)
        await has(server, 5)
        server.update(max_connections=2)
        assert server.limits.max_connections == 2
        await stays(lambda: len(server.connections) == 5)
        waiting = await connect_many(server, 2)
        while len(clients) > 2:
            clients.pop().close()
            await has(server, len(clients))
            await stays(lambda: len(server.connections) == len(clients), during=10 * MS)
        clients.pop().close()
        await has(server, 2)
        clients.pop().close()
        for client in waiting:
            assert await client.ask(b"x") == b"x"
        close_all(waiting)


async def test_from_waiting_to_rejecting_and_back() -> None:
    async with local_server(limits=Limits(max_connections=1)) as server:
        first, second = await connect_many(server, 2)
        await has(server, 1)
        server.update(when_full="reject")
        assert await second.ended() == "eof"
        server.update(when_full="wait")
        third = await Client.connect(server)
        await stays(lambda: server.statistics().rejected == 1)
        first.close()
        assert await third.ask(b"x") == b"x"
        close_all([second, third])


async def test_buffers_of_open_connections() -> None:
    """``send()`` of a connection that was there before waits at the new limit."""
    sent = 0
    started = asyncio.Event()

    async def handler(stream: Stream) -> None:
        nonlocal sent
        await started.wait()
        while True:
            await stream.send(bytes(1_000))
            sent += 1_000

    async with local_server(handler, limits=Limits(send_buffer=64 << 20)) as server:
        async with await Client.connect(server, receive_buffer=4_096) as client:
            await has(server, 1)
            server.update(send_buffer=1_000)
            started.set()
            (connection,) = server.connections
            await wait_until(lambda: connection.stream.unsent > 0)
            await stays(lambda: connection.stream.unsent < 200_000, during=100 * MS)
            client.reset()


async def test_shorter_timeouts_hold_for_those_who_come_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_NEWCOMER_SECONDS", 3_600.0)
    async with local_server(timeouts=Timeouts(idle=None, send=None)) as server:
        async with await Client.connect(server) as first:
            await first.ask(b"x")
            server.update(first_byte=50 * MS)
            async with await Client.connect(server) as second:
                assert await second.ended() == "eof"
            assert await first.ask(b"x") == b"x"


async def test_a_change_at_the_very_end_arms_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "_NEWCOMER_SECONDS", 3_600.0)
    async with local_server(timeouts=Timeouts(idle=None, send=None)) as server:
        async with await Client.connect(server) as client:
            await client.ask(b"x")
        await has(server, 0)
        hub = server._hub
        assert hub is not None
        assert hub._newcomer_timer is not None
        await hub.close()
        server.update(idle=1)
        assert hub._newcomer_timer is None


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"max_connections": 0}, "max_connections"),
        ({"idle": -1, "max_connections": 5}, "idle"),
        ({"max_connections": 5, "max_conections": 5}, "max_conections"),
        ({"accept_burst": 5}, "accept_burst"),
        ({"handler": 5, "backlog": 5}, "backlog"),
        ({"limits": Limits()}, "limits"),
    ],
)
async def test_a_bad_change_changes_nothing(change: dict[str, Any], option: str) -> None:
    async with local_server() as server:
        before = (server.limits, server.timeouts)
        with pytest.raises(OptionError) as caught:
            server.update(**change)
        assert caught.value.option == option
        assert (server.limits, server.timeouts) == before
        assert server._hub is not None
        assert (server._hub.limits, server._hub.timeouts) == before


async def test_whole_values_and_single_fields() -> None:
    server = local_server()
    server.update(Limits(max_connections=7), Timeouts(idle=7), send=8, max_handshakes=9)
    assert server.limits == Limits(max_connections=7, max_handshakes=9)
    assert server.timeouts == Timeouts(idle=7, send=8)
    with pytest.raises(OptionError, match="limits="):
        server.update("100")  # type: ignore[arg-type]
    async with server:
        server.update()
        assert server.limits.max_connections == 7
    server.update(max_connections=8)
    assert server.limits.max_connections == 8


async def test_a_handler_may_change_the_limits() -> None:
    async def handler(stream: Stream) -> None:
        current_connection().server.update(max_connections=int(await stream.receive()))
        await stream.receive()

    async with local_server(handler, limits=Limits(max_connections=1)) as server:
        clients = await connect_many(server, 3)
        await has(server, 1)
        await clients[0].send(b"3")
        await has(server, 3)
        close_all(clients)


# Descriptors.


async def test_it_is_lowered_to_what_the_process_may_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(admission_module.resource, "getrlimit", lambda _: (100, 200))
    async with local_server(limits=Limits(max_connections=50)) as server:
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "max_connections lowered from 50 to 36" in record.message
        assert "RLIMIT_NOFILE" in record.message
        clients = await connect_many(server, 40)
        await has(server, 36)
        await stays(lambda: len(server.connections) == 36)
        close_all(clients)


@pytest.mark.parametrize(
    ("limit", "wanted", "most"), [(100, 36, 36), (10, 5, 1), (100, None, None), (-1, 10**6, 10**6)]
)
def test_what_the_process_may_open(
    limit: int, wanted: int | None, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert admission_module.resource.RLIM_INFINITY == -1
    monkeypatch.setattr(admission_module.resource, "getrlimit", lambda _: (limit, limit))
    assert admission_module._within_descriptors(wanted) == most
