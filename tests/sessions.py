"""Servers of sessions for tests, and peers on plain sockets, the same on every loop."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Self

from asyncserver import (
    DatagramAddress,
    DatagramLimits,
    DatagramServer,
    DatagramTimeouts,
    Session,
    UnixDatagramAddress,
    sessions,
)
from asyncserver.ip_sockets import has_ipv6
from tests.clients import hear_nobody
from tests.waiting import PATIENCE, stays, wait_until

__all__ = ["PLACES", "Peer", "Peers", "check_balance", "serving"]

PLACES = ("udp", "wildcard", "unixgram") + (("ipv6", "dual") if has_ipv6() else ())

_URLS = {
    "udp": "udp://127.0.0.1:0",
    "wildcard": "udp://0.0.0.0:0",
    "ipv6": "udp://[::1]:0",
    "dual": "udp://[::]:0?dual_stack=1",
}


class Peer:
    """A datagram socket that talks to one address."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @property
    def port(self) -> int:
        return int(self.sock.getsockname()[1])

    def send(self, *packets: bytes) -> None:
        for packet in packets:
            assert self.sock.send(packet) == len(packet)

    def received(self) -> bytes | None:
        """What has come; None if nothing has."""
        try:
            return self.sock.recv(65_536)
        except BlockingIOError:
            return None

    async def receive(self, *, timeout: float = PATIENCE) -> bytes:
        found: list[bytes] = []

        def come() -> bool:
            packet = self.received()
            if packet is not None:
                found.append(packet)
            return bool(found)

        await wait_until(come, timeout=timeout, what="a packet")
        return found[0]

    async def ask(self, packet: bytes) -> bytes:
        self.send(packet)
        return await self.receive()

    async def hears_nothing(self) -> None:
        await stays(lambda: self.received() is None)

    def leave(self) -> None:
        """Nobody receives there any more; a port stays taken, or a test beside this one might get it."""
        if self.sock.family == socket.AF_UNIX:
            self.sock.close()
        else:
            hear_nobody(self.sock)


class Peers:
    """Makes addresses to serve at, and peers that talk to a server; closes all peers at the end."""

    def __init__(self, place: str = "udp") -> None:
        self.place = place
        self._stack = ExitStack()
        self._directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="s")))
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        return _URLS.get(self.place, f"unixgram://{self._directory}/server")

    def new(
        self, server: DatagramServer, *, to: str | None = None, source: str | None = None, bound: bool = True
    ) -> Peer:
        """One that talks to the first address of ``server``, at the host ``to``, from ``source``."""
        address: DatagramAddress = server.addresses[0]  # type: ignore[assignment]
        if isinstance(address, UnixDatagramAddress):
            sock = self._open(socket.AF_UNIX)
            self._made += 1
            if bound:
                sock.bind(os.fspath(self._directory / str(self._made)))
            sock.connect(address.path)
            return Peer(sock)
        host = to or ("::1" if self.place == "ipv6" else "127.0.0.1")
        sock = self._open(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if source is not None:
            sock.bind((source, 0))
        sock.connect((host, address.port))  # type: ignore[union-attr]
        return Peer(sock)

    def _open(self, family: int) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sock.setblocking(False)
        return sock


def check_balance(server: DatagramServer) -> None:
    """No packet is lost without having been counted."""
    seen = server.statistics()
    assert seen.received == seen.handled + seen.dropped + seen.queued, seen
    assert (seen.failed, seen.cancelled, seen.running) == (0, 0, 0)
    assert not seen.dropped_by_kernel


@asynccontextmanager
async def serving(
    handler: Callable[[Session], Awaitable[object]], *urls: str, on_error: Any = None, **fields: Any
) -> AsyncIterator[DatagramServer]:
    """Serves sessions; ``fields`` are those of the limits and of the timeouts. Checks its counters."""
    names = {field.name for field in dataclasses.fields(DatagramLimits)}
    limits = {name: value for name, value in fields.items() if name in names}
    timeouts = {name: value for name, value in fields.items() if name not in names}
    async with DatagramServer(
        sessions(handler),
        *urls or ("udp://127.0.0.1:0",),
        limits=DatagramLimits(**limits),
        timeouts=DatagramTimeouts(**timeouts),
        on_error=on_error,
    ) as server:
        yield server
        if server.ready:
            check_balance(server)
    check_balance(server)
