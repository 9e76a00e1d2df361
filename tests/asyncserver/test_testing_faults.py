"""Each fault is what it says, servers of every kind survive all of them, and who does not is found out."""

from __future__ import annotations

import asyncio
import select
import socketserver
from functools import partial
from typing import Any

import pytest

import compat
from asyncserver import OptionError, Server, Stream, Timeouts, parse_address
from asyncserver.testing import (
    Client,
    DatagramClient,
    TLSClient,
    faults,
    serving,
    serving_datagrams,
    serving_in_thread,
)
from tests.clients import complaints, echo, kept_port
from tests.datagrams import adds_up, echo_datagram
from tests.waiting import MS, PATIENCE, stays, wait_until, within

QUICK = 50 * MS
"""How long those faults last here that only wait."""


class Noted:
    """An echo server's handler that notes what it receives."""

    def __init__(self) -> None:
        self.received: list[bytes] = []

    async def __call__(self, stream: Stream) -> None:
        async for chunk in stream:
            self.received.append(chunk)
            await stream.send(chunk)


async def ends(server: Server) -> dict[str, int]:
    """How all connections that there were have ended."""
    await wait_until(lambda: server.statistics().accepted and not server.connections)
    return {str(reason): count for reason, count in server.statistics().closed.items()}


# One by one.


async def test_byte_at_a_time() -> None:
    handler = Noted()
    async with serving(handler) as server:
        assert await faults.byte_at_a_time(server, b"hello") == b"hello"
        assert await ends(server) == {"eof": 1}
    assert handler.received == [b"h", b"e", b"l", b"l", b"o"]


async def test_half_close() -> None:
    handler = Noted()
    async with serving(handler) as server:
        assert await faults.half_close(server, b"hello") == b"hello"
        assert await ends(server) == {"eof": 1}


async def test_never_reading() -> None:
    handler = Noted()
    async with serving(handler) as server:
        for amount in (100, 10_000):
            assert await faults.never_reading(server, b"hello", amount=amount, seconds=QUICK) == amount
        with pytest.raises(OptionError, match=r"data=b'': has to be a byte at least"):
            await faults.never_reading(server, b"")
        under_way = asyncio.create_task(faults.never_reading(server, amount=1 << 30, seconds=PATIENCE))
        await wait_until(lambda: any(connection.stream.unsent for connection in server.connections))
        under_way.cancel()
        # Whether a server meets a RST in sending or in receiving is left to the kernel.
        assert set(await ends(server)) <= {"reset", "eof"}


async def test_resets() -> None:
    handler = Noted()
    async with serving(handler) as server:
        await faults.reset_now(server)
        assert await ends(server) == {"reset": 1}
        await faults.reset_in_a_message(server)
        await wait_until(lambda: server.statistics().accepted == 2)
        assert await ends(server) in ({"reset": 2}, {"reset": 1, "eof": 1})
    assert b"".join(handler.received) in (b"", b"hell")


async def test_connect_and_vanish() -> None:
    async with serving(echo) as server:
        await faults.connect_and_vanish(server)
        assert await ends(server) == {"eof": 1}


@pytest.mark.parametrize("fault", [faults.silent_tls_client, faults.stalled_handshake])
async def test_no_handshake(fault: Any) -> None:
    async with serving(echo, transport="tls", timeouts=Timeouts(handshake=4 * QUICK)) as server:
        assert await fault(server, seconds=QUICK / 5) == "open"
        assert await fault(server, seconds=100 * QUICK) in ("eof", "reset")
        closed = await ends(server)
        assert sum(closed.values()) == 2
        assert set(closed) <= {"handshake_failed", "handshake_timeout", "eof", "reset"}


async def test_garbage() -> None:
    handler = Noted()
    async with serving(handler) as server, serving(echo, transport="tls") as secure:
        answer = await faults.garbage(server, size=1_000)
        assert len(answer) == 1_000
        assert await faults.garbage(server, size=1_000) == answer
        assert await faults.garbage(server, size=1_000, seed=1) != answer
        await faults.garbage(secure)
        assert await ends(secure) == {"handshake_failed": 1}


class SlowToEnd(Client):
    """Has been reset when it half-closes."""

    async def send(self, data: bytes) -> None:
        await super().send(data)
        hung_up = select.poll()
        hung_up.register(self.sock, 0)
        await wait_until(lambda: hung_up.poll(0))


@pytest.mark.parametrize(
    "fault",
    [partial(faults.byte_at_a_time, data=b"x"), faults.half_close, faults.garbage],
    ids=["byte_at_a_time", "half_close", "garbage"],
)
async def test_a_reset_before_the_end(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(stream: Stream) -> None:
        await stream.receive()
        stream.abort()

    monkeypatch.setattr(faults, "Client", SlowToEnd)
    async with serving(handler) as server:
        assert await fault(server) == b""


@pytest.mark.parametrize(("receive", "result"), [(faults._stay, "eof"), (faults._read, b"the end")])
async def test_waiting_longer_than_a_client_does(receive: Any, result: object) -> None:
    may_end = asyncio.Event()

    async def handler(stream: Stream) -> None:
        await may_end.wait()
        await stream.send(b"the end")

    async with serving(handler) as server, await Client.connect(server) as client:
        client.timeout = QUICK / 5
        receiving = asyncio.create_task(receive(client, PATIENCE))
        await stays(lambda: not receiving.done(), during=QUICK)
        may_end.set()
        assert await within(receiving) == result


async def test_crowd() -> None:
    async with serving(echo) as server:
        await faults.crowd(server, count=7, seconds=QUICK)
        assert await ends(server) == {"eof": 7}
        assert server.statistics().peak == 7


async def test_faults_of_datagrams() -> None:
    async with serving_datagrams(echo_datagram) as server:
        await faults.garbage_packets(server, count=5)
        await faults.sender_vanishes(server)
        await faults.flood(server, count=100)
        await wait_until(lambda: adds_up(server).received + (adds_up(server).dropped_by_kernel or 0) == 106)
    sizes = [number * 350 for number in range(5)]
    assert server.statistics().bytes_received >= sum(sizes)


async def test_the_mappings_are_complete() -> None:
    public = {name for name in faults.__all__ if name.islower()} - {"check_survival"}
    assert set(faults.FAULTS) | set(faults.DATAGRAM_FAULTS) == public
    assert all(fault.__name__ == name for name, fault in faults.FAULTS.items())  # type: ignore[attr-defined]


async def test_a_server_that_is_gone() -> None:
    with kept_port() as port:
        address = f"tcp://127.0.0.1:{port}"
        for fault in faults.FAULTS.values():
            with pytest.raises(ConnectionRefusedError):
                await fault(address)


# All of them.


async def probe(target: Any) -> None:
    async with await Client.connect(target) as client:
        assert await client.ask(b"hello") == b"hello"


async def probe_tls(target: Any) -> None:
    async with await TLSClient.connect(target) as client:
        assert await client.ask(b"hello") == b"hello"


async def probe_datagrams(target: Any) -> None:
    async with await DatagramClient.connect(target) as client:
        assert await client.ask(b"hello") == b"hello"


@pytest.mark.parametrize("transport", ["tcp", "tls+unix"])
async def test_servers_survive(transport: Any, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(echo, transport=transport) as server:
        await faults.check_survival(server, probe_tls if "tls" in transport else probe)
    assert not complaints(caplog)


async def test_datagram_servers_survive() -> None:
    async with serving_datagrams(echo_datagram, transport="unix") as server:
        await faults.check_survival(server, probe_datagrams)


class Handler(socketserver.BaseRequestHandler):
    """An echo that does not mind how its peers end."""

    def handle(self) -> None:
        try:
            while data := self.request.recv(4_096):
                self.request.sendall(data)
        except ConnectionError:
            pass


def test_servers_of_compat_survive() -> None:
    with serving_in_thread(compat.ThreadingTCPServer(("127.0.0.1", 0), Handler)) as server:
        asyncio.run(faults.check_survival(server, probe))


async def test_a_server_that_dies_is_found_out() -> None:
    async def deadly(target: Any) -> None:
        await server.aclose()

    async with serving(echo) as server:
        deadly_too = {"reset_now": faults.reset_now, "deadly": deadly}
        with pytest.raises(AssertionError, match=r"^the probe fails (during|after) deadly: ") as caught:
            await faults.check_survival(server.addresses[0], probe, faults=deadly_too)
    # Connected before the end, or after it.
    assert isinstance(caught.value.__cause__, AssertionError | ConnectionError)


async def test_a_server_that_hangs_is_found_out() -> None:
    stuck = asyncio.Event()

    async def handler(stream: Stream) -> None:
        async for chunk in stream:
            if not chunk.isascii():
                stuck.set()
            if not stuck.is_set():
                await stream.send(chunk)

    quick = {name: faults.FAULTS[name] for name in ("reset_now", "garbage", "connect_and_vanish")}
    async with serving(handler) as server:
        with pytest.raises(
            AssertionError, match=r"the probe fails (during|after) garbage: TimeoutError"
        ) as caught:
            await within(faults.check_survival(server, probe, faults=quick, timeout=15 * QUICK))
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_a_probe_that_never_succeeds() -> None:
    async def wrong(target: Any) -> None:
        raise ValueError("no answer is right")

    async with serving(echo) as server:
        with pytest.raises(AssertionError, match="the probe fails before the first fault: ValueError"):
            await faults.check_survival(server, wrong)


async def test_a_fault_of_ones_own() -> None:
    seen: list[object] = []

    async def own(target: Any) -> None:
        seen.append(target)

    async with serving(echo) as server:
        await faults.check_survival(server, probe, faults={"own": own})
        assert seen == [server] * 2
        address = parse_address(str(server.addresses[0]))
        await faults.check_survival(address, probe, faults={"own": own})
