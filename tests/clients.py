"""Peers of all kinds for tests: on plain sockets, the same on every loop, and with no manners unless asked.

::

    async with local_server(echo) as server, await Client.connect(server) as client:
        assert await client.ask(b"hello") == b"hello"
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from contextlib import suppress
from types import TracebackType
from typing import Any

import pytest

from asyncserver import Address, Server, Stream, TCPAddress, UnixAddress
from tests.waiting import PATIENCE, within

__all__ = [
    "LOOPBACK",
    "Client",
    "TLSClient",
    "complaints",
    "connect_many",
    "echo",
    "ignore_cancellation",
    "local_server",
]

LOOPBACK = "tcp://127.0.0.1:0"

_RESET = struct.pack("ii", 1, 0)


async def echo(stream: Stream) -> None:
    """The handler that most tests need: sends back whatever comes."""
    async for chunk in stream:
        await stream.send(chunk)


async def ignore_cancellation(until: asyncio.Event) -> None:
    """What handlers must not do: go on although they are cancelled. (Not for ever: a test may fail.)"""
    end = asyncio.get_running_loop().time() + 2 * PATIENCE
    while not until.is_set():
        with suppress(asyncio.CancelledError):
            async with asyncio.timeout_at(end):
                await until.wait()


def local_server(handler: Any = echo, *addresses: Address | str, **options: Any) -> Server:
    """A server on a free port of the loopback interface, or on ``addresses``; not started yet."""
    return Server(handler, *(addresses or (LOOPBACK,)), **options)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as a warning or worse."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


class Client:
    """A peer on a non-blocking socket: what it does not do, nobody does for it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    @classmethod
    async def connect(
        cls,
        target: Server | Address,
        *,
        source: str | None = None,
        receive_buffer: int | None = None,
        index: int = 0,
    ) -> Client:
        """Connect to an address, or to that of a server; ``source`` is the address to come from."""
        address = target.addresses[index] if isinstance(target, Server) else target
        family, sockaddr = _where(address)
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                sock.bind((source, 0))
            await within(asyncio.get_running_loop().sock_connect(sock, sockaddr), what="a connect")
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def name(self) -> Any:
        """Its address, as the server sees it."""
        return self.sock.getsockname()

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        await within(asyncio.get_running_loop().sock_sendall(self.sock, data), what="a send")

    async def send_slowly(self, data: bytes, pause: float) -> None:
        """Send a byte at a time with a pause after each."""
        for index in range(len(data)):
            await self.send(data[index : index + 1])
            await asyncio.sleep(pause)

    async def receive(self, most: int = 65_536) -> bytes:
        """What has come; b"" at the end. Raises ``ConnectionResetError`` after a reset."""
        return await within(asyncio.get_running_loop().sock_recv(self.sock, most), what="bytes")

    async def receive_exactly(self, count: int) -> bytes:
        """That many bytes, or fewer when the end comes before."""
        received = bytearray()
        while len(received) < count and (data := await self.receive(min(65_536, count - len(received)))):
            received += data
        return bytes(received)

    async def receive_all(self) -> bytes:
        """Everything until the end."""
        received = bytearray()
        while data := await self.receive():
            received += data
        return bytes(received)

    async def ask(self, data: bytes) -> bytes:
        """Send, and receive as much as was sent."""
        await self.send(data)
        return await self.receive_exactly(len(data))

    async def ended(self) -> str:
        """How the connection ends: "eof" or "reset", and nothing may come before."""
        try:
            data = await self.receive()
        except (ConnectionResetError, BrokenPipeError):
            return "reset"
        assert data == b"", f"{data!r} came instead of the end"
        return "eof"

    def half_close(self) -> None:
        """Send the end and go on receiving."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a RST (on Unix sockets: just close)."""
        if self.sock.family != socket.AF_UNIX:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()

    def close(self) -> None:
        """Close."""
        self.sock.close()


class TLSClient:
    """A TLS peer over a ``Client``, driven step by step."""

    def __init__(self, client: Client, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self.client = client
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)

    @classmethod
    async def connect(
        cls,
        target: Server | Address,
        context: ssl.SSLContext,
        *,
        server_hostname: str = "localhost",
        index: int = 0,
    ) -> TLSClient:
        """Connect and shake hands."""
        self = cls(await Client.connect(target, index=index), context, server_hostname)
        try:
            await self.handshake()
        except BaseException:
            self.close()
            raise
        return self

    async def __aenter__(self) -> TLSClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    async def handshake(self) -> None:
        """Shake hands; raises ``ssl.SSLError``, or ``ConnectionError`` if the server closes instead."""
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._exchange()
            else:
                await self._flush()
                return

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        self.tls.write(data)
        await self._flush()

    async def receive(self, most: int = 65_536) -> bytes:
        """What has come; b"" at the end, whether with or without the closing alert."""
        while True:
            try:
                return self.tls.read(most)
            except ssl.SSLWantReadError:
                try:
                    await self._exchange()
                except ConnectionAbortedError:
                    return b""
            except ssl.SSLZeroReturnError:
                return b""

    async def ask(self, data: bytes) -> bytes:
        """Send, and receive as much as was sent."""
        await self.send(data)
        received = b""
        while len(received) < len(data) and (more := await self.receive()):
            received += more
        return received

    def first_flight(self) -> bytes:
        """The bytes of the ClientHello, sent to nobody."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._outgoing.read()
        raise AssertionError("a handshake without a server")

    def close(self) -> None:
        """Close without a word."""
        self.client.close()

    async def _exchange(self) -> None:
        await self._flush()
        data = await self.client.receive()
        if not data:
            raise ConnectionAbortedError("the server has closed the connection")
        self._incoming.write(data)

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self.client.send(self._outgoing.read())


async def connect_many(target: Server | Address, count: int) -> list[Client]:
    """So many clients, one after the other."""
    return [await Client.connect(target) for _ in range(count)]


def _where(address: Address) -> tuple[int, Any]:
    if isinstance(address, UnixAddress):
        path = address.path
        return socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path
    assert isinstance(address, TCPAddress)
    host = address.host
    return (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, address.port)
