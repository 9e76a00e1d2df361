"""What tests of datagram servers have in common: peers on plain sockets, and the sums that have to be right.

::

    async with serving(echo) as server, Peer(server) as peer:
        assert await peer.ask(b"hello") == b"hello"
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asyncserver import (
    Datagram,
    DatagramServer,
    DatagramStatistics,
    UDPAddress,
    UnixDatagramAddress,
)
from tests.waiting import wait_until, within

__all__ = ["UDP", "Peer", "adds_up", "echo_datagram", "ended", "serving"]

UDP = "udp://127.0.0.1:0"


async def echo_datagram(datagram: Datagram) -> None:
    """Sends back what comes."""
    await datagram.reply(datagram.data)


def adds_up(server: DatagramServer) -> DatagramStatistics:
    """The server's counters, after making sure that every packet is in exactly one of them."""
    now = server.statistics()
    ends = now.handled + now.failed + now.cancelled + now.dropped
    assert now.received == ends + now.queued + now.running, now
    assert now.received == sum(each.received for each in now.endpoints)
    return now


@asynccontextmanager
async def serving(handler: Any, *addresses: Any, **options: Any) -> AsyncIterator[DatagramServer]:
    """A server that is ready, whose counters are looked at before and after its end."""
    async with DatagramServer(handler, *(addresses or (UDP,)), **options) as server:
        await asyncio.sleep(
            0
        )  # Before Python 3.12 a handler cannot be started without a task of its own yet.
        yield server
        adds_up(server)
    adds_up(server)
    assert server.statistics().queued == server.statistics().running == 0


class Peer:
    """A socket that is connected to a server, or to an address of it; sends at once."""

    def __init__(self, target: DatagramServer | UDPAddress | UnixDatagramAddress, *, name: str = "") -> None:
        address = target.addresses[0] if isinstance(target, DatagramServer) else target
        assert isinstance(address, UDPAddress | UnixDatagramAddress)
        is_udp = isinstance(address, UDPAddress)
        family = socket.AF_UNIX if not is_udp else socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        if name:
            self.sock.bind(name)
        if isinstance(address, UDPAddress):
            host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address.host, address.host)
            self.sock.connect((host, address.port))
        else:
            path = address.path
            self.sock.connect(b"\0" + os.fsencode(path[1:]) if path.startswith("@") else path)

    async def __aenter__(self) -> Peer:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @property
    def port(self) -> int:
        """Its own."""
        port: int = self.sock.getsockname()[1]
        return port

    def send(self, *packets: bytes) -> None:
        """Over loopback they are in the server's receive buffer when this returns."""
        for packet in packets:
            self.sock.send(packet)

    async def receive(self) -> bytes:
        """The next packet."""
        return await within(asyncio.get_running_loop().sock_recv(self.sock, 65_536), what="a packet")

    async def ask(self, data: bytes) -> bytes:
        """Send, and wait for the answer."""
        self.send(data)
        return await self.receive()

    def received(self) -> list[bytes]:
        """All that have come."""
        found: list[bytes] = []
        while True:
            try:
                found.append(self.sock.recv(65_536))
            except BlockingIOError:
                return found


async def ended(server: DatagramServer, number: int) -> DatagramStatistics:
    """Wait until so many packets have come and none waits or is being served."""
    await wait_until(
        lambda: (now := adds_up(server)).received >= number and not now.queued and not now.running,
        what=lambda: f"{number} packets: {server.statistics()}",
    )
    return adds_up(server)
