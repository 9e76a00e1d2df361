"""``DatagramClient``: one peer of a datagram server."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import ExitStack
from functools import partial
from typing import Any, ClassVar, Self

from asyncserver.testing.bounds import TIMEOUT, bounded, check_timeout, when_there_is_room
from asyncserver.testing.places import short_directory
from asyncserver.testing.targets import Target, locate

__all__ = ["DatagramClient"]

_LARGEST = 65_536


class DatagramClient:
    """A socket that is connected to a datagram server; made by ``connect()``.

    No operation takes longer than ``timeout`` seconds, then it is a ``TimeoutError``. Packets can get lost:
    on the loopback interface only where a queue is full. After a packet to where nobody listens, the next
    operation raises ``ConnectionRefusedError``.
    """

    default_timeout: ClassVar[float] = TIMEOUT
    """Seconds that an operation may take, where ``connect()`` was not told otherwise."""

    def __init__(self, sock: socket.socket, *, timeout: float | None = None) -> None:
        """Of a connected socket, which is closed with this."""
        self.sock = sock
        """The socket itself, for what has no method here."""
        self.timeout: float = self.default_timeout if timeout is None else check_timeout(timeout)
        """Seconds that each operation may take; can be changed at any time."""
        sock.setblocking(False)
        self._exits = ExitStack()
        self._exits.callback(sock.close)

    @classmethod
    async def connect(
        cls,
        target: Target,
        *,
        index: int = 0,
        source: str | None = None,
        timeout: float | None = None,
    ) -> Self:
        """Take a socket for a server, or an address; nothing is sent.

        ``index``: which of the server's addresses.
        ``source``: the IP address to come from, or the path of a Unix socket; without it a Unix client gets
        a name of its own, so that it can be answered.
        """
        timeout = cls.default_timeout if timeout is None else check_timeout(timeout)
        place = locate(target, index)
        self = cls(socket.socket(place.family, socket.SOCK_DGRAM), timeout=timeout)
        try:
            if place.family not in (socket.AF_INET, socket.AF_INET6):
                self._take_name(source)
            elif source is not None:
                self.sock.bind((source, 0))
            self.sock.connect(place.sockaddr)
        except BaseException:
            self.close()
            raise
        return self

    def _take_name(self, source: str | None) -> None:
        if source is not None:
            self.sock.bind(source)
        elif sys.platform.startswith("linux"):
            self.sock.bind("")  # The kernel chooses a name that is no file.
        else:
            self.sock.bind(f"{self._exits.enter_context(short_directory())}/client")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def name(self) -> Any:
        """Its own address, as ``getsockname()`` has it: the server's ``Datagram.peer``."""
        return self.sock.getsockname()

    async def send(self, *packets: bytes) -> None:
        """Send each of them as a packet; waits while there is no room, on a Unix socket for the server."""
        for packet in packets:
            await bounded(self._send(packet), self.timeout, "room for a packet")

    async def _send(self, packet: bytes) -> None:
        if packet:
            await asyncio.get_running_loop().sock_sendall(self.sock, packet)
        else:  # The loop takes "nothing left to send" for "sent".
            await when_there_is_room(partial(self.sock.send, packet))

    async def receive(self) -> bytes:
        """The next packet; it may be empty."""
        receiving = asyncio.get_running_loop().sock_recv(self.sock, _LARGEST)
        return await bounded(receiving, self.timeout, f"a packet to {self.name!r}")

    async def ask(self, packet: bytes) -> bytes:
        """Send one, and receive the next one that comes."""
        await self.send(packet)
        return await self.receive()

    def received(self) -> list[bytes]:
        """All that have come so far; does not wait."""
        found: list[bytes] = []
        while True:
            try:
                found.append(self.sock.recv(_LARGEST))
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Close; idempotent."""
        self._exits.close()
